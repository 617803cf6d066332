package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubelet/config/v1beta1"
	config "k8s.io/kubernetes/pkg/kubelet/apis/config"
	conversion "k8s.io/kubernetes/pkg/kubelet/apis/config/v1beta1"
	"k8s.io/kubernetes/pkg/kubelet/kubeletconfig/configfiles"
	utilfs "k8s.io/kubernetes/pkg/util/filesystem"
	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// CheckConfiguration judges the fields of a KubeletConfiguration in YAML by themselves.
func CheckConfiguration(text string) error {
	patch, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return err
	}
	return strictly(patch)
}

func strictly(patch []byte) error {
	unknown, err := strictjson.UnmarshalStrict(patch, &v1beta1.KubeletConfiguration{})
	return errors.Join(append(unknown, err)...)
}

// mergeFiles lays KubeletConfiguration files over c: file, then the *.conf files
// of dir in name order. Some settings exist only there, such as the graceful
// shutdown periods. Either may be empty.
func mergeFiles(c *config.KubeletConfiguration, file, dir string) error {
	files := []string{}
	if file != "" {
		files = append(files, file)
	}
	if dir != "" {
		dropIns, err := filepath.Glob(filepath.Join(dir, "*.conf"))
		if err != nil {
			return err
		}
		if _, err := os.Stat(dir); err != nil {
			return err
		}
		sort.Strings(dropIns)
		files = append(files, dropIns...)
	}
	if len(files) == 0 {
		return nil
	}
	var layers []layer
	for _, name := range files {
		loader, err := configfiles.NewFsLoader(&utilfs.DefaultFs{}, name)
		if err != nil {
			return err
		}
		patch, kind, err := loader.LoadIntoJSON()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if kind.GroupKind() != v1beta1.SchemeGroupVersion.WithKind("KubeletConfiguration").GroupKind() {
			return fmt.Errorf("%s: is a %s, want a KubeletConfiguration of %s", name, kind.Kind, v1beta1.SchemeGroupVersion)
		}
		if err := strictly(patch); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		layers = append(layers, layer{name, patch})
	}
	return merge(c, layers)
}

// A layer is a part of a KubeletConfiguration in JSON, and what people know it by.
type layer struct {
	name  string
	patch []byte
}

// merge lays layers over c, one over the other.
func merge(c *config.KubeletConfiguration, layers []layer) error {
	versioned := &v1beta1.KubeletConfiguration{}
	if err := conversion.Convert_config_KubeletConfiguration_To_v1beta1_KubeletConfiguration(c, versioned, nil); err != nil {
		return err
	}
	merged, err := json.Marshal(versioned)
	if err != nil {
		return err
	}
	var names []string
	for _, l := range layers {
		if merged, err = jsonpatch.MergePatch(merged, l.patch); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		names = append(names, l.name)
	}
	result := &v1beta1.KubeletConfiguration{}
	if err := json.Unmarshal(merged, result); err != nil {
		return err
	}
	// Upstream's defaults panic on gates that there are not.
	if err := utilfeature.DefaultMutableFeatureGate.DeepCopy().SetFromMap(result.FeatureGates); err != nil {
		return fmt.Errorf("%s: featureGates: %w", strings.Join(names, ", "), err)
	}
	conversion.SetDefaults_KubeletConfiguration(result)
	return conversion.Convert_v1beta1_KubeletConfiguration_To_config_KubeletConfiguration(result, c, nil)
}
