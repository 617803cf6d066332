package external

import (
	"database/sql"
	"net/url"
	"strings"

	mysqldriver "github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/k3s-io/kine/pkg/tls"

	"github.com/podo-dev/podo/pkg/plan"
)

// database is the one that kine takes where the endpoint names none.
const database = "kubernetes"

// openPostgres reads the endpoint as kine's driver does.
func openPostgres(x plan.External) (*sql.DB, error) {
	u, err := url.Parse(string(x.URL))
	if err != nil {
		return nil, err
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/" + database
	}
	u.Path = strings.ToLower(u.Path)
	q := u.Query()
	for name, file := range map[string]string{"sslcert": x.Files.Cert, "sslkey": x.Files.Key, "sslrootcert": x.CA} {
		if file == "" || q.Has(name) {
			continue
		}
		q.Set(name, file)
		if !q.Has("sslmode") {
			q.Set("sslmode", "verify-full")
		}
	}
	u.RawQuery = q.Encode()
	config, err := pgx.ParseConfig(u.String())
	if err != nil {
		return nil, err
	}
	return stdlib.OpenDB(*config), nil
}

func openMySQL(x plan.External) (*sql.DB, error) {
	config, err := mysqldriver.ParseDSN(string(x.URL))
	if err != nil {
		return nil, err
	}
	secure, err := tls.Config{CAFile: x.CA, CertFile: x.Files.Cert, KeyFile: x.Files.Key}.ClientConfig()
	if err != nil {
		return nil, err
	}
	if secure != nil {
		config.TLS = secure
		if config.TLS.ServerName == "" {
			host, _, _ := strings.Cut(config.Addr, ":")
			config.TLS.ServerName = host
		}
	}
	if config.DBName == "" {
		config.DBName = database
	}
	connector, err := mysqldriver.NewConnector(config)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}
