// Package reset undoes what podo did to this machine, and proves it.
//
// Kill stops podo and every pod and takes their traces out of the kernel; what is on
// disk stays. Uninstall goes on to put kernel parameters back and to remove every file podo made. Verify looks, without
// touching anything, for whatever is left. All three may be repeated at any time.
//
// Nothing is ever chosen by name alone. A process is podo's if it runs from podo's
// payload, serves podo's containerd or descends from such a one. Since another podo on
// the same machine has the same paths, in a mount namespace of its own, such a process
// must also see the very folders that we see: the data and the run directory are
// compared by device and inode, looked up through the process's own root. Neither
// namespace would do: podo's own containers are in others, and a service manager may
// have put podo into another. A container that has lost its shim and its record is
// told by the files of its engine that are mounted into it, compared by file system
// and path therein.
//
// Things that the kernel or Kubernetes names for everybody (cni0, nftables tables,
// kubepods cgroups, /var/lib/kubelet) are left alone while another kubelet uses them.
// A file system mounted into podo's folders by somebody else is never entered, the volumes
// of claims are removed only if that is asked for, and a folder that package datadir calls foreign is no data directory of podo's.
package reset
