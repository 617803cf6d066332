// Package tunnel lets API servers reach nodes that they cannot dial.
//
// A node dials every server and leaves the connection open; a server that wants to
// talk to that node's kubelet opens a stream in it. So exec, logs, port-forward and
// metrics work for a node behind NAT, and a node needs no open port.
//
//	kube-apiserver ──CONNECT──▶ Connect ──▶ Hub ══tunnel══ Agent ──▶ kubelet
//	   (egress selector)   unix socket         ◀── dialled         (or a pod)
//
// The tunnel is HTTP/1.1, upgraded to [Protocol] and then multiplexed: the server
// opens streams, the node only accepts them. A stream begins with one frame that
// says where to, answered by one frame: empty for yes, else why not. A frame is its
// length in two bytes and its text. The text is "kubelet", or an address and a port
// of [AgentOptions].Reach.
//
// Neither side believes the other about who is who. Which node a tunnel belongs to
// is what its client certificate says, and which node an address belongs to is what
// the server's [Owner] says; a node is never asked. The node in turn dials nothing
// but its kubelet and what it chose to expose.
package tunnel
