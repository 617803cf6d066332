package pki

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/crypto/argon2"

	"github.com/podo-dev/podo/pkg/config"
)

// A sealed bundle is a header, which is authenticated, and then JSON encrypted with
// AES-256-GCM, tag included, under a key that Argon2id derives from the password.
// Numbers are big-endian.
//
//	 0  magic           8
//	 8  format          1
//	 9  passes          1   Argon2id
//	10  lanes           1
//	11  memory, KiB     4
//	15  salt           16   fresh each time, and so is the key
//	31  nonce          12
//	43  length          4   of all that follows
//	47  ciphertext
const (
	sealMagic  = "podoseal"
	sealFormat = 1

	saltAt   = 15
	nonceAt  = saltAt + 16
	lengthAt = nonceAt + 12
	bodyAt   = lengthAt + 4

	// maxSealed is far above what any cluster shares, and below what etcd takes.
	maxSealed = 1 << 20
)

// ErrSealed means that the password is not the one a bundle was sealed with, or
// that someone changed the bundle since. Callers ask for another token.
var ErrSealed = errors.New("the bundle was sealed with another token, or changed since")

// cost is what it takes to derive a key once: for us, and for whoever guesses
// passwords.
type cost struct {
	passes, lanes uint8
	memory        uint32 // KiB
}

// usualCost takes a quarter of a second on two cores of a server.
func usualCost() cost { return cost{passes: 8, lanes: 2, memory: 64 << 10} }

// check refuses what would keep a machine busy or out of memory: a header is
// believed only after its key has been derived.
func (c cost) check() error {
	most := cost{passes: 32, lanes: 16, memory: 256 << 10}
	switch {
	case c.passes < 1 || c.passes > most.passes:
		return fmt.Errorf("malformed bundle: %d passes, want 1 to %d", c.passes, most.passes)
	case c.lanes < 1 || c.lanes > most.lanes:
		return fmt.Errorf("malformed bundle: %d lanes, want 1 to %d", c.lanes, most.lanes)
	case c.memory < 8*uint32(c.lanes) || c.memory > most.memory:
		return fmt.Errorf("malformed bundle: %d KiB of memory, want %d to %d", c.memory, 8*uint32(c.lanes), most.memory)
	}
	return nil
}

// contents is a bundle as it is written, and the only form that shows its secrets.
type contents struct {
	Version  int               `json:"version"`
	Settings map[string]string `json:"settings,omitempty"`
	Files    secrets           `json:"files"`
}

// Seal encrypts a bundle so that only holders of the password can read it.
func Seal(b Bundle, password config.Secret) ([]byte, error) {
	return seal(b, password, usualCost())
}

func seal(b Bundle, password config.Secret, c cost) ([]byte, error) {
	if password == "" {
		return nil, errors.New("seal the cluster's secrets: the password is empty")
	}
	if err := b.check(); err != nil {
		return nil, fmt.Errorf("seal the cluster's secrets: %w", err)
	}
	text, err := json.Marshal(contents{Version: bundleVersion, Settings: b.Settings, Files: b.files()})
	if err != nil {
		return nil, fmt.Errorf("seal the cluster's secrets: %w", err)
	}

	out := append([]byte(sealMagic), sealFormat, c.passes, c.lanes)
	out = binary.BigEndian.AppendUint32(out, c.memory)
	out = append(out, make([]byte, lengthAt-saltAt)...) // salt and nonce
	rand.Read(out[saltAt:])                             // never fails (crypto/rand, Go 1.24)
	aead, err := sealer(password, out[saltAt:nonceAt], c)
	if err != nil {
		return nil, fmt.Errorf("seal the cluster's secrets: %w", err)
	}
	out = binary.BigEndian.AppendUint32(out, uint32(len(text)+aead.Overhead()))
	if bodyAt+len(text)+aead.Overhead() > maxSealed {
		return nil, fmt.Errorf("seal the cluster's secrets: %d bytes are too many, want at most %d", len(text), maxSealed-bodyAt-aead.Overhead())
	}
	return aead.Seal(out, out[nonceAt:lengthAt], text, out), nil
}

// Open returns the bundle that was sealed. ErrSealed means another password or a
// changed bundle; any other error that no password would help.
func Open(sealed []byte, password config.Secret) (Bundle, error) {
	b, err := open(sealed, password)
	if err != nil {
		return Bundle{}, fmt.Errorf("open the cluster's secrets: %w", err)
	}
	return b, nil
}

func open(sealed []byte, password config.Secret) (Bundle, error) {
	if !bytes.HasPrefix(sealed, []byte(sealMagic)) {
		return Bundle{}, errors.New("malformed bundle: it is cut off, or something else")
	}
	if len(sealed) > len(sealMagic) && sealed[len(sealMagic)] != sealFormat {
		return Bundle{}, newer("format", int(sealed[len(sealMagic)]), sealFormat)
	}
	if len(sealed) < bodyAt || len(sealed) > maxSealed {
		return Bundle{}, fmt.Errorf("malformed bundle: %d bytes, want %d to %d", len(sealed), bodyAt, maxSealed)
	}
	header, body := sealed[:bodyAt], sealed[bodyAt:]
	if length := binary.BigEndian.Uint32(header[lengthAt:]); uint64(length) != uint64(len(body)) {
		return Bundle{}, fmt.Errorf("malformed bundle: %d bytes after the header, want %d; is it cut off?", len(body), length)
	}
	c := cost{passes: header[9], lanes: header[10], memory: binary.BigEndian.Uint32(header[11:])}
	if err := c.check(); err != nil {
		return Bundle{}, err
	}
	aead, err := sealer(password, header[saltAt:nonceAt], c)
	if err != nil {
		return Bundle{}, err
	}
	text, err := aead.Open(nil, header[nonceAt:lengthAt], body, header)
	if err != nil {
		return Bundle{}, ErrSealed
	}
	return parseContents(text)
}

// parseContents looks at the version first: what else a newer bundle holds is not
// for this podo to judge. Errors of the decoder could quote what they met.
func parseContents(text []byte) (Bundle, error) {
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return Bundle{}, errors.New("malformed bundle: it holds something else")
	}
	if head.Version != bundleVersion {
		return Bundle{}, newer("version", head.Version, bundleVersion)
	}
	var in contents
	if err := json.Unmarshal(text, &in); err != nil {
		return Bundle{}, errors.New("malformed bundle: it holds something else")
	}
	b := Bundle{Settings: in.Settings, files: func() secrets { return in.Files }}
	return b, b.check()
}

func newer(what string, got, known int) error {
	if got < known {
		return fmt.Errorf("malformed bundle: %s %d, want %d", what, got, known)
	}
	return fmt.Errorf("a newer podo sealed the bundle: %s %d, this one knows %d; upgrade podo on this machine", what, got, known)
}

func sealer(password config.Secret, salt []byte, c cost) (cipher.AEAD, error) {
	key := argon2.IDKey([]byte(password), salt, uint32(c.passes), c.memory, c.lanes, 32)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
