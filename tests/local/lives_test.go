package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const head = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n"

// TestSeveralControlPlanes: three control planes and two workers. When the first of them
// is killed, the host's port for the API answers all the same, nodes join and leave, and
// it can itself be removed for good.
func TestSeveralControlPlanes(t *testing.T) {
	s := begin(t)
	c := s.create("ha", head+"nodes: [{role: control-plane}, {role: control-plane}, {role: control-plane}, {role: worker}, {role: worker}]\n")
	nodes := c.nodes()
	if len(nodes) != 5 {
		t.Fatalf("%d nodes, want 5", len(nodes))
	}
	for name, n := range nodes {
		if reserved(n) == strings.Contains(name, "worker") {
			t.Errorf("%s: taints %v", name, n.Spec.Taints)
		}
	}
	if out := c.exec("ha-control-plane2", "podo", "etcd", "member-list"); strings.Count(out, "follower")+strings.Count(out, "leader") != 3 {
		t.Errorf("members:\n%s", out)
	}
	c.kill("ha-control-plane")
	c.within(20*time.Second, "the API without its first server", func() error {
		_, err := c.client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "kept-"}}, metav1.CreateOptions{})
		return err
	})
	if name := s.run("cluster", "node", "add", "--name", "ha"); name != "ha-worker3" {
		t.Errorf("the worker added meanwhile is called %q", name)
	}
	s.run("cluster", "node", "remove", "--name", "ha", "ha-worker3")
	s.run("cluster", "start", "--name", "ha")
	c.within(60*time.Second, "all nodes Ready again", c.allReady)

	// etcd counts with one that was removed no more, and with one that was added.
	c.kill("ha-control-plane")
	s.refused(1, "", []string{"cluster", "node", "add", "--name", "ha", "--role", "control-plane"}, "ha-control-plane is off", "podo cluster node remove --name ha ha-control-plane")
	began := time.Now()
	s.run("cluster", "node", "remove", "--name", "ha", "ha-control-plane")
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("removing a node that was off took %s", took)
	}
	listens := c.read("ports")
	if name := s.run("cluster", "node", "add", "--name", "ha", "--role", "control-plane"); name != "ha-control-plane4" {
		t.Errorf("the added node is called %q", name)
	}
	// The process that listens for the cluster knows it without having been started anew.
	if now := c.read("ports"); now != listens {
		t.Errorf("process %s listens for the cluster, before it was %s", now, listens)
	}
	for _, m := range c.members() {
		if m.Name == "ha-control-plane4" {
			c.within(10*time.Second, "the host's port leads there too", func() error {
				if log := c.read("ports.log"); !strings.Contains(log, m.IPs[0]+":6443") {
					return errors.New(log)
				}
				return nil
			})
		}
	}
	// Who began the cluster is not needed for it to begin again.
	s.run("cluster", "stop", "--name", "ha")
	s.run("cluster", "start", "--name", "ha")
	c.within(60*time.Second, "all nodes Ready without the first", c.allReady)
	out := c.exec("ha-control-plane2", "podo", "etcd", "member-list")
	if names := s.run("cluster", "get", "nodes", "--name", "ha", "-o", "name"); names != "ha-control-plane2\nha-control-plane3\nha-worker\nha-worker2\nha-control-plane4" {
		t.Errorf("names: %q", names)
	}
	if strings.Count(out, "follower")+strings.Count(out, "leader") != 3 || strings.Contains(out, "away") {
		t.Errorf("members:\n%s", out)
	}
	if n := c.nodes()["ha-control-plane4"]; !reserved(n) {
		t.Errorf("the added control plane takes any pod: %v", n.Spec.Taints)
	}
}

