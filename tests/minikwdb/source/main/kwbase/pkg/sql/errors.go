package sql

import (
	"fmt"
	"regexp"
	"strings"

	"gitee.com/kwbasedb/kwbase/pkg/storage"
)

// Error is an SQL error with its SQLSTATE.
type Error struct {
	Code, Message, Detail, Hint string
}

func (e *Error) Error() string { return e.Message }

func errorf(code, format string, args ...interface{}) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func syntaxError(near, source string) *Error {
	return &Error{
		Code:    "42601",
		Message: fmt.Sprintf("at or near %q: syntax error", near),
		Detail:  "source SQL:\n" + source + "\n" + strings.Repeat(" ", max0(strings.Index(source, near))) + "^",
		Hint:    "try \\h " + firstWord(source),
	}
}

func max0(n int) int {
	if n < 0 {
		return 0
	}
	return n
}

func firstWord(source string) string {
	if words := strings.Fields(source); len(words) > 0 {
		return strings.ToUpper(words[0])
	}
	return "SELECT"
}

var (
	sqlstatePrefix = regexp.MustCompile(`^([0-9A-Z]{5})\|(?s)(.*)$`)
	nearPattern    = regexp.MustCompile(`^near "((?s).*)": syntax error`)
)

// fromStorage gives a failure of SQLite the SQLSTATE and the words of KWDB.
func fromStorage(err error, source string) error {
	failure, ok := err.(*storage.Error)
	if !ok {
		return err
	}
	message := failure.Message
	if m := sqlstatePrefix.FindStringSubmatch(message); m != nil {
		return errorf(m[1], "%s", m[2])
	}
	if m := nearPattern.FindStringSubmatch(message); m != nil {
		return syntaxError(m[1], source)
	}
	after := func(prefix string) (string, bool) {
		if strings.HasPrefix(message, prefix) {
			return strings.TrimSpace(message[len(prefix):]), true
		}
		return "", false
	}
	switch failure.Code & 0xff {
	case storage.Interrupt:
		return errorf("57014", "query execution canceled")
	case storage.Busy, storage.Locked:
		return errorf("40001", "restart transaction: another transaction holds the rows: %s", message)
	}
	if rest, ok := after("UNIQUE constraint failed:"); ok {
		return errorf("23505", "duplicate key value violates unique constraint \"primary\" (%s)", plainColumns(rest))
	}
	if rest, ok := after("NOT NULL constraint failed:"); ok {
		return errorf("23502", "null value in column %q violates not-null constraint", lastPart(rest))
	}
	if rest, ok := after("CHECK constraint failed:"); ok {
		if strings.HasPrefix(rest, typeCheckPrefix) {
			return errorf("22P02", "could not parse the value of column %s", strings.TrimPrefix(rest, typeCheckPrefix))
		}
		return errorf("23514", "failed to satisfy CHECK constraint (%s)", rest)
	}
	if _, ok := after("FOREIGN KEY constraint failed"); ok {
		return errorf("23503", "foreign key violation")
	}
	if rest, ok := after("no such column:"); ok {
		return errorf("42703", "column %q does not exist", rest)
	}
	if rest, ok := after("no such table:"); ok {
		return errorf("42P01", "relation %q does not exist", lastPart(rest))
	}
	if rest, ok := after("no such function:"); ok {
		return errorf("42883", "unknown function: %s()", rest)
	}
	if strings.Contains(message, "incomplete input") {
		return syntaxError("EOF", source)
	}
	return errorf("XX000", "%s", message)
}

func lastPart(name string) string {
	name = strings.Trim(name, `"`)
	return name[strings.LastIndexByte(name, '.')+1:]
}

func plainColumns(list string) string {
	parts := strings.Split(list, ",")
	for i, part := range parts {
		parts[i] = lastPart(strings.TrimSpace(part))
	}
	return strings.Join(parts, ", ")
}
