package token

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podo-dev/podo/pkg/config"
)

const (
	ca      = "-----BEGIN CERTIFICATE-----\n"
	otherCA = "another"
)

func TestParse(t *testing.T) {
	hash := Hash([]byte(ca))
	tests := map[string]struct {
		in   string
		want Token
		err  error
	}{
		"whole":                  {in: "K10" + hash + "::server:s3cret", want: Token{Hash: hash, User: "server", Password: "s3cret"}},
		"with a newline":         {in: "K10" + hash + "::server:s3cret\n", want: Token{Hash: hash, User: "server", Password: "s3cret"}},
		"capital digits":         {in: "K10" + strings.ToUpper(hash) + "::node:x", want: Token{Hash: hash, User: "node", Password: "x"}},
		"colons in the password": {in: "K10" + hash + "::server:a:b::c", want: Token{Hash: hash, User: "server", Password: "a:b::c"}},
		"bootstrap token":        {in: "K10" + hash + "::abc123.0123456789abcdef", want: Token{Hash: hash, ID: "abc123", Password: "0123456789abcdef"}},
		"bootstrap, no hash":     {in: "abc123.0123456789abcdef", want: Token{ID: "abc123", Password: "0123456789abcdef"}},
		"almost bootstrap":       {in: "abc123.0123456789abcde", want: Token{Password: "abc123.0123456789abcde"}},
		"bootstrap with capital": {in: "Abc123.0123456789abcdef", want: Token{Password: "Abc123.0123456789abcdef"}},
		"password":               {in: "s3cret", want: Token{Password: "s3cret"}},
		"password like a token":  {in: "K10years", want: Token{Password: "K10years"}},
		"empty":                  {in: " \n", err: ErrMalformed},
		"white space":            {in: "a b", err: ErrMalformed},
		"two lines":              {in: "a\nb", err: ErrMalformed},
		"zero byte":              {in: "a\x00b", err: ErrMalformed},
		"cut off in the hash":    {in: "K10" + hash[:20] + "::server:x", err: ErrMalformed},
		"no password":            {in: "K10" + hash + "::server:", err: ErrMalformed},
		"no user":                {in: "K10" + hash + "::x", err: ErrMalformed},
		"other version":          {in: "K99" + hash + "::server:x", err: ErrMalformed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(tt.in)
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("Parse(%q) = %#v, %v; want %#v, %v", tt.in, got, err, tt.want, tt.err)
			}
			if again, err := Parse(got.Text()); tt.err == nil && (err != nil || again != got) {
				t.Errorf("Parse(%q) = %#v, %v; want it back", got.Text(), again, err)
			}
		})
	}
}

func TestTokensDoNotPrintTheirPassword(t *testing.T) {
	tok := Token{Hash: Hash([]byte(ca)), User: Server, Password: "s3cret"}
	for _, verb := range []string{"%v", "%+v", "%s", "%q"} {
		if out := fmt.Sprintf(verb, tok); strings.Contains(out, "s3cret") {
			t.Errorf("%s prints %s", verb, out)
		}
	}
	if out := tok.LogValue().String(); strings.Contains(out, "s3cret") {
		t.Errorf("logs %s", out)
	}
}

func TestAccepts(t *testing.T) {
	tok := Token{Password: "s3cret"}
	if !tok.Accepts("s3cret") || tok.Accepts("s3cre") || tok.Accepts("") || (Token{}).Accepts("") {
		t.Error("accepts other passwords than its own")
	}
}

func TestEnsure(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server", "token")
	made, err := Ensure(path, Server, "", []byte(ca))
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Password) != 32 || !made.Pins([]byte(ca)) || made.User != Server {
		t.Errorf("made %#v", made)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	tests := map[string]struct {
		want config.Secret
		ca   string
		err  error
		says string
	}{
		"nothing said":       {ca: ca},
		"the same whole":     {want: config.Secret(made.Text()), ca: ca},
		"the same password":  {want: made.Password, ca: ca},
		"another password":   {want: "other", ca: ca, err: ErrDiffers, says: path},
		"another cluster's":  {want: config.Secret(Token{Hash: Hash([]byte(otherCA)), User: Server, Password: made.Password}.Text()), ca: ca, err: ErrDiffers, says: "only its password"},
		"CA was replaced":    {ca: otherCA, err: ErrDiffers, says: "backup"},
		"like one that ends": {want: "abc123.0123456789abcdef", ca: ca, err: ErrMalformed, says: "another form"},
		"malformed":          {want: "a b", ca: ca, err: ErrMalformed, says: "white space"},
		"nothing said again": {ca: ca},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Ensure(path, Server, tt.want, []byte(tt.ca))
			if !errors.Is(err, tt.err) {
				t.Fatalf("got %v, want %v", err, tt.err)
			}
			if err != nil {
				if !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), string(made.Password)) {
					t.Errorf("%q does not say %q, or says the password", err, tt.says)
				}
				return
			}
			if got != made {
				t.Errorf("got %#v, want %#v", got, made)
			}
		})
	}
}

