package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

func sum(content []byte) string { return fmt.Sprintf("%x", sha256.Sum256(content)) }

// tarOf is an archive of files, of folders if they end in /, and of links.
func tarOf(t *testing.T, entries ...[2]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e[0], Mode: 0o644, Size: int64(len(e[1]))}
		if to, ok := strings.CutPrefix(e[1], "-> "); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, to, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, e[1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// ociArchive is an archive of OCI's layout with a layer in it, as far as podo looks.
func ociArchive(t *testing.T, name string) []byte {
	t.Helper()
	layer := packed(t, "gzip", tarOf(t, [2]string{"file", strings.Repeat(name, 1000)}))
	return tarOf(t, [2]string{"oci-layout", "{}"}, [2]string{"index.json", "{}"}, [2]string{"blobs/sha256/" + sum(layer), string(layer)})
}

func packed(t *testing.T, how string, content []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch how {
	case "gzip":
		w = gzip.NewWriter(&buf)
	case "zstd":
		z, err := zstd.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	case "lz4":
		w = lz4.NewWriter(&buf)
	default:
		return content
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestInspectTakesEveryForm(t *testing.T) {
	docker := tarOf(t, [2]string{"abc/layer.tar", string(tarOf(t, [2]string{"file", "x"}))}, [2]string{"def/layer.tar", "-> ../abc/layer.tar"},
		[2]string{"abc.json", "{}"}, [2]string{"./manifest.json", "[]"})
	for format, content := range map[string][]byte{"OCI": ociArchive(t, "example.com/grape:1"), "docker": docker} {
		for _, how := range []string{"plain", "gzip", "zstd", "lz4"} {
			t.Run(format+" "+how, func(t *testing.T) {
				file := packed(t, how, content)
				id, err := inspect(t.Context(), bytes.NewReader(file), 1<<20)
				if err != nil || id != sum(file) {
					t.Errorf("inspect = %q, %v; want %s", id, err, sum(file))
				}
				for _, cut := range []int{len(file) / 3, len(file) / 2, len(file) - 3} {
					if _, err := inspect(t.Context(), bytes.NewReader(file[:cut]), 1<<20); how != "plain" && !errors.Is(err, errBad) {
						t.Errorf("cut at %d of %d: err = %v, want one that blames the archive", cut, len(file), err)
					}
				}
			})
		}
	}
}

func TestInspectRefuses(t *testing.T) {
	good := ociArchive(t, "example.com/grape:1")
	manifest := [2]string{"manifest.json", "[]"}
	flipped := bytes.Clone(good)
	flipped[bytes.LastIndex(flipped, []byte("ustar"))+400] ^= 1
	bomb := packed(t, "gzip", tarOf(t, [2]string{"zeros", strings.Repeat("\x00", 4<<20)}))
	hole := tarOf(t, [2]string{"file", "x"})
	copy(hole[124:136], fmt.Sprintf("%011o\x00", 1<<32))
	copy(hole[148:156], "        ")
	var check int64
	for _, b := range hole[:512] {
		check += int64(b)
	}
	copy(hole[148:156], fmt.Sprintf("%06o\x00 ", check))
	tests := map[string]struct {
		file []byte
		room int64
		want string
		full bool
	}{
		"nothing":               {file: nil, want: "it holds no images"},
		"no archive":            {file: []byte(strings.Repeat("no archive ", 100)), want: "no archive"},
		"an archive of others":  {file: tarOf(t, [2]string{"etc/passwd", "x"}), want: "it holds no images"},
		"half a layout":         {file: tarOf(t, [2]string{"index.json", "{}"}), want: "it holds no images"},
		"cut in a file":         {file: good[:len(good)-1500], want: "cut short"},
		"a way up":              {file: tarOf(t, manifest, [2]string{"../../etc/passwd", "x"}), want: `"../../etc/passwd" leads out`},
		"a hidden way up":       {file: tarOf(t, manifest, [2]string{"a/../../b", "x"}), want: "leads out"},
		"an absolute name":      {file: tarOf(t, manifest, [2]string{"/etc/passwd", "x"}), want: `"/etc/passwd" leads out`},
		"a link out":            {file: tarOf(t, manifest, [2]string{"layer.tar", "-> ../../etc/shadow"}), want: `links to "../../etc/shadow"`},
		"a link to the root":    {file: tarOf(t, manifest, [2]string{"layer.tar", "-> /etc/shadow"}), want: `links to "/etc/shadow"`},
		"a changed layer":       {file: flipped, want: "damaged"},
		"bzip2":                 {file: []byte("BZh91AY&SY"), want: "podo reads gzip, zstd and lz4"},
		"xz":                    {file: []byte("\xfd7zXZ\x00\x00"), want: "podo reads gzip, zstd and lz4"},
		"a layer without end":   {file: tarOf(t, manifest, [2]string{"layer.tar", string(bomb)}), want: "1.0 MB are free", full: true},
		"an archive without":    {file: packed(t, "zstd", tarOf(t, manifest, [2]string{"zeros", strings.Repeat("\x00", 4<<20)})), want: "1.0 MB are free", full: true},
		"a file that is a hole": {file: tarOf(t, manifest, [2]string{"layer.tar", string(hole)}), want: "1.0 MB are free", full: true},
		"a disk that is full":   {file: good, room: -1, want: "0 B are free", full: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.room == 0 {
				tt.room = 1 << 20
			}
			_, err := inspect(t.Context(), bytes.NewReader(tt.file), tt.room)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("err = %v, want one with %q", err, tt.want)
			}
			if errors.Is(err, errFull) != tt.full || errors.Is(err, errBad) == tt.full {
				t.Errorf("err = %v: of no room %v, of the archive %v", err, errors.Is(err, errFull), errors.Is(err, errBad))
			}
		})
	}
}

func TestInspectEndsWhenTold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := inspect(ctx, bytes.NewReader(ociArchive(t, "example.com/grape:1")), 1<<20); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v, want context.Canceled", err)
	}
}

func TestReadList(t *testing.T) {
	dir := t.TempDir()
	names, wrong, err := readList(write(t, dir+"/a.txt", "# images\n\n  busybox  \r\nexample.com/grape:1\nTWO WORDS\nghcr.io/a/b@sha256:"+hex.EncodeToString(make([]byte, 32))+"\n"))
	if err != nil || fmt.Sprint(names) != "[docker.io/library/busybox:latest example.com/grape:1 ghcr.io/a/b@sha256:"+strings.Repeat("0", 64)+"]" {
		t.Errorf("names = %v, %v", names, err)
	}
	if len(wrong) != 1 || !strings.Contains(wrong[0].Error(), `line 5: "TWO WORDS"`) {
		t.Errorf("wrong = %v, want line 5", wrong)
	}
	for name, text := range map[string]string{"long list": strings.Repeat("busybox\n", maxList/8+1), "long line": strings.Repeat("x", 1<<17)} {
		if _, _, err := readList(write(t, dir+"/b.txt", text)); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
}
