package offline

import (
	"io"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// podsPath is where the kubelet reads its pods.
const podsPath = "/api/v1/pods"

// hear has memory listen to what a server says in answer to q.
func (m *Memory) hear(q question, res *http.Response) *http.Response {
	if res == nil {
		return nil
	}
	if q.kind == get && res.StatusCode == http.StatusNotFound && strings.HasPrefix(q.key, "get ") {
		m.journal.forget(q.key)
	}
	content, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";as=")
	switch {
	case q.kind == token && res.StatusCode == http.StatusCreated, q.kind == get && res.StatusCode == http.StatusOK && strings.HasPrefix(q.key, "get "):
		if content == protobuf {
			res.Body = &whole{ReadCloser: res.Body, then: func(text []byte) { m.journal.put(q.key, text) }}
		}
	case res.StatusCode != http.StatusOK:
	case q.kind == list && content == protobuf:
		res.Body = &whole{ReadCloser: res.Body, then: func(text []byte) { m.hearList(q, text) }}
	case (q.kind == watch || q.kind == follow && m.knows(q)) && content == protobufStream:
		res.Body = &tapped{ReadCloser: res.Body, ear: &ear{memory: m, q: q, initial: q.kind == watch, seen: map[string]bool{}}}
	}
	return res
}

// hearList remembers a view that came in one piece.
func (m *Memory) hearList(q question, text []byte) {
	o, err := open(text)
	if err != nil {
		return
	}
	list, items, err := split(o.Raw)
	if err != nil || list.Continue != "" {
		return
	}
	is := mark{list.ResourceVersion, o.APIVersion, strings.TrimSuffix(o.Kind, "List")}
	seen := map[string]bool{}
	for _, raw := range items {
		about, err := meta(raw)
		if err != nil {
			return
		}
		object, err := seal(is.apiVersion, is.kind, raw)
		if err != nil {
			return
		}
		key := objectKey(q.view, name(about))
		seen[key] = true
		m.journal.put(key, object)
	}
	m.complete(q, is, seen)
}

// complete takes note that a view consists of what was seen.
func (m *Memory) complete(q question, is mark, seen map[string]bool) {
	for _, key := range m.journal.keys(objectKey(q.view, "")) {
		if !seen[key] {
			m.journal.forget(key)
		}
	}
	m.journal.put(markKey(q.view), is.text())
	m.changed(q)
}

// changed takes note that objects of a view have come or gone.
func (m *Memory) changed(q question) {
	if q.path == podsPath {
		m.mu.Lock()
		m.pods = true
		m.mu.Unlock()
	}
}

// drop forgets a view.
func (m *Memory) drop(view string) {
	m.journal.forget(markKey(view))
	for _, key := range m.journal.keys(objectKey(view, "")) {
		m.journal.forget(key)
	}
}

// ear listens to one watch.
type ear struct {
	memory  *Memory
	q       question
	frames  frames
	initial bool // the view as it was still comes in
	seen    map[string]bool
	deaf    bool
}

// hear takes what the watch sends. A watch that cannot be followed makes the view
// unknown: nothing is better than what is wrong.
func (e *ear) hear(data []byte) {
	if e.deaf {
		return
	}
	if err := e.frames.add(data, e.event); err != nil {
		e.deaf = true
		e.memory.log.Warn("a watch is not understood and not remembered", "path", e.q.view, "err", err)
		e.memory.drop(e.q.view)
	}
}

