package offline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Objects cross the wire, and are kept, as Kubernetes' protobuf envelopes. All types
// of the API have their metadata in field 1, and all lists their items in field 2, so
// that none needs to be known here.

// prefix begins every envelope.
const prefix = "k8s\x00"

var errMalformed = errors.New("malformed protobuf")

// open takes an object out of its envelope.
func open(data []byte) (*runtime.Unknown, error) {
	u := &runtime.Unknown{}
	if len(data) < len(prefix) || string(data[:len(prefix)]) != prefix {
		return nil, errMalformed
	}
	return u, u.Unmarshal(data[len(prefix):])
}

// seal puts an object into an envelope.
func seal(apiVersion, kind string, raw []byte) ([]byte, error) {
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: apiVersion, Kind: kind}, Raw: raw}
	body, err := u.Marshal()
	return append([]byte(prefix), body...), err
}

// meta reads the metadata of any object.
func meta(raw []byte) (metav1.ObjectMeta, error) {
	var m metav1.PartialObjectMetadata
	err := m.Unmarshal(raw)
	return m.ObjectMeta, err
}

// name is how an object is called in its view.
func name(m metav1.ObjectMeta) string { return m.Namespace + "/" + m.Name }

// split takes a list apart.
func split(raw []byte) (list metav1.ListMeta, items [][]byte, err error) {
	for len(raw) > 0 {
		tag, n := binary.Uvarint(raw)
		if n <= 0 || tag&7 != 2 {
			return list, nil, errMalformed
		}
		raw = raw[n:]
		size, n := binary.Uvarint(raw)
		if n <= 0 || size > uint64(len(raw)-n) {
			return list, nil, errMalformed
		}
		field := raw[n : n+int(size)]
		raw = raw[n+int(size):]
		switch tag >> 3 {
		case 1:
			if err := list.Unmarshal(field); err != nil {
				return list, nil, err
			}
		case 2:
			items = append(items, field)
		}
	}
	return list, items, nil
}

// join puts a list together.
func join(list metav1.ListMeta, items [][]byte) ([]byte, error) {
	head, err := list.Marshal()
	if err != nil {
		return nil, err
	}
	out := field(nil, 1, head)
	for _, raw := range items {
		out = field(out, 2, raw)
	}
	return out, nil
}

func field(buf []byte, number int, data []byte) []byte {
	buf = append(buf, byte(number<<3|2))
	buf = binary.AppendUvarint(buf, uint64(len(data)))
	return append(buf, data...)
}

// frame appends an event to what a watch sends.
func frame(buf []byte, kind string, object []byte) ([]byte, error) {
	e := metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: object}}
	body, err := e.Marshal()
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint32(buf, uint32(len(body))), body...), nil
}

// frames takes a watch apart as it comes in. Its zero value is ready for use.
type frames struct{ rest []byte }

// add takes the next bytes and calls each for every event that is whole.
func (f *frames) add(data []byte, each func(kind string, object []byte) error) error {
	f.rest = append(f.rest, data...)
	rest := f.rest
	for len(rest) >= 4 {
		size := int(binary.BigEndian.Uint32(rest))
		if size > largest {
			return fmt.Errorf("event of %d bytes", size)
		}
		if len(rest)-4 < size {
			break
		}
		var e metav1.WatchEvent
		if err := e.Unmarshal(rest[4 : 4+size]); err != nil {
			return err
		}
		rest = rest[4+size:]
		if err := each(e.Type, e.Object.Raw); err != nil {
			return err
		}
	}
	if len(rest) == 0 {
		f.rest = nil // most watches are silent for most of the time
	} else {
		f.rest = append(f.rest[:0], rest...)
	}
	return nil
}

// A mark says that a view is complete, and of what it is.
type mark struct{ version, apiVersion, kind string }

func (m mark) text() []byte { return []byte(m.version + "\n" + m.apiVersion + "\n" + m.kind) }

func readMark(text []byte) (mark, bool) {
	parts := strings.Split(string(text), "\n")
	if len(parts) != 3 {
		return mark{}, false
	}
	return mark{parts[0], parts[1], parts[2]}, true
}
