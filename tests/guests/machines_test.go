package guests

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const everywhere = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: $AGNHOST, args: [netexec]}
---
apiVersion: v1
kind: Service
metadata: {name: each}
spec:
  type: NodePort
  selector: {app: each}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
`

// TestTwoMachines installs a server, and an agent that joins it, whose pods talk through
// wireguard. The agent comes back after a reboot.
func TestTwoMachines(t *testing.T) {
	s := begin(t)
	server := s.guest(Spec{Name: "server", Memory: 1800})
	s.give(server, "agnhost")
	s.install(server, older, nil, "server", "--flannel-backend=wireguard-native", "--disable=traefik")
	s.ready(server, "server")

	agent := s.guest(Spec{Name: "agent", Memory: 1300})
	s.give(agent, "agnhost")
	began := time.Now()
	s.install(agent, older, []string{"PODO_SERVER=https://" + server.IP() + ":6443", "PODO_TOKEN=" + s.run(server, "podo", "token", "create")})
	s.ready(server, "agent")
	t.Logf("the agent was Ready %.0fs after install.sh began", time.Since(began).Seconds())
	if unit := s.run(agent, "systemctl", "is-active", "podo-agent"); unit != "active" {
		t.Errorf("podo-agent.service is %s", unit)
	}
	s.apply(server, everywhere)
	s.running(server, "app=each", 2)

	t.Run("wireguard", func(t *testing.T) { encrypted(s.in(t), server, agent) })
	t.Run("the agent reboots", func(t *testing.T) {
		s := s.in(t)
		before := s.run(agent, "cat", "/proc/sys/kernel/random/boot_id")
		agent.Off()
		// Its node stays Ready for the time that a lease lasts.
		s.within(2*time.Minute, "the agent is missed", func() error {
			out, err := s.try(server, "", "get", "node", "agent", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
			if err == nil && out == "True" {
				err = fmt.Errorf("Ready is %q", out)
			}
			return err
		})
		began := time.Now()
		agent.On()
		s.ready(server, "agent")
		ready := time.Since(began)
		s.running(server, "app=each", 2)
		s.Logf("Ready %.0fs, and its pod %.0fs after the machine was started", ready.Seconds(), time.Since(began).Seconds())
		if after := s.run(agent, "cat", "/proc/sys/kernel/random/boot_id"); after == before {
			s.Errorf("it is the boot of before: %s", after)
		}
		s.within(time.Minute, "pods talk again", func() error { return talk(s, server, "again") })
	})
}

// talk has the pod of the server ask that of the agent to say a word.
func talk(s *scene, server *Guest, word string) error {
	found, err := s.pods(server, "app=each")
	if err != nil {
		return err
	}
	var from, to string
	for _, p := range found {
		if p.Spec.NodeName == server.Name() {
			from = p.Metadata.Name
		} else {
			to = p.Status.PodIP
		}
	}
	out, err := s.try(server, "", "exec", from, "--", "timeout", "10", "wget", "-q", "-O-", fmt.Sprintf("http://%s:8080/echo?msg=%s", to, word))
	if err == nil && out != word {
		err = fmt.Errorf("it says %q, want %q", out, word)
	}
	return err
}

// encrypted reads along between the machines.
func encrypted(s *scene, server, agent *Guest) {
	const secret, plain = "nobody-reads-this-word", "anybody-reads-this-word"
	var packets, secrets, plains atomic.Int32
	stop := s.listen(func(frame []byte) {
		// Ethernet, IPv4 without options, UDP.
		if len(frame) > 42 && frame[12] == 8 && frame[13] == 0 && frame[23] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(frame[36:]) == 51820 {
			packets.Add(1)
		}
		if bytes.Contains(frame, []byte(secret)) {
			secrets.Add(1)
		}
		if bytes.Contains(frame, []byte(plain)) {
			plains.Add(1)
		}
	})
	s.within(time.Minute, "pods talk", func() error { return talk(s, server, secret) })
	// So that it is known that what is plain is seen.
	if _, err := s.get(agent, "30080", "/echo?msg="+plain); err != nil {
		s.Error(err)
	}
	stop()
	if packets.Load() == 0 || secrets.Load() != 0 || plains.Load() == 0 {
		s.Errorf("%d packets of wireguard's, %d with the secret word and %d with the other, want some, none and some", packets.Load(), secrets.Load(), plains.Load())
	}
	if links := s.run(agent, "ip", "-o", "link", "show", "type", "wireguard"); !strings.Contains(links, "flannel-wg") {
		s.Errorf("links of the agent's: %s", links)
	}
	s.Logf("%d packets of wireguard's", packets.Load())
}

// listen hands every frame at the switch to see, until what it returns is called.
func (s *scene) listen(see func([]byte)) (stop func()) {
	s.Helper()
	every := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	var socket int
	if err := s.net.In(func() (err error) {
		if socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(every)); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	}); err != nil {
		s.Fatalf("listen at the switch: %v", err)
	}
	var ended atomic.Bool
	var wait sync.WaitGroup
	wait.Go(func() {
		frame := make([]byte, 1<<16)
		for !ended.Load() {
			if n, _, err := unix.Recvfrom(socket, frame, 0); err == nil {
				see(frame[:n])
			}
		}
	})
	return func() {
		ended.Store(true)
		wait.Wait()
		_ = unix.Close(socket)
	}
}