// TestUnfinished: a start brings to a cluster the nodes that a create which was killed did
// not come to; and a node whose lock somebody removed is not started twice.
func TestUnfinished(t *testing.T) {
	s := begin(t)
	making := exec.Command(s.podo, "cluster", "create", "--name", "cut", "--config", "-")
	making.Env = append(os.Environ(), "KUBECONFIG="+s.kubeconfig)
	making.Stdin = strings.NewReader(head + "nodes: [{role: control-plane}, {role: worker}, {role: control-plane}]\n")
	if err := making.Start(); err != nil {
		t.Fatal(err)
	}
	s.within(60*time.Second, "a first node", func() error {
		_, err := os.Stat("/var/lib/podo-clusters/cut/nodes/cut-control-plane/root/var/lib/podo/server/token")
		return err
	})
	if err := making.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = making.Wait()
	s.run("cluster", "start", "--name", "cut")
	s.run("cluster", "export", "kubeconfig", "--name", "cut")
	c := &cluster{scene: s, name: "cut"}
	c.connect()
	if nodes := c.nodes(); len(nodes) != 3 {
		t.Errorf("%d nodes, want 3: %v", len(nodes), c.members())
	}
	if out := c.exec("cut-control-plane", "podo", "etcd", "member-list"); strings.Count(out, "follower")+strings.Count(out, "leader") != 2 {
		t.Errorf("members:\n%s", out)
	}
	if err := os.Remove("/var/lib/podo-clusters/cut/nodes/cut-worker/pid"); err != nil {
		t.Fatal(err)
	}
	s.refused(1, "", []string{"cluster", "start", "--name", "cut"}, "cut-worker runs", "podo cluster stop --name cut")
	s.run("cluster", "stop", "--name", "cut")
	s.run("cluster", "start", "--name", "cut")
	c.within(60*time.Second, "all nodes Ready", c.allReady)

	// The process that listens for it is missed, and brought back by what needs it.
	c.end("ports")
	if list := s.run("cluster", "list"); !strings.Contains(list, "does not listen for it") {
		t.Errorf("list:\n%s", list)
	}
	s.run("cluster", "node", "remove", "--name", "cut", "cut-worker")
	// Without a quorum nothing is touched.
	c.kill("cut-control-plane2")
	s.refused(1, "", []string{"cluster", "node", "add", "--name", "cut"}, "cut-control-plane2", "podo cluster start --name cut")
	if members := c.members(); len(members) != 2 || !members[0].Running {
		t.Errorf("nodes: %v", members)
	}
}

// kill ends a node's machine at once.
func (c *cluster) kill(node string) {
	c.Helper()
	c.end(filepath.Join("nodes", node, "pid"))
}

// read is what a file of the cluster holds.
func (c *cluster) read(file string) string {
	c.Helper()
	text, err := os.ReadFile(filepath.Join("/var/lib/podo-clusters", c.name, file))
	if err != nil {
		c.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// end ends the process that a file of the cluster names.
func (c *cluster) end(file string) {
	c.Helper()
	pid, err := strconv.Atoi(c.read(file))
	if err != nil {
		c.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		c.Fatal(err)
	}
	c.within(10*time.Second, "it has ended", func() error {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(text), ") Z ") {
			return nil
		}
		return errors.New("it runs")
	})
}

func (c *cluster) allReady() error {
	list, err := c.client.CoreV1().Nodes().List(c.Context(), metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, n := range list.Items {
		if !ready(n) {
			return fmt.Errorf("%s is not Ready", n.Name)
		}
	}
	return nil
}

// web is a deployment of a page, with pods that leave a dead node soon.
const web = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      containers: [{name: web, image: $AGNHOST, args: [netexec, --http-port=8080], readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}]
`

// TestNodesComeAndGo: a node is added and gets pods; it is removed, and its pods move.
// Another is killed outright, and its pods move too.
func TestNodesComeAndGo(t *testing.T) {
	s := begin(t)
	c := s.create("grow", head+"nodes: [{role: control-plane}, {role: worker}]\nkubeadmConfigPatches: [\"kind: KubeletConfiguration\\nmaxPods: 77\"]\n")
	if name := s.run("cluster", "node", "add", "--name", "grow"); name != "grow-worker2" {
		t.Errorf("the added node is called %q", name)
	}
	capacity := c.nodes()["grow-worker2"].Status.Capacity
	if room := capacity.Pods().Value(); room != 77 {
		t.Errorf("the added node has room for %d pods, where the file says 77 for all", room)
	}
	if out := c.exec("grow-worker", "getent", "hosts", "grow-worker2"); out == "" {
		t.Error("the node that was there does not know the added one by name")
	}
	c.load()
	c.apply(web + `      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}]
