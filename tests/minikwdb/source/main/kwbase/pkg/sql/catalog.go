package sql

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"gitee.com/kwbasedb/kwbase/pkg/storage"
)

// The catalog lives in the same SQLite file as the rows, in tables whose names start with _kw_.
const catalogSchema = `
CREATE TABLE IF NOT EXISTS _kw_meta (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS _kw_databases (id INTEGER PRIMARY KEY, name TEXT UNIQUE, engine TEXT);
CREATE TABLE IF NOT EXISTS _kw_tables (id INTEGER PRIMARY KEY, db TEXT, name TEXT, kind TEXT, spec TEXT, UNIQUE (db, name));
CREATE TABLE IF NOT EXISTS _kw_settings (variable TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS _kw_users (name TEXT PRIMARY KEY, password TEXT, isrole INTEGER);
CREATE TABLE IF NOT EXISTS _kw_grants (db TEXT, tbl TEXT, grantee TEXT, privilege TEXT, UNIQUE (db, tbl, grantee, privilege));
CREATE TABLE IF NOT EXISTS _kw_jobs (id INTEGER PRIMARY KEY, type TEXT, description TEXT, status TEXT, running TEXT, created TEXT, finished TEXT)`

// Kinds of tables and engines of databases, as KWDB names them.
const (
	kindBase       = "BASE TABLE"
	kindView       = "VIEW"
	kindTimeSeries = "TIME SERIES TABLE"
	engineRows     = "RELATIONAL"
	engineSeries   = "TIME SERIES"
)

// columnSpec is one column of a table as SHOW prints it. Kind is "", "tag" or "primary tag".
type columnSpec struct {
	Name, Type, Default, Kind string
	NotNull                   bool
}

// tableSpec is what the catalog keeps of a table.
type tableSpec struct {
	ID          int64        `json:"-"`
	DB          string       `json:"-"`
	Name        string       `json:"-"`
	Kind        string       `json:"-"`
	Columns     []columnSpec // in declared order
	PrimaryKey  []string
	Constraints []string // further lines of SHOW CREATE TABLE
	Retentions  string
	ActiveTime  string
	View        string // the query of a view
}

func (t *tableSpec) column(name string) *columnSpec {
	for i := range t.Columns {
		if t.Columns[i].Name == name {
			return &t.Columns[i]
		}
	}
	return nil
}

func mangle(db, table string) string { return quote(db + "." + table) }

func asText(v storage.Value) string {
	s, _ := v.(string)
	return s
}

func asInt(v storage.Value) int64 {
	n, _ := v.(int64)
	return n
}

// Bootstrap makes the catalog of a new store, and notes that the server started.
func Bootstrap(c *storage.Conn, clusterID string) error {
	for _, statement := range strings.Split(catalogSchema, ";") {
		if err := c.Exec(statement); err != nil {
			return err
		}
	}
	rows, err := c.Query("SELECT value FROM _kw_meta WHERE key = 'cluster_id'")
	if err != nil {
		return err
	}
	now := time.Now().UTC().Format(timeFormat)
	if len(rows) == 0 {
		for _, statement := range []string{
			"INSERT INTO _kw_databases VALUES (1, 'system', 'RELATIONAL'), (50, 'defaultdb', 'RELATIONAL'), (51, 'postgres', 'RELATIONAL')",
			"INSERT INTO _kw_users VALUES ('root', NULL, 0), ('admin', NULL, 1)",
			"INSERT INTO _kw_meta VALUES ('next_id', '77')",
		} {
			if err := c.Exec(statement); err != nil {
				return err
			}
		}
		if err := c.Exec("INSERT INTO _kw_meta VALUES ('cluster_id', ?)", clusterID); err != nil {
			return err
		}
		// This job never ends, as in KWDB: whoever waits for "no running job" must know it.
		if err := addJob(c, "TS TXN", "handle ts txn record", "running", now); err != nil {
			return err
		}
	}
	return addJob(c, "RESTART HISTORY", "Start KWBASE SERVICE", "succeeded", now)
}

const timeFormat = "2006-01-02 15:04:05.999999-07:00"

func addJob(c *storage.Conn, kind, description, status, now string) error {
	var finished storage.Value
	if status != "running" {
		finished = now
	}
	return c.Exec("INSERT INTO _kw_jobs VALUES ((SELECT coalesce(max(id), 822337203685400000) + 1 FROM _kw_jobs), ?, ?, ?, '', ?, ?)",
		kind, description, status, now, finished)
}

func nextID(c *storage.Conn) (int64, error) {
	rows, err := c.Query("UPDATE _kw_meta SET value = value + 1 WHERE key = 'next_id' RETURNING value")
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	return strconv.ParseInt(asText(rows[0][0]), 10, 64)
}

// database gives the id and engine of a database; id 0 where there is none.
func database(c *storage.Conn, name string) (id int64, engine string, err error) {
	rows, err := c.Query("SELECT id, engine FROM _kw_databases WHERE name = ?", name)
	if err != nil || len(rows) == 0 {
		return 0, "", err
	}
	return asInt(rows[0][0]), asText(rows[0][1]), nil
}

func decodeTable(row []storage.Value) (*tableSpec, error) {
	t := &tableSpec{ID: asInt(row[0]), DB: asText(row[1]), Name: asText(row[2]), Kind: asText(row[3])}
	return t, json.Unmarshal([]byte(asText(row[4])), t)
}

// findTable gives nil where there is no such table.
func findTable(c *storage.Conn, db, name string) (*tableSpec, error) {
	rows, err := c.Query("SELECT id, db, name, kind, spec FROM _kw_tables WHERE db = ? AND name = ?", db, name)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	return decodeTable(rows[0])
}

func allTables(c *storage.Conn, db string) ([]*tableSpec, error) {
	rows, err := c.Query("SELECT id, db, name, kind, spec FROM _kw_tables WHERE db = ? OR ? = '' ORDER BY db, name", db, db)
	if err != nil {
		return nil, err
	}
	var out []*tableSpec
	for _, row := range rows {
		t, err := decodeTable(row)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

func (t *tableSpec) save(c *storage.Conn) error {
	spec, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return c.Exec("INSERT OR REPLACE INTO _kw_tables VALUES (?, ?, ?, ?, ?)", t.ID, t.DB, t.Name, t.Kind, string(spec))
}

// FirstUserTable is for the faults that lose a row: the first table of this kind that holds one.
func FirstUserTable(c *storage.Conn, timeSeries bool) (string, error) {
	tables, err := allTables(c, "")
	if err != nil {
		return "", err
	}
	for _, t := range tables {
		if (t.Kind == kindTimeSeries) != timeSeries || t.Kind == kindView {
			continue
		}
		rows, err := c.Query("SELECT 1 FROM " + mangle(t.DB, t.Name) + " LIMIT 1")
		if err != nil {
			return "", err
		}
		if len(rows) > 0 {
			return mangle(t.DB, t.Name), nil
		}
	}
	return "", nil
}
