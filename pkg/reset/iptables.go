package reset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// removeIPTables clears away what kube-proxy and the CNI plugins leave when they were
// told to use iptables. Only a host that has iptables can have run them so.
func (m *machine) removeIPTables(ctx context.Context) error {
	var errs []error
	for _, family := range []string{"iptables", "ip6tables"} {
		save, err := exec.CommandContext(ctx, family+"-save").Output()
		if err != nil {
			continue // not installed, or the kernel lacks it
		}
		undo, chains := undoIPTables(string(save))
		if chains == 0 {
			continue
		}
		cmd := exec.CommandContext(ctx, family+"-restore", "--noflush")
		cmd.Stdin = strings.NewReader(undo)
		if out, err := cmd.CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("%s-restore: %w: %s", family, err, bytes.TrimSpace(out)))
			continue
		}
		m.tell("removed %s of %s", plural(chains, "chain", "chains"), family)
	}
	return errors.Join(errs...)
}

func isOurChain(name string) bool {
	for _, p := range []string{"KUBE-", "CNI-", "FLANNEL-"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// undoIPTables turns a saved rule set into the input for iptables-restore --noflush
// that deletes our chains and the rules that lead to them, and touches no other rule.
func undoIPTables(save string) (undo string, chains int) {
	var out, table strings.Builder
	var ours []string
	flush := func(head string) {
		if len(ours) > 0 {
			out.WriteString(head + "\n")
			for _, c := range ours {
				out.WriteString("-F " + c + "\n")
			}
			out.WriteString(table.String())
			for _, c := range ours {
				out.WriteString("-X " + c + "\n")
			}
			out.WriteString("COMMIT\n")
			chains += len(ours)
		}
		table.Reset()
		ours = nil
	}
	head := ""
	for line := range strings.Lines(save) {
		line = strings.TrimSpace(line)
		switch f := strings.Fields(line); {
		case len(f) == 0:
		case strings.HasPrefix(line, "*"):
			head = line
		case strings.HasPrefix(line, ":") && isOurChain(f[0][1:]):
			ours = append(ours, f[0][1:])
		case f[0] == "-A" && len(f) > 2 && !isOurChain(f[1]):
			for i, word := range f[:len(f)-1] {
				if (word == "-j" || word == "-g") && isOurChain(f[i+1]) {
					table.WriteString("-D" + strings.TrimPrefix(line, "-A") + "\n")
					break
				}
			}
		case line == "COMMIT":
			flush(head)
		}
	}
	return out.String(), chains
}
