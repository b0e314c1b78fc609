// Package pgserver serves SQL over the PostgreSQL wire protocol.
package pgserver

import (
	"crypto/tls"
	"net"

	"gitee.com/kwbasedb/kwbase/pkg/build"
	"gitee.com/kwbasedb/kwbase/pkg/sql"
	"gitee.com/kwbasedb/kwbase/pkg/storage"
	"minikw.example/pgwire"
)

// Server holds what every connection needs.
type Server struct {
	Path string // of the SQLite file
	Node *sql.Node
	TLS  *tls.Config // nil in insecure mode
	Init func() error
}

type prepared struct {
	statement sql.Statement
	empty     bool
	types     []int
}

type portal struct {
	prepared
	params  []storage.Value
	formats []int
	result  *sql.Result
}

type conn struct {
	*pgwire.Conn
	server  *Server
	session *sql.Session
	named   map[string]prepared
	portals map[string]*portal
	failed  bool // skip extended messages until Sync
}

// InitDatabase is the database name by which `kwbase init` speaks to a node that does not serve yet.
const InitDatabase = "kwdb_internal_init"

// Serve talks to one client until it leaves. Sessions begin once serving is closed.
func (s *Server) Serve(raw net.Conn, serving <-chan struct{}) {
	defer raw.Close()
	wire, params, peer, err := s.startup(raw)
	if err != nil || wire == nil {
		return
	}
	c := &conn{Conn: wire, server: s, named: map[string]prepared{}, portals: map[string]*portal{}}
	user := params["user"]
	if params["database"] == InitDatabase && (s.TLS == nil || peer == "root") {
		if err := s.Init(); err != nil {
			_ = c.fail(err)
		} else {
			_ = c.Begin('R').Int32(0).End()
			_ = c.Begin('Z').Byte('I').End()
		}
		_ = c.Flush()
		return
	}
	<-serving
	if c.session, err = sql.NewSession(s.Path, s.Node, user, params["database"]); err != nil {
		_ = c.fail(err)
		_ = c.Flush()
		return
	}
	defer c.session.Close()
	if !c.login(user, peer) {
		return
	}
	c.loop()
}

// startup answers the encryption requests; peer is the name in the client's certificate.
func (s *Server) startup(raw net.Conn) (wire *pgwire.Conn, params map[string]string, peer string, err error) {
	wire = pgwire.NewConn(raw)
	for {
		code, params, err := wire.ReadStartup()
		if err != nil {
			return nil, nil, "", err
		}
		switch {
		case code == pgwire.SSLRequest && s.TLS != nil:
			if err := wire.WriteRaw('S'); err != nil {
				return nil, nil, "", err
			}
			encrypted := tls.Server(raw, s.TLS)
			if err := encrypted.Handshake(); err != nil {
				return nil, nil, "", err
			}
			if chain := encrypted.ConnectionState().PeerCertificates; len(chain) > 0 {
				peer = chain[0].Subject.CommonName
			}
			wire = pgwire.NewConn(encrypted)
		case code == pgwire.SSLRequest, code == pgwire.GSSRequest:
			if err := wire.WriteRaw('N'); err != nil {
				return nil, nil, "", err
			}
		case code == pgwire.ProtocolV3:
			return wire, params, peer, nil
		default: // a cancel request: KWDB gives no keys, so there is nothing to cancel
			return nil, nil, "", nil
		}
	}
}

