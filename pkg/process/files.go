package process

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// KeepFiles has no program that is started from now on inherit files that whoever started
// this process had open, but for the standard three. What outlives us would hold a lock
// of theirs for ever, or the end of a pipe whose other end somebody reads to its end.
// Files that Go opens are never inherited.
func KeepFiles() error {
	err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	// Linux before 5.11 has no such call or no such flag, and a filter of calls may refuse
	// what it does not know.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("keep files from programs to be started: %w", err)
	}
	return nil
}
