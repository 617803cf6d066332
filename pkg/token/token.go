// Package token reads and writes the secret that lets a node join.
//
// A token pins the cluster's CA by hash, so a node that holds one cannot be led to
// the wrong server. Its text is K10<hash>::<user>:<password>. Tokens are compared
// in constant time and print without their password.
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

// Server is the user of the token that a server makes for itself.
const Server = "server"

// prefix names the version of the format.
const prefix = "K10"

// ErrMalformed means a text is neither a whole token nor a password.
var ErrMalformed = errors.New("malformed token")

// ErrDiffers means the cluster was made with another token or another CA.
var ErrDiffers = errors.New("token differs from the cluster's")

// A Token is a password together with the CA that may ask for it. Hash and User
// are empty if only a password was given.
type Token struct {
	Hash     string // hex SHA-256 of the CA bundle, in PEM
	User     string
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
		return Token{Password: config.Secret(text)}, nil
	}
	if sum, err := hex.DecodeString(hash); err != nil || len(sum) != sha256.Size {
		return Token{}, fmt.Errorf("%w: the CA's hash after %s must be %d hex digits, is it cut off?", ErrMalformed, prefix, 2*sha256.Size)
	}
	user, password, ok := strings.Cut(credentials, ":")
	if !ok || user == "" || password == "" {
		return Token{}, fmt.Errorf("%w: want user:password after ::, is it cut off?", ErrMalformed)
	}
	return Token{Hash: strings.ToLower(hash), User: user, Password: config.Secret(password)}, nil
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
	if t.Hash == "" {
		return string(t.Password)
	}
	return prefix + t.Hash + "::" + t.User + ":" + string(t.Password)
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

// Ensure returns the cluster's token, kept in path. The first call makes it, from
// want or at random; later calls return the same one and refuse a want that
// differs. Its folder is made if it is missing.
func Ensure(path string, want config.Secret, caPEM []byte) (Token, error) {
	var given Token
	if want != "" {
		var err error
		if given, err = Parse(string(want)); err != nil {
			return Token{}, fmt.Errorf("token given: %w", err)
		}
		if given.Hash != "" && !given.Pins(caPEM) {
			return Token{}, fmt.Errorf("%w: the token given was made for another cluster; leave it out, or give only its password", ErrDiffers)
		}
	}

	kept, err := Read(path)
	if err == nil {
		return reconcile(path, kept, given, caPEM)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		if errors.Is(err, ErrMalformed) {
			return Token{}, fmt.Errorf("%w; restore the file from a backup, or remove it to have a new token made", err)
		}
		return Token{}, err
	}

	t := Token{Hash: Hash(caPEM), User: Server, Password: given.Password}
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

func reconcile(path string, kept, given Token, caPEM []byte) (Token, error) {
	if kept.Hash != "" && !kept.Pins(caPEM) {
		return Token{}, fmt.Errorf("%w: %s was made for another CA; restore the cluster's CA files and this one from the same backup, or remove this file to have a new token made", ErrDiffers, path)
	}
	if given.Password != "" && !kept.Accepts(string(given.Password)) {
		return Token{}, fmt.Errorf("%w: the token given is not the one in %s, which the cluster was made with; leave it out, or give that one", ErrDiffers, path)
	}
	if kept.Hash == "" { // a password that a person wrote into the file
		kept.Hash, kept.User = Hash(caPEM), Server
		if err := atomicfile.Write(path, []byte(kept.Text()+"\n"), 0o600); err != nil {
			return Token{}, fmt.Errorf("token: %w", err)
		}
	}
	return kept, nil
}
