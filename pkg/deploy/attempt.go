package deploy

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
)

// attempt makes the cluster what a manifest says, and returns what its addon is to say.
func (d *deployer) attempt(ctx context.Context, m *manifest) (addon, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a, known := d.addons.stored[m.name]
	if !known {
		a = newAddon(m.name)
	}
	a.Spec = addonSpec{File: m.file, Server: m.server}
	switch m.intent {
	case leave:
		a.Status.State = skipped
		return a, nil
	case apply:
		return d.deploy(ctx, m, a, known)
	}
	old := a.Status.Objects
	if !known {
		d.locate(m.objects)
		old = references(m.objects) // made before there were addons, or by one that was deleted
	}
	a.Status.State = removing
	var err error
	if a.Status.Objects, err = d.prune(ctx, m, old); err != nil {
		return a, err
	}
	a.Status.State, a.Status.Checksum = disabled, ""
	if m.intent == forget {
		a.Status.State = removed
	}
	return a, nil
}

// deploy applies a manifest, and then deletes what it no longer names.
func (d *deployer) deploy(ctx context.Context, m *manifest, a addon, known bool) (addon, error) {
	note := a
	a.Status.State = failed // unless it comes to something better
	if m.fault != nil {
		return a, m.fault
	}
	d.locate(m.objects)
	old, want := a.Status.Objects, references(m.objects)
	if len(want) == 0 && len(old) > 0 {
		return a, fmt.Errorf("%w%s: it names no object any more; delete the file if what it made is to go", errFinal, m.file)
	}
	for _, o := range m.objects {
		if owner := d.owner(m, refer(o)); owner != nil {
			return a, fmt.Errorf("%s, %s: %s belongs to %s already; take it out of one of the two", m.file, o.place, refer(o), owner.file)
		}
	}
	dropped := without(old, want)
	a.Status.Objects = slices.Concat(want, dropped)
	if known || !m.own() { // what the binary names cannot be forgotten
		note.Status.Objects = a.Status.Objects
		note.Status.State = cmp.Or(note.Status.State, deploying)
		if _, err := d.addons.save(ctx, note); err != nil {
			return a, err
		}
	}
	if err := d.apply(ctx, m.objects); err != nil {
		return a, fmt.Errorf("%s, %w", m.file, err)
	}
	left, err := d.prune(ctx, m, dropped)
	a.Status.Objects = slices.Concat(want, left)
	if err != nil {
		a.Status.State = removing
		return a, err
	}
	a.Status.State, a.Status.Checksum = deployed, m.sum[:12]
	return a, nil
}

// prune deletes what was made of a manifest, but for what another one names by now. It
// returns what is still there, and if anything is, why.
func (d *deployer) prune(ctx context.Context, m *manifest, refs []reference) (left []reference, err error) {
	// Others may name with a namespace what has none.
	if slices.ContainsFunc(refs, func(r reference) bool { return r.Namespace == "" }) {
		for _, o := range d.manifests {
			d.locate(o.objects)
		}
	}
	var mine, full []reference
	for _, r := range refs {
		switch {
		case d.other(m, func(o *manifest) bool { return d.wants(o, r) }) != nil:
		case r.groupKind().String() == "Namespace" && d.other(m, func(o *manifest) bool { return d.wantsIn(o, r.Name) }) != nil:
			full = append(full, r)
		default:
			mine = append(mine, r)
		}
	}
	left, err = d.remove(ctx, mine)
	if err == nil && len(left) > 0 {
		slow := slices.DeleteFunc(slices.Clone(left), func(r reference) bool { return holds(r.groupKind()) })
		if len(slow) == 0 {
			slow = left
		}
		err = fmt.Errorf("%s: waiting until %s is gone", m.file, several(slow))
	}
	if err == nil && len(full) > 0 {
		err = fmt.Errorf("%s: other files have objects in %s", m.file, several(full))
	}
	return append(left, full...), err
}

// other is a manifest other than m of which something holds.
func (d *deployer) other(m *manifest, holds func(*manifest) bool) *manifest {
	for _, name := range slices.Sorted(maps.Keys(d.manifests)) {
		if o := d.manifests[name]; name != m.name && holds(o) {
			return o
		}
	}
	return nil
}

// owner is the manifest, other than m, of which an object was made that it still names.
func (d *deployer) owner(m *manifest, r reference) *manifest {
	return d.other(m, func(o *manifest) bool { return d.wants(o, r) && d.made(o, r) })
}

// made reports whether an object was made of a manifest.
func (d *deployer) made(m *manifest, r reference) bool {
	return slices.ContainsFunc(d.addons.stored[m.name].Status.Objects, r.is)
}

// wants reports whether a manifest is to have an object. One that cannot be read wants
// what it had.
func (d *deployer) wants(m *manifest, r reference) bool {
	switch {
	case m.intent != apply && m.intent != leave:
		return false
	case m.fault != nil, m.intent == leave:
		return d.made(m, r)
	}
	return m.names(r)
}

// wantsIn reports whether a manifest is to have objects in a namespace.
func (d *deployer) wantsIn(m *manifest, namespace string) bool {
	in := func(r reference) bool { return r.Namespace == namespace && d.wants(m, r) }
	return slices.ContainsFunc(references(m.objects), in) || slices.ContainsFunc(d.addons.stored[m.name].Status.Objects, in)
}

func references(objects []object) []reference {
	var out []reference
	for _, o := range objects {
		out = append(out, refer(o))
	}
	return out
}
