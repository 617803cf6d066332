package server

import (
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/podo-dev/podo/pkg/storage/etcd"
)

// TestLeavers tells a story in looks at the members: the node two was deleted at its begin.
func TestLeavers(t *testing.T) {
	member := func(id, node, address string, answers bool) etcd.Member {
		return etcd.Member{ID: id, Name: node + "-01234567", Node: node, Peer: "https://" + address + ":2380", Client: "https://" + address + ":2379", Answered: answers}
	}
	const away, there = false, true
	one, two := member("1", "one", "10.0.0.1", there), func(answers bool) etcd.Member { return member("2", "two", "10.0.0.2", answers) }
	type look struct {
		at      time.Duration
		members []etcd.Member
		back    bool // the node registered before
		takes   bool
	}
	started := two(away)
	started.Client = ""
	for name, looks := range map[string][]look{
		"is away for good": {
			{at: time.Second, members: []etcd.Member{one, two(away)}},
			{at: silence, members: []etcd.Member{one, two(away)}},
			{at: silence + time.Second, members: []etcd.Member{one, two(away)}, takes: true},
		},
		"is taken out at the second try": {
			{members: []etcd.Member{one, two(away)}},
			{at: silence, members: []etcd.Member{one, two(away)}, takes: true},
			{at: silence + lookOver, members: []etcd.Member{one, two(away)}, takes: true},
			{at: silence + 2*lookOver, members: []etcd.Member{one}},
		},
		"is started anew": {
			{members: []etcd.Member{one, two(away)}},
			{at: silence / 2, members: []etcd.Member{one, two(there)}},
			{at: silence, members: []etcd.Member{one, two(away)}},
			{at: silence + silence/2, members: []etcd.Member{one, two(away)}},
			{at: 2 * silence, members: []etcd.Member{one, two(away)}, takes: true},
		},
		"is turned off later": {
			{members: []etcd.Member{one, two(there)}},
			{at: lookOut, members: []etcd.Member{one, two(away)}},
			{at: lookOut + silence, members: []etcd.Member{one, two(away)}, takes: true},
		},
		"goes on working": {
			{members: []etcd.Member{one, two(there)}},
			{at: lookOut + 1, members: []etcd.Member{one, two(there)}},
			{at: 2 * lookOut, members: []etcd.Member{one, two(away)}},
			{at: 3 * lookOut, members: []etcd.Member{one, two(away)}},
		},
		"registers again": {
			{members: []etcd.Member{one, two(away)}},
			{at: silence, members: []etcd.Member{one, two(away)}, back: true},
			{at: 2 * silence, members: []etcd.Member{one, two(away)}},
		},
		"has another name": {
			{members: []etcd.Member{one, two(away)}},
			{at: 2 * silence, members: []etcd.Member{one, two(away)}},
		},
		"joins anew": {
			{members: []etcd.Member{one, started}},
			{at: 2 * silence, members: []etcd.Member{one, started}},
		},
		"was another machine of the name": {
			{members: []etcd.Member{one, member("2", "two", "10.0.0.7", away)}},
			{at: 2 * silence, members: []etcd.Member{one, member("2", "two", "10.0.0.7", away)}},
		},
		"was an agent": {
			{members: []etcd.Member{one}},
			{at: silence, members: []etcd.Member{one, two(away)}},
			{at: 2 * silence, members: []etcd.Member{one, two(away)}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, began := newLeavers(nil, func(address string) bool { return name == "has another name" && address == "10.0.0.2" }, slog.New(slog.DiscardHandler)), time.Now()
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "two"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeHostName, Address: "two"}, {Type: corev1.NodeInternalIP, Address: "10.0.0.2"},
			}}}
			l.hear().OnDelete(cache.DeletedFinalStateUnknown{Key: "two", Obj: node})
			l.gone["two"].deleted = began
			for _, k := range looks {
				if k.back {
					l.hear().OnAdd(node, false)
				}
				due := l.due(k.members, began.Add(k.at))
				if takes := len(due) == 1 && due[0].ID == "2"; takes != k.takes || len(due) > 1 {
					t.Errorf("after %s %v are taken out, want two: %v", k.at, due, k.takes)
				}
			}
		})
	}
}
