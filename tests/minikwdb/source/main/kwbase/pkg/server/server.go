// Package server is one node: its store, its ports, its start and its stop.
package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"gitee.com/kwbasedb/kwbase/pkg/build"
	"gitee.com/kwbasedb/kwbase/pkg/pgserver"
	"gitee.com/kwbasedb/kwbase/pkg/release"
	"gitee.com/kwbasedb/kwbase/pkg/sql"
	"gitee.com/kwbasedb/kwbase/pkg/storage"
)

// Config is what the flags say.
type Config struct {
	Command                            string // start-single-node, start, start-single-replica
	Binary                             string // argv[0], for the banner
	StoreDirs                          []string
	ListenAddr, HTTPAddr, BRPCAddr     string
	Insecure                           bool
	CertsDir, PIDFile, URLFile, LogDir string
	SocketDir                          string
	Background                         bool
}

// How long the phases take: far shorter than KWDB, in the same order.
const (
	bootstrapTime  = 100 * time.Millisecond
	wrongWordTime  = 30 * time.Millisecond
	engineDelay    = 400 * time.Millisecond // time-series opens after SQL is served
	httpCloseDelay = 200 * time.Millisecond
	drainTime      = 300 * time.Millisecond
	quitHoldTime   = 1500 * time.Millisecond // LOCK outlives the answer to `quit`
)

const (
	waitingForInit = "node is waiting for cluster initialization"
	shuttingDown   = "node is shutting down"
)

// Server is a running node.
type Server struct {
	cfg        Config
	faults     faults
	store      *Store
	moreLocks  []*os.File // of further stores
	log        *logFile
	node       *sql.Node
	started    time.Time
	sqlAddress string
	tls        *tls.Config

	sqlListener, httpListener net.Listener
	unixListener              net.Listener // nil without --socket-dir
	serving                   chan struct{} // closed when SQL may run
	initialized               chan struct{} // closed by `init`, or at once
	engineOpen                chan struct{}

	mutex     sync.Mutex
	reason    string // why not ready; empty when ready
	drained   bool
	hold      time.Duration
	conns     map[net.Conn]bool
	stopOnce  sync.Once
	exitError error
	stopped   chan struct{}
}

// New opens the store and the ports; nothing is served yet.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, faults: readFaults(), started: time.Now(), reason: waitingForInit, conns: map[net.Conn]bool{},
		serving: make(chan struct{}), initialized: make(chan struct{}), engineOpen: make(chan struct{}), stopped: make(chan struct{})}
	if release.StartError != "" {
		return nil, errors.New(release.StartError)
	}
	if s.faults.has("refuse-start") {
		return nil, errors.New("failed to start: refused by a fault on demand")
	}
	var err error
	if !cfg.Insecure {
		if s.tls, err = ServerTLS(cfg.CertsDir); err != nil {
			return nil, err
		}
	}
	if s.store, err = OpenStore(cfg.StoreDirs[0], cfg.Command); err != nil {
		return nil, err
	}
	for _, extra := range cfg.StoreDirs[1:] { // further stores are locked and stay empty: one node has one file here
		if err := os.MkdirAll(filepath.Join(extra, "auxiliary"), 0750); err != nil {
			return nil, err
		}
		lock, err := lockFile(filepath.Join(extra, "LOCK"))
		if err != nil {
			return nil, fmt.Errorf("failed to create engines: %v", lockReason(err))
		}
		s.moreLocks = append(s.moreLocks, lock)
	}
	if cfg.LogDir == "" {
		s.cfg.LogDir = s.store.path("logs")
	}
	if s.log, err = openLog(s.cfg.LogDir, s.started); err != nil {
		return nil, err
	}
	return s, s.listen()
}

func (s *Server) listen() (err error) {
	if s.sqlListener, err = net.Listen("tcp", withPort(s.cfg.ListenAddr, "26257")); err != nil {
		return fmt.Errorf("kwbase server exited with error: consider changing the port via --listen-addr: %v", err)
	}
	if s.httpListener, err = net.Listen("tcp", withPort(s.cfg.HTTPAddr, "8080")); err != nil {
		return fmt.Errorf("kwbase server exited with error: consider changing the port via --http-addr: %v", err)
	}
	if s.cfg.BRPCAddr != "" { // only cluster traffic goes there, and this node has no peers
		if _, err = net.Listen("tcp", s.cfg.BRPCAddr); err != nil {
			return fmt.Errorf("kwbase server exited with error: consider changing the port via --brpc-addr: %v", err)
		}
	}
	s.sqlAddress = advertised(s.sqlListener)
	return s.store.WriteAddresses(s.sqlAddress, advertised(s.httpListener))
}

