// Package script tests each verb of podo as a person types it: its help, what it does
// where it can do it, and what it refuses.
//
// The scripts in testdata need neither root nor a cluster. They run the built binary,
// dist/podo or what PODO_BINARY names, since linking Kubernetes into a test takes
// longer than all of them.
package script

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestVerbs(t *testing.T) {
	binary := os.Getenv("PODO_BINARY")
	if binary == "" {
		binary = filepath.Join("..", "..", "dist", "podo")
	}
	binary, err := filepath.Abs(binary)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(binary); err != nil && os.Getenv("PODO_E2E") != "1" {
		t.Skipf("%v; build it with make build", err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                "testdata",
		RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			bin := filepath.Join(env.WorkDir, ".bin")
			if err := os.Mkdir(bin, 0o755); err != nil {
				return err
			}
			for _, name := range []string{"podo", "kubectl", "crictl", "ctr"} {
				if err := os.Symlink(binary, filepath.Join(bin, name)); err != nil {
					return err
				}
			}
			env.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			// Nobody's configuration but the script's own.
			env.Setenv("PODO_CONFIG_FILE", filepath.Join(env.WorkDir, "podo.yaml"))
			return os.WriteFile(filepath.Join(env.WorkDir, "podo.yaml"), nil, 0o600)
		},
	})
}
