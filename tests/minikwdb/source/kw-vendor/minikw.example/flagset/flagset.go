// Package flagset parses command-line flags the way pflag does: --name=value, --name value, -s value.
package flagset

import (
	"errors"
	"fmt"
	"sort"
	"strings"
)

// ErrHelp says that --help was given.
var ErrHelp = errors.New("help requested")

// Flag is one flag; Values holds what was given, or the default.
type Flag struct {
	Name, Short, Type, Usage string
	Values                   []string
	Changed                  bool
	Hidden                   bool
}

// Set is the flags of one command.
type Set struct {
	flags map[string]*Flag
	Args  []string
}

// New returns an empty set.
func New() *Set { return &Set{flags: map[string]*Flag{}} }

// Add declares a flag. typ is "bool", "string", "int", "duration" or "strings" (repeatable).
func (s *Set) Add(name, short, typ, value, usage string) *Flag {
	f := &Flag{Name: name, Short: short, Type: typ, Usage: usage}
	if value != "" {
		f.Values = []string{value}
	}
	s.flags[name] = f
	return f
}

// Get returns the last value given, or the default.
func (s *Set) Get(name string) string {
	if f := s.flags[name]; f != nil && len(f.Values) > 0 {
		return f.Values[len(f.Values)-1]
	}
	return ""
}

// All returns every value of a repeatable flag.
func (s *Set) All(name string) []string {
	if f := s.flags[name]; f != nil {
		return f.Values
	}
	return nil
}

// Bool reports whether a boolean flag is set.
func (s *Set) Bool(name string) bool { return s.Get(name) == "true" }

// Changed reports whether the flag was given.
func (s *Set) Changed(name string) bool {
	f := s.flags[name]
	return f != nil && f.Changed
}

// Parse reads the arguments; words that are no flags go to Args.
func (s *Set) Parse(args []string) error {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			s.Args = append(s.Args, args[i+1:]...)
			return nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			s.Args = append(s.Args, arg)
			continue
		}
		f, value, given, err := s.find(arg)
		if err != nil {
			return err
		}
		switch {
		case given:
		case f.Type == "bool":
			value = "true"
		case i+1 < len(args):
			i++
			value = args[i]
		default:
			return fmt.Errorf("flag needs an argument: %s", arg)
		}
		if err := f.set(value); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) find(arg string) (f *Flag, value string, given bool, err error) {
	name := strings.TrimLeft(arg, "-")
	if strings.HasPrefix(arg, "--") {
		if at := strings.IndexByte(name, '='); at >= 0 {
			name, value, given = name[:at], name[at+1:], true
		}
		if f = s.flags[name]; f != nil {
			return f, value, given, nil
		}
		if name == "help" {
			return nil, "", false, ErrHelp
		}
		return nil, "", false, fmt.Errorf("unknown flag: --%s", name)
	}
	if name == "h" {
		return nil, "", false, ErrHelp
	}
	for _, candidate := range s.flags {
		if candidate.Short != "" && strings.HasPrefix(name, candidate.Short) {
			rest := strings.TrimPrefix(name[len(candidate.Short):], "=")
			return candidate, rest, rest != "", nil
		}
	}
	return nil, "", false, fmt.Errorf("unknown shorthand flag: '%c' in %s", name[0], arg)
}

func (f *Flag) set(value string) error {
	if f.Type == "bool" && value != "true" && value != "false" {
		return fmt.Errorf("invalid argument %q for \"--%s\" flag: strconv.ParseBool: parsing %q: invalid syntax",
			value, f.Name, value)
	}
	if !f.Changed || f.Type != "strings" {
		f.Values = nil
	}
	f.Values, f.Changed = append(f.Values, value), true
	return nil
}

// Usage lists the visible flags, sorted, one a line.
func (s *Set) Usage() string {
	var names []string
	for name, f := range s.flags {
		if !f.Hidden {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	lines, widest := make([]string, len(names)), 0
	for i, name := range names {
		f := s.flags[name]
		lines[i] = "      --" + name
		if f.Short != "" {
			lines[i] = "  -" + f.Short + ", --" + name
		}
		if f.Type != "bool" {
			lines[i] += " " + f.Type
		}
		if len(lines[i]) > widest {
			widest = len(lines[i])
		}
	}
	var out strings.Builder
	for i, name := range names {
		fmt.Fprintf(&out, "%-*s   %s\n", widest, lines[i], s.flags[name].Usage)
	}
	return out.String()
}
