package offline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// api is an API server of pods and secrets that can be turned off.
type api struct {
	t   *testing.T
	srv *httptest.Server

	mu       sync.Mutex
	off      bool
	status   int                          // of every answer, if not zero
	objects  map[string]map[string][]byte // by collection and name: envelopes
	watchers map[chan []byte][2]string    // by what they watch: collection, and a name if only one
	version  int
	asked    map[string]int
}

func newAPI(t *testing.T) *api {
	a := &api{t: t, objects: map[string]map[string][]byte{}, watchers: map[chan []byte][2]string{}, version: 10, asked: map[string]int{}}
	a.srv = httptest.NewServer(a)
	t.Cleanup(func() {
		a.srv.CloseClientConnections()
		a.srv.Close()
	})
	return a
}

func (a *api) turn(off bool) {
	a.mu.Lock()
	a.off = off
	a.mu.Unlock()
	if off {
		a.srv.CloseClientConnections()
	}
}

func versionOf(path string) string {
	base, _, _, _, _ := parse(path)
	return strings.TrimPrefix(strings.TrimPrefix(base, "/apis/"), "/api/")
}

type object interface {
	metav1.Object
	Marshal() ([]byte, error)
}

func (a *api) set(collection, kind string, o object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	o.SetResourceVersion(fmt.Sprint(a.version))
	raw, err := o.Marshal()
	if err != nil {
		a.t.Fatal(err)
	}
	text, err := seal(versionOf(collection), kind, raw)
	if err != nil {
		a.t.Fatal(err)
	}
	if a.objects[collection] == nil {
		a.objects[collection] = map[string][]byte{}
	}
	event := "ADDED"
	if a.objects[collection][o.GetName()] != nil {
		event = "MODIFIED"
	}
	a.objects[collection][o.GetName()] = text
	a.tell(collection, o.GetName(), event, text)
}

func (a *api) remove(collection, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	a.tell(collection, name, "DELETED", a.objects[collection][name])
	delete(a.objects[collection], name)
}

func (a *api) tell(collection, name, event string, text []byte) {
	f, err := frame(nil, event, text)
	if err != nil {
		a.t.Fatal(err)
	}
	for c, of := range a.watchers {
		if of[0] == collection && (of[1] == "" || of[1] == name) {
			c <- f
		}
	}
}

func (a *api) requests(path string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked[path]
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.asked[r.URL.Path]++
	status := a.status
	a.mu.Unlock()
	switch {
	case status != 0:
		w.WriteHeader(status)
	case r.URL.Path == "/readyz":
	case r.Method == http.MethodPost:
		raw, _ := (&authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: "t0ken"}}).Marshal()
		text, _ := seal("authentication.k8s.io/v1", "TokenRequest", raw)
		w.Header().Set("Content-Type", protobuf)
		w.WriteHeader(http.StatusCreated)
		w.Write(text)
	case r.URL.Query().Get("watch") != "":
		a.watch(w, r)
	default:
		_, _, _, name, _ := parse(r.URL.Path)
		a.mu.Lock()
		defer a.mu.Unlock()
		text := a.objects[strings.TrimSuffix(r.URL.Path, "/"+name)][name]
		if text == nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", protobuf)
		w.Write(text)
	}
}

func (a *api) watch(w http.ResponseWriter, r *http.Request) {
	collection := r.URL.Path
	_, _, resource, _, _ := parse(collection)
	kind := map[string]string{"pods": "Pod", "secrets": "Secret", "endpointslices": "EndpointSlice"}[resource]
	_, only, _ := strings.Cut(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	a.mu.Lock()
	var buf []byte
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, name := range slices.Sorted(maps.Keys(a.objects[collection])) {
			if only == "" || name == only {
				buf, _ = frame(buf, "ADDED", a.objects[collection][name])
			}
		}
		raw, _ := (&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			ResourceVersion: fmt.Sprint(a.version), Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
		}}).Marshal()
		end, _ := seal(versionOf(collection), kind, raw)
		buf, _ = frame(buf, "BOOKMARK", end)
	}
	events := make(chan []byte, 100)
	a.watchers[events] = [2]string{collection, only}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.watchers, events)
		a.mu.Unlock()
	}()
	w.Header().Set("Content-Type", protobufStream)
	w.Write(buf)
	for {
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case f := <-events:
			w.Write(f)
		}
	}
}

// node is what a node's process has: a memory, and a client that goes through it.
type node struct {
	*kubernetes.Clientset
	memory *Memory
	end    func() // as kill -9 does, but for what was written
}

