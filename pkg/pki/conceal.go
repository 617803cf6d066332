package pki

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"github.com/podo-dev/podo/pkg/paths"
)

// ErrConcealed means that a text was concealed by a server of another cluster, or
// changed since.
var ErrConcealed = errors.New("it is of another cluster, or damaged")

// Conceal encrypts what servers tell each other where others may look. The key is
// derived from that of the servers' CA, which every server has and nobody else: no
// token opens it, so a new token can be told to the others by it although the old one
// is known to a stranger.
func Conceal(p paths.Paths, text []byte) ([]byte, error) {
	aead, err := concealer(p)
	if err != nil {
		return nil, fmt.Errorf("conceal: %w", err)
	}
	return aead.Seal(nil, nil, text, nil), nil
}

// Reveal returns what Conceal was given by any server of the cluster.
func Reveal(p paths.Paths, concealed []byte) ([]byte, error) {
	aead, err := concealer(p)
	if err != nil {
		return nil, fmt.Errorf("reveal: %w", err)
	}
	text, err := aead.Open(nil, nil, concealed, nil)
	if err != nil {
		return nil, ErrConcealed
	}
	return text, nil
}

func concealer(p paths.Paths) (cipher.AEAD, error) {
	secret, err := os.ReadFile(p.CA(ServerCA).Key)
	if err != nil {
		return nil, err
	}
	key, err := hkdf.Key(sha256.New, secret, nil, "podo: among servers", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
