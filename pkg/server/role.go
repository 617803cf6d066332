package server

import (
	"context"
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/nodes"
	"github.com/podo-dev/podo/pkg/plan"
)

// What kubectl shows as a node's roles. A kubelet may not give them to its own node.
const (
	roleLabel = "node-role.kubernetes.io/control-plane"
	etcdLabel = "node-role.kubernetes.io/etcd"
)

// Role labels the node of this process with what its server runs, an API server or a
// member of etcd or both, as soon as it has registered. A server that was started anew
// without one of them loses that label.
func Role(p plan.Server, g *gate.Gate) lifecycle.Component {
	return lifecycle.Task("node-role", func(ctx context.Context) error {
		client, err := kubeconfig.Clientset(p.Paths.ServerKubeconfig("podo"), g.Dial)
		if err != nil {
			return err
		}
		node, err := nodes.Await(ctx, client, p.NodeName, func(*corev1.Node) bool { return true })
		if err != nil {
			return nil // only a stop ends the wait
		}
		roles := map[string]any{}
		for name, runs := range map[string]bool{roleLabel: p.APIServer != nil, etcdLabel: p.Storage.Etcd != nil} {
			switch _, has := node.Labels[name]; {
			case runs && !has:
				roles[name] = "true"
			case !runs && has:
				roles[name] = nil
			}
		}
		if len(roles) == 0 {
			return nil
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": roles}})
		if err != nil {
			return err
		}
		_, err = client.CoreV1().Nodes().Patch(ctx, p.NodeName, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: "podo"})
		return err
	})
}
