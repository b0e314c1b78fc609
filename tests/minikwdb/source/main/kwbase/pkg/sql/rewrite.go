package sql

import (
	"encoding/hex"
	"strings"
)

// resolver turns the name of a table, as written, into the quoted name inside SQLite.
type resolver func(parts []string) (string, error)

// rewritten is a statement for SQLite, with what could be learned about its result columns.
type rewritten struct {
	sql   string
	items []item
}

// item is one expression of the outermost select list.
type item struct {
	name     string // the name KWDB gives the column, or empty to take SQLite's
	oid      int    // 0 where unknown
	argument string // of min and max: the type is that of this column
}

// frame is one level of parentheses.
type frame struct {
	inFrom, wantTable bool
	function          bool // arguments of a function: FROM inside belongs to it
}

type rewriter struct {
	parser
	resolve resolver
	consts  map[string]string // functions without arguments that the session answers
	ctes    map[string]bool
	out     []string
	frames  []frame
	starts  []int // where each item of the outer select list begins in out
	end     int   // where the outer select list ends
	inList  bool
}

var clauseWords = map[string]bool{
	"where": true, "group": true, "order": true, "having": true, "limit": true, "offset": true, "union": true,
	"except": true, "intersect": true, "window": true, "returning": true, "set": true, "values": true, "select": true,
}

var joinWords = map[string]bool{
	"join": true, "inner": true, "left": true, "right": true, "full": true, "cross": true, "natural": true,
	"on": true, "using": true, "as": true, "outer": true, "default": true, "for": true, "do": true,
}

var functionNames = map[string]string{
	"char_length": "length", "character_length": "length", "string_agg": "group_concat", "greatest": "max",
	"least": "min", "substring": "substr", "strpos": "instr", "json_extract_path_text": "json_extract",
}

// rewrite translates one SELECT, INSERT, UPDATE, DELETE, WITH or VALUES statement.
func rewrite(s statement, resolve resolver, consts map[string]string) (rewritten, error) {
	r := &rewriter{parser: parser{statement: s}, resolve: resolve, consts: consts, ctes: cteNames(s.tokens), frames: []frame{{}}, end: -1}
	for !r.done() {
		if err := r.step(); err != nil {
			return rewritten{}, err
		}
	}
	return rewritten{sql: strings.Join(r.out, " "), items: r.items()}, nil
}

func cteNames(tokens []token) map[string]bool {
	names := map[string]bool{}
	for i := 0; i+1 < len(tokens); i++ {
		if !tokens[i].is("with", "recursive", ",") || !tokens[i+1].isName() {
			continue
		}
		j := i + 2
		if j < len(tokens) && tokens[j].is("(") {
			for j < len(tokens) && !tokens[j].is(")") {
				j++
			}
			j++
		}
		if j+1 < len(tokens) && tokens[j].is("as") && tokens[j+1].is("(") {
			names[tokens[i+1].text] = true
		}
	}
	return names
}

func (r *rewriter) top() *frame { return &r.frames[len(r.frames)-1] }

func (r *rewriter) emit(parts ...string) { r.out = append(r.out, parts...) }

func (r *rewriter) lookahead(n int) token {
	if r.at+n < len(r.tokens) {
		return r.tokens[r.at+n]
	}
	return token{kind: op}
}

