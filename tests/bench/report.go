package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/version"
)

// The figures, by the names they have in JSON.
const (
	apiReady   = "api_ready_seconds"
	nodeReady  = "node_ready_seconds"
	podRuns    = "first_pod_seconds"
	cpuToPod   = "cpu_until_first_pod_seconds"
	dnsReady   = "dns_available_seconds"
	pss        = "idle_pss_mib"
	podsPSS    = "idle_pods_pss_mib"
	anonymous  = "idle_anonymous_mib"
	idleCPU    = "idle_cpu_percent"
	podsCPU    = "idle_pods_cpu_percent"
	written    = "idle_written_kb_per_second"
	size       = "size_mb"
	stopped    = "stop_seconds"
	apiAgain   = "restart_api_ready_seconds"
	nodeAgain  = "restart_node_ready_seconds"
	scaleUp    = "scale_up_seconds"
	cpuToScale = "cpu_for_scale_up_seconds"
)

// lines are the rows of the table, in order.
func lines(pods int) [][2]string {
	return [][2]string{
		{apiReady, "cold start: API ready, s"},
		{nodeReady, "cold start: node Ready, s"},
		{podRuns, "cold start: first pod Running, s"},
		{cpuToPod, "CPU spent until then, s"},
		{dnsReady, "cold start: DNS available, s"},
		{pss, "idle: memory (PSS), MiB"},
		{anonymous, "idle: anonymous memory, MiB"},
		{idleCPU, "idle: CPU, % of one core"},
		{written, "idle: written to disk, kB/s"},
		{stopped, fmt.Sprintf("stop, s (killed after %.0f)", grace.Seconds())},
		{apiAgain, "restart: API ready, s"},
		{nodeAgain, "restart: node Ready, s"},
		{scaleUp, fmt.Sprintf("scale-up to %d pods, s", pods)},
		{cpuToScale, "CPU spent on that, s"},
		{size, "size, MB"},
	}
}

// A report is everything that was measured.
type report struct {
	Machine machine                      `json:"machine"`
	Settle  float64                      `json:"settle_seconds"`
	Window  float64                      `json:"window_seconds"`
	Pods    int                          `json:"scale_up_pods"`
	Runs    []result                     `json:"runs"`
	Summary map[string]map[string]spread `json:"summary"` // by figure and product
}

type machine struct {
	CPUs       int    `json:"cpus"`
	MemoryMB   uint64 `json:"memory_mb"`
	Kernel     string `json:"kernel"`
	Cgroup     string `json:"cgroup"`
	Podo       string `json:"podo"`
	Kubernetes string `json:"kubernetes"`
}

func describe(f host.Facts) machine {
	return machine{
		CPUs: f.CPUs, MemoryMB: uint64(f.Memory.Total) / 1e6, Kernel: f.Kernel.Release, Cgroup: fmt.Sprint(f.Cgroup.Mode),
		Podo: version.Podo(), Kubernetes: version.Kubernetes(),
	}
}

// A result is one run.
type result struct {
	Product string             `json:"product"`
	Round   int                `json:"round"`
	Load    float64            `json:"load_average"` // of the machine, just before
	Figures map[string]float64 `json:"figures"`
}

func (r result) String() string {
	f := r.Figures
	return fmt.Sprintf("round %d, %s: API %.2f s, node %.2f s, pod %.2f s, %.0f MiB, %.2f %% CPU, %.1f kB/s (load before: %.2f)",
		r.Round, r.Product, f[apiReady], f[nodeReady], f[podRuns], f[pss], f[idleCPU], f[written], r.Load)
}

// A spread is what several runs came to.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
}

func spreadOf(values []float64) spread {
	v := slices.Sorted(slices.Values(values))
	if len(v) == 0 {
		return spread{}
	}
	half := len(v) / 2
	median := v[half]
	if len(v)%2 == 0 {
		median = (v[half-1] + v[half]) / 2
	}
	return spread{median, v[0], v[len(v)-1], len(v)}
}

func (s spread) String() string {
	switch {
	case s.N == 0:
		return "-"
	case s.N == 1 || number(s.Min) == number(s.Max):
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s to %s)", number(s.Median), number(s.Min), number(s.Max))
}

// number shows three digits that mean something.
func number(f float64) string {
	switch a := math.Abs(f); {
	case a >= 100:
		return fmt.Sprintf("%.0f", f)
	case a >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

func (r *report) summary() map[string]map[string]spread {
	values := map[string]map[string][]float64{}
	for _, run := range r.Runs {
		for figure, value := range run.Figures {
			if values[figure] == nil {
				values[figure] = map[string][]float64{}
			}
			values[figure][run.Product] = append(values[figure][run.Product], value)
		}
	}
	out := map[string]map[string]spread{}
	for figure, products := range values {
		out[figure] = map[string]spread{}
		for product, v := range products {
			out[figure][product] = spreadOf(v)
		}
	}
	return out
}

func (r *report) writeJSON(path string) error {
	r.Summary = r.summary()
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(text, '\n'), 0o644)
}

// table prints medians, with least and most, and how podo compares.
func (r *report) table(w io.Writer) error {
	var loads []string
	for _, run := range r.Runs {
		loads = append(loads, fmt.Sprintf("%.2f", run.Load))
	}
	fmt.Fprintf(w, "\n%d CPUs, %d MB, Linux %s, %s; load before each run: %s\n\n",
		r.Machine.CPUs, r.Machine.MemoryMB, r.Machine.Kernel, r.Machine.Cgroup, strings.Join(loads, " "))
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "median (least to most)\tpodo\tbaseline\tpodo/baseline")
	summary := r.summary()
	for _, line := range lines(r.Pods) {
		products := summary[line[0]]
		if products == nil {
			continue
		}
		podo, base, ratio := products["podo"], products["baseline"], "-"
		if podo.N > 0 && base.N > 0 && base.Median > 0 {
			ratio = fmt.Sprintf("%.2f", podo.Median/base.Median)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", line[1], podo, base, ratio)
	}
	return t.Flush()
}
