package volumes

import (
	"log/slog"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle/lifecycletest"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

// TestContract: both parts are ready and stop while no server answers.
func TestContract(t *testing.T) {
	const nowhere = "http://127.0.0.1:1"
	dir := t.TempDir()
	p := paths.Paths{Etc: dir + "/etc", Data: dir + "/data", Run: dir + "/run"}
	for _, who := range []string{"podo-node", "kubelet"} {
		if err := kubeconfig.Write(p.AgentKubeconfig(who), kubeconfig.Config{Name: "podo", Server: nowhere}, kubeconfig.DefaultMode); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	lifecycletest.Check(t, NewKeeper(plan.Volumes{Paths: p, Name: "box", Root: p.Storage()}, nil, log))
	lifecycletest.Check(t, NewProvisioner(func() (*rest.Config, error) { return &rest.Config{Host: nowhere}, nil }, log))
}
