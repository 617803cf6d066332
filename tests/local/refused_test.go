package local

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRefused: each mistake is told, and nothing is left of it. The ledger of the scene
// sees to the latter.
func TestRefused(t *testing.T) {
	s := begin(t)
	create := []string{"cluster", "create", "--config", "-"}
	for name, tt := range map[string]struct {
		code  int
		file  string
		words []string
	}{
		"unknown field":       {2, head + "nods: []\n", []string{"line 3: nods: there is no such field; did you mean nodes?"}},
		"another version":     {2, "kind: Cluster\napiVersion: v1\n", []string{`apiVersion: "v1", want kind.x-k8s.io/v1alpha4`}},
		"overlap":             {2, head + "networking: {podSubnet: 10.0.0.0/8, serviceSubnet: 10.96.0.0/12}\n", []string{"overlaps"}},
		"two of a name":       {2, head + "nodes: [{role: control-plane}, {role: worker, kubeadmConfigPatches: [\"kind: JoinConfiguration\\nnodeRegistration: {name: podo-control-plane}\"]}]\n", []string{"another node is called podo-control-plane too"}},
		"no such image":       {2, head + "nodes: [{image: /nowhere/podo}]\n", []string{"nodes[0].image", "/nowhere/podo"}},
		"an image of kind":    {2, head + "nodes: [{image: \"kindest/node:v1.31.0\"}]\n", []string{"nodes are no images here"}},
		"no such API":         {2, head + "runtimeConfig: {api/foo: \"true\"}\n", []string{"node podo-control-plane: runtimeConfig, or runtime-config of apiServer.extraArgs (podo's kube-apiserver-arg): runtime-config: unknown api groups api/foo"}},
		"neither yes nor no":  {2, head + "runtimeConfig: {api/all: \"maybe\"}\n", []string{"runtimeConfig, or runtime-config of apiServer.extraArgs (podo's kube-apiserver-arg)", "api/all=maybe", "=true or =false"}},
		"no such gate":        {2, head + "featureGates: {NoSuchGate: true}\n", []string{"featureGates (podo's feature-gates): NoSuchGate is not a feature gate"}},
		"a flag of no part":   {2, head + "nodes: [{kubeadmConfigPatches: [\"kind: ClusterConfiguration\\nscheduler: {extraArgs: {no-such-flag: x}}\"]}]\n", []string{"no-such-flag"}},
		"no such API of all":  {2, head + "featureGates: {AllBeta: true}\n", []string{`featureGates (podo's feature-gates): AllBeta: the API server would wait for ever`, `with runtimeConfig: {api/beta: "true"}`}},
		"of a worker":         {2, head + "nodes: [{role: control-plane}, {role: worker, kubeadmConfigPatches: [\"kind: JoinConfiguration\\nnodeRegistration: {kubeletExtraArgs: {no-such-flag: x, node-ip: 10.0.0.1}}\"]}]\n", []string{"node podo-worker: kubeletExtraArgs (podo's kubelet-arg): unknown flag: --no-such-flag", "node-ip: podo sets this itself; each node has an address of the cluster's own network"}},
		"many flags":          {2, head + "kubeadmConfigPatches: [\"kind: ClusterConfiguration\\napiServer: {extraArgs: {f1: x, f2: x, f3: x, f4: x}}\\nscheduler: {extraArgs: {f5: x, f6: x, f7: x}}\"]\n", []string{"--f1", "--f2", "--f3", "--f4", "--f5", "--f6", "--f7"}},
		"a kubelet's field":   {2, head + "kubeadmConfigPatches: [\"kind: KubeletConfiguration\\nmaxPodz: 3\"]\n", []string{"node podo-control-plane: KubeletConfiguration: unknown field \"maxPodz\""}},
		"a kubelet's value":   {2, head + "nodes: [{role: control-plane}, {role: worker, kubeadmConfigPatches: [\"kind: KubeletConfiguration\\nmaxPods: -5\"]}]\n", []string{"node podo-worker: KubeletConfiguration or kubeletExtraArgs: invalid", "maxPods (--max-pods) -5 must not be a negative number"}},
		"values of a kubelet": {2, head + "kubeadmConfigPatches: [\"kind: KubeletConfiguration\\nevictionHard: {memory.availabel: 1Mi}\\ncpuManagerPolicy: sttic\"]\nnodes: [{role: control-plane}, {role: worker}]\n", []string{"unsupported eviction signal memory.availabel", `cpuManagerPolicy: "sttic", want none or static`}},
		"what ends a start":   {1, head + "kubeadmConfigPatches: [\"kind: KubeletConfiguration\\npodLogsDir: /proc/nowhere\"]\n", []string{"podo starts there and ends, again and again:", "nowhere"}},
		"what a start sees":   {2, head + "kubeadmConfigPatches: [\"kind: ClusterConfiguration\\ncontrollerManager: {extraArgs: {controllers: grape}}\"]\n", []string{"podo refuses what the file asks for", "controllerManager.extraArgs (podo's kube-controller-manager-arg)", "grape"}},
		"no room for pods":    {2, head + "nodes: [{role: control-plane}, {role: worker}]\nnetworking: {podSubnet: 10.10.0.0/24}\n", []string{"networking.podSubnet: 10.10.0.0/24 has room for 1 node, and there are to be 2: each takes a /24 of it; make the cluster with a /23 or larger"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := *s
			in.T = t
			in.refused(tt.code, tt.file, create, tt.words...)
		})
	}
	s.refused(2, "", []string{"cluster", "create", "--name", "Not_A_Name"}, "is not a name for a cluster")
	s.refused(2, "", []string{"cluster", "create", "--name", ""}, "--name: is empty")
	s.refused(2, "", []string{"cluster", "start", "--name", "../etc"}, `--name: "../etc" is not a name for a cluster`)
	s.refused(2, "", []string{"cluster", "create", "--wait", "-5s"}, "no time to come")
	s.refused(2, "", []string{"cluster", "create", "--registry", "--registry-port", "99999"}, "99999 is no port")
	s.refused(2, "", []string{"cluster", "create", "--registry-port", "5055"}, "there is none without --registry")
	s.refused(2, "", []string{"cluster", "create", "--registry-port", "many"}, `"many" is no number`)
	s.refused(2, "", []string{"cluster", "create", "--config", "/nowhere.yaml"}, "there is no file /nowhere.yaml")
	s.refused(2, "", []string{"cluster", "delete", "--all", "--name", "nobody"}, "give one of the two")
	s.refused(1, "", []string{"cluster", "stop", "--name", "nobody"}, `there is no cluster "nobody"`)
	s.refused(1, "", []string{"cluster", "load", "archive", "--name", "nobody", "x.tar"}, `there is no cluster "nobody"`)
	s.run("cluster", "delete", "--name", "nobody") // as often as one likes
	out, err := exec.Command("setpriv", "--reuid=65534", "--clear-groups", s.podo, "cluster", "create").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "needs root; try: sudo podo cluster create") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
	full := `mount -t tmpfs -o size=64m none /var/lib && exec "$0" cluster create`
	out, err = exec.Command("unshare", "--mount", "sh", "-c", full, s.podo).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "/var/lib/podo-clusters has 64 MiB free of 64, and nodes take no pods") {
		t.Errorf("on a small disk: %v\n%s", err, out)
	}
}

