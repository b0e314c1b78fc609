package server

import (
	"os"
	"strconv"
	"strings"
	"time"

	"gitee.com/kwbasedb/kwbase/pkg/build"
)

// faults are the misbehaviours on demand, by name, with their number of seconds.
// MINIKWDB_FAULT=name[:seconds],… holds for every release, MINIKWDB_FAULT_V1_1_0 for one only.
type faults map[string]time.Duration

func readFaults() faults {
	out := faults{}
	release := "MINIKWDB_FAULT_" + strings.ReplaceAll(build.Tag(), ".", "_")
	for _, variable := range []string{"MINIKWDB_FAULT", release} {
		for _, spec := range strings.Split(os.Getenv(variable), ",") {
			if spec == "" {
				continue
			}
			name, seconds := spec, 0.0
			if at := strings.IndexByte(spec, ':'); at >= 0 {
				name = spec[:at]
				seconds, _ = strconv.ParseFloat(spec[at+1:], 64)
			}
			out[name] = time.Duration(seconds * float64(time.Second))
		}
	}
	return out
}

func (f faults) has(name string) bool {
	_, ok := f[name]
	return ok
}