func (e *ear) event(kind string, text []byte) error {
	if kind == "ERROR" {
		return nil
	}
	o, err := open(text)
	if err != nil {
		return err
	}
	about, err := meta(o.Raw)
	if err != nil {
		return err
	}
	j, key := e.memory.journal, objectKey(e.q.view, name(about))
	if !e.initial && kind != "BOOKMARK" && !e.memory.knows(e.q) {
		return nil // it has been swept away
	}
	switch kind {
	case "ADDED", "MODIFIED":
		j.put(key, text)
		if e.initial {
			e.seen[key] = true
		}
	case "DELETED":
		j.forget(key)
		delete(e.seen, key)
	case "BOOKMARK":
		if e.initial && about.Annotations[metav1.InitialEventsAnnotationKey] == "true" {
			e.memory.complete(e.q, mark{about.ResourceVersion, o.APIVersion, o.Kind}, e.seen)
			e.initial, e.seen = false, nil
		}
		return nil
	}
	if !e.initial && kind != "MODIFIED" {
		e.memory.changed(e.q)
	}
	return nil
}

// sweep forgets what no pod of this node needs any more.
func (m *Memory) sweep() {
	m.mu.Lock()
	due := m.pods
	m.pods = false
	m.mu.Unlock()
	if !due {
		return
	}
	kept, views := map[string]bool{}, m.journal.keys("view "+podsPath)
	if len(views) == 0 {
		return
	}
	for _, key := range views {
		_, objects, err := m.objects(strings.TrimPrefix(key, "view "))
		if err != nil {
			return
		}
		for _, text := range objects {
			o, err := open(text)
			if err != nil {
				return
			}
			pod := &corev1.Pod{}
			if err := pod.Unmarshal(o.Raw); err != nil {
				return
			}
			m.needs(pod, kept)
		}
	}
	for _, key := range append(m.journal.keys("view "), m.journal.keys("object ")...) {
		view := strings.Fields(key)[1]
		path, _, _ := strings.Cut(view, "?")
		switch _, _, resource, _, _ := parse(path); resource {
		case "secrets", "configmaps": // also what was heard of one in part
			if !kept[markKey(view)] {
				m.journal.forget(key)
			}
		}
	}
	for _, key := range m.journal.keys("token ") {
		if uid := strings.Fields(key)[1]; !kept["token "+uid] {
			m.journal.forget(key)
		}
	}
	for _, key := range m.journal.keys("get ") {
		if !kept[key] {
			m.journal.forget(key)
		}
	}
}

// needs adds the keys of what a pod is started with.
func (m *Memory) needs(pod *corev1.Pod, kept map[string]bool) {
	within := "/api/v1/namespaces/" + pod.Namespace + "/"
	view := func(resource string) func(string) bool {
		return func(name string) bool {
			kept[markKey(viewOf(within+resource, map[string][]string{"fieldSelector": {"metadata.name=" + name}}))] = true
			return true
		}
	}
	podutil.VisitPodSecretNames(pod, view("secrets"))
	podutil.VisitPodConfigmapNames(pod, view("configmaps"))
	kept["token "+string(pod.UID)] = true
	for _, v := range pod.Spec.Volumes {
		claim := ""
		switch {
		case v.PersistentVolumeClaim != nil:
			claim = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			claim = pod.Name + "-" + v.Name
		default:
			continue
		}
		key := getKey(within + "persistentvolumeclaims/" + claim)
		kept[key] = true
		o, err := open(m.journal.get(key))
		if err != nil {
			continue
		}
		pvc := &corev1.PersistentVolumeClaim{}
		if pvc.Unmarshal(o.Raw) == nil {
			kept[getKey("/api/v1/persistentvolumes/"+pvc.Spec.VolumeName)] = true
		}
	}
}

// whole gives a body to then once all of it has been read.
type whole struct {
	io.ReadCloser
	text []byte
	then func([]byte)
}

func (w *whole) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if w.then != nil && len(w.text) < largest {
		w.text = append(w.text, p[:n]...)
		if err == io.EOF {
			w.then(w.text)
			w.then, w.text = nil, nil
		}
	}
	return n, err
}

// tapped lets an ear hear what is read from a body.
type tapped struct {
	io.ReadCloser
	ear *ear
}

func (t *tapped) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.ear.hear(p[:n])
	return n, err
}
