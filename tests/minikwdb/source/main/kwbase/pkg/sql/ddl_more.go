package sql

import (
	"strings"

	"gitee.com/kwbasedb/kwbase/pkg/storage"
)

func (s *Session) createTableAs(p *parser, spec *tableSpec) (*Result, error) {
	query, err := rewrite(statement{p.tokens[p.at:], p.source}, s.resolve, s.constants())
	if err != nil {
		return nil, err
	}
	return done("CREATE TABLE AS"), s.atomically(func() error {
		if spec.ID, err = nextID(s.conn); err != nil {
			return err
		}
		if err := s.conn.Exec("CREATE TABLE " + mangle(spec.DB, spec.Name) + " AS " + query.sql); err != nil {
			return err
		}
		stmt, err := s.conn.Prepare("SELECT * FROM " + mangle(spec.DB, spec.Name))
		if err != nil {
			return err
		}
		defer stmt.Close()
		names, _ := stmt.Columns()
		for _, name := range names {
			spec.Columns = append(spec.Columns, columnSpec{Name: name, Type: "STRING"})
		}
		return spec.save(s.conn)
	})
}

func (s *Session) createView(p *parser) (*Result, error) {
	parts, err := p.dotted()
	if err != nil {
		return nil, err
	}
	if err := p.expect("as"); err != nil {
		return nil, err
	}
	db, name := s.split(parts)
	spec := &tableSpec{DB: db, Name: name, Kind: kindView, View: p.sourceOf(p.tokens[p.at:])}
	query, err := rewrite(statement{p.tokens[p.at:], p.source}, s.resolve, s.constants())
	if err != nil {
		return nil, err
	}
	return done("CREATE VIEW"), s.atomically(func() error {
		if spec.ID, err = nextID(s.conn); err != nil {
			return err
		}
		if err := s.conn.Exec("CREATE VIEW " + mangle(db, name) + " AS " + query.sql); err != nil {
			return err
		}
		return spec.save(s.conn)
	})
}

func (s *Session) createDatabase(p *parser, engine string) (*Result, error) {
	exists := p.accept("if", "not", "exists")
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	for !p.done() { // RETENTIONS 365D and the like
		p.next()
	}
	id, _, err := database(s.conn, name)
	if err != nil {
		return nil, err
	}
	if id != 0 {
		if exists {
			return done("CREATE DATABASE"), nil
		}
		return nil, errorf("42P04", "database %q already exists", name)
	}
	return done("CREATE DATABASE"), s.atomically(func() error {
		if id, err = nextID(s.conn); err != nil {
			return err
		}
		return s.conn.Exec("INSERT INTO _kw_databases VALUES (?, ?, ?)", id, name, engine)
	})
}

func (s *Session) dropDatabase(p *parser) (*Result, error) {
	exists := p.accept("if", "exists")
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	restrict := p.accept("restrict")
	id, _, err := database(s.conn, name)
	if err != nil {
		return nil, err
	}
	if id == 0 {
		if exists {
			return done("DROP DATABASE"), nil
		}
		return nil, errorf("3D000", "database %q does not exist", name)
	}
	tables, err := allTables(s.conn, name)
	if err != nil {
		return nil, err
	}
	if restrict && len(tables) > 0 {
		return nil, errorf("2BP01", "database %q is not empty and RESTRICT was specified", name)
	}
	return done("DROP DATABASE"), s.atomically(func() error {
		for _, t := range tables {
			if err := s.drop(t); err != nil {
				return err
			}
		}
		if err := s.conn.Exec("DELETE FROM _kw_grants WHERE db = ?", name); err != nil {
			return err
		}
		return s.conn.Exec("DELETE FROM _kw_databases WHERE id = ?", id)
	})
}

func (s *Session) drop(t *tableSpec) error {
	what := "TABLE "
	if t.Kind == kindView {
		what = "VIEW "
	}
	if err := s.conn.Exec("DROP " + what + mangle(t.DB, t.Name)); err != nil {
		return err
	}
	return s.conn.Exec("DELETE FROM _kw_tables WHERE id = ?", t.ID)
}

func (s *Session) dropTable(p *parser, tag string) (*Result, error) {
	exists := p.accept("if", "exists")
	for {
		parts, err := p.dotted()
		if err != nil {
			return nil, err
		}
		t, err := s.locate(parts)
		if err != nil {
			if e, ok := err.(*Error); ok && exists && e.Code == "42P01" {
				return done(tag), nil
			}
			return nil, err
		}
		if err := s.atomically(func() error {
			if err := s.drop(t); err != nil {
				return err
			}
			return s.noteJob("SCHEMA CHANGE", tag+" "+t.DB+".public."+t.Name)
		}); err != nil {
			return nil, err
		}
		if !p.accept(",") {
			return done(tag), nil
		}
	}
}

func (s *Session) truncate(p *parser) (*Result, error) {
	p.accept("table")
	parts, err := p.dotted()
	if err != nil {
		return nil, err
	}
	t, err := s.locate(parts)
	if err != nil {
		return nil, err
	}
	return done("TRUNCATE"), s.conn.Exec("DELETE FROM " + mangle(t.DB, t.Name))
}

