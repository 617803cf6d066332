package helm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/strvals"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// A layer is a piece of values; what comes later wins.
type layer struct {
	place string
	text  []byte
	quiet bool // that it changed is no reason to upgrade
}

// secrets reads a Secret.
type secrets func(ctx context.Context, name string) (*corev1.Secret, error)

// layers are the values of a HelmChart, the weakest first.
func layers(ctx context.Context, c *chart, over *config, read secrets) ([]layer, error) {
	out, err := pieces(ctx, "HelmChart", c.Spec.ValuesContent, c.Spec.Values, c.Spec.ValuesSecrets, read)
	if err != nil || over == nil {
		return out, err
	}
	more, err := pieces(ctx, "HelmChartConfig", over.Spec.ValuesContent, over.Spec.Values, over.Spec.ValuesSecrets, read)
	return append(out, more...), err
}

func pieces(ctx context.Context, kind, content string, values json.RawMessage, from []valuesSecret, read secrets) (out []layer, err error) {
	if content != "" {
		out = append(out, layer{place: kind + ", spec.valuesContent", text: []byte(content)})
	}
	if len(values) > 0 {
		out = append(out, layer{place: kind + ", spec.values", text: values})
	}
	for _, want := range from {
		if len(want.Keys) == 0 {
			continue
		}
		s, err := read(ctx, want.Name)
		if apierrors.IsNotFound(err) && want.IgnoreUpdates {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s, spec.valuesSecrets: %w", kind, err)
		}
		for _, key := range want.Keys {
			text, ok := s.Data[key]
			if !ok && !want.IgnoreUpdates {
				return nil, fmt.Errorf("%s, spec.valuesSecrets: Secret %s has no key %q", kind, want.Name, key)
			}
			out = append(out, layer{place: fmt.Sprintf("%s, spec.valuesSecrets, %s of %s", kind, key, want.Name), text: text, quiet: want.IgnoreUpdates})
		}
	}
	return out, nil
}

// merge makes values of layers and of what is set on top.
func merge(from []layer, set map[string]intstr.IntOrString) (map[string]any, error) {
	out := map[string]any{}
	for _, l := range from {
		values, err := loader.LoadValues(bytes.NewReader(l.text))
		if err != nil {
			return nil, fmt.Errorf("%w%s: these are no values: %w", errFinal, l.place, err)
		}
		out = loader.MergeMaps(out, values)
	}
	names := slices.Sorted(maps.Keys(set))
	for _, name := range names {
		if v := set[name]; typed(v) {
			if err := strvals.ParseInto(name+"="+v.String(), out); err != nil {
				return nil, fmt.Errorf("%wHelmChart, spec.set, %s: %w", errFinal, name, err)
			}
		}
	}
	for _, name := range names {
		if v := set[name]; !typed(v) {
			if err := strvals.ParseIntoString(name+"="+escapeCommas(v.String()), out); err != nil {
				return nil, fmt.Errorf("%wHelmChart, spec.set, %s: %w", errFinal, name, err)
			}
		}
	}
	return out, nil
}

// typed reports whether a value that is set is more than a string.
func typed(v intstr.IntOrString) bool {
	if v.Type == intstr.Int {
		return true
	}
	switch strings.ToLower(v.StrVal) {
	case "true", "false", "null":
		return true
	}
	return false
}

// escapeCommas keeps a comma in a value from beginning the next one.
func escapeCommas(v string) string {
	var out strings.Builder
	escaped := false
	for _, r := range v {
		if r == ',' && !escaped {
			out.WriteByte('\\')
		}
		escaped = r == '\\' && !escaped
		out.WriteRune(r)
	}
	return out.String()
}

// checksum sums up what a release is made of. How it is made does not count, nor how
// the chart is had.
func checksum(c *chart, s spec, from []layer) (string, error) {
	loud := slices.DeleteFunc(slices.Clone(from), func(l layer) bool { return l.quiet })
	texts := make([]string, len(loud))
	for i, l := range loud {
		texts[i] = string(l.text)
	}
	sum := sha256.New()
	err := json.NewEncoder(sum).Encode([]any{
		s.Chart, s.Version, s.Repo, s.ChartContent, s.Set, texts,
		s.TakeOwnership, s.ServerSide, ptr.Deref(s.ForceConflicts, false), c.Metadata.Annotations[retryAnnotation],
	})
	return hex.EncodeToString(sum.Sum(nil))[:40], err
}
