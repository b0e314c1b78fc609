package sql

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"gitee.com/kwbasedb/kwbase/pkg/storage"
)

// Object ids of types on the wire.
const (
	OIDBool        = 16
	OIDBytes       = 17
	OIDInt8        = 20
	OIDInt2        = 21
	OIDInt4        = 23
	OIDText        = 25
	OIDFloat4      = 700
	OIDFloat8      = 701
	OIDVarchar     = 1043
	OIDDate        = 1082
	OIDTimestamp   = 1114
	OIDTimestampTZ = 1184
	OIDDecimal     = 1700
	OIDUUID        = 2950
	OIDJSONB       = 3802
)

// Column describes a column of a result.
type Column struct {
	Name  string
	OID   int
	Scale int // digits after the point of a DECIMAL(p,s), or -1
}

const typeCheckPrefix = "kw type of "

// kwType is a type as KWDB prints it.
type kwType struct {
	name   string // INT4, VARCHAR, …
	suffix string // (16), (10,2) or empty
	serial bool
}

func (t kwType) String() string { return t.name + t.suffix }

var typeNames = map[string]string{
	"int": "INT4", "integer": "INT4", "int4": "INT4", "int8": "INT8", "bigint": "INT8", "int64": "INT8",
	"int2": "INT2", "smallint": "INT2", "serial": "INT8", "string": "STRING", "text": "STRING",
	"varchar": "VARCHAR", "char": "CHAR", "nvarchar": "NVARCHAR", "nchar": "NCHAR", "character": "CHAR",
	"float": "FLOAT8", "float8": "FLOAT8", "double": "FLOAT8", "real": "FLOAT4", "float4": "FLOAT4",
	"decimal": "DECIMAL", "numeric": "DECIMAL", "bool": "BOOL", "boolean": "BOOL",
	"bytes": "BYTES", "bytea": "BYTES", "blob": "BYTES", "varbytes": "VARBYTES",
	"timestamp": "TIMESTAMP", "timestamptz": "TIMESTAMPTZ", "date": "DATE", "time": "TIME",
	"interval": "INTERVAL", "json": "JSONB", "jsonb": "JSONB", "uuid": "UUID", "inet": "INET", "name": "STRING",
}

func (p *parser) typeName() (kwType, error) {
	t := p.peek()
	name, known := typeNames[t.text]
	if !t.isName() || !known {
		return kwType{}, p.fail()
	}
	p.at++
	out := kwType{name: name, serial: t.text == "serial"}
	p.accept("precision")
	p.accept("varying")
	if p.accept("(") {
		for !p.accept(")") {
			if p.done() {
				return kwType{}, p.fail()
			}
			out.suffix += p.next().text
		}
		out.suffix = "(" + out.suffix + ")"
	}
	if p.accept("with", "time", "zone") {
		out.name = "TIMESTAMPTZ"
	}
	p.accept("without", "time", "zone")
	return out, nil
}

// sqlite is the declaration of a column of this type inside SQLite. The word decides SQLite's affinity
// (a type with TEXT in it stays text), and it comes back as the declared type of results.
func (t kwType) sqlite() string {
	switch t.name {
	case "STRING", "UUID", "JSONB", "TIME", "INET":
		return t.name + "_TEXT" + t.suffix
	case "INTERVAL":
		return "IVAL_TEXT"
	case "BYTES", "VARBYTES":
		return t.name + "_BLOB" + t.suffix
	case "DECIMAL":
		return "DECIMAL_TEXT" + t.suffix + " COLLATE KWNUM"
	case "TIMESTAMP", "TIMESTAMPTZ", "DATE":
		return t.name + t.suffix + " COLLATE KWTIME"
	}
	return t.name + t.suffix
}

// castFunction is the SQL function behind ::TYPE.
func (t kwType) castFunction() string {
	switch t.name {
	case "INT2", "INT4", "INT8":
		return "kw_cast_int"
	case "FLOAT4", "FLOAT8":
		return "kw_cast_float"
	case "DECIMAL":
		return "kw_cast_decimal"
	case "BOOL":
		return "kw_cast_bool"
	case "BYTES", "VARBYTES":
		return "kw_cast_bytes"
	case "TIMESTAMP", "TIMESTAMPTZ":
		return "kw_cast_timestamp"
	case "DATE":
		return "kw_cast_date"
	}
	return "kw_cast_string"
}

var typeOIDs = []struct {
	prefix string
	oid    int
}{
	{"INT2", OIDInt2}, {"INT4", OIDInt4}, {"INT", OIDInt8}, {"VARCHAR", OIDVarchar}, {"FLOAT4", OIDFloat4},
	{"FLOAT", OIDFloat8}, {"DECIMAL", OIDDecimal}, {"BOOL", OIDBool}, {"BYTES", OIDBytes}, {"VARBYTES", OIDBytes},
	{"TIMESTAMPTZ", OIDTimestampTZ}, {"TIMESTAMP", OIDTimestamp}, {"DATE", OIDDate}, {"JSONB", OIDJSONB}, {"UUID", OIDUUID},
}

func oidOf(declared string) (oid, scale int) {
	scale = -1
	for _, t := range typeOIDs {
		if strings.HasPrefix(declared, t.prefix) {
			if comma := strings.IndexByte(declared, ','); t.oid == OIDDecimal && comma > 0 {
				scale, _ = strconv.Atoi(strings.TrimSuffix(declared[comma+1:], ")"))
			}
			return t.oid, scale
		}
	}
	return OIDText, scale
}

func oidOfValue(v storage.Value) int {
	switch v.(type) {
	case int64:
		return OIDInt8
	case float64:
		return OIDFloat8
	case []byte:
		return OIDBytes
	}
	return OIDText
}

// Text renders a value for the wire; nil is NULL.
func (c Column) Text(v storage.Value, extraFloatDigits int) []byte {
	switch x := v.(type) {
	case nil:
		return nil
	case int64:
		if c.OID == OIDBool {
			if x != 0 {
				return []byte("t")
			}
			return []byte("f")
		}
		return c.padDecimal(strconv.FormatInt(x, 10))
	case float64:
		digits := -1
		if extraFloatDigits <= 0 {
			digits = 15 + extraFloatDigits
		}
		out := strconv.FormatFloat(x, 'g', digits, 64)
		return c.padDecimal(out)
	case []byte:
		if c.OID == OIDText || c.OID == OIDVarchar {
			return x
		}
		return []byte(`\x` + hex.EncodeToString(x))
	case string:
		if c.OID == OIDTimestamp {
			x = strings.TrimSuffix(x, "+00:00")
		}
		return c.padDecimal(x)
	}
	return []byte(fmt.Sprint(v))
}

// padDecimal gives a DECIMAL(p,s) its s digits.
func (c Column) padDecimal(s string) []byte {
	if c.OID != OIDDecimal || c.Scale <= 0 {
		return []byte(s)
	}
	point := strings.IndexByte(s, '.')
	if point < 0 {
		return []byte(s + "." + strings.Repeat("0", c.Scale))
	}
	if missing := c.Scale - (len(s) - point - 1); missing > 0 {
		s += strings.Repeat("0", missing)
	}
	return []byte(s)
}
