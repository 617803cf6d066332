package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/version"
)

// progress tells a person how the start is going, one line a step, and the service
// manager when it is done. It is a lifecycle.Group's Observe.
func progress(w io.Writer, began time.Time, cfg config.Server, p plan.Plan, notify notifier) func(lifecycle.Status) {
	if cfg.Logging.Debug || cfg.Logging.File != "" && !cfg.Logging.AlsoLogToStderr {
		w = io.Discard // the log tells it
	}
	s := newSteps(w, began, wantsColour(w))
	words := map[string]string{
		"certificates":            "certificates in place",
		"datastore":               "datastore open (SQLite)",
		"payload":                 "programs unpacked",
		"containerd":              "container engine running",
		"kube-apiserver":          "API answering at " + p.Server.API,
		"kube-controller-manager": "controllers running",
		"kube-scheduler":          "scheduler running",
		"kubelet":                 "kubelet running",
		"flannel":                 "pod network configured (" + cfg.Network.FlannelBackend + ")",
		"kube-proxy":              "services routed (kube-proxy)",
		"images":                  "images imported",
		"addons":                  "addons deployed",
	}
	last := "kube-apiserver"
	if p.Node != nil {
		last = "node"
		words["node"] = "node " + p.Node.Name + " is Ready"
	}
	s.Done("start", fmt.Sprintf("podo %s, Kubernetes %s", version.Podo(), version.Kubernetes()))
	var once sync.Once
	return func(st lifecycle.Status) {
		if st.State != lifecycle.Ready {
			return
		}
		if text, ok := words[st.Name]; ok {
			s.Done(st.Name, text)
		}
		if st.Name == last {
			once.Do(func() {
				s.Done("hint", "try: podo kubectl get nodes   (kubeconfig: "+cfg.Kubeconfig.Path+")")
				notify.send("READY=1\nSTATUS=" + words[last])
			})
		}
	}
}

// notifier is the socket of the service manager, or empty.
type notifier string

// takeNotifier reads the service manager's variables and removes them: the API
// server, the kubelet and containerd would each announce themselves there.
func takeNotifier() notifier {
	socket := os.Getenv("NOTIFY_SOCKET")
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name)
	}
	return notifier(socket)
}

// send tells the service manager something (sd_notify(3)). It matters to nobody
// else if that fails.
func (n notifier) send(state string) {
	if n == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: string(n), Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte(state))
}
