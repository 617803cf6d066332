package join

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/token"
)

// ErrTaken means that a node name belongs to another machine's identity.
var ErrTaken = errors.New("node name belongs to another machine")

// ErrNoToken means that no bootstrap token has the given ID.
var ErrNoToken = errors.New("no such token")

// A Bootstrap is a join token that lives in the cluster and ends by itself.
type Bootstrap struct {
	ID          string        `json:"id"`
	Secret      config.Secret `json:"-"`
	Description string        `json:"description,omitempty"`
	Created     time.Time     `json:"created"`
	Expires     time.Time     `json:"expires,omitzero"` // zero: never
	Once        bool          `json:"once,omitempty"`   // good for one node
	Replaces    string        `json:"replaces,omitempty"`
	UsedBy      string        `json:"usedBy,omitempty"` // the node that used it, if Once
}

// Records keeps identities and bootstrap tokens, as Secrets of kube-system. Tokens
// are Kubernetes' own bootstrap tokens, so its token cleaner removes those that
// have ended.
type Records struct {
	secrets typed.SecretInterface
	nodes   typed.NodeInterface
}

// NewRecords returns the records of a cluster.
func NewRecords(client kubernetes.Interface) *Records {
	return &Records{client.CoreV1().Secrets(metav1.NamespaceSystem), client.CoreV1().Nodes()}
}

const (
	identityType   = "podo.io/node-identity"
	identitySuffix = ".node-identity.podo"
	identityKey    = "public-key" // PKIX, DER

	// The names that Kubernetes gives to the parts of a bootstrap token.
	tokenType        = "bootstrap.kubernetes.io/token"
	tokenPrefix      = "bootstrap-token-"
	tokenID          = "token-id"
	tokenSecret      = "token-secret"
	tokenDescription = "description"
	tokenExpiration  = "expiration"

	// What podo adds to them.
	tokenUsage    = "usage-podo-join"
	tokenOnce     = "podo-once"
	tokenReplaces = "podo-replaces"
	tokenUsedBy   = "podo-used-by"
	tokenUsedKey  = "podo-used-key" // SHA-256 of the public key of the machine
)

// Identity returns the public key that owns a node's name, or nil if nobody does.
func (r *Records) Identity(ctx context.Context, node string) ([]byte, error) {
	s, err := r.secrets.Get(ctx, node+identitySuffix, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return s.Data[identityKey], nil
}

// Claim gives a node's name to the holder of a key. If somebody else has the name
// it returns ErrTaken, unless replace is set.
func (r *Records) Claim(ctx context.Context, node string, key []byte, replace bool) error {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: node + identitySuffix},
		Type:       identityType,
		Data:       map[string][]byte{identityKey: key},
	}
	_, err := r.secrets.Create(ctx, s, metav1.CreateOptions{FieldManager: "podo"})
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	kept, err := r.secrets.Get(ctx, s.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if bytes.Equal(kept.Data[identityKey], key) {
		return nil
	}
	if !replace {
		return ErrTaken
	}
	kept.Data = s.Data
	if _, err = r.secrets.Update(ctx, kept, metav1.UpdateOptions{FieldManager: "podo"}); err != nil {
		return err
	}
	return r.doubt(ctx, node)
}

// ClaimServer gives a node's name to a server. Who holds the secrets of all servers needs
// no identity besides, so only a machine that is at work keeps its name against one: a
// *Refusal says so.
func (r *Records) ClaimServer(ctx context.Context, node string, key []byte, atWork func(context.Context, string) (bool, error)) error {
	err := r.Claim(ctx, node, key, false)
	if !errors.Is(err, ErrTaken) {
		return err
	}
	busy, err := atWork(ctx, node)
	if err != nil {
		return err
	}
	if busy {
		return refuse(NameTaken, "the name %s belongs to another machine that is at work: give this one another with --node-name; or, if this is that machine and was rebuilt, try again in a minute", node)
	}
	return r.Claim(ctx, node, key, true)
}

// doubt takes back what a machine that was replaced has said of its node. A kubelet that
// finds its node called Ready before it is says the rest ten seconds later (Kubernetes
// 1.36).
func (r *Records) doubt(ctx context.Context, node string) error {
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionUnknown, LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
		Reason: "MachineReplaced", Message: "Another machine has taken this node's name and has not reported yet",
	}}}})
	if err != nil {
		return err
	}
	if _, err = r.nodes.PatchStatus(ctx, node, patch); apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// Bootstrap returns the token with an ID, ended or not, or ErrNoToken.
