package logging

import (
	"runtime"
	"strings"
)

// origin names the component that a line comes from by the package of the code
// that wrote it. Most of Kubernetes logs without saying which part is speaking.
func origin(pc uintptr) string {
	if pc == 0 {
		return "go"
	}
	f, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	return componentOf(packageOf(f.Function))
}

// packageOf turns "k8s.io/klog/v2.(*T).Info" into "k8s.io/klog/v2".
func packageOf(function string) string {
	slash := strings.LastIndexByte(function, '/')
	if dot := strings.IndexByte(function[slash+1:], '.'); dot >= 0 {
		return function[:slash+1+dot]
	}
	return function
}

func componentOf(pkg string) string {
	for _, r := range rooms() {
		if pkg == r.prefix || strings.HasPrefix(pkg, r.prefix+"/") {
			return r.component
		}
	}
	last := pkg[strings.LastIndexByte(pkg, '/')+1:]
	if len(last) > 1 && last[0] == 'v' && last[1] >= '0' && last[1] <= '9' { // a module's major version
		rest := strings.TrimSuffix(pkg, "/"+last)
		last = rest[strings.LastIndexByte(rest, '/')+1:]
	}
	return last
}

type room struct{ prefix, component string }

// rooms lists packages by the component that runs them; the first match counts.
func rooms() []room {
	const k = "k8s.io/kubernetes/"
	return []room{
		{k + "pkg/kubelet", "kubelet"},
		{k + "cmd/kubelet", "kubelet"},
		{k + "pkg/volume", "kubelet"},
		{k + "pkg/util/oom", "kubelet"},
		{"github.com/google/cadvisor", "kubelet"},
		{"k8s.io/cri-client", "kubelet"},
		{"k8s.io/kubelet", "kubelet"},
		{"k8s.io/mount-utils", "kubelet"},
		{k + "pkg/proxy", "kube-proxy"},
		{k + "cmd/kube-proxy", "kube-proxy"},
		{"sigs.k8s.io/knftables", "kube-proxy"},
		{k + "pkg/scheduler", "kube-scheduler"},
		{k + "cmd/kube-scheduler", "kube-scheduler"},
		{k + "pkg/controller", "kube-controller-manager"},
		{k + "cmd/kube-controller-manager", "kube-controller-manager"},
		{"k8s.io/controller-manager", "kube-controller-manager"},
		{"k8s.io/cloud-provider", "kube-controller-manager"},
		{"k8s.io/endpointslice", "kube-controller-manager"},
		{k + "pkg/controlplane", "kube-apiserver"},
		{k + "pkg/registry", "kube-apiserver"},
		{k + "cmd/kube-apiserver", "kube-apiserver"},
		{k + "plugin", "kube-apiserver"},
		{"k8s.io/apiserver", "kube-apiserver"},
		{"k8s.io/kube-aggregator", "kube-apiserver"},
		{"k8s.io/apiextensions-apiserver", "kube-apiserver"},
		{"k8s.io/kms", "kube-apiserver"},
		{"k8s.io/client-go", "client-go"},
		{"github.com/k3s-io/kine", "kine"},
		{"go.etcd.io/etcd", "etcd-client"},
		{"github.com/flannel-io/flannel", "flannel"},
		{"github.com/containerd/containerd", "containerd"},
		{"net/http", "http"},
		{"log", "go"},
	}
}
