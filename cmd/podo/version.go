package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/payload"
	"github.com/podo-dev/podo/pkg/version"
)

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the versions of podo and of what is inside",
		Description: `Examples:
  podo version
  podo version --components     every program and image inside, with its licence
  podo version -o json`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "components", Usage: "list what is inside, too"},
			outputFlag(),
		},
		OnUsageError: flagProblem,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			asJSON, err := wantsJSON(c)
			if err != nil {
				return err
			}
			v := versions{
				Podo:       version.Podo(),
				Kubernetes: version.Kubernetes(),
				Go:         runtime.Version(),
				Platform:   runtime.GOOS + "/" + runtime.GOARCH,
				Commit:     version.Commit(),
			}
			if c.Bool("components") {
				v.Linked = linkedParts()
				if v.Payload, err = ownComponents(); err != nil {
					if !errors.Is(err, payload.ErrNone) {
						return err
					}
					fmt.Fprintln(c.App.ErrWriter, "podo:", err)
				}
			}
			if asJSON {
				return printJSON(c.App.Writer, v)
			}
			return v.print(c.App.Writer)
		},
	}
}

type versions struct {
	Podo       string              `json:"podo"`
	Kubernetes string              `json:"kubernetes"`
	Go         string              `json:"go"`
	Platform   string              `json:"platform"`
	Commit     string              `json:"commit,omitempty"`
	Linked     []part              `json:"linked,omitempty"`
	Payload    []payload.Component `json:"payload,omitempty"`
}

// A part is a project whose code is linked into podo itself.
type part struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	License string `json:"license"`
	Source  string `json:"source"`
}

// linkedParts are the larger ones; go version -m lists every module.
func linkedParts() []part {
	var out []part
	for _, p := range []part{
		{Name: "kubernetes", Source: "k8s.io/kubernetes", License: "Apache-2.0"},
		{Name: "kine", Source: "github.com/k3s-io/kine", License: "Apache-2.0"},
		{Name: "sqlite", Source: "github.com/mattn/go-sqlite3", License: "MIT (SQLite itself: public domain)"},
		{Name: "flannel", Source: "github.com/flannel-io/flannel", License: "Apache-2.0"},
		{Name: "helm", Source: "helm.sh/helm/v4", License: "Apache-2.0"},
		{Name: "etcd", Source: "go.etcd.io/etcd/server/v3", License: "Apache-2.0"},
	} {
		if p.Version = version.Module(p.Source); p.Version != "" {
			out = append(out, p)
		}
	}
	if v := version.Glibc(); v != "" {
		out = append(out, part{Name: "glibc", Version: v, License: "LGPL-2.1-or-later", Source: "debian:libc6-dev"})
	}
	return out
}

func ownComponents() ([]payload.Component, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return payload.Components(exe)
}

func (v versions) print(w io.Writer) error {
	fmt.Fprintf(w, "podo        %s\nkubernetes  %s\ngo          %s %s\n", v.Podo, v.Kubernetes, v.Go, v.Platform)
	if v.Commit != "" {
		fmt.Fprintf(w, "commit      %s\n", v.Commit)
	}
	var rows [][]string
	for _, p := range v.Linked {
		rows = append(rows, []string{p.Name, p.Version, "linked", p.License, p.Source})
	}
	for _, p := range v.Payload {
		// A person wants to know where it comes from, not the last of its details.
		source, _, _ := strings.Cut(p.Source, "\n")
		rows = append(rows, []string{p.Name, p.Version, size(p.Size), p.License, source})
	}
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return table(w, []string{"PART", "VERSION", "SIZE", "LICENCE", "SOURCE"}, rows)
}
