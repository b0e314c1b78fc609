package sql

import (
	"strings"
)

type kind int

const (
	word   kind = iota // an unquoted identifier or keyword, folded to lower case
	quoted             // "an identifier"
	text               // 'a string', decoded
	blob               // b'bytes', decoded
	number
	param // $1
	op
)

// token is one lexical element; text is decoded, start and end are its place in the source.
type token struct {
	kind       kind
	text       string
	start, end int
}

func (t token) is(words ...string) bool {
	if t.kind == word || t.kind == op {
		for _, w := range words {
			if t.text == w {
				return true
			}
		}
	}
	return false
}

func (t token) isName() bool { return t.kind == word || t.kind == quoted }

func isLetter(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// tokenize splits SQL text. Comments and blanks vanish.
func tokenize(source string) ([]token, error) {
	var out []token
	for i := 0; i < len(source); {
		start := i
		c := source[i]
		add := func(k kind, value string, end int) {
			out = append(out, token{k, value, start, end})
			i = end
		}
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
		case strings.HasPrefix(source[i:], "--"):
			for i < len(source) && source[i] != '\n' {
				i++
			}
		case strings.HasPrefix(source[i:], "/*"):
			end := strings.Index(source[i+2:], "*/")
			if end < 0 {
				return nil, syntaxError("/*", source)
			}
			i += end + 4
		case (c == 'b' || c == 'B' || c == 'e' || c == 'E') && i+1 < len(source) && source[i+1] == '\'':
			value, end, ok := readString(source, i+1, true)
			if !ok {
				return nil, syntaxError("'", source)
			}
			k := text
			if c == 'b' || c == 'B' {
				k = blob
			}
			add(k, value, end)
		case isLetter(c):
			end := i
			for end < len(source) && (isLetter(source[end]) || isDigit(source[end]) || source[end] == '$') {
				end++
			}
			add(word, strings.ToLower(source[i:end]), end)
		case c == '\'':
			value, end, ok := readString(source, i, false)
			if !ok {
				return nil, syntaxError("'", source)
			}
			add(text, value, end)
		case c == '"':
			end := strings.IndexByte(source[i+1:], '"')
			if end < 0 {
				return nil, syntaxError(`"`, source)
			}
			add(quoted, source[i+1:i+1+end], i+end+2)
		case c == '$' && i+1 < len(source) && isDigit(source[i+1]):
			end := i + 1
			for end < len(source) && isDigit(source[end]) {
				end++
			}
			add(param, source[i+1:end], end)
		case isDigit(c) || c == '.' && i+1 < len(source) && isDigit(source[i+1]):
			end := readNumber(source, i)
			add(number, source[i:end], end)
		default:
			end := i + 1
			for _, long := range []string{":::", "->>", "::", "->", "||", "<=", ">=", "<>", "!=", "@>"} {
				if strings.HasPrefix(source[i:], long) {
					end = i + len(long)
					break
				}
			}
			add(op, source[i:end], end)
		}
	}
	return out, nil
}

func readNumber(source string, i int) int {
	for i < len(source) {
		c := source[i]
		exponent := (c == 'e' || c == 'E') && i+1 < len(source) &&
			(isDigit(source[i+1]) || (source[i+1] == '-' || source[i+1] == '+') && i+2 < len(source) && isDigit(source[i+2]))
		switch {
		case exponent:
			i += 2
		case isDigit(c) || c == '.':
			i++
		default:
			return i
		}
	}
	return i
}

// readString decodes the literal whose opening quote is at i; ” is one quote, \x.. only with escapes.
func readString(source string, i int, escapes bool) (value string, end int, ok bool) {
	var out strings.Builder
	for i++; i < len(source); i++ {
		c := source[i]
		switch {
		case c == '\'' && i+1 < len(source) && source[i+1] == '\'':
			out.WriteByte('\'')
			i++
		case c == '\'':
			return out.String(), i + 1, true
		case c == '\\' && escapes && i+1 < len(source):
			i++
			i += unescape(&out, source[i:])
		default:
			out.WriteByte(c)
		}
	}
	return "", 0, false
}

// unescape writes what the escape at the start of rest stands for; it returns the bytes beyond the first.
func unescape(out *strings.Builder, rest string) int {
	if rest[0] == 'x' && len(rest) > 2 {
		high, low := strings.IndexByte(hexDigits, rest[1]|0x20), strings.IndexByte(hexDigits, rest[2]|0x20)
		if isDigit(rest[1]) {
			high = int(rest[1] - '0')
		}
		if isDigit(rest[2]) {
			low = int(rest[2] - '0')
		}
		if high >= 0 && low >= 0 {
			out.WriteByte(byte(high<<4 | low))
			return 2
		}
	}
	if at := strings.IndexByte("ntr0", rest[0]); at >= 0 {
		out.WriteByte("\n\t\r\x00"[at])
	} else {
		out.WriteByte(rest[0])
	}
	return 0
}

const hexDigits = "0123456789abcdef"

// splitStatements cuts a query string at its semicolons.
func splitStatements(source string) ([]statement, error) {
	tokens, err := tokenize(source)
	if err != nil {
		return nil, err
	}
	var out []statement
	begin := 0
	for i := 0; i <= len(tokens); i++ {
		if i == len(tokens) || tokens[i].is(";") {
			if i > begin {
				part := tokens[begin:i]
				out = append(out, statement{part, source[part[0].start:part[len(part)-1].end]})
			}
			begin = i + 1
		}
	}
	return out, nil
}

// statement is the tokens of one statement and its text.
type statement struct {
	tokens []token
	source string
}

// parser walks over tokens.
type parser struct {
	statement
	at int
}

func (p *parser) peek() token {
	if p.at < len(p.tokens) {
		return p.tokens[p.at]
	}
	return token{kind: op, text: "EOF", start: len(p.source), end: len(p.source)}
}

func (p *parser) next() token {
	t := p.peek()
	p.at++
	return t
}

func (p *parser) done() bool { return p.at >= len(p.tokens) }

// accept consumes the words where they all follow.
func (p *parser) accept(words ...string) bool {
	for i, w := range words {
		if p.at+i >= len(p.tokens) || !p.tokens[p.at+i].is(w) {
			return false
		}
	}
	p.at += len(words)
	return true
}

func (p *parser) fail() error { return syntaxError(p.peek().text, p.source) }

func (p *parser) expect(words ...string) error {
	if !p.accept(words...) {
		return p.fail()
	}
	return nil
}

func (p *parser) name() (string, error) {
	if t := p.next(); t.isName() {
		return t.text, nil
	}
	p.at--
	return "", p.fail()
}

// dotted reads a.b.c.
func (p *parser) dotted() ([]string, error) {
	var parts []string
	for {
		part, err := p.name()
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
		if !p.accept(".") {
			return parts, nil
		}
	}
}
