package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"minikw.example/flagset"
)

func certFlags(f *flagset.Set) {
	f.Add("certs-dir", "", "string", "${HOME}/.kwbase-certs", "path to the directory with certificates")
	f.Add("ca-key", "", "string", "", "path to the key of the authority")
	f.Add("lifetime", "", "duration", "43800h", "how long the certificate is valid")
	f.Add("overwrite", "", "bool", "false", "replace existing files")
	f.Add("allow-ca-key-reuse", "", "bool", "false", "use an existing key")
}

func readAll(in io.Reader) (string, error) {
	data, err := io.ReadAll(in)
	return string(data), err
}

// issue writes NAME.crt and a key; parent nil makes it an authority.
func issue(f *flagset.Set, template *x509.Certificate, name, keyPath string, parent *tls.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	lifetime, err := time.ParseDuration(f.Get("lifetime"))
	if err != nil {
		return err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return err
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(lifetime)
	signer, signKey := template, interface{}(key)
	if parent != nil {
		if signer, err = x509.ParseCertificate(parent.Certificate[0]); err != nil {
			return err
		}
		signKey = parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, &key.PublicKey, signKey)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	dir := os.ExpandEnv(f.Get("certs-dir"))
	if err := os.MkdirAll(dir, 0700); err != nil {
		return err
	}
	if err := writePEM(f, filepath.Join(dir, name+".crt"), "CERTIFICATE", der, 0644); err != nil {
		return err
	}
	return writePEM(f, keyPath, "PRIVATE KEY", secret, 0600)
}

func writePEM(f *flagset.Set, path, kind string, der []byte, mode os.FileMode) error {
	if _, err := os.Stat(path); err == nil && !f.Bool("overwrite") {
		return errors.New("file " + path + " exists: use --overwrite to replace it")
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

func authority(f *flagset.Set) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(os.ExpandEnv(f.Get("certs-dir")), "ca.crt"), f.Get("ca-key"))
	return &pair, err
}

func runCreateCA(_ string, f *flagset.Set) error {
	return issue(f, &x509.Certificate{Subject: pkix.Name{Organization: []string{"KWDB"}, CommonName: "KWDB CA"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}, "ca", f.Get("ca-key"), nil)
}

func runCreateNode(_ string, f *flagset.Set) error {
	ca, err := authority(f)
	if err != nil {
		return err
	}
	template := &x509.Certificate{Subject: pkix.Name{Organization: []string{"KWDB"}, CommonName: "node"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, host := range f.Args {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return issue(f, template, "node", filepath.Join(os.ExpandEnv(f.Get("certs-dir")), "node.key"), ca)
}

func runCreateClient(_ string, f *flagset.Set) error {
	if len(f.Args) != 1 {
		return errors.New("give one user name")
	}
	ca, err := authority(f)
	if err != nil {
		return err
	}
	name := "client." + f.Args[0]
	return issue(f, &x509.Certificate{Subject: pkix.Name{Organization: []string{"KWDB"}, CommonName: f.Args[0]},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		name, filepath.Join(os.ExpandEnv(f.Get("certs-dir")), name+".key"), ca)
}