// TestEnsureAfterARotation: what the cluster was once made with is no reason to refuse a
// start, and does not come back.
func TestEnsureAfterARotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if _, err := Ensure(path, Server, "first", []byte(ca)); err != nil {
		t.Fatal(err)
	}
	next, err := Replace(path, Server, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Ensure(path, Server, "first", []byte(ca)); err != nil || got != next {
		t.Errorf("got %#v, %v; want %#v", got, err, next)
	}
}

func TestEnsureTakesWhatPeopleWrote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Ensure(path, Server, "mine", []byte(ca))
	if err != nil || got != (Token{Hash: Hash([]byte(ca)), User: Server, Password: "mine"}) {
		t.Fatalf("got %#v, %v", got, err)
	}
	if kept, err := Read(path); err != nil || kept != got {
		t.Errorf("kept %#v, %v; want %#v", kept, err, got)
	}
}

func TestEnsureRefusesGarbage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(path, Server, "", []byte(ca)); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestEnsureRefusesWhatNobodyCouldShow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("abc123.0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(path, Server, "", []byte(ca)); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if _, err := Replace(path, Server, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("replaced none: %v", err)
	}
	first, err := Ensure(path, Agent, "", []byte(ca))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		given config.Secret
		want  config.Secret // empty: made up
		err   error
	}{
		"made up":           {},
		"a password":        {given: "other", want: "other"},
		"whole":             {given: config.Secret(Token{Hash: first.Hash, User: Agent, Password: "third"}.Text()), want: "third"},
		"another cluster's": {given: config.Secret(Token{Hash: Hash([]byte(otherCA)), User: Agent, Password: "x"}.Text()), err: ErrMalformed},
		"one that ends":     {given: "abc123.0123456789abcdef", err: ErrMalformed},
		"malformed":         {given: "a b", err: ErrMalformed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			before, _ := Read(path)
			got, err := Replace(path, Agent, tt.given)
			after, _ := Read(path)
			if !errors.Is(err, tt.err) {
				t.Fatalf("got %v, want %v", err, tt.err)
			}
			if err != nil {
				if after != before {
					t.Errorf("refused, and yet %#v became %#v", before, after)
				}
				return
			}
			if after != got || got.Hash != first.Hash || got.User != Agent || got.Password == before.Password || tt.want != "" && got.Password != tt.want {
				t.Errorf("got %#v, kept %#v", got, after)
			}
		})
	}
}

func TestCredential(t *testing.T) {
	for name, tt := range map[string]struct {
		in   Token
		want string
	}{
		"server's":   {Token{User: Server, Password: "x:y"}, "server:x:y"},
		"agent's":    {Token{User: Agent, Password: "x"}, "node:x"},
		"a password": {Token{Password: "x"}, "node:x"},
		"bootstrap":  {Token{ID: "abc123", Password: "0123456789abcdef"}, "abc123.0123456789abcdef"},
	} {
		t.Run(name, func(t *testing.T) {
			got := tt.in.Credential()
			back, err := ParseCredential(got)
			if got != tt.want || err != nil || back.ID != tt.in.ID || back.Password != tt.in.Password {
				t.Errorf("%#v is shown as %q, which reads %#v, %v", tt.in, got, back, err)
			}
		})
	}
}

func TestGenerateBootstrap(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		made := GenerateBootstrap()
		got, err := Parse(made.Text())
		if err != nil || got != made || !ValidID(made.ID) || seen[made.ID] {
			t.Fatalf("made %#v, read back %#v, %v", made, got, err)
		}
		seen[made.ID] = true
	}
}

func TestServes(t *testing.T) {
	for _, tt := range []struct {
		kept, shown string
		want        bool
	}{{Server, Server, true}, {Server, Agent, true}, {Agent, Agent, true}, {Agent, Server, false}, {Agent, "", false}} {
		if got := (Token{User: tt.kept}).Serves(tt.shown); got != tt.want {
			t.Errorf("a token of %s shown as %q: %v, want %v", tt.kept, tt.shown, got, tt.want)
		}
	}
}
