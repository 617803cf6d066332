package volumes

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestUnenforcedSizesAreToldOnceForEachRoot(t *testing.T) {
	var log bytes.Buffer
	n := &node{log: slog.New(slog.NewTextHandler(&log, nil)), unheld: map[string]bool{}}
	why := errors.New("its file system is not mounted with project quotas")
	n.tellUnheld("/held", nil)
	for range 3 {
		n.tellUnheld("/mnt/a", why)
	}
	n.tellUnheld("/mnt/b", why)
	if got := log.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "path=/mnt/a") || !strings.Contains(got, "path=/mnt/b") || !strings.Contains(got, why.Error()) {
		t.Errorf("the log has\n%s", got)
	}
}
