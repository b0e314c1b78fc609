// Package storage binds the two C++ sides: SQLite for rows, libkwdbts2 for time series.
package storage

// #include <stdlib.h>
// #include "rowstore.h"
// #include "vtab.h"
// static int bind_text(sqlite3_stmt *s, int i, const char *p, int n) { return sqlite3_bind_text(s, i, p, n, SQLITE_TRANSIENT); }
// static int bind_blob(sqlite3_stmt *s, int i, const void *p, int n) { return sqlite3_bind_blob(s, i, p, n, SQLITE_TRANSIENT); }
import "C"

import (
	"encoding/binary"
	"errors"
	"math"
	"unsafe"
)

// Value is nil, int64, float64, string or []byte.
type Value interface{}

// Error is a failure of SQLite or of a function inside it.
type Error struct {
	Code    int // SQLite's extended result code
	Message string
}

func (e *Error) Error() string { return e.Message }

// Result codes that callers tell apart.
const (
	Busy       = C.SQLITE_BUSY
	Interrupt  = C.SQLITE_INTERRUPT
	Constraint = C.SQLITE_CONSTRAINT
	Locked     = C.SQLITE_LOCKED
)

// OpenEngine opens the time-series engine of the process.
func OpenEngine(store, logDir string, vgroups int) error {
	cStore, cLogs := C.CString(store), C.CString(logDir)
	defer C.free(unsafe.Pointer(cStore))
	defer C.free(unsafe.Pointer(cLogs))
	if message := C.vtab_open_engine(cStore, cLogs, C.int(vgroups)); message != nil {
		defer C.free(unsafe.Pointer(message))
		return errors.New(C.GoString(message))
	}
	return nil
}

// CloseEngine flushes and closes it.
func CloseEngine() { C.vtab_close_engine() }

// Conn is a connection to the SQLite file; one goroutine at a time, except for Interrupt.
type Conn struct{ c *C.RowConn }

