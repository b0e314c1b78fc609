package sql

import "strings"

// functionTypes are the types of functions whose value alone does not tell.
var functionTypes = map[string]int{
	"count": OIDInt8, "kw_cast_int": OIDInt8, "kw_cast_float": OIDFloat8, "kw_cast_decimal": OIDDecimal,
	"kw_cast_bool": OIDBool, "kw_cast_bytes": OIDBytes, "kw_cast_timestamp": OIDTimestampTZ, "kw_cast_date": OIDDate,
	"kw_cast_string": OIDText, "now": OIDTimestampTZ, "clock_timestamp": OIDTimestampTZ, "time_bucket": OIDTimestampTZ,
	"fnv64": OIDInt8, "pg_sleep": OIDBool, "sum": OIDDecimal, "avg": OIDDecimal,
}

// items names and types the expressions of the outer select list, as far as their shape tells.
func (r *rewriter) items() []item {
	if r.starts == nil {
		return nil
	}
	if r.end < 0 {
		r.end = len(r.out)
	}
	var out []item
	for i, start := range r.starts {
		end := r.end
		if i+1 < len(r.starts) {
			end = r.starts[i+1] - 1
		}
		if start < end && end <= len(r.out) {
			out = append(out, describe(r.out[start:end]))
		}
	}
	return out
}

func describe(pieces []string) item {
	aliased := false
	if n := len(pieces); n >= 3 && pieces[n-2] == "as" {
		pieces, aliased = pieces[:n-2], true
	} else if n >= 2 && isAlias(pieces[n-1], pieces[n-2]) {
		pieces, aliased = pieces[:n-1], true
	}
	out := item{}
	call := outerCall(pieces)
	out.oid = functionTypes[call]
	if isCondition(pieces) {
		out.oid = OIDBool
	}
	if (call == "min" || call == "max") && len(pieces) >= 4 {
		out.argument = lastPart(pieces[len(pieces)-2])
	}
	if aliased {
		return out
	}
	switch {
	case len(pieces) == 1 && out.oid == OIDBool:
		out.name = "bool"
	case len(pieces) == 1 && (isLetter(pieces[0][0]) || pieces[0][0] == '"' || pieces[0] == "*"):
	case strings.HasPrefix(call, "kw_cast_"):
		out.name = describe(pieces[1 : len(pieces)-1]).name
		if inner := pieces[1 : len(pieces)-1]; out.name == "" && len(inner) == 1 {
			out.name = lastPart(strings.Trim(inner[0], `"`))
			if !isLetter(inner[0][0]) && inner[0][0] != '"' {
				out.name = strings.ToLower(castNames[call])
			}
		}
	case call != "":
		out.name = call
	case len(pieces) > 3 && pieces[1] == "(" && isCallName(pieces[0]): // a window function
		out.name = pieces[0]
	case pieces[0] == "case":
		out.name = "case"
	case pieces[len(pieces)-1] == "*":
	default:
		out.name = "?column?"
	}
	return out
}

var castNames = map[string]string{
	"kw_cast_int": "INT8", "kw_cast_float": "FLOAT8", "kw_cast_decimal": "NUMERIC", "kw_cast_bool": "BOOL",
	"kw_cast_bytes": "BYTEA", "kw_cast_timestamp": "TIMESTAMPTZ", "kw_cast_date": "DATE", "kw_cast_string": "TEXT",
}

func isAlias(last, before string) bool {
	name := last[0] == '"' && strings.IndexByte(last, '.') < 0 || isLetter(last[0])
	operand := before == ")" || strings.HasSuffix(before, ")") || isLetter(before[0]) || before[0] == '"' || before[0] == '\'' || isDigit(before[0])
	return name && operand && last != "end" && before != "not"
}

var conditionWords = map[string]bool{
	"=": true, "<": true, ">": true, "<=": true, ">=": true, "<>": true, "!=": true, "and": true, "or": true, "not": true,
	"in": true, "like": true, "between": true, "is": true, "IS": true,
}

// isCondition tells whether the value is true or false: a comparison outside of all parentheses.
func isCondition(pieces []string) bool {
	if pieces[0] == "case" {
		return false
	}
	depth := 0
	for i, piece := range pieces {
		switch {
		case strings.HasSuffix(piece, "("):
			depth++
		case piece == ")" || strings.HasPrefix(piece, ", ") && strings.HasSuffix(piece, ")"):
			depth--
		case depth == 0 && conditionWords[piece]:
			return true
		case i == 0 && (piece == "exists" || len(pieces) == 1 && (piece == "true" || piece == "false")):
			return true
		}
	}
	return false
}

// outerCall is the function whose call is the whole expression, or nothing.
func outerCall(pieces []string) string {
	n := len(pieces)
	if n < 2 || !strings.HasSuffix(pieces[n-1], ")") {
		return ""
	}
	name, first := pieces[0], 1
	if strings.HasSuffix(name, "(") {
		name, first = strings.TrimSuffix(name, "("), 0
	} else if !isLetter(name[0]) || pieces[1] != "(" {
		return ""
	}
	depth := 0
	for i := first; i < n; i++ {
		switch {
		case strings.HasSuffix(pieces[i], "("):
			depth++
		case pieces[i] == ")" || strings.HasPrefix(pieces[i], ", ") && strings.HasSuffix(pieces[i], ")"):
			depth--
		}
		if depth == 0 && i < n-1 {
			return ""
		}
	}
	return name
}
