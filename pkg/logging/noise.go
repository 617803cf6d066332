package logging

import "strings"

// noise is a line that reads like trouble and is none.
type noise struct {
	message string // prefix of the message
	trouble string // part of the err attribute, or of the message; empty matches any
	reason  string
}

// harmless reports whether a line is known noise.
func harmless(message, trouble string) bool {
	for _, n := range knownNoise() {
		if strings.HasPrefix(message, n.message) &&
			(n.trouble == "" || strings.Contains(trouble, n.trouble) || strings.Contains(message, n.trouble)) {
			return true
		}
	}
	return false
}

// knownNoise lists what a healthy start of Kubernetes 1.36 and containerd 2.3 says
// at warning level or above. Each entry is an exact beginning of a message.
func knownNoise() []noise {
	return []noise{
		{"Failed to list existing nftables objects", "", "the tables do not exist before the first sync makes them"},
		{"The manifest file is empty", "", "an editor or a copy is still writing a static pod"},
		{"Unable to register mirror pod because node is not registered yet", "", "it is tried again as soon as it is"},
		{"no imagefs label for configured runtime", "", "cAdvisor asks before containerd has answered"},
		{"failed to find pid namespace of init process", "", "hosts that hide process 1; only affects shared pid namespaces"},
		{"Skipping API ", "", "an API group without a version that is on, forty times"},
		{"Found stale data, removed previous endpoints", "", "said at every start of a server that keeps no lease of itself"},
		{"Error while syncing ConfigMap", "namespaces \"kube-system\" not found", "the first start makes the namespace a moment later"},
		{"Error syncing PodDisruptionBudget, requeuing", "the object has been modified", "the controller's cache is a moment behind its own write; it tries again"},
		{"Resetting endpoints for master service", "", "an orderly stop took the address out, the start puts it back"},
		{"failed check for fsverity support", "", "most file systems have none; it is optional"},
		{"Failed to set rlimit on max file handles", "", "the service manager's limit stays, and is high enough"},
		{"Skipping pod synchronization", "may not have completed yet", "the kubelet's first look at the engine is under way"},
		{"Error getting the current node from lister", "", "the node registers a moment later"},
		{"Error updating node status, will retry", "not found", "the node registers a moment later"},
		{"Failed to read data from checkpoint", "checkpoint is not found", "said at every first start"},
		{"Failed to ensure process in container with oom score", "failed to find pid namespace", "hosts that hide process 1; only affects shared pid namespaces"},
		{"Failed to ensure process in container with oom score", "permission denied", "check-config says so, with the remedy"},
		{"Failed to update node PodCIDR", "node updates may not change podCIDR", "the controller's cache is a moment behind its own write: the node has its range"},
		{"CIDR assignment for node failed", "node updates may not change podCIDR", "the same"},
		{"Error processing node work item", "node updates may not change podCIDR", "the same"},
		{"Unhandled Error", "is not as new as written version", "a controller's cache is a moment behind its own write; it tries again"},
		{"Found 'ImagePullWithSyncFs' in CRI config", "", "the way of pulling that it asks for is the one that syncs"},
		{"Failed to get node when trying to set owner ref", "not found", "the node registers a moment later"},
		{"Failed to get status for pod", "no relationship found", "the authorizer hears of a new pod a moment after its node does"},
		{"failed to load cni during init", "", "the network list is written once the node has its addresses"},
		{"failed to reload cni configuration", "no network config found", "the network list is being written"},
		{"Flexvolume plugin directory at", "", "it is made right then"},
		{"Image garbage collection failed once", "", "the kubelet has no figures in its first seconds"},
		{"collecting metrics for", "cgroup deleted", "a container ended while it was measured"},
		{"eviction manager: failed to check if we have separate container filesystem", "no imagefs label", "cAdvisor asks before containerd has answered"},
		{"Eviction manager: failed to get summary stats", "failed to get node info", "the node registers a moment later"},
		{"failed to read memory cgroup ", "no such file or directory", "after a reboot, pods get their cgroups a moment later"},
		{"Couldn't get ", "not registered", "after a restart, the kubelet has not looked at the pod yet"},
		{"Operation for ", "not registered", "after a restart, the kubelet has not looked at the pod yet; it tries again"},
		{"Error while processing event (\"/sys/fs/cgroup/", "no such file or directory", "a service of the machine's ended as soon as it was started, as at each login"},
		{"Error on socket receive", "use of closed network connection", "kubectl exec or attach has ended"},
		{"http: TLS handshake error from ", "", "somebody closed a connection; scanners and load balancers do all day"},
	}
}
