package sql

import (
	"fmt"
	"strings"

	"gitee.com/kwbasedb/kwbase/pkg/build"
	"gitee.com/kwbasedb/kwbase/pkg/release"
	"gitee.com/kwbasedb/kwbase/pkg/storage"
)

const showsActiveTime = release.ShowsActiveTime

// table makes a result out of "name type name type …" and rows.
func table(columns string, rows [][]storage.Value) *Result {
	r := &Result{Rows: rows, Tag: fmt.Sprintf("SELECT %d", len(rows))}
	for _, pair := range strings.Fields(columns) {
		name, declared := pair, "STRING"
		if at := strings.IndexByte(pair, ':'); at > 0 {
			name, declared = pair[:at], pair[at+1:]
		}
		oid, scale := oidOf(declared)
		r.Columns = append(r.Columns, Column{name, oid, scale})
	}
	return r
}

func (s *Session) query(columns, sql string, params ...storage.Value) (*Result, error) {
	rows, err := s.conn.Query(sql, params...)
	if err != nil {
		return nil, err
	}
	return table(columns, rows), nil
}

const jobColumns = "job_id:INT8 job_type description statement user_name status running_status created:TIMESTAMP " +
	"started:TIMESTAMP finished:TIMESTAMP modified:TIMESTAMP errord:TIMESTAMP fraction_completed:FLOAT8 error coordinator_id:INT8 " +
	"total_num_of_ex:INT8 total_num_of_success:INT8 total_num_of_fail:INT8 time_of_last_success:TIMESTAMP"

const jobQuery = "SELECT id, type, description, description, 'root', status, running, created, created, finished, " +
	"coalesce(finished, created), NULL, CASE status WHEN 'running' THEN 0.0 ELSE 1.0 END, '', 1, NULL, NULL, NULL, NULL FROM _kw_jobs"

func (s *Session) show(p *parser) (*Result, error) {
	switch {
	case p.accept("databases"):
		return s.query("database_name engine_type", "SELECT name, engine FROM _kw_databases ORDER BY name")
	case p.accept("tables"):
		return s.showTables(p)
	case p.accept("columns", "from"):
		return s.showColumns(p)
	case p.accept("tags", "from"):
		return s.showTags(p)
	case p.accept("create"):
		return s.showCreate(p)
	case p.accept("users"), p.accept("roles"):
		return s.query("username options member_of", "SELECT name, CASE isrole WHEN 1 THEN 'NOLOGIN' ELSE '' END, "+
			"CASE name WHEN 'root' THEN '{admin}' ELSE '{}' END FROM _kw_users ORDER BY name")
	case p.accept("jobs"), p.accept("automatic", "jobs"):
		return s.query(jobColumns, jobQuery+" ORDER BY id")
	case p.accept("grants"):
		return s.query("database_name schema_name table_name grantee privilege_type",
			"SELECT db, 'public', nullif(tbl, ''), grantee, privilege FROM _kw_grants ORDER BY 1, 3, 4, 5")
	case p.accept("cluster", "setting"), p.accept("cluster", "settings"), p.accept("all", "cluster", "settings"):
		return s.showSetting(p)
	case p.accept("experimental_fingerprints", "from", "table"):
		return s.fingerprints(p)
	case p.accept("retentions", "on", "table"):
		t, err := s.locateNext(p)
		if err != nil {
			return nil, err
		}
		return table("name retentions sample", [][]storage.Value{{t.Name, t.Retentions, nil}}), nil
	case p.accept("indexes", "from"), p.accept("index", "from"), p.accept("constraints", "from"), p.accept("statistics", "for", "table"):
		return s.showIndexes(p)
	case p.accept("queries"), p.accept("sessions"):
		return table("query_id node_id:INT8 user_name query", nil), nil
	case p.accept("schemas"):
		return table("schema_name", [][]storage.Value{{"public"}, {"information_schema"}, {"kwdb_internal"}, {"pg_catalog"}}), nil
	}
	return s.showVariable(p)
}

func (s *Session) showTables(p *parser) (*Result, error) {
	db := s.database
	if p.accept("from") {
		parts, err := p.dotted()
		if err != nil {
			return nil, err
		}
		db = parts[0]
	}
	id, _, err := database(s.conn, db)
	if err != nil {
		return nil, err
	}
	if id == 0 {
		return nil, errorf("3F000", "target database or schema does not exist")
	}
	return s.query("table_name table_type", "SELECT name, kind FROM _kw_tables WHERE db = ? ORDER BY name", db)
}

func (s *Session) locateNext(p *parser) (*tableSpec, error) {
	parts, err := p.dotted()
	if err != nil {
		return nil, err
	}
	return s.locate(parts)
}

