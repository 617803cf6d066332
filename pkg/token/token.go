// Package token reads and writes the secret that lets a node join.
//
// A token pins the cluster's CA by hash, so a node that holds one cannot be led to
// the wrong server. Its text is K10<hash>::<user>:<password>, or for one that lives
// in the cluster and ends by itself K10<hash>::<id>.<secret>. Tokens are compared in
// constant time and print without their password.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/config"
)

// The users of tokens that servers keep: what the one lets join is a server or an
// agent, what the other lets join is an agent.
const (
	Server = "server"
	Agent  = "node"
)

// prefix names the version of the format.
const prefix = "K10"

// ErrMalformed means a text is neither a whole token nor a password.
var ErrMalformed = errors.New("malformed token")

// ErrDiffers means the cluster was made with another token or another CA.
var ErrDiffers = errors.New("token differs from the cluster's")

// errEnding refuses a lasting token that nobody could show: it would be looked for
// among those that live in the cluster.
var errEnding = fmt.Errorf("%w: ID.SECRET is the form of tokens that end by themselves (podo token create); give a password of another form", ErrMalformed)

// A Token is a password together with the CA that may ask for it. Hash and User
// are empty if only a password was given.
type Token struct {
	Hash     string // hex SHA-256 of the CA bundle, in PEM
	User     string // empty if there is an ID
	ID       string // of a bootstrap token, whose secret is Password
	Password config.Secret
}

// Parse reads a whole token, or takes the text for a password alone.
func Parse(text string) (Token, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return Token{}, fmt.Errorf("%w: it is empty", ErrMalformed)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return Token{}, fmt.Errorf("%w: it has white space within", ErrMalformed)
	}
	rest, whole := strings.CutPrefix(text, prefix)
	hash, credentials, pinned := strings.Cut(rest, "::")
	if !whole || !pinned {
		if strings.Contains(text, "::") {
			return Token{}, fmt.Errorf("%w: text before :: must be %s and the CA's hash", ErrMalformed, prefix)
		}
		return bare(text), nil
	}
	if sum, err := hex.DecodeString(hash); err != nil || len(sum) != sha256.Size {
		return Token{}, fmt.Errorf("%w: the CA's hash after %s must be %d hex digits, is it cut off?", ErrMalformed, prefix, 2*sha256.Size)
	}
	t, err := ParseCredential(credentials)
	if err != nil {
		return Token{}, err
	}
	t.Hash = strings.ToLower(hash)
	return t, nil
}

// ParseCredential reads what comes after the hash: user:password or id.secret.
func ParseCredential(text string) (Token, error) {
	if t := bare(text); t.ID != "" {
		return t, nil
	}
	user, password, ok := strings.Cut(text, ":")
	if !ok || user == "" || password == "" {
		return Token{}, fmt.Errorf("%w: want user:password or id.secret after ::, is it cut off?", ErrMalformed)
	}
	return Token{User: user, Password: config.Secret(password)}, nil
}

// bare takes a text for a bootstrap token if it has the form of one, and otherwise
// for a password.
func bare(text string) Token {
	id, secret, _ := strings.Cut(text, ".")
	if ValidID(id) && len(secret) == secretLen && !strings.ContainsFunc(secret, notPlain) {
		return Token{ID: id, Password: config.Secret(secret)}
	}
	return Token{Password: config.Secret(text)}
}

// The form of bootstrap tokens is Kubernetes': [a-z0-9]{6}.[a-z0-9]{16}.
const (
	plain     = "abcdefghijklmnopqrstuvwxyz0123456789"
	idLen     = 6
	secretLen = 16
)

func notPlain(r rune) bool { return !strings.ContainsRune(plain, r) }

// ValidID reports whether a text can be the ID of a bootstrap token.
func ValidID(id string) bool { return len(id) == idLen && !strings.ContainsFunc(id, notPlain) }

// GenerateBootstrap returns a bootstrap token of random parts, without a hash.
func GenerateBootstrap() Token {
	pick := func(n int) string {
		out := make([]byte, 0, n)
		for len(out) < n {
			var raw [32]byte
			rand.Read(raw[:])
			for _, b := range raw {
				// Of 256 values the last four are dropped, so that all letters are as likely.
				if int(b) < 256-256%len(plain) && len(out) < n {
					out = append(out, plain[int(b)%len(plain)])
				}
			}
		}
		return string(out)
	}
	return Token{ID: pick(idLen), Password: config.Secret(pick(secretLen))}
}

// Generate returns a password of 128 random bits in hex.
func Generate() config.Secret {
	raw := make([]byte, 16)
	rand.Read(raw) // never fails: it ends the process instead (crypto/rand, Go 1.24)
	return config.Secret(hex.EncodeToString(raw))
}

// Hash returns what a token calls a CA bundle by.
func Hash(caPEM []byte) string {
	sum := sha256.Sum256(caPEM)
	return hex.EncodeToString(sum[:])
}

// Text is the whole token, password included. It belongs in files and requests,
// never in logs.
func (t Token) Text() string {
	if t.Hash == "" && t.ID == "" {
		return string(t.Password)
	}
	if t.Hash == "" {
		return t.Credential()
	}
	return prefix + t.Hash + "::" + t.Credential()
}

