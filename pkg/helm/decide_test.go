package helm

import (
	"testing"

	"helm.sh/helm/v4/pkg/release/common"
)

func TestDecide(t *testing.T) {
	const wanted, other = "wanted", "other"
	is := func(status common.Status, sum string) revision { return revision{status: status, checksum: sum} }
	tests := map[string]struct {
		policy    string
		adopts    bool
		yields    bool
		revisions []revision
		want      act
	}{
		"none":                                     {revisions: nil, want: install},
		"as it is to be":                           {revisions: []revision{is("deployed", wanted)}, want: leave},
		"another":                                  {revisions: []revision{is("deployed", other)}, want: upgrade},
		"somebody else's":                          {revisions: []revision{is("deployed", "")}, want: upgrade},
		"uninstalled, and its record kept":         {revisions: []revision{is("uninstalled", wanted)}, want: install},
		"install cut short":                        {revisions: []revision{is("pending-install", wanted)}, want: reinstall},
		"install cut short, of what was adopted":   {adopts: true, revisions: []revision{is("pending-install", wanted)}, want: upgrade},
		"install cut short, failures abort":        {policy: aborts, revisions: []revision{is("pending-install", wanted)}, want: reinstall},
		"upgrade cut short":                        {revisions: []revision{is("deployed", other), is("pending-upgrade", wanted)}, want: upgrade},
		"rollback cut short":                       {policy: rollsBack, revisions: []revision{is("failed", other), is("pending-rollback", other)}, want: upgrade},
		"uninstall cut short":                      {revisions: []revision{is("uninstalling", wanted)}, want: reinstall},
		"failed":                                   {revisions: []revision{is("failed", wanted)}, want: reinstall},
		"failed, of what was adopted":              {adopts: true, revisions: []revision{is("failed", wanted)}, want: upgrade},
		"failed, asked to reinstall":               {policy: reinstalls, revisions: []revision{is("deployed", other), is("failed", wanted)}, want: reinstall},
		"failed, asked to abort":                   {policy: aborts, revisions: []revision{is("deployed", other), is("failed", wanted)}, want: giveUp},
		"failed, asked to abort, and changed":      {policy: aborts, revisions: []revision{is("deployed", other), is("failed", other)}, want: upgrade},
		"failed, asked to retry":                   {policy: retries, revisions: []revision{is("failed", wanted)}, want: upgrade},
		"rolled back":                              {policy: rollsBack, revisions: []revision{is("superseded", other), is("failed", wanted), is("deployed", other)}, want: giveUp},
		"rolled back, and changed":                 {policy: rollsBack, revisions: []revision{is("superseded", other), is("failed", other), is("deployed", other)}, want: upgrade},
		"rolled back to what is wanted again":      {policy: rollsBack, revisions: []revision{is("superseded", wanted), is("failed", other), is("deployed", wanted)}, want: leave},
		"failed to be rolled back":                 {policy: rollsBack, revisions: []revision{is("failed", other), is("failed", wanted)}, want: upgrade},
		"deployed by Helm after it failed by podo": {policy: retries, revisions: []revision{is("failed", wanted), is("deployed", "")}, want: upgrade},
		"upgrade failed, yields to others":         {yields: true, revisions: []revision{is("deployed", other), is("failed", wanted)}, want: upgrade},
		"install failed, yields to others":         {yields: true, revisions: []revision{is("failed", wanted)}, want: reinstall},
		"unknown":                                  {revisions: []revision{is("unknown", wanted)}, want: reinstall},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := spec{FailurePolicy: tt.policy, TakeOwnership: tt.adopts}
			if tt.yields {
				s.ForceConflicts = new(bool)
			}
			if got := decide(tt.revisions, wanted, s); got != tt.want {
				t.Errorf("decide(%v, policy %q, adopts %v, yields %v) = %v, want %v", tt.revisions, tt.policy, tt.adopts, tt.yields, got, tt.want)
			}
		})
	}
}
