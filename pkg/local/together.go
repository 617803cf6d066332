package local

import (
	"errors"
	"fmt"
	"sync"
)

// together does things at once.
func together(do ...func() error) error {
	errs := make([]error, len(do))
	var all sync.WaitGroup
	for i, one := range do {
		all.Go(func() { errs[i] = one() })
	}
	all.Wait()
	return errors.Join(errs...)
}

// each calls do for all of the nodes at once.
func (s Site) each(list []Node, do func(Node) error) error {
	var all []func() error
	for _, n := range list {
		all = append(all, func() error {
			if err := do(n); err != nil {
				return fmt.Errorf("node %s: %w", n.Name, err)
			}
			return nil
		})
	}
	return together(all...)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
