package loadbalancer

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/lifecycle"
)

// portsAnnotation is where a node says which ports programs of the machine answer at.
const portsAnnotation = "podo.dev/host-ports"

// A node looks this often, since the kernel tells nobody that somebody has begun to
// listen; and this often until the first time that it could say so.
const (
	look  = 30 * time.Second
	first = time.Second
)

// most is how many ports a node tells of. None has as many, and an object holds no more.
const most = 1000

// Report returns a component of every node that says which ports programs of the
// machine answer at, on all addresses or on one of these, so that no Service takes them
// away.
func Report(node string, at []netip.Addr, client func() (kubernetes.Interface, error), log *slog.Logger) lifecycle.Component {
	return lifecycle.Func("host-ports", func(ctx context.Context, ready func()) error {
		api, err := client()
		if err != nil {
			return err
		}
		ready()
		trouble := false
		for pause := first; ; {
			// What has been said before changes nothing, and is not written.
			err := say(ctx, api, node, listening(at))
			switch {
			case err == nil:
				pause, trouble = look, false
			case ctx.Err() == nil && !trouble:
				trouble = true
				log.Debug("cannot say which ports are taken", "component", "host-ports", "err", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
		}
	})
}

// listening is the annotation's text: "22/TCP 111/UDP".
func listening(at []netip.Addr) string {
	ports := host.Listening(at)
	var words []string
	for _, p := range ports[:min(len(ports), most)] {
		protocol := corev1.ProtocolTCP
		if p.UDP {
			protocol = corev1.ProtocolUDP
		}
		words = append(words, port{int32(p.Number), protocol}.String())
	}
	return strings.Join(words, " ")
}

func say(ctx context.Context, api kubernetes.Interface, node, text string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{portsAnnotation: text}}})
	if err != nil {
		return err
	}
	_, err = api.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "podo"}, "status")
	return err
}

// reported are the ports that a node has said are taken. What cannot be read counts
// for nothing.
func reported(n *corev1.Node) []port {
	var out []port
	for _, word := range strings.Fields(n.Annotations[portsAnnotation]) {
		number, protocol, _ := strings.Cut(word, "/")
		if p, err := strconv.ParseUint(number, 10, 16); err == nil {
			out = append(out, port{int32(p), corev1.Protocol(protocol)})
		}
	}
	return out
}
