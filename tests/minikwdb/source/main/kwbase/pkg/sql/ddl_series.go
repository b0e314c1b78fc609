package sql

import (
	"fmt"
	"strings"
)

// createSeries reads TAGS and PRIMARY TAGS and makes the virtual table.
func (s *Session) createSeries(b *tableBuilder, databaseID int64) error {
	p, spec := b.p, b.spec
	metrics := len(spec.Columns)
	if metrics < 2 || !strings.HasPrefix(spec.Columns[0].Type, "TIMESTAMP") {
		return errorf("42804", "first column must be timestamp when the target table is table of time series")
	}
	if !p.accept("tags") && !p.accept("attributes") {
		return p.fail()
	}
	if err := b.elements(); err != nil {
		return err
	}
	for i := metrics; i < len(spec.Columns); i++ {
		spec.Columns[i].Kind = "tag"
	}
	if err := p.expect("primary"); err != nil {
		return err
	}
	if !p.accept("tags") && !p.accept("attributes") {
		return p.fail()
	}
	primary, err := p.names()
	if err != nil {
		return err
	}
	for _, name := range primary {
		col := spec.column(name)
		if col == nil || col.Kind == "" {
			return errorf("42703", "tag %q does not exist", name)
		}
		col.Kind, col.NotNull = "primary tag", true
	}
	spec.Kind, spec.Retentions, spec.ActiveTime = kindTimeSeries, "0s", "1d"
	for !p.done() {
		switch {
		case p.accept("retentions"):
			spec.Retentions = strings.ToLower(p.sourceOf(p.until("activetime")))
		case showsActiveTime && p.accept("activetime"):
			spec.ActiveTime = strings.ToLower(p.sourceOf(p.until("retentions")))
		default:
			return p.fail()
		}
	}
	return s.atomically(func() (err error) {
		if spec.ID, err = nextID(s.conn); err != nil {
			return err
		}
		if err := s.conn.Exec(spec.virtualTable(databaseID)); err != nil {
			return err
		}
		if err := spec.save(s.conn); err != nil {
			return err
		}
		return s.noteJob("SYNC META CACHE", "CREATE TABLE "+spec.DB+".public."+spec.Name)
	})
}

// virtualTable is the statement that makes the table known to SQLite; see storage/vtab.cc.
func (t *tableSpec) virtualTable(databaseID int64) string {
	var engine, columns []string
	for _, col := range t.Columns {
		kind := map[string]string{"": "-", "tag": "t", "primary tag": "p"}[col.Kind]
		name := strings.ReplaceAll(col.Type, " ", "")
		engine = append(engine, col.Name+" "+name+" "+kind)
		base, suffix := name, ""
		if at := strings.IndexByte(name, '('); at >= 0 {
			base, suffix = name[:at], name[at:]
		}
		columns = append(columns, quote(col.Name)+" "+kwType{name: base, suffix: suffix}.sqlite())
	}
	return fmt.Sprintf("CREATE VIRTUAL TABLE %s USING kwts(%d, %d, '%s', '%s')", mangle(t.DB, t.Name), databaseID, t.ID,
		strings.Join(engine, ";"), strings.Join(columns, ", "))
}
