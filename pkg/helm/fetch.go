package helm

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/Masterminds/semver/v3"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"helm.sh/helm/v4/pkg/registry"
	"helm.sh/helm/v4/pkg/repo/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

const (
	ociScheme = "oci://"

	// apiPlaceholder in the URL of a chart stands for the address of the API.
	apiPlaceholder = "%{KUBERNETES_API}%"

	// largest is how large a chart or a repository's index may be.
	largest = 64 << 20

	// unanswered is how long a source may take for all it has to give.
	unanswered = 3 * time.Minute
)

// A source is where a chart comes from, with what it takes to get it.
type source struct {
	spec
	authorities    []byte // in PEM; none: those of the machine
	user, password string
	certificate    *tls.Certificate
	logins         []byte // to registries, as Docker's config.json
}

// A fetcher gets charts.
type fetcher struct {
	host string            // URL of the API
	api  http.RoundTripper // the way to it
	core kubernetes.Interface
}

// fetch returns a packed chart.
func (f *fetcher) fetch(ctx context.Context, s source) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, unanswered)
	defer cancel()
	switch {
	case s.ChartContent != "":
		return base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s.ChartContent), ""))
	case strings.Contains(s.Chart, apiPlaceholder):
		return f.own(ctx, s.Chart)
	}
	way, err := f.transport(s)
	if err != nil {
		return nil, err
	}
	defer way.CloseIdleConnections()
	client := &http.Client{Transport: way}
	switch {
	case strings.HasPrefix(s.Chart, ociScheme):
		return pull(ctx, client, s, s.Chart)
	case strings.HasPrefix(s.Repo, ociScheme):
		return pull(ctx, client, s, strings.TrimRight(s.Repo, "/")+"/"+s.Chart)
	case strings.Contains(s.Chart, "://"):
		return get(ctx, client, s, s.Chart)
	}
	return search(ctx, client, s)
}

// own gets a chart that this server has in its folder.
func (f *fetcher) own(ctx context.Context, chart string) ([]byte, error) {
	at, err := url.Parse(f.host)
	if err != nil {
		return nil, err
	}
	return get(ctx, &http.Client{Transport: f.api}, source{}, strings.ReplaceAll(chart, apiPlaceholder, at.Host))
}

// transport is a way to where a chart is, for one fetch.
func (f *fetcher) transport(s source) (*http.Transport, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: s.InsecureSkipTLSVerify}
	if len(s.authorities) > 0 {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(s.authorities) {
			return nil, fmt.Errorf("%wspec.repoCA, spec.repoCAConfigMap: they hold no certificate in PEM", errFinal)
		}
	}
	if s.certificate != nil {
		conf.Certificates = []tls.Certificate{*s.certificate}
	}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           f.dial,
		TLSClientConfig:       conf,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
	}, nil
}

// dial connects, to a Service by its name too: the machine's resolver does not know the
// cluster's names.
func (f *fetcher) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if parts := strings.Split(host, "."); len(parts) > 2 && parts[2] == "svc" {
		if s, err := f.core.CoreV1().Services(parts[1]).Get(ctx, parts[0], metav1.GetOptions{}); err == nil && net.ParseIP(s.Spec.ClusterIP) != nil {
			addr = net.JoinHostPort(s.Spec.ClusterIP, port)
		}
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	return d.DialContext(ctx, network, addr)
}

// get downloads a file. Credentials go to where the chart was said to be, and elsewhere
// only if that was asked for.
func get(ctx context.Context, client *http.Client, s source, at string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	if s.user != "" && (s.AuthPassCredentials || sameHost(r.URL, s.home())) {
		r.SetBasicAuth(s.user, s.password)
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: %s", r.URL.Redacted(), answer.Status)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, largest+1))
	if err == nil && len(text) > largest {
		err = fmt.Errorf("it is larger than %d MiB", largest>>20)
	}
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", r.URL.Redacted(), err)
	}
	return text, nil
}

// home is the URL that a chart was said to be at.
func (s source) home() string {
	if s.Repo != "" {
		return s.Repo
	}
	return s.Chart
}

func sameHost(u *url.URL, other string) bool {
	o, err := url.Parse(other)
	return err == nil && u.Scheme == o.Scheme && u.Host == o.Host
}

