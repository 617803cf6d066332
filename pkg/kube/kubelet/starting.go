package kubelet

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// starting keeps to itself what a kubelet says of its first moments: that the node is not
// ready, since it has not looked at everything yet. Said of a node whose pods run on, that
// takes these out of their Services until the kubelet speaks again, ten seconds later.
// Such a report fails after a pause, and the kubelet looks anew: it tries five times.
type starting struct {
	next http.RoundTripper
	node string
	from atomic.Int64 // when it first had something to keep, in nanoseconds since 1970
}

// moments is how long that may go on.
const moments = 30 * time.Second

// pause is how long the kubelet waits before it tries again. What it has to look at takes
// about a second once the API server answers.
const pause = 400 * time.Millisecond

var errPremature = errors.New("kept until the kubelet has looked at everything")

// premature is what such reports say: of runtime.go, errors.go, pleg/generic.go and
// volume/csi/csi_plugin.go in upstream's kubelet.
func premature() [][]byte {
	return [][]byte{
		[]byte("container runtime status check may not have completed yet"), []byte("network state unknown"),
		[]byte("pleg has yet to be successful"), []byte("CSINode is not yet initialized"), []byte("failed to initialize CSINode"),
	}
}

func (s *starting) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodPatch || req.URL.Path != "/api/v1/nodes/"+s.node+"/status" || req.Body == nil {
		return s.next.RoundTrip(req)
	}
	text, err := io.ReadAll(req.Body)
	req.Body.Close()
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(premature(), func(words []byte) bool { return bytes.Contains(text, words) }) && s.early() {
		select {
		case <-req.Context().Done():
		case <-time.After(pause):
		}
		return nil, errPremature
	}
	again := req.Clone(req.Context())
	again.Body = io.NopCloser(bytes.NewReader(text))
	return s.next.RoundTrip(again)
}

func (s *starting) early() bool {
	now := time.Now().UnixNano()
	s.from.CompareAndSwap(0, now)
	return now-s.from.Load() < int64(moments)
}
