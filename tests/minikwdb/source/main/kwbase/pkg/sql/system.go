package sql

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"gitee.com/kwbasedb/kwbase/pkg/build"
	"gitee.com/kwbasedb/kwbase/pkg/storage"
)

// Node is what the server tells SQL about itself.
type Node struct {
	Insecure            bool
	ClusterID           string
	Address, SQLAddress string
	StartMode           string
	Started             time.Time
	StoreDir            string
	Live, Draining      func() bool
	Drain               func()
	Quit                func()
	WrongAnswers        bool // a fault: counts answer wrongly
}

const timestampFormat = "2006-01-02 15:04:05.999999-07:00"

// systemTable is a virtual table: its rows are written into a temporary table before a statement reads it.
type systemTable struct {
	columns string
	rows    func(s *Session) ([][]storage.Value, error)
}

var systemTables map[string]systemTable

func init() {
	systemTables = map[string]systemTable{
		"kwdb_internal.cluster_settings": {"variable value type public:BOOL description", (*Session).settingRows},
		"kwdb_internal.kv_node_status":   {"node_id:INT8 network address attrs:JSONB locality server_version go_version tag time revision cgo_compiler platform distribution type dependencies started_at:TIMESTAMP updated_at:TIMESTAMP metrics:JSONB args:JSONB env:JSONB activity:JSONB", (*Session).nodeStatus},
		"kwdb_internal.kv_store_status":  {"node_id:INT8 store_id:INT8 attrs:JSONB capacity:INT8 available:INT8 used:INT8 logical_bytes:INT8 range_count:INT8 lease_count:INT8 writes_per_second:FLOAT8 bytes_per_replica:JSONB writes_per_replica:JSONB metrics:JSONB", (*Session).storeStatus},
		"kwdb_internal.gossip_nodes":     {"node_id:INT8 network address advertise_address sql_network sql_address advertise_sql_address attrs:JSONB locality start_mode cluster_name server_version build_tag started_at:TIMESTAMP is_live:BOOL ranges:INT8 leases:INT8", (*Session).gossipNodes},
		"kwdb_internal.gossip_liveness":  {"node_id:INT8 epoch:INT8 expiration draining:BOOL decommissioning:BOOL upgrading:BOOL updated_at:TIMESTAMP", (*Session).gossipLiveness},
		"kwdb_internal.gossip_alerts":    {"node_id:INT8 store_id:INT8 category description value:FLOAT8", noRows},
		"kwdb_internal.node_build_info":  {"node_id:INT8 field value", (*Session).buildInfo},
		"kwdb_internal.jobs":             {jobColumns, func(s *Session) ([][]storage.Value, error) { return s.conn.Query(jobQuery + " ORDER BY id") }},
		"kwdb_internal.tables":           {"table_id:INT8 name database_name schema_name state", (*Session).internalTables},
		"kwdb_internal.ranges":           {"range_id:INT8 start_key:BYTES start_pretty end_key:BYTES end_pretty database_name table_name index_name replicas replica_localities learner_replicas split_enforced_until:TIMESTAMP lease_holder:INT8 lease_holder_qps:FLOAT8 range_size:INT8", (*Session).ranges},
		"information_schema.tables":      {"table_catalog table_schema table_name table_type is_insertable_into version:INT8", (*Session).schemaTables},
		"information_schema.columns":     {"table_catalog table_schema table_name column_name ordinal_position:INT8 column_default is_nullable data_type", (*Session).schemaColumns},
		"system.users": {"username hashedPassword isRole:BOOL", func(s *Session) ([][]storage.Value, error) {
			return s.conn.Query("SELECT name, password, isrole FROM _kw_users ORDER BY name")
		}},
		"system.settings": {"name value", func(s *Session) ([][]storage.Value, error) {
			return s.conn.Query("SELECT variable, value FROM _kw_settings ORDER BY 1")
		}},
		"pg_catalog.pg_type": {"oid:INT8 typname typarray:INT8 typdelim", noRows},
	}
}

func noRows(*Session) ([][]storage.Value, error) { return nil, nil }