// search finds a chart in the index of a repository, and downloads it.
func search(ctx context.Context, client *http.Client, s source) ([]byte, error) {
	home, err := url.Parse(s.Repo)
	if err != nil {
		return nil, fmt.Errorf("%wspec.repo: %w", errFinal, err)
	}
	text, err := get(ctx, client, s, home.JoinPath("index.yaml").String())
	if err != nil {
		return nil, err
	}
	index, err := readIndex(text)
	if err != nil {
		return nil, fmt.Errorf("index of %s: %w", home.Redacted(), err)
	}
	found, err := index.Get(s.Chart, s.Version)
	if err != nil {
		return nil, fmt.Errorf("index of %s, chart %s, version %q: %w", home.Redacted(), s.Chart, s.Version, err)
	}
	if len(found.URLs) == 0 {
		return nil, fmt.Errorf("index of %s, chart %s: it says not where version %s is", home.Redacted(), s.Chart, found.Version)
	}
	at, err := repo.ResolveReferenceURL(s.Repo, found.URLs[0])
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(at, ociScheme) {
		return pull(ctx, client, s, at)
	}
	if text, err = get(ctx, client, s, at); err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(text); found.Digest != "" && strings.TrimPrefix(found.Digest, "sha256:") != hex.EncodeToString(sum[:]) {
		return nil, fmt.Errorf("%s is another file than the one of which the index gives the digest", at)
	}
	return text, nil
}

// readIndex reads the index of a repository, for which Helm wants a file.
func readIndex(text []byte) (*repo.IndexFile, error) {
	f, err := os.CreateTemp("", "podo-helm-index-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	return repo.LoadIndexFile(f.Name())
}

// pull gets a chart from an OCI registry.
func pull(ctx context.Context, client *http.Client, s source, at string) ([]byte, error) {
	from, err := remote.NewRepository(strings.TrimPrefix(at, ociScheme))
	if err != nil {
		return nil, fmt.Errorf("%w%s: %w", errFinal, at, err)
	}
	login, err := s.login(from.Reference.Registry)
	if err != nil {
		return nil, err
	}
	from.PlainHTTP = s.PlainHTTP
	from.Client = &auth.Client{Client: client, Cache: auth.NewCache(), Credential: login}
	tag := from.Reference.Reference
	if tag == "" {
		if tag, err = pick(ctx, from, s.Version); err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
	}
	what, body, err := from.FetchReference(ctx, tag)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	defer body.Close()
	text, err := content.ReadAll(body, what)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(text, &manifest); err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	for _, l := range manifest.Layers {
		switch {
		case l.MediaType != registry.ChartLayerMediaType && l.MediaType != registry.LegacyChartLayerMediaType:
		case l.Size > largest:
			return nil, fmt.Errorf("%s: it is larger than %d MiB", at, largest>>20)
		default:
			return content.FetchAll(ctx, from.Blobs(), l)
		}
	}
	return nil, fmt.Errorf("%s, %s is no Helm chart: it has no layer of type %s", at, tag, registry.ChartLayerMediaType)
}

// pick chooses the tag of a version, or the newest that a range such as ^1.2 allows. The tag
// may begin with a v, whether the version does or not.
func pick(ctx context.Context, from *remote.Repository, version string) (string, error) {
	if _, err := semver.StrictNewVersion(version); err == nil {
		return tagOf(version), nil
	}
	var versions semver.Collection
	tags := map[string]string{} // by version
	err := from.Tags(ctx, "", func(page []string) error {
		for _, t := range page {
			v, err := semver.StrictNewVersion(strings.ReplaceAll(strings.TrimPrefix(t, "v"), "_", "+"))
			if err == nil {
				versions, tags[v.String()] = append(versions, v), t
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	sort.Sort(sort.Reverse(versions))
	names := make([]string, len(versions))
	for i, v := range versions {
		names[i] = v.String()
	}
	found, err := registry.GetTagMatchingVersionOrConstraint(names, version)
	return tags[found], err
}

// tagOf is a version as a tag, which cannot have a plus.
func tagOf(version string) string { return strings.ReplaceAll(version, "+", "_") }

// login is what a registry is shown. Those of whoever runs podo are never used.
func (s source) login(host string) (auth.CredentialFunc, error) {
	switch {
	case s.logins != nil:
		store, err := credentials.NewMemoryStoreFromDockerConfig(s.logins)
		if err != nil {
			return nil, fmt.Errorf("spec.dockerRegistrySecret: %w", err)
		}
		return credentials.Credential(store), nil
	case s.user != "":
		return auth.StaticCredential(host, auth.Credential{Username: s.user, Password: s.password}), nil
	}
	return nil, nil
}