`)
	c.available("web")

	// A removal that somebody does not wait for leaves the node as it was.
	c.kubectl("create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=2")
	leaving := exec.Command(s.podo, "cluster", "node", "remove", "--name", "grow", "grow-worker2")
	if err := leaving.Start(); err != nil {
		t.Fatal(err)
	}
	c.within(30*time.Second, "the node takes no pods", func() error {
		if n := c.nodes()["grow-worker2"]; !n.Spec.Unschedulable {
			return errors.New("it does")
		}
		return nil
	})
	if err := leaving.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := leaving.Wait(); err == nil {
		t.Error("a removal that was interrupted is content")
	}
	if n, there := c.nodes()["grow-worker2"]; !there || n.Spec.Unschedulable {
		t.Errorf("after an interrupted removal: there %t, unschedulable %t", there, n.Spec.Unschedulable)
	}
	c.kubectl("delete", "poddisruptionbudget", "web")

	s.run("cluster", "node", "remove", "--name", "grow", "grow-worker2")
	if _, there := c.nodes()["grow-worker2"]; there || len(c.members()) != 2 {
		t.Errorf("the removed node is there: %v", c.members())
	}
	c.available("web")
	s.refused(2, "", []string{"cluster", "node", "remove", "--name", "grow", "grow-control-plane"}, "the only control plane")
	s.refused(1, "", []string{"cluster", "node", "remove", "--name", "grow", "nobody"}, `no node "nobody"`)
	s.refused(2, "", []string{"cluster", "node", "add", "--name", "grow", "--role", "control-plane"}, "SQLite")

	if name := s.run("cluster", "node", "add", "--name", "grow"); name != "grow-worker3" {
		t.Errorf("a node added after another was removed is called %q, which must be a name that nobody had", name)
	}
	began := time.Now()
	c.kill("grow-worker")
	c.within(2*time.Minute, "pods on the other worker", func() error {
		pods, err := c.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			return err
		}
		n := 0
		for _, p := range pods.Items {
			if p.Spec.NodeName == "grow-worker3" && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
				n++
			}
		}
		if n != 2 {
			return fmt.Errorf("%d of 2", n)
		}
		return nil
	})
	t.Logf("pods of the killed node run elsewhere after %s", time.Since(began).Round(time.Second))
}

// TestStopAndStart: what pods wrote is there afterwards, addresses are the same, and a
// node that was killed comes back with a start as well.
func TestStopAndStart(t *testing.T) {
	s := begin(t)
	c := s.create("rest", head+"nodes: [{role: control-plane}, {role: worker}]\n")
	c.load()
	c.apply(`apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  nodeName: rest-worker
  containers:
  - {name: c, image: $BUSYBOX, command: [sh, -c, "echo x >> /data/starts; trap 'echo ended >> /data/starts; exit' TERM; while :; do sleep 0.1; done"], volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, hostPath: {path: /srv/data, type: DirectoryOrCreate}}]
