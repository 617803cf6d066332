package config_test

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"
	"text/template"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/configfile"
)

var update = flag.Bool("update", false, "rewrite docs/configuration.md")

const reference = "../../docs/configuration.md"

type section struct {
	Title string
	Rows  []row
}

type row struct{ Name, Value, Default, Text string }

func sections() []section {
	cell := strings.NewReplacer("|", `\|`, "<", "&lt;")
	cfg := config.Default()
	var out []section
	for _, s := range config.Sections(config.Fields(&cfg)) {
		sec := section{Title: s.Title}
		for _, f := range s.Fields {
			if f.Hidden {
				continue
			}
			out := row{Name: "`" + f.Name + "`", Value: f.Kind()}
			for _, a := range f.Aliases {
				if len(a) == 1 {
					out.Name += ", `-" + a + "`"
				} else {
					out.Name += ", `" + a + "`"
				}
			}
			if f.Placeholder != "" && f.Placeholder == strings.ToUpper(f.Placeholder) && strings.ContainsAny(f.Placeholder, "=:-") {
				out.Value = "`" + f.Placeholder + "`"
				if f.IsList() {
					out.Value = "list of " + out.Value
				}
			}
			if v := f.String(); v != "" && v != "false" && v != "0" {
				out.Default = "`" + v + "`"
			}
			text, dflt, ok := strings.Cut(f.Help, " (default: ")
			if ok {
				out.Default = strings.TrimSuffix(dflt, ")")
			}
			out.Text = text
			if f.SplitsAtCommas() && !f.IsMap() {
				out.Text += "; commas"
			}
			if f.Shared {
				out.Text += "; shared"
			}
			for _, env := range f.Envs()[len(f.Spellings()):] {
				out.Text += "; also `" + env + "`"
			}
			if f.Deprecated != "" {
				out.Text += "; deprecated: " + f.Deprecated
			}
			out.Default, out.Text = cell.Replace(out.Default), cell.Replace(out.Text)
			sec.Rows = append(sec.Rows, out)
		}
		out = append(out, sec)
	}
	return out
}

func TestReference(t *testing.T) {
	text := template.Must(template.ParseFiles("testdata/configuration.md.tmpl"))
	var b strings.Builder
	if err := text.Execute(&b, sections()); err != nil {
		t.Fatal(err)
	}
	want := strings.TrimRight(b.String(), "\n") + "\n"
	if *update {
		if os.Getenv("CI") != "" {
			t.Fatal("documentation is not written in CI; run with -update elsewhere and commit the outcome")
		}
		if err := os.WriteFile(reference, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(reference)
	if err != nil || string(got) != want {
		t.Errorf("docs/configuration.md is not what the settings say (%v); run go test ./pkg/config -run TestReference -update", err)
	}
}

func TestReferenceExamplesWork(t *testing.T) {
	text, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 4 {
		t.Fatalf("found %d examples", len(blocks))
	}
	for _, b := range blocks {
		settings, err := configfile.Parse("example", []byte(b[1]))
		if err != nil || len(settings) == 0 {
			t.Fatalf("%v in\n%s", err, b[1])
		}
		cfg := config.Default()
		if _, err := config.Resolve(&cfg, settings); err != nil {
			t.Errorf("%v in\n%s", err, b[1])
		}
	}
}
