package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// usage is what a product's processes have used by some moment: what they did
// themselves, and what those that they started and waited for did.
type usage struct {
	cpu     time.Duration
	written int64 // bytes
}

// memory is what they hold at some moment, in bytes.
type memory struct{ pss, anonymous int64 }

// used sums over processes that are owned, by their folders in /proc.
func used(owns func(dir string) bool) (usage, error) {
	var total usage
	err := each(owns, func(dir string) error {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			return err
		}
		cpu, err := cpuOf(stat)
		if err != nil {
			return fmt.Errorf("%s/stat: %w", dir, err)
		}
		io, err := os.ReadFile(dir + "/io")
		if err != nil {
			return err
		}
		total.cpu += cpu
		total.written += field(io, "write_bytes:")
		return nil
	})
	return total, err
}

func held(owns func(dir string) bool) (memory, error) {
	var total memory
	err := each(owns, func(dir string) error {
		maps, err := os.ReadFile(dir + "/smaps_rollup")
		if err != nil {
			return err
		}
		total.pss += field(maps, "Pss:") << 10
		total.anonymous += field(maps, "Anonymous:") << 10
		return nil
	})
	return total, err
}

// each calls do for every process that is owned. One that ends meanwhile is left out.
func each(owns func(dir string) bool, do func(dir string) error) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if !owns(dir) {
			continue
		}
		if err := do(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// inPod reports whether a process is in the control group of a pod.
func inPod(dir string) bool {
	groups, err := os.ReadFile(dir + "/cgroup")
	return err == nil && bytes.Contains(groups, []byte("kubepods"))
}

// clock is the length of the kernel's tick in /proc, the same on every architecture
// that Go knows.
const clock = 10 * time.Millisecond

// cpuOf is the time in user and kernel mode, children included, out of
// /proc/PID/stat (proc_pid_stat(5), fields 14 to 17).
func cpuOf(stat []byte) (time.Duration, error) {
	// The command between parentheses may hold anything, parentheses included.
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 15 {
		return 0, errors.New("too few fields")
	}
	var ticks int64
	for _, text := range f[11:15] {
		n, err := strconv.ParseInt(string(text), 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * clock, nil
}

// field is the number after name at the beginning of a line.
func field(text []byte, name string) int64 {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseInt(f[0], 10, 64)
				return n
			}
		}
	}
	return 0
}

// loadAverage is the machine's of the last minute.
func loadAverage() float64 {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	n, _ := strconv.ParseFloat(first, 64)
	return n
}
