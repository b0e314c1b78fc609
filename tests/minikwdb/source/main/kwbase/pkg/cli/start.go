package cli

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"gitee.com/kwbasedb/kwbase/pkg/server"
	"minikw.example/flagset"
)

// serverFlags are KWDB's flags of start-single-node. Most change nothing here and are only read.
func serverFlags(f *flagset.Set) {
	f.Add("background", "", "bool", "false", "start the server in the background")
	f.Add("certs-dir", "", "string", "${HOME}/.kwbase-certs", "path to the directory with certificates")
	f.Add("http-addr", "", "string", ":8080", "the address to listen on for HTTP requests")
	f.Add("insecure", "", "bool", "false", "run without encryption and authentication")
	f.Add("listen-addr", "", "string", ":26257", "the address to listen on for clients and other nodes")
	f.Add("listening-url-file", "", "string", "", "file that receives the connection URL once the server is ready")
	f.Add("log-dir", "", "string", "", "directory of the log files")
	f.Add("pid-file", "", "string", "", "file that receives the process id once the server is ready")
	f.Add("socket-dir", "", "string", os.Getenv("KWBASE_SOCKET_DIR"), "directory of a Unix socket for clients")
	f.Add("store", "s", "strings", "kwbase-data", "the file path to a storage device")
	for _, name := range []string{"experimental-dns-srv", "external-io-disable-http", "external-io-disable-implicit-credentials",
		"unencrypted-localhost-http", "upgrade-complete", "use-raft-store"} {
		f.Add(name, "", "bool", "false", "accepted as KWDB does")
	}
	for _, name := range []string{"attrs", "brpc-addr", "buffer-pool-size", "cache", "cert-principal-map", "cgroup-user", "clock-device",
		"external-io-dir", "extra-startup-item", "import-filename", "import-password", "import-path", "locality", "log-dir-max-size",
		"log-file-max-size", "log-file-verbosity", "max-disk-temp-storage", "max-sql-memory", "restful-port", "restful-timeout",
		"sql-addr", "sql-audit-dir", "storage-engine", "task-queue-size", "temp-dir", "thread-pool-size", "ts-store"} {
		f.Add(name, "", "string", "", "accepted as KWDB does")
	}
	f.Add("host", "", "string", "", "alias of --listen-addr").Hidden = true
	f.Add("port", "", "string", "", "alias of --listen-addr").Hidden = true
}

func clusterFlags(f *flagset.Set) {
	serverFlags(f)
	for _, name := range []string{"advertise-addr", "advertise-sql-addr", "cluster-name", "locality-advertise-addr", "max-offset"} {
		f.Add(name, "", "string", "", "accepted as KWDB does")
	}
	f.Add("disable-cluster-name-verification", "", "bool", "false", "accepted as KWDB does")
	f.Add("join", "j", "strings", "", "the addresses for connecting the node to a cluster")
}

// storePath reads PATH or path=PATH,attrs=…,size=….
func storePath(spec string) (string, error) {
	path := spec
	if strings.Contains(spec, "=") {
		path = ""
		for _, field := range strings.Split(spec, ",") {
			if strings.HasPrefix(field, "path=") {
				path = strings.TrimPrefix(field, "path=")
			}
		}
	}
	if path == "" {
		return "", fmt.Errorf("no path specified in store %q", spec)
	}
	return filepath.Abs(path)
}

const insecureWarning = `*
* WARNING: RUNNING IN INSECURE MODE!
* 
* - Your cluster is open for any client that can access %s.
* - Any user, even root, can log in without providing a password.
* - Any user, connecting as root, can read or write any data in your cluster.
* - There is no network encryption nor authentication, and thus no confidentiality.
* 
*
`

func runServer(name string) func(string, *flagset.Set) error {
	return func(binary string, f *flagset.Set) error {
		if f.Bool("background") {
			return startInBackground()
		}
		cfg := server.Config{Command: name, Binary: binary, ListenAddr: f.Get("listen-addr"), HTTPAddr: f.Get("http-addr"),
			Insecure: f.Bool("insecure"), CertsDir: os.ExpandEnv(f.Get("certs-dir")), PIDFile: f.Get("pid-file"),
			URLFile: f.Get("listening-url-file"), LogDir: f.Get("log-dir"), SocketDir: f.Get("socket-dir"), Background: os.Getenv(backgroundMark) != ""}
		if name != "start-single-node" {
			if cfg.BRPCAddr = f.Get("brpc-addr"); cfg.BRPCAddr == "" {
				return errors.New("--brpc-addr's port not specified")
			}
			if len(f.All("join")) == 0 {
				return errors.New("no --join flags provided to 'kwbase " + name + "'")
			}
		}
		for _, spec := range f.All("store") {
			path, err := storePath(spec)
			if err != nil {
				return err
			}
			cfg.StoreDirs = append(cfg.StoreDirs, path)
		}
		syscall.Umask(syscall.Umask(0) | 0007)
		if cfg.Insecure {
			fmt.Fprintf(os.Stderr, insecureWarning, "<all your IP addresses>")
		}
		node, err := server.New(cfg)
		var alert *server.ErrAlert
		if errors.As(err, &alert) {
			return &exitCode{255, "F " + alert.Error()}
		}
		if err != nil {
			return err
		}
		return node.Run()
	}
}

const backgroundMark = "KWBASE_BACKGROUND_RESTART"

// startInBackground runs the same command without --background and leaves once it listens. The child stays in
// this session and process group and keeps stdout, as with KWDB.
func startInBackground() error {
	dir, err := os.MkdirTemp("", "sdnotify")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "notify.sock")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer socket.Close()
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	child := exec.Command(executable)
	child.Args = nil
	for _, arg := range os.Args {
		if arg != "--background" && arg != "--background=true" {
			child.Args = append(child.Args, arg)
		}
	}
	child.Env = append(os.Environ(), "NOTIFY_SOCKET="+path, backgroundMark+"=1")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	if err := child.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	ready := make(chan struct{})
	go func() {
		message := make([]byte, 64)
		if n, err := socket.Read(message); err == nil && strings.Contains(string(message[:n]), "READY=1") {
			close(ready)
		}
	}()
	select {
	case err := <-ended:
		if err == nil {
			err = errors.New("the server ended early")
		}
		return err
	case <-ready:
		time.Sleep(10 * time.Millisecond)
		return nil
	}
}
