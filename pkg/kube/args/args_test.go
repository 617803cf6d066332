package args_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/podo-dev/podo/pkg/kube/args"
)

func TestMerge(t *testing.T) {
	ours := args.Set{"v": {"0"}, "bind-address": {"0.0.0.0"}}
	denied := map[string]string{"etcd-servers": "the datastore is chosen by podo"}
	tests := map[string]struct {
		theirs []string
		want   string
		err    string
	}{
		"nothing given":           {want: "--bind-address=0.0.0.0 --v=0"},
		"theirs win":              {theirs: []string{"v=4"}, want: "--bind-address=0.0.0.0 --v=4"},
		"dashes are accepted":     {theirs: []string{"--v=4"}, want: "--bind-address=0.0.0.0 --v=4"},
		"a bare name is true":     {theirs: []string{"profiling"}, want: "--bind-address=0.0.0.0 --profiling=true --v=0"},
		"a list keeps its order":  {theirs: []string{"x=b", "x=a"}, want: "--bind-address=0.0.0.0 --v=0 --x=b --x=a"},
		"an equals sign in it":    {theirs: []string{"x=a=b"}, want: "--bind-address=0.0.0.0 --v=0 --x=a=b"},
		"denied, spelt otherwise": {theirs: []string{"--etcd_servers=x"}, err: "x-arg: etcd-servers: podo sets this itself; the datastore is chosen by podo"},
		"underscores are dashes":  {theirs: []string{"bind_address=::"}, want: "--bind-address=:: --v=0"},
		"denied":                  {theirs: []string{"etcd-servers=x"}, err: "x-arg: etcd-servers: podo sets this itself; the datastore is chosen by podo"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ours.Merge("x-arg", tt.theirs, denied)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("err = %v, want %q in it", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s := strings.Join(got.Flags(), " "); s != tt.want {
				t.Errorf("flags = %s, want %s", s, tt.want)
			}
			if !reflect.DeepEqual(ours["v"], []string{"0"}) {
				t.Errorf("Merge changed its receiver: %v", ours)
			}
		})
	}
}
