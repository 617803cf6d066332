package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/configfile"
	"github.com/podo-dev/podo/pkg/status"
)

// runConfig runs podo config with args, and without this process's environment.
func runConfig(t *testing.T, args ...string) (string, error) {
	t.Helper()
	for _, kv := range os.Environ() {
		if k, _, _ := strings.Cut(kv, "="); strings.HasPrefix(k, "PODO_") || strings.HasPrefix(k, "K3S_") {
			t.Setenv(k, "")
		}
	}
	var out bytes.Buffer
	app := &cli.App{Name: "podo", Writer: &out, ErrWriter: &out, ExitErrHandler: func(*cli.Context, error) {}, Commands: []*cli.Command{configCommand()}}
	err := app.Run(append([]string{"podo", "config"}, args...))
	return out.String(), err
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigShowIsAConfigurationFile(t *testing.T) {
	path := writeFile(t, "node-label: {a: b}\nkubelet-arg: ['max-pods=250', 'x=y: z']\ntoken: hunter2\nwrite-kubeconfig-mode: 0644\nfeature-gates: [A=true]\n")
	out, err := runConfig(t, "show", "--origin", "-c", path, "--cluster-cidr", "10.1.0.0/16,fd00::/56")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{path + ":1", "# --cluster-cidr", "# default", "- 10.1.0.0/16\n", "# token: '[redacted]'"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	if strings.Contains(out, "hunter2") {
		t.Errorf("the token is shown:\n%s", out)
	}
	settings, err := configfile.Parse("shown", []byte(out))
	if err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	again, want := config.Default(), config.Default()
	if _, err := config.Resolve(&again, settings); err != nil {
		t.Fatal(err)
	}
	original, _ := configfile.Read(path, "")
	config.Apply(&want, append(original, config.Setting{Name: "cluster-cidr", Values: []string{"10.1.0.0/16,fd00::/56"}}))
	want.Token = ""
	if !reflect.DeepEqual(again, want) {
		t.Errorf("shown settings read back as\n%+v\nwant\n%+v", again, want)
	}
}

func TestConfigShowJSON(t *testing.T) {
	path := writeFile(t, "v: 3\n")
	out, err := runConfig(t, "show", "-c", path, "-o", "json", "--origin")
	var got map[string]struct {
		Value  any
		Origin string
	}
	if err != nil || json.Unmarshal([]byte(out), &got) != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if got["v"].Value != 3.0 || got["v"].Origin != path+":1" || got["debug"].Origin != "default" {
		t.Errorf("v %v, debug %v", got["v"], got["debug"])
	}
}

func TestConfigSourcesByStrength(t *testing.T) {
	path := writeFile(t, "node-name: file\n")
	dropin := filepath.Join(path+".d", "a.yaml")
	os.Mkdir(path+".d", 0o755)
	args := []string{"--config", path}
	environ := []string{}
	steps := []struct{ want, origin string }{
		{"file", path + ":1"}, {"dropin", dropin + ":1"}, {"k3s", "$K3S_NODE_NAME"}, {"podo", "$PODO_NODE_NAME"}, {"flag", "--node-name"},
	}
	for i, s := range steps {
		switch i {
		case 1:
			os.WriteFile(dropin, []byte("node-name: dropin\n"), 0o600)
		case 2:
			environ = append(environ, "K3S_NODE_NAME=k3s")
		case 3:
			environ = append(environ, "PODO_NODE_NAME=podo")
		case 4:
			args = append(args, "--node-name=flag")
		}
		typed := []config.Setting{}
		for _, f := range []string{"config", "node-name"} {
			for j, a := range args {
				if a == "--"+f {
					typed = append(typed, config.Setting{Name: f, Values: []string{args[j+1]}, Origin: "--" + f})
				} else if v, ok := strings.CutPrefix(a, "--"+f+"="); ok {
					typed = append(typed, config.Setting{Name: f, Values: []string{v}, Origin: "--" + f})
				}
			}
		}
		cfg, origins, err := resolveServer(environ, typed)
		if err != nil || cfg.Name != s.want || origins["node-name"] != s.origin {
			t.Errorf("step %d: %q from %q, %v; want %q from %q", i, cfg.Name, origins["node-name"], err, s.want, s.origin)
		}
	}
}

func TestConfigMistakesExit2(t *testing.T) {
	bad := writeFile(t, "clutser-cidr: x\nnode-ip: y\n")
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"unknown flag":   {[]string{"show", "--clustr-cidr", "x"}, "did you mean --cluster-cidr?"},
		"flag of a verb": {[]string{"show", "--orgin"}, "unknown flag --orgin"},
		"missing value":  {[]string{"show", "--token"}, "--token: needs a value"},
		"bad value":      {[]string{"show", "--v", "x"}, "-v: \"x\" is not a whole number"},
		"argument":       {[]string{"show", "x"}, `unexpected argument "x"`},
		"missing file":   {[]string{"show", "-c", "/nonexistent/config.yaml"}, "-c: stat /nonexistent/config.yaml"},
		"format":         {[]string{"show", "-o", "xml"}, `"xml" is neither yaml nor json`},
		"validate":       {[]string{"validate", bad}, bad + `:1: unknown setting "clutser-cidr"; did you mean cluster-cidr?`},
		"every mistake":  {[]string{"validate", bad}, bad + ":2: node-ip:"},
		"token file":     {[]string{"validate", "--token-file", "/nonexistent"}, "--token-file: open /nonexistent"},
		"flag of k3s":    {[]string{"show", "--vpn-auth"}, "unknown flag --vpn-auth: podo has no such part"},
		"short, of k3s":  {[]string{"show", "-s", "http://x:6443"}, "-s: server: \"http://x:6443\": servers speak https"},
		"empty value":    {[]string{"show", "--tls-san", "a,,b"}, `--tls-san: "a,,b": one of the values is empty`},
		"no such verb":   {[]string{"shwo"}, `"shwo"; it takes one of: show, validate`},
		"this machine":   {[]string{"validate", "--resolv-conf", "/nonexistent", "--log", "/"}, "--log: / is a folder; name a file in it\n--resolv-conf: there is no file /nonexistent"},
	} {
		out, err := runConfig(t, tt.args...)
		var exit interface{ ExitCode() int }
		if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("%s: %v (%s); want %q and exit code 2", name, err, out, tt.want)
		}
	}
}

