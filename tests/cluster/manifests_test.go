package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

func manifest(h *hosts.Host, name string) string {
	return h.Path(filepath.Join("/var/lib/podo/server/manifests", name))
}

// put writes a manifest on a server.
func (s *scene) put(h *hosts.Host, name, text string) {
	s.Helper()
	path := manifest(h, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
}

// drop deletes a manifest on a server.
func (s *scene) drop(h *hosts.Host, name string) {
	s.Helper()
	if err := os.Remove(manifest(h, name)); err != nil {
		s.Fatal(err)
	}
}

// holds waits until servers' folders have a manifest with this text; no text means that
// there is no such file.
func (s *scene) holds(name, text string, servers ...*station) {
	s.Helper()
	for _, m := range servers {
		s.within(30*time.Second, name+" on "+m.Name(), func() error {
			got, err := os.ReadFile(manifest(m.Host, name))
			if string(got) != text || (text == "") != os.IsNotExist(err) {
				return fmt.Errorf("it says %q, %v", got, err)
			}
			return nil
		})
	}
}

// shows waits until kubectl prints these words, or nothing if there are none.
func (s *scene) shows(server *hosts.Host, limit time.Duration, words []string, args ...string) {
	s.Helper()
	s.within(limit, strings.Join(args, " "), func() error {
		out, err := server.Kubectl(args...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				return fmt.Errorf("nothing of %q in %s", w, out)
			}
		}
		if words == nil && strings.TrimSpace(out) != "" {
			return fmt.Errorf("there is %s", out)
		}
		return nil
	})
}

func configMap(name, value string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {a: %s}\n", name, value)
}

// TestManifestsOfAnyServer: the folders of three servers are one. A file that is put on
// one is deployed, is on all, survives that server, and may be changed and deleted on
// the others; what happens while a server is away follows when it is back.
func TestManifestsOfAnyServer(t *testing.T) {
	s := begin(t)
	servers, _ := s.three()
	one, two, three := servers[0], servers[1], servers[2]

	began := time.Now()
	s.put(three.Host, "apps/web.yaml", configMap("web", "first"))
	s.shows(one.Host, 30*time.Second, []string{"first"}, "get", "configmap", "web", "--ignore-not-found", "-o", "jsonpath={.data.a}")
	t.Logf("put on one server, deployed by any: %s", time.Since(began).Round(10*time.Millisecond))
	s.holds("apps/web.yaml", configMap("web", "first"), one, two, three)
	s.shows(one.Host, 10*time.Second, []string{"apps/web.yaml", "three", "Deployed"}, "get", "addons", "-o", "wide")
	if n := strings.Count(s.kubectl(one.Host, "get", "addons", "-o", "wide"), "apps/web.yaml"); n != 1 {
		t.Errorf("%d addons of one file", n)
	}

	// The server that has it is lost; so is whichever deploys.
	three.down()
	s.put(two.Host, "apps/web.yaml", configMap("web", "second"))
	began = time.Now()
	s.shows(one.Host, 60*time.Second, []string{"second"}, "get", "configmap", "web", "-o", "jsonpath={.data.a}")
	t.Logf("changed after the server that put it was lost: deployed after %s", time.Since(began).Round(10*time.Millisecond))
	s.put(one.Host, "late.yaml", configMap("late", "x"))
	s.shows(one.Host, 30*time.Second, []string{"x"}, "get", "configmap", "late", "--ignore-not-found", "-o", "jsonpath={.data.a}")

	// What it missed is there when it is back, and what was done to its disk meanwhile
	// is shared.
	three.up()
	s.ready(one.Host, three.Host)
	s.holds("apps/web.yaml", configMap("web", "second"), one, two, three)
	s.holds("late.yaml", configMap("late", "x"), one, two, three)

	// Any of them may delete.
	s.drop(three.Host, "apps/web.yaml")
	s.shows(one.Host, 30*time.Second, nil, "get", "configmap", "web", "--ignore-not-found", "-o", "name")
	s.holds("apps/web.yaml", "", one, two, three)
	s.put(one.Host, "late.yaml.skip", "-")
	s.holds("late.yaml.skip", "-", two, three)
	s.shows(one.Host, 30*time.Second, []string{"Skipped"}, "get", "addons", "late")

	// Two servers that change one file at a time agree on one of the two.
	s.drop(two.Host, "late.yaml.skip")
	s.holds("late.yaml.skip", "", one, two, three)
	s.put(one.Host, "late.yaml", configMap("late", "of-one"))
	s.put(three.Host, "late.yaml", configMap("late", "of-three"))
	s.within(30*time.Second, "agreement", func() error {
		var all []string
		for _, m := range servers {
			text, err := os.ReadFile(manifest(m.Host, "late.yaml"))
			if err != nil {
				return err
			}
			all = append(all, string(text))
		}
		if all[0] != all[1] || all[1] != all[2] || !strings.Contains(all[0], "of-") {
			return fmt.Errorf("%q", all)
		}
		_, here := os.Stat(manifest(one.Host, "late.yaml.replaced"))
		_, there := os.Stat(manifest(three.Host, "late.yaml.replaced"))
		if (here == nil) == (there == nil) {
			return fmt.Errorf("the one that lost is kept: on one %v, on three %v", here, there)
		}
		return nil
	})
	kept, _ := os.ReadFile(manifest(two.Host, "late.yaml"))
	_, value, _ := strings.Cut(string(kept), "{a: ")
	s.shows(one.Host, 30*time.Second, []string{strings.TrimSuffix(strings.TrimSpace(value), "}")}, "get", "configmap", "late", "-o", "jsonpath={.data.a}")
}
