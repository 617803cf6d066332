package plan

import (
	"net/netip"
	"strings"
)

// Cluster is what a node must know of its cluster. A server decides it; an agent is
// told when it joins, and keeps it for the day when no server answers. Its JSON form
// crosses the wire between podos of different versions: fields are added, never
// renamed.
type Cluster struct {
	PodCIDR        []netip.Prefix `json:"podCIDR"`
	ServiceCIDR    []netip.Prefix `json:"serviceCIDR"`
	DNS            []netip.Addr   `json:"dns"`
	Domain         string         `json:"domain"`
	FlannelBackend string         `json:"flannelBackend"`
	FlannelIPv6NAT bool           `json:"flannelIPv6NAT,omitempty"`
	KubeProxy      bool           `json:"kubeProxy"`
	NetworkPolicy  bool           `json:"networkPolicy,omitempty"`
	ExternalCloud  bool           `json:"externalCloud,omitempty"`
	Egress         string         `json:"egress"`                   // mode: see pkg/tunnel
	LocalStorage   string         `json:"localStorage,omitempty"`   // folder of each node for volumes; empty: in its data directory
	SystemRegistry string         `json:"systemRegistry,omitempty"` // of podo's own images; empty: its own file
}

// OwnRegistry begins the names of the images that podo brings.
const OwnRegistry = "podo.local"

// Image is the name of one of podo's own images, such as pause:3.10, in this cluster.
func (c Cluster) Image(name string) string {
	if c.SystemRegistry != "" {
		return c.SystemRegistry + "/" + name
	}
	return OwnRegistry + "/" + name
}

// pauseImage is the image of pod sandboxes where that is what somebody said, or the default.
func (c Cluster) pauseImage(said string) string {
	if name, own := strings.CutPrefix(said, OwnRegistry+"/"); own {
		return c.Image(name)
	}
	return said
}
