package plan_test

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/plan/plantest"
)

func TestMain(m *testing.M) {
	plantest.Flags()
	flag.Parse()
	os.Exit(m.Run())
}

// TestNew writes the plan of an ordinary machine in full, and of every other case
// what differs from it.
func TestNew(t *testing.T) {
	base, err := plan.New(config.Default(), plantest.Machine(), plan.Known{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	plantest.Each(t, "testdata/*.txtar", func(t *testing.T, c plantest.Case) {
		p, err := c.Plan()
		switch {
		case err != nil:
			c.Got("error: " + err.Error() + "\n")
		case strings.HasSuffix(t.Name(), "/default"):
			c.Got(strings.Join(show("", reflect.ValueOf(p)), "\n") + "\n")
		default:
			c.Got(plantest.Difference(show("", reflect.ValueOf(base)), show("", reflect.ValueOf(p))))
		}
	})
}

// show lists every decision in v as a line of its own. What is empty has no line.
func show(name string, v reflect.Value) (out []string) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return []string{name + ": none"}
		}
		v = v.Elem()
	}
	if v.IsZero() {
		return nil
	}
	_, speaks := v.Interface().(fmt.Stringer)
	p, isPaths := v.Interface().(paths.Paths)
	switch {
	case isPaths:
		return []string{fmt.Sprintf("%s: %s %s %s", name, p.Etc, p.Data, p.Run)}
	case v.Kind() == reflect.Struct && !speaks:
		for i := range v.NumField() {
			out = append(out, show(strings.TrimPrefix(name+"."+v.Type().Field(i).Name, "."), v.Field(i))...)
		}
	case v.Kind() == reflect.Slice:
		var items []string
		for i := range v.Len() {
			items = append(items, fmt.Sprint(v.Index(i).Interface()))
		}
		out = append(out, name+": "+strings.Join(items, " | "))
	case v.Kind() == reflect.Map:
		for it := v.MapRange(); it.Next(); {
			out = append(out, fmt.Sprintf("%s[%s]: %v", name, it.Key(), it.Value()))
		}
		slices.Sort(out)
	default:
		out = append(out, fmt.Sprintf("%s: %v", name, v.Interface()))
	}
	return out
}

// TestNewIsPure checks that a decision neither changes what it is made from nor
// differs from one time to the next.
func TestNewIsPure(t *testing.T) {
	cfg, facts := config.Default(), plantest.Machine()
	environ := []string{"PATH=/bin", "HTTPS_PROXY=http://proxy:3128"}
	first, err := plan.New(cfg, facts, plan.Known{}, environ)
	if err != nil {
		t.Fatal(err)
	}
	second, err := plan.New(cfg, facts, plan.Known{}, environ)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(first, second) {
		t.Errorf("two plans of the same differ:\n%+v\n%+v", first, second)
	}
	if !reflect.DeepEqual(cfg, config.Default()) || !reflect.DeepEqual(facts, plantest.Machine()) {
		t.Error("New changed what it was given")
	}
}
