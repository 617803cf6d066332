package registries

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func parse(t *testing.T, text string) File {
	t.Helper()
	f, err := Parse("registries.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The files are what people have who come from k3s.
func TestEndpoints(t *testing.T) {
	mirrors := "mirrors:\n  docker.io:\n    endpoint: [\"https://registry.example.com:5000\"]\n"
	tests := map[string]struct {
		text      string
		noDefault bool
		want      map[string]string // of registries, the endpoints with who is shown to each
	}{
		"nothing": {text: "", want: map[string]string{"docker.io": "https://registry-1.docker.io/v2", "quay.io": "https://quay.io/v2"}},
		"a mirror": {text: mirrors, want: map[string]string{
			"docker.io": "https://registry.example.com:5000/v2 https://registry-1.docker.io/v2",
			"quay.io":   "https://quay.io/v2",
		}},
		"a mirror alone": {text: mirrors, noDefault: true, want: map[string]string{
			"docker.io": "https://registry.example.com:5000/v2",
			"quay.io":   "https://quay.io/v2",
		}},
		"a registry that is configured stays": {text: mirrors + "configs: {docker.io: {auth: {username: u, password: p}}}", noDefault: true, want: map[string]string{
			"docker.io": "https://registry.example.com:5000/v2 u@https://registry-1.docker.io/v2",
		}},
		"credentials of a mirror": {text: mirrors + "configs: {\"registry.example.com:5000\": {auth: {username: u, password: p}}}", want: map[string]string{
			"docker.io": "u@https://registry.example.com:5000/v2 https://registry-1.docker.io/v2",
		}},
		"both in base64": {text: "configs: {registry.example.com: {auth: {auth: \"dXNlcjpwOnc=\"}}}", want: map[string]string{
			"registry.example.com": "user@https://registry.example.com/v2",
		}},
		"an identity token": {text: "configs: {registry.example.com: {auth: {identity_token: t}}}", want: map[string]string{
			"registry.example.com": "(t)@https://registry.example.com/v2",
		}},
		"all others": {text: "mirrors:\n  \"*\": {endpoint: [\"http://10.0.0.1:5000/\"]}\n  docker.io: {endpoint: [\"https://a.example.com/v2/hub\"]}\n", want: map[string]string{
			"quay.io":   "http://10.0.0.1:5000/v2 https://quay.io/v2",
			"docker.io": "https://a.example.com/v2/hub https://registry-1.docker.io/v2",
		}},
		"all others alone": {text: "mirrors: {\"*\": {endpoint: [registry.example.com, \"localhost:5000\"]}}\nconfigs: {\"*\": {auth: {username: u, password: p}}}", noDefault: true, want: map[string]string{
			"quay.io": "https://registry.example.com/v2 http://localhost:5000/v2",
		}},
		"all others, by themselves": {text: "configs: {\"*\": {auth: {username: u, password: p}}, ghcr.io: {tls: {insecure_skip_verify: true}}}", want: map[string]string{
			"quay.io": "u@https://quay.io/v2", "ghcr.io": "https://ghcr.io/v2",
		}},
		"itself first": {text: "mirrors: {docker.io: {endpoint: [\"https://docker.io\", \"https://a.example.com\", \"https://a.example.com/\"]}}", want: map[string]string{
			"docker.io": "https://registry-1.docker.io/v2 https://a.example.com/v2",
		}},
		"what others say too": {text: "mirrors:\n  docker.io: &m {endpoint: [a.example.com]}\n  quay.io: {<<: *m}\n  ghcr.io: {<<: [*m], endpoint: [b.example.com]}\n", noDefault: true, want: map[string]string{
			"docker.io": "https://a.example.com/v2", "quay.io": "https://a.example.com/v2", "ghcr.io": "https://b.example.com/v2",
		}},
		"an empty mirror": {text: "mirrors: {quay.io: }", want: map[string]string{"quay.io": "https://quay.io/v2"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRoutes(parse(t, tt.text), tt.noDefault)
			for registry, want := range tt.want {
				var got []string
				for _, e := range r.to(registry) {
					who := e.own.Username
					if e.own.RefreshToken != "" {
						who = "(" + e.own.RefreshToken + ")"
					}
					if who != "" {
						who += "@"
					}
					got = append(got, who+e.base.String())
				}
				if got := strings.Join(got, " "); got != want {
					t.Errorf("%s\n got %s\nwant %s", registry, got, want)
				}
			}
		})
	}
}

func TestRegistries(t *testing.T) {
	f := parse(t, "mirrors: {quay.io: , \"*\": {endpoint: [a.example.com]}}\nconfigs: {registry-1.docker.io: {auth: {username: u, password: p}}, a.example.com: }")
	if got := fmt.Sprint(newRoutes(f, false).registries()); got != "[* docker.io]" {
		t.Errorf("the engine is led here for %s", got)
	}
}

func TestMistakes(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct{ text, want string }{
		"no YAML":                 {"mirrors: [", "registries.yaml: not valid YAML"},
		"not a mapping":           {"hello", "registries.yaml:1: names with values are wanted"},
		"an unknown field":        {"mirrors:\n  docker.io:\n    endpoints: []", `registries.yaml:3: unknown field "endpoints" of a mirror; did you mean endpoint?`},
		"a section that was":      {"auths: {}", `registries.yaml:1: unknown field "auths" of registries.yaml; it has configs, mirrors`},
		"a field of another":      {"configs:\n  a.io: {username: u}", `registries.yaml:2: unknown field "username" of a config; it has auth, tls`},
		"twice":                   {"mirrors:\n  a.io:\n  a.io:", `registries.yaml:3: "a.io" is here again, after line 2`},
		"a URL for a registry":    {"mirrors: {\"https://a.io\": }", `"https://a.io" is not a registry: write its host`},
		"one endpoint":            {"mirrors: {a.io: {endpoint: b.io}}", `endpoint: a list is wanted; write ["b.io"]`},
		"a strange scheme":        {"mirrors: {a.io: {endpoint: [\"ftp://b.io\"]}}", `endpoint "ftp://b.io": ftp is not spoken by registries`},
		"no host":                 {"mirrors: {a.io: {endpoint: [\"https://:5000\"]}}", `endpoint "https://:5000": names no host`},
		"no URL":                  {"mirrors: {a.io: {endpoint: [\"https://b.io:x\"]}}", `endpoint "https://b.io:x": invalid port`},
		"credentials in a URL":    {"mirrors: {a.io: {endpoint: [\"https://u:p@b.io\"]}}", `endpoint "https://xxxxx@b.io": holds credentials; write them below configs, as auth of "b.io"`},
		"in one that is none":     {"mirrors: {a.io: {endpoint: [\"https://u:p@b.io:x\"]}}", `endpoint "https://xxxxx@b.io:x": invalid port`},
		"without a scheme":        {"mirrors: {a.io: {endpoint: [\"u:p@b.io\"]}}", `endpoint "xxxxx@b.io": holds`},
		"two documents":           {"mirrors:\n---\nmirrors:\n", "a second document begins here"},
		"half a second document":  {"mirrors:\n---\nmirrors: [", "not valid YAML"},
		"merged into itself":      {"mirrors:\n  a.io: &m {<<: *m}\n", "merged into itself"},
		"a query":                 {"mirrors: {a.io: {endpoint: [\"https://b.io?x=y\"]}}", "ends in a query"},
		"no expression":           {"mirrors: {a.io: {endpoint: [b.io], rewrite: {\"(\": x}}}", `rewrite "(": not a regular expression`},
		"a rewrite for nobody":    {"mirrors: {a.io: {rewrite: {a: b}}}", "rewrite: there is no endpoint"},
		"no base64":               {"configs: {a.io: {auth: {auth: \"u:p\"}}}", "is not USERNAME:PASSWORD in base64"},
		"half of credentials":     {"configs: {a.io: {auth: {username: u}}}", "username and password go together"},
		"no such CA":              {"configs:\n  a.io:\n    tls: {ca_file: /nonexistent/ca.pem}", "registries.yaml:3: ca_file: open /nonexistent/ca.pem: no such file"},
		"a CA that is none":       {"configs: {a.io: {tls: {ca_file: " + empty + "}}}", empty + " holds no certificate"},
		"half of a certificate":   {"configs: {a.io: {tls: {cert_file: /x}}}", "cert_file and key_file go together"},
		"no such certificate":     {"configs: {a.io: {tls: {cert_file: /nonexistent/c, key_file: /nonexistent/k}}}", "cert_file, key_file: open /nonexistent/c"},
		"neither true nor false":  {"configs: {a.io: {tls: {insecure_skip_verify: perhaps}}}", `"perhaps" is neither true nor false`},
		"a list for a value":      {"configs: {a.io: {auth: {username: [u]}}}", "a plain value is wanted here"},
		"a mistake after another": {"x: 1\ny: 2", `unknown field "y"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse("registries.yaml", []byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s\n got %v\nwant %s", tt.text, err, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("mirrors: {\"*\": {endpoint: [a.io], rewrite: {\"(.*)\": x/$1}}}\nconfigs: {a.io: {auth: {auth: dTpw}, tls: {insecure_skip_verify: yes}}}")
	f.Add("a: &a [*a]")
	f.Add("mirrors: &m {<<: [*m, *m]}")
	f.Add("mirrors: &m\n  docker.io: *m")
	f.Fuzz(func(t *testing.T, text string) {
		if file, err := Parse("registries.yaml", []byte(text)); err == nil {
			r := newRoutes(file, false)
			for _, name := range r.registries() {
				if name != "*" && len(r.to(name)) == 0 {
					t.Errorf("%q has no endpoint", name)
				}
			}
		}
	})
}
