// Command kwbase is the server and its tools.
package main

import (
	"os"

	"gitee.com/kwbasedb/kwbase/pkg/cli"
)

func main() { os.Exit(cli.Main(os.Args)) }
