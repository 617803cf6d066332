// Package args builds the flags of an upstream component.
//
// A Set holds what podo decides. What a user passes through is laid over it, so
// that every upstream flag can be set, but the few that would break the house
// are refused by name, with the podo setting to use instead.
package args

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A Set is the flags of one component, by name without dashes.
type Set map[string][]string

// Flags renders the set as a sorted argument list. A name with several values
// is repeated, in order.
func (s Set) Flags() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		for _, v := range s[name] {
			out = append(out, "--"+name+"="+v)
		}
	}
	return out
}

// Merge lays flags that a user wrote as NAME=VALUE over s and returns the result;
// s is not changed. A name given more than once keeps all its values, as the
// component would see them. Names in denied are refused; the value there says
// what to do instead. All mistakes are returned together, and name the podo
// setting that theirs came by.
func (s Set) Merge(setting string, theirs []string, denied map[string]string) (Set, error) {
	out, given, errs := maps.Clone(s), map[string]bool{}, []error(nil)
	for _, text := range theirs {
		name := Name(text)
		_, value, ok := strings.Cut(text, "=")
		if !ok {
			value = "true"
		}
		if remedy, no := denied[name]; no {
			errs = append(errs, fmt.Errorf("%s: %s: podo sets this itself; %s", setting, name, remedy))
			continue
		}
		if given[name] {
			out[name] = append(out[name], value)
		} else {
			out[name] = []string{value}
		}
		given[name] = true
	}
	return out, errors.Join(errs...)
}

// Name is the name of a flag in NAME=VALUE, as upstream reads it.
func Name(text string) string {
	name, _, _ := strings.Cut(strings.TrimLeft(text, "-"), "=")
	return strings.ReplaceAll(name, "_", "-")
}

// Given reports whether a user wrote any of the flags.
func Given(theirs []string, names ...string) bool {
	return slices.ContainsFunc(theirs, func(text string) bool { return slices.Contains(names, Name(text)) })
}

// Listening are the flags about a component's own port, which it has if the user asks for
// its address or number. Without, nothing listens: metrics are on the API server's port,
// where all parts of the process have theirs.
func Listening(theirs []string, kubeconfig, clientCA string) Set {
	if !Given(theirs, "bind-address", "secure-port") {
		return Set{"secure-port": {"0"}}
	}
	return Set{
		"authentication-kubeconfig": {kubeconfig}, "authorization-kubeconfig": {kubeconfig},
		// What upstream would look up in the cluster, before that answers.
		"client-ca-file": {clientCA}, "authentication-skip-lookup": {"true"},
	}
}

// Deny adds to a component's own list of flags that a user may not set those that
// speak for every component of the process.
func Deny(own map[string]string) map[string]string {
	maps.Copy(own, map[string]string{
		"feature-gates":             "gates are one set for the whole process; use --feature-gates",
		"emulated-version":          "every component of this process has one version",
		"min-compatibility-version": "every component of this process has one version",
		"v":                         "verbosity is one for the whole process; use -v",
		"vmodule":                   "verbosity is one for the whole process; use --vmodule",
	})
	return own
}

// Join is how upstream's flags take a list: comma between its members.
func Join[T fmt.Stringer](list []T) string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return strings.Join(out, ",")
}