func (r *Records) Bootstrap(ctx context.Context, id string) (Bootstrap, error) {
	s, err := r.secrets.Get(ctx, tokenPrefix+id, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && (s.Type != tokenType || string(s.Data[tokenUsage]) != "true") {
		return Bootstrap{}, fmt.Errorf("%w: %s", ErrNoToken, id)
	}
	if err != nil {
		return Bootstrap{}, err
	}
	return bootstrapOf(s)
}

// Bootstraps lists all tokens, ended ones that are not yet removed included.
func (r *Records) Bootstraps(ctx context.Context) ([]Bootstrap, error) {
	list, err := r.secrets.List(ctx, metav1.ListOptions{FieldSelector: "type=" + tokenType})
	if err != nil {
		return nil, err
	}
	var out []Bootstrap
	for i := range list.Items {
		if string(list.Items[i].Data[tokenUsage]) != "true" {
			continue // for kubeadm or a tool of the user's
		}
		b, err := bootstrapOf(&list.Items[i])
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// Create keeps a new token. An ID or Secret that is empty is made up.
func (r *Records) Create(ctx context.Context, b Bootstrap) (Bootstrap, error) {
	if b.ID == "" {
		made := token.GenerateBootstrap()
		b.ID, b.Secret = made.ID, made.Password
	}
	data := map[string]string{
		tokenID:     b.ID,
		tokenSecret: string(b.Secret),
		tokenUsage:  "true",
		tokenOnce:   strconv.FormatBool(b.Once),
	}
	for name, text := range map[string]string{tokenDescription: b.Description, tokenReplaces: b.Replaces} {
		if text != "" {
			data[name] = text
		}
	}
	if !b.Expires.IsZero() {
		data[tokenExpiration] = b.Expires.UTC().Format(time.RFC3339)
	}
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: tokenPrefix + b.ID}, Type: tokenType, StringData: data}
	made, err := r.secrets.Create(ctx, s, metav1.CreateOptions{FieldManager: "podo"})
	if apierrors.IsAlreadyExists(err) {
		return Bootstrap{}, fmt.Errorf("token %s exists; choose another ID, or delete it with podo token delete %s", b.ID, b.ID)
	}
	if err != nil {
		return Bootstrap{}, err
	}
	b.Created = made.CreationTimestamp.Time
	return b, nil
}

// Delete removes a token, or returns ErrNoToken.
func (r *Records) Delete(ctx context.Context, id string) error {
	if _, err := r.Bootstrap(ctx, id); err != nil {
		return err
	}
	return r.secrets.Delete(ctx, tokenPrefix+id, metav1.DeleteOptions{})
}

// spend marks a token that is good for one node as used by it. Of two machines that
// try, under whatever names, one is told that the token is used; the other may come
// again, if the answer was lost.
func (r *Records) spend(ctx context.Context, b Bootstrap, node string, key []byte) error {
	another := "podo token create"
	if b.Replaces != "" {
		another = "podo node replace " + b.Replaces
	}
	s, err := r.secrets.Get(ctx, tokenPrefix+b.ID, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return refuse(BadToken, "the join token %s has just been deleted; make another with: %s", b.ID, another)
	}
	if err != nil {
		return err
	}
	sum := sha256.Sum256(key)
	if by := string(s.Data[tokenUsedBy]); by != "" {
		if by == node && bytes.Equal(s.Data[tokenUsedKey], sum[:]) {
			return nil
		}
		return refuse(BadToken, "the join token %s was good for one machine, and another has used it as node %s; make another with: %s", b.ID, by, another)
	}
	s.Data[tokenUsedBy], s.Data[tokenUsedKey] = []byte(node), sum[:]
	_, err = r.secrets.Update(ctx, s, metav1.UpdateOptions{FieldManager: "podo"})
	if apierrors.IsConflict(err) { // somebody was faster
		return r.spend(ctx, b, node, key)
	}
	return err
}

func bootstrapOf(s *corev1.Secret) (Bootstrap, error) {
	b := Bootstrap{
		ID:          string(s.Data[tokenID]),
		Secret:      config.Secret(s.Data[tokenSecret]),
		Description: string(s.Data[tokenDescription]),
		Created:     s.CreationTimestamp.Time,
		Once:        string(s.Data[tokenOnce]) == "true",
		Replaces:    string(s.Data[tokenReplaces]),
		UsedBy:      string(s.Data[tokenUsedBy]),
	}
	if text := string(s.Data[tokenExpiration]); text != "" {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return Bootstrap{}, fmt.Errorf("secret %s: expiration: %w; delete it with kubectl", s.Name, err)
		}
		b.Expires = at
	}
	return b, nil
}
