package sql

import "strings"

// series turns generate_series(a, b) [AS t(c)] into a recursive query.
func (r *rewriter) series() error {
	r.at++
	if err := r.expect("("); err != nil {
		return err
	}
	var bounds []string
	inner := &rewriter{parser: r.parser, resolve: r.resolve, consts: r.consts, ctes: r.ctes, frames: []frame{{function: true}}}
	for depth := 1; depth > 0; {
		t := inner.peek()
		switch {
		case inner.done():
			return inner.fail()
		case t.is(")") && len(inner.frames) == 1, t.is(",") && len(inner.frames) == 1:
			bounds = append(bounds, strings.Join(inner.out, " "))
			inner.out = nil
			inner.at++
			if t.is(")") {
				depth = 0
			}
		default:
			if err := inner.step(); err != nil {
				return err
			}
		}
	}
	r.at = inner.at
	if len(bounds) < 2 {
		return errorf("42883", "unknown signature: generate_series()")
	}
	step := "1"
	if len(bounds) > 2 {
		step = bounds[2]
	}
	alias, column := "generate_series", "generate_series"
	if r.accept("as") || r.peek().isName() && !clauseWords[r.peek().text] && !joinWords[r.peek().text] {
		alias = r.next().text
		column = alias
		if r.accept("(") {
			column = r.next().text
			if err := r.expect(")"); err != nil {
				return err
			}
		}
	}
	r.emit("(WITH RECURSIVE kw_s(x) AS (SELECT ", bounds[0], " WHERE ", bounds[0], "<=", bounds[1], " UNION ALL SELECT x+", step,
		" FROM kw_s WHERE x+", step, "<=", bounds[1], ") SELECT x AS", quote(column), "FROM kw_s) AS", quote(alias))
	return nil
}

// cast wraps the expression before :: into the function for the type after it.
func (r *rewriter) cast() error {
	r.at++
	t, err := r.typeName()
	if err != nil {
		return err
	}
	r.wrap(t.castFunction()+"(", ")")
	return nil
}

func (r *rewriter) castCall() error {
	r.at += 2
	inner := &rewriter{parser: r.parser, resolve: r.resolve, consts: r.consts, ctes: r.ctes, frames: []frame{{function: true}}}
	for !(inner.peek().is("as") && len(inner.frames) == 1) {
		if inner.done() {
			return inner.fail()
		}
		if err := inner.step(); err != nil {
			return err
		}
	}
	r.at = inner.at + 1
	t, err := r.typeName()
	if err != nil {
		return err
	}
	if err := r.expect(")"); err != nil {
		return err
	}
	r.emit(t.castFunction()+"(", strings.Join(inner.out, " "), ")")
	return nil
}

func (r *rewriter) jsonPath() error {
	r.at++
	t := r.next()
	path := ""
	switch t.kind {
	case text:
		path = literal(`$."` + t.text + `"`)
	case number:
		path = literal("$[" + t.text + "]")
	default:
		return syntaxError(t.text, r.source)
	}
	r.wrap("json_extract(", ", "+path+")")
	return nil
}

// wrap puts the last complete operand of the output between open and close.
func (r *rewriter) wrap(open, end string) {
	start := len(r.out) - 1
	if start >= 0 && strings.HasSuffix(r.out[start], ")") {
		start = r.groupStart(start)
	}
	if start < 0 {
		start = 0
	}
	tail := append([]string{open}, r.out[start:]...)
	r.out = append(append(r.out[:start:start], tail...), end)
}

// groupStart finds the piece where the group that ends at index i begins, with its function's name.
func (r *rewriter) groupStart(i int) int {
	depth := 0
	for ; i >= 0; i-- {
		piece := r.out[i]
		switch {
		case piece == ")" || strings.HasPrefix(piece, ", ") && strings.HasSuffix(piece, ")"):
			depth++
		case strings.HasSuffix(piece, "("):
			depth--
		}
		if depth == 0 {
			if piece == "(" && i > 0 && isCallName(r.out[i-1]) {
				return i - 1
			}
			return i
		}
	}
	return 0
}

// operators are words before a parenthesis that call nothing.
var operators = map[string]bool{
	"in": true, "and": true, "or": true, "not": true, "then": true, "when": true, "else": true, "on": true, "by": true,
	"distinct": true, "is": true, "like": true, "between": true, "over": true, "as": true, "case": true, "exists": true,
}

func isCallName(s string) bool {
	return s != "" && isLetter(s[0]) && strings.ToUpper(s) != s && !operators[s]
}
