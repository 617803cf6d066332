package config

import (
	"errors"
	"fmt"
	"strings"
)

// A Setting is one value as somebody wrote it. A trailing + on Name adds to a
// list instead of replacing it.
type Setting struct {
	Name   string
	Values []string
	Origin string // for people: "config.yaml:3", "$PODO_TOKEN", "--token"
}

// Origins says where each setting's value came from. Defaults are absent.
type Origins map[string]string

// A Mistake is one thing wrong with what was asked, and who asked for it.
type Mistake struct {
	Setting string
	Origin  string // empty when the default is part of the trouble
	Err     error
}

// Error names the place, then the setting unless the place already says it.
func (m Mistake) Error() string {
	switch {
	case m.Origin == "" && m.Setting == "":
		return m.Err.Error()
	case m.Origin == "":
		return m.Setting + ": " + m.Err.Error()
	case m.Setting == "" || names(m.Origin, m.Setting):
		return m.Origin + ": " + m.Err.Error()
	}
	return m.Origin + ": " + m.Setting + ": " + m.Err.Error()
}

// Unwrap lets callers look for the cause.
func (m Mistake) Unwrap() error { return m.Err }

// names reports whether an origin spells out the setting by itself.
func names(origin, setting string) bool {
	if strings.HasPrefix(origin, "-") {
		return strings.HasPrefix(strings.TrimLeft(origin, "-"), setting)
	}
	return strings.HasPrefix(origin, "$")
}

// ErrUnknown reports a setting no field answers to.
var ErrUnknown = errors.New("unknown setting")

// Apply lays settings over cfg, later ones over earlier ones, and reports every
// mistake at once. Callers pass the weakest source first. Settings that only
// another verb has are passed over, so that one file can serve all of them.
func Apply(cfg any, settings []Setting) (Origins, error) {
	fields := map[string]Field{}
	for _, f := range Fields(cfg) {
		for _, name := range f.Spellings() {
			fields[name] = f
		}
	}
	origins, errs := Origins{}, []error(nil)
	for _, s := range settings {
		name, add := strings.CutSuffix(s.Name, "+")
		f, ok := fields[name]
		if !ok {
			if _, elsewhere := Lookup(name); !elsewhere {
				errs = append(errs, Mistake{Origin: s.Origin, Err: Unknown(name)})
			}
			continue
		}
		if bad := f.set(s.Values, add); bad != nil {
			for _, err := range bad {
				errs = append(errs, Mistake{Setting: f.Name, Origin: s.Origin, Err: err})
			}
			continue
		}
		if add && origins[f.Name] != "" {
			if origins[f.Name] != s.Origin {
				origins[f.Name] += ", " + s.Origin
			}
		} else {
			origins[f.Name] = s.Origin
		}
	}
	return origins, errors.Join(errs...)
}

// Lookup finds a setting of any verb by any spelling a file may use.
func Lookup(name string) (Field, bool) {
	all := Default()
	for _, f := range Fields(&all) {
		for _, s := range f.Spellings() {
			if s == name {
				return f, true
			}
		}
	}
	return Field{}, false
}

// FromEnv picks settings out of an os.Environ-style list. Variables that start
// with EnvPrefix and belong to no setting are mistakes.
func FromEnv(environ []string) ([]Setting, error) {
	out, rest := fromEnv(environ, EnvPrefix, Field.Envs)
	var errs []error
	for _, name := range rest {
		errs = append(errs, Mistake{Origin: "$" + name, Err: unknownEnv(name)})
	}
	return out, errors.Join(errs...)
}

// FromK3sEnv picks settings out of variables named for k3s. Those that mean
// nothing here are left alone: they may be meant for k3s on the same machine.
func FromK3sEnv(environ []string) []Setting {
	out, _ := fromEnv(environ, K3sPrefix, Field.K3sEnvs)
	return out
}

// fromEnv returns the settings in environ in field order, whatever order the
// variables have, and the names with that prefix which belong to none. An empty
// variable counts as not given.
func fromEnv(environ []string, prefix string, spellings func(Field) []string) (out []Setting, rest []string) {
	given := map[string]string{}
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(k, prefix) {
			given[k] = v
		}
	}
	all := Default()
	known := map[string]bool{}
	for _, f := range Fields(&all) {
		names := spellings(f)
		for i := len(names) - 1; i >= 0; i-- { // the preferred spelling comes last and wins
			known[names[i]] = true
			if v := given[names[i]]; v != "" {
				out = append(out, Setting{f.Name, f.FromEnv(v), "$" + names[i]})
			}
		}
	}
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); v != "" && strings.HasPrefix(k, prefix) && !known[k] {
			rest = append(rest, k)
		}
	}
	return out, rest
}

func unknownEnv(name string) error {
	setting := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, EnvPrefix), "_", "-"))
	if why := Foreign(setting); why != "" {
		return fmt.Errorf("unknown variable: %s; unset it", why)
	}
	near := Nearest(setting)
	if near == "" {
		return fmt.Errorf("unknown variable; unset it, or see podo server --help")
	}
	f, _ := Lookup(near)
	return fmt.Errorf("unknown variable; did you mean %s?", f.Envs()[0])
}