// quote writes a name so that SQLite reads it as one.
func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func literal(s string) string {
	if strings.IndexByte(s, 0) >= 0 {
		return "CAST(X'" + hex.EncodeToString([]byte(s)) + "' AS TEXT)"
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

func (r *rewriter) step() error {
	t := r.peek()
	f := r.top()
	if f.wantTable {
		done, err := r.table()
		if done || err != nil {
			return err
		}
	}
	switch {
	case t.is("::", ":::"):
		return r.cast()
	case t.is("->", "->>"):
		return r.jsonPath()
	case t.is("("):
		r.at++
		r.emit("(")
		inner := frame{inFrom: f.wantTable, wantTable: f.wantTable}
		f.wantTable = false
		r.frames = append(r.frames, inner)
		return nil
	case t.is(")"):
		r.at++
		r.emit(")")
		if len(r.frames) == 1 {
			return syntaxError(")", r.source)
		}
		r.frames = r.frames[:len(r.frames)-1]
		return nil
	case t.is(","):
		r.at++
		r.emit(",")
		f.wantTable = f.inFrom
		if r.inList && len(r.frames) == 1 {
			r.starts = append(r.starts, len(r.out))
		}
		return nil
	case t.kind == op:
		r.at++
		r.emit(t.text)
		return nil
	case t.kind == text:
		r.at++
		r.emit(literal(t.text))
		return nil
	case t.kind == blob:
		r.at++
		r.emit("X'" + hex.EncodeToString([]byte(t.text)) + "'")
		return nil
	case t.kind == number:
		r.at++
		r.emit(t.text)
		return nil
	case t.kind == param:
		r.at++
		r.emit("?" + t.text)
		return nil
	}
	return r.word()
}

// word handles keywords and names outside of table position.
func (r *rewriter) word() error {
	t, f := r.peek(), r.top()
	bare := t.kind == word
	switch {
	case bare && t.text == "from" && !f.function:
		r.endList()
		f.inFrom, f.wantTable = true, true
	case bare && t.text == "join":
		f.wantTable = true
	case bare && t.text == "into", bare && t.text == "update" && r.at == 0:
		f.wantTable = true
	case bare && t.text == "upsert" && r.at == 0:
		r.at++
		r.emit("INSERT", "OR", "REPLACE")
		return nil
	case bare && t.text == "is" && r.isDistinct():
		return nil
	case bare && t.text == "for" && (r.lookahead(1).is("update", "share")):
		r.at += 2
		return nil
	case bare && t.text == "as" && r.lookahead(1).is("of") && r.lookahead(2).is("system"):
		r.at += 5
		return nil
	case bare && clauseWords[t.text]:
		f.inFrom, f.wantTable = false, false
		if len(r.frames) == 1 {
			r.endList()
			if t.text == "select" && r.starts == nil {
				r.inList = true
			}
		}
		if t.text == "select" {
			r.at++
			r.emit("SELECT")
			if r.peek().is("distinct", "all") {
				r.emit(r.next().text)
			}
			if r.inList && r.starts == nil {
				r.starts = append(r.starts, len(r.out))
			}
			return nil
		}
	case bare && t.text == "cast" && r.lookahead(1).is("("):
		return r.castCall()
	case bare && (t.text == "timestamp" || t.text == "timestamptz" || t.text == "date") && r.lookahead(1).kind == text:
		r.at++
		r.emit(kwType{name: typeNames[t.text]}.castFunction(), "(", literal(r.next().text), ")")
		return nil
	case bare && t.text == "current_timestamp":
		r.at++
		r.emit("now", "(", ")")
		return nil
	default:
		return r.names()
	}
	r.at++
	r.emit(strings.ToUpper(t.text))
	return nil
}

func (r *rewriter) endList() {
	if r.inList && len(r.frames) == 1 {
		r.inList, r.end = false, len(r.out)
	}
}

// isDistinct turns IS [NOT] DISTINCT FROM into SQLite's IS NOT and IS.
func (r *rewriter) isDistinct() bool {
	if r.accept("is", "distinct", "from") {
		r.emit("IS", "NOT")
		return true
	}
	if r.accept("is", "not", "distinct", "from") {
		r.emit("IS")
		return true
	}
	return false
}

// names reads a column or a function with all its parts.
func (r *rewriter) names() error {
	first := r.peek()
	parts, err := r.dotted()
	if err != nil {
		if r.peek().is("*") && r.at > 0 { // t.*
			r.emit(joinNames(lastTwo(parts, 1)), ".")
			return nil
		}
		return err
	}
	if first.kind == word && r.peek().is("(") {
		name := strings.TrimPrefix(strings.Join(parts, "."), "pg_catalog.")
		if value, known := r.consts[name]; known && r.lookahead(1).is(")") {
			r.at += 2
			r.emit(value)
			return nil
		}
		if mapped, known := functionNames[name]; known {
			name = mapped
		}
		r.at++
		r.emit(name, "(")
		isQuery := r.peek().is("select", "with", "values")
		r.frames = append(r.frames, frame{function: !isQuery})
		return nil
	}
	if value, known := r.consts[first.text]; known && first.kind == word && len(parts) == 1 && strings.HasPrefix(first.text, "current_") {
		r.emit(value)
		return nil
	}
	if len(parts) == 1 && first.kind == word {
		r.emit(first.text)
		return nil
	}
	r.emit(joinNames(lastTwo(parts, 2)))
	return nil
}

func lastTwo(parts []string, n int) []string {
	if len(parts) > n {
		return parts[len(parts)-n:]
	}
	return parts
}

func joinNames(parts []string) string {
	out := make([]string, len(parts))
	for i, p := range parts {
		out[i] = quote(p)
	}
	return strings.Join(out, ".")
}

// table reads the name of a table, where one is due. Not done: a subquery or another word follows.
func (r *rewriter) table() (bool, error) {
	t, f := r.peek(), r.top()
	if t.is("lateral", "only", "table") {
		r.at++
		return true, nil
	}
	if t.is("select", "with", "values") || !t.isName() {
		if !t.is("(") {
			f.wantTable = false
		}
		return false, nil
	}
	if t.is("generate_series") {
		f.wantTable = false
		return true, r.series()
	}
	f.wantTable = false
	parts, err := r.dotted()
	if err != nil {
		return true, err
	}
	if len(parts) == 1 && r.ctes[parts[0]] {
		r.emit(quote(parts[0]))
		return true, nil
	}
	name, err := r.resolve(parts)
	if err != nil {
		return true, err
	}
	r.emit(name)
	if r.accept("@") { // an index hint
		r.next()
	}
	next := r.peek()
	aliased := next.kind == quoted || next.kind == word && (next.text == "as" && !r.lookahead(1).is("of") || !clauseWords[next.text] && !joinWords[next.text])
	if !aliased {
		r.emit("AS", quote(parts[len(parts)-1]))
	}
	return true, nil
}
