// Package status tells an operator how the running podo stands.
//
// The server half is a Component that answers GET /status on a unix socket which
// only root may open; the client half asks it, or waits until all is well. The
// package knows no part of podo: whoever serves supplies the Report, afresh for each
// question, and the socket tells nothing that would let a reader into the cluster.
//
// One thing can be asked for besides, by POST /end-pods: that the node's pods end, which
// only the podo that runs them can do in good order.
package status
