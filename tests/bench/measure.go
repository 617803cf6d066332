package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long anything may take that is waited for.
const patience = 5 * time.Minute

// measure is one run of one product.
type measure struct {
	options
	product product
	logs    string

	running chan error // of the product, while it runs
	stop    func()
}

// run measures and removes every trace of the product afterwards, whatever happened.
func (m *measure) run(ctx context.Context) (r result, err error) {
	defer func() {
		err = errors.Join(err, m.halt(), m.product.remove(context.WithoutCancel(ctx)))
	}()
	if err := m.product.prepare(ctx); err != nil {
		return r, err
	}
	if err := warm(m.product.programs...); err != nil {
		return r, err
	}
	unix.Sync() // nobody's first write waits for those of another
	r = result{Product: m.product.name, Load: loadAverage(), Figures: map[string]float64{}}
	bytes, err := m.product.size()
	if err != nil {
		return r, err
	}
	r.Figures[size] = float64(bytes) / 1e6

	node, err := m.cold(ctx, r.Figures)
	if err != nil {
		return r, err
	}
	if err := m.idle(ctx, r.Figures); err != nil {
		return r, err
	}
	if err := m.warm(ctx, node, r.Figures); err != nil {
		return r, err
	}
	if m.pods == 0 {
		return r, nil
	}
	return r, m.crowd(ctx, r.Figures)
}

// begin starts the product and returns when that was, and a context that ends when
// the product does.
func (m *measure) begin(ctx context.Context) (context.Context, func(), time.Time, error) {
	component, err := m.product.component(m.logs)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	// It is stopped by halt alone, in its own order, also when ctx ends.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	watched, give := context.WithCancelCause(ctx)
	late, cancel := context.WithTimeoutCause(watched, patience, fmt.Errorf("not done within %s", patience))
	running := make(chan error, 1)
	m.running, m.stop = running, stop
	began := time.Now()
	go func() {
		err := component.Run(life, func() {})
		give(fmt.Errorf("%s ended: %w", m.product.name, errors.Join(err, errEnded)))
		running <- err
	}()
	return late, cancel, began, nil
}

var errEnded = errors.New("it was not told to")

// halt stops the product and waits for its end.
func (m *measure) halt() error {
	if m.running == nil {
		return nil
	}
	m.stop()
	err := <-m.running
	m.running = nil
	return err
}

// cold times a start from nothing.
func (m *measure) cold(ctx context.Context, f map[string]float64) (node string, err error) {
	ctx, cancel, began, err := m.begin(ctx)
	if err != nil {
		return "", err
	}
	defer cancel()
	since := func() float64 { return time.Since(began).Seconds() }
	if err := exists(ctx, m.product.kubeconfig); err != nil {
		return "", err
	}
	c, err := newCluster(m.product.kubeconfig)
	if err != nil {
		return "", err
	}
	// A node may be ready before the last of the API server's own checks is.
	var apiTime, nodeTime, podTime float64
	var spent usage
	err = together(
		func() (err error) {
			err = answers(ctx, m.product.kubeconfig)
			apiTime = since()
			return err
		},
		func() (err error) {
			node, err = c.nodeReady(ctx)
			nodeTime = since()
			return err
		},
		func() (err error) {
			if err = c.firstPod(ctx); err != nil {
				return err
			}
			podTime = since()
			spent, err = used(m.product.owns)
			return err
		},
	)
	if err != nil {
		return "", err
	}
	f[apiReady], f[nodeReady], f[podRuns], f[cpuToPod] = apiTime, nodeTime, podTime, spent.cpu.Seconds()
	if m.product.noDNS {
		return node, nil
	}
	if err := c.available(ctx, "kube-system", "coredns"); err != nil {
		return "", err
	}
	f[dnsReady] = since()
	return node, nil
}

// exists waits for a file.
func exists(ctx context.Context, path string) error {
	for {
		_, err := os.Stat(path)
		if err == nil {
			return nil
		}
		if cause := sleep(ctx, tick); cause != nil {
			return errors.Join(cause, err)
		}
	}
}