func (s *Session) showColumns(p *parser) (*Result, error) {
	t, err := s.locateNext(p)
	if err != nil {
		return nil, err
	}
	var rows [][]storage.Value
	for _, c := range t.Columns {
		var fallback storage.Value
		if c.Default != "" {
			fallback = c.Default
		}
		indices := "{}"
		for _, key := range t.PrimaryKey {
			if key == c.Name {
				indices = "{primary}"
			}
		}
		rows = append(rows, []storage.Value{c.Name, c.Type, flag(!c.NotNull), fallback, "", indices, flag(false), flag(c.Kind != "")})
	}
	return table("column_name data_type is_nullable:BOOL column_default generation_expression indices is_hidden:BOOL is_tag:BOOL", rows), nil
}

func flag(b bool) storage.Value {
	if b {
		return int64(1)
	}
	return int64(0)
}

func (s *Session) showTags(p *parser) (*Result, error) {
	t, err := s.locateNext(p)
	if err != nil {
		return nil, err
	}
	var rows [][]storage.Value
	for _, c := range t.Columns {
		if c.Kind != "" {
			rows = append(rows, []storage.Value{c.Name, c.Type, flag(c.Kind == "primary tag"), flag(!c.NotNull)})
		}
	}
	return table("tag type is_primary:BOOL nullable:BOOL", rows), nil
}

func (s *Session) showIndexes(p *parser) (*Result, error) {
	t, err := s.locateNext(p)
	if err != nil {
		return nil, err
	}
	var rows [][]storage.Value
	for i, key := range t.PrimaryKey {
		rows = append(rows, []storage.Value{t.Name, "primary", flag(false), int64(i + 1), key, "ASC", flag(false), flag(false)})
	}
	return table("table_name index_name non_unique:BOOL seq_in_index:INT8 column_name direction storing:BOOL implicit:BOOL", rows), nil
}

func (s *Session) showCreate(p *parser) (*Result, error) {
	if p.accept("database") {
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		_, engine, err := database(s.conn, name)
		if err != nil {
			return nil, err
		}
		prefix := map[string]string{engineRows: "CREATE DATABASE ", engineSeries: "CREATE TS DATABASE "}[engine]
		if prefix == "" {
			return nil, errorf("3D000", "database %q does not exist", name)
		}
		return table("database_name create_statement", [][]storage.Value{{name, prefix + name}}), nil
	}
	if !p.accept("table") {
		p.accept("view")
	}
	t, err := s.locateNext(p)
	if err != nil {
		return nil, err
	}
	return table("table_name create_statement", [][]storage.Value{{t.Name, t.createStatement()}}), nil
}

func (c columnSpec) definition(nullable string) string {
	out := c.Name + " " + c.Type
	if c.NotNull {
		out += " NOT NULL"
	} else {
		out += nullable
	}
	if c.Default != "" {
		out += " DEFAULT " + c.Default
	}
	return out
}

func (t *tableSpec) createStatement() string {
	var columns, tags, primary, names []string
	for _, c := range t.Columns {
		names = append(names, c.Name)
		if c.Kind == "" {
			columns = append(columns, c.definition(" NULL"))
			continue
		}
		tags = append(tags, c.definition(""))
		if c.Kind == "primary tag" {
			primary = append(primary, c.Name)
		}
	}
	switch t.Kind {
	case kindView:
		return "CREATE VIEW " + t.Name + " AS " + t.View
	case kindTimeSeries:
		out := "CREATE TABLE " + t.Name + " (\n\t" + strings.Join(columns, ",\n\t") + "\n) TAGS (\n\t" + strings.Join(tags, ",\n\t") +
			" ) PRIMARY TAGS(" + strings.Join(primary, ", ") + ")\n\t retentions " + t.Retentions
		if showsActiveTime {
			out += "\n\t activetime " + t.ActiveTime
		}
		return out
	}
	if t.PrimaryKey != nil {
		columns = append(columns, "CONSTRAINT \"primary\" PRIMARY KEY ("+strings.Join(t.PrimaryKey, " ASC, ")+" ASC)")
	}
	columns = append(columns, t.Constraints...)
	columns = append(columns, "FAMILY \"primary\" ("+strings.Join(names, ", ")+")")
	return "CREATE TABLE " + t.Name + " (\n\t" + strings.Join(columns, ",\n\t") + "\n)"
}