func (s *Session) createIndex(p *parser, unique string) (*Result, error) {
	exists := p.accept("if", "not", "exists")
	name := ""
	if !p.peek().is("on") {
		name, _ = p.name()
	}
	if err := p.expect("on"); err != nil {
		return nil, err
	}
	parts, err := p.dotted()
	if err != nil {
		return nil, err
	}
	t, err := s.locate(parts)
	if err != nil {
		return nil, err
	}
	columns, err := p.names()
	if err != nil {
		return nil, err
	}
	if t.Kind == kindTimeSeries { // a tag index changes no answer here
		return done("CREATE INDEX"), nil
	}
	if name == "" {
		name = t.Name + "_" + strings.Join(columns, "_") + "_idx"
	}
	clause := ""
	if exists {
		clause = "IF NOT EXISTS "
	}
	return done("CREATE INDEX"), s.atomically(func() error {
		if err := s.conn.Exec("CREATE " + unique + "INDEX " + clause + quote(t.DB+"."+t.Name+"@"+name) + " ON " + mangle(t.DB, t.Name) + " (" + quoteAll(columns) + ")"); err != nil {
			return err
		}
		t.Constraints = append(t.Constraints, unique+"INDEX "+name+" ("+strings.Join(columns, " ASC, ")+" ASC)")
		return t.save(s.conn)
	})
}

// alterTable knows ADD COLUMN and DROP COLUMN of relational tables.
func (s *Session) alterTable(p *parser) (*Result, error) {
	parts, err := p.dotted()
	if err != nil {
		return nil, err
	}
	t, err := s.locate(parts)
	if err != nil {
		return nil, err
	}
	if t.Kind != kindBase {
		return nil, errorf("0A000", "ALTER of a %s is not supported", strings.ToLower(t.Kind))
	}
	switch {
	case p.accept("add"):
		p.accept("column")
		b := &tableBuilder{s: s, p: p, spec: t}
		if err := b.column(); err != nil {
			return nil, err
		}
		return done("ALTER TABLE"), s.alter(t, "ADD COLUMN "+b.lines[0])
	case p.accept("drop"):
		p.accept("column")
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		var kept []columnSpec
		for _, col := range t.Columns {
			if col.Name != name {
				kept = append(kept, col)
			}
		}
		t.Columns = kept
		return done("ALTER TABLE"), s.alter(t, "DROP COLUMN "+quote(name))
	}
	return nil, p.fail()
}

func (s *Session) alter(t *tableSpec, clause string) error {
	return s.atomically(func() error {
		if err := s.conn.Exec("ALTER TABLE " + mangle(t.DB, t.Name) + " " + clause); err != nil {
			return err
		}
		if err := t.save(s.conn); err != nil {
			return err
		}
		return s.noteJob("SCHEMA CHANGE", "ALTER TABLE "+t.DB+".public."+t.Name)
	})
}

func (s *Session) createUser(p *parser, isRole int64) (*Result, error) {
	exists := p.accept("if", "not", "exists")
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	var password storage.Value
	p.accept("with")
	if p.accept("password") {
		if s.node.Insecure {
			return nil, errorf("28P01", "setting or updating a password is not supported in insecure mode")
		}
		password = HashPassword(p.next().text)
	}
	rows, err := s.conn.Query("SELECT 1 FROM _kw_users WHERE name = ?", name)
	if err != nil {
		return nil, err
	}
	if len(rows) > 0 && !exists {
		return nil, errorf("42710", "a role/user named %s already exists", name)
	}
	return done("CREATE ROLE"), s.conn.Exec("INSERT OR IGNORE INTO _kw_users VALUES (?, ?, ?)", name, password, isRole)
}

func (s *Session) dropUser(p *parser) (*Result, error) {
	p.accept("if", "exists")
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	rows, err := s.conn.Query("SELECT db || '.public.' || tbl FROM _kw_grants WHERE grantee = ?", name)
	if err != nil {
		return nil, err
	}
	if len(rows) > 0 {
		return nil, errorf("42803", "cannot drop role/user %s: grants still exist on %s", name, asText(rows[0][0]))
	}
	return done("DROP ROLE"), s.conn.Exec("DELETE FROM _kw_users WHERE name = ?", name)
}

// grant keeps table privileges, so that a comparison before and after an upgrade has some to look at.
func (s *Session) grant(p *parser, revoke bool) (*Result, error) {
	var privileges []string
	for !p.done() && !p.accept("on") {
		privileges = append(privileges, strings.ToUpper(p.next().text))
		p.accept(",")
	}
	db, table := "", ""
	if p.accept("database") {
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		db = name
	} else {
		p.accept("table")
		parts, err := p.dotted()
		if err != nil {
			return nil, err
		}
		t, err := s.locate(parts)
		if err != nil {
			return nil, err
		}
		db, table = t.DB, t.Name
	}
	p.next() // TO or FROM
	grantee, err := p.name()
	if err != nil {
		return nil, err
	}
	statement, tag := "INSERT OR IGNORE INTO _kw_grants VALUES (?, ?, ?, ?)", "GRANT"
	if revoke {
		statement, tag = "DELETE FROM _kw_grants WHERE db = ? AND tbl = ? AND grantee = ? AND privilege = ?", "REVOKE"
	}
	for _, privilege := range privileges {
		if err := s.conn.Exec(statement, db, table, grantee, privilege); err != nil {
			return nil, err
		}
	}
	return done(tag), nil
}
