package reset

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// ourLinks finds the pods' bridge, what is plugged into it, and flannel's and
// kube-proxy's links. A link of the right name but another kind is somebody else's.
func ourLinks() ([]netlink.Link, error) {
	all, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return oursOf(all), nil
}

// theirLinks are links of containers, virtual machines and tunnels that are not podo's.
func theirLinks() []string {
	all, _ := netlink.LinkList() // without them all is put back
	ours := oursOf(all)
	var out []string
	for _, l := range all {
		if slices.Contains([]string{"bridge", "tuntap", "wireguard"}, l.Type()) && !slices.Contains(ours, l) {
			out = append(out, l.Attrs().Name)
		}
	}
	return out
}

// oursOf are those of links that are podo's.
func oursOf(all []netlink.Link) []netlink.Link {
	kinds := map[string]string{
		"cni0":          "bridge",
		"flannel.1":     "vxlan",
		"flannel-v6.1":  "vxlan",
		"flannel-wg":    "wireguard",
		"flannel-wg-v6": "wireguard",
		"kube-ipvs0":    "dummy",
	}
	var out []netlink.Link
	bridge := 0
	for _, l := range all {
		if kind, ok := kinds[l.Attrs().Name]; ok && l.Type() == kind {
			out = append(out, l)
			if kind == "bridge" {
				bridge = l.Attrs().Index
			}
		}
	}
	for _, l := range all {
		if bridge > 0 && l.Type() == "veth" && l.Attrs().MasterIndex == bridge {
			out = append(out, l)
		}
	}
	return out
}

// removeLinks deletes our links; routes through them go with them.
func (m *machine) removeLinks() error {
	links, err := ourLinks()
	if err != nil {
		return err
	}
	var names []string
	var errs []error
	// The pods' ends first: deleting the bridge would merely unplug them.
	for i := len(links) - 1; i >= 0; i-- {
		name := links[i].Attrs().Name
		if err := netlink.LinkDel(links[i]); err != nil && !absent(links[i]) {
			errs = append(errs, fmt.Errorf("delete link %s: %w", name, err))
			continue
		}
		names = append(names, name)
	}
	if len(names) > 0 {
		m.tell("removed %s (%s)", plural(len(names), "link", "links"), shortList(names))
	}
	return errors.Join(errs...)
}

// absent reports whether l has gone by itself, as one end of a pair does with the other.
func absent(l netlink.Link) bool {
	_, err := netlink.LinkByIndex(l.Attrs().Index)
	var gone netlink.LinkNotFoundError
	return errors.As(err, &gone)
}

func shortList(names []string) string {
	const most = 6
	if len(names) > most {
		return strings.Join(names[len(names)-most:], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}