// TestInterrupted: Ctrl-C half-way removes what was made, unless it is to be retained; and
// what is half there can be deleted.
func TestInterrupted(t *testing.T) {
	s := begin(t)
	mounts := filepath.Join(t.TempDir(), "mounts")
	interrupt := func(at string, args ...string) string {
		cmd := exec.Command(s.podo, append([]string{"cluster", "create", "--name", "half", "--config", "-"}, args...)...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+s.kubeconfig)
		cmd.Stdin = strings.NewReader(head + "nodes: [{role: control-plane, extraMounts: [{hostPath: " + mounts + "/a/b, containerPath: /b}]}]\n")
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		s.within(60*time.Second, "a node", func() error {
			_, err := os.Stat("/var/lib/podo-clusters/half/" + at)
			return err
		})
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("interrupted, and content:\n%s", said.String())
		}
		return said.String()
	}
	const begun = "nodes/half-control-plane/root/var/lib/podo/server/token"
	for _, at := range []string{"cluster.json", begun} {
		interrupt(at)
		if left := look(t).beside(s.before); len(left) > 0 {
			t.Errorf("left after Ctrl-C with %s there:\n%s", at, strings.Join(left, "\n"))
		}
	}
	if _, err := os.Stat(mounts); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of a mount is left: %v", err)
	}
	interrupt("cluster.json", "--retain")
	s.refused(1, "", []string{"cluster", "get", "kubeconfig", "--name", "half"}, "never finished")
	s.run("cluster", "delete", "--name", "half")
	interrupt(begun, "--retain")
	if _, err := os.Stat("/var/lib/podo-clusters/half"); err != nil {
		t.Errorf("not retained: %v", err)
	}
	s.refused(2, "", []string{"uninstall", "--yes"}, "half", "podo cluster delete --all")
	s.refused(1, "", []string{"uninstall", "--verify"}, "things are left")

	// Half of it is gone, and the rest can be removed all the same.
	if err := os.Remove("/var/lib/podo-clusters/half/cluster.json"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join("/var/lib/podo-clusters", ".bin")); err != nil {
		t.Fatal(err)
	}
	s.refused(1, "", []string{"cluster", "start", "--name", "half"}, "never finished")
	s.run("cluster", "delete", "--name", "half")
}
