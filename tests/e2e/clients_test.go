package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podo-dev/podo/pkg/payload"
)

// doors are further ways to the pods called web, and a set that keeps notes.
const doors = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  rules:
  - host: ingress.e2e.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec: {gatewayClassName: traefik, listeners: [{name: http, port: 80, protocol: HTTP, hostname: gateway.e2e.example}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec: {parentRefs: [{name: web}], hostnames: [gateway.e2e.example], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: notes}
spec:
  serviceName: notes
  selector: {matchLabels: {app: notes}}
  template:
    metadata: {labels: {app: notes}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: $BUSYBOX
        command: [sleep, "100000"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
`

// survivesForClients: while podo is killed, away, started again, and replaced by others,
// every single request is answered, and no pod notices.
func survivesForClients(t *testing.T) {
	clusterRuns(t)
	w := witnesses(t)
	w.apply(doors)
	w.rolledOut("statefulset/notes")
	w.sh("notes-0", "echo kept > /data/note")
	node, address := w.nodeAddress(), w.outsideAt("18093")
	nodePort, err := w.CoreV1().Services(w.ns).Get(w.ctx, "nodeport", metav1.GetOptions{})
	w.ok(err)
	w.answers("http://"+address+"/hostname", w.names...)
	open := hold(t, address)
	ways := map[string]func() (string, error){
		"the LoadBalancer address": page(address, ""),
		"the node port":            page(net.JoinHostPort(node, fmt.Sprint(nodePort.Spec.Ports[0].NodePort)), ""),
		"the Ingress":              page(net.JoinHostPort(node, "80"), "ingress.e2e.example"),
		"the Gateway":              page(net.JoinHostPort(node, "80"), "gateway.e2e.example"),
		"a connection held open to the LoadBalancer address": open.says,
	}
	for way, ask := range ways {
		w.within(60*time.Second, way+" answers", func() error { return w.byWeb(ask) })
	}
	w.before = w.containers()
	tally := w.askAll(ways)
	complaints := w.nodeComplaints(tally.done)

	time.Sleep(time.Second)
	theCluster.crash(t)
	time.Sleep(5 * time.Second)
	startCluster(t)
	time.Sleep(20 * time.Second) // everything has been looked at anew

	// Another podo is put in its place, as people upgrade: one with the programs that run
	// already, one with others, and the first again.
	program := filepath.Join(room(), "podo")
	first, newer, others := program+"-first", program+"-newer", program+"-others"
	t.Cleanup(func() {
		w.ok(errors.Join(os.Rename(first, program), os.RemoveAll(first), os.RemoveAll(newer), os.RemoveAll(others)))
	})
	w.ok(os.Link(program, first))
	w.ok(rebuilt(program, newer, false))
	w.ok(rebuilt(program, others, true))
	var payloads []string
	for _, next := range []struct{ file, version string }{{newer, "v1.36.4+podo2"}, {others, "v1.36.4+podo2"}, {first, "v1.36.4+podo1"}} {
		w.ok(errors.Join(os.RemoveAll(program), os.Link(next.file, program)))
		theCluster.stop(t)
		time.Sleep(2 * time.Second)
		startCluster(t)
		if is := w.node().Status.NodeInfo.KubeletVersion; is != next.version {
			t.Errorf("the node runs %s, want %s", is, next.version)
		}
		if note := w.sh("notes-0", "cat /data/note"); note != "kept\n" {
			t.Errorf("after the upgrade to %s the set's volume holds %q", filepath.Base(next.file), note)
		}
		runs, err := os.Readlink(theCluster.dir.Bin())
		w.ok(err)
		payloads = append(payloads, runs)
		time.Sleep(8 * time.Second)
		w.noticedNothing()
	}
	if payloads[0] == payloads[1] || payloads[0] != payloads[2] {
		t.Errorf("the payloads were %v, want another the second time", payloads)
	}
	w.kubectl("delete", "pod", "notes-0", "--timeout=30s")
	w.podReady("notes-0")
	if note := w.sh("notes-0", "cat /data/note"); note != "kept\n" {
		t.Errorf("a new pod of the set finds %q", note)
	}
	tally.end(t, complaints)
	w.publishedAt("outside", node)
}

// page asks for a page by a connection of its own, as a host's if that is named.
func page(address, host string) func() (string, error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return func() (string, error) {
		req, err := http.NewRequest(http.MethodGet, "http://"+address+"/hostname", nil)
		if err != nil {
			return "", err
		}
		req.Host = host
		res, err := c.Do(req)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", res.Status, body)
		}
		return string(body), err
	}
}

// byWeb is an error if an answer is not one of the pods called web.
func (w *witness) byWeb(ask func() (string, error)) error {
	name, err := ask()
	if err == nil && !slices.Contains(w.names, name) {
		err = fmt.Errorf("it says %q", name)
	}
	return err
}

// A tally counts what was asked by each way, and what failed.
type tally struct {
	done   chan struct{}
	all    sync.WaitGroup
	mu     sync.Mutex
	asked  map[string]int
	failed map[string][]error
}

// askAll asks by every way, again and again, until the tally ends.
func (w *witness) askAll(ways map[string]func() (string, error)) *tally {
	out := &tally{done: make(chan struct{}), asked: map[string]int{}, failed: map[string][]error{}}
	for way, ask := range ways {
		out.all.Go(func() {
			for {
				select {
				case <-out.done:
					return
				case <-time.After(20 * time.Millisecond):
				}
				err := w.byWeb(ask)
				out.mu.Lock()
				if out.asked[way]++; err != nil {
					out.failed[way] = append(out.failed[way], fmt.Errorf("%s: %w", time.Now().Format(time.TimeOnly), err))
				}
				out.mu.Unlock()
			}
		})
	}
	return out
}

// end judges. Complaints are what the node said meanwhile, which may be why.
func (c *tally) end(t *testing.T, complaints func() []string) {
	t.Helper()
	close(c.done)
	c.all.Wait()
	why := complaints()
	for way, n := range c.asked {
		failed := c.failed[way]
		if len(failed) > 0 {
			t.Errorf("by %s, %d of %d requests failed: %v; the node said: %q", way, len(failed), n, failed[:min(len(failed), 5)], why)
		}
		if n < 500 {
			t.Errorf("by %s, only %d requests were made", way, n)
		}
		t.Attr("figure", fmt.Sprintf("requests by %s, over a kill and upgrades\t%d\t%d failed", way, n, len(failed)))
	}
}

// nodeComplaints collects why the node is not Ready, until done: then pods are taken for
// not ready, too.
func (w *witness) nodeComplaints(done <-chan struct{}) func() []string {
	said := make(chan []string, 1)
	go func() {
		var list []string
		defer func() { said <- list }()
		for {
			select {
			case <-done:
				return
			case <-time.After(200 * time.Millisecond):
			}
			nodes, err := w.CoreV1().Nodes().List(w.ctx, metav1.ListOptions{})
			if err != nil || len(nodes.Items) == 0 {
				continue // the API is away
			}
			for _, c := range nodes.Items[0].Status.Conditions {
				if now := fmt.Sprintf("%s: %s", c.Reason, c.Message); c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue && !slices.Contains(list, now) {
					list = append(list, now)
				}
			}
		}
	}()
	return func() []string { return <-said }
}

// rebuilt writes a podo that calls itself a later build. Its payload is the same, or
// another: one that says something else of a file.
func rebuilt(from, to string, otherPayload bool) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	const footer = 64 // its first number is where the payload begins
	end := len(text) - footer
	at := binary.LittleEndian.Uint64(text[end:])
	program := bytes.ReplaceAll(text[:at], []byte("v1.36.4+podo1"), []byte("v1.36.4+podo2"))
	archive := text[at:end]
	if otherPayload {
		said := []byte(`"license":"Apache-2.0"`)
		if !bytes.Contains(archive, said) {
			return fmt.Errorf("the payload of %s says nothing of a licence", from)
		}
		archive = bytes.Replace(archive, said, bytes.ToLower(said), 1)
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	return errors.Join(payload.Attach(f, program, archive), f.Close())
}