// withPort fills in what an address leaves out.
func withPort(address, port string) string {
	host, given, err := net.SplitHostPort(address)
	if err != nil {
		host, given = address, ""
	}
	if given == "" {
		given = port
	}
	return net.JoinHostPort(host, given)
}

// advertised is the address under which others reach the listener.
func advertised(l net.Listener) string {
	host, port, _ := net.SplitHostPort(l.Addr().String())
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return net.JoinHostPort(host, port)
}

// Run serves until the node has stopped.
func (s *Server) Run() error {
	if s.cfg.Background {
		if err := s.log.takeStderr(); err != nil {
			return err
		}
	}
	web := &http.Server{Handler: s.httpHandler(), ReadHeaderTimeout: 10 * time.Second}
	var config *tls.Config
	if s.tls != nil { // browsers and probes have no client certificate
		config = &tls.Config{Certificates: s.tls.Certificates, MinVersion: tls.VersionTLS12}
	}
	go func() { _ = web.Serve(eitherListener{s.httpListener, config}) }()
	go s.handleSignals()
	s.node = &sql.Node{Insecure: s.cfg.Insecure, Address: s.sqlAddress, SQLAddress: s.sqlAddress, StartMode: s.cfg.Command,
		Started: s.started, StoreDir: s.store.Dir, WrongAnswers: s.faults.has("wrong-answer"),
		Live:     func() bool { return s.notReady() == "" },
		Draining: func() bool { return s.notReady() == shuttingDown },
		Drain:    s.drainOnly, Quit: func() { go s.Stop(quitHoldTime) }}
	wire := &pgserver.Server{Path: s.store.DataPath(), Node: s.node, TLS: s.tls, Init: s.init}
	go s.accept(s.sqlListener, wire)
	notifyReady()
	if err := s.bootstrap(wire); err != nil {
		return err
	}
	<-s.stopped
	return s.exitError
}

var errInterrupted = errors.New("interrupted")

func (s *Server) bootstrap(wire *pgserver.Server) error {
	if s.store.New && s.cfg.Command != "start-single-node" {
		fmt.Println("INFO: initial startup completed.")
		fmt.Println("Node will now attempt to join a running cluster, or wait for `kwbase init`.")
		select {
		case <-s.initialized:
		case <-s.stopped:
			return nil
		}
	} else {
		_ = s.init()
	}
	time.Sleep(bootstrapTime + s.faults["slow-start"])
	conn, err := storage.Open(s.store.DataPath())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := sql.Bootstrap(conn, s.store.ClusterID); err != nil {
		return err
	}
	rows, err := conn.Query("SELECT value FROM _kw_meta WHERE key = 'cluster_id'")
	if err != nil {
		return err
	}
	s.store.ClusterID, _ = rows[0][0].(string)
	s.node.ClusterID = s.store.ClusterID
	if s.faults.has("lose-row") {
		loseRow(conn, false)
	}
	if s.faults.has("hang-before-ready") {
		return nil
	}
	if err := s.listenUnix(wire); err != nil {
		return err
	}
	close(s.serving)
	// While the node comes up, KWDB gives this wrong word for a moment.
	s.setReason(waitingForInit, shuttingDown)
	time.Sleep(wrongWordTime)
	s.setReason(shuttingDown, "")
	if err := s.announce(); err != nil {
		return err
	}
	go s.openEngine()
	if after, armed := s.faults["die-after"]; armed {
		time.AfterFunc(after, func() { panic("died on demand") })
	}
	return nil
}

// openEngine runs after SQL is served: a store that a newer release has written kills the process now.
func (s *Server) openEngine() {
	time.Sleep(engineDelay)
	groups, err := strconv.Atoi(os.Getenv("KW_VGROUP_NUM"))
	if err != nil || groups < 1 {
		groups = 4
	}
	if err := storage.OpenEngine(s.store.Dir, s.cfg.LogDir, groups); err != nil {
		panic("failed create tsEngine, err: open TSEngineImpl Error!")
	}
	close(s.engineOpen)
	if s.faults.has("lose-ts-row") {
		if conn, err := storage.Open(s.store.DataPath()); err == nil {
			loseRow(conn, true)
			conn.Close()
		}
	}
}

