package server

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// logFile is logs/kwbase.<host>.<user>.<time>.<pid>.log, with kwbase.log as a link to it.
type logFile struct {
	mutex sync.Mutex
	file  *os.File
}

func openLog(dir string, now time.Time) (*logFile, error) {
	if err := os.MkdirAll(dir, 0750); err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	base := fmt.Sprintf("kwbase.%s.%s.%s.%06d.log", host, name, now.UTC().Format("2006-01-02T15_04_05Z"), os.Getpid())
	file, err := os.OpenFile(filepath.Join(dir, base), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0640)
	if err != nil {
		return nil, fmt.Errorf("log: cannot create log: %v", err)
	}
	link := filepath.Join(dir, "kwbase.log")
	_ = os.Remove(link)
	if err := os.Symlink(base, link); err != nil {
		return nil, err
	}
	return &logFile{file: file}, nil
}

func (l *logFile) write(text string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	fmt.Fprintf(l.file, "I%s %d %s\n", time.Now().UTC().Format("060102 15:04:05.000000"), os.Getpid(), text)
}

// takeStderr sends fd 2 to the log: what a server in the background would say to nobody, a panic above all.
func (l *logFile) takeStderr() error {
	return syscall.Dup3(int(l.file.Fd()), 2, 0)
}

// notifyReady tells systemd, or the parent of --background, that the ports listen.
func notifyReady() {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("READY=1"))
}