func (c *conn) login(user, peer string) bool {
	_, encrypted := c.Conn.Conn.(*tls.Conn)
	_, local := c.Conn.Conn.(*net.UnixConn)
	ok := c.server.TLS == nil || peer == user && peer != ""
	if c.server.TLS != nil && !encrypted && !local {
		_ = c.fail(&sql.Error{Code: "08004", Message: "node is running secure mode, SSL connection required"})
		_ = c.Flush()
		return false
	}
	if !ok {
		_ = c.Begin('R').Int32(3).End()
		if c.Flush() != nil {
			return false
		}
		kind, body, err := c.ReadMessage()
		ok = err == nil && kind == 'p' && c.session.CheckPassword(user, body.Text())
	}
	if !ok || !c.session.UserExists(user) {
		_ = c.fail(&sql.Error{Code: "28000", Message: "password authentication failed for user " + user})
		_ = c.Flush()
		return false
	}
	_ = c.Begin('R').Int32(0).End()
	for _, p := range [][2]string{
		{"client_encoding", "UTF8"}, {"DateStyle", "ISO, MDY"}, {"integer_datetimes", "on"}, {"kwdb_version", build.Short()},
		{"server_encoding", "UTF8"}, {"server_version", "9.5.0"}, {"standard_conforming_strings", "on"}, {"TimeZone", "UTC"},
		{"session_authorization", user}, {"is_superuser", "on"},
	} {
		_ = c.Begin('S').Text(p[0]).Text(p[1]).End()
	}
	return c.ready() == nil
}

func (c *conn) ready() error {
	if err := c.Begin('Z').Byte(c.session.Status()).End(); err != nil {
		return err
	}
	return c.Flush()
}

func (c *conn) fail(err error) error {
	e, ok := err.(*sql.Error)
	if !ok {
		e = &sql.Error{Code: "XX000", Message: err.Error()}
	}
	c.Begin('E').Byte('S').Text("ERROR").Byte('C').Text(e.Code).Byte('M').Text(e.Message)
	if e.Detail != "" {
		c.Byte('D').Text(e.Detail)
	}
	if e.Hint != "" {
		c.Byte('H').Text(e.Hint)
	}
	return c.Byte(0).End()
}

func (c *conn) loop() {
	for {
		kind, body, err := c.ReadMessage()
		if err != nil || kind == 'X' {
			return
		}
		switch {
		case kind == 'Q':
			err = c.simple(body.Text())
		case kind == 'S':
			c.failed = false
			err = c.ready()
		case kind == 'H':
			err = c.Flush()
		case c.failed:
		default:
			if problem := c.extended(kind, body); problem != nil {
				c.failed = true
				err = c.fail(problem)
			}
		}
		if err != nil {
			return
		}
	}
}

func (c *conn) simple(query string) error {
	statements, err := sql.Split(query)
	if err != nil {
		_ = c.fail(err)
		return c.ready()
	}
	if len(statements) == 0 {
		_ = c.Begin('I').End()
	}
	for _, statement := range statements {
		result, err := c.session.Execute(statement, nil)
		if err != nil {
			_ = c.fail(err)
			break
		}
		if result.Columns != nil {
			c.describe(result.Columns, nil)
			c.rows(result, nil)
		}
		_ = c.Begin('C').Text(result.Tag).End()
	}
	return c.ready()
}

func (c *conn) describe(columns []sql.Column, formats []int) {
	c.Begin('T').Int16(len(columns))
	for i, column := range columns {
		size := map[int]int{sql.OIDBool: 1, sql.OIDInt2: 2, sql.OIDInt4: 4, sql.OIDInt8: 8, sql.OIDFloat8: 8}[column.OID]
		if size == 0 {
			size = -1
		}
		c.Text(column.Name).Int32(0).Int16(0).Int32(column.OID).Int16(size).Int32(-1).Int16(formatOf(formats, i))
	}
	_ = c.End()
}

// formatOf is 0 for text and 1 for binary; one format stands for all columns.
func formatOf(formats []int, i int) int {
	switch {
	case len(formats) == 1:
		return formats[0]
	case i < len(formats):
		return formats[i]
	}
	return 0
}

func (c *conn) rows(result *sql.Result, formats []int) {
	digits := c.session.ExtraFloatDigits()
	for _, row := range result.Rows {
		c.Begin('D').Int16(len(row))
		for i, value := range row {
			column := result.Columns[i]
			if formatOf(formats, i) == 1 {
				if encoded, ok := encodeBinary(value, column.OID); ok {
					c.Sized(encoded)
					continue
				}
			}
			c.Sized(column.Text(value, digits))
		}
		_ = c.End()
	}
}
