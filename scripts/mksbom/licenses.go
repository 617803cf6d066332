package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	modpath "golang.org/x/mod/module"
)

// A book collects texts, each once, and who is under them.
type book struct {
	owners bytes.Buffer
	texts  bytes.Buffer
	number map[[sha256.Size]byte]int
}

// add notes that the texts of these files are the owner's.
func (b *book) add(owner string, files []string) error {
	if len(files) == 0 {
		return fmt.Errorf("%s: no licence found", owner)
	}
	fmt.Fprintf(&b.owners, "%s:", owner)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(text)
		if b.number[sum] == 0 {
			b.number[sum] = len(b.number) + 1
			fmt.Fprintf(&b.texts, "\n======== %d: %s\n\n%s\n", b.number[sum], filepath.Base(file), bytes.TrimSpace(text))
		}
		fmt.Fprintf(&b.owners, " %d", b.number[sum])
	}
	b.owners.WriteByte('\n')
	return nil
}

// notices are the texts of all licences, after a list of what each is for. It is an
// error if something has none.
func notices(name, version, modcache, unpacked string, programs []program, debs []deb) ([]byte, error) {
	b := book{number: map[[sha256.Size]byte]int{}}
	var missing error
	for _, m := range all(programs) {
		files, err := m.licenses(modcache)
		missing = errors.Join(missing, err, b.add(m.path+" "+m.version, files))
	}
	for _, d := range debs {
		files, err := d.licenses(unpacked)
		missing = errors.Join(missing, err, b.add("Debian's "+d.name+" "+d.version, files))
	}
	if missing != nil {
		return nil, missing
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `%s %s is made of what is listed here, under the licences of these numbers,
which follow. Sources of Go modules are where Go finds them by their names and versions;
those of Debian's packages are in Debian's archive, by theirs.

`, name, version)
	out.Write(b.owners.Bytes())
	out.Write(b.texts.Bytes())
	return out.Bytes(), nil
}

var legal = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying|copyright|notice|patents)([.-].*)?$`)

// licenses are the files of a module that say under what it is: those at its top, and
// those of what it took in from others.
func (m module) licenses(modcache string) ([]string, error) {
	dir, err := m.dir(modcache)
	if err != nil {
		return nil, err
	}
	var files []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside := strings.TrimPrefix(path, dir)
		foreign := strings.Contains(inside, "/third_party")
		switch {
		case !d.IsDir() && (foreign || filepath.Dir(path) == dir) && legal.MatchString(d.Name()):
			files = append(files, path)
		case d.IsDir() && m.path == "std" && path != dir:
			return fs.SkipDir
		case d.IsDir() && path != dir && !foreign && d.Name() != "third_party" && strings.Count(inside, "/") > 1:
			return fs.SkipDir
		}
		return nil
	})
	return files, err
}

// dir is where the module's source is.
func (m module) dir(modcache string) (string, error) {
	if m.path == "std" {
		root, err := exec.Command("go", "env", "GOROOT").Output()
		return strings.TrimSpace(string(root)), err
	}
	path, err := modpath.EscapePath(m.path)
	if err != nil {
		return "", err
	}
	version, err := modpath.EscapeVersion(m.version)
	return filepath.Join(modcache, path+"@"+version), err
}

var common = regexp.MustCompile(`/usr/share/common-licenses/[A-Za-z0-9.-]*[A-Za-z0-9]`)

// licenses are what Debian says of the package, and the texts that it refers to.
func (d deb) licenses(unpacked string) ([]string, error) {
	file := filepath.Join(unpacked, "usr/share/doc", d.name, "copyright")
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	files := []string{file}
	seen := map[string]bool{}
	for _, path := range common.FindAllString(string(text), -1) {
		if !seen[path] {
			seen[path] = true
			files = append(files, path)
		}
	}
	return files, nil
}
