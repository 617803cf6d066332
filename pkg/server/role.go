package server

import (
	"context"
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

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

// Role labels the node of this process as one that runs a control plane, and maybe a
// member of etcd, as soon as it has registered.
func Role(p plan.Server, g *gate.Gate) lifecycle.Component {
	return lifecycle.Task("node-role", func(ctx context.Context) error {
		rc, err := kubeconfig.Client(p.Paths.ServerKubeconfig("podo"), g.Dial)
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(rc)
		if err != nil {
			return err
		}
		node, err := nodes.Await(ctx, client, p.NodeName, func(*corev1.Node) bool { return true })
		if err != nil {
			return nil // only a stop ends the wait
		}
		roles := map[string]string{roleLabel: "true"}
		if p.Storage.Etcd != nil {
			roles[etcdLabel] = "true"
		}
		for name := range roles {
			if node.Labels[name] != "" {
				delete(roles, name)
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
