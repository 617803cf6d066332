package containerd

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/podo-dev/podo/pkg/plan"
)

// Render is containerd's configuration file, version 4
// (https://github.com/containerd/containerd/blob/v2.3.7/docs/cri/config.md).
func Render(p plan.Containerd) []byte {
	f, b := p.Paths, &bytes.Buffer{}
	say := func(format string, args ...any) { fmt.Fprintf(b, format+"\n", args...) }
	say("# Written by podo at each start. Changes belong in podo's own settings.")
	say("version = 4")
	say("root = %q", f.ContainerdRoot())
	say("state = %q", f.ContainerdState())
	if !p.RestrictOOMScore {
		// Shims have one more than the engine. Were they killed for want of memory,
		// their pods would go with them.
		say("oom_score = -999")
	}
	say("disabled_plugins = [")
	for _, name := range []string{
		"io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
		"io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs",
		"io.containerd.snapshotter.v1.zfs", "io.containerd.differ.v1.erofs",
		"io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
		"io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt",
	} {
		say("  %q,", name)
	}
	say("]")
	say("[plugins.'io.containerd.server.v1.grpc']")
	say("  address = %q", f.Socket("containerd"))
	say("[plugins.'io.containerd.server.v1.ttrpc']")
	say("  address = %q", f.Socket("containerd")+".ttrpc")
	say("[plugins.'io.containerd.cri.v1.images']")
	say("  snapshotter = %q", p.Snapshotter)
	say("  image_pull_with_sync_fs = true") // a layer half on disk at a power cut stays broken for good
	say("  use_local_image_pull = true")    // the transfer service takes config_path for one folder
	say("  [plugins.'io.containerd.cri.v1.images'.pinned_images]")
	say("    sandbox = %q", p.PauseImage)
	say("  [plugins.'io.containerd.cri.v1.images'.registry]")
	say("    config_path = %q", strings.Join(f.RegistryRoots(), ":"))
	say("[plugins.'io.containerd.cri.v1.runtime']")
	say("  restrict_oom_score_adj = %t", p.RestrictOOMScore)
	say("  disable_apparmor = %t", p.DisableAppArmor)
	say("  netns_mounts_under_state_dir = true")
	say("  enable_unprivileged_ports = %t", p.UnprivilegedPorts)
	say("  enable_unprivileged_icmp = %t", p.UnprivilegedPorts)
	// Every second, as the engine would, each container's shim is asked what it has
	// used of the processors; the kubelet wants to know every ten.
	say("  stats_collect_period = \"10s\"")
	say("  [plugins.'io.containerd.cri.v1.runtime'.cni]")
	say("    bin_dirs = [\"%s\"]", strings.Join(p.CNIPrograms, `", "`))
	say("    conf_dir = %q", p.CNIConfig)
	say("    use_internal_loopback = true")
	say("  [plugins.'io.containerd.cri.v1.runtime'.containerd]")
	say("    default_runtime_name = \"runc\"")
	say("    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]")
	say("      runtime_type = \"io.containerd.runc.v2\"")
	say("      runtime_path = %q", f.Program("containerd-shim-runc-v2"))
	say("      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]")
	say("        BinaryName = %q", f.Program("runc"))
	say("        SystemdCgroup = %t", p.SystemdCgroup)
	say("        Root = %q", f.RuncState())
	say("[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]")
	say("  platform = \"linux\"")
	say("  snapshotter = %q", p.Snapshotter)
	say("  differ = \"walking\"")
	return b.Bytes()
}
