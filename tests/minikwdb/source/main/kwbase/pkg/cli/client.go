package cli

import (
	"crypto/tls"
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"gitee.com/kwbasedb/kwbase/pkg/pgserver"
	"gitee.com/kwbasedb/kwbase/pkg/server"
	"minikw.example/flagset"
	"minikw.example/pgwire"
)

func clientFlags(f *flagset.Set) {
	f.Add("host", "", "string", envOr("KWBASE_HOST", "127.0.0.1:26257"), "node to connect to")
	f.Add("port", "p", "string", os.Getenv("KWBASE_PORT"), "port of the node").Hidden = true
	f.Add("insecure", "", "bool", envOr("KWBASE_INSECURE", "false"), "connect without encryption")
	f.Add("certs-dir", "", "string", envOr("KWBASE_CERTS_DIR", "${HOME}/.kwbase-certs"), "path to the directory with certificates")
	f.Add("user", "u", "string", envOr("KWBASE_USER", "root"), "user")
	f.Add("drain-wait", "", "string", "10m", "how long to wait for a drain")
	f.Add("format", "", "string", "table", "how to print results: csv, tsv or table")
}

func sqlFlags(f *flagset.Set) {
	clientFlags(f)
	f.Add("database", "d", "string", envOr("KWBASE_DATABASE", "defaultdb"), "current database")
	f.Add("execute", "e", "strings", "", "statements to run, then exit")
	f.Add("set", "", "strings", "", "set a variable of the client")
}

func statusFlags(f *flagset.Set) {
	clientFlags(f)
	for _, name := range []string{"all", "decommission", "ranges", "stats"} {
		f.Add(name, "", "bool", "false", "show "+name+" columns")
	}
}

func envOr(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}

func connect(f *flagset.Set, database string) (*pgwire.Client, error) {
	host, port, err := net.SplitHostPort(f.Get("host"))
	if err != nil {
		host, port = f.Get("host"), "26257"
	}
	if given := f.Get("port"); given != "" {
		port = given
	}
	var config *tls.Config
	if !f.Bool("insecure") {
		if config, err = server.ClientTLS(os.ExpandEnv(f.Get("certs-dir")), f.Get("user"), host); err != nil {
			return nil, err
		}
	}
	address := net.JoinHostPort(host, port)
	client, err := pgwire.Connect(pgwire.Options{Address: address, User: f.Get("user"), Database: database, TLS: config, Timeout: 5 * time.Second})
	var refused *net.OpError
	if errors.As(err, &refused) {
		err = fmt.Errorf("cannot dial server.\nIs the server running?\nIf the server is running, check --host client-side and --advertise server-side.\n\n%v", refused)
	}
	return client, err
}

func runSQL(_ string, f *flagset.Set) error {
	client, err := connect(f, f.Get("database"))
	if err != nil {
		return err
	}
	defer client.Close()
	statements := f.All("execute")
	if len(statements) == 0 {
		script, err := readAll(os.Stdin)
		if err != nil {
			return err
		}
		statements = []string{script}
	}
	for _, statement := range statements {
		results, err := client.Query(statement)
		for _, result := range results {
			printResult(result, f.Get("format"))
		}
		if err != nil {
			return describeError(err)
		}
	}
	return nil
}

func describeError(err error) error {
	var e *pgwire.Error
	if !errors.As(err, &e) {
		return err
	}
	out := e.Message + "\nSQLSTATE: " + e.Code
	if e.Detail != "" {
		out += "\nDETAIL: " + e.Detail
	}
	if e.Hint != "" {
		out += "\nHINT: " + e.Hint
	}
	return &exitCode{1, "ERROR: " + out + "\nFailed running \"sql\""}
}

func printResult(r pgwire.Result, format string) {
	if r.Columns == nil {
		tag := r.Tag
		if strings.HasPrefix(tag, "INSERT 0 ") {
			tag = "INSERT " + strings.TrimPrefix(tag, "INSERT 0 ")
		}
		fmt.Println(tag)
		return
	}
	rows := [][]string{r.Columns}
	for _, row := range r.Rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = "NULL"
			if cell != nil {
				cells[i] = *cell
			}
		}
		rows = append(rows, cells)
	}
	switch format {
	case "csv", "tsv":
		out := csv.NewWriter(os.Stdout)
		if format == "tsv" {
			out.Comma = '\t'
		}
		_ = out.WriteAll(rows)
	default:
		out := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', tabwriter.Debug)
		for _, row := range rows {
			fmt.Fprintln(out, "  "+strings.Join(row, "\t "))
		}
		_ = out.Flush()
		fmt.Printf("(%d rows)\n", len(r.Rows))
	}
}

const statusQuery = `SELECT n.node_id AS id, n.address, n.sql_address, n.build_tag AS build, s.started_at, s.updated_at, n.locality, n.start_mode,
 n.is_live AS is_available, n.is_live%s FROM kwdb_internal.gossip_nodes AS n JOIN kwdb_internal.kv_node_status AS s ON n.node_id = s.node_id
 JOIN kwdb_internal.gossip_liveness AS l ON n.node_id = l.node_id`

const statusAll = `, n.leases AS replicas_leaders, n.leases AS replicas_leaseholders, n.ranges, 0 AS ranges_unavailable, 0 AS ranges_underreplicated,
 0 AS live_bytes, 0 AS key_bytes, 0 AS value_bytes, 0 AS intent_bytes, 0 AS system_bytes, n.ranges AS gossiped_replicas,
 l.decommissioning AS is_decommissioning, l.draining AS is_draining`

func runStatus(_ string, f *flagset.Set) error {
	extra := ""
	if f.Bool("all") {
		extra = statusAll
	}
	return printQuery(f, fmt.Sprintf(statusQuery, extra))
}

func runNodeList(_ string, f *flagset.Set) error {
	return printQuery(f, "SELECT node_id AS id FROM kwdb_internal.gossip_nodes")
}

func printQuery(f *flagset.Set, query string) error {
	client, err := connect(f, "defaultdb")
	if err != nil {
		return err
	}
	defer client.Close()
	results, err := client.Query(query)
	for i, result := range results {
		for c, column := range result.Columns { // CSV of KWDB spells booleans out
			if !strings.HasPrefix(column, "is_") {
				continue
			}
			for _, row := range result.Rows {
				word := map[string]string{"t": "true", "f": "false"}[*row[c]]
				row[c] = &word
			}
		}
		printResult(results[i], f.Get("format"))
	}
	return err
}

func runInit(_ string, f *flagset.Set) error {
	client, err := connect(f, pgserver.InitDatabase)
	if err != nil {
		return err
	}
	_ = client.Close()
	fmt.Println("Cluster successfully initialized")
	return nil
}

func runDrain(_ string, f *flagset.Set) error {
	if err := ask(f, "SELECT kwdb_internal.drain_node()"); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "node is draining... remaining: 0 (complete)")
	fmt.Println("ok")
	return nil
}

func runQuit(_ string, f *flagset.Set) error {
	if err := ask(f, "SELECT kwdb_internal.quit_node()"); err != nil {
		return err
	}
	time.Sleep(400 * time.Millisecond)
	fmt.Println("ok")
	return nil
}

func ask(f *flagset.Set, statement string) error {
	client, err := connect(f, "defaultdb")
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = client.Query(statement)
	return err
}
