package e2e

import (
	"os"
	"testing"
)

// A promise is what podo says of itself, and the test that holds it to that.
type promise struct {
	name string
	keep func(*testing.T)
}

// TestPodo is the order of everything. Machines are scarce, so that one cluster
// serves all the tests that do not need another.
func TestPodo(t *testing.T) {
	if os.Getenv(enabled) != "1" {
		t.Skip("starts a node on this machine; set " + enabled + "=1 to allow that")
	}
	t.Run("without a cluster", func(t *testing.T) {
		inTurn(t, []promise{
			{"tells what it is", tellsVersion},
			{"tells that it does not run", tellsThatItDoesNotRun},
			{"checks the machine", checksTheMachine},
			{"blames settings by their origin", blamesOrigin},
			{"refuses what cannot be, and says what to do", refuses},
			{"refuses machines it cannot run on", refusesMachines},
			{"refuses flags of components that do not exist", refusesComponentFlags},
			{"names the part that cannot start", namesThePartThatDied},
			{"stops at once while it starts", stopsWhileItStarts},
		})
	})
	t.Run("a cluster", func(t *testing.T) {
		withCluster(t, func(t *testing.T) {
			t.Run("itself", func(t *testing.T) {
				inTurn(t, []promise{
					{"boots in few words", bootsInFewWords},
					{"tells the service manager once", tellsServiceManagerOnce},
					{"describes its node", describesItsNode},
					{"has the images of its own pods", ownImages},
					{"takes settings from every source", takesSettingsFromEverySource},
					{"keeps strangers out", keepsStrangersOut},
					{"proves who its kubelet is", provesKubelet},
					{"tells how it stands", tellsHowItStands},
					{"brings its tools", bringsTools},
					{"completes in bash", completesInBash},
					{"refuses a second server", refusesSecondServer},
				})
			})
			t.Run("runs", func(t *testing.T) {
				atOnce(t, []promise{
					{"cron jobs", cronJobs},                           // waits for the minute
					{"as many pods as the load asks for", autoscaled}, // waits for minutes
					{"Helm charts", helmCharts},
					{"Helm charts that fail half-way", halfCharts},
					{"Helm charts, field by field", helmFields},
					{"deployments", deployments},
					{"services", services},
					{"host ports", hostPorts},
					{"services at the node's address", balanced},
					{"what quick starts have people type", quickStarts},
					{"ingresses, by host and path, and over TLS", ingresses},
					{"ingresses that were written for ingress-nginx", ingressNginx},
					{"gateways and their routes", gateways},
					{"what nodes and pods use", used},
					{"watches of what is quiet", quietWatches},
					{"names of the cluster", dnsNames},
					{"names of your own", dnsCustom},
					{"volumes", volumes},
					{"volumes of claims", claims},
					{"claims that cannot be granted, and says why", impossibleClaims},
					{"volumes that outlive their claims", retained},
					{"changed config maps", changedConfigMaps},
					{"probes", probes},
					{"init containers and sidecars", initAndSidecars},
					{"graceful ends", gracefulEnds},
					{"limits", limits},
					{"the out-of-memory killer on the hog alone", outOfMemory},
					{"resizes in place", resizes},
					{"jobs", jobs},
					{"daemon sets", daemonSets},
					{"stateful sets", statefulSets},
					{"exec, attach and cp", execAttachCopy},
					{"logs that follow", logsFollow},
					{"port-forward", portForward},
					{"debug containers", debugContainers},
					{"service-account tokens", tokens},
					{"quotas and limit ranges", quotas},
					{"images that were moved about", movesImages},
					{"images of a folder, in every form", imagesOfAFolder},
					{"images of archives once they are whole", halfCopied},
					{"images beside spoilt ones, which it explains", spoiltArchives},
					{"images that lists name", listedImages},
					{"static pods", staticPods},
				})
				inTurn(t, []promise{
					{"names outside, while nobody tells them too", dnsOutside},
					{"volumes in folders that people name", namedFolders},
					{"ingresses with settings of people's own", ingressSettings},
					{"images of the registries of a file, as it changes", registriesFile},
					{"more than 110 pods", crowd},
				})
			})
			t.Run("deploys", func(t *testing.T) {
				inTurn(t, []promise{
					{"the manifests of a folder as they change", followsManifests},
					{"manifests beside broken ones, which it explains", tellsBrokenManifests},
					{"kinds before their objects, and deletes them after", ordersManifests},
					{"what it was killed in the middle of", finishesManifests},
					{"its own manifests unless told to skip them", skipsItsOwn},
					{"Helm charts that it was killed in the middle of", finishesCharts},
					{"its own metrics API unless people's is there", othersMetrics},
				})
			})
			t.Run("survives", func(t *testing.T) {
				inTurn(t, []promise{
					{"being told to stop, without a pod noticing", survivesStop},
					{"being killed, without a pod noticing", survivesKill},
					{"a kill and upgrades, without a request lost", survivesForClients},
					{"being killed while it makes and removes volumes", survivesKillWithVolumes},
					{"a restart, and imports nothing again", importsOnce},
					{"the death of containerd", survivesContainerdDeath},
					{"a damaged datastore, which it refuses", refusesDamagedDatastore},
					{"a clock that is behind", refusesWrongClock},
					{"a data directory of a newer podo, which it refuses", refusesNewerLayout},
					{"podo kill, which leaves no pod", killLeavesNoPod},
					{"podo kill with time for pods to end", killWaitsForHooks},
				})
			})
			t.Run("goes", func(t *testing.T) {
				inTurn(t, []promise{
					{"without a trace", uninstallsWithoutTrace},
					{"and tells what stayed", verifyTellsWhatStayed},
				})
			})
		})
	})
	t.Run("a first boot", func(t *testing.T) {
		inTurn(t, []promise{
			{"completes after being killed at any moment", firstBootKilled},
			{"puts a spoilt program right", healsItsPrograms},
			{"says last why containerd does not start", containerdCannotStart},
		})
	})
	t.Run("a cluster of another shape", func(t *testing.T) {
		inTurn(t, []promise{
			{"is what its flags ask for", anotherShape},
			{"may be a control plane alone", controlPlaneAlone},
			{"has its own images from a registry of people's", ownImagesElsewhere},
		})
	})
	t.Run("a machine of its own settings", func(t *testing.T) {
		inTurn(t, []promise{
			{"has them back without podo", putsParametersBack},
		})
	})
	t.Run("a disk without room for images", func(t *testing.T) {
		inTurn(t, []promise{
			{"costs none that was imported", shortOfRoom},
		})
	})
	t.Run("a full disk", func(t *testing.T) {
		inTurn(t, []promise{
			{"costs no pod and heals by itself", diskFull},
		})
	})
}

func inTurn(t *testing.T, list []promise) {
	for _, p := range list {
		t.Run(p.name, p.keep)
	}
}

// atOnce returns when all are done: tests that run in parallel hold up their parent.
func atOnce(t *testing.T, list []promise) {
	t.Run("together", func(t *testing.T) {
		for _, p := range list {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				p.keep(t)
			})
		}
	})
}