`)
	c.kubectl("wait", "--for=condition=Ready", "pod/keeper", "--timeout=60s")
	before := c.members()
	s.run("cluster", "stop", "--name", "rest")
	for _, m := range c.members() {
		if m.Running {
			t.Errorf("%s runs after the stop", m.Name)
		}
	}
	if processes := look(t).beside(s.before); strings.Contains(strings.Join(processes, "\n"), "process ") {
		t.Errorf("after the stop:\n%s", strings.Join(processes, "\n"))
	}
	s.refused(1, "", []string{"cluster", "node", "add", "--name", "rest"}, "does not run; start it")
	began := time.Now()
	s.run("cluster", "start", "--name", "rest")
	t.Logf("started again in %s", time.Since(began).Round(10*time.Millisecond))
	if after := c.members(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("nodes are %v, were %v", after, before)
	}
	c.within(60*time.Second, "the pod runs again", func() error {
		out, err := s.try("", "kubectl", "--context", "podo-rest", "exec", "keeper", "--", "cat", "/data/starts")
		if err == nil && out != "x\nended\nx" {
			err = fmt.Errorf("%q", out)
		}
		return err
	})
	c.kill("rest-worker")
	s.run("cluster", "start", "--name", "rest")
	c.within(60*time.Second, "the killed node Ready again", c.allReady)
	time.Sleep(5 * time.Second) // nothing changes a node meanwhile
	began = time.Now()
	s.run("cluster", "start", "--name", "rest")
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("to start what runs took %s", took)
	}
}

// TestSideBySide: two clusters do not know of each other. One whose files somebody removed can
// be deleted all the same.
func TestSideBySide(t *testing.T) {
	s := begin(t)
	a, b := s.create("a", ""), s.create("b", "")
	if x, y := a.members()[0].IPs[0], b.members()[0].IPs[0]; x == y {
		t.Errorf("both have %s", x)
	}
	a.kubectl("create", "configmap", "mine", "--from-literal=a=a")
	if out, err := s.try("", "kubectl", "--context", "podo-b", "get", "configmap", "mine"); err == nil {
		t.Errorf("b has what a was given: %s", out)
	}
	s.run("cluster", "delete", "--name", "a")
	b.within(5*time.Second, "b without a", b.allReady)
	text, err := os.ReadFile(s.kubeconfig)
	if err != nil || strings.Contains(string(text), "name: podo-a") || !strings.Contains(string(text), "name: podo-b") {
		t.Errorf("kubeconfig after the delete: %v\n%s", err, text)
	}

	// The node, which runs, makes new files in the folder meanwhile.
	if err := os.RemoveAll("/var/lib/podo-clusters/b"); err != nil {
		t.Log(err)
	}
	if out, err := exec.Command("ip", "link", "delete", bridgeOf(t, "b")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.refused(1, "", []string{"uninstall", "--verify"}, "things are left")
	s.run("cluster", "delete", "--name", "b")
	if left := look(t).beside(s.before); len(left) > 0 {
		t.Errorf("left of a cluster without files:\n%s", strings.Join(left, "\n"))
	}
}

// bridgeOf is the link that the nodes of a cluster hang on.
func bridgeOf(t *testing.T, cluster string) string {
	t.Helper()
	var links []struct{ Ifname, Ifalias string }
	text, err := exec.Command("ip", "-json", "link", "show", "type", "bridge").Output()
	if err == nil {
		err = json.Unmarshal(text, &links)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Ifalias == "podo cluster "+cluster {
			return l.Ifname
		}
	}
	t.Fatalf("no bridge of cluster %s among %v", cluster, links)
	return ""
}

// TestBothFamilies: nodes, pods and services have addresses of both, and the host reaches
// a NodePort by either.
func TestBothFamilies(t *testing.T) {
	s := begin(t)
	c := s.create("dual", head+"networking: {ipFamily: dual}\nnodes: [{role: control-plane}, {role: worker}]\n")
	for name, n := range c.nodes() {
		if len(n.Spec.PodCIDRs) != 2 {
			t.Errorf("%s: podCIDRs %v, want one of each family", name, n.Spec.PodCIDRs)
		}
	}
	c.load()
	c.apply(web + `---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
`)
	c.available("web")
	for _, m := range c.members() {
		for _, ip := range m.IPs {
			if strings.Contains(ip, ":") {
				ip = "[" + ip + "]"
			}
			c.page(ip + ":30080/hostname")
		}
	}
}

// TestSixAlone: a cluster that knows nothing of IPv4.
func TestSixAlone(t *testing.T) {
	s := begin(t)
	c := s.create("six", head+"networking: {ipFamily: ipv6}\nnodes: [{role: control-plane}, {role: worker}]\n")
	c.load()
	c.apply(web + `---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
`)
	c.available("web")
	for _, m := range c.members() {
		if len(m.IPs) != 1 || !strings.Contains(m.IPs[0], ":") {
			t.Fatalf("%s has %v", m.Name, m.IPs)
		}
		c.page("[" + m.IPs[0] + "]:30080/hostname")
	}
	if tables := c.exec("six-worker", nft, "list", "tables"); !strings.Contains(tables, "kube-proxy") {
		t.Errorf("tables of a node: %s", tables)
	}
}

// nft is podo's own, as nodes have it.
const nft = "/var/lib/podo/bin/current/nft"

// TestNoProxy: with kubeProxyMode none pods run, and nobody routes services.
func TestNoProxy(t *testing.T) {
	s := begin(t)
	c := s.create("none", head+"networking: {kubeProxyMode: none}\n")
	c.load()
	c.apply(web)
	c.available("web")
	if tables := c.exec("none-control-plane", nft, "list", "tables"); strings.Contains(tables, "kube-proxy") || strings.Contains(tables, "local-podo") {
		t.Errorf("tables of a node: %s", tables)
	}
}

// TestPartition: two workers do not hear each other, and the cluster stays one. Afterwards
// their pods do.
func TestPartition(t *testing.T) {
	s := begin(t)
	c := s.create("cut", head+"nodes: [{role: control-plane}, {role: worker}, {role: worker}]\n")
	c.load()
	c.apply(strings.Replace(web, "replicas: 2", "replicas: 2", 1) + `      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}, nodeTaintsPolicy: Honor}]
