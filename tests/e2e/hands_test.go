package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func execAttachCopy(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: $BUSYBOX, command: [sleep, "100000"]}
  - {name: echo, image: $BUSYBOX, stdin: true, command: [sh, -c, "while read line; do echo got $line; done"]}
`)
	s.podReady("shell")

	// exec: output, errors, exit code, input.
	r := s.try("exec", "shell", "-c", "main", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
	if r.code != 3 || r.out != "out\n" || !strings.Contains(r.err, "err\n") {
		t.Errorf("exec: %s", r)
	}
	r = podoWith("one\ntwo\n", nil, "kubectl", "-n", s.ns, "exec", "-i", "shell", "-c", "main", "--", "wc", "-l")
	if r.code != 0 || strings.TrimSpace(r.out) != "2" {
		t.Errorf("exec -i: %s", r)
	}
	if out := s.kubectl("exec", "shell", "-c", "main", "--", "hostname"); out != "shell\n" {
		t.Errorf("the host name is %q", out)
	}

	// attach.
	in, keyboard := io.Pipe()
	_, screen := s.background(in, "attach", "-i", "shell", "-c", "echo")
	lines := readLines(screen)
	s.within(20*time.Second, "the attached container answers", func() error {
		_, _ = fmt.Fprintln(keyboard, "hello")
		for {
			select {
			case l := <-lines:
				if l == "got hello" {
					return nil
				}
			case <-time.After(time.Second):
				return errors.New("nothing came back")
			}
		}
	})
	keyboard.Close()

	// cp, there and back.
	dir := t.TempDir()
	write(t, filepath.Join(dir, "tree", "sub", "file"), strings.Repeat("podo\n", 100000))
	s.kubectl("cp", "-c", "main", filepath.Join(dir, "tree"), s.ns+"/shell:/tmp/tree")
	if out := s.kubectl("exec", "shell", "-c", "main", "--", "sh", "-c", "wc -c < /tmp/tree/sub/file"); strings.TrimSpace(out) != "500000" {
		t.Errorf("the copied file has %s bytes", out)
	}
	s.kubectl("cp", "-c", "main", s.ns+"/shell:/tmp/tree/sub/file", filepath.Join(dir, "back"))
	if text, err := os.ReadFile(filepath.Join(dir, "back")); err != nil || len(text) != 500000 {
		t.Errorf("%d bytes came back (%v)", len(text), err)
	}
}

// readLines hands out what r says line by line.
func readLines(r io.Reader) <-chan string {
	out := make(chan string, 1000)
	go func() {
		defer close(out)
		for sc := bufio.NewScanner(r); sc.Scan(); {
			out <- sc.Text()
		}
	}()
	return out
}

func logsFollow(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: $BUSYBOX, command: [sh, -c, "i=0; while [ $i -lt 8 ]; do echo line $i; i=$((i+1)); sleep 0.5; done"]}]
`)
	s.within(60*time.Second, "the pod starts", func() error {
		if p := s.pod("talker"); p.Status.Phase == "Pending" {
			return errors.New(describe(p))
		}
		return nil
	})
	cmd, screen := s.background(nil, "logs", "-f", "talker")
	var got []string
	var first time.Time
	for l := range readLines(screen) {
		if first.IsZero() {
			first = time.Now()
		}
		got = append(got, l)
	}
	last := time.Now()
	if err := cmd.Wait(); err != nil {
		t.Errorf("logs -f: %v", err)
	}
	if len(got) != 8 || got[0] != "line 0" || got[7] != "line 7" {
		t.Errorf("logs -f told %q", got)
	}
	if last.Sub(first) < 500*time.Millisecond {
		t.Errorf("all came within %s: it did not follow", last.Sub(first))
	}
	if out := s.kubectl("logs", "--tail=1", "--timestamps", "talker"); !strings.HasSuffix(out, "line 7\n") || !strings.HasPrefix(out, "20") {
		t.Errorf("logs --tail=1 --timestamps: %q", out)
	}
	link := "/var/log/containers/talker_" + s.ns + "_main-"
	if found, _ := filepath.Glob(link + "*.log"); len(found) != 1 {
		t.Errorf("log collectors find %v for %s", found, link)
	}
}

func portForward(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: $AGNHOST, args: [netexec, --http-port=8080, --udp-port=-1]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`)
	s.podReady("web")
	for _, target := range []string{"pod/web :8080", "service/web :80"} {
		_, screen := s.background(nil, append([]string{"port-forward"}, strings.Fields(target)...)...)
		var port string
		select {
		case l := <-readLines(screen):
			// Forwarding from 127.0.0.1:40123 -> 8080
			_, after, _ := strings.Cut(l, "127.0.0.1:")
			port, _, _ = strings.Cut(after, " ")
		case <-time.After(20 * time.Second):
		}
		if port == "" {
			t.Fatalf("port-forward %s says no port", target)
		}
		s.answers("http://127.0.0.1:"+port+"/hostname", "web")
	}
}

func debugContainers(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: bare}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: $PAUSE}]
`)
	s.podReady("bare")
	s.kubectl("debug", "bare", "--image="+busybox, "--image-pull-policy=Never", "--target=main", "--container=look", "--",
		"sh", "-c", "echo looking at $(cat /proc/1/cmdline | tr '\\0' ' '); sleep 1000")
	s.logs(30*time.Second, []string{"bare", "-c", "look"}, "looking at /pause")
	if n := restarts(s.pod("bare"), "main"); n != 0 {
		t.Errorf("the pod was restarted %d times", n)
	}
	s.kubectl("debug", "node/"+s.node().Name, "--image="+busybox, "--image-pull-policy=Never", "--profile=sysadmin", "--", "chroot", "/host", "sh", "-c", "echo on $(hostname)")
	s.within(60*time.Second, "a pod looks at the node", func() error {
		for _, p := range s.pods("") {
			if strings.HasPrefix(p.Name, "node-debugger-") {
				return contains(s.try("logs", p.Name).out, "on ")
			}
		}
		return errors.New("no such pod")
	})
}
