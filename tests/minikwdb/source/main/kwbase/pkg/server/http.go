package server

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"runtime"

	"gitee.com/kwbasedb/kwbase/pkg/build"
)

func (s *Server) httpHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/health", s.health)
	mux.HandleFunc("/_admin/v1/health", s.health)
	mux.HandleFunc("/_status/vars", s.vars)
	mux.HandleFunc("/_status/nodes", s.nodes)
	return mux
}

// health answers 200 early; only with ?ready=1 does it wait for the node to serve.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	reason := s.notReady()
	if r.URL.Query().Get("ready") == "" || reason == "" {
		fmt.Fprint(w, "{}")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprintf(w, "{\n  \"error\": %q,\n  \"message\": %q,\n  \"code\": 14,\n  \"details\": []\n}", reason, reason)
}

func (s *Server) vars(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	live := 0.0
	if s.notReady() == "" {
		live = 1
	}
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	fmt.Fprintf(w, "# HELP build_timestamp Build information\n# TYPE build_timestamp gauge\n"+
		"build_timestamp{tag=%q,go_version=%q} %d\n", build.Tag(), runtime.Version(), s.started.Unix())
	for _, metric := range []struct {
		name, help string
		value      float64
	}{
		{"liveness_livenodes", "Number of live nodes in the cluster", live},
		{"sql_conns", "Number of active sql connections", float64(s.connections())},
		{"sys_goroutines", "Current number of goroutines", float64(runtime.NumGoroutine())},
		{"sys_go_allocbytes", "Current bytes of memory allocated by go", float64(memory.Alloc)},
		{"ranges_unavailable", "Number of ranges with fewer live replicas than needed for quorum", 0},
	} {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s gauge\n%s %.1f\n", metric.name, metric.help, metric.name, metric.name, metric.value)
	}
}

func (s *Server) nodes(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	desc := map[string]interface{}{
		"nodeId": 1, "address": map[string]string{"networkField": "tcp", "addressField": s.sqlAddress},
		"ServerVersion": map[string]int{"majorVal": 20, "minorVal": 1, "patch": 0, "unstable": 3}, "buildTag": build.Tag(),
		"startedAt": s.started.UnixNano(),
	}
	_ = json.NewEncoder(w).Encode(map[string]interface{}{"nodes": []interface{}{map[string]interface{}{
		"desc": desc, "buildInfo": map[string]string{"tag": build.Tag(), "goVersion": runtime.Version()}}}})
}

// eitherListener serves TLS and plain connections on one port, as a secure node of KWDB does.
type eitherListener struct {
	net.Listener
	config *tls.Config
}

type peekedConn struct {
	net.Conn
	in *bufio.Reader
}

func (c *peekedConn) Read(p []byte) (int, error) { return c.in.Read(p) }

func (l eitherListener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil || l.config == nil {
		return raw, err
	}
	return &sniffConn{Conn: raw, config: l.config}, nil
}

// sniffConn decides at the first read, so that a silent client blocks nobody else.
type sniffConn struct {
	net.Conn
	config  *tls.Config
	decided net.Conn
}

func (c *sniffConn) decide() error {
	if c.decided != nil {
		return nil
	}
	in := bufio.NewReader(c.Conn)
	first, err := in.Peek(1)
	if err != nil {
		return err
	}
	c.decided = &peekedConn{c.Conn, in}
	if first[0] == 0x16 { // the start of a TLS handshake
		c.decided = tls.Server(c.decided, c.config)
	}
	return nil
}

func (c *sniffConn) Read(p []byte) (int, error) {
	if err := c.decide(); err != nil {
		return 0, err
	}
	return c.decided.Read(p)
}

func (c *sniffConn) Write(p []byte) (int, error) {
	if err := c.decide(); err != nil {
		return 0, err
	}
	return c.decided.Write(p)
}
