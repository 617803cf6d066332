package containerd_test

import (
	"flag"
	"os"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/podo-dev/podo/pkg/containerd"
	"github.com/podo-dev/podo/pkg/plan/plantest"
)

func TestMain(m *testing.M) {
	plantest.Flags()
	flag.Parse()
	os.Exit(m.Run())
}

func TestRender(t *testing.T) {
	plantest.Each(t, "testdata/*.txtar", func(t *testing.T, c plantest.Case) {
		p, err := c.Plan()
		if err != nil {
			t.Fatal(err)
		}
		text := containerd.Render(p.Node.Containerd)
		var parsed map[string]any
		if err := toml.Unmarshal(text, &parsed); err != nil {
			t.Errorf("not TOML: %v", err)
		}
		c.Got(string(text))
	})
}
