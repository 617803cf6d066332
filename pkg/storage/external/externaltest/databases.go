// Package externaltest starts the databases that podo can keep its state in, for tests.
//
// Each runs as a process of the test's, or inside it, in a folder and on a loopback
// port of its own; no service of the system is touched. A test is skipped where the
// programs are not installed: Debian's postgresql and mariadb-server-core.
package externaltest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
)

// Password is what the databases are asked for. It must not be seen anywhere.
const Password = "hush-hush"

// A Database is one that a test has to itself.
type Database struct {
	t    *testing.T
	kind string
	host string
	port int
	dir  string
	peer url.URL     // of etcd
	tls  paths.Paths // of etcd, and of those that are secured

	secured bool
	stop    func()
}

// Start starts a database of a kind: postgres, mysql, nats or etcd. It ends with the
// test.
func Start(t *testing.T, kind string) *Database { return start(t, kind, false) }

// StartSecured starts a database that takes no connection without TLS, as etcd never does,
// and whose certificate an authority of its own has signed.
func StartSecured(t *testing.T, kind string) *Database { return start(t, kind, true) }

func start(t *testing.T, kind string, secured bool) *Database {
	t.Helper()
	_, port, _ := net.SplitHostPort(freePort(t))
	n, _ := strconv.Atoi(port)
	d := newDatabase(t, kind, "127.0.0.1", n, secured)
	d.On()
	return d
}

// New makes a database that is off, for other hosts to reach. It ends with the test.
func New(t *testing.T, kind, host string, port int) *Database {
	t.Helper()
	return newDatabase(t, kind, host, port, false)
}