func (a *api) node(t *testing.T, dir string) *node {
	ctx, cancel := context.WithCancel(t.Context())
	m, err := Open(ctx, dir, "kubelet", quiet())
	if err != nil {
		t.Fatal(err)
	}
	m.pace = pace{patience: 50 * time.Millisecond, silence: 2 * time.Second, again: 20 * time.Millisecond}
	c := &rest.Config{Host: a.srv.URL, QPS: -1}
	c.ContentType, c.AcceptContentTypes = protobuf, protobuf+",application/json"
	c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		a.mu.Lock()
		off := a.off
		a.mu.Unlock()
		if off {
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	m.Serve(c)
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Clientset: client, memory: m}
	n.end = sync.OnceFunc(func() {
		cancel()
		m.Close()
	})
	t.Cleanup(n.end)
	return n
}

// pods follows the node's pods as the kubelet does.
func (n *node) pods(t *testing.T) cache.SharedIndexInformer {
	return n.inform(t, "", "spec.nodeName=box", func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
		return f.Core().V1().Pods().Informer()
	})
}

func (n *node) secret(t *testing.T, name string) cache.SharedIndexInformer {
	return n.inform(t, "default", "metadata.name="+name, func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
		return f.Core().V1().Secrets().Informer()
	})
}

func (n *node) inform(t *testing.T, namespace, fields string, which func(informers.SharedInformerFactory) cache.SharedIndexInformer) cache.SharedIndexInformer {
	ctx, cancel := context.WithCancel(t.Context())
	end := n.end
	n.end = func() { cancel(); end() }
	f := informers.NewSharedInformerFactoryWithOptions(n.Clientset, 0, informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = fields }))
	i := which(f)
	f.StartWithContext(ctx)
	return i
}

func has(t *testing.T, i cache.SharedIndexInformer, want ...string) {
	t.Helper()
	var got []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if got = i.GetStore().ListKeys(); i.HasSynced() {
			slices.Sort(got)
			if slices.Equal(got, want) {
				return
			}
		}
	}
	t.Fatalf("store has %q, want %q; synced %t", got, want, i.HasSynced())
}

func pod(name string, secrets ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)}}
	for _, s := range secrets {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: s, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: s}}})
	}
	return p
}

const secrets = "/api/v1/namespaces/default/secrets"

func secret(name string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string][]byte{"k": []byte("value of " + name)}}
}

func tokenFor(p *corev1.Pod) *authenticationv1.TokenRequest {
	return &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{"api"}, BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", Name: p.Name, UID: p.UID},
	}}
}

// TestColdBootAndReturn is the life of a node whose server goes and comes back.
func TestColdBootAndReturn(t *testing.T) {
	a, dir := newAPI(t), t.TempDir()
	one, two := pod("one", "s1"), pod("two", "s2")
	a.set(podsPath, "Pod", one)
	a.set(podsPath, "Pod", two)
	a.set(secrets, "Secret", secret("s1"))
	a.set(secrets, "Secret", secret("s2"))

	n := a.node(t, dir)
	pods := n.pods(t)
	has(t, pods, "default/one", "default/two")
	has(t, n.secret(t, "s1"), "default/s1")
	if _, err := n.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", tokenFor(one), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	three := pod("three")
	a.set(podsPath, "Pod", three)
	has(t, pods, "default/one", "default/three", "default/two")
	one.Status.Phase = corev1.PodRunning
	a.set(podsPath, "Pod", one)
	a.remove(podsPath, "three")
	has(t, pods, "default/one", "default/two")
	a.turn(true)
	n.end()

	n = a.node(t, dir)
	began := time.Now()
	pods = n.pods(t)
	has(t, pods, "default/one", "default/two")
	if o, _, _ := pods.GetStore().GetByKey("default/one"); o.(*corev1.Pod).Status.Phase != corev1.PodRunning {
		t.Error("the pod is not as it was last")
	}
	s1 := n.secret(t, "s1")
	has(t, s1, "default/s1")
	if o, _, _ := s1.GetStore().GetByKey("default/s1"); string(o.(*corev1.Secret).Data["k"]) != "value of s1" {
		t.Errorf("secret: %v", o)
	}
	got, err := n.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", tokenFor(one), metav1.CreateOptions{})
	if err != nil || got.Status.Token != "t0ken" {
		t.Errorf("token: %v, %v", got, err)
	}
	if _, err := n.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", tokenFor(two), metav1.CreateOptions{}); err == nil {
		t.Error("a token that was never given")
	}
	t.Logf("all there after %s", time.Since(began).Round(time.Millisecond))

	// Nothing is asked for while nobody answers but whether somebody does.
	a.mu.Lock()
	clear(a.asked)
	a.mu.Unlock()
	a.remove(podsPath, "two")
	a.set(podsPath, "Pod", pod("four"))
	a.turn(false)
	has(t, pods, "default/four", "default/one")
	if n := a.requests(podsPath); n > 3 {
		t.Errorf("%d requests for pods", n)
	}
	a.set(podsPath, "Pod", pod("five"))
	has(t, pods, "default/five", "default/four", "default/one")
}

