package pgwire

import (
	"crypto/tls"
	"fmt"
	"net"
	"time"
)

// Error is an error that the server reported.
type Error struct {
	Code, Message, Detail, Hint string
}

func (e *Error) Error() string { return e.Message }

// Result is what one statement gave.
type Result struct {
	Columns []string
	Rows    [][]*string // nil is NULL
	Tag     string
}

// Client is a connection to a server; one goroutine at a time.
type Client struct{ conn *Conn }

// Options say how to connect. TLS nil means a plain connection.
type Options struct {
	Address, User, Database, Password string
	TLS                               *tls.Config
	Timeout                           time.Duration
}

// Connect opens a connection and logs in.
func Connect(o Options) (*Client, error) {
	raw, err := net.DialTimeout("tcp", o.Address, o.Timeout)
	if err != nil {
		return nil, err
	}
	conn := NewConn(raw)
	if o.TLS != nil {
		if conn, err = startTLS(conn, o.TLS); err != nil {
			return nil, err
		}
	}
	conn.Begin(0).Int32(ProtocolV3).Text("user").Text(o.User).Text("database").Text(o.Database).Byte(0)
	c := &Client{conn: conn}
	if err := c.send(); err != nil {
		return nil, err
	}
	for {
		kind, body, err := conn.ReadMessage()
		if err != nil {
			return nil, err
		}
		switch kind {
		case 'E':
			return nil, parseError(body)
		case 'R':
			if code := body.Uint32(); code == 3 {
				conn.Begin('p').Text(o.Password)
				if err := c.send(); err != nil {
					return nil, err
				}
			}
		case 'Z':
			return c, nil
		}
	}
}

func startTLS(conn *Conn, config *tls.Config) (*Conn, error) {
	conn.Begin(0).Int32(SSLRequest)
	if err := conn.End(); err != nil {
		return nil, err
	}
	if err := conn.Flush(); err != nil {
		return nil, err
	}
	answer, err := conn.Read1()
	if err != nil {
		return nil, err
	}
	if answer != 'S' {
		return nil, fmt.Errorf("the server does not speak TLS")
	}
	return NewConn(tls.Client(conn.Conn, config)), nil
}

func (c *Client) send() error {
	if err := c.conn.End(); err != nil {
		return err
	}
	return c.conn.Flush()
}

// Query runs one or more statements and returns their results.
func (c *Client) Query(sql string) ([]Result, error) {
	c.conn.Begin('Q').Text(sql)
	if err := c.send(); err != nil {
		return nil, err
	}
	var results []Result
	var current Result
	var failure error
	for {
		kind, body, err := c.conn.ReadMessage()
		if err != nil {
			return results, err
		}
		switch kind {
		case 'T':
			current = Result{}
			for n := body.Uint16(); n > 0; n-- {
				current.Columns = append(current.Columns, body.Text())
				body.take(18)
			}
		case 'D':
			row := make([]*string, body.Uint16())
			for i := range row {
				if v := body.Sized(); v != nil {
					text := string(v)
					row[i] = &text
				}
			}
			current.Rows = append(current.Rows, row)
		case 'C':
			current.Tag = body.Text()
			results = append(results, current)
			current = Result{}
		case 'E':
			failure = parseError(body)
		case 'Z':
			return results, failure
		}
	}
}

// Close says goodbye.
func (c *Client) Close() error {
	c.conn.Begin('X')
	_ = c.send()
	return c.conn.Close()
}

func parseError(body Body) *Error {
	e := &Error{}
	for {
		field := body.Byte()
		if field == 0 {
			return e
		}
		text := body.Text()
		switch field {
		case 'C':
			e.Code = text
		case 'M':
			e.Message = text
		case 'D':
			e.Detail = text
		case 'H':
			e.Hint = text
		}
	}
}
