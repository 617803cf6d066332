package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// anotherShape changes what a flag can change, and looks at what comes of it.
func anotherShape(t *testing.T) {
	kubeconfig, log := filepath.Join(room(), "mine.yaml"), filepath.Join(room(), "shape.log")
	pods, services, dns := "10.52.0.0/16", "10.53.0.0/16", "10.53.0.53"
	dual := hasIPv6()
	if dual {
		pods, services, dns = pods+",fd52::/56", services+",fd53::/112", dns+",fd53::53"
	}
	storage := filepath.Join(room(), "volumes")
	srv := bootWith(t, nil, "--default-local-storage-path", storage,
		"--cluster-cidr", pods, "--service-cidr", services, "--cluster-domain", "grapes.test", "--cluster-dns", dns, "--service-node-port-range", "20000-20100",
		"--https-listen-port", "7443", "--flannel-backend", "host-gw", "--node-name", "vine", "--node-label", "e2e/kind=test", "--node-taint", "CriticalAddonsOnly=true:NoSchedule",
		"--write-kubeconfig", kubeconfig, "--write-kubeconfig-mode", "0640", "--write-kubeconfig-group", "daemon", "--write-kubeconfig-name", "mine", "--log", log,
		"--feature-gates", "ContextualLogging=false", "--kube-apiserver-arg", "default-not-ready-toleration-seconds=77",
		"--kube-controller-manager-arg", "terminated-pod-gc-threshold=11", "--kube-scheduler-arg", "kube-api-burst=200", "--kube-proxy-arg", "metrics-bind-address=127.0.0.1:11249").ready(t)
	t.Cleanup(func() {
		podo("uninstall", "--yes", "--purge")
		for _, path := range []string{kubeconfig, log} {
			if _, err := os.Lstat(path); err == nil {
				t.Errorf("podo uninstall left %s", path)
			}
		}
	})
	importImages(t)

	if text := srv.written(); strings.TrimSpace(text) != "" {
		t.Errorf("with --log, the terminal tells:\n%s", text)
	}
	if info, err := os.Stat(log); err != nil || info.Size() == 0 {
		t.Errorf("--log %s: %v", log, err)
	}
	info, err := os.Stat(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroup("daemon")
	if err != nil {
		t.Fatal(err)
	}
	if gid := fmt.Sprint(info.Sys().(*syscall.Stat_t).Gid); info.Mode().Perm() != 0o640 || gid != group.Gid {
		t.Errorf("the kubeconfig has mode %v and group %s, want 0640 and %s", info.Mode(), gid, group.Gid)
	}
	within(t, 20*time.Second, "kube-proxy listens where --kube-proxy-arg says", func() error {
		mode, err := get("http://127.0.0.1:11249/proxyMode")
		if err == nil && mode != "nftables" {
			err = fmt.Errorf("it says %q", mode)
		}
		return err
	})
	off := regexp.MustCompile(`kubernetes_feature_enabled{name="ContextualLogging",[^}]*} 0`)
	if !off.MatchString(must(t, "kubectl", "--kubeconfig", kubeconfig, "get", "--raw", "/metrics")) {
		t.Error("the API server does not say that --feature-gates turned a gate off")
	}
	within(t, 20*time.Second, "kube-proxy says that --feature-gates turned a gate off", func() error {
		metrics, err := get("http://127.0.0.1:11249/metrics")
		if err == nil && !off.MatchString(metrics) {
			err = errors.New("it does not")
		}
		return err
	})
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Host != "https://127.0.0.1:7443" {
		t.Errorf("the kubeconfig's server is %s", cfg.Host)
	}
	api, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) string {
		t.Helper()
		return must(t, append([]string{"kubectl", "--kubeconfig", kubeconfig}, args...)...)
	}
	if out := kubectl("config", "current-context"); out != "mine\n" {
		t.Errorf("the context is called %q", out)
	}
	var node *corev1.Node
	within(t, 20*time.Second, "the node is as the flags say", func() (err error) {
		if node, err = api.CoreV1().Nodes().Get(t.Context(), "vine", metav1.GetOptions{}); err != nil {
			return err
		}
		// Of taints the one asked for: that of an unready node goes a moment later.
		if node.Labels["e2e/kind"] != "test" || len(node.Spec.Taints) != 1 || node.Spec.Taints[0].Key != "CriticalAddonsOnly" || node.Spec.ProviderID != "podo://vine" {
			return fmt.Errorf("it has %v, %v, %s", node.Labels, node.Spec.Taints, node.Spec.ProviderID)
		}
		return nil
	})

	manifest := `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  tolerations: [{key: CriticalAddonsOnly, operator: Exists}]
  containers: [{name: main, image: $AGNHOST, args: [netexec, --http-port=8080]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: LoadBalancer, ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 18094, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{}]}
---
apiVersion: v1
kind: Pod
metadata: {name: unwanted}
spec:
  containers: [{name: main, image: $PAUSE}]
`
	if r := podoWith(images(manifest), nil, "kubectl", "--kubeconfig", kubeconfig, "apply", "-f", "-"); r.code != 0 {
		t.Fatal(r)
	}
	kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
	pod, err := api.CoreV1().Pods("default").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	svc, err := api.CoreV1().Services("default").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if families := map[bool]int{false: 1, true: 2}[dual]; len(pod.Status.PodIPs) != families || len(svc.Spec.ClusterIPs) != families {
		t.Errorf("the pod has %v, the service %v", pod.Status.PodIPs, svc.Spec.ClusterIPs)
	}
	if !strings.HasPrefix(pod.Status.PodIP, "10.52.") || !strings.HasPrefix(svc.Spec.ClusterIP, "10.53.") || svc.Spec.Ports[0].NodePort > 20100 {
		t.Errorf("the pod is at %s, the service at %s, its node port is %d", pod.Status.PodIP, svc.Spec.ClusterIP, svc.Spec.Ports[0].NodePort)
	}
	urls := []string{fmt.Sprintf("http://%s/hostname", net.JoinHostPort(node.Status.Addresses[0].Address, fmt.Sprint(svc.Spec.Ports[0].NodePort)))}
	for _, ip := range svc.Spec.ClusterIPs {
		urls = append(urls, "http://"+net.JoinHostPort(ip, "80")+"/hostname")
	}
	for _, url := range urls {
		within(t, 20*time.Second, url+" answers", func() error {
			body, err := get(url)
			if err == nil && body != "web" {
				err = fmt.Errorf("it says %q", body)
			}
			return err
		})
	}
	for _, tol := range pod.Spec.Tolerations {
		if tol.Key == corev1.TaintNodeNotReady && *tol.TolerationSeconds != 77 {
			t.Errorf("--kube-apiserver-arg is not heard: %+v", tol)
		}
	}
	if p, err := api.CoreV1().Pods("default").Get(t.Context(), "unwanted", metav1.GetOptions{}); err != nil || p.Spec.NodeName != "" {
		t.Errorf("a pod that does not tolerate the taint is on %q (%v)", p.Spec.NodeName, err)
	}
	within(t, 60*time.Second, "DNS answers for the domain", func() error {
		out := podo("kubectl", "--kubeconfig", kubeconfig, "exec", "web", "--", "nslookup", "web.default.svc.grapes.test").out
		return contains(out, svc.Spec.ClusterIP)
	})
	resolver := kubectl("exec", "web", "--", "cat", "/etc/resolv.conf")
	for ip := range strings.SplitSeq(dns, ",") {
		if !strings.Contains(resolver, "nameserver "+ip+"\n") {
			t.Errorf("with --cluster-dns %s a pod has\n%s", dns, resolver)
		}
		if out := kubectl("-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec.clusterIPs}"); !strings.Contains(out, `"`+ip+`"`) {
			t.Errorf("with --cluster-dns %s DNS is at %s", dns, out)
		}
	}
	if _, err := net.InterfaceByName("flannel.1"); err == nil {
		t.Error("there is a vxlan link with host-gw")
	}

	// Volumes are where they were told to be.
	database := strings.ReplaceAll(fmt.Sprintf(claimed, "data", "", "1Mi", 0), "terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 0\n  tolerations: [{key: CriticalAddonsOnly, operator: Exists}]")
	if r := podoWith(images(database), nil, "kubectl", "--kubeconfig", kubeconfig, "apply", "-f", "-"); r.code != 0 {
		t.Fatal(r)
	}
	kubectl("wait", "--for=condition=Ready", "pod/data", "--timeout=60s")
	kubectl("exec", "data", "--", "sh", "-c", "echo kept > /data/note")
	volume := kubectl("get", "pvc", "data", "-o", "jsonpath={.spec.volumeName}")
	folder := kubectl("get", "pv", volume, "-o", "jsonpath={.spec.local.path}")
	if filepath.Dir(folder) != storage {
		t.Errorf("the volume is in %s, want a folder of %s", folder, storage)
	}

	// A file of people's own may be JSON, and is left out like podo's.
	write(t, filepath.Join(srv.dir.Manifests(), "own.json"), `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"own","namespace":"default"}}`)
	within(t, 20*time.Second, "the object of a JSON file is made", func() error {
		_, err := api.CoreV1().ConfigMaps("default").Get(t.Context(), "own", metav1.GetOptions{})
		return err
	})

	// At the node's address, of each family.
	var at []corev1.LoadBalancerIngress
	within(t, 20*time.Second, "the service is published", func() error {
		svc, err := api.CoreV1().Services("default").Get(t.Context(), "outside", metav1.GetOptions{})
		if err == nil && len(svc.Status.LoadBalancer.Ingress) != len(svc.Spec.ClusterIPs) {
			err = fmt.Errorf("at %v, with %v", svc.Status.LoadBalancer.Ingress, svc.Spec.ClusterIPs)
		}
		at = svc.Status.LoadBalancer.Ingress
		return err
	})
	for _, i := range at {
		url := "http://" + net.JoinHostPort(i.IP, "18094") + "/hostname"
		within(t, 20*time.Second, url+" answers", func() error {
			_, err := get(url)
			return err
		})
	}

	policies := func() bool {
		t.Helper()
		tables, err := filterTables()
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(tables, "inet podo-netpol")
	}
	if !policies() {
		t.Error("with a network policy, there is no table of policies")
	}

	// Switched off later, a part takes its objects along.
	srv.stop(t)
	srv = boot(t, "--cluster-cidr", pods, "--service-cidr", services, "--cluster-domain", "grapes.test", "--cluster-dns", dns, "--https-listen-port", "7443",
		"--flannel-backend", "host-gw", "--node-name", "vine", "--write-kubeconfig", kubeconfig, "--disable", "coredns,local-storage,metrics-server,network-policy,own,servicelb,traefik",
		"--disable-helm-controller", "--default-local-storage-path", storage).ready(t)
	within(t, 60*time.Second, "the service is no longer published, and can go", func() error {
		svc, err := api.CoreV1().Services("default").Get(t.Context(), "outside", metav1.GetOptions{})
		if err == nil && (len(svc.Status.LoadBalancer.Ingress) > 0 || len(svc.Status.Conditions) > 0 || len(svc.Finalizers) > 0) {
			err = fmt.Errorf("%v, %+v", svc.Finalizers, svc.Status)
		}
		return err
	})
	if policies() {
		t.Error("the table of network policies is there")
	}
	within(t, 60*time.Second, "the metrics API goes", func() error {
		r := podo("kubectl", "--kubeconfig", kubeconfig, "top", "nodes")
		return contains(r.err, "Metrics API not available")
	})
	within(t, 60*time.Second, "CoreDNS, Traefik and all classes go", func() error {
		r := podo("kubectl", "--kubeconfig", kubeconfig, "-n", "kube-system", "get", "deployments,pods,services", "-o", "name")
		if r.code != 0 || strings.TrimSpace(r.out) != "" {
			return errors.New(r.String())
		}
		r = podo("kubectl", "--kubeconfig", kubeconfig, "get", "storageclasses,ingressclasses,gatewayclasses,poddisruptionbudgets", "-A", "-o", "name")
		if r.code != 0 || strings.TrimSpace(r.out) != "" {
			return errors.New(r.String())
		}
		return nil
	})
	within(t, 60*time.Second, "podo's HelmCharts go, and the kind stays", func() error {
		r := podo("kubectl", "--kubeconfig", kubeconfig, "get", "addons,crds", "-o", "name")
		if strings.Contains(r.out, "podo-helm") {
			return errors.New(r.String())
		}
		return contains(r.out, "helmcharts.helm.cattle.io", "helmchartconfigs.helm.cattle.io")
	})
	within(t, 60*time.Second, "what a file made that is left out goes", func() error {
		if _, err := api.CoreV1().ConfigMaps("default").Get(t.Context(), "own", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the ConfigMap is there: %w", err)
		}
		return nil
	})
	if note := kubectl("exec", "data", "--", "cat", "/data/note"); note != "kept\n" {
		t.Errorf("without local-storage a volume holds %q", note)
	}
	kubectl("delete", "pod/data", "pvc/data")
	within(t, 20*time.Second, "the claim's volume is released", func() error {
		return contains(kubectl("get", "pv", volume, "-o", "jsonpath={.status.phase}"), "Released")
	})
	kubectl("delete", "pv", volume, "--timeout=40s")
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of a volume that was deleted by hand is there: %v", err)
	}
	// With a kind would go what people made of it.
	if r := podo("kubectl", "--kubeconfig", kubeconfig, "get", "gateways"); r.code != 0 {
		t.Errorf("the kinds of Gateways are gone: %s", r)
	}
	srv.stop(t)
}

