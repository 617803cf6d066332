package cluster

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// leastOfThroughput is how much of what the way to the pod itself carries one through a
// service has to carry. A connection may take longer by mostLatency: which processors wake
// up makes more of a difference than the way does.
const leastOfThroughput = 0.5

// TestWaysToAPod_alone: connections to a pod from another node take little longer through
// a ClusterIP, a NodePort and a LoadBalancer than straight to the pod, and carry as much.
func TestWaysToAPod_alone(t *testing.T) {
	s := alone(t)
	// Its root is that of the image, so that its own program can be fetched, some 60 MB.
	server, agent := s.webOfServer("test-webserver", "--port=8080")
	s.apply(server, `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 8000, targetPort: 8080}]}
`)
	_, pod := s.podOn(server, server, "web")
	s.published(server, 30*time.Second, "web", server, agent)
	of := strings.Fields(s.kubectl(server, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP} {.spec.ports[0].nodePort}"))
	ways := []struct{ name, address string }{
		{"the pod", net.JoinHostPort(pod, "8080")},
		{"ClusterIP", net.JoinHostPort(of[0], "8000")},
		{"NodePort", net.JoinHostPort(server.IP(), of[1])},
		{"LoadBalancer", net.JoinHostPort(server.IP(), "8000")},
	}
	latency, throughput := map[string]time.Duration{}, map[string]float64{}
	for _, w := range ways {
		s.connects(agent, w.address, 30*time.Second)
	}
	// In turn, so that a moment that is slow is slow for all.
	const rounds = 3
	for range rounds {
		for _, w := range ways {
			median, _ := s.latency(agent, w.address)
			if was := latency[w.name]; was == 0 || median < was {
				latency[w.name] = median
			}
			throughput[w.name] = max(throughput[w.name], s.throughput(agent, w.address, 2*time.Second))
		}
	}
	straight := ways[0].name
	for _, w := range ways {
		s.figure("connection through "+w.name+", median", float64(latency[w.name])/float64(time.Millisecond), "ms")
		s.figure("throughput through "+w.name, throughput[w.name], "MB/s")
		t.Logf("%-12s %s, %.0f MB/s", w.name, latency[w.name], throughput[w.name])
		if latency[w.name]-latency[straight] > mostLatency {
			t.Errorf("a connection through %s takes %s, one to the pod %s", w.name, latency[w.name], latency[straight])
		}
		if throughput[w.name] < leastOfThroughput*throughput[straight] {
			t.Errorf("%s carries %.0f MB/s, the pod %.0f", w.name, throughput[w.name], throughput[straight])
		}
	}
}

// throughput is what comes through one connection in a time, in MB/s.
func (s *scene) throughput(from *hosts.Host, address string, span time.Duration) float64 {
	s.Helper()
	transport := &http.Transport{DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
		return from.Dial(network, address, time.Second)
	}}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: 30 * time.Second}
	began, total := time.Now(), int64(0)
	for time.Since(began) < span {
		n, err := fetch(&client, "http://"+address+"/agnhost")
		if err != nil {
			s.Fatal(err)
		}
		total += n
	}
	return float64(total) / 1e6 / time.Since(began).Seconds()
}

func fetch(client *http.Client, url string) (int64, error) {
	res, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s answers %s", url, res.Status)
	}
	return io.Copy(io.Discard, res.Body)
}
