package config

import (
	"strings"
	"testing"
)

func TestParseEndpoint(t *testing.T) {
	tests := map[string]struct {
		in   Secret
		want Endpoint
		err  string
	}{
		"etcd":                    {in: "https://10.0.0.1:2379,https://10.0.0.2:2379", want: Endpoint{"etcd", "10.0.0.1:2379, 10.0.0.2:2379", "https://10.0.0.1:2379,https://10.0.0.2:2379"}},
		"etcd with a slash":       {in: "http://a:2379/", want: Endpoint{"etcd", "a:2379", "http://a:2379"}},
		"etcd of two schemes":     {in: "https://a:2379,http://b:2379", err: "is not a list of https"},
		"etcd with a user":        {in: "https://u:hush@a:2379", err: "--datastore-certfile"},
		"PostgreSQL":              {in: "postgres://u:hush@db:5432/podo?sslmode=disable", want: Endpoint{"postgres", "db:5432", "postgres://u:hush@db:5432/podo?sslmode=disable"}},
		"PostgreSQL's other name": {in: "postgresql://db/podo", want: Endpoint{"postgres", "db", "postgres://db/podo"}},
		"PostgreSQL by socket":    {in: "postgres://u@/podo?host=/run/postgresql", want: Endpoint{"postgres", "/run/postgresql", "postgres://u@/podo?host=/run/postgresql"}},
		"PostgreSQL nowhere":      {in: "postgres:///podo", err: "names no host"},
		"password to be escaped":  {in: "postgres://u:hush%zz@db/podo", err: "%2F"},
		"MySQL":                   {in: "mysql://u:hu@sh@tcp(db:3306)/podo", want: Endpoint{"mysql", "db:3306", "u:hu@sh@tcp(db:3306)/podo"}},
		"MySQL like a URL":        {in: "mysql://u:hush@db:3306/podo", want: Endpoint{"mysql", "db:3306", "u:hush@tcp(db:3306)/podo"}},
		"MySQL without a user":    {in: "mysql://tcp(db)/", want: Endpoint{"mysql", "db", "tcp(db)/"}},
		"MySQL cut off":           {in: "mysql://u:hush@tcp(db:3306", err: "malformed"},
		"MySQL nowhere":           {in: "mysql://u:hush@/podo", err: "names no host"},
		"NATS":                    {in: "nats://a:4222,nats://b:4222", want: Endpoint{"nats", "a:4222, b:4222", "nats://a:4222,nats://b:4222"}},
		"NATS with something":     {in: "nats://a:4222,hush", err: "is not a list of nats"},
		"unknown":                 {in: "oracle://u:hush@db", err: `"oracle" is no kind`},
		"a file":                  {in: "/var/lib/hush", err: "no scheme"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseEndpoint(tt.in)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "hush") {
					t.Errorf("err = %v, want %q in it and no secret", err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("ParseEndpoint(%q) = %#v, %v; want %#v", string(tt.in), got, err, tt.want)
			}
			if strings.Contains(got.Where, "hush") {
				t.Errorf("Where shows a secret: %s", got.Where)
			}
		})
	}
}