// hasIPv6 reports whether this machine has an address that other nodes could use.
func hasIPv6() bool {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() == nil && n.IP.IsGlobalUnicast() {
			return true
		}
	}
	return false
}

// controlPlaneAlone starts a server that runs no pods.
func controlPlaneAlone(t *testing.T) {
	srv := boot(t, "--disable-agent", "--disable", "traefik").ready(t)
	if out := must(t, "kubectl", "get", "nodes"); strings.TrimSpace(out) != "" {
		t.Errorf("it has nodes:\n%s", out)
	}
	if r := podo("status"); r.code != 0 || contains(r.out, "kubelet") == nil || contains(r.out, "containerd") == nil {
		t.Errorf("status: %s", r)
	}
	const kinds = "addons.podo.dev helmchartconfigs.helm.cattle.io helmcharts.helm.cattle.io"
	if out := must(t, "kubectl", "get", "customresourcedefinitions", "-o", "jsonpath={.items[*].metadata.name}"); out != kinds {
		t.Errorf("without Traefik there are the kinds %s, want %s", out, kinds)
	}
	for _, p := range processes() {
		if p.parent == srv.pid() {
			t.Errorf("it has the child %s", p.cmdline)
		}
	}
	srv.stop(t)

	// Traefik does without the kinds of Gateways.
	srv = boot(t, "--disable-agent", "--disable", "gateway-api").ready(t)
	within(t, 30*time.Second, "there is Traefik", func() error {
		r := podo("kubectl", "-n", "kube-system", "get", "deployment", "traefik", "-o", "name")
		return contains(r.out+r.err, "deployment.apps/traefik")
	})
	if out := must(t, "kubectl", "get", "customresourcedefinitions", "-o", "name"); strings.Contains(out, "gateway.networking.k8s.io") || !strings.Contains(out, "ingressroutes.traefik.io") {
		t.Errorf("without gateway-api there are the kinds\n%s", out)
	}
	srv.stop(t)
	uninstall(t)
}
