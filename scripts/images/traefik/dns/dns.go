// Package dns knows the DNS providers by which Traefik can answer the ACME challenge
// of DNS: what people host domains at, and the four ways to do it oneself (acme-dns,
// exec, httpreq, rfc2136).
//
// The build puts it in the place of the list that lego has. That one links the kits of
// nearly two hundred providers, which would be most of the program.
package dns

import (
	"fmt"

	"github.com/go-acme/lego/v5/challenge"
	"github.com/go-acme/lego/v5/providers/dns/acmedns"
	"github.com/go-acme/lego/v5/providers/dns/cloudflare"
	"github.com/go-acme/lego/v5/providers/dns/desec"
	"github.com/go-acme/lego/v5/providers/dns/digitalocean"
	"github.com/go-acme/lego/v5/providers/dns/dnsupdate"
	"github.com/go-acme/lego/v5/providers/dns/duckdns"
	"github.com/go-acme/lego/v5/providers/dns/exec"
	"github.com/go-acme/lego/v5/providers/dns/gandiv5"
	"github.com/go-acme/lego/v5/providers/dns/godaddy"
	"github.com/go-acme/lego/v5/providers/dns/hetzner"
	"github.com/go-acme/lego/v5/providers/dns/httpreq"
	"github.com/go-acme/lego/v5/providers/dns/inwx"
	"github.com/go-acme/lego/v5/providers/dns/ionos"
	"github.com/go-acme/lego/v5/providers/dns/namecheap"
	"github.com/go-acme/lego/v5/providers/dns/netcup"
	"github.com/go-acme/lego/v5/providers/dns/ovh"
	"github.com/go-acme/lego/v5/providers/dns/porkbun"
	"github.com/go-acme/lego/v5/providers/dns/route53"
)

// NewDNSChallengeProviderByName makes the provider that has this name. Its settings
// are in the environment.
func NewDNSChallengeProviderByName(name string) (challenge.Provider, error) {
	switch name {
	case "acme-dns", "acmedns":
		return acmedns.NewDNSProvider()
	case "cloudflare":
		return cloudflare.NewDNSProvider()
	case "desec":
		return desec.NewDNSProvider()
	case "digitalocean":
		return digitalocean.NewDNSProvider()
	case "duckdns":
		return duckdns.NewDNSProvider()
	case "exec":
		return exec.NewDNSProvider()
	case "gandiv5":
		return gandiv5.NewDNSProvider()
	case "godaddy":
		return godaddy.NewDNSProvider()
	case "hetzner":
		return hetzner.NewDNSProvider()
	case "httpreq":
		return httpreq.NewDNSProvider()
	case "inwx":
		return inwx.NewDNSProvider()
	case "ionos":
		return ionos.NewDNSProvider()
	case "namecheap":
		return namecheap.NewDNSProvider()
	case "netcup":
		return netcup.NewDNSProvider()
	case "ovh":
		return ovh.NewDNSProvider()
	case "porkbun":
		return porkbun.NewDNSProvider()
	case "dnsupdate", "rfc2136":
		return dnsupdate.NewDNSProvider()
	case "route53":
		return route53.NewDNSProvider()
	}
	return nil, fmt.Errorf("DNS provider %q is not in this build of Traefik", name)
}
