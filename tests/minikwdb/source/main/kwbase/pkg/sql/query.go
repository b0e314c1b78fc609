package sql

import (
	"fmt"
	"strings"

	"gitee.com/kwbasedb/kwbase/pkg/storage"
)

// query0 runs SELECT, WITH, VALUES, INSERT, UPSERT, UPDATE, DELETE and EXPLAIN.
func (s *Session) query0(p *parser, params []storage.Value) (*Result, error) {
	if p.accept("explain") {
		return s.explain(p)
	}
	if result, handled := s.admin(p); handled {
		return result, nil
	}
	if err := s.checkSeries(p); err != nil {
		return nil, err
	}
	out, err := rewrite(p.statement, s.resolve, s.constants())
	if err != nil {
		return nil, err
	}
	stmt, err := s.conn.Prepare(out.sql)
	if err != nil {
		return nil, err
	}
	defer stmt.Close()
	for i := 0; i < stmt.Params(); i++ {
		if i >= len(params) {
			return nil, errorf("42P02", "no value provided for placeholder: $%d", i+1)
		}
		if err := stmt.Bind(i+1, params[i]); err != nil {
			return nil, err
		}
	}
	result := &Result{}
	for {
		more, err := stmt.Step()
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		result.Rows = append(result.Rows, stmt.Row())
	}
	result.Columns = s.describeColumns(stmt, out.items, result.Rows)
	s.tag(p, result)
	if s.node.WrongAnswers {
		falsify(out.items, result)
	}
	return result, nil
}

func (s *Session) tag(p *parser, result *Result) {
	switch verb := p.tokens[0].text; verb {
	case "insert", "upsert":
		result.Tag = fmt.Sprintf("INSERT 0 %d", s.conn.Changes())
	case "update", "delete":
		result.Tag = fmt.Sprintf("%s %d", strings.ToUpper(verb), s.conn.Changes())
	default:
		result.Tag = fmt.Sprintf("SELECT %d", len(result.Rows))
	}
}

// describeColumns takes the type of a column from its declaration, from the expression, or from its first value.
func (s *Session) describeColumns(stmt *storage.Stmt, items []item, rows [][]storage.Value) []Column {
	names, types := stmt.Columns()
	if len(names) == 0 {
		return nil
	}
	columns := make([]Column, len(names))
	for i, name := range names {
		c := Column{Name: name, Scale: -1}
		if types[i] != "" {
			c.OID, c.Scale = oidOf(types[i])
		}
		if len(items) == len(names) { // no * in the list
			if items[i].name != "" {
				c.Name = items[i].name
			}
			if c.OID == 0 {
				c.OID = items[i].oid
			}
			if declared := s.columns[items[i].argument]; c.OID == 0 && declared != "" {
				c.OID, c.Scale = oidOf(declared)
			}
		}
		for _, row := range rows {
			if row[i] == nil {
				continue
			}
			_, isFloat := row[i].(float64)
			if c.OID == 0 || c.OID == OIDDecimal && isFloat && types[i] == "" {
				c.OID = oidOfValue(row[i])
			}
			break
		}
		if c.OID == 0 {
			c.OID = OIDText
		}
		columns[i] = c
	}
	return columns
}

// falsify is a fault on demand: every count answers one too few.
func falsify(items []item, result *Result) {
	for i, it := range items {
		if it.name != "count" || len(items) != len(result.Columns) {
			continue
		}
		for _, row := range result.Rows {
			if n, ok := row[i].(int64); ok {
				row[i] = n - 1
			}
		}
	}
}

// explain gives SQLite's own plan: real, though not KWDB's.
func (s *Session) explain(p *parser) (*Result, error) {
	p.accept("analyze")
	out, err := rewrite(statement{p.tokens[p.at:], p.source}, s.resolve, s.constants())
	if err != nil {
		return nil, err
	}
	rows, err := s.conn.Query("EXPLAIN QUERY PLAN " + out.sql)
	if err != nil {
		return nil, err
	}
	for i, row := range rows {
		rows[i] = []storage.Value{row[3]}
	}
	return table("tree", rows), nil
}

// admin answers SELECT kwdb_internal.drain_node() and quit_node(): how kwbase's own commands reach the server.
func (s *Session) admin(p *parser) (*Result, bool) {
	if len(p.tokens) < 4 || !p.tokens[0].is("select") || !p.tokens[1].is("kwdb_internal") || s.user != "root" {
		return nil, false
	}
	switch p.tokens[3].text {
	case "drain_node":
		s.node.Drain()
	case "quit_node":
		s.node.Quit()
	default:
		return nil, false
	}
	return table("ok", [][]storage.Value{{"ok"}}), true
}

// checkSeries refuses what KWDB refuses on time-series tables.
func (s *Session) checkSeries(p *parser) error {
	at, verb := 1, p.tokens[0].text
	switch {
	case verb == "insert" || verb == "upsert":
		at = 2
	case verb != "update":
		return nil
	}
	q := &parser{statement: p.statement, at: at}
	parts, err := q.dotted()
	if err != nil {
		return err
	}
	t, err := s.locate(parts)
	if err != nil || t.Kind != kindTimeSeries {
		return err
	}
	if verb == "upsert" {
		return errorf("0A000", "upsert is not supported in timeseries table")
	}
	for ; !q.done(); q.at++ {
		if verb == "insert" && q.accept("on", "conflict") {
			return errorf("0A000", "on conflict is not supported in timeseries table")
		}
		if verb == "update" && (q.peek().is("set") || q.peek().is(",")) && q.at+1 < len(q.tokens) {
			if col := t.column(q.tokens[q.at+1].text); col != nil && col.Kind != "tag" {
				return errorf("0A000", "unsupported conditions in update: primary tags and columns cannot be set")
			}
		}
		if q.peek().is("where") {
			break
		}
	}
	return nil
}

// Describe tells the columns of a statement without running it; nil for one that returns none.
// Types of expressions are guessed from their shape alone here.
func (s *Session) Describe(st Statement) ([]Column, error) {
	p := &parser{statement: st.s}
	s.columns = map[string]string{}
	if p.peek().is("show") {
		result, err := s.dispatch(p, nil) // has no effect
		if err != nil {
			return nil, err
		}
		return result.Columns, nil
	}
	if !p.peek().is("select", "with", "values", "insert", "upsert", "update", "delete") {
		return nil, nil
	}
	out, err := rewrite(st.s, s.resolve, s.constants())
	if err != nil {
		return nil, err
	}
	stmt, err := s.conn.Prepare(out.sql)
	if err != nil {
		return nil, fromStorage(err, st.s.source)
	}
	defer stmt.Close()
	return s.describeColumns(stmt, out.items, nil), nil
}