func together(work ...func() error) error {
	errs := make([]error, len(work))
	var group sync.WaitGroup
	for i, do := range work {
		group.Go(func() { errs[i] = do() })
	}
	group.Wait()
	return errors.Join(errs...)
}

// idle watches the settled product.
func (m *measure) idle(ctx context.Context, f map[string]float64) error {
	if err := m.rest(ctx, m.settle); err != nil {
		return err
	}
	before, err := used(m.product.owns)
	if err != nil {
		return err
	}
	podsBefore, err := used(inPod)
	if err != nil {
		return err
	}
	began := time.Now()
	const samples = 6
	var sum memory
	var pods int64
	for range samples {
		if err := m.rest(ctx, m.window/samples); err != nil {
			return err
		}
		now, err := held(m.product.owns)
		if err != nil {
			return err
		}
		inPods, err := held(inPod)
		if err != nil {
			return err
		}
		sum.pss += now.pss
		sum.anonymous += now.anonymous
		pods += inPods.pss
	}
	after, err := used(m.product.owns)
	if err != nil {
		return err
	}
	podsAfter, err := used(inPod)
	if err != nil {
		return err
	}
	passed := time.Since(began).Seconds()
	f[pss] = float64(sum.pss) / samples / (1 << 20)
	f[anonymous] = float64(sum.anonymous) / samples / (1 << 20)
	f[podsPSS] = float64(pods) / samples / (1 << 20)
	f[idleCPU] = 100 * (after.cpu - before.cpu).Seconds() / passed
	f[podsCPU] = 100 * (podsAfter.cpu - podsBefore.cpu).Seconds() / passed
	f[written] = float64(after.written-before.written) / passed / 1000
	return nil
}

// rest waits, unless the product ends.
func (m *measure) rest(ctx context.Context, d time.Duration) error {
	select {
	case err := <-m.running:
		m.running = nil
		return fmt.Errorf("%s ended: %w", m.product.name, errors.Join(err, errEnded))
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// warm times a stop and a start over the same data, which must not touch the pods.
func (m *measure) warm(ctx context.Context, node string, f map[string]float64) error {
	c, err := newCluster(m.product.kubeconfig)
	if err != nil {
		return err
	}
	before, err := c.container(ctx)
	if err != nil {
		return err
	}
	told := time.Now()
	if err := m.halt(); err != nil {
		return err
	}
	f[stopped] = time.Since(told).Seconds()

	ctx, cancel, began, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	if c, err = newCluster(m.product.kubeconfig); err != nil {
		return err
	}
	var apiTime, nodeTime float64
	err = together(
		func() (err error) {
			err = answers(ctx, m.product.kubeconfig)
			apiTime = time.Since(began).Seconds()
			return err
		},
		func() (err error) {
			err = c.leaseRenewed(ctx, node, began)
			nodeTime = time.Since(began).Seconds()
			return err
		},
	)
	if err != nil {
		return err
	}
	f[apiAgain], f[nodeAgain] = apiTime, nodeTime
	after, err := c.container(ctx)
	if err == nil && after != before {
		err = fmt.Errorf("the restart changed the first pod: was %s, is %s", before, after)
	}
	return err
}

// crowd times a scale-up, once the restart has settled.
func (m *measure) crowd(ctx context.Context, f map[string]float64) error {
	if err := m.rest(ctx, 10*time.Second); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not done within %s", patience))
	defer cancel()
	c, err := newCluster(m.product.kubeconfig)
	if err != nil {
		return err
	}
	before, err := used(m.product.owns)
	if err != nil {
		return err
	}
	took, err := c.scaleUp(ctx, m.pods)
	if err != nil {
		return err
	}
	after, err := used(m.product.owns)
	f[scaleUp], f[cpuToScale] = took.Seconds(), (after.cpu - before.cpu).Seconds()
	return err
}
