package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// bare is podo without any battery.
const bare = "none"

// batteries are podos of which each has one battery, and one that has none.
func batteries(exe, home string, o options) []product {
	all := []string{"coredns", "local-storage", "metrics-server", "network-policy", "servicelb", "helm", "traefik"}
	var out []product
	for _, name := range append([]string{bare}, all...) {
		var without []string
		with := o
		with.args = nil
		for _, other := range all {
			switch {
			case other == name:
			case other == "helm":
				with.args = append(with.args, "--disable-helm-controller")
			default:
				without = append(without, other)
			}
		}
		with.args = append(with.args, "--disable="+strings.Join(without, ","))
		p := newPodo(exe, home, with)
		p.name, p.noDNS = name, name != "coredns"
		out = append(out, p)
	}
	return out
}

// costs prints what each battery takes at rest: the median of its podo, and how far that
// is from the one without any.
func (r *report) costs(w io.Writer, names []product) error {
	summary := r.summary()
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "battery\tmemory (PSS), MiB\tmore\tof its pods, MiB\tCPU, % of one core\tmore\tof its pods, %\tnode Ready, s")
	for _, p := range names {
		of := func(figure string) spread { return summary[figure][p.name] }
		more := func(figure string) string {
			if p.name == bare || of(figure).N == 0 {
				return "-"
			}
			return fmt.Sprintf("%+.2f", of(figure).Median-summary[figure][bare].Median)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.name, of(pss), more(pss), more(podsPSS), of(idleCPU), more(idleCPU), more(podsCPU), of(nodeReady))
	}
	return t.Flush()
}
