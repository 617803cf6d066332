package netpol

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// A ruleset is what the table is to hold. One without chains is no table at all.
type ruleset struct {
	chains map[string]*chain
	sets   map[string]*set
}

// A chain is called by other chains, unless its name is base.
type chain struct {
	comment string
	rules   []rule
}

type rule struct{ text, comment string }

// base is the chain that packets come to.
const base = "forward"

// A set is a map if its elements lead to verdicts.
type set struct {
	kind     string // type of the elements
	comment  string
	interval bool
	verdicts bool
	elements map[string]string // verdict, if any, by key; the parts of a key are parted by spaces
}

func newRuleset() *ruleset {
	return &ruleset{chains: map[string]*chain{}, sets: map[string]*set{}}
}

// A table is one of the kernel's.
type table struct {
	nft     knftables.Interface
	inForce *ruleset // what the kernel has; nil: not known
}

// apply makes the table hold next.
func (t *table) apply(ctx context.Context, next *ruleset) error {
	tx := next.transaction(t.nft, t.inForce)
	if tx.NumOperations() == 0 {
		return nil
	}
	err := t.nft.Run(ctx, tx)
	if err != nil && t.inForce != nil {
		// The table was not as it was left.
		err = t.nft.Run(ctx, next.transaction(t.nft, nil))
	}
	if err != nil {
		t.inForce = nil
		return fmt.Errorf("nftables: %w", err)
	}
	t.inForce = next
	return nil
}

// transaction makes next of last, or of whatever there is if last is nil.
func (next *ruleset) transaction(nft knftables.Interface, last *ruleset) *knftables.Transaction {
	tx := nft.NewTransaction()
	table := &knftables.Table{Comment: knftables.PtrTo("podo: network policy")}
	if last == nil {
		tx.Add(table)
		tx.Delete(&knftables.Table{})
		last = newRuleset()
	}
	if len(next.chains) == 0 {
		if len(last.chains) > 0 {
			tx.Delete(&knftables.Table{})
		}
		return tx
	}
	if len(last.chains) == 0 {
		tx.Add(table)
	}
	next.declare(tx, last)
	// Elements that lead to chains go before the chains do, and come after them.
	for name, s := range sorted(last.sets) {
		if now := next.sets[name]; now != nil {
			s.each(name, tx.Delete, now)
		} else if s.verdicts {
			s.each(name, tx.Delete, nil)
		}
	}
	next.fill(tx, last)
	for name, s := range sorted(next.sets) {
		s.each(name, tx.Add, last.sets[name])
	}
	next.remove(tx, last)
	return tx
}

// declare adds the chains and sets that last lacks, empty.
func (next *ruleset) declare(tx *knftables.Transaction, last *ruleset) {
	for name, s := range sorted(next.sets) {
		if last.sets[name] == nil {
			tx.Add(s.object(name))
		}
	}
	for name, c := range sorted(next.chains) {
		if last.chains[name] != nil {
			continue
		}
		made := &knftables.Chain{Name: name}
		if c.comment != "" {
			made.Comment = knftables.PtrTo(c.comment)
		}
		if name == base {
			made.Type = knftables.PtrTo(knftables.FilterType)
			made.Hook = knftables.PtrTo(knftables.ForwardHook)
			made.Priority = knftables.PtrTo(knftables.FilterPriority)
		}
		tx.Add(made)
	}
}

// fill writes the rules of the chains that differ from last.
func (next *ruleset) fill(tx *knftables.Transaction, last *ruleset) {
	for name, c := range sorted(next.chains) {
		if old := last.chains[name]; old != nil {
			if slices.Equal(old.rules, c.rules) {
				continue
			}
			tx.Flush(&knftables.Chain{Name: name})
		}
		for _, r := range c.rules {
			made := &knftables.Rule{Chain: name, Rule: r.text}
			if r.comment != "" {
				made.Comment = knftables.PtrTo(r.comment)
			}
			tx.Add(made)
		}
	}
}

// remove deletes the chains and sets that last has and next lacks.
func (next *ruleset) remove(tx *knftables.Transaction, last *ruleset) {
	var gone []string
	for name := range sorted(last.chains) {
		if next.chains[name] == nil {
			tx.Flush(&knftables.Chain{Name: name})
			gone = append(gone, name)
		}
	}
	for _, name := range gone {
		tx.Delete(&knftables.Chain{Name: name})
	}
	for name, s := range sorted(last.sets) {
		if next.sets[name] == nil {
			tx.Delete(s.object(name))
		}
	}
}

func (s *set) object(name string) knftables.Object {
	if s.verdicts {
		return &knftables.Map{Name: name, Type: s.kind + " : verdict"}
	}
	made := &knftables.Set{Name: name, Type: s.kind}
	if s.comment != "" {
		made.Comment = knftables.PtrTo(s.comment)
	}
	if s.interval {
		made.Flags = []knftables.SetFlag{knftables.IntervalFlag}
	}
	return made
}

// each does something with every element that other does not have the same.
func (s *set) each(name string, do func(knftables.Object), other *set) {
	for key, verdict := range sorted(s.elements) {
		if other != nil {
			if same, ok := other.elements[key]; ok && same == verdict {
				continue
			}
		}
		element := &knftables.Element{Key: strings.Fields(key)}
		if s.verdicts {
			element.Map, element.Value = name, []string{verdict}
		} else {
			element.Set = name
		}
		do(element)
	}
}

// sorted yields a map in the order of its keys.
func sorted[K cmp.Ordered, V any](m map[K]V) func(yield func(K, V) bool) {
	return func(yield func(K, V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}
