package local

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// files are those that the package's own tests read too.
func file(name string) string { return filepath.Join("../../pkg/local/testdata", name) }

// TestOneAndAWorker: the file that kind's documentation begins with.
func TestOneAndAWorker(t *testing.T) {
	s := begin(t)
	c := s.create("one", file("one.yaml"))
	nodes := c.nodes()
	for _, name := range []string{"one-control-plane", "one-worker"} {
		if !ready(nodes[name]) {
			t.Errorf("node %s is not Ready", name)
		}
	}
	c.load()
	c.apply(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: $AGNHOST, args: [netexec, --http-port=8080], readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
`)
	c.available("web")
	pods, err := c.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		if p.Spec.NodeName != "one-worker" {
			t.Errorf("pod %s runs on %s, where workers are to have the pods", p.Name, p.Spec.NodeName)
		}
	}
	// The host reaches node addresses and NodePorts, and nodes reach each other by name.
	for _, m := range c.members() {
		c.page(m.IPs[0] + ":30080/hostname")
	}
	if out := c.exec("one-control-plane", "getent", "hosts", "one-worker"); !strings.Contains(out, c.members()[1].IPs[0]) {
		t.Errorf("one-worker is %q on the control plane, want %s", out, c.members()[1].IPs[0])
	}
	// A node sees only what is its own.
	if out := c.exec("one-worker", "sh", "-c", "ls /proc | grep -c '^[0-9]'; cat /proc/1/cmdline; ls /var/lib/podo-clusters 2>&1; true"); strings.Contains(out, "one-control-plane") || !strings.Contains(out, "podo-init") {
		t.Errorf("on the worker:\n%s", out)
	}
	if mounts := c.exec("one-worker", "cat", "/proc/mounts"); strings.Contains(mounts, "control-plane") || strings.Contains(mounts, "podo-clusters") {
		t.Errorf("mounts of the worker:\n%s", mounts)
	}
	if links := c.exec("one-worker", "ls", "/sys/class/net"); strings.Contains(links, "podo-c") || !strings.Contains(links, "eth0") {
		t.Errorf("links of the worker: %s", links)
	}
	if out, err := s.try("", "cluster", "node", "exec", "--name", "one", "one-worker", "--", "sh", "-c", "exit 7"); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("a program that ended with 7: %q, %v", out, err)
	}
	logs := t.TempDir()
	s.run("cluster", "export", "logs", "--name", "one", logs)
	if found, _ := filepath.Glob(logs + "/one-worker/pods/default_web-*/web/0.log"); len(found) != 2 {
		t.Errorf("logs of %d pods, want 2", len(found))
	}
	if out := s.run("cluster", "get", "kubeconfig", "--name", "one"); !strings.Contains(out, "current-context: \"podo-one\"") {
		t.Errorf("kubeconfig:\n%s", out)
	}
	s.run("cluster", "delete", "--name", "one")
	if out := s.run("cluster", "get", "clusters"); out != "" {
		t.Errorf("clusters after the delete: %q", out)
	}
}

// secure asks an address whose certificate nobody knows, as scrapers of control planes do.
func secure(t *testing.T, address, token string) (code int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// TestZones: the second file, with all that its people rely on.
func TestZones(t *testing.T) {
	s := begin(t)
	c := s.create("zones", file("zones.yaml"))
	nodes := c.nodes()
	if len(nodes) != 4 {
		t.Fatalf("%d nodes, want 4", len(nodes))
	}
	all, seen := netip.MustParsePrefix("10.10.0.0/16"), map[string]bool{}
	for name, n := range nodes {
		own, err := netip.ParsePrefix(n.Spec.PodCIDR)
		if err != nil || own.Bits() != 24 || !all.Overlaps(own) || seen[n.Spec.PodCIDR] {
			t.Errorf("%s: podCIDR %q, want a /24 of its own in %s", name, n.Spec.PodCIDR, all)
		}
		seen[n.Spec.PodCIDR] = true
	}
	for name, zone := range map[string]string{"zones-worker": "zone-a", "zones-worker2": "zone-b", "zones-worker3": "zone-c"} {
		if got := nodes[name].Labels[corev1.LabelTopologyZone]; got != zone {
			t.Errorf("%s: zone %q, want %q", name, got, zone)
		}
	}
	if got := nodes["zones-control-plane"].Labels["tier"]; got != "control" {
		t.Errorf("the control plane's label is %q", got)
	}
	if out := c.kubectl("get", "servicecidr", "-o", "jsonpath={.items[*].spec.cidrs[*]}"); out != "10.200.1.0/24" {
		t.Errorf("servicecidr %q, want 10.200.1.0/24", out)
	}
	// What was bound by patches answers at the node's address, and who may read metrics
	// reads them there.
	at := c.members()[0].IPs[0]
	c.kubectl("create", "serviceaccount", "scraper")
	c.kubectl("create", "clusterrole", "scraper", "--verb=get", "--non-resource-url=/metrics")
	c.kubectl("create", "clusterrolebinding", "scraper", "--clusterrole=scraper", "--serviceaccount=default:scraper")
	token := c.kubectl("create", "token", "scraper")
	for port, metric := range map[string]string{"10257": "workqueue_adds_total", "10259": "scheduler_pending_pods"} {
		if code, said := secure(t, at+":"+port+"/healthz", ""); code != 200 || said != "ok" {
			t.Errorf("port %s of the control plane says %d: %.200s", port, code, said)
		}
		if code, said := secure(t, at+":"+port+"/metrics", ""); code != 403 {
			t.Errorf("port %s shows its metrics to anybody, %d: %.200s", port, code, said)
		}
		if code, said := secure(t, at+":"+port+"/metrics", token); code != 200 || !strings.Contains(said, metric) {
			t.Errorf("port %s tells nothing of %s to who may read it, %d: %.200s", port, metric, code, said)
		}
	}
	for _, page := range []string{":10249/healthz", ":2381/metrics"} {
		c.page(at + page)
	}
	c.load()
	c.apply(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}, nodeTaintsPolicy: Honor}
      containers: [{name: web, image: $AGNHOST, args: [netexec, --http-port=8080, --udp-port=8081], readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: web, port: 80, targetPort: 8080, nodePort: 30000}, {name: udp, protocol: UDP, port: 81, targetPort: 8081, nodePort: 30004}]}
`)
	c.available("web")
	c.page("127.0.0.1:30000/hostname")
	zones := map[string]int{}
	pods, err := c.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		zones[nodes[p.Spec.NodeName].Labels[corev1.LabelTopologyZone]]++
	}
	if fmt.Sprint(zones) != "map[zone-a:1 zone-b:1 zone-c:1]" {
		t.Errorf("pods by zone: %v", zones)
	}

	s.within(20*time.Second, "the UDP port of the host", func() error {
		conn, err := net.Dial("udp", "127.0.0.1:30004")
		if err != nil {
			return err
		}
		defer conn.Close()
		answer := make([]byte, 100)
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write([]byte("hostname")); err != nil {
			return err
		}
		n, err := conn.Read(answer)
		if err == nil && !strings.HasPrefix(string(answer[:n]), "web-") {
			err = fmt.Errorf("it says %q", answer[:n])
		}
		return err
	})

	// A drain moves pods, and the budget holds at every moment.
	least := make(chan int)
	stop := make(chan struct{})
	go func() {
		low := 3
		for {
			select {
			case <-stop:
				least <- low
				return
			case <-time.After(50 * time.Millisecond):
			}
			if d, err := c.client.AppsV1().Deployments("default").Get(t.Context(), "web", metav1.GetOptions{}); err == nil {
				low = min(low, int(d.Status.AvailableReplicas))
			}
		}
	}()
	c.kubectl("patch", "deployment", "web", "--type=json", `-p=[{"op":"replace","path":"/spec/template/spec/topologySpreadConstraints/0/whenUnsatisfiable","value":"ScheduleAnyway"}]`)
	c.available("web")
	c.kubectl("cordon", "zones-worker")
	c.kubectl("drain", "zones-worker", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s") // Traefik has some
	c.available("web")
	close(stop)
	if low := <-least; low < 2 {
		t.Errorf("%d pods were available at one moment, where the budget is 2", low)
	}
	left, err := c.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=web", FieldSelector: "spec.nodeName=zones-worker"})
	if err != nil || len(left.Items) != 0 {
		t.Errorf("%d pods on the drained node, %v", len(left.Items), err)
	}
}

