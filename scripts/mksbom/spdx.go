package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// The parts of SPDX 2.3 that are used here.
type (
	spdx struct {
		Version       string         `json:"spdxVersion"`
		DataLicense   string         `json:"dataLicense"`
		ID            string         `json:"SPDXID"`
		Name          string         `json:"name"`
		Namespace     string         `json:"documentNamespace"`
		Creation      creation       `json:"creationInfo"`
		Packages      []spdxPackage  `json:"packages"`
		Relationships []relationship `json:"relationships"`
	}
	creation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID               string      `json:"SPDXID"`
		Name             string      `json:"name"`
		Version          string      `json:"versionInfo,omitempty"`
		Purpose          string      `json:"primaryPackagePurpose,omitempty"`
		DownloadLocation string      `json:"downloadLocation"`
		FilesAnalyzed    bool        `json:"filesAnalyzed"`
		LicenseConcluded string      `json:"licenseConcluded"`
		LicenseDeclared  string      `json:"licenseDeclared"`
		Copyright        string      `json:"copyrightText"`
		Checksums        []checksum  `json:"checksums,omitempty"`
		References       []reference `json:"externalRefs,omitempty"`
	}
	checksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	reference struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	relationship struct {
		From string `json:"spdxElementId"`
		Type string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
)

const unknown = "NOASSERTION"

// document is the SPDX document: what it describes contains the programs and packages,
// and a program the modules that are linked into it.
func document(name, version string, created time.Time, programs []program, debs []deb) ([]byte, error) {
	root := describe("SPDXRef-root", name, version)
	root.Purpose = "APPLICATION"
	doc := spdx{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: name + "-" + version,
		Creation: creation{Created: created.UTC().Format(time.RFC3339), Creators: []string{"Tool: podo-mksbom"}},
		Packages: []spdxPackage{root},
	}
	doc.relate(doc.ID, "DESCRIBES", root.ID)
	ids := map[module]string{}
	for i, m := range all(programs) {
		p := describe(fmt.Sprintf("SPDXRef-module-%d", i+1), m.path, m.version)
		p.References = []reference{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + m.purl()}}
		ids[m] = p.ID
		doc.Packages = append(doc.Packages, p)
	}
	for i, p := range programs {
		it := describe(fmt.Sprintf("SPDXRef-program-%d", i+1), p.name, "")
		it.Purpose = "APPLICATION"
		doc.Packages = append(doc.Packages, it)
		doc.relate(root.ID, "CONTAINS", it.ID)
		for _, m := range p.modules {
			doc.relate(it.ID, "CONTAINS", ids[m])
		}
	}
	for i, d := range debs {
		p := describe(fmt.Sprintf("SPDXRef-debian-%d", i+1), d.name, d.version)
		p.Checksums = []checksum{{"SHA256", d.sum}}
		p.References = []reference{{"PACKAGE-MANAGER", "purl", "pkg:deb/debian/" + d.name + "@" + url.QueryEscape(d.version) + "?arch=" + d.arch()}}
		doc.Packages = append(doc.Packages, p)
		doc.relate(root.ID, "CONTAINS", p.ID)
	}
	// The name must be one of a kind, so it holds a hash of all else.
	content, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	doc.Namespace = fmt.Sprintf("https://github.com/podo-dev/podo/spdx/%s-%s-%x", url.PathEscape(name), url.PathEscape(version), sha256.Sum256(content))
	content, err = json.MarshalIndent(doc, "", " ")
	return append(content, '\n'), err
}

func describe(id, name, version string) spdxPackage {
	return spdxPackage{
		ID: id, Name: name, Version: version, DownloadLocation: unknown,
		LicenseConcluded: unknown, LicenseDeclared: unknown, Copyright: unknown,
	}
}

func (s *spdx) relate(from, how, to string) {
	s.Relationships = append(s.Relationships, relationship{from, how, to})
}

// purl is the module's part of a package URL.
func (m module) purl() string {
	if m.path == "std" {
		return "stdlib@" + m.version
	}
	return m.path + "@" + url.QueryEscape(m.version)
}

// arch is the end of the file's name.
func (d deb) arch() string {
	_, arch, _ := strings.Cut(strings.TrimSuffix(d.file[strings.LastIndex(d.file, "_"):], ".deb"), "_")
	return arch
}
