package sql

import (
	"fmt"
	"strings"
)

// until collects tokens up to a comma or parenthesis of the same level, or to one of the words.
func (p *parser) until(words ...string) []token {
	begin, depth := p.at, 0
	for !p.done() {
		t := p.peek()
		if depth == 0 && (t.is(",", ")") || p.at > begin && t.is(words...)) {
			break
		}
		if t.is("(") {
			depth++
		}
		if t.is(")") {
			depth--
		}
		p.at++
	}
	return p.tokens[begin:p.at]
}

// sourceOf is the text that tokens were read from.
func (p *parser) sourceOf(tokens []token) string {
	if len(tokens) == 0 {
		return ""
	}
	return p.source[tokens[0].start:tokens[len(tokens)-1].end]
}

// expression rewrites a part of a statement that is an expression.
func (s *Session) expression(p *parser, tokens []token) (string, error) {
	out, err := rewrite(statement{tokens, p.source}, s.resolve, s.constants())
	return out.sql, err
}

func (p *parser) names() ([]string, error) {
	if err := p.expect("("); err != nil {
		return nil, err
	}
	var out []string
	for {
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		out = append(out, name)
		p.accept("asc")
		p.accept("desc")
		if p.accept(")") {
			return out, nil
		}
		if err := p.expect(","); err != nil {
			return nil, err
		}
	}
}

// tableBuilder gathers what CREATE TABLE says: for the catalog and for SQLite.
type tableBuilder struct {
	s       *Session
	p       *parser
	spec    *tableSpec
	lines   []string // column and constraint lines for SQLite
	indexes [][]string
}

var columnEnds = []string{"not", "null", "primary", "unique", "default", "check", "references", "constraint"}

func (b *tableBuilder) column() error {
	p := b.p
	name, err := p.name()
	if err != nil {
		return err
	}
	typ, err := p.typeName()
	if err != nil {
		return err
	}
	col := columnSpec{Name: name, Type: typ.String()}
	rest, fallback := "", ""
	if typ.serial {
		col.Default, fallback = "unique_rowid()", "unique_rowid()"
	}
	for !p.done() && !p.peek().is(",", ")") {
		switch {
		case p.accept("not", "null"):
			col.NotNull = true
		case p.accept("null"):
		case p.accept("primary", "key"):
			b.spec.PrimaryKey = []string{name}
		case p.accept("unique"):
			rest += " UNIQUE"
			b.spec.Constraints = append(b.spec.Constraints, fmt.Sprintf("UNIQUE INDEX %s_%s_key (%s ASC)", b.spec.Name, name, name))
		case p.accept("default"):
			tokens := p.until(columnEnds...)
			col.Default = p.sourceOf(tokens)
			if fallback, err = b.s.expression(p, tokens); err != nil {
				return err
			}
		case p.accept("check"):
			tokens := p.until(columnEnds...)
			expr, err := b.s.expression(p, tokens)
			if err != nil {
				return err
			}
			rest += " CHECK " + expr
			b.spec.Constraints = append(b.spec.Constraints, "CONSTRAINT check_"+name+" CHECK "+p.sourceOf(tokens))
		case p.accept("references"):
			clause, err := b.references()
			if err != nil {
				return err
			}
			rest += clause
		case p.accept("constraint"):
			p.next()
		default:
			return p.fail()
		}
	}
	if fallback != "" {
		rest += " DEFAULT (" + fallback + ")"
	}
	if check := typeCheck(typ, name); check != "" {
		rest += check
	}
	b.spec.Columns = append(b.spec.Columns, col)
	b.lines = append(b.lines, quote(name)+" "+typ.sqlite()+rest)
	return nil
}

// typeCheck refuses what SQLite would store in a column of another type.
func typeCheck(t kwType, name string) string {
	allowed := map[string]string{"kw_cast_int": "'integer','null'", "kw_cast_float": "'real','integer','null'"}[t.castFunction()]
	if allowed == "" {
		return ""
	}
	return fmt.Sprintf(" CONSTRAINT %s CHECK (typeof(%s) IN (%s))", quote(typeCheckPrefix+name), quote(name), allowed)
}

func (b *tableBuilder) references() (string, error) {
	parts, err := b.p.dotted()
	if err != nil {
		return "", err
	}
	target, err := b.s.locate(parts)
	if err != nil {
		return "", err
	}
	clause := " REFERENCES " + mangle(target.DB, target.Name)
	if b.p.peek().is("(") {
		columns, err := b.p.names()
		if err != nil {
			return "", err
		}
		clause += "(" + quoteAll(columns) + ")"
	}
	for b.p.accept("on") {
		clause += " ON"
		for !b.p.done() && !b.p.peek().is(",", ")", "on") {
			clause += " " + b.p.next().text
		}
	}
	return clause, nil
}

func quoteAll(names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = quote(n)
	}
	return strings.Join(out, ", ")
}

