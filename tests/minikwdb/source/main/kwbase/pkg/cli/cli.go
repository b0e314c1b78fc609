// Package cli is the command line of kwbase.
package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"gitee.com/kwbasedb/kwbase/pkg/build"
	"minikw.example/flagset"
)

// command is one verb, such as "start-single-node" or "node status".
type command struct {
	name, short string
	hidden      bool
	flags       func(*flagset.Set)
	run         func(binary string, flags *flagset.Set) error
}

var commands = []command{
	{"start-single-node", "start a single-node cluster", false, serverFlags, runServer("start-single-node")},
	{"start", "start a node in a multi-node cluster", false, clusterFlags, runServer("start")},
	{"start-single-replica", "start a node of a single-replica cluster", false, clusterFlags, runServer("start-single-replica")},
	{"init", "initialize a cluster", false, clientFlags, runInit},
	{"sql", "open a sql shell", false, sqlFlags, runSQL},
	{"node status", "shows the status of a node or all nodes", false, statusFlags, runStatus},
	{"node ls", "lists the IDs of all nodes in the cluster", false, statusFlags, runNodeList},
	{"node drain", "drain a node without shutting it down", false, clientFlags, runDrain},
	{"quit", "drain and shut down a node", true, clientFlags, runQuit},
	{"cert create-ca", "create CA certificate and key", false, certFlags, runCreateCA},
	{"cert create-node", "create node certificate and key", false, certFlags, runCreateNode},
	{"cert create-client", "create client certificate and key", false, certFlags, runCreateClient},
	{"version", "output version information", false, func(*flagset.Set) {}, runVersion},
}

// exitCode makes an error end the process with a code of its own.
type exitCode struct {
	code int
	text string
}

func (e *exitCode) Error() string { return e.text }

// Main runs the command line and gives the exit code.
func Main(args []string) int {
	cmd, rest := find(args[1:])
	if cmd == nil {
		if len(rest) == 0 || rest[0] == "--help" || rest[0] == "-h" || rest[0] == "help" {
			fmt.Print(overview())
			return 0
		}
		fmt.Fprintf(os.Stderr, "ERROR: unknown command %q for \"kwbase\"\nFailed running \"kwbase\"\n", rest[0])
		return 1
	}
	flags := flagset.New()
	flags.Add("logtostderr", "", "string", "", "logs at or above this threshold go to stderr")
	flags.Add("no-color", "", "bool", "false", "disable standard error log colorization")
	flags.Add("vmodule", "", "string", "", "comma-separated list of pattern=N settings for file-filtered logging")
	cmd.flags(flags)
	switch err := flags.Parse(rest); {
	case errors.Is(err, flagset.ErrHelp):
		fmt.Print(usage(cmd, flags))
		return 0
	case err != nil:
		last := cmd.name[strings.LastIndexByte(cmd.name, ' ')+1:]
		fmt.Fprintf(os.Stderr, "%s\nERROR: %v\nFailed running %q\n", usage(cmd, flags), err, last)
		return 1
	}
	err := cmd.run(args[0], flags)
	var coded *exitCode
	switch {
	case errors.As(err, &coded):
		fmt.Fprintln(os.Stderr, coded.text)
		return coded.code
	case err != nil:
		fmt.Fprintf(os.Stderr, "ERROR: %v\n", err)
		return 1
	}
	return 0
}

// find takes the longest command that the arguments begin with.
func find(args []string) (*command, []string) {
	for words := 2; words > 0; words-- {
		if len(args) < words {
			continue
		}
		for i := range commands {
			if commands[i].name == strings.Join(args[:words], " ") {
				return &commands[i], args[words:]
			}
		}
	}
	return nil, args
}

func overview() string {
	out := "kwbase is the command-line tool of the database.\n\nUsage:\n  kwbase [command]\n\nAvailable Commands:\n"
	for _, c := range commands {
		if !c.hidden {
			out += fmt.Sprintf("  %-22s %s\n", c.name, c.short)
		}
	}
	return out
}

func usage(cmd *command, flags *flagset.Set) string {
	return fmt.Sprintf("%s\n\nUsage:\n  kwbase %s [flags]\n\nFlags:\n%s", cmd.short, cmd.name, flags.Usage())
}

func runVersion(string, *flagset.Set) error {
	fmt.Print(build.Long())
	return nil
}
