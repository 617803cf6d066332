package e2e

import (
	"net"
	"testing"
)

func listen(a string) (net.Listener, error) { return net.Listen("tcp", a) }
func refuses(t *testing.T)                  {}
func refusesMachines(t *testing.T)          {}
func refusesComponentFlags(t *testing.T)    {}
func namesThePartThatDied(t *testing.T)     {}
func refusesDamagedDatastore(t *testing.T)  {}
func refusesWrongClock(t *testing.T)        {}
func refusesNewerLayout(t *testing.T)       {}
func killLeavesNoPod(t *testing.T)          {}
func uninstallsWithoutTrace(t *testing.T)   {}
func verifyTellsWhatStayed(t *testing.T)    {}
func firstBootKilled(t *testing.T)          {}
func containerdCannotStart(t *testing.T)    {}
func diskFull(t *testing.T)                 {}
