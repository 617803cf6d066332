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
		{"http: TLS handshake error from ", "", "somebody closed a connection; scanners and load balancers do all day"},
	}
}