// TestIngressReady: the third file; the host's ports 80 and 443 lead to the node's.
func TestIngressReady(t *testing.T) {
	s := begin(t)
	c := s.create("podo", file("ingress.yaml"))
	n := c.nodes()["podo-control-plane"]
	if n.Labels["ingress-ready"] != "true" || reserved(n) {
		t.Errorf("labels %v, taints %v", n.Labels, n.Spec.Taints)
	}
	c.load()
	c.apply(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      nodeSelector: {ingress-ready: "true"}
      containers:
      - {name: web, image: $AGNHOST, args: [netexec, --http-port=8080], ports: [{containerPort: 8080, hostPort: 80}]}
      - {name: more, image: $AGNHOST, args: [netexec, --http-port=8443, --udp-port=9999], ports: [{containerPort: 8443, hostPort: 443}]}
`)
	c.available("web")
	c.page("127.0.0.1:80/hostname")
	c.page("127.0.0.1:443/hostname")
	s.refused(1, "", []string{"cluster", "create", "--name", "other", "--config", file("ingress.yaml")}, "hostPort: TCP port", "is in use", "cluster podo, which is there too")
	s.refused(1, "", []string{"cluster", "create"}, `there is a cluster "podo" already`)

	// What a program reads.
	var list []struct {
		Name    string
		Running int
	}
	if err := json.Unmarshal([]byte(s.run("cluster", "list", "-o", "json")), &list); err != nil || len(list) != 1 || list[0].Running != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
}

// reserved reports whether a node is kept free of pods, as control planes are beside workers.
func reserved(n corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == "node-role.kubernetes.io/control-plane" })
}
