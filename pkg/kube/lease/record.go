package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// patience is how long a write may take before it is tried again.
const patience = 2500 * time.Millisecond

var (
	errHeld  = errors.New("held by another process")
	errTaken = errors.New("taken over")
)

// record is the Lease object as this process knows it.
type record struct {
	leases   coordination.LeaseInterface
	name, me string

	last coordinationv1.Lease // as last read or written; one without a version does not exist
	seen time.Time            // when last became what it is
}

// holder is who has the lease, or empty.
func (r *record) holder() string {
	if id := r.last.Spec.HolderIdentity; id != nil {
		return *id
	}
	return ""
}

// left is how long another's lease is still to be respected.
func (r *record) left() time.Duration {
	good := lasts
	if s := r.last.Spec.LeaseDurationSeconds; s != nil {
		good = max(good, time.Duration(*s)*time.Second) // another version may hold it for longer
	}
	return good - time.Since(r.seen)
}

// take makes the lease this process's own, or returns errHeld. It returns when it
// sent the request that did so.
func (r *record) take(ctx context.Context) (sent time.Time, err error) {
	// Version 0 is answered from memory. It may lag, and then the write fails.
	if err := r.read(ctx, "0"); err != nil {
		return time.Time{}, err
	}
	if h := r.holder(); h != "" && h != r.me && r.left() > 0 {
		return time.Time{}, errHeld
	}
	// A write that was begun is seen through: whether it was done matters to others.
	return r.write(context.WithoutCancel(ctx), r.me)
}

// rewrite writes the lease that this process holds, with holder in its place. An
// object that is not as it was left may have been changed by a request of this
// process whose answer was lost. errTaken says that it was not.
func (r *record) rewrite(ctx context.Context, holder string) (sent time.Time, err error) {
	sent, err = r.write(ctx, holder)
	if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) {
		return sent, err
	}
	if err := r.read(ctx, ""); err != nil {
		return time.Time{}, err
	}
	if h := r.holder(); h != "" && h != r.me {
		return time.Time{}, fmt.Errorf("%w by %s", errTaken, h)
	}
	return r.write(ctx, holder)
}

// read fetches the object. Of one that somebody deleted, the spec is still respected
// for as long as it lasts: who holds it will put it back.
func (r *record) read(ctx context.Context, version string) error {
	got, err := r.leases.Get(ctx, r.name, metav1.GetOptions{ResourceVersion: version})
	switch {
	case apierrors.IsNotFound(err):
		got = &coordinationv1.Lease{Spec: r.last.Spec}
		got.Name = r.name
	case err != nil:
		return err
	}
	r.note(got)
	return nil
}

// note takes down what the object is now, after the answer that says so.
func (r *record) note(got *coordinationv1.Lease) {
	if r.seen.IsZero() || got.ResourceVersion != r.last.ResourceVersion {
		r.seen = time.Now()
	}
	r.last = *got
}

// write makes holder the lease's holder as of now, provided that the object is as
// it was last seen.
func (r *record) write(ctx context.Context, holder string) (sent time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	sent = time.Now()
	now := metav1.NewMicroTime(sent)
	seconds := int32(lasts / time.Second)

	next := r.last.DeepCopy()
	next.Spec.RenewTime, next.Spec.LeaseDurationSeconds = &now, &seconds
	next.Spec.HolderIdentity = nil
	if holder != "" {
		next.Spec.HolderIdentity = &holder
		if holder != r.holder() {
			next.Spec.AcquireTime = &now
			next.Spec.LeaseTransitions = succeed(next.Spec.LeaseTransitions)
		}
	}
	var got *coordinationv1.Lease
	if next.ResourceVersion == "" {
		got, err = r.leases.Create(ctx, next, metav1.CreateOptions{})
	} else {
		got, err = r.leases.Update(ctx, next, metav1.UpdateOptions{})
	}
	if err != nil {
		return time.Time{}, err
	}
	r.note(got)
	return sent, nil
}

// succeed counts how often a lease has passed on.
func succeed(n *int32) *int32 {
	if n == nil {
		return new(int32)
	}
	next := *n + 1
	return &next
}