// TestKilled: what was read a moment ago is there, whether the process ended in order
// or not.
func TestKilled(t *testing.T) {
	a, dir := newAPI(t), t.TempDir()
	a.set(podsPath, "Pod", pod("one"))
	n := a.node(t, dir)
	has(t, n.pods(t), "default/one")
	time.Sleep(soon + 500*time.Millisecond)
	a.turn(true)
	copied := t.TempDir()
	text, err := os.ReadFile(dir + "/kubelet")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied+"/kubelet", text, 0o600); err != nil {
		t.Fatal(err)
	}
	has(t, a.node(t, copied).pods(t), "default/one")
}

// TestSecretsGoWithTheirPods: what no pod needs is no longer on the disk.
func TestSecretsGoWithTheirPods(t *testing.T) {
	a, dir := newAPI(t), t.TempDir()
	one, two := pod("one", "s1", "both"), pod("two", "s2", "both")
	for _, p := range []*corev1.Pod{one, two} {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "c", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim-" + p.Name},
		}})
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "claim-" + p.Name}}
		claim.Spec.VolumeName = "volume-" + p.Name
		a.set("/api/v1/namespaces/default/persistentvolumeclaims", "PersistentVolumeClaim", claim)
		a.set("/api/v1/persistentvolumes", "PersistentVolume", &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "volume-" + p.Name}})
	}
	a.set(podsPath, "Pod", one)
	a.set(podsPath, "Pod", two)
	n := a.node(t, dir)
	pods := n.pods(t)
	has(t, pods, "default/one", "default/two")
	for _, s := range []string{"s1", "s2", "both"} {
		a.set(secrets, "Secret", secret(s))
		has(t, n.secret(t, s), "default/"+s)
	}
	for _, p := range []*corev1.Pod{one, two} {
		if _, err := n.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", tokenFor(p), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.CoreV1().PersistentVolumeClaims("default").Get(t.Context(), "claim-"+p.Name, metav1.GetOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.CoreV1().PersistentVolumes().Get(t.Context(), "volume-"+p.Name, metav1.GetOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	n.memory.journal.flush()
	before := n.memory.journal.keys("")
	a.remove(podsPath, "one")
	has(t, pods, "default/two")
	n.memory.journal.flush()
	after := n.memory.journal.keys("")
	var gone []string
	for _, key := range before {
		if !slices.Contains(after, key) {
			gone = append(gone, strings.Join(strings.Fields(key)[:2], " "))
		}
	}
	s1 := secrets + "?fieldSelector=metadata.name%3Ds1"
	want := []string{
		"get /api/v1/namespaces/default/persistentvolumeclaims/claim-one", "get /api/v1/persistentvolumes/volume-one",
		"object " + s1, "object " + podsPath + "?fieldSelector=spec.nodeName%3Dbox", "token uid-one", "view " + s1,
	}
	if !slices.Equal(gone, want) {
		t.Errorf("forgotten:\n%s\nwant:\n%s", strings.Join(gone, "\n"), strings.Join(want, "\n"))
	}
}

// TestServerIsHeard: memory is not asked as long as a server says something, be it no.
func TestServerIsHeard(t *testing.T) {
	tests := map[string]struct {
		status int
		served bool
	}{
		"unauthorized": {401, false},
		"forbidden":    {403, false},
		"not found":    {404, false},
		"too many":     {429, false},
		"broken":       {500, false},
		"no server":    {503, true},
	}
	a, dir := newAPI(t), t.TempDir()
	claims := "/api/v1/namespaces/default/persistentvolumeclaims"
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a.mu.Lock()
			a.status = 0
			a.mu.Unlock()
			a.set(claims, "PersistentVolumeClaim", &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}})
			n := a.node(t, dir)
			ask := func() error {
				_, err := n.CoreV1().PersistentVolumeClaims("default").Get(t.Context(), "c", metav1.GetOptions{})
				return err
			}
			if err := ask(); err != nil {
				t.Fatal(err)
			}
			a.mu.Lock()
			a.status = tt.status
			a.mu.Unlock()
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			_, err := n.CoreV1().PersistentVolumeClaims("default").Get(ctx, "c", metav1.GetOptions{})
			if served := err == nil; served != tt.served {
				t.Errorf("%d: served %t, want %t: %v", tt.status, served, tt.served, err)
			}
			if tt.status == 404 && !apierrors.IsNotFound(err) {
				t.Errorf("err %v", err)
			}
		})
	}
}

