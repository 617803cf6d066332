package host

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
)

// ephemeral is where the ports begin that the kernel gives to whoever asks. What
// answers there is no service that people know by its port.
const ephemeral = 32768

// Listening are the ports that programs answer at on all addresses of this host or on
// one of these, in order. Those on loopback, and those of the moment, are left out.
func Listening(at []netip.Addr) []Port { return root("").listening(at) }

func (r root) listening(at []netip.Addr) []Port {
	var out []Port
	for s := range r.bound() {
		p := Port{Number: portOf(s.address), UDP: s.udp}
		ip := addressOf(s.address)
		if p.Number < ephemeral && (ip.IsUnspecified() || slices.Contains(at, ip)) && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Port) int {
		switch {
		case a.Number != b.Number:
			return cmp.Compare(a.Number, b.Number)
		case a.UDP:
			return 1
		}
		return -1
	})
	return out
}

// addressOf reads the IP of an address such as 0100007F:192B: words of 32 bits, each a
// number in the machine's order. It is invalid if that is none.
func addressOf(address string) netip.Addr {
	text, _, _ := strings.Cut(address, ":")
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw)%4 != 0 {
		return netip.Addr{}
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	ip, _ := netip.AddrFromSlice(raw)
	return ip.Unmap()
}
