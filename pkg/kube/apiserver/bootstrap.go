package apiserver

import (
	"context"
	"errors"
	"sync"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	schedulingv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// bootstrap writes the RBAC policy and priority classes that upstream's hooks
// would write. Those wait a second before their first try (Kubernetes 1.36), and
// everything else waits for them.
func bootstrap(ctx context.Context, loopback *rest.Config) error {
	client, err := kubernetes.NewForConfig(loopback)
	if err != nil {
		return err
	}
	rbac, namespaces := client.RbacV1(), client.CoreV1().Namespaces()
	var work []func() error
	role := func(r reconciliation.RuleOwner, m reconciliation.RuleOwnerModifier) {
		work = append(work, func() error {
			_, err := (&reconciliation.ReconcileRoleOptions{Role: r, Client: m, Confirm: true}).Run()
			return err
		})
	}
	binding := func(b reconciliation.RoleBinding, m reconciliation.RoleBindingModifier) {
		work = append(work, func() error {
			_, err := (&reconciliation.ReconcileRoleBindingOptions{RoleBinding: b, Client: m, Confirm: true}).Run()
			return err
		})
	}
	for _, list := range [][]rbacv1.ClusterRole{bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()} {
		for i := range list {
			role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &list[i]},
				reconciliation.ClusterRoleModifier{Client: rbac.ClusterRoles()})
		}
	}
	for _, list := range [][]rbacv1.ClusterRoleBinding{bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()} {
		for i := range list {
			binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &list[i]},
				reconciliation.ClusterRoleBindingClientAdapter{Client: rbac.ClusterRoleBindings()})
		}
	}
	for _, list := range bootstrappolicy.NamespaceRoles() {
		for i := range list {
			role(reconciliation.RoleRuleOwner{Role: &list[i]},
				reconciliation.RoleModifier{Client: rbac, NamespaceClient: namespaces})
		}
	}
	for _, list := range bootstrappolicy.NamespaceRoleBindings() {
		for i := range list {
			binding(reconciliation.RoleBindingAdapter{RoleBinding: &list[i]},
				reconciliation.RoleBindingClientAdapter{Client: rbac, NamespaceClient: namespaces})
		}
	}
	for _, class := range schedulingv1.SystemPriorityClasses() {
		work = append(work, func() error {
			_, err := client.SchedulingV1().PriorityClasses().Create(ctx, class, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				return nil
			}
			return err
		})
	}
	return inParallel(ctx, 8, work)
}

// inParallel runs work, n at a time, each with a few retries, and joins what
// failed for good.
func inParallel(ctx context.Context, n int, work []func() error) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
		next = make(chan func() error)
	)
	for range n {
		wg.Go(func() {
			for do := range next {
				retriable := func(error) bool { return ctx.Err() == nil }
				if err := retry.OnError(retry.DefaultBackoff, retriable, do); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, do := range work {
		next <- do
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}