`)
	c.available("web")
	pods, err := c.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	from, to := pods.Items[0], pods.Items[1]
	talk := func() error {
		_, err := s.try("", "kubectl", "--context", "podo-cut", "exec", from.Name, "--", "/agnhost", "connect", to.Status.PodIP+":8080", "--timeout=2s")
		return err
	}
	c.within(20*time.Second, "pods of two nodes talk", talk)
	ips := map[string]string{}
	for _, m := range c.members() {
		ips[m.Name] = m.IPs[0]
	}
	for a, b := range map[string]string{"cut-worker": "cut-worker2", "cut-worker2": "cut-worker"} {
		c.exec(a, "ip", "neigh", "replace", ips[b], "lladdr", "02:99:00:00:ff:ff", "dev", "eth0", "nud", "permanent")
	}
	if err := talk(); err == nil {
		t.Error("pods talk through a cut")
	}
	time.Sleep(5 * time.Second)
	if err := c.allReady(); err != nil {
		t.Errorf("while two workers are cut off from each other: %v", err)
	}
	for a, b := range map[string]string{"cut-worker": "cut-worker2", "cut-worker2": "cut-worker"} {
		c.exec(a, "ip", "neigh", "del", ips[b], "dev", "eth0")
	}
	c.within(20*time.Second, "pods talk again", talk)
}

// TestPodNetworkOfYourOwn: with disableDefaultCNI nodes are not Ready until somebody puts
// a pod network where pod networks are put.
func TestPodNetworkOfYourOwn(t *testing.T) {
	s := begin(t)
	c := s.create("own", head+"networking: {disableDefaultCNI: true}\n")
	if n := len(c.nodes()); n != 1 {
		t.Errorf("the API knows %d nodes, want 1", n)
	}
	if err := c.allReady(); err == nil {
		t.Error("Ready without a pod network")
	}
	c.exec("own-control-plane", "sh", "-ec", `mkdir -p /etc/cni/net.d /opt/cni/bin
