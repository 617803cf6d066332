package balancer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/podo-dev/podo/pkg/atomicfile"
)

// file is what is kept on disk.
type file struct {
	Servers []string `json:"servers"`
	Former  []string `json:"former,omitempty"`
}

// load returns the list on disk and the servers that have left it, or nothing if there
// is none.
func (b *Balancer) load() (list, former []string, err error) {
	if b.opts.File == "" {
		return nil, nil, nil
	}
	data, err := os.ReadFile(b.opts.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, nil, err
	}
	if list, err = b.clean(f.Servers); err != nil {
		return nil, nil, err
	}
	if len(list) == 0 {
		return nil, nil, errors.New("no server in it")
	}
	return list, f.Former, nil
}

func (b *Balancer) save(list, former []string) error {
	if b.opts.File == "" {
		return nil
	}
	data, err := json.Marshal(file{list, former})
	if err != nil {
		return err
	}
	_, err = atomicfile.WriteIfChanged(b.opts.File, append(data, '\n'), 0o600)
	return err
}

// clean returns the valid addresses, sorted, each once and in one spelling, and an
// error that names the others.
func (b *Balancer) clean(addrs []string) ([]string, error) {
	var out []string
	var errs []error
	for _, addr := range addrs {
		host, port, err := net.SplitHostPort(addr)
		if err == nil && host == "" {
			err = fmt.Errorf("address %s: no host", addr)
		}
		if err == nil {
			var n uint64
			if n, err = strconv.ParseUint(port, 10, 16); err == nil && n == 0 {
				err = fmt.Errorf("address %s: no port", addr)
			}
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		host = strings.ToLower(host)
		if ip, err := netip.ParseAddr(host); err == nil {
			host = ip.Unmap().String()
		}
		addr = net.JoinHostPort(host, port)
		if addr == b.opts.Listen.String() {
			errs = append(errs, fmt.Errorf("address %s: the balancer's own", addr))
			continue
		}
		out = append(out, addr)
	}
	slices.Sort(out)
	return slices.Compact(out), errors.Join(errs...)
}
