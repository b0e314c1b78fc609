package flagset

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	s := New()
	s.Add("store", "s", "strings", "kwbase-data", "where the data is")
	s.Add("insecure", "", "bool", "false", "no TLS")
	if err := s.Parse([]string{"--store=a", "-s", "b", "--insecure", "word"}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.All("store"), ","); got != "a,b" {
		t.Errorf("stores: %s", got)
	}
	if !s.Bool("insecure") || s.Args[0] != "word" {
		t.Error("a flag or a word is lost")
	}
	if err := s.Parse([]string{"--no-such-flag"}); err == nil || err.Error() != "unknown flag: --no-such-flag" {
		t.Errorf("unknown flag: %v", err)
	}
}
