# shellcheck shell=bash disable=SC2034
# What the build scripts share; they source it. It has no use of its own.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit

# known prints Debian's name of an architecture that podo is built for.
known() {
	case $1 in
	amd64 | x86_64) echo amd64 ;;
	arm64 | aarch64) echo arm64 ;;
	armhf | armv7*) echo armhf ;;
	*)
		echo "$(basename "$0"): ARCH: podo is built for amd64, arm64 and armhf (armv7), and not for \"$1\"" >&2
		exit 2
		;;
	esac
}

# What is made is for this machine, or for the architecture that ARCH names: then it
# goes to a folder of its own.
native=$(known "$(uname -m)")
ARCH=$(known "${ARCH:-$native}")
export ARCH
dist=$root/dist
[ "$ARCH" = "$native" ] || dist=$root/dist/$ARCH
cache=$dist/cache
case $ARCH in
amd64) goarch=amd64 triplet=x86_64-linux-gnu loader=ld-linux-x86-64.so.2 ;;
arm64) goarch=arm64 triplet=aarch64-linux-gnu loader=ld-linux-aarch64.so.1 ;;
armhf) goarch=arm triplet=arm-linux-gnueabihf loader=ld-linux-armhf.so.3 ;;
esac

# These decide what Go's build cache can share, so every script uses the same.
export GOFLAGS="-trimpath -buildvcs=false"
# Helm's packages bring kustomize's, which without the last tag load plugins.
tags=netgo,osusergo,sqlite_omit_load_extension,kustomize_disable_go_plugin_support

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

# compile is go build for ARCH. Where C is part of it, sysroot has to be there.
compile() { PATH=$cache/cc:$PATH CC=$triplet-gcc GOARCH=$goarch GOARM=7 go build "$@"; }

# sysroot lays what C programs are made of into a folder, and a compiler that looks
# nowhere else into $cache/cc. Nothing that it makes knows the name of either.
sysroot() {
	local dir=$cache/sysroot kernel=(/usr/include/{linux,asm-generic} "/usr/include/$triplet/asm")
	[ "$ARCH" = "$native" ] || kernel=("/usr/$triplet/include"/{linux,asm-generic,asm})
	if changed sysroot "$cache/cc/$triplet-gcc" scripts/debian.lock scripts/lib.sh; then
		rm -rf "$dir"
		scripts/debian unpack "$dir" libc6 libc6-dev libseccomp-dev musl-dev
		cp -r "${kernel[@]}" "$dir/usr/include/"
		mkdir -p "$cache/cc"
		printf '#!/bin/sh\nexec %s "--sysroot=%s" "-ffile-prefix-map=%s=" "$@"\n' \
			"$(command -v "$triplet-gcc")" "$dir" "$dir" >"$cache/cc/$triplet-gcc"
		chmod 755 "$cache/cc/$triplet-gcc"
		made sysroot
	fi
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
	rm -rf "$busybox"
	scripts/debian unpack "$busybox" busybox-static
	mkdir -p "$dir"/{bin,sbin,usr/bin,usr/sbin,etc,root,home,proc,sys,dev,var} "$dir/tmp"
	cp "$busybox/bin/busybox" "$dir/bin/busybox"
	chmod 755 "$dir/bin/busybox"
	# Only this machine's can be asked for its commands; the others have the same.
	ARCH=$native scripts/debian unpack "$busybox" busybox-static
	for applet in $("$busybox/bin/busybox" --list-full | grep /); do
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
if [ "${PODO_BUILD_LOCKED:-}" != "$dist" ]; then
	flock 9
	export PODO_BUILD_LOCKED=$dist
fi