// A variable with podo's prefix is a setting or a mistake, also one that steers its tests.
func TestConfigKnowsNoOtherVariables(t *testing.T) {
	if _, _, err := resolveServer([]string{"PODO_E2E=1"}, nil); err == nil || !strings.Contains(err.Error(), "$PODO_E2E: unknown variable") {
		t.Error(err)
	}
}

func TestLogIntoAFolderToBeMade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "podo.log")
	log, closer, err := openLog(t.Context(), config.Logging{File: path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("here")
	closer.Close()
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "here") {
		t.Errorf("%q, %v", text, err)
	}
}

func TestAdminKubeconfig(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "podo.sock")
	t.Setenv("PODO_WRITE_KUBECONFIG", "/from/the/settings")
	if got := adminKubeconfig(t.Context(), socket); got != "/from/the/settings" {
		t.Errorf("without a server: %s", got)
	}
	ctx, stop := context.WithCancel(t.Context())
	done, up := make(chan error), make(chan struct{})
	report := func(context.Context) status.Report { return status.Report{Kubeconfig: "/from/the/server"} }
	go func() {
		done <- status.Serve(socket, report, nil, slog.New(slog.DiscardHandler)).Run(ctx, func() { close(up) })
	}()
	<-up
	if got := adminKubeconfig(t.Context(), socket); got != "/from/the/server" {
		t.Errorf("with a server: %s", got)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestUnknownCommands(t *testing.T) {
	for name, want := range map[string]string{
		"bogus":           `unknown command "bogus"; podo help lists them`,
		"servr":           "did you mean server?",
		"completion tcsh": "it takes one of: bash, zsh, fish",
	} {
		if _, _, err := run(t, strings.Fields(name)...); err == nil || !strings.Contains(err.Error(), want) || exitCode(err) != 2 {
			t.Errorf("podo %s: %v, exit code %d; want %q and 2", name, err, exitCode(err), want)
		}
	}
}

func TestConfigValidateAccepts(t *testing.T) {
	path := writeFile(t, "debug: true\nv: 3\n")
	if out, err := runConfig(t, "validate", path); err != nil || out != path+": no mistakes in 2 settings\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestFlagsRepeat(t *testing.T) {
	path := writeFile(t, "node-label: [from=file]\n")
	out, err := runConfig(t, "show", "-c", path, "--node-label", "a=1", "--node-label=b=2", "--data-dir", "/a", "-d", "/b", "--debug", "-v", "3")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"node-label:\n    - a=1\n    - b=2\n", "data-dir: /b\n", "debug: true\n", "v: 3\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

func TestTokenFile(t *testing.T) {
	path := writeFile(t, "  s3cret\n")
	cfg, origins, err := resolveServer(nil, []config.Setting{{Name: "token-file", Values: []string{path}, Origin: "--token-file"}})
	if err != nil || cfg.Token != "s3cret" || origins["token"] != "" {
		t.Errorf("token %q from %q, %v", string(cfg.Token), origins["token"], err)
	}
	for _, text := range []string{"", "\n", "two words"} {
		path := writeFile(t, text)
		if _, _, err := resolveServer(nil, []config.Setting{{Name: "token-file", Values: []string{path}, Origin: "--token-file"}}); err == nil {
			t.Errorf("a file that holds %q passes for a token", text)
		}
	}
}

func TestHelpListsEverySetting(t *testing.T) {
	out, err := runConfig(t, "show", "--help")
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	for _, f := range config.Fields(&cfg) {
		if !strings.Contains(out, dashed(f.Name)) {
			t.Errorf("%s is missing in\n%s", dashed(f.Name), out)
		}
	}
	for line := range strings.Lines(out) {
		if len(line) > 101 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
}

func TestIsJournal(t *testing.T) {
	f, err := os.Open(writeFile(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	same := fmt.Sprintf("%d:%d", st.Dev, st.Ino)
	for announced, want := range map[string]bool{"": false, "1:2": false, same: true} {
		if got := isJournal(f, announced); got != want {
			t.Errorf("isJournal(%q) = %v, want %v", announced, got, want)
		}
	}
}

// TestPassedOn: flags for Kubernetes' parts are judged without a plan, each by its part.
func TestPassedOn(t *testing.T) {
	cfg := config.Default()
	for args, flag := range map[*[]string]string{
		&cfg.Components.APIServerArgs: "runtime-config=api/all=false", &cfg.Components.ControllerManagerArgs: "concurrent-gc-syncs=7", &cfg.Components.SchedulerArgs: "kube-api-burst=7",
		&cfg.KubeletArgs: "enforce-node-allocatable=system-reserved", &cfg.KubeProxyArgs: "detect-local-mode=BridgeInterface",
	} {
		*args = []string{flag}
	}
	// Neither of these two without the other.
	cfg.KubeletArgs = append(cfg.KubeletArgs, "system-reserved-cgroup=/system")
	cfg.Components.APIServerArgs = append(cfg.Components.APIServerArgs, "runtime_config=batch/v1=true")
	if err := judgePassed(cfg, nil); err != nil {
		t.Errorf("sound flags: %v", err)
	}
	cfg.Components.APIServerArgs, cfg.KubeletArgs = []string{"v=3"}, []string{"no-such=1", "max-pods=lots"}
	cfg.FeatureGates = map[string]string{"NoSuchGate": "true", "WatchList": "false"}
	err := judgePassed(cfg, config.Origins{"kube-apiserver-arg": "a.yaml:3", "kubelet-arg": "--kubelet-arg"})
	want := "a.yaml:3: kube-apiserver-arg: v: podo sets this itself; verbosity is one for the whole process; use -v\n" +
		"--kubelet-arg: unknown flag: --no-such\n" +
		"--kubelet-arg: invalid argument \"lots\" for \"--max-pods\" flag: strconv.ParseInt: parsing \"lots\": invalid syntax\n" +
		"feature-gates: NoSuchGate is not a feature gate of this Kubernetes version"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}

	// Features whose APIs are off.
	for gates, want := range map[string]string{
		"AllAlpha": "feature-gates: AllAlpha: the API server would wait", "StorageVersionAPI": "feature-gates: StorageVersionAPI: the API", "AllBeta": "runtime-config=api/beta=true",
		"AllBeta coordination.k8s.io/v1beta1": "", "AllAlpha api/alpha": "", "StorageVersionAPI internal.apiserver.k8s.io/v1alpha1": "", "AllBeta api/all": "", "AllAlpha StorageVersionAPI": "",
	} {
		cfg := config.Default()
		gate, more, _ := strings.Cut(gates, " ")
		cfg.FeatureGates = map[string]string{gate: "true"}
		switch more {
		case "":
		case "StorageVersionAPI":
			cfg.FeatureGates[more] = "false"
		default:
			cfg.Components.APIServerArgs = []string{"runtime-config=" + more + "=true"}
		}
		if err := judgePassed(cfg, nil); (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", gates, err, want)
		}
	}

	off := config.Default()
	off.FeatureGates = map[string]string{"AllBeta": "true", "AllAlpha": "true"}
	for list, good := range map[string]bool{"api/all=1": true, " api/all = T ": true, "api/all=true,api/beta=false": false, "api/alpha,api/beta": true, "api/alpha=0,api/all=true": false} {
		off.Components.APIServerArgs = []string{"runtime-config=" + list}
		if err := served(map[string]bool{"AllBeta": true, "AllAlpha": true}, off.Components.APIServerArgs); (err == nil) != good {
			t.Errorf("%q: %v", list, err)
		}
	}
	off.Components.NoAPIServer = true
	if err := judgePassed(off, nil); err != nil {
		t.Errorf("gates where no API server runs: %v", err)
	}

	// Values that no kubelet takes, and gates that do not go together.
	for want, set := range map[string]func(*config.Server){
		"kubelet-arg: invalid configuration: maxPods (--max-pods) -5": func(c *config.Server) { c.KubeletArgs = []string{"max-pods=-5"} },
		"etcd-arg: etcd has no flag \"no-such\"":                      func(c *config.Server) { c.Datastore.EtcdArgs = []string{"no-such=1"} },
		"StorageVersionAPI is enabled, but depends on features": func(c *config.Server) {
			c.FeatureGates = map[string]string{"StorageVersionAPI": "true", "APIServerIdentity": "false"}
		},
	} {
		cfg := config.Default()
		set(&cfg)
		if err := judgePassed(cfg, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}

	// What does not run may have any, and files that are elsewhere are a start's to read.
	cfg = config.Default()
	cfg.KubeProxyArgs, cfg.Components.NoKubeProxy = []string{"proxy-mode=ipvs"}, true
	cfg.KubeletArgs = []string{"config=/nowhere/kubelet.yaml"}
	if err := judgePassed(cfg, nil); err != nil {
		t.Error(err)
	}
}
