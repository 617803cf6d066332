package join

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/token"
)

// status is what a path answers to a certificate.
func (c *cluster) status(path string, cert tls.Certificate) int {
	c.t.Helper()
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}}}
	defer hc.CloseIdleConnections()
	res, err := hc.Get(c.srv.URL + path)
	if err != nil {
		c.t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}

func (j *Joiner) leaf(t *testing.T, name string) tls.Certificate {
	t.Helper()
	files := j.Paths.AgentLeaf(name)
	cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCertificatesEndWithTheName(t *testing.T) {
	c := newCluster(t)
	first, other := c.join("n1", c.agentToken()), c.join("n2", c.agentToken())
	names := []string{"kubelet", "podo-node", "kube-proxy"}
	for _, name := range names {
		if got := c.status("/api", first.leaf(t, name)); got != http.StatusTeapot {
			t.Errorf("%s of a member: %d", name, got)
		}
	}
	rebuilt := c.join("n1", c.bootstrap(Bootstrap{Once: true, Replaces: "n1"}))
	for _, name := range names {
		if got := c.status("/api", first.leaf(t, name)); got != http.StatusUnauthorized {
			t.Errorf("%s of the machine that was replaced: %d", name, got)
		}
		for _, j := range []*Joiner{rebuilt, other} {
			if got := c.status("/api", j.leaf(t, name)); got != http.StatusTeapot {
				t.Errorf("%s of another machine: %d", name, got)
			}
		}
	}
	if got := c.status(PathTunnel, first.leaf(t, "kubelet")); got != http.StatusUnauthorized {
		t.Errorf("tunnel of the machine that was replaced: %d", got)
	}
	files := first.Paths.AgentLeaf("kubelet")
	client, err := kubernetes.NewForConfig(&rest.Config{Host: c.srv.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true, CertFile: files.Cert, KeyFile: files.Key}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{}); !apierrors.IsUnauthorized(err) || !strings.Contains(err.Error(), "--token") {
		t.Errorf("its kubelet is told: %v", err)
	}
	// It may still come back as somebody else.
	first.Name, first.Token = "n3", c.whole(token.Token{User: token.Agent, Password: agentPassword})
	first.must(t)
	if got := c.status("/api", first.leaf(t, "kubelet")); got != http.StatusTeapot {
		t.Errorf("kubelet of the machine that joined again: %d", got)
	}
}

func TestOwnersThatAreKnownAreNotLookedUp(t *testing.T) {
	c := newCluster(t)
	j := c.join("n1", c.agentToken())
	key, err := c.records.Identity(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.owners.informer.GetIndexer().Add(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "n1" + identitySuffix}, Data: map[string][]byte{identityKey: key},
	}); err != nil {
		t.Fatal(err)
	}
	stranger := c.issue(pki.Leaf{Name: "kubelet", CA: pki.ClientCA, CN: "system:node:n1", Holder: holder([]byte("x"))}, time.Now())
	c.api.away.Store(true)
	if got := c.status("/api", j.leaf(t, "kubelet")); got != http.StatusTeapot {
		t.Errorf("an owner that is known: %d", got)
	}
	if got := c.status("/api", stranger); got != http.StatusServiceUnavailable {
		t.Errorf("an owner that is not, while the datastore is away: %d", got)
	}
	c.starting.Store(true)
	if got := c.status("/api", j.leaf(t, "kubelet")); got != http.StatusServiceUnavailable {
		t.Errorf("while the server starts: %d", got)
	}
	if got := c.status("/api", c.issue(pki.Leaf{Name: "admin", CA: pki.ClientCA, CN: "system:admin"}, time.Now())); got != http.StatusTeapot {
		t.Errorf("a certificate that names no holder: %d", got)
	}
}

func TestWhatGoesOnEndsWithTheName(t *testing.T) {
	c := newCluster(t)
	own := func(name, key string) *corev1.Secret {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name + identitySuffix}, Data: map[string][]byte{identityKey: []byte(key)}}
		if err := c.owners.informer.GetIndexer().Update(s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	old, other := own("n1", "old"), own("n2", "other")
	watch, done := c.owners.while(t.Context(), holder([]byte("old")))
	defer done()
	apart, done := c.owners.while(t.Context(), holder([]byte("other")))
	defer done()
	c.owners.lost(old) // changed, and still its own
	if watch.Err() != nil {
		t.Error("it ended though the name is its holder's")
	}
	own("n1", "new")
	c.owners.lost(old)
	if watch.Err() == nil {
		t.Error("it goes on though the name is another's")
	}
	if apart.Err() != nil {
		t.Error("what another holder asks for ended too")
	}
	if err := c.owners.informer.GetIndexer().Delete(other); err != nil {
		t.Fatal(err)
	}
	c.owners.lost(cache.DeletedFinalStateUnknown{Obj: other})
	if apart.Err() == nil {
		t.Error("it goes on though nobody owns the name")
	}
}

func TestLookupsOfOwnersAreLimited(t *testing.T) {
	c := newCluster(t)
	stranger := c.issue(pki.Leaf{Name: "kubelet", CA: pki.ClientCA, CN: "system:node:n1", Holder: holder([]byte("x"))}, time.Now())
	for range burst + 10*perSecond {
		if c.status("/api", stranger) == http.StatusTooManyRequests {
			return
		}
	}
	t.Error("no request was one too many")
}
