package volumes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
)

// Where people say which folders a node has, as users of local-path-provisioner do.
const (
	settingsName = "local-path-config"
	settingsKey  = "config.json"
	everyNode    = "DEFAULT_PATH_FOR_NON_LISTED_NODES"
)

// readSettings returns the folders of a node according to config.json, or nil if that
// leaves the choice to podo.
func readSettings(text, node string) ([]string, error) {
	var said struct {
		Paths []struct {
			Node  string   `json:"node"`
			Paths []string `json:"paths"`
		} `json:"nodePathMap"`
	}
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&said); err != nil {
		return nil, fmt.Errorf("ConfigMap %s: %s: %w", settingsName, settingsKey, err)
	}
	var mine, rest []string
	for _, m := range said.Paths {
		list := []string{}
		for _, path := range m.Paths {
			if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
				return nil, fmt.Errorf("ConfigMap %s: node %s: %q is no folder for volumes; give a whole path, and not that of all files", settingsName, m.Node, path)
			}
			if path = filepath.Clean(path); !slices.Contains(list, path) {
				list = append(list, path)
			}
		}
		switch m.Node {
		case node:
			mine = list
		case everyNode:
			rest = list
		}
	}
	if mine != nil {
		return mine, nil
	}
	return rest, nil
}