// loseRow is a fault on demand: one row of the first table really goes.
func loseRow(conn *storage.Conn, timeSeries bool) {
	if table, err := sql.FirstUserTable(conn, timeSeries); err == nil && table != "" {
		_ = conn.Exec("DELETE FROM " + table + " WHERE rowid = (SELECT max(rowid) FROM " + table + ")")
	}
}

func (s *Server) init() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	select {
	case <-s.initialized:
		return errors.New("cluster has already been initialized")
	default:
		close(s.initialized)
		return nil
	}
}

// listenUnix opens the local socket when SQL is about to be served. As with KWDB one that a killed server has left is in
// the way.
func (s *Server) listenUnix(wire *pgserver.Server) (err error) {
	if s.cfg.SocketDir == "" {
		return nil
	}
	_, port, _ := net.SplitHostPort(s.sqlListener.Addr().String())
	listener, err := net.Listen("unix", filepath.Join(s.cfg.SocketDir, ".s.PGSQL."+port))
	if err != nil {
		return err
	}
	s.mutex.Lock()
	s.unixListener = listener
	s.mutex.Unlock()
	go s.accept(listener, wire)
	return nil
}

func (s *Server) accept(listener net.Listener, wire *pgserver.Server) {
	for {
		raw, err := listener.Accept()
		if err != nil {
			return
		}
		s.mutex.Lock()
		s.conns[raw] = true
		s.mutex.Unlock()
		go func() {
			wire.Serve(raw, s.serving)
			s.mutex.Lock()
			delete(s.conns, raw)
			s.mutex.Unlock()
		}()
	}
}

func (s *Server) connections() int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return len(s.conns)
}

func (s *Server) notReady() string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.reason
}

// setReason changes the readiness, unless something else changed it in between.
func (s *Server) setReason(from, to string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.reason == from && !s.drained {
		s.reason = to
	}
}

// announce prints the banner, and writes the files that say where the node is.
func (s *Server) announce() error {
	url := fmt.Sprintf("postgresql://root@%s?sslmode=disable", s.sqlAddress)
	security := "--insecure"
	if !s.cfg.Insecure {
		dir := s.cfg.CertsDir
		url = fmt.Sprintf("postgresql://root@%s?sslcert=%s&sslkey=%s&sslmode=verify-full&sslrootcert=%s", s.sqlAddress,
			filepath.Join(dir, "client.root.crt"), filepath.Join(dir, "client.root.key"), filepath.Join(dir, "ca.crt"))
		security = "--certs-dir=" + dir
	}
	status := "restarted pre-existing node"
	if s.store.New {
		status = "initialized new cluster"
	}
	banner := fmt.Sprintf("KWDB node starting at %s (took %.1fs)\n", time.Now().UTC(), time.Since(s.started).Seconds())
	for _, line := range [][2]string{
		{"build:", build.Tag() + " @ " + build.Time() + " (" + runtime.Version() + ")"}, {"sql:", url},
		{"RPC client flags:", s.cfg.Binary + " <client cmd> --host=" + s.sqlAddress + " " + security},
		{"logs:", s.cfg.LogDir}, {"temp dir:", s.store.TempDir}, {"external I/O path:", s.store.path("extern")},
		{"store[0]:", "path=" + s.store.Dir}, {"storage engine:", "rocksdb"}, {"ts storage engine:", "kwtsdb"},
		{"status:", status}, {"clusterID:", s.store.ClusterID}, {"nodeID:", "1"},
	} {
		banner += fmt.Sprintf("%-21s%s\n", line[0], line[1])
	}
	s.log.write("node startup completed:\n" + banner)
	if !s.cfg.Background {
		fmt.Print(banner)
	}
	if s.cfg.PIDFile != "" {
		if err := os.WriteFile(s.cfg.PIDFile, []byte(fmt.Sprintf("%d\n", os.Getpid())), 0640); err != nil {
			return err
		}
	}
	if s.cfg.URLFile != "" {
		return os.WriteFile(s.cfg.URLFile, []byte(url), 0640)
	}
	return nil
}
