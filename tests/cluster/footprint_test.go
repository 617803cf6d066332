package cluster

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// What an agent without pods may hold in memory, its container engine included, and
// use of one processor. k3s publishes 275 MB for its agent.
const (
	mostMemory = 230 << 20
	mostCPU    = 0.03
)

// TestIdleAgentIsSmall_alone: an agent without pods holds little memory and hardly runs.
func TestIdleAgentIsSmall_alone(t *testing.T) {
	s := alone(t)
	server, one := s.net.Host("server"), s.net.Host("one")
	// The server's program is a copy, since pages that two processes share count half
	// for each, and on a machine of its own an agent has nobody to share with.
	if out, err := server.Run("cp", "/usr/local/bin/podo", "/root/podo"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	server.Start("/root/podo", "server")
	token := s.token(server)
	s.ready(server, server)
	one.Start("podo", "agent", "--server", url(server), "--token", token)
	s.ready(server, one)
	s.podo(one, "status", "--wait=30s")
	time.Sleep(30 * time.Second)
	before := s.processes(one)
	const span = 30 * time.Second
	time.Sleep(span)
	after := s.processes(one)

	var memory int64
	var cpu time.Duration
	for _, p := range after {
		i := slices.IndexFunc(before, func(b process) bool { return b.pid == p.pid })
		if i >= 0 {
			p.cpu -= before[i].cpu
		}
		t.Logf("%-28s %6.1f MB (%.1f anonymous), %.2f %% of a processor", p.name,
			float64(p.pss)/(1<<20), float64(p.anonymous)/(1<<20), 100*p.cpu.Seconds()/span.Seconds())
		memory += p.pss
		cpu += p.cpu
	}
	t.Logf("%-28s %6.1f MB, %.2f %% of a processor", "together", float64(memory)/(1<<20), 100*cpu.Seconds()/span.Seconds())
	s.figure("idle agent, memory (PSS) with containerd", float64(memory)/(1<<20), "MB")
	s.figure("idle agent, share of one processor", 100*cpu.Seconds()/span.Seconds(), "%")
	if memory > mostMemory {
		t.Errorf("an idle agent holds %d MB, at most %d are wanted", memory>>20, mostMemory>>20)
	}
	if cpu.Seconds() > mostCPU*span.Seconds() {
		t.Errorf("an idle agent uses %.1f %% of a processor, at most %.1f are wanted", 100*cpu.Seconds()/span.Seconds(), 100*mostCPU)
	}
}

// A process is what one on a host holds and has used so far.
type process struct {
	pid, name      string
	pss, anonymous int64
	cpu            time.Duration
}

// processes are those on a host, but for the first, which is the test's own.
func (s *scene) processes(h *hosts.Host) []process {
	s.Helper()
	dirs, err := filepath.Glob(h.Path("/proc/[0-9]*"))
	if err != nil {
		s.Fatal(err)
	}
	var out []process
	for _, dir := range dirs {
		stat, err1 := os.ReadFile(dir + "/stat")
		maps, err2 := os.ReadFile(dir + "/smaps_rollup")
		line, err3 := os.ReadFile(dir + "/cmdline")
		if filepath.Base(dir) == "1" || err1 != nil || err2 != nil || err3 != nil {
			continue
		}
		args := strings.Split(string(line), "\x00")
		p := process{pid: filepath.Base(dir), name: filepath.Base(args[0]), pss: inBytes(maps, "Pss:"), anonymous: inBytes(maps, "Anonymous:")}
		// User and kernel time, in ticks of 10 ms (proc_pid_stat(5), fields 14 and 15).
		f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		for _, ticks := range f[11:13] {
			n, err := strconv.Atoi(string(ticks))
			if err != nil {
				s.Fatal(fmt.Errorf("%s/stat: %w", dir, err))
			}
			p.cpu += time.Duration(n) * 10 * time.Millisecond
		}
		out = append(out, p)
	}
	return out
}

// inBytes is a value of a file such as smaps_rollup, which counts in kB.
func inBytes(text []byte, name string) int64 {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}