printf '#!/bin/sh\necho $CNI_COMMAND >>/run/own.log\nexec /var/lib/podo/bin/current/bridge\n' >/opt/cni/bin/own
chmod +x /opt/cni/bin/own
cat >/etc/cni/net.d/10-own.conflist <<'END'
{"cniVersion": "1.0.0", "name": "own", "plugins": [{"type": "own", "bridge": "own0", "isGateway": true, "ipMasq": true,
 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.42.7.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
END`)
	c.within(60*time.Second, "it is Ready", c.allReady)
	c.load()
	c.apply(web + `---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
`)
	c.available("web")
	c.page(c.members()[0].IPs[0] + ":30080/hostname")
	if log := c.exec("own-control-plane", "cat", "/run/own.log"); !strings.Contains(log, "ADD") {
		t.Errorf("the program in /opt/cni/bin was never asked for an address: %s", log)
	}
}

// TestNodeRunsTheBinaryItNames: image is the path of a podo, here of one that calls itself
// a minor version older, as a node may be.
func TestNodeRunsTheBinaryItNames(t *testing.T) {
	s := begin(t)
	text, err := os.ReadFile(s.podo)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "podo-other")
	if err := os.WriteFile(other, bytes.ReplaceAll(text, []byte("v1.36."), []byte("v1.35.")), 0o755); err != nil {
		t.Fatal(err)
	}
	c := s.create("skew", head+"nodes: [{role: control-plane}, {role: worker, image: "+other+"}]\n", "--wait", "0s")
	nodes := c.nodes() // which are known, Ready or not
	for name, want := range map[string]string{"skew-control-plane": "v1.36.", "skew-worker": "v1.35."} {
		if got := nodes[name].Status.NodeInfo.KubeletVersion; !strings.HasPrefix(got, want) {
			t.Errorf("%s runs %s, want %s", name, got, want)
		}
	}
	c.load()
	c.apply(web)
	c.available("web")
}

// TestRegistry: an image that is pushed to localhost runs on a node, also after a stop.
// So does one whose registry was described to a node as scripts for kind do it, or by a
// mount. Other mounts are where they are meant to be, in whatever order they are written.
func TestRegistry(t *testing.T) {
	s := begin(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"data/whose": "data's", "sub/whose": "sub's", "clock": "here"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	c := s.create("reg", head+strings.ReplaceAll(`nodes:
- role: control-plane
- role: worker
  extraMounts:
  - {hostPath: DIR/hosts, containerPath: /etc/containerd/certs.d/mounted.example.test}
  - {hostPath: DIR/sub, containerPath: /data/sub}
  - {hostPath: DIR/data, containerPath: /data}
  - {hostPath: DIR/clock, containerPath: /etc/localtime, readOnly: true}
  - {hostPath: DIR/clock, containerPath: /lib/os-release, readOnly: true}
`, "DIR", dir), "--registry", "--registry-port", "5055")
	for path, want := range map[string]string{"/data/whose": "data's", "/data/sub/whose": "sub's", "/etc/localtime": "here", "/usr/lib/os-release": "here"} {
		if got := c.exec("reg-worker", "cat", path); got != want {
			t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
	s.run("images", "push", "--from", filepath.Join(s.dist, "images", "busybox.tar"), "localhost:5055/tests/busybox:1")
	run := func(pod, node, image string) {
		c.apply(fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: %q, command: [sleep, "1000"]}]
`, pod, node, image))
		c.kubectl("wait", "--for=condition=Ready", "pod/"+pod, "--timeout=60s")
	}
	run("one", "reg-worker", "localhost:5055/tests/busybox:1")
	ip := c.members()[0].IPs[0]
	host := ip[:strings.LastIndexByte(ip, '.')] + ".1" // the bridge's
	c.exec("reg-worker", "sh", "-c", fmt.Sprintf(`mkdir -p "$0" && printf '[host."http://%s:5055"]' > "$0/hosts.toml"`, host), "/etc/containerd/certs.d/images.example.test")
	run("elsewhere", "reg-worker", "images.example.test/tests/busybox:1")
	if err := os.WriteFile(filepath.Join(dir, "hosts/hosts.toml"), fmt.Appendf(nil, "[host.\"http://%s:5055\"]\n", host), 0o644); err != nil {
		t.Fatal(err)
	}
	run("mounted", "reg-worker", "mounted.example.test/tests/busybox:1")
	// The same content, loaded: it has to run though there is no registry of that name.
	s.run("cluster", "load", "archive", filepath.Join(s.dist, "images", "busybox.tar"), "--name", "reg")
	run("loaded", "reg-worker", "podo.local/busybox:1.35")
	s.run("cluster", "stop", "--name", "reg")
	s.run("cluster", "start", "--name", "reg")
	run("two", "reg-control-plane", "localhost:5055/tests/busybox:1")
}

// TestRounds: making and removing a cluster again and again leaves nothing, and takes no
// longer.
func TestRounds(t *testing.T) {
	s := begin(t)
	var took []time.Duration
	round := func() {
		took = append(took, s.create("round", "").took)
		s.run("cluster", "delete", "--name", "round")
		if left := look(t).beside(s.before); len(left) > 0 {
			t.Fatalf("left after round %d:\n%s", len(took), strings.Join(left, "\n"))
		}
	}
	for range 20 {
		round()
	}
	median := func(d []time.Duration) time.Duration {
		d = slices.Sorted(slices.Values(d))
		return d[len(d)/2]
	}
	early, late := median(took[1:8]), median(took[13:])
	// What other tests do beside this one ends; what rounds leave behind does not.
	for more := 0; late > early*3/2 && more < 15; more++ {
		round()
		late = median(took[len(took)-5:])
	}
	t.Logf("rounds: %v", took)
	if late > early*3/2 {
		t.Errorf("the last rounds took %s, the first ones %s", late, early)
	}
}
