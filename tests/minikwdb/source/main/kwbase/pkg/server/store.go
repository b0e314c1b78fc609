package server

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	versionFile   = "KWBASEDB_VERSION"
	formatVersion = 1
	recordFile    = "temp-dirs-record.txt"
	currentFile   = "CURRENT"
	dataFile      = "relational.db"
)

// Store is the directory of a node, locked for as long as the process uses it.
type Store struct {
	Dir, ClusterID, TempDir string
	New                     bool
	lock, tempLock          *os.File
}

// ErrAlert says that the store holds an alert, so the server must not start.
type ErrAlert struct{ Path, Text string }

func (e *ErrAlert) Error() string { return fmt.Sprintf("From %s:\n%s", e.Path, e.Text) }

// OpenStore checks, creates and locks a store.
func OpenStore(dir, mode string) (*Store, error) {
	s := &Store{Dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "auxiliary"), 0750); err != nil {
		return nil, err
	}
	alert := filepath.Join(dir, "auxiliary", "_CRITICAL_ALERT.txt")
	text, err := os.ReadFile(alert)
	if err == nil {
		return nil, &ErrAlert{alert, string(text)}
	}
	if !os.IsNotExist(err) {
		return nil, err
	}
	if err := s.cleanTempDirs(); err != nil {
		return nil, err
	}
	if s.lock, err = lockFile(s.path("LOCK")); err != nil {
		return nil, fmt.Errorf("failed to create engines: could not open rocksdb instance: IO error: While lock file: %s: %v",
			s.path("LOCK"), lockReason(err))
	}
	if err := s.open(mode); err != nil {
		return nil, err
	}
	return s, s.makeTempDir()
}

func (s *Store) path(name string) string { return filepath.Join(s.Dir, name) }

// DataPath is the SQLite file, as CURRENT names it.
func (s *Store) DataPath() string { return s.path(dataFile) }

func (s *Store) open(mode string) error {
	current, err := os.ReadFile(s.path(currentFile))
	if os.IsNotExist(err) {
		s.New = true
		return s.create(mode)
	}
	if err != nil {
		return err
	}
	if !strings.HasSuffix(string(current), "\n") {
		return errors.New("failed to create engines: could not open rocksdb instance: Corruption: CURRENT file does not end with newline")
	}
	if strings.TrimSpace(string(current)) != dataFile {
		return fmt.Errorf("failed to create engines: could not open rocksdb instance: Corruption: CURRENT names %q", strings.TrimSpace(string(current)))
	}
	if err := s.checkVersion(); err != nil {
		return err
	}
	if _, err := os.Stat(s.path("kwbase.start_mode")); err != nil {
		return errors.New("cluster start mode file does not exist")
	}
	if text, err := os.ReadFile(s.path("IDENTITY")); err == nil {
		s.ClusterID = strings.TrimSpace(string(text))
	}
	return nil
}

func (s *Store) checkVersion() error {
	var version struct{ Version int }
	text, err := os.ReadFile(s.path(versionFile))
	if os.IsNotExist(err) {
		return s.write(versionFile, fmt.Sprintf(`{"Version":%d}`, formatVersion))
	}
	if err == nil {
		err = json.Unmarshal(text, &version)
	}
	if err != nil {
		return err
	}
	if version.Version > formatVersion {
		return fmt.Errorf("failed to create engines: incompatible rocksdb data version, current:2, on disk:%d, minimum:0", version.Version)
	}
	return nil
}

func (s *Store) create(mode string) error {
	s.ClusterID = newUUID()
	files := [][2]string{
		{"IDENTITY", s.ClusterID}, {versionFile, fmt.Sprintf(`{"Version":%d}`, formatVersion)},
		{"kwbase.start_mode", mode}, {currentFile, dataFile + "\n"},
	}
	for _, file := range files {
		if err := s.write(file[0], file[1]); err != nil {
			return err
		}
	}
	return os.MkdirAll(s.path("extern"), 0750)
}

func (s *Store) write(name, text string) error {
	return os.WriteFile(s.path(name), []byte(text), 0640)
}

// cleanTempDirs removes what a killed process left; a directory that is still locked is in use.
func (s *Store) cleanTempDirs() error {
	record, err := os.ReadFile(s.path(recordFile))
	if err != nil {
		return nil
	}
	for _, dir := range strings.Fields(string(record)) {
		lockPath := filepath.Join(dir, "TEMP_DIR.LOCK")
		if _, err := os.Stat(lockPath); err != nil {
			continue
		}
		lock, err := lockFile(lockPath)
		if err != nil {
			return fmt.Errorf("could not cleanup temporary directories from record file: could not lock temporary directory %s, "+
				"may still be in use: IO error: While lock file: %s: %v", dir, lockPath, lockReason(err))
		}
		_ = lock.Close()
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return os.Remove(s.path(recordFile))
}

func (s *Store) makeTempDir() (err error) {
	if s.TempDir, err = os.MkdirTemp(s.Dir, "kwbase-temp"); err != nil {
		return err
	}
	if err := os.Chmod(s.TempDir, 0750); err != nil {
		return err
	}
	if s.tempLock, err = lockFile(filepath.Join(s.TempDir, "TEMP_DIR.LOCK")); err != nil {
		return err
	}
	return s.write(recordFile, s.TempDir+"\n")
}

// RemoveTemp is an early step of a stop; LOCK is held until the very end.
func (s *Store) RemoveTemp() {
	_ = s.tempLock.Close()
	_ = os.RemoveAll(s.TempDir)
	_ = os.Remove(s.path(recordFile))
}

// WriteAddresses leaves the files by which others find the ports; they stay after a stop.
func (s *Store) WriteAddresses(sqlAddr, httpAddr string) error {
	for _, file := range [][2]string{
		{"kwbase.advertise-addr", sqlAddr}, {"kwbase.advertise-sql-addr", sqlAddr}, {"kwbase.http-addr", httpAddr},
		{"kwbase.listen-addr", sqlAddr}, {"kwbase.sql-addr", sqlAddr},
	} {
		if err := s.write(file[0], file[1]); err != nil {
			return err
		}
	}
	return nil
}

// lockFile takes the kind of lock that KWDB takes: fcntl, seen by F_GETLK and by lslocks.
// Closing any descriptor of the file drops it, so nothing else may open these files.
func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0640)
	if err != nil {
		return nil, err
	}
	if err := syscall.FcntlFlock(file.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK}); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func lockReason(err error) string {
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return "Resource temporarily unavailable"
	}
	return err.Error()
}

func newUUID() string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err)
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
