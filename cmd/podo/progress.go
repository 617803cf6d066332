package main

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/version"
)

// A tale is what a start has to tell: words for each part, by name, and the part
// that is the last to wait for.
type tale struct {
	words map[string]string
	last  string
	hint  string
}

// nodeWords are those of a node's parts, wherever its servers are.
func nodeWords(n plan.Node) map[string]string {
	backend := "none"
	if n.Network != nil {
		backend = n.Network.Backend
	}
	words := map[string]string{
		"payload":        "programs unpacked",
		"containerd":     "container engine running",
		"kubelet":        "kubelet running",
		"flannel":        "pod network configured (" + backend + ")",
		"kube-proxy":     "services routed (kube-proxy)",
		"network-policy": "network policies in force",
		"node":           "node " + n.Name + " is Ready",
	}
	if archives, _ := os.ReadDir(n.Paths.Images()); len(archives) > 0 {
		words["images"] = "images of " + n.Paths.Images() + " imported"
	}
	return words
}

func serverTale(cfg config.Server, p plan.Plan) tale {
	t := tale{words: map[string]string{}, last: "kube-apiserver", hint: "try: podo kubectl get nodes   (kubeconfig: " + cfg.Kubeconfig.Path + ")"}
	if p.Node != nil {
		t.words, t.last = nodeWords(*p.Node), "node"
	}
	if p.Server.APIServer == nil { // no node comes before the first API server, which may come much later
		t.last, t.hint = "port", "servers that run the API join with: podo server --server https://THIS:"+strconv.Itoa(cfg.Listener.Port)+" --token ... --disable-etcd"
	}
	maps.Copy(t.words, map[string]string{
		"certificates":            "certificates in place",
		"datastore":               "datastore open (" + datastoreKind(p.Server.Storage) + ")",
		"kube-apiserver":          "API answering at " + p.Server.API,
		"port":                    "machines may join at port " + strconv.Itoa(cfg.Listener.Port),
		"api":                     "API of other servers reached by " + p.Server.API,
		"kube-controller-manager": "controllers running",
		"kube-scheduler":          "scheduler running",
		"addons":                  "addons deployed",
	})
	return t
}

func agentTale(p plan.Plan) tale {
	t := tale{words: nodeWords(*p.Node), last: "node", hint: "see it on a server with: podo kubectl get nodes"}
	t.words["balancer"] = "servers reached by " + p.Agent.API
	return t
}

// teller is where a start tells how it is going, one line a step: the terminal, or the
// log if that is what people will read.
func teller(w io.Writer, began time.Time, l config.Logging, log *slog.Logger) *steps {
	s := newSteps(w, began, wantsColour(w))
	if l.Debug || l.File != "" && !l.AlsoLogToStderr {
		s.log = log
	}
	s.Done("start", fmt.Sprintf("podo %s, Kubernetes %s", version.Podo(), version.Kubernetes()))
	return s
}

// progress tells a person how the start is going, and the service manager when it
// is done. It is a lifecycle.Group's Observe.
func (t tale) progress(s *steps, notify notifier) func(lifecycle.Status) {
	var once sync.Once
	return func(st lifecycle.Status) {
		if st.State != lifecycle.Ready {
			return
		}
		if text, ok := t.words[st.Name]; ok {
			s.Done(st.Name, text)
		}
		if st.Name == t.last {
			once.Do(func() {
				s.Done("hint", t.hint)
				notify.send("READY=1\nSTATUS=" + t.words[t.last])
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
