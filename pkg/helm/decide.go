package helm

import (
	"slices"

	"helm.sh/helm/v4/pkg/release/common"
)

// An act is what is to be done about a release.
type act int

const (
	leave     act = iota // nothing: it is as it is to be
	giveUp               // nothing: it failed, and is to stay so until something changes
	install              // there is none
	upgrade              // there is another one
	reinstall            // what is there has to go first
)

// A revision is what the record of a release tells without being opened.
type revision struct {
	number   int
	status   common.Status
	checksum string
}

// decide says what is to be done so that a release is what a checksum sums up. Revisions
// are all there are, the newest last. A release that adopted objects is never
// uninstalled to be mended: they would go with it. Nor is one that was deployed and is to
// yield to others: it may have failed for no more than that.
func decide(revisions []revision, sum string, s spec) act {
	if len(revisions) == 0 {
		return install
	}
	policy, mend := s.FailurePolicy, reinstall
	deployed := slices.ContainsFunc(revisions, func(r revision) bool {
		return r.status == common.StatusDeployed || r.status == common.StatusSuperseded
	})
	if s.TakeOwnership || deployed && s.yields() {
		mend = upgrade
	}
	last := revisions[len(revisions)-1]
	tried := slices.ContainsFunc(revisions, func(r revision) bool {
		return r.checksum == sum && r.status == common.StatusFailed
	})
	switch last.status {
	case common.StatusUninstalled:
		return install
	case common.StatusDeployed:
		switch {
		case last.checksum == sum:
			return leave
		case tried && policy == rollsBack:
			return giveUp
		}
		return upgrade
	case common.StatusPendingInstall, common.StatusUninstalling:
		return mend // cut short: which hooks have run is not known
	case common.StatusPendingUpgrade, common.StatusPendingRollback, common.StatusSuperseded:
		return upgrade
	}
	switch {
	case policy == aborts && tried:
		return giveUp
	case policy == aborts, policy == retries, policy == rollsBack:
		return upgrade
	}
	return mend
}
