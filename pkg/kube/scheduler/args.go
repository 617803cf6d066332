package scheduler

import (
	"maps"

	"github.com/podo-dev/podo/pkg/kube/args"
	"github.com/podo-dev/podo/pkg/plan"
)

// Args are the flags that podo gives kube-scheduler, with the user's laid over.
func Args(p plan.Scheduler) (args.Set, error) {
	kubeconfig := p.Paths.ServerKubeconfig("kube-scheduler")
	ours := args.Set{
		"kubeconfig": {kubeconfig},
		// With an election, upstream calls os.Exit when its context ends, which
		// would take the datastore down in the middle of a write.
		"leader-elect": {"false"},
		"profiling":    {"false"},
	}
	maps.Copy(ours, args.Listening(p.Args, kubeconfig, p.Paths.CA("client").Cert))
	return ours.Merge("kube-scheduler-arg", p.Args, args.Deny(map[string]string{
		"kubeconfig":   "its credentials are made by podo",
		"leader-elect": "one server needs no election",
	}))
}
