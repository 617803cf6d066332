package e2e

import (
	"strings"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
)

func tokens(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: v1
kind: Pod
metadata: {name: caller}
spec:
  serviceAccountName: reader
  terminationGracePeriodSeconds: 1
  containers:
  - {name: shell, image: $BUSYBOX, command: [sleep, "100000"]}
  - {name: client, image: $AGNHOST, args: [inclusterclient, --poll-interval=1]}
`)
	s.podReady("caller")

	// The pod's own client, with what the pod is given.
	told := s.logs(30*time.Second, []string{"caller", "-c", "client"}, "authz_header=")
	if strings.Contains(told, "status=failed") {
		t.Errorf("the pod's client is refused:\n%s", told)
	}

	// The same token, used from here at the address that pods use.
	const place = "/var/run/secrets/kubernetes.io/serviceaccount/"
	token := s.sh("caller", "cat "+place+"token")
	ca := s.sh("caller", "cat "+place+"ca.crt")
	if ns := s.sh("caller", "cat "+place+"namespace"); ns != s.ns {
		t.Errorf("the pod is told the namespace %q", ns)
	}
	mine := func(token string) kubernetes.Interface {
		c, err := kubernetes.NewForConfig(&rest.Config{
			Host: "https://10.43.0.1", BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: []byte(ca)}, Timeout: 10 * time.Second,
		})
		s.ok(err)
		return c
	}
	who := "system:serviceaccount:" + s.ns + ":reader"
	self, err := mine(token).AuthenticationV1().SelfSubjectReviews().Create(s.ctx, &authv1.SelfSubjectReview{}, metav1.CreateOptions{})
	s.ok(err)
	if self.Status.UserInfo.Username != who {
		t.Errorf("the token is %s's", self.Status.UserInfo.Username)
	}

	// It may do what it was granted.
	list := func() error {
		_, err := mine(token).CoreV1().ConfigMaps(s.ns).List(s.ctx, metav1.ListOptions{})
		return err
	}
	if err := list(); !apierrors.IsForbidden(err) {
		t.Errorf("without a role, listing config maps: %v", err)
	}
	s.kubectl("create", "rolebinding", "reader", "--clusterrole=view", "--serviceaccount="+s.ns+":reader")
	s.within(10*time.Second, "the role lets it list", list)
	if _, err := mine(token).CoreV1().ConfigMaps("kube-system").List(s.ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("in another namespace: %v", err)
	}

	// A token for somebody else is for nobody else.
	req, err := s.CoreV1().ServiceAccounts(s.ns).CreateToken(s.ctx, "reader", &authv1.TokenRequest{
		Spec: authv1.TokenRequestSpec{Audiences: []string{"e2e.example.org"}, ExpirationSeconds: ptr.To(int64(600))},
	}, metav1.CreateOptions{})
	s.ok(err)
	if in := time.Until(req.Status.ExpirationTimestamp.Time); in < 9*time.Minute || in > 11*time.Minute {
		t.Errorf("a token for ten minutes ends in %s", in)
	}
	review := func(audience ...string) authv1.TokenReviewStatus {
		s.Helper()
		r, err := s.AuthenticationV1().TokenReviews().Create(s.ctx, &authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: req.Status.Token, Audiences: audience}}, metav1.CreateOptions{})
		s.ok(err)
		return r.Status
	}
	if st := review("e2e.example.org"); !st.Authenticated || st.User.Username != who {
		t.Errorf("for its audience: %+v", st)
	}
	if st := review(); st.Authenticated {
		t.Error("the API server takes a token that is for another audience")
	}
	if _, err := mine(req.Status.Token).CoreV1().ConfigMaps(s.ns).List(s.ctx, metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("using it on the API: %v", err)
	}

	// A pod's token dies with the pod.
	s.kubectl("delete", "pod", "caller")
	s.within(30*time.Second, "the dead pod's token is refused", func() error {
		err := list()
		if apierrors.IsUnauthorized(err) {
			return nil
		}
		return contains(strings.TrimSpace("answered: "+errorText(err)), "Unauthorized")
	})
}

func errorText(err error) string {
	if err == nil {
		return "no error"
	}
	return err.Error()
}
