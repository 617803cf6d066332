package kubelet

import (
	"strings"
	"testing"
)

// TestCheckValues: what no kubelet starts with is told, all of it, and nothing that one
// starts with.
func TestCheckValues(t *testing.T) {
	for name, tt := range map[string]struct {
		flags         []string
		configuration string
		gates         map[string]bool
		want          []string
	}{
		"nothing": {},
		"sound": {
			flags:         []string{"max-pods=9", "kube-reserved=cpu=100m"},
			configuration: "cpuManagerPolicy: static\nreservedSystemCPUs: '0'\nkubeReserved: {cpu: nonsense}\nevictionHard: {memory.available: 0%}\nclusterDNS: [010.43.0.10]\nmemoryManagerPolicy: None\nsystemReserved: {pid: '100'}\n",
		},
		"gates that defaults were made with": {gates: map[string]bool{"KubeletCrashLoopBackOffMax": false, "KubeletEnsureSecretPulledImages": false}},
		"a value that needs a gate":          {configuration: "memorySwap: {swapBehavior: LimitedSwap}\nmemoryThrottlingFactor: 0.5\n", gates: map[string]bool{"MemoryQoS": true}},
		"wrong everywhere": {
			flags: []string{"max-pods=-5"},
			configuration: "cpuManagerPolicy: sttic\nmemoryManagerPolicy: Half\nevictionHard: {memory.availabel: 1Mi}\nclusterDNS: [foo]\ntlsMinVersion: '9'\ntlsCipherSuites: [rot13]\n" +
				"kubeReserved: {cpu: lots}\nsystemReserved: {memroy: 1Gi, memory: '-1'}\n",
			want: []string{"maxPods (--max-pods) -5", `cpuManagerPolicy: "sttic", want none or static`, `memoryManagerPolicy: "Half"`, "unsupported eviction signal memory.availabel",
				`clusterDNS: "foo"`, "tlsMinVersion: ", "tlsCipherSuites: ", `kubeReserved.cpu: "lots"`, "systemReserved: memroy cannot be reserved", `systemReserved.memory: "-1"`},
		},
		"static without processors": {configuration: "cpuManagerPolicy: static\n", want: []string{"cpuManagerPolicy: static keeps processors"}},
		"of a file":                 {flags: []string{"config=/nowhere", "max-pods=-5"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckValues(tt.flags, tt.configuration, tt.gates)
			if len(tt.want) == 0 {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("nothing of %q in:\n%v", want, err)
				}
			}
			if n := strings.Count(err.Error(), "\n") + 1; n != len(tt.want) {
				t.Errorf("%d mistakes, want %d:\n%v", n, len(tt.want), err)
			}
		})
	}
}
