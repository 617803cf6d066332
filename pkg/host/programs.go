package host

import (
	"encoding/hex"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// rivals finds programs that would fight podo over the machine, by the name the
// kernel knows them by (at most 15 bytes).
func (r root) rivals() []Running {
	known := []string{
		"kubelet", "kube-apiserver", "kube-proxy", "kubelite",
		"k3s", "k3s-server", "k3s-agent", "rke2", "rke2-server", "rke2-agent", "k0s",
		"firewalld",
	}
	var out []Running
	for _, pid := range r.pids() {
		if name := r.line("/proc/" + strconv.Itoa(pid) + "/comm"); slices.Contains(known, name) {
			out = append(out, Running{Name: name, PID: pid})
		}
	}
	return out
}

func (r root) pids() []int {
	entries, _ := os.ReadDir(r.path("/proc"))
	var out []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// listeners finds who holds the ports asked about, on any address.
func (r root) listeners(ports []Port) []Listener {
	if len(ports) == 0 {
		return nil
	}
	var out []Listener
	owner := map[string]int{} // inode to index in out
	for s := range r.bound() {
		number := portOf(s.address)
		at := slices.IndexFunc(ports, func(p Port) bool { return p.Number == number && p.UDP == s.udp })
		if at < 0 || slices.ContainsFunc(out, func(l Listener) bool { return l.Port == ports[at] }) {
			continue
		}
		owner["socket:["+s.inode+"]"] = len(out)
		out = append(out, Listener{Port: ports[at]})
	}
	if len(out) == 0 {
		return nil
	}
	for _, pid := range r.pids() {
		dir := r.path("/proc/" + strconv.Itoa(pid) + "/fd")
		fds, _ := os.ReadDir(dir)
		for _, fd := range fds {
			target, err := os.Readlink(filepath.Join(dir, fd.Name()))
			if err != nil {
				continue
			}
			if i, ok := owner[target]; ok && out[i].PID == 0 {
				out[i].PID = pid
				out[i].Program = r.program(pid)
			}
		}
	}
	return out
}

// socket is one that waits for whoever comes.
type socket struct {
	address string // as the kernel prints it
	udp     bool
	inode   string
}

// bound are the sockets of TCP that listen, and those of UDP that have no peer.
func (r root) bound() iter.Seq[socket] {
	return func(yield func(socket) bool) {
		for _, proto := range []struct {
			udp   bool
			state string
			files []string
		}{
			{false, "0A", []string{"/proc/net/tcp", "/proc/net/tcp6"}}, // TCP_LISTEN
			{true, "07", []string{"/proc/net/udp", "/proc/net/udp6"}},  // TCP_CLOSE: bound, not connected
		} {
			for _, file := range proto.files {
				for line := range strings.Lines(r.read(file)) {
					f := strings.Fields(line)
					if len(f) >= 10 && f[3] == proto.state && !yield(socket{f[1], proto.udp, f[9]}) {
						return
					}
				}
			}
		}
	}
}

// program names a process by its executable, which a thread name cannot hide.
func (r root) program(pid int) string {
	at := "/proc/" + strconv.Itoa(pid)
	if exe, err := os.Readlink(r.path(at + "/exe")); err == nil {
		return strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	}
	return r.line(at + "/comm")
}

// portOf reads the port of an address such as 0100007F:192B.
func portOf(address string) int {
	_, port, _ := strings.Cut(address, ":")
	raw, err := hex.DecodeString(port)
	if err != nil || len(raw) != 2 {
		return 0
	}
	return int(raw[0])<<8 | int(raw[1])
}
