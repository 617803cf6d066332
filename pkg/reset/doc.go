// Package reset undoes what podo did to this machine, and proves it.
//
// Kill stops podo and every pod and takes their traces out of the kernel; what is on
// disk stays. Uninstall goes on to remove every file podo made. Verify looks, without
// touching anything, for whatever is left. All three may be repeated at any time.
//
// Nothing is ever chosen by name alone. A process is podo's if it runs from podo's
// payload, serves podo's containerd or descends from such a one, and it must share our
// mount namespace, since another podo on the same machine lives in one of its own.
// Things that the kernel or Kubernetes names for everybody (cni0, nftables tables,
// kubepods cgroups, /var/lib/kubelet) are left alone while another kubelet uses them.
// A file system mounted into podo's folders by somebody else is never entered.
package reset
