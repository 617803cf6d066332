package host

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The tables as a machine with little-endian words prints them.
const (
	tcpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:0277 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0A0200C0:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 017AA8C0:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
   4: 0A0200C0:01BB 010200C0:9C40 01 00000000:00000000 00:00000000 00000000     0        0 5 1 0 100 0 0 10 0
   5: 00000000:9C41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 6 1 0 100 0 0 10 0
`
	tcp6Table = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: B80D0120000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 0000000000000000FFFF00000A0200C0:1F92 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
`
	udpTable = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
   10: 00000000:006F 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0
   11: 0A0200C0:0044 010200C0:0043 01 00000000:00000000 00:00000000 00000000     0        0 2 2 0 0
`
)

func TestListening(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "proc/net"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"tcp": tcpTable + "   6: nonsense:16 0:0 0A 0 0 0 0 0 7\n", "tcp6": tcp6Table, "udp": udpTable} {
		if err := os.WriteFile(filepath.Join(dir, "proc/net", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := root(dir).listening([]netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::1")})
	want := []Port{{Number: 22}, {Number: 80}, {Number: 111, UDP: true}, {Number: 8081}, {Number: 8082}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v; want %v", got, want)
	}
}

// TestListeningHere has a program of this machine listen.
func TestListeningHere(t *testing.T) {
	var l net.Listener
	var err error
	for port := 20000; port < 20100; port++ {
		if l, err = net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port)); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := Port{Number: l.Addr().(*net.TCPAddr).Port}
	if got := Listening(nil); !slices.Contains(got, want) {
		t.Errorf("%v is not in %v", want, got)
	}
	l.Close()
	if got := Listening(nil); slices.Contains(got, want) {
		t.Errorf("%v is still in %v", want, got)
	}
}
