// Package build says what this binary was made from. The linker fills in the variables.
package build

import (
	"fmt"
	"os"
	"runtime"
)

/*
#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
// A constant: every connection asks, at the same time as others.
static const char *compiler(void) {
	return "gcc " TEXT(__GNUC__) "." TEXT(__GNUC_MINOR__) "." TEXT(__GNUC_PATCHLEVEL__);
}
*/
import "C"

var (
	tag             = "unknown"
	utcTime         string
	rev             string
	typ             string
	cgoTargetTriple string
)

func init() {
	// KWDB lets its tests fake the version like this.
	if fake := os.Getenv("KWBASE_TESTING_VERSION_TAG"); fake != "" {
		tag = fake
	}
}

// Tag is the version, such as V1.0.0.
func Tag() string { return tag }

// Time is the moment of the link.
func Time() string { return utcTime }

// Revision is the commit.
func Revision() string { return rev }

// Compiler is the C compiler.
func Compiler() string { return C.GoString(C.compiler()) }

// Short is the one-line form that select version() gives.
func Short() string {
	return fmt.Sprintf("KaiwuDB %s (%s, built %s, %s, %s)", tag, cgoTargetTriple, utcTime, runtime.Version(), Compiler())
}

// Long is what `kwbase version` prints.
func Long() string {
	return fmt.Sprintf("KaiwuDB Version:  %s\nBuild Time:       %s\nDistribution:     \n"+
		"Platform:         %s %s (%s)\nGo Version:       %s\nC Compiler:       %s\nBuild SHA-1:      %s\n",
		tag, utcTime, runtime.GOOS, runtime.GOARCH, cgoTargetTriple, runtime.Version(), Compiler(), rev)
}
