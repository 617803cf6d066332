package reset

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A tableName is an nftables table, by family and name.
type tableName struct {
	family byte
	name   string
}

func (t tableName) String() string {
	switch t.family {
	case unix.NFPROTO_IPV4:
		return "ip " + t.name
	case unix.NFPROTO_IPV6:
		return "ip6 " + t.name
	case unix.NFPROTO_INET:
		return "inet " + t.name
	case unix.NFPROTO_BRIDGE:
		return "bridge " + t.name
	}
	return fmt.Sprintf("family-%d %s", t.family, t.name)
}

// isOurTable knows the tables of kube-proxy, the CNI plugins, flannel and podo.
func isOurTable(t tableName) bool {
	ip := t.family == unix.NFPROTO_IPV4 || t.family == unix.NFPROTO_IPV6
	inet := t.family == unix.NFPROTO_INET
	switch t.name {
	case "kube-proxy", "flannel-ipv4", "flannel-ipv6":
		return ip || inet
	case "cni_hostport", "cni_plugins_masquerade":
		return ip || inet
	}
	return strings.HasPrefix(t.name, "podo") && (ip || inet || t.family == unix.NFPROTO_BRIDGE)
}

func ourTables() ([]tableName, error) {
	all, err := listTables()
	if err != nil {
		return nil, fmt.Errorf("list packet filter tables: %w", err)
	}
	return slices.DeleteFunc(all, func(t tableName) bool { return !isOurTable(t) }), nil
}

func (m *machine) removeTables() error {
	tables, err := ourTables()
	if err != nil || len(tables) == 0 {
		return err
	}
	if err := changeTables(unix.NFT_MSG_DELTABLE, 0, tables); err != nil {
		return fmt.Errorf("delete packet filter tables: %w", err)
	}
	var names []string
	for _, t := range tables {
		names = append(names, t.String())
	}
	m.tell("removed %s (%s)", plural(len(names), "packet filter table", "packet filter tables"), shortList(names))
	return nil
}

// The rest speaks netlink to nftables: two messages are all that is needed here, and
// they work when the payload with its nft program is gone.

func listTables() ([]tableName, error) {
	s, err := openNetfilter()
	if err != nil {
		// A kernel without netfilter has no tables.
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			return nil, nil
		}
		return nil, err
	}
	defer unix.Close(s)
	ask := message(nftType(unix.NFT_MSG_GETTABLE), unix.NLM_F_REQUEST|unix.NLM_F_DUMP, 1, unix.NFPROTO_UNSPEC, 0, nil)
	if err := unix.Send(s, ask, 0); err != nil {
		return nil, err
	}
	var out []tableName
	err = answers(s, func(kind uint16, body []byte) (done bool, err error) {
		if kind != nftType(unix.NFT_MSG_NEWTABLE) || len(body) < 4 {
			return false, nil
		}
		if name, ok := attribute(body[4:], unix.NFTA_TABLE_NAME); ok {
			out = append(out, tableName{body[0], string(bytes.TrimRight(name, "\x00"))})
		}
		return false, nil
	})
	// Without nf_tables nobody answers for its messages.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	return out, err
}

// changeTables creates or deletes tables in one transaction.
func changeTables(what uint16, flags uint16, tables []tableName) error {
	s, err := openNetfilter()
	if err != nil {
		return err
	}
	defer unix.Close(s)
	batch := message(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	for i, t := range tables {
		attr := makeAttribute(unix.NFTA_TABLE_NAME, append([]byte(t.name), 0))
		batch = append(batch, message(nftType(what), unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags, uint32(i+1), t.family, 0, attr)...)
	}
	batch = append(batch, message(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)...)
	if err := unix.Send(s, batch, 0); err != nil {
		return err
	}
	acks := 0
	return answers(s, func(kind uint16, _ []byte) (bool, error) {
		if kind == unix.NLMSG_ERROR {
			acks++
		}
		return acks == len(tables), nil
	})
}

func openNetfilter() (int, error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, err
	}
	limit := unix.NsecToTimeval((10 * time.Second).Nanoseconds())
	if err := errors.Join(
		unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	); err != nil {
		unix.Close(s)
		return -1, err
	}
	return s, nil
}

// answers passes each message to take until take is done, the dump ends or an error
// is reported. Acknowledgements are errors with the number zero.
func answers(s int, take func(kind uint16, body []byte) (done bool, err error)) error {
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(s, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(rest))
			kind := binary.NativeEndian.Uint16(rest[4:])
			if size < unix.SizeofNlMsghdr || size > len(rest) {
				return unix.EBADMSG
			}
			body := rest[unix.SizeofNlMsghdr:size]
			switch kind {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				if len(body) >= 4 {
					if no := int32(binary.NativeEndian.Uint32(body)); no != 0 {
						return unix.Errno(-no)
					}
				}
			}
			if done, err := take(kind, body); done || err != nil {
				return err
			}
			rest = rest[min(align(size), len(rest)):]
		}
	}
}

func nftType(m uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | m }

func align(n int) int { return (n + 3) &^ 3 }

// message is a netlink message with netfilter's own small header.
func message(kind, flags uint16, seq uint32, family byte, resource uint16, payload []byte) []byte {
	b := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+4+len(payload))
	binary.NativeEndian.PutUint32(b, uint32(cap(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags)
	binary.NativeEndian.PutUint32(b[8:], seq)
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	return append(b, payload...)
}

func makeAttribute(kind uint16, value []byte) []byte {
	b := make([]byte, align(4+len(value)))
	binary.NativeEndian.PutUint16(b, uint16(4+len(value)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	copy(b[4:], value)
	return b
}

func attribute(b []byte, kind uint16) ([]byte, bool) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			break
		}
		if binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == kind {
			return b[4:size], true
		}
		b = b[min(align(size), len(b)):]
	}
	return nil, false
}