// Open opens the file, creating it where it is missing.
func Open(path string) (*Conn, error) {
	cPath := C.CString(path)
	defer C.free(unsafe.Pointer(cPath))
	conn := &Conn{}
	code := C.row_open(cPath, &conn.c)
	if code == C.SQLITE_OK {
		code = C.vtab_register(conn.c)
	}
	if code != C.SQLITE_OK {
		err := conn.err(code)
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// Close ends the connection; an open transaction is rolled back.
func (c *Conn) Close() {
	C.row_close(c.c)
	c.c = nil
}

// Interrupt stops the statement that runs now. Resume must follow before the next one.
func (c *Conn) Interrupt() { C.row_interrupt(c.c) }

// Resume lets statements run again.
func (c *Conn) Resume() { C.row_resume(c.c) }

// SetExtraFloatDigits says how floats become text inside SQL.
func (c *Conn) SetExtraFloatDigits(n int) { C.row_set_extra_float_digits(c.c, C.int(n)) }

// InTransaction reports whether BEGIN was run and not ended.
func (c *Conn) InTransaction() bool { return C.sqlite3_get_autocommit(C.row_handle(c.c)) == 0 }

// Changes is the number of rows that the last statement changed.
func (c *Conn) Changes() int { return int(C.sqlite3_changes(C.row_handle(c.c))) }

func (c *Conn) err(code C.int) error {
	return &Error{Code: int(C.sqlite3_extended_errcode(C.row_handle(c.c))), Message: C.GoString(C.sqlite3_errmsg(C.row_handle(c.c)))}
}

// Stmt is a prepared statement.
type Stmt struct {
	conn *Conn
	s    *C.sqlite3_stmt
}

// Prepare compiles one statement.
func (c *Conn) Prepare(sql string) (*Stmt, error) {
	cSQL := C.CString(sql)
	defer C.free(unsafe.Pointer(cSQL))
	stmt := &Stmt{conn: c}
	if code := C.sqlite3_prepare_v2(C.row_handle(c.c), cSQL, -1, &stmt.s, nil); code != C.SQLITE_OK {
		return nil, c.err(code)
	}
	return stmt, nil
}

// Close frees the statement.
func (s *Stmt) Close() { C.sqlite3_finalize(s.s) }

// Params is the number of parameters.
func (s *Stmt) Params() int { return int(C.sqlite3_bind_parameter_count(s.s)) }

// Columns gives the names and declared types (empty for expressions).
func (s *Stmt) Columns() (names, types []string) {
	for i := 0; i < int(C.sqlite3_column_count(s.s)); i++ {
		names = append(names, C.GoString(C.sqlite3_column_name(s.s, C.int(i))))
		declared := ""
		if text := C.sqlite3_column_decltype(s.s, C.int(i)); text != nil {
			declared = C.GoString(text)
		}
		types = append(types, declared)
	}
	return names, types
}

// Bind sets parameter i, counted from 1.
func (s *Stmt) Bind(i int, value Value) error {
	var code C.int
	switch v := value.(type) {
	case nil:
		code = C.sqlite3_bind_null(s.s, C.int(i))
	case int64:
		code = C.sqlite3_bind_int64(s.s, C.int(i), C.sqlite3_int64(v))
	case float64:
		code = C.sqlite3_bind_double(s.s, C.int(i), C.double(v))
	case string:
		text := C.CString(v)
		defer C.free(unsafe.Pointer(text))
		code = C.bind_text(s.s, C.int(i), text, C.int(len(v)))
	case []byte:
		bytes := C.CBytes(append(v, 0)) // one more, so that an empty value is not NULL
		defer C.free(bytes)
		code = C.bind_blob(s.s, C.int(i), bytes, C.int(len(v)))
	default:
		return errors.New("unknown kind of parameter")
	}
	if code != C.SQLITE_OK {
		return s.conn.err(code)
	}
	return nil
}

// Step moves to the next row; false at the end.
func (s *Stmt) Step() (bool, error) {
	switch code := C.sqlite3_step(s.s); code {
	case C.SQLITE_ROW:
		return true, nil
	case C.SQLITE_DONE:
		return false, nil
	default:
		return false, s.conn.err(code)
	}
}

// Row decodes the current row.
func (s *Stmt) Row() []Value {
	var size C.uint64_t
	encoded := C.row_encode(s.conn.c, s.s, &size)
	data := C.GoBytes(unsafe.Pointer(encoded), C.int(size))
	var row []Value
	for len(data) > 0 {
		kind, length := data[0], binary.LittleEndian.Uint32(data[1:5])
		cell := data[5 : 5+length]
		data = data[5+length:]
		switch kind {
		case C.SQLITE_INTEGER:
			row = append(row, int64(binary.LittleEndian.Uint64(cell)))
		case C.SQLITE_FLOAT:
			row = append(row, math.Float64frombits(binary.LittleEndian.Uint64(cell)))
		case C.SQLITE_TEXT:
			row = append(row, string(cell))
		case C.SQLITE_BLOB:
			row = append(row, cell)
		default:
			row = append(row, nil)
		}
	}
	return row
}

// Query runs one statement with parameters and returns all rows.
func (c *Conn) Query(sql string, params ...Value) ([][]Value, error) {
	stmt, err := c.Prepare(sql)
	if err != nil {
		return nil, err
	}
	defer stmt.Close()
	for i, value := range params {
		if err := stmt.Bind(i+1, value); err != nil {
			return nil, err
		}
	}
	var rows [][]Value
	for {
		more, err := stmt.Step()
		if err != nil || !more {
			return rows, err
		}
		rows = append(rows, stmt.Row())
	}
}

// Exec runs one statement for its effect.
func (c *Conn) Exec(sql string, params ...Value) error {
	_, err := c.Query(sql, params...)
	return err
}