// fillSystem writes the rows of a virtual table and gives its quoted name.
func (s *Session) fillSystem(name string, t systemTable) (string, error) {
	rows, err := t.rows(s)
	if err != nil {
		return "", err
	}
	var columns, marks []string
	for _, pair := range strings.Fields(t.columns) {
		column, declared := pair, "STRING_TEXT"
		if at := strings.IndexByte(pair, ':'); at > 0 {
			column, declared = pair[:at], kwType{name: pair[at+1:]}.sqlite()
		}
		columns, marks = append(columns, quote(column)+" "+declared), append(marks, "?")
	}
	target := "temp." + quote(name)
	if err := s.conn.Exec("CREATE TEMP TABLE IF NOT EXISTS " + quote(name) + " (" + strings.Join(columns, ", ") + ")"); err != nil {
		return "", err
	}
	if err := s.conn.Exec("DELETE FROM " + target); err != nil {
		return "", err
	}
	for _, row := range rows {
		if err := s.conn.Exec("INSERT INTO "+target+" VALUES ("+strings.Join(marks, ",")+")", row...); err != nil {
			return "", err
		}
	}
	return target, nil
}

func (s *Session) now() string     { return time.Now().UTC().Format(timestampFormat) }
func (s *Session) started() string { return s.node.Started.UTC().Format(timestampFormat) }

func (s *Session) nodeStatus() ([][]storage.Value, error) {
	return [][]storage.Value{{int64(1), "tcp", s.node.Address, "[]", "region=NODE1", "20.1-3", runtime.Version(), build.Tag(), build.Time(),
		build.Revision(), build.Compiler(), runtime.GOOS + " " + runtime.GOARCH, "", "release", "", s.started(), s.now(),
		`{"liveness.livenodes": 1}`, "[]", "[]", "{}"}}, nil
}

func (s *Session) storeStatus() ([][]storage.Value, error) {
	rows, err := s.conn.Query("SELECT count(*) FROM _kw_tables")
	if err != nil {
		return nil, err
	}
	ranges := 20 + asInt(rows[0][0])
	metrics := fmt.Sprintf(`{"ranges": "%d", "ranges.unavailable": "0", "ranges.underreplicated": "0", "replicas.leaders": "%d"}`, ranges, ranges)
	var used int64
	if info, err := os.Stat(s.node.StoreDir + "/relational.db"); err == nil {
		used = info.Size()
	}
	return [][]storage.Value{{int64(1), int64(1), "[]", int64(1 << 40), int64(1 << 39), used, used, ranges, ranges, 0.0, "{}", "{}", metrics}}, nil
}

func (s *Session) gossipNodes() ([][]storage.Value, error) {
	return [][]storage.Value{{int64(1), "tcp", s.node.Address, s.node.Address, "tcp", s.node.SQLAddress, s.node.SQLAddress, "[]", "region=NODE1",
		s.node.StartMode, "", "20.1-3", build.Tag(), s.started(), flag(s.node.Live()), int64(20), int64(20)}}, nil
}

func (s *Session) gossipLiveness() ([][]storage.Value, error) {
	return [][]storage.Value{{int64(1), int64(1), "", flag(s.node.Draining()), flag(false), flag(false), s.now()}}, nil
}

func (s *Session) buildInfo() ([][]storage.Value, error) {
	var rows [][]storage.Value
	for _, pair := range [][2]string{{"Name", "KaiwuDB"}, {"ClusterID", s.node.ClusterID}, {"Organization", ""}, {"Build", build.Short()}, {"Version", build.Tag()}, {"Channel", "unknown"}} {
		rows = append(rows, []storage.Value{int64(1), pair[0], pair[1]})
	}
	return rows, nil
}

func (s *Session) internalTables() ([][]storage.Value, error) {
	return s.conn.Query("SELECT id, name, db, 'public', 'PUBLIC' FROM _kw_tables ORDER BY id")
}

func (s *Session) ranges() ([][]storage.Value, error) {
	return s.conn.Query("SELECT id, X'', '/Table/' || id, X'', '/Table/' || (id + 1), db, name, '', '{1}', '{region=NODE1}', '{}', NULL, 1, 0.0, 0 FROM _kw_tables ORDER BY id")
}

func (s *Session) schemaTables() ([][]storage.Value, error) {
	return s.conn.Query("SELECT db, 'public', name, kind, 'YES', 1 FROM _kw_tables WHERE db = ? ORDER BY name", s.schemaOf())
}

// schemaOf is the database that information_schema speaks of: db.information_schema.x or the current one.
func (s *Session) schemaOf() string {
	if s.schemaDB != "" {
		return s.schemaDB
	}
	return s.database
}

func (s *Session) schemaColumns() ([][]storage.Value, error) {
	tables, err := allTables(s.conn, s.schemaOf())
	if err != nil {
		return nil, err
	}
	var rows [][]storage.Value
	for _, t := range tables {
		for i, c := range t.Columns {
			nullable := "YES"
			if c.NotNull {
				nullable = "NO"
			}
			rows = append(rows, []storage.Value{t.DB, "public", t.Name, c.Name, int64(i + 1), c.Default, nullable, c.Type})
		}
	}
	return rows, nil
}
