// Package sql runs KWDB's SQL: a small translation in front, SQLite and its virtual tables behind.
package sql

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"gitee.com/kwbasedb/kwbase/pkg/build"
	"gitee.com/kwbasedb/kwbase/pkg/storage"
)

// Result is the answer to one statement. Without columns it has only a tag.
type Result struct {
	Columns []Column
	Rows    [][]storage.Value
	Tag     string
}

func done(tag string) *Result { return &Result{Tag: tag} }

// Session is one connection of a client.
type Session struct {
	conn      *storage.Conn
	node      *Node
	database  string
	user      string
	schemaDB  string
	variables map[string]string
	columns   map[string]string // of the tables that the current statement reads: name to type
	failed    bool              // inside a transaction after an error
}

// NewSession opens a session on the store's file.
func NewSession(path string, node *Node, user, db string) (*Session, error) {
	conn, err := storage.Open(path)
	if err != nil {
		return nil, err
	}
	if db == "" {
		db = "defaultdb"
	}
	return &Session{conn: conn, node: node, database: db, user: user, variables: newVariables()}, nil
}

// Close ends the session; an open transaction is rolled back.
func (s *Session) Close() { s.conn.Close() }

// Status is the transaction state as the wire protocol says it.
func (s *Session) Status() byte {
	switch {
	case s.failed:
		return 'E'
	case s.conn.InTransaction():
		return 'T'
	}
	return 'I'
}

// ExtraFloatDigits is the session variable of that name.
func (s *Session) ExtraFloatDigits() int {
	n, _ := strconv.Atoi(s.variables["extra_float_digits"])
	return n
}

// Split cuts a query string into statements.
func Split(source string) ([]Statement, error) {
	parts, err := splitStatements(source)
	out := make([]Statement, len(parts))
	for i, part := range parts {
		out[i] = Statement{part}
	}
	return out, err
}

// Statement is one parsed-out statement.
type Statement struct{ s statement }

// Params is the highest number of a $n in the statement.
func (st Statement) Params() int {
	highest := 0
	for _, t := range st.s.tokens {
		if n, err := strconv.Atoi(t.text); err == nil && t.kind == param && n > highest {
			highest = n
		}
	}
	return highest
}

// Execute runs one statement, under the session's statement_timeout.
func (s *Session) Execute(st Statement, params []storage.Value) (*Result, error) {
	p := &parser{statement: st.s}
	s.columns = map[string]string{}
	if s.failed && !p.peek().is("rollback", "commit", "end", "abort") {
		return nil, errorf("25P02", "current transaction is aborted, commands ignored until end of transaction block")
	}
	timedOut := false
	if ms := s.timeout(); ms > 0 {
		stopped := make(chan struct{})
		timer := time.AfterFunc(ms, func() {
			timedOut = true
			s.conn.Interrupt()
			close(stopped)
		})
		defer func() {
			if !timer.Stop() {
				<-stopped
			}
			s.conn.Resume()
		}()
	}
	result, err := s.dispatch(p, params)
	if err != nil {
		err = fromStorage(err, st.s.source)
		if timedOut {
			err = errorf("57014", "query execution canceled due to statement timeout")
		}
		s.failed = s.failed || s.conn.InTransaction()
	}
	return result, err
}

// Interrupt stops what the session runs.
func (s *Session) Interrupt() { s.conn.Interrupt() }

func (s *Session) timeout() time.Duration {
	value := strings.TrimSpace(s.variables["statement_timeout"])
	if ms, err := strconv.Atoi(value); err == nil {
		return time.Duration(ms) * time.Millisecond
	}
	d, _ := time.ParseDuration(value)
	return d
}

