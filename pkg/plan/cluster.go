package plan

import "net/netip"

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
	ExternalCloud  bool           `json:"externalCloud,omitempty"`
	Egress         string         `json:"egress"` // mode: see pkg/tunnel
}
