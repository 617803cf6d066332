// Command mksbom says what is inside programs: as an SPDX document, and as the texts of
// the licences that it is under.
//
// What it knows comes from the programs themselves, in which Go notes the modules they
// were linked from, and from the list of Debian packages. The same input always gives
// the same bytes.
package main

import (
	"bufio"
	"cmp"
	"debug/buildinfo"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const usage = `usage: mksbom -name NAME -version VERSION [flags] PROGRAM...

Writes an SPDX document of the Go modules in the programs, and with -debian of the
packages beside them.
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mksbom:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("mksbom", flag.ExitOnError)
	flags.Usage = func() {
		fmt.Fprint(os.Stderr, usage)
		flags.PrintDefaults()
	}
	name := flags.String("name", "", "what the document describes")
	version := flags.String("version", "", "its version")
	date := flags.String("date", "1970-01-01T00:00:00Z", "when its source was committed")
	out := flags.String("out", "", "file for the SPDX document")
	lock := flags.String("debian", "", "scripts/debian.lock")
	arch := flags.String("arch", "amd64", "the packages' architecture, as Debian calls it")
	packages := flags.String("packages", "", "the packages that count, separated by spaces, if not all")
	licenses := flags.String("licenses", "", "file for the texts of the licences")
	modules := flags.String("modcache", "", "Go's module cache, to find licences in")
	unpacked := flags.String("unpacked", "", "folder with the packages, to find licences in")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *name == "" || *version == "" || flags.NArg() == 0 {
		flags.Usage()
		os.Exit(2)
	}
	created, err := time.Parse(time.RFC3339, *date)
	if err != nil {
		return fmt.Errorf("-date: %w", err)
	}
	programs, err := readPrograms(flags.Args())
	if err != nil {
		return err
	}
	var debs []deb
	if *lock != "" {
		if debs, err = readLock(*lock, *arch, strings.Fields(*packages)); err != nil {
			return err
		}
	}
	if *out != "" {
		content, err := document(*name, *version, created, programs, debs)
		if err != nil {
			return err
		}
		if err := os.WriteFile(*out, content, 0o644); err != nil {
			return err
		}
	}
	if *licenses != "" {
		content, err := notices(*name, *version, *modules, *unpacked, programs, debs)
		if err != nil {
			return err
		}
		return os.WriteFile(*licenses, content, 0o644)
	}
	return nil
}

// A module is one of Go's, or with the path "std" its standard library.
type module struct{ path, version string }

type program struct {
	name    string
	modules []module
}

func readPrograms(paths []string) ([]program, error) {
	var list []program
	for _, path := range paths {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil, err
		}
		p := program{name: filepath.Base(path), modules: []module{{"std", strings.TrimPrefix(info.GoVersion, "go")}}}
		// podo itself is what the document is about, and has no version of that kind.
		if info.Main.Version != "" && info.Main.Version != "(devel)" {
			p.modules = append(p.modules, module{info.Main.Path, info.Main.Version})
		}
		for _, d := range info.Deps {
			// What a folder replaces was changed there, and is still that module's.
			if d.Replace != nil && !strings.HasPrefix(d.Replace.Path, ".") {
				d = d.Replace
			}
			p.modules = append(p.modules, module{d.Path, d.Version})
		}
		list = append(list, p)
	}
	return list, nil
}

// all are the modules of all programs, each once, in order.
func all(programs []program) []module {
	var list []module
	for _, p := range programs {
		list = append(list, p.modules...)
	}
	slices.SortFunc(list, func(a, b module) int {
		return cmp.Or(strings.Compare(a.path, b.path), strings.Compare(a.version, b.version))
	})
	return slices.Compact(list)
}

// A deb is a line of scripts/debian.lock.
type deb struct{ name, version, sum, file string }

// readLock returns the packages of those names, or all if none is given.
func readLock(path, arch string, names []string) ([]deb, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []deb
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		w := strings.Fields(lines.Text())
		if len(w) == 0 || w[0] == "#" {
			continue
		}
		if len(w) != 4 {
			return nil, fmt.Errorf("%s: %q is not the line of a package", path, lines.Text())
		}
		mine := strings.HasSuffix(w[3], "_"+arch+".deb") || strings.HasSuffix(w[3], "_all.deb")
		if mine && (len(names) == 0 || slices.Contains(names, w[0])) {
			list = append(list, deb{w[0], w[1], w[2], w[3]})
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(list, func(d deb) bool { return d.name == name }) {
			return nil, fmt.Errorf("%s: there is no %s for %s", path, name, arch)
		}
	}
	return list, lines.Err()
}
