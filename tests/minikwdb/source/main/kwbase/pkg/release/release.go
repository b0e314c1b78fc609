// Package release holds what differs between the releases of minikwdb. Each release has its own copy.
package release

const (
	// SyncPeriodDefault is the default of ts.raft_log.sync_period: a changed default is no lost setting.
	SyncPeriodDefault = "0s"
	// ShowsActiveTime says whether SHOW CREATE TABLE of a time-series table prints activetime.
	ShowsActiveTime = false
	// StartError, when not empty, is why this release never starts: broken on purpose.
	StartError = ""
)