// Credential is the part of the text that a server checks: user:password or
// id.secret. A password alone is taken for an agent's.
func (t Token) Credential() string {
	switch {
	case t.ID != "":
		return t.ID + "." + string(t.Password)
	case t.User == "":
		return Agent + ":" + string(t.Password)
	}
	return t.User + ":" + string(t.Password)
}

// String prints the token without its password.
func (t Token) String() string {
	t.Password = config.Secret(t.Password.String())
	return t.Text()
}

// LogValue keeps the password out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// Accepts reports in constant time whether password is the token's.
func (t Token) Accepts(password string) bool {
	a, b := sha256.Sum256([]byte(t.Password)), sha256.Sum256([]byte(password))
	return t.Password != "" && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// Serves reports whether the token may be shown by user. A server's token lets
// agents join as well, as k3s users expect.
func (t Token) Serves(user string) bool {
	return t.User == user || t.User == Server && user == Agent
}

// Pins reports whether the token was made for this CA bundle. A bare password
// pins nothing and trusts whatever it meets.
func (t Token) Pins(caPEM []byte) bool { return t.Hash == Hash(caPEM) }

// Read returns the token kept in a file.
func Read(path string) (Token, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Token{}, fmt.Errorf("token: %w", err)
	}
	t, err := Parse(string(text))
	if err != nil {
		return Token{}, fmt.Errorf("token %s: %w", path, err)
	}
	return t, nil
}

// Ensure returns the cluster's token of a user, kept in path. The first call makes
// it, from want or at random; later calls return the same one and refuse a want
// that differs, unless the token has been replaced since. Its folder is made if it is
// missing.
func Ensure(path, user string, want config.Secret, caPEM []byte) (Token, error) {
	var given Token
	if want != "" {
		var err error
		if given, err = Parse(string(want)); err != nil {
			return Token{}, fmt.Errorf("token given: %w", err)
		}
		if given.ID != "" {
			return Token{}, fmt.Errorf("token given: %w", errEnding)
		}
		if given.Hash != "" && !given.Pins(caPEM) {
			return Token{}, fmt.Errorf("%w: the token given was made for another cluster; leave it out, or give only its password", ErrDiffers)
		}
	}

	kept, err := Read(path)
	if err == nil && kept.ID != "" {
		err = fmt.Errorf("token %s: %w", path, errEnding)
	}
	if err == nil {
		return reconcile(path, user, kept, given, caPEM)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		if errors.Is(err, ErrMalformed) {
			return Token{}, fmt.Errorf("%w; restore the file from a backup, or remove it to have a new token made", err)
		}
		return Token{}, err
	}

	t := Token{Hash: Hash(caPEM), User: user, Password: given.Password}
	if t.Password == "" {
		t.Password = Generate()
	}
	if err := atomicfile.EnsureDir(filepath.Dir(path), 0o700); err != nil {
		return Token{}, fmt.Errorf("token: %w", err)
	}
	if err := atomicfile.Write(path, []byte(t.Text()+"\n"), 0o600); err != nil {
		return Token{}, fmt.Errorf("token: %w", err)
	}
	return t, nil
}

// Replace gives a user's token in path another password, given or made up, and
// returns the new token. It is an error if there is none yet.
func Replace(path, user string, given config.Secret) (Token, error) {
	t, err := Read(path)
	if err != nil {
		return Token{}, err
	}
	next, err := Token{Password: Generate()}, error(nil)
	if given != "" {
		if next, err = Parse(string(given)); err != nil {
			return Token{}, err
		}
	}
	if next.Hash != "" && next.Hash != t.Hash || next.ID != "" {
		return Token{}, fmt.Errorf("%w: give the new password alone", ErrMalformed)
	}
	t.User, t.Password = user, next.Password
	if err := atomicfile.Write(rotatedMark(path), nil, 0o600); err != nil {
		return Token{}, fmt.Errorf("token: %w", err)
	}
	if err := atomicfile.Write(path, []byte(t.Text()+"\n"), 0o600); err != nil {
		return Token{}, fmt.Errorf("token: %w", err)
	}
	return t, nil
}

func reconcile(path, user string, kept, given Token, caPEM []byte) (Token, error) {
	if kept.Hash != "" && !kept.Pins(caPEM) {
		return Token{}, fmt.Errorf("%w: %s was made for another CA; restore the cluster's CA files and this one from the same backup, or remove this file to have a new token made", ErrDiffers, path)
	}
	if given.Password != "" && !kept.Accepts(string(given.Password)) && !rotated(path) {
		return Token{}, fmt.Errorf("%w: the token given is not the one in %s, which the cluster was made with; leave it out, or give that one", ErrDiffers, path)
	}
	if kept.Hash == "" { // a password that a person wrote into the file
		kept.Hash, kept.User = Hash(caPEM), user
		if err := atomicfile.Write(path, []byte(kept.Text()+"\n"), 0o600); err != nil {
			return Token{}, fmt.Errorf("token: %w", err)
		}
	}
	return kept, nil
}

// rotatedMark lies beside a token that has been replaced once. What a person once gave
// to make the cluster with is then no mistake, and counts no more.
func rotatedMark(path string) string { return path + ".rotated" }

func rotated(path string) bool {
	_, err := os.Stat(rotatedMark(path))
	return err == nil
}