// constraint reads a table constraint; false where a column follows instead.
func (b *tableBuilder) constraint() (bool, error) {
	p := b.p
	begin := p.at
	name := ""
	if p.accept("constraint") {
		var err error
		if name, err = p.name(); err != nil {
			return true, err
		}
		name = "CONSTRAINT " + quote(name) + " "
	}
	switch {
	case p.accept("primary", "key"):
		columns, err := p.names()
		b.spec.PrimaryKey = columns
		return true, err
	case p.peek().is("unique"):
		p.next()
		p.accept("index")
		if p.peek().isName() {
			p.next()
		}
		columns, err := p.names()
		b.lines = append(b.lines, name+"UNIQUE ("+quoteAll(columns)+")")
		b.spec.Constraints = append(b.spec.Constraints, p.sourceOf(p.tokens[begin:p.at]))
		return true, err
	case p.accept("check"):
		tokens := p.until()
		expr, err := b.s.expression(p, tokens)
		b.lines = append(b.lines, name+"CHECK "+expr)
		b.spec.Constraints = append(b.spec.Constraints, p.sourceOf(p.tokens[begin:p.at]))
		return true, err
	case p.accept("foreign", "key"):
		columns, err := p.names()
		if err != nil {
			return true, err
		}
		if err := p.expect("references"); err != nil {
			return true, err
		}
		clause, err := b.references()
		b.lines = append(b.lines, name+"FOREIGN KEY ("+quoteAll(columns)+")"+clause)
		b.spec.Constraints = append(b.spec.Constraints, p.sourceOf(p.tokens[begin:p.at]))
		return true, err
	case p.peek().is("index") && begin+1 < len(p.tokens) && !typeFollows(p.tokens[begin+1]):
		p.next()
		if p.peek().isName() {
			p.next()
		}
		columns, err := p.names()
		b.indexes = append(b.indexes, columns)
		b.spec.Constraints = append(b.spec.Constraints, p.sourceOf(p.tokens[begin:p.at]))
		return true, err
	case p.peek().is("family") && !typeFollows(p.tokens[begin+1]):
		p.until()
		return true, nil
	}
	p.at = begin
	return false, nil
}

func typeFollows(t token) bool { return typeNames[t.text] != "" }

// elements reads the parenthesised list of columns and constraints.
func (b *tableBuilder) elements() error {
	if err := b.p.expect("("); err != nil {
		return err
	}
	for {
		done, err := b.constraint()
		if err == nil && !done {
			err = b.column()
		}
		if err != nil {
			return err
		}
		if b.p.accept(")") {
			return nil
		}
		if err := b.p.expect(","); err != nil {
			return err
		}
	}
}

func (s *Session) createTable(p *parser) (*Result, error) {
	exists := p.accept("if", "not", "exists")
	parts, err := p.dotted()
	if err != nil {
		return nil, err
	}
	db, name := s.split(parts)
	id, engine, err := database(s.conn, db)
	if err != nil {
		return nil, err
	}
	if id == 0 {
		return nil, errorf("3D000", "database %q does not exist", db)
	}
	old, err := findTable(s.conn, db, name)
	if err != nil {
		return nil, err
	}
	if old != nil {
		if exists {
			return done("CREATE TABLE"), nil
		}
		return nil, errorf("42P07", "relation %q already exists", name)
	}
	b := &tableBuilder{s: s, p: p, spec: &tableSpec{DB: db, Name: name, Kind: kindBase}}
	if p.accept("as") {
		return s.createTableAs(p, b.spec)
	}
	if err := b.elements(); err != nil {
		return nil, err
	}
	if engine == engineSeries || p.peek().is("tags", "attributes") {
		if engine != engineSeries {
			return nil, errorf("42P16", "can not create timeseries table in relational database %q", db)
		}
		return done("CREATE TABLE"), s.createSeries(b, id)
	}
	if !p.done() {
		return nil, p.fail()
	}
	return done("CREATE TABLE"), b.createRows()
}

func (b *tableBuilder) createRows() error {
	spec := b.spec
	for _, key := range spec.PrimaryKey {
		col := spec.column(key)
		if col == nil {
			return errorf("42703", "column %q does not exist", key)
		}
		col.NotNull = true
	}
	for i, col := range spec.Columns {
		if col.NotNull {
			// after the name and type, before the rest
			b.lines[i] += " NOT NULL"
		}
	}
	if spec.PrimaryKey != nil {
		b.lines = append(b.lines, "PRIMARY KEY ("+quoteAll(spec.PrimaryKey)+")")
	}
	return b.s.atomically(func() (err error) {
		if spec.ID, err = nextID(b.s.conn); err != nil {
			return err
		}
		target := mangle(spec.DB, spec.Name)
		// SQLite wants columns before constraints; KWDB takes them in any order.
		if err := b.s.conn.Exec("CREATE TABLE " + target + " (" + strings.Join(sortLines(b.lines), ", ") + ")"); err != nil {
			return err
		}
		for i, columns := range b.indexes {
			index := fmt.Sprintf("CREATE INDEX %s ON %s (%s)", quote(fmt.Sprintf("%s.%s.%d", spec.DB, spec.Name, i)), target, quoteAll(columns))
			if err := b.s.conn.Exec(index); err != nil {
				return err
			}
		}
		if err := spec.save(b.s.conn); err != nil {
			return err
		}
		return b.s.noteJob("SCHEMA CHANGE", "CREATE TABLE "+spec.DB+".public."+spec.Name)
	})
}

func sortLines(lines []string) []string {
	var columns, constraints []string
	for _, line := range lines {
		if line[0] == '"' {
			columns = append(columns, line)
		} else {
			constraints = append(constraints, line)
		}
	}
	return append(columns, constraints...)
}
