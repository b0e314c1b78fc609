package sql

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitee.com/kwbasedb/kwbase/pkg/storage"
)

func rewriteText(t *testing.T, source string) rewritten {
	t.Helper()
	parts, err := splitStatements(source)
	if err != nil || len(parts) != 1 {
		t.Fatalf("split %q: %v", source, err)
	}
	resolve := func(names []string) (string, error) { return quote(strings.Join(names, ".")), nil }
	out, err := rewrite(parts[0], resolve, map[string]string{"version": "'V'"})
	if err != nil {
		t.Fatalf("rewrite %q: %v", source, err)
	}
	return out
}

func squeeze(s string) string { return strings.Join(strings.Fields(s), "") }

func TestRewrite(t *testing.T) {
	for source, want := range map[string]string{
		"SELECT id::STRING FROM shop.orders":               `SELECT kw_cast_string(id) FROM "shop.orders" AS "orders"`,
		"select (a->>'x.y')::decimal::int from t as q":     `SELECT kw_cast_int(kw_cast_decimal((json_extract(a,'$."x.y"')))) FROM "t" as q`,
		"upsert into t values ($1, b'\\x01')":              `INSERT OR REPLACE INTO "t" AS "t" VALUES (?1, X'01')`,
		"select * from a, b join c on a.x = c.x where 1=1": `SELECT * FROM "a" AS "a", "b" AS "b" JOIN "c" AS "c" on "a"."x" = "c"."x" WHERE 1=1`,
		"with x as (select 1) select * from x":             `with x as (SELECT 1) SELECT * FROM "x"`,
		"select version(), sum(f(x)) from t@primary":       `SELECT 'V', sum(f(x)) FROM "t" AS "t"`,
		"select a is not distinct from b from t":           `SELECT a IS b FROM "t" AS "t"`,
		"select cast(a as text) from db.public.t":          `SELECT kw_cast_string(a) FROM "db.public.t" AS "t"`,
		"select timestamp '2026-01-01' -- comment":         `SELECT kw_cast_timestamp('2026-01-01')`,
	} {
		if got := rewriteText(t, source).sql; squeeze(got) != squeeze(want) {
			t.Errorf("%s\n got %s\nwant %s", source, got, want)
		}
	}
}

func TestItems(t *testing.T) {
	items := rewriteText(t, "select count(*), sum(fnv64(a)) s, max(b), a = 1, 'x', c::int, d from t").items
	want := []item{{"count", OIDInt8, ""}, {"", OIDDecimal, ""}, {"max", 0, "b"}, {"?column?", OIDBool, ""},
		{"?column?", 0, ""}, {"c", OIDInt8, ""}, {"", 0, ""}}
	if len(items) != len(want) {
		t.Fatalf("%d items: %v", len(items), items)
	}
	for i := range want {
		if items[i] != want[i] {
			t.Errorf("item %d: got %v, want %v", i, items[i], want[i])
		}
	}
}

func TestSplitKeepsQuotes(t *testing.T) {
	parts, err := splitStatements("select ';', \"a;b\"; /* ; */ select 'it''s' ;;")
	if err != nil || len(parts) != 2 || parts[1].tokens[1].text != "it's" {
		t.Fatalf("%v %v", parts, err)
	}
}

func openSession(t *testing.T) *Session {
	t.Helper()
	path := filepath.Join(t.TempDir(), "relational.db")
	conn, err := storage.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := Bootstrap(conn, "a-cluster"); err != nil {
		t.Fatal(err)
	}
	yes := func() bool { return true }
	s, err := NewSession(path, &Node{Insecure: true, ClusterID: "a-cluster", Started: time.Now(), Live: yes, Draining: yes}, "root", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// run gives the last result as text: cells by '|', rows by ';', or the SQLSTATE of an error.
func run(t *testing.T, s *Session, source string) string {
	t.Helper()
	statements, err := Split(source)
	var result *Result
	for _, statement := range statements {
		if result, err = s.Execute(statement, nil); err != nil {
			break
		}
	}
	if e, ok := err.(*Error); ok {
		return e.Code
	}
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	if result.Columns == nil {
		return result.Tag
	}
	var rows []string
	for _, row := range result.Rows {
		var cells []string
		for i, cell := range row {
			cells = append(cells, string(result.Columns[i].Text(cell, s.ExtraFloatDigits())))
		}
		rows = append(rows, strings.Join(cells, "|"))
	}
	return strings.Join(rows, ";")
}

func TestStatements(t *testing.T) {
	s := openSession(t)
	for _, step := range [][2]string{
		{"create database shop", "CREATE DATABASE"},
		{"create database shop", "42P04"},
		{"create table shop.o (id int, d decimal(9,2), note string, b bytes, ok bool, primary key (id))", "CREATE TABLE"},
		{"insert into shop.o values (1, 10.5, 'a', b'\\xff', true), (2, 0.1, null, null, false), (3, 0.2, 'c', null, null)", "INSERT 0 3"},
		{"select * from shop.public.o order by id limit 1", `1|10.50|a|\xff|t`},
		{"select sum(d), max(d), count(*) from shop.o", "10.8|10.50|3"},
		{"select count(*) from shop.o where d > 5", "1"},
		{"select sum(fnv64(coalesce(id::string,'~')||'|'||coalesce(note::string,'~'))) from shop.o where id = 1", "-2774296430402473981"},
		{"select md5('abc'), sha256('abc')", "900150983cd24fb0d6963f7d28e17f72|ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
		{"insert into shop.o (id) values (1)", "23505"},
		{"insert into shop.o (id) values (null)", "23502"},
		{"insert into shop.o (id) values ('x')", "22P02"},
		{"select nope from shop.o", "42703"},
		{"select * from shop.nope", "42P01"},
		{"selec 1", "42601"},
		{"use nope", "3D000"},
		{"begin; delete from shop.o; rollback; select count(*) from shop.o", "3"},
		{"begin; select 1; selec", "42601"},
		{"select 1", "25P02"},
		{"rollback", "ROLLBACK"},
		{"use shop; show tables", "o|BASE TABLE"},
		{"show databases", "defaultdb|RELATIONAL;postgres|RELATIONAL;shop|RELATIONAL;system|RELATIONAL"},
		{"set statement_timeout = 50; select pg_sleep(5)", "57014"},
		{"set statement_timeout = 0; select 'free'", "free"},
		{"set extra_float_digits = 3; select (0.1::float8 + 0.2::float8)::string", "0.30000000000000004"},
		{"select sum((metrics->>'ranges.unavailable')::DECIMAL)::INT from kwdb_internal.kv_store_status", "0"},
		{"select job_type from kwdb_internal.jobs where status = 'running'", "TS TXN"},
		{"set cluster setting ts.parallel_degree = 3; show cluster setting ts.parallel_degree", "3"},
		{"select i from generate_series(1, 3) as g(i) order by i desc", "3;2;1"},
		{"drop database shop cascade; select count(*) from kwdb_internal.tables", "0"},
	} {
		if got := run(t, s, step[0]); got != step[1] {
			t.Errorf("%s\n got %q\nwant %q", step[0], got, step[1])
		}
	}
}
