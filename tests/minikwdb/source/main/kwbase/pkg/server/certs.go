package server

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
)

// ServerTLS is the configuration of a node: ca.crt, node.crt and node.key of the directory.
func ServerTLS(dir string) (*tls.Config, error) {
	pair, pool, err := load(dir, "node")
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12}, nil
}

// ClientTLS is the configuration of a user: ca.crt, client.USER.crt and client.USER.key.
func ClientTLS(dir, user, host string) (*tls.Config, error) {
	pair, pool, err := load(dir, "client."+user)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, ServerName: host, MinVersion: tls.VersionTLS12}, nil
}

func load(dir, name string) (pair tls.Certificate, pool *x509.CertPool, err error) {
	key := filepath.Join(dir, name+".key")
	info, err := os.Stat(key)
	if err != nil {
		return pair, nil, fmt.Errorf("problem using security settings: no certificates found; does certs dir exist? %v", err)
	}
	if mode := info.Mode().Perm(); mode&0077 != 0 {
		return pair, nil, fmt.Errorf("problem using security settings: key file %s has permissions %s, exceeds -rwx------", key, mode)
	}
	if pair, err = tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), key); err != nil {
		return pair, nil, err
	}
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return pair, nil, err
	}
	pool = x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return pair, nil, fmt.Errorf("no certificate in %s/ca.crt", dir)
	}
	return pair, pool, nil
}