func (s *Session) dispatch(p *parser, params []storage.Value) (*Result, error) {
	switch {
	case p.accept("create"):
		return s.create(p)
	case p.accept("drop"):
		switch {
		case p.accept("database"):
			return s.dropDatabase(p)
		case p.accept("table"):
			return s.dropTable(p, "DROP TABLE")
		case p.accept("view"):
			return s.dropTable(p, "DROP VIEW")
		case p.accept("user"), p.accept("role"):
			return s.dropUser(p)
		}
		return nil, p.fail()
	case p.accept("alter", "table"):
		return s.alterTable(p)
	case p.accept("truncate"):
		return s.truncate(p)
	case p.accept("show"):
		return s.show(p)
	case p.accept("set", "cluster", "setting"):
		return s.setClusterSetting(p)
	case p.accept("set"):
		return s.set(p)
	case p.accept("reset"), p.accept("discard"), p.accept("deallocate"), p.accept("comment"):
		return done("SET"), nil
	case p.accept("use"):
		return s.use(p)
	case p.accept("grant"):
		return s.grant(p, false)
	case p.accept("revoke"):
		return s.grant(p, true)
	case p.accept("begin"), p.accept("start", "transaction"):
		if s.conn.InTransaction() {
			return nil, errorf("25001", "there is already a transaction in progress")
		}
		return done("BEGIN"), s.conn.Exec("BEGIN")
	case p.accept("commit"), p.accept("end"):
		return s.finish("COMMIT")
	case p.accept("rollback", "to"), p.accept("release"), p.accept("savepoint"):
		return s.savepoint(p)
	case p.accept("rollback"), p.accept("abort"):
		return s.finish("ROLLBACK")
	case p.peek().is("select", "with", "values", "insert", "upsert", "update", "delete", "explain"):
		return s.query0(p, params)
	}
	return nil, p.fail()
}

func (s *Session) create(p *parser) (*Result, error) {
	switch {
	case p.accept("ts", "database"):
		return s.createDatabase(p, engineSeries)
	case p.accept("database"):
		return s.createDatabase(p, engineRows)
	case p.accept("table"):
		return s.createTable(p)
	case p.accept("view"):
		return s.createView(p)
	case p.accept("unique", "index"):
		return s.createIndex(p, "UNIQUE ")
	case p.accept("index"):
		return s.createIndex(p, "")
	case p.accept("user"):
		return s.createUser(p, 0)
	case p.accept("role"):
		return s.createUser(p, 1)
	case p.accept("statistics"):
		return done("CREATE STATISTICS"), nil
	}
	return nil, p.fail()
}

func (s *Session) finish(tag string) (*Result, error) {
	if s.failed {
		tag = "ROLLBACK"
	}
	s.failed = false
	if !s.conn.InTransaction() {
		return done(tag), nil
	}
	err := s.conn.Exec(tag)
	if err != nil && s.conn.InTransaction() {
		_ = s.conn.Exec("ROLLBACK")
	}
	return done(tag), err
}

func (s *Session) savepoint(p *parser) (*Result, error) {
	verb := strings.ToUpper(p.tokens[0].text)
	p.accept("savepoint")
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	if verb == "ROLLBACK" {
		s.failed = false
		return done(verb), s.conn.Exec("ROLLBACK TO " + quote(name))
	}
	return done(verb), s.conn.Exec(verb + " " + quote(name))
}

// atomically runs several changes as one, inside a transaction of the client or in its own.
func (s *Session) atomically(action func() error) error {
	if err := s.conn.Exec("SAVEPOINT kw_step"); err != nil {
		return err
	}
	err := action()
	if err != nil {
		_ = s.conn.Exec("ROLLBACK TO kw_step")
	}
	if release := s.conn.Exec("RELEASE kw_step"); err == nil {
		err = release
	}
	return err
}

func (s *Session) noteJob(kind, description string) error {
	return addJob(s.conn, kind, description, "succeeded", s.now())
}

