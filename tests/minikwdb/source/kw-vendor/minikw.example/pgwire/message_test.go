package pgwire

import (
	"net"
	"testing"
)

func TestMessageRoundTrip(t *testing.T) {
	left, right := net.Pipe()
	defer left.Close()
	defer right.Close()
	a, b := NewConn(left), NewConn(right)
	go func() {
		_ = a.Begin('D').Int16(2).Sized([]byte("x")).Sized(nil).Text("end").End()
		_ = a.Flush()
	}()
	kind, body, err := b.ReadMessage()
	if err != nil || kind != 'D' {
		t.Fatalf("%c %v", kind, err)
	}
	if n := body.Uint16(); n != 2 {
		t.Errorf("count %d", n)
	}
	if v := body.Sized(); string(v) != "x" {
		t.Errorf("cell %q", v)
	}
	if v := body.Sized(); v != nil {
		t.Errorf("NULL became %q", v)
	}
	if v := body.Text(); v != "end" || len(body) != 0 {
		t.Errorf("text %q, left %d", v, len(body))
	}
}

func TestShortBodyGivesZeros(t *testing.T) {
	body := Body{0, 0}
	if body.Uint32() != 0 || body.Text() != "" || body.Byte() != 0 {
		t.Error("a short message must read as zeros")
	}
}
