# shellcheck shell=bash disable=SC2034
# What the build scripts share; they source it. It has no use of its own.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit
dist=$root/dist
cache=$dist/cache

# These decide what Go's build cache can share, so every script uses the same.
export GOFLAGS="-trimpath -buildvcs=false"
tags=netgo,osusergo,sqlite_omit_load_extension

say() { echo "$(basename "$0"): $*"; }

# changed NAME OUTPUT INPUT... says whether OUTPUT must be made again: an INPUT is a
# file, or a word that counts as it stands. A made NAME is recorded by "made NAME".
changed() {
	local name=$1 output=$2 input
	shift 2
	key=$(
		for input in "$@"; do
			if [ -f "$input" ]; then sha256sum <"$input"; else echo "$input"; fi
		done | sha256sum
	)
	[ ! -e "$output" ] || [ "$(cat "$cache/keys/$name" 2>/dev/null)" != "$key" ]
}

made() {
	mkdir -p "$cache/keys"
	echo "$key" >"$cache/keys/$1"
}

# module prints the version of a module: module PATH [FOLDER OF GO.MOD]
module() { (cd "${2:-.}" && go list -m -f '{{.Version}}' "$1"); }

# static refuses a program that needs the host's loader.
static() {
	local program
	for program in "$@"; do
		if readelf --program-headers "$program" | grep -q INTERP; then
			say "$program is not static" >&2
			exit 1
		fi
	done
}

# userland lays busybox with a link for each of its commands into a folder, and the
# few files that programs expect of a system: userland FOLDER
userland() {
	local dir=$1 busybox=$cache/tmp/busybox applet
	scripts/debian unpack "$busybox" busybox-static
	mkdir -p "$dir"/{bin,sbin,usr/bin,usr/sbin,etc,root,home,proc,sys,dev,var} "$dir/tmp"
	cp "$busybox/bin/busybox" "$dir/bin/busybox"
	chmod 755 "$dir/bin/busybox"
	for applet in $("$dir/bin/busybox" --list-full | grep /); do
		mkdir -p "$dir/${applet%/*}"
		[ -e "$dir/$applet" ] || ln -s /bin/busybox "$dir/$applet"
	done
	echo 'root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false' >"$dir/etc/passwd"
	echo 'root:x:0:
nogroup:x:65534:' >"$dir/etc/group"
	chmod -R u=rwX,go=rX "$dir"
	chmod 1777 "$dir/tmp"
	rm -rf "$busybox"
}

# certificates writes the bundle of Debian's root certificates: certificates FILE
certificates() {
	local unpacked=$cache/tmp/certificates
	scripts/debian unpack "$unpacked" ca-certificates
	mkdir -p "$(dirname "$1")"
	LC_ALL=C find "$unpacked/usr/share/ca-certificates" -name '*.crt' -print0 | LC_ALL=C sort -z |
		xargs -0 cat >"$1"
	rm -rf "$unpacked"
}

# Only one build at a time: they write the same files.
mkdir -p "$cache"
exec 9>"$cache/lock"
if [ "${PODO_BUILD_LOCKED:-}" != "$root" ]; then
	flock 9
	export PODO_BUILD_LOCKED=$root
fi
