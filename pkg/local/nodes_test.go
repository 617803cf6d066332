package local

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/paths"
)

// TestExportLogsOfAPodThatGoes: the logs of other pods are copied although a pod, and its
// folder, goes meanwhile. A node without pods has none.
func TestExportLogsOfAPodThatGoes(t *testing.T) {
	s, to := Site{Dir: t.TempDir()}, t.TempDir()
	c := Cluster{Name: "c", Nodes: []Node{{Name: "bare"}, {Name: "n"}}}
	text := bytes.Repeat([]byte("log\n"), 64<<10) // more than a pipe holds
	pods := s.on("c", "n", paths.PodLogs)
	for _, pod := range []string{"a", "b", "c"} {
		if err := os.MkdirAll(filepath.Join(pods, pod), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(pods, pod, "0.log"), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The copy of the first is a pipe, which keeps the walk there as long as it is not read.
	slow := filepath.Join(to, "n", "pods", "a", "0.log")
	if err := os.MkdirAll(filepath.Dir(slow), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(slow, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(slow, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	exported := make(chan error, 1)
	go func() { exported <- s.ExportLogs(t.Context(), c, to) }()
	if _, err := pipe.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(pods, "b")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, pipe, int64(len(text)-1)); err != nil {
		t.Fatal(err)
	}
	if err := <-exported; err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(to, "n", "pods", "c", "0.log")); err != nil || !bytes.Equal(got, text) {
		t.Errorf("the log of a pod that stays: %d bytes, %v", len(got), err)
	}
}

// TestRefusedBy: what a node refused is told in the words of the file, without its own paths.
func TestRefusedBy(t *testing.T) {
	log := "podo: an older end\n2026-01-01T00:00:00Z INFO  a line\npodo: /etc/podo/config.yaml:3: kubelet-arg: node-ip: podo sets this itself; use --node-ip\n" +
		"kube-controller-manager: kube-controller-manager-arg: \"grape\" is none\nkubelet-arg: /etc/podo/kubelet.yaml: unknown field\nno disk: none\n" +
		"   0.0s  podo 0.1\n2026-01-01T00:00:01Z WARN  of the next start\n"
	want := "\n  kubeletExtraArgs (podo's kubelet-arg): node-ip: podo sets this itself; each node has an address of the cluster's own network" +
		"\n  kube-controller-manager: controllerManager.extraArgs (podo's kube-controller-manager-arg): \"grape\" is none" +
		"\n  the KubeletConfiguration of kubeadmConfigPatches: unknown field\n  no disk: none"
	if got := refusedBy(log); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}
