// Package pgwire speaks the PostgreSQL wire protocol, version 3, as a server and as a client.
package pgwire

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// Request codes that stand where the protocol version would be.
const (
	ProtocolV3  = 196608
	SSLRequest  = 80877103
	GSSRequest  = 80877104
	CancelCode  = 80877102
	maxBodySize = 64 << 20
)

// Conn frames messages on a connection. Writes are buffered until Flush.
type Conn struct {
	net.Conn
	in    *bufio.Reader
	out   *bufio.Writer
	frame []byte
}

// NewConn wraps a network connection.
func NewConn(c net.Conn) *Conn {
	return &Conn{Conn: c, in: bufio.NewReaderSize(c, 32<<10), out: bufio.NewWriterSize(c, 32<<10)}
}

// ReadStartup reads the first packet: a code, and for ProtocolV3 its parameters.
func (c *Conn) ReadStartup() (code uint32, params map[string]string, err error) {
	body, err := c.readBody()
	if err != nil {
		return 0, nil, err
	}
	b := Body(body)
	code = b.Uint32()
	params = map[string]string{}
	for code == ProtocolV3 {
		name := b.Text()
		if name == "" {
			break
		}
		params[name] = b.Text()
	}
	return code, params, nil
}

// Read1 reads the one-byte answer to an SSLRequest.
func (c *Conn) Read1() (byte, error) { return c.in.ReadByte() }

// ReadMessage reads one message.
func (c *Conn) ReadMessage() (kind byte, body Body, err error) {
	if kind, err = c.in.ReadByte(); err != nil {
		return 0, nil, err
	}
	body, err = c.readBody()
	return kind, body, err
}

func (c *Conn) readBody() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < 4 || size > maxBodySize {
		return nil, fmt.Errorf("message of %d bytes", size)
	}
	body := make([]byte, size-4)
	_, err := io.ReadFull(c.in, body)
	return body, err
}

// Begin starts a message; kind 0 is the startup packet, which has no type byte.
func (c *Conn) Begin(kind byte) *Conn {
	c.frame = c.frame[:0]
	if kind != 0 {
		c.frame = append(c.frame, kind)
	}
	c.frame = append(c.frame, 0, 0, 0, 0)
	return c
}

// Byte appends one byte.
func (c *Conn) Byte(v byte) *Conn { c.frame = append(c.frame, v); return c }

// Int16 appends a 16-bit number.
func (c *Conn) Int16(v int) *Conn {
	c.frame = append(c.frame, byte(v>>8), byte(v))
	return c
}

// Int32 appends a 32-bit number.
func (c *Conn) Int32(v int) *Conn {
	c.frame = append(c.frame, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
	return c
}

// Text appends a string that ends in a zero byte.
func (c *Conn) Text(v string) *Conn {
	c.frame = append(append(c.frame, v...), 0)
	return c
}

// Sized appends a value after its length; nil is NULL.
func (c *Conn) Sized(v []byte) *Conn {
	if v == nil {
		return c.Int32(-1)
	}
	c.Int32(len(v))
	c.frame = append(c.frame, v...)
	return c
}

// End fills in the length and hands the message to the buffer.
func (c *Conn) End() error {
	at := 1
	if c.frame[0] == 0 {
		at = 0
	}
	binary.BigEndian.PutUint32(c.frame[at:], uint32(len(c.frame)-at))
	_, err := c.out.Write(c.frame)
	return err
}

// WriteRaw sends bytes outside of any message.
func (c *Conn) WriteRaw(b ...byte) error {
	if _, err := c.out.Write(b); err != nil {
		return err
	}
	return c.out.Flush()
}

// Flush sends what is buffered.
func (c *Conn) Flush() error { return c.out.Flush() }

// Body is the rest of a message; its methods take values off the front. A short message gives zeros.
type Body []byte

func (b *Body) take(n int) []byte {
	if n < 0 || len(*b) < n {
		*b = nil
		return nil
	}
	v := (*b)[:n]
	*b = (*b)[n:]
	return v
}

// Byte takes one byte.
func (b *Body) Byte() byte {
	if v := b.take(1); v != nil {
		return v[0]
	}
	return 0
}

// Uint16 takes a 16-bit number.
func (b *Body) Uint16() int {
	if v := b.take(2); v != nil {
		return int(binary.BigEndian.Uint16(v))
	}
	return 0
}

// Uint32 takes a 32-bit number.
func (b *Body) Uint32() uint32 {
	if v := b.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

// Text takes a string that ends in a zero byte.
func (b *Body) Text() string {
	for i, v := range *b {
		if v == 0 {
			text := string((*b)[:i])
			*b = (*b)[i+1:]
			return text
		}
	}
	*b = nil
	return ""
}

// Sized takes a value after its length; nil is NULL.
func (b *Body) Sized() []byte {
	n := int32(b.Uint32())
	if n < 0 {
		return nil
	}
	v := b.take(int(n))
	if v == nil {
		return []byte{}
	}
	return v
}