// TestHalfAViewIsNone: a list that was cut off is not taken for all there is.
func TestHalfAViewIsNone(t *testing.T) {
	a, dir := newAPI(t), t.TempDir()
	n := a.node(t, dir)
	e := &ear{memory: n.memory, q: question{kind: watch, path: podsPath, view: podsPath + "?fieldSelector=spec.nodeName%3Dbox"}, initial: true, seen: map[string]bool{}}
	raw, _ := pod("one").Marshal()
	text, _ := seal("v1", "Pod", raw)
	f, _ := frame(nil, "ADDED", text)
	for _, b := range f {
		e.hear([]byte{b})
	}
	if got := n.memory.journal.keys("object "); len(got) != 1 {
		t.Errorf("objects: %q", got)
	}
	a.turn(true)
	_, err := n.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=box"})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("err %v, want that of the dial", err)
	}
}

// TestList: readers that do not stream are served as well.
func TestList(t *testing.T) {
	a, dir := newAPI(t), t.TempDir()
	a.set(podsPath, "Pod", pod("one"))
	n := a.node(t, dir)
	has(t, n.pods(t), "default/one")
	a.turn(true)
	got, err := n.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=box"})
	if err != nil || len(got.Items) != 1 || got.Items[0].Name != "one" || got.ResourceVersion != "11" {
		t.Fatalf("list: %+v, %v", got, err)
	}
	// And what is heard as a list can be asked for as a watch.
	raw, err := got.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	text, err := seal("v1", "PodList", raw)
	if err != nil {
		t.Fatal(err)
	}
	m := a.node(t, t.TempDir()).memory
	q := question{kind: list, path: podsPath, view: podsPath}
	m.hearList(q, text)
	is, objects, err := m.objects(podsPath)
	if err != nil || is != (mark{"11", "v1", "Pod"}) || len(objects) != 1 {
		t.Errorf("mark %v, %d objects, %v", is, len(objects), err)
	}
}

func TestUnderstand(t *testing.T) {
	tests := map[string]question{
		"GET /api/v1/pods?fieldSelector=spec.nodeName%3Dbox&watch=true&sendInitialEvents=true": {kind: watch, view: "/api/v1/pods?fieldSelector=spec.nodeName%3Dbox"},
		"GET /api/v1/services?limit=500&resourceVersion=0":                                     {kind: list, view: "/api/v1/services"},
		"GET /api/v1/services?continue=x":                                                      {kind: other, view: "/api/v1/services"},
		"GET /api/v1/services?watch=1&resourceVersion=7":                                       {kind: follow, view: "/api/v1/services"},
		"GET /api/v1/services?watch=1":                                                         {kind: other, view: "/api/v1/services"},
		"GET /apis/node.k8s.io/v1/runtimeclasses":                                              {kind: list, view: "/apis/node.k8s.io/v1/runtimeclasses"},
		"GET /api/v1/namespaces/default/secrets/s":                                             {kind: get, key: "object /api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Ds default/s"},
		"GET /api/v1/nodes/box":                                                                {kind: get, key: "object /api/v1/nodes?fieldSelector=metadata.name%3Dbox /box"},
		"GET /api/v1/persistentvolumes/v":                                                      {kind: get, key: "get /api/v1/persistentvolumes/v"},
		"GET /api/v1/namespaces/default/pods/p":                                                {},
		"GET /apis/storage.k8s.io/v1/csinodes/box":                                             {},
		"GET /api/v1/namespaces/default":                                                       {},
		"PATCH /api/v1/nodes/box/status":                                                       {},
		"POST /api/v1/namespaces/default/events":                                               {},
		"GET /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases":                   {},
		"GET /readyz":  {},
		"GET /version": {},
		"GET /api":     {},
		"GET /":        {},
	}
	for text, want := range tests {
		method, target, _ := strings.Cut(text, " ")
		r := httptest.NewRequest(method, target, nil)
		want.path = r.URL.Path
		if got := understand(r); got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}
