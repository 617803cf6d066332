package local

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// TestCosts_alone measures what clusters cost, and says so in lines that scripts/bench-cluster
// collects. The bounds are those that nobody would put up with.
func TestCosts_alone(t *testing.T) {
	s := begin(t)
	for _, size := range []int{1, 2, 4} {
		file := head + "nodes:\n- role: control-plane\n" + strings.Repeat("- role: worker\n", size-1)
		c := s.create("cost", file)
		s.figure(fmt.Sprintf("podo cluster create to Ready: %d nodes", size), c.took.Seconds(), "s")
		if c.took > 60*time.Second {
			t.Errorf("%d nodes took %s", size, c.took)
		}
		if size == 4 {
			time.Sleep(10 * time.Second) // what only the start needed is given back
			s.figure("memory of the control plane (PSS)", s.memory("cost", "cost-control-plane"), "MB")
			s.figure("memory of a worker (PSS)", s.memory("cost", "cost-worker2"), "MB")
			s.figure("load of a 100 MB archive into 4 nodes", c.loads(100<<20).Seconds(), "s")
		}
		began := time.Now()
		s.run("cluster", "delete", "--name", "cost")
		s.figure(fmt.Sprintf("podo cluster delete: %d nodes", size), time.Since(began).Seconds(), "s")
	}
}

// loads has all nodes take an image of some size, and returns how long that took.
func (c *cluster) loads(size int64) time.Duration {
	c.Helper()
	img, err := random.Image(size/4, 4)
	if err != nil {
		c.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		c.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, config); err != nil {
		c.Fatal(err)
	}
	tag, err := name.NewTag("podo.local/big:1")
	if err != nil {
		c.Fatal(err)
	}
	file := filepath.Join(c.TempDir(), "big.tar")
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		c.Fatal(err)
	}
	began := time.Now()
	c.run("cluster", "load", "archive", "--name", c.name, file)
	took := time.Since(began)
	for _, n := range c.members() {
		var list []image
		out := c.exec(n.Name, "podo", "images", "list", "-o", "json")
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			c.Fatal(err)
		}
		at := slices.IndexFunc(list, func(i image) bool { return slices.Contains(i.Names, tag.Name()) })
		if at < 0 || list[at].Size < size {
			c.Errorf("%s does not have the image, of %d bytes at least:\n%s", n.Name, size, out)
		}
	}
	return took
}

// An image is one of a node's, as podo images list tells of it.
type image struct {
	Names []string
	Size  int64
}

// memory is that of a node's processes in MB, with their share of what is shared.
func (s *scene) memory(cluster, node string) float64 {
	s.Helper()
	var sum float64
	seen := map[string]bool{}
	for _, dir := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		err := filepath.WalkDir(filepath.Join(dir, "podo-cluster-"+cluster, node), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return nil // a hierarchy that is not there, or a group that has just gone
			}
			text, _ := os.ReadFile(path)
			for pid := range strings.FieldsSeq(string(text)) {
				maps, _ := os.ReadFile("/proc/" + pid + "/smaps_rollup")
				_, after, found := bytes.Cut(maps, []byte("\nPss:"))
				if fields := strings.Fields(string(after)); found && !seen[pid] {
					kb, err := strconv.ParseFloat(fields[0], 64)
					if err != nil {
						return err
					}
					sum, seen[pid] = sum+kb/1000, true
				}
			}
			return nil
		})
		if err != nil {
			s.Fatal(err)
		}
	}
	if sum == 0 {
		s.Fatalf("no process of %s was found", node)
	}
	return sum
}

// figure says a measurement in a line that scripts/bench-cluster collects.
func (s *scene) figure(name string, value float64, unit string) {
	s.Attr("figure", fmt.Sprintf("%s\t%.2f\t%s", name, value, unit))
}