func newDatabase(t *testing.T, kind, host string, port int, secured bool) *Database {
	t.Helper()
	// Programs refuse to run as root, and their user must be let in.
	dir, err := os.MkdirTemp("", "podo-database-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &Database{t: t, kind: kind, host: host, port: port, dir: dir, secured: secured || kind == "etcd"}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d.prepare()
	t.Cleanup(d.Off)
	return d
}

// URL is the endpoint as a user writes it.
func (d *Database) URL() string {
	switch d.kind {
	case "postgres":
		plain := "?sslmode=disable"
		if d.secured {
			plain = ""
		}
		return fmt.Sprintf("postgres://podo:%s@%s:%d/podo%s", Password, d.host, d.port, plain)
	case "mysql":
		return fmt.Sprintf("mysql://podo:%s@tcp(%s:%d)/podo", Password, d.host, d.port)
	case "nats":
		return fmt.Sprintf("nats://podo:%s@%s:%d", Password, d.host, d.port)
	}
	return fmt.Sprintf("https://%s:%d", d.host, d.port)
}

// External is the database as a plan has it. An etcd lets in who shows a certificate.
func (d *Database) External() plan.External {
	d.t.Helper()
	e, err := config.ParseEndpoint(config.Secret(d.URL()))
	if err != nil {
		d.t.Fatal(err)
	}
	x := plan.External{Endpoint: e}
	if d.secured {
		x.CA = d.tls.CA(pki.EtcdCA).Cert
	}
	if d.kind == "etcd" {
		x.Files = d.tls.ServerLeaf("etcd-client")
	}
	return x
}

// Off ends the database at once. What it acknowledged is kept.
func (d *Database) Off() {
	if d.stop != nil {
		d.stop()
		d.stop = nil
	}
}

// On starts it, again.
func (d *Database) On() {
	d.t.Helper()
	if err := d.Up(); err != nil {
		d.t.Fatal(err)
	}
}

// Up is On for where a test may not be ended. Where it is called, in which network, is
// where the database listens.
func (d *Database) Up() error {
	var err error
	switch d.kind {
	case "postgres":
		args := []string{"-D", d.data(), "-h", d.host, "-p", strconv.Itoa(d.port), "-k", d.dir, "-c", "fsync=off"}
		if d.secured {
			args = append(args, "-c", "ssl=on", "-c", "ssl_cert_file="+d.shown().Cert, "-c", "ssl_key_file="+d.shown().Key)
		}
		err = d.run(program(d.t, "postgres"), args...)
	case "mysql":
		args := append(d.mariadb(), "--bind-address="+d.host, "--port="+strconv.Itoa(d.port), "--init-file="+filepath.Join(d.dir, "init.sql"))
		if d.secured {
			args = append(args, "--require-secure-transport=ON", "--ssl-cert="+d.shown().Cert, "--ssl-key="+d.shown().Key)
		}
		err = d.run(program(d.t, "mariadbd"), args...)
	case "nats":
		err = d.nats()
	case "etcd":
		err = d.etcd()
	}
	if err != nil {
		return err
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(d.host, strconv.Itoa(d.port)), time.Second)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(d.dir, "log"))
			return fmt.Errorf("%s does not listen: %w\n%s", d.kind, err, log)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (d *Database) data() string { return filepath.Join(d.dir, "data") }

func (d *Database) mariadb() []string {
	return []string{"--no-defaults", "--datadir=" + d.data(), "--socket=" + filepath.Join(d.dir, "s"), "--pid-file=" + filepath.Join(d.dir, "pid"), "--innodb-flush-log-at-trx-commit=2", "--skip-name-resolve"}
}

// prepare makes the database's files.
func (d *Database) prepare() {
	d.t.Helper()
	d.own(d.dir)
	if d.secured {
		d.certify()
	}
	switch d.kind {
	case "postgres":
		secret := filepath.Join(d.dir, "password")
		if err := os.WriteFile(secret, []byte(Password+"\n"), 0o644); err != nil {
			d.t.Fatal(err)
		}
		d.once(program(d.t, "initdb"), "-D", d.data(), "-U", "podo", "--pwfile", secret, "-A", "scram-sha-256", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
		hba := "host all all 0.0.0.0/0 scram-sha-256\n"
		if d.secured {
			hba = "hostssl all all 0.0.0.0/0 scram-sha-256\n"
		}
		if err := os.WriteFile(filepath.Join(d.data(), "pg_hba.conf"), []byte(hba), 0o644); err != nil {
			d.t.Fatal(err)
		}
	case "etcd":
		d.peer = url.URL{Scheme: "http", Host: freePort(d.t)}
	case "mysql":
		init := fmt.Sprintf("CREATE USER IF NOT EXISTS 'podo'@'%%' IDENTIFIED BY '%s';\nGRANT ALL ON *.* TO 'podo'@'%%';\n", Password)
		if err := os.WriteFile(filepath.Join(d.dir, "init.sql"), []byte(init), 0o644); err != nil {
			d.t.Fatal(err)
		}
		// As mariadb-install-db does, which wants more of Debian's packages.
		script := strings.NewReader("CREATE DATABASE mysql;\nUSE mysql;\n" + shared(d.t, "mysql_system_tables.sql") + shared(d.t, "mysql_performance_tables.sql") + shared(d.t, "mysql_system_tables_data.sql"))
		if err := os.Mkdir(d.data(), 0o755); err != nil {
			d.t.Fatal(err)
		}
		d.own(d.data())
		boot := d.command(program(d.t, "mariadbd"), append(d.mariadb(), "--bootstrap", "--skip-grant-tables", "--skip-networking")...)
		boot.Stdin = script
		if out, err := boot.CombinedOutput(); err != nil {
			d.t.Fatalf("mariadbd --bootstrap: %v\n%s", err, out)
		}
	}
}

// certify makes the authority, and what it has signed.
func (d *Database) certify() {
	d.t.Helper()
	d.tls = paths.Paths{Data: filepath.Join(d.dir, "tls")}
	here := []netip.Addr{netip.MustParseAddr(d.host)}
	names := pki.Names{Node: "etcd", NodeIPs: here, ServiceIPs: here, ClusterDomain: "cluster.local", Etcd: true}
	if _, _, err := pki.Ensure(d.tls, pki.Table(names), time.Now); err != nil {
		d.t.Fatal(err)
	}
	from, to := d.tls.ServerLeaf("etcd-server"), d.shown()
	for source, copied := range map[string]string{from.Cert: to.Cert, from.Key: to.Key} {
		text, err := os.ReadFile(source)
		if err != nil {
			d.t.Fatal(err)
		}
		if err := os.WriteFile(copied, text, 0o600); err != nil {
			d.t.Fatal(err)
		}
		d.own(copied)
	}
}

// shown is what the database shows to who connects, where its user may read it.
func (d *Database) shown() paths.Pair {
	return paths.Pair{Cert: filepath.Join(d.dir, "shown.crt"), Key: filepath.Join(d.dir, "shown.key")}
}

// shared is a script that comes with MariaDB.
func shared(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("/usr/share/mysql/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text) + "\n"
}

// program finds a program of a database, or skips the test.
func program(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	found = slices.DeleteFunc(append(found, "/usr/sbin/"+name), func(p string) bool { _, err := os.Stat(p); return err != nil })
	if len(found) == 0 {
		t.Skipf("%s is not installed: needs Debian's postgresql and mariadb-server-core", name)
	}
	return found[len(found)-1]
}

// as is whom programs run as that refuse to be root.
func (d *Database) as() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		d.t.Fatal(err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		d.t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func (d *Database) own(path string) {
	if c := d.as(); c != nil {
		if err := os.Chown(path, int(c.Uid), int(c.Gid)); err != nil {
			d.t.Fatal(err)
		}
	}
}

func (d *Database) command(name string, args ...string) *exec.Cmd {
	c := exec.Command(name, args...)
	c.Dir = d.dir
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=" + d.dir}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: d.as()}
	return c
}

func (d *Database) once(name string, args ...string) {
	d.t.Helper()
	if out, err := d.command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func (d *Database) run(name string, args ...string) error {
	log, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	c := d.command(name, args...)
	if d.kind == "nats" {
		c.SysProcAttr.Credential = nil
		c.Env = append(c.Env, strings.Join([]string{natsVar + "=" + d.host, strconv.Itoa(d.port), d.data(), d.proof()}, "|"))
	}
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		return err
	}
	d.stop = func() {
		if d.kind == "postgres" {
			c.Process.Signal(syscall.SIGQUIT) // it ends its children then, and nothing else
		} else {
			c.Process.Kill()
		}
		late := time.AfterFunc(10*time.Second, func() { c.Process.Kill() })
		defer late.Stop()
		c.Wait()
	}
	return nil
}

// natsVar makes a test binary a NATS server; see Main.
const natsVar = "PODO_TEST_NATS"

// Main is called first in the TestMain of a package that uses NATS: the test binary
// itself is its server.
func Main() {
	place := os.Getenv(natsVar)
	if place == "" {
		return
	}
	parts := strings.Split(place, "|")
	port, err := strconv.Atoi(parts[1])
	if err != nil {
		panic(err)
	}
	o := &natsserver.Options{
		Host: parts[0], Port: port, JetStream: true, StoreDir: parts[2], NoSigs: true, NoLog: true,
		Username: "podo", Password: Password,
	}
	if folder := parts[3]; folder != "" {
		shown := (&Database{dir: folder}).shown()
		if o.TLSConfig, err = natsserver.GenTLSConfig(&natsserver.TLSConfigOpts{CertFile: shown.Cert, KeyFile: shown.Key}); err != nil {
			panic(err)
		}
	}
	s, err := natsserver.NewServer(o)
	if err != nil {
		panic(err)
	}
	s.Start()
	s.WaitForShutdown()
}

// proof is the folder of what NATS is to show, or nothing.
func (d *Database) proof() string {
	if d.secured {
		return d.dir
	}
	return ""
}

func (d *Database) nats() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return d.run(self)
}

func (d *Database) etcd() error {
	at := url.URL{Scheme: "https", Host: net.JoinHostPort(d.host, strconv.Itoa(d.port))}
	c := embed.NewConfig()
	c.Dir, c.LogLevel = d.data(), "fatal"
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{at}, []url.URL{at}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{d.peer}, []url.URL{d.peer}
	shown := d.shown()
	c.ClientTLSInfo = transport.TLSInfo{CertFile: shown.Cert, KeyFile: shown.Key, TrustedCAFile: d.tls.CA(pki.EtcdCA).Cert, ClientCertAuth: true}
	c.InitialCluster = c.Name + "=" + d.peer.String()
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	d.stop = e.Close
	select {
	case <-e.Server.ReadyNotify():
		return nil
	case <-time.After(30 * time.Second):
		return errors.New("etcd is not ready")
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
