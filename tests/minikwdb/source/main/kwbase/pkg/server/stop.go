package server

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"gitee.com/kwbasedb/kwbase/pkg/storage"
)

// handleSignals: SIGTERM drains, SIGINT drains and fails, SIGQUIT dumps and drains, SIGHUP is nothing.
func (s *Server) handleSignals() {
	signals := make(chan os.Signal, 4)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	for received := range signals {
		if s.faults.has("ignore-sigterm") && received == syscall.SIGTERM {
			continue
		}
		if received == syscall.SIGQUIT {
			stacks := make([]byte, 1<<20)
			_, _ = os.Stderr.Write(stacks[:runtime.Stack(stacks, true)])
		}
		s.mutex.Lock()
		again := s.hold != 0
		s.hold = 1
		s.mutex.Unlock()
		if again { // a second signal is a hard stop: die of it
			signal.Reset(received)
			_ = syscall.Kill(os.Getpid(), received.(syscall.Signal))
			continue
		}
		if received == syscall.SIGINT {
			s.exitError = errInterrupted
		}
		go s.Stop(0)
	}
}

// drainOnly makes the node refuse to be ready; it lives on.
func (s *Server) drainOnly() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.reason, s.drained = shuttingDown, true
}

// Stop drains the node and ends Run. The lock on the store is held until the process is gone.
func (s *Server) Stop(hold time.Duration) {
	s.stopOnce.Do(func() {
		s.say("initiating graceful shutdown of server")
		s.drainOnly()
		_ = s.sqlListener.Close()
		time.Sleep(httpCloseDelay)
		_ = s.httpListener.Close()
		time.Sleep(drainTime + s.faults["slow-drain"])
		s.mutex.Lock()
		if s.unixListener != nil {
			_ = s.unixListener.Close()
		}
		for conn := range s.conns {
			_ = conn.Close()
		}
		s.mutex.Unlock()
		for i := 0; i < 100 && s.connections() > 0; i++ {
			time.Sleep(10 * time.Millisecond)
		}
		s.store.RemoveTemp()
		select {
		case <-s.engineOpen:
			storage.CloseEngine()
		default:
		}
		time.Sleep(hold)
		s.say("server drained and shutdown completed")
		close(s.stopped)
	})
}

// say goes to the log, and to stdout where somebody watches it.
func (s *Server) say(line string) {
	s.log.write(line)
	if !s.cfg.Background {
		fmt.Println(line)
	}
}
