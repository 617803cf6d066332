// Package deploy keeps the cluster's objects as manifests say: the binary's own, and
// those that people put into a folder of a server.
//
// # From a file to objects
//
// Files, which every server runs, makes the folders of all servers one. Each file is
// kept in a Secret, since manifests hold secrets, with a mark in its place once it was
// deleted. A server compares three things, path by path: its folder, the Secret, and
// what both said when they last agreed, which it notes beside the folder. What one side
// changed goes to the other. A file is thus safe once any server has shared it, may be
// changed and deleted on each of them, and what happened while a server was away follows
// when it is back. An edit beats a deletion. Of two edits the one that reached the
// cluster first stands; the other is kept beside it, under its name and ".replaced".
// Only the mark means deletion: a Secret or a folder that is missing was lost, and is
// put back.
//
// New makes the deployer, which one server at a time runs. It reads the Secrets alone,
// and notes in an Addon which objects it made of a file: all that it is about to make
// before it makes the first, and what is left once it has deleted the rest. So it knows
// after any end what a file may have left. An object belongs to one file. It is deleted
// when that no longer names it, unless another file does, which then takes it over as
// it is; or unless it is no longer what podo applied.
package deploy