// fingerprints is one 64-bit number a table, the same wherever the rows are the same.
func (s *Session) fingerprints(p *parser) (*Result, error) {
	t, err := s.locateNext(p)
	if err != nil {
		return nil, err
	}
	if t.Kind == kindTimeSeries {
		return nil, errorf("0A000", "show fingerprints is not supported in timeseries table")
	}
	var parts []string
	for _, c := range t.Columns {
		parts = append(parts, "coalesce(kw_cast_string("+quote(c.Name)+"), '~')")
	}
	rows, err := s.conn.Query("SELECT coalesce(sum(fnv64(" + strings.Join(parts, "||'|'||") + ") % 1000000007), 0) FROM " + mangle(t.DB, t.Name))
	if err != nil {
		return nil, err
	}
	return table("index_name fingerprint:INT8", [][]storage.Value{{"primary", rows[0][0]}}), nil
}

// setting is a cluster setting with its default.
type setting struct{ name, value, kind, description string }

var settings = []setting{
	{"cluster.organization", "", "s", "organization name"},
	{"cluster.preserve_downgrade_option", "", "s", "disable automatic cluster version upgrade from the given version"},
	{"kv.snapshot_recovery.max_rate", "8.0 MiB", "z", "rate limit for recovery snapshots"},
	{"server.time_until_store_dead", "30m0s", "d", "time after which a silent store counts as dead"},
	{"sql.defaults.results_buffer.size", "16 KiB", "z", "size of the buffer of results"},
	{"ts.parallel_degree", "8", "i", "degree of parallelism of time-series statements"},
	{"ts.raft_log.sync_period", release.SyncPeriodDefault, "d", "interval of synchronising the raft log"},
	{"ts.wal.checkpoint_interval", "1m0s", "d", "interval of checkpoints"},
	{"ts.wal.wal_level", "2", "i", "level of the write-ahead log"},
	{"version", "20.1-3", "m", "active cluster version"},
}

func (s *Session) settingRows() ([][]storage.Value, error) {
	changed, err := s.conn.Query("SELECT variable, value FROM _kw_settings")
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for _, row := range changed {
		values[asText(row[0])] = asText(row[1])
	}
	var rows [][]storage.Value
	for _, item := range settings {
		value, known := values[item.name]
		if !known {
			value = item.value
		}
		rows = append(rows, []storage.Value{item.name, value, item.kind, int64(1), item.description})
	}
	return rows, nil
}

func (s *Session) showSetting(p *parser) (*Result, error) {
	rows, err := s.settingRows()
	if err != nil {
		return nil, err
	}
	if p.done() {
		for i, row := range rows {
			rows[i] = []storage.Value{row[0], row[1], row[2], row[4]}
		}
		return table("variable value setting_type description", rows), nil
	}
	parts, err := p.dotted()
	if err != nil {
		return nil, err
	}
	name := strings.Join(parts, ".")
	for _, row := range rows {
		if row[0] == name {
			return table(name, [][]storage.Value{{row[1]}}), nil
		}
	}
	return nil, errorf("XXUUU", "unknown setting: %q", name)
}

func (s *Session) setClusterSetting(p *parser) (*Result, error) {
	parts, err := p.dotted()
	if err != nil {
		return nil, err
	}
	name := strings.Join(parts, ".")
	if !p.accept("=") && !p.accept("to") {
		return nil, p.fail()
	}
	known := false
	for _, item := range settings {
		known = known || item.name == name
	}
	if !known {
		return nil, errorf("XXUUU", "unknown cluster setting '%s'", name)
	}
	if p.accept("default") {
		return done("SET CLUSTER SETTING"), s.conn.Exec("DELETE FROM _kw_settings WHERE variable = ?", name)
	}
	return done("SET CLUSTER SETTING"), s.conn.Exec("INSERT OR REPLACE INTO _kw_settings VALUES (?, ?)", name, p.next().text)
}

// variables of a session, with their first values.
func newVariables() map[string]string {
	return map[string]string{
		"application_name": "", "client_encoding": "UTF8", "client_min_messages": "notice", "datestyle": "ISO, MDY",
		"default_transaction_read_only": "off", "extra_float_digits": "0", "integer_datetimes": "on", "search_path": "public",
		"server_encoding": "UTF8", "server_version": "9.5.0", "standard_conforming_strings": "on", "statement_timeout": "0",
		"timezone": "UTC", "transaction_isolation": "serializable", "kwdb_version": build.Short(), "node_id": "1",
	}
}

func (s *Session) showVariable(p *parser) (*Result, error) {
	name := p.next().text
	if name == "time" && p.accept("zone") {
		name = "timezone"
	}
	if name == "transaction" && p.accept("isolation", "level") {
		name = "transaction_isolation"
	}
	if !p.done() {
		return nil, p.fail()
	}
	value, known := s.variables[name]
	if name == "database" {
		value, known = s.database, true
	}
	if !known {
		return nil, errorf("42704", "unrecognized configuration parameter %q", name)
	}
	return table(name, [][]storage.Value{{value}}), nil
}
