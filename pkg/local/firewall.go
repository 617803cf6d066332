package local

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Where Docker or ufw is, iptables drops what a host is to pass on, unless a rule lets it
// through. What the nodes of a cluster send each other and the outside is passed on.

// admit lets the packets of a cluster's bridge through such a firewall. Another one, or
// none, is left alone.
func (c Cluster) admit(ctx context.Context) error {
	var errs []error
	for _, r := range c.Ranges {
		program := programOf(r.Addr().Is6())
		chain, err := admitting(ctx, program)
		if err != nil || chain == "" {
			errs = append(errs, err)
			continue
		}
		for _, way := range []string{"-i", "-o"} {
			rule := []string{chain, way, c.bridge(), "-m", "comment", "--comment", alias(c.Name), "-j", "ACCEPT"}
			if _, err := tables(ctx, program, "-C", rule...); err == nil {
				continue
			}
			_, err := tables(ctx, program, "-I", rule...)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// dismiss takes such rules away again.
func dismiss(ctx context.Context, cluster string) error {
	const blank = "\x00"
	comment := alias(cluster)
	var errs []error
	for _, program := range []string{programOf(false), programOf(true)} {
		rules, err := tables(ctx, program, "-S")
		if err != nil {
			errs = append(errs, unlessAbsent(err))
			continue
		}
		for line := range strings.Lines(rules) {
			rest, ours := strings.CutPrefix(line, "-A ")
			if ours = ours && strings.Contains(line, `--comment "`+comment+`" `); !ours {
				continue
			}
			words := strings.Fields(strings.Replace(rest, `"`+comment+`"`, blank, 1))
			for i := range words {
				words[i] = strings.Replace(words[i], blank, comment, 1)
			}
			_, err := tables(ctx, program, "-D", words...)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func programOf(v6 bool) string {
	if v6 {
		return "ip6tables"
	}
	return "iptables"
}

// admitting is the chain for rules of this kind if what is passed on is dropped otherwise:
// Docker's, which keeps them where it writes its own again.
func admitting(ctx context.Context, program string) (string, error) {
	policy, err := tables(ctx, program, "-S", "FORWARD")
	if err != nil || !strings.Contains(policy, "-P FORWARD DROP") {
		return "", unlessAbsent(err)
	}
	const docker = "DOCKER-USER"
	if _, err := tables(ctx, program, "-S", docker); err == nil {
		return docker, nil
	}
	return "FORWARD", nil
}

// unlessAbsent passes over that there is no such program, or no table of its kind: an exit
// code of 4 is something else, such as a lock that others hold (iptables(8)).
func unlessAbsent(err error) error {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 4 {
		return err
	}
	return nil
}

// tables runs iptables, of the programs of this machine. It waits for others that do.
func tables(ctx context.Context, program, verb string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, program, append([]string{"-w", "10", verb}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s %s: %w: %s", program, verb, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}