func (s *Session) set(p *parser) (*Result, error) {
	p.accept("session")
	if p.accept("transaction") {
		return done("SET TRANSACTION"), nil
	}
	name := p.next().text
	if name == "time" && p.accept("zone") {
		name = "timezone"
	} else if !p.accept("=") && !p.accept("to") {
		return nil, p.fail()
	}
	value := ""
	for !p.done() {
		value += p.next().text
	}
	if name == "database" {
		return s.useDatabase(value)
	}
	if _, known := s.variables[name]; !known {
		return nil, errorf("42704", "unrecognized configuration parameter %q", name)
	}
	if value == "default" {
		value = newVariables()[name]
	}
	s.variables[name] = value
	s.conn.SetExtraFloatDigits(s.ExtraFloatDigits())
	return done("SET"), nil
}

func (s *Session) use(p *parser) (*Result, error) {
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	return s.useDatabase(name)
}

func (s *Session) useDatabase(name string) (*Result, error) {
	id, _, err := database(s.conn, name)
	if err != nil {
		return nil, err
	}
	if id == 0 {
		return nil, errorf("3D000", "database %q does not exist", name)
	}
	s.database = name
	return done("SET"), nil
}

// split gives the database and the table of a name of one to three parts.
func (s *Session) split(parts []string) (db, table string) {
	table = parts[len(parts)-1]
	db = s.database
	if len(parts) == 3 || len(parts) == 2 && parts[0] != "public" {
		db = parts[0]
	}
	return db, table
}

func (s *Session) locate(parts []string) (*tableSpec, error) {
	db, name := s.split(parts)
	t, err := findTable(s.conn, db, name)
	if err == nil && t == nil {
		err = errorf("42P01", "relation %q does not exist", strings.Join(parts, "."))
	}
	return t, err
}

// resolve is the resolver for rewrite: a system table, or one of the store.
func (s *Session) resolve(parts []string) (string, error) {
	s.schemaDB = ""
	if len(parts) == 3 && parts[1] == "information_schema" {
		s.schemaDB = parts[0]
	}
	if len(parts) >= 2 {
		name := strings.Join(lastTwo(parts, 2), ".")
		if t, known := systemTables[name]; known {
			return s.fillSystem(name, t)
		}
	}
	t, err := s.locate(parts)
	if err != nil {
		return "", err
	}
	for _, c := range t.Columns {
		s.columns[c.Name] = c.Type
	}
	return mangle(t.DB, t.Name), nil
}

// constants are the functions without arguments that only the session knows.
func (s *Session) constants() map[string]string {
	return map[string]string{
		"version": literal(build.Short()), "kwdb_internal.cluster_id": literal(s.node.ClusterID),
		"kwdb_internal.node_executable_version": literal("20.1-3"), "kwdb_internal.is_admin": "1", "kwdb_internal.node_id": "1",
		"current_database": literal(s.database), "current_user": literal(s.user), "session_user": literal(s.user),
		"current_schema": literal("public"), "pg_backend_pid": "0", "random": "(abs(random()) / 9223372036854775808.0)",
	}
}

// HashPassword keeps a password as salt and repeated SHA-256.
func HashPassword(password string) string {
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		panic(err)
	}
	return hashWith(salt, password)
}

func hashWith(salt []byte, password string) string {
	sum := sha256.Sum256(append(append([]byte{}, salt...), password...))
	for i := 0; i < 10000; i++ {
		sum = sha256.Sum256(append(sum[:], salt...))
	}
	return hex.EncodeToString(salt) + "$" + hex.EncodeToString(sum[:])
}

// CheckPassword compares with the stored hash of the user; a user without one cannot log in by password.
func (s *Session) CheckPassword(user, password string) bool {
	rows, err := s.conn.Query("SELECT password FROM _kw_users WHERE name = ? AND password IS NOT NULL", user)
	if err != nil || len(rows) == 0 {
		return false
	}
	stored := asText(rows[0][0])
	salt, err := hex.DecodeString(strings.SplitN(stored, "$", 2)[0])
	return err == nil && hashWith(salt, password) == stored
}

// UserExists reports whether the user is known.
func (s *Session) UserExists(user string) bool {
	rows, err := s.conn.Query("SELECT 1 FROM _kw_users WHERE name = ?", user)
	return err == nil && len(rows) > 0
}
