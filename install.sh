#!/bin/sh
# Installs podo, Kubernetes in one file, as a service of this machine:
#
#   curl -sfL https://MIRROR/install.sh | INSTALL_PODO_ARTIFACT_URL=https://MIRROR sh -
#   ... sh -s - server --tls-san cluster.example.org
#
# A second run changes only what differs, and restarts podo only if something did. What
# is given replaces what was given before; /etc/podo/config.yaml is left alone. Until all
# that is needed has been fetched and checked, the installation that is there stays as it
# is; if the new podo does not start, it is put back.
#
# Variables (docs/install.md says more):
#
#   INSTALL_PODO_ARTIFACT_URL   what to install from: https://, http:// or file://
#   INSTALL_PODO_VERSION        version to install, or INSTALL_PODO_COMMIT, a commit
#   INSTALL_PODO_CHANNEL        otherwise, the version that URL/channels/CHANNEL names
#                               (stable); INSTALL_PODO_CHANNEL_URL is another URL/channels
#   INSTALL_PODO_PUBLIC_KEY     file with the key that the checksums must be signed with
#   INSTALL_PODO_SKIP_DOWNLOAD  true or binary: the podo in BIN_DIR is the one to use
#   INSTALL_PODO_EXEC           command and flags; arguments are added to it
#   INSTALL_PODO_NAME           the service is called podo-NAME
#   INSTALL_PODO_TYPE           systemd's Type= (notify for a server, exec for an agent)
#   INSTALL_PODO_BIN_DIR        /usr/local/bin, or /opt/bin where that is read-only
#   INSTALL_PODO_BIN_DIR_READ_ONLY  true: write nothing there, and download nothing
#   INSTALL_PODO_SYSTEMD_DIR    /etc/systemd/system
#   INSTALL_PODO_SYMLINK        links for kubectl, crictl, ctr: skip, force, or those missing
#   INSTALL_PODO_SKIP_ENABLE    true: neither enable nor start the service
#   INSTALL_PODO_SKIP_START     true: enable it only
#   INSTALL_PODO_FORCE_RESTART  true: restart it even if nothing differs
#   INSTALL_PODO_SELINUX_WARN   true: go on without the SELinux policy for containers
#
# PODO_*, K3S_*, CONTAINERD_* and the proxies' variables become the service's environment.
# Exit status: 2 for what can never work as asked for, 1 for what failed.
set -eu

known_variables='ARTIFACT_URL BIN_DIR BIN_DIR_READ_ONLY CHANNEL CHANNEL_URL COMMIT EXEC FORCE_RESTART NAME
	PUBLIC_KEY SELINUX_WARN SKIP_DOWNLOAD SKIP_ENABLE SKIP_SELINUX_RPM SKIP_START SYMLINK SYSTEMD_DIR TYPE VERSION'

newline='
' value=

# It is gone after a reboot, as who held it is.
lock=/run/podo-install.lock

# podo uninstall knows by these words what was written here.
origin="written by podo's install.sh; podo uninstall removes it"

say() { printf 'install: %s\n' "$*"; }

warn() { printf 'install: warning: %s\n' "$*" >&2; }

# fail ends the script because something went wrong, refuse because it was asked for
# something that cannot be.
fail() { printf 'install: %s\n' "$*" >&2; exit 1; }

refuse() { printf 'install: %s\n' "$*" >&2; exit 2; }

# has COMMAND
has() { command -v "$1" >/dev/null 2>&1; }

# as_root runs a command as root, who needs to be told of the proxies.
as_root() {
	if [ "$me" -eq 0 ]; then
		"$@"
	else
		sudo env "http_proxy=${http_proxy:-}" "https_proxy=${https_proxy:-${HTTPS_PROXY:-}}" \
			"no_proxy=${no_proxy:-${NO_PROXY:-}}" "$@"
	fi
}

# names PREFIX... prints the names of the variables that begin so.
names() {
	for prefix in "$@"; do
		env | sed -n "s/^\\(${prefix}[A-Za-z0-9_]*\\)=.*/\\1/p"
	done | sort -u
}

# truth NAME refuses a switch that is neither on nor off.
truth() {
	eval "value=\${$1:-}"
	case $value in
	true | false | '') ;;
	*) refuse "$1: \"$value\" is neither true nor false" ;;
	esac
}

# plain NAME refuses a value that files and commands could not hold as it stands.
plain() {
	eval "value=\${$1:-}"
	case $value in
	*[!A-Za-z0-9_./@+-]*) refuse "$1: \"$value\" may hold letters, digits and _ . / @ + - only" ;;
	esac
}

check_variables() {
	for name in $(names INSTALL_PODO_); do
		case " $(printf '%s' "$known_variables" | tr '\n\t' '  ') " in
		*" ${name#INSTALL_PODO_} "*) ;;
		*)
			[ "$name" != INSTALL_PODO_PR ] || refuse "$name: there are no builds of pull requests; use INSTALL_PODO_COMMIT with a mirror that has one"
			refuse "$name: there is no such variable; install.sh begins with a list of them"
			;;
		esac
	done
	for name in $(names INSTALL_K3S_); do
		warn "$name is k3s's and does nothing here; podo's is INSTALL_PODO_${name#INSTALL_K3S_}"
	done
	for name in UNINSTALL_K3S_SH KILLALL_K3S_SH GITHUB_URL; do
		eval "value=\${$name-}"
		[ -z "$value" ] || warn "$name is k3s's and does nothing here; podo's scripts are in INSTALL_PODO_BIN_DIR, and it comes from INSTALL_PODO_ARTIFACT_URL"
	done
	for name in $(service_variables); do
		eval "value=\${$name-}"
		case $value in
		*"$newline"*) refuse "$name: a service's variable cannot hold a line break" ;;
		esac
	done
	for name in BIN_DIR_READ_ONLY FORCE_RESTART SELINUX_WARN SKIP_ENABLE SKIP_SELINUX_RPM SKIP_START; do
		truth "INSTALL_PODO_$name"
	done
	for name in BIN_DIR CHANNEL COMMIT NAME SYSTEMD_DIR TYPE VERSION; do
		plain "INSTALL_PODO_$name"
	done
	case ${INSTALL_PODO_SKIP_DOWNLOAD:-} in
	true | binary | selinux | false | '') ;;
	*) refuse "INSTALL_PODO_SKIP_DOWNLOAD: \"$INSTALL_PODO_SKIP_DOWNLOAD\" is none of true, binary, selinux and false" ;;
	esac
	case ${INSTALL_PODO_SYMLINK:-} in
	skip | force | '') ;;
	*) refuse "INSTALL_PODO_SYMLINK: \"$INSTALL_PODO_SYMLINK\" is neither skip nor force" ;;
	esac
	case ${INSTALL_PODO_BIN_DIR:-/} in
	/*) ;;
	*) refuse "INSTALL_PODO_BIN_DIR: \"$INSTALL_PODO_BIN_DIR\" does not begin with /" ;;
	esac
	case ${INSTALL_PODO_NAME:-} in
	*/*) refuse "INSTALL_PODO_NAME: \"$INSTALL_PODO_NAME\" is no name of a service" ;;
	esac
	systemd_dir=${INSTALL_PODO_SYSTEMD_DIR:-/etc/systemd/system}
	case $systemd_dir in
	/etc/systemd/system | /run/systemd/system | /usr/local/lib/systemd/system | /usr/lib/systemd/system) ;;
	*) refuse "INSTALL_PODO_SYSTEMD_DIR: systemd looks for units in /etc/systemd/system, /run/systemd/system, /usr/local/lib/systemd/system and /usr/lib/systemd/system, and not in \"$systemd_dir\"" ;;
	esac
}

# read_command sets words, the arguments that podo is started with, one a line.
read_command() {
	words=
	if [ -n "${INSTALL_PODO_EXEC:-}" ]; then
		# xargs knows quotes, and would not run what a shell might find in there.
		words=$(printf '%s\n' "$INSTALL_PODO_EXEC" | xargs -n 1 printf '%s\n' 2>/dev/null) ||
			refuse "INSTALL_PODO_EXEC: a quote is not closed in: $INSTALL_PODO_EXEC"
	fi
	for word in "$@"; do
		words=${words:+$words$newline}$word
	done
	role=${words%%"$newline"*}
	case $role in
	server | agent) ;;
	-* | '')
		role=server
		[ -z "${PODO_SERVER:-}${PODO_URL:-}${K3S_URL:-}" ] || role=agent
		words=$role${words:+$newline$words}
		;;
	*) refuse "the command to run is server or agent, with flags; \"$role\" is neither" ;;
	esac
	# Whatever is done to podo while it does not run has to find its data.
	data_dir='' expected=''
	while IFS= read -r word; do
		case $expected$word in
		data-dir:*) data_dir=$word expected= ;;
		--data-dir=*) data_dir=${word#*=} ;;
		--data-dir | -d) expected=data-dir: ;;
		esac
	done <<WORDS
$words
WORDS
	data_dir=${data_dir:-${PODO_DATA_DIR:-${K3S_DATA_DIR:-}}}
	case $data_dir in
	*[!A-Za-z0-9_./@+-]*) refuse "--data-dir: \"$data_dir\" may hold letters, digits and _ . / @ + - only" ;;
	esac
	if [ -n "${INSTALL_PODO_NAME:-}" ]; then
		service=podo-$INSTALL_PODO_NAME
	elif [ "$role" = agent ]; then
		service=podo-agent
	else
		service=podo
	fi
	[ "$service" != podo-shutdown ] || refuse 'INSTALL_PODO_NAME: podo-shutdown is a unit of its own'
}

check_machine() {
	[ "$(uname -s)" = Linux ] || refuse "podo runs on Linux, and this is $(uname -s)"
	case $(uname -m) in
	x86_64 | amd64) arch=amd64 program=podo elf='0201*3e00' ;;
	aarch64 | arm64) arch=arm64 program=podo-arm64 elf='0201*b700' ;;
	armv7* | armv8l | armhf) arch=armhf program=podo-armhf elf='0101*2800' ;;
	*) refuse "podo is built for x86_64, arm64 and armv7, and this machine is $(uname -m)" ;;
	esac
	if [ "$me" -ne 0 ]; then
		has sudo || fail 'installing needs root, and there is no sudo; run this as root'
		as_root true || fail 'installing needs root; run this as root'
	fi
	init=none running=
	if [ -d /run/systemd/system ] && has systemctl; then
		init=systemd running=yes
	elif [ -x /sbin/openrc-run ] || [ -x /usr/sbin/openrc-run ]; then
		init=openrc
		[ ! -e /run/openrc/softlevel ] || running=yes
	elif has systemctl; then
		init=systemd
	fi
	other=podo-agent
	[ "$service" != podo-agent ] || other=podo
	if [ -z "${INSTALL_PODO_NAME:-}" ] && { [ -e "$systemd_dir/$other.service" ] || [ -e "/etc/init.d/$other" ]; }; then
		refuse "this machine has the service $other already, and can be in one cluster only; first: podo uninstall"
	fi
	[ "$role" = server ] || has_token ||
		refuse 'an agent joins with a token: set PODO_TOKEN, or give --token; a server prints one with: podo token create'
	hasher=
	for name in sha256sum shasum openssl; do
		[ -n "$hasher" ] || ! has $name || hasher=$name
	done
	[ -n "$hasher" ] || fail 'nothing is here to check a SHA-256 with; install sha256sum, shasum or openssl'
}

# has_token: whether an agent was given a token, or needs none.
has_token() {
	[ -z "${PODO_TOKEN:-}${PODO_TOKEN_FILE:-}${K3S_TOKEN:-}${K3S_TOKEN_FILE:-}" ] || return 0
	case $newline$words in
	*"$newline"--token* | *"$newline"-t*) return 0 ;;
	esac
	[ -e /etc/podo/config.yaml ] || [ -d /etc/podo/config.yaml.d ] || as_root test -e "${data_dir:-/var/lib/podo}/agent/identity.key"
}

# writable DIR: whether root may make files there
writable() {
	# shellcheck disable=SC2016 # it is for that shell
	as_root mkdir -p "$1" 2>/dev/null && as_root sh -c ': >"$1" && rm -f "$1"' sh "$1/.podo-probe" 2>/dev/null
}

choose_bin_dir() {
	bin_dir=${INSTALL_PODO_BIN_DIR:-/usr/local/bin}
	if [ "${INSTALL_PODO_BIN_DIR_READ_ONLY:-}" = true ]; then
		return
	fi
	if ! writable "$bin_dir"; then
		[ -z "${INSTALL_PODO_BIN_DIR:-}" ] || fail "$bin_dir cannot be written to; choose another with INSTALL_PODO_BIN_DIR"
		bin_dir=/opt/bin
		writable "$bin_dir" || fail 'neither /usr/local/bin nor /opt/bin can be written to; choose another folder with INSTALL_PODO_BIN_DIR'
		case ":$PATH:" in
		*:/opt/bin:*) ;;
		*) warn '/usr/local/bin is read-only, so podo goes to /opt/bin, which is not in your PATH' ;;
		esac
	fi
}

# fetch URL FILE: a mirror that is silent for 15 s counts as gone.
fetch() {
	case $1 in
	file://*) as_root cp "${1#file://}" "$2" ;;
	http://* | https://*)
		if has curl; then
			as_root curl -fsSL --connect-timeout 15 --speed-limit 1024 --speed-time 15 --max-redirs 10 --retry 2 -o "$2" "$1"
		elif has wget; then
			if wget --version >/dev/null 2>&1; then # GNU's; with -q it says nothing of what went wrong
				as_root wget -nv -T 15 -t 3 -O "$2" "$1" 2>"$scratch/said"
			else
				watched_wget "$1" "$2" 2>"$scratch/said"
			fi || { tail -n 1 "$scratch/said" >&2; return 1; }
		else
			fail 'neither curl nor wget is here to download with; install one of them, or put podo into '"$bin_dir"' and set INSTALL_PODO_SKIP_DOWNLOAD=true'
		fi
		;;
	*) refuse "INSTALL_PODO_ARTIFACT_URL: $1 is none of https://, http:// and file://" ;;
	esac
}

# watched_wget URL FILE is for busybox's wget, which breaks down when it is told how long to
# wait, unless it was built for that: it is ended when FILE has not grown for 15 s.
watched_wget() {
	# shellcheck disable=SC2016 # it is for that shell
	as_root sh -c '
		wget -q -O "$2" "$1" &
		pid=$!
		(
			before="" silent=0
			while sleep 1; do
				now=$(ls -ln "$2")
				silent=$((silent + 1))
				[ "$now" = "$before" ] || silent=0 before=$now
				[ "$silent" -lt 15 ] || kill "$pid" || exit
			done
		) >/dev/null 2>&1 &
		trap "kill $pid $! 2>/dev/null" EXIT
		trap "exit 1" HUP INT TERM
		wait "$pid" && exit
		[ $? -ne 143 ] || echo "wget: nothing came for 15 s" >&2
		exit 1' sh "$1" "$2"
}

# need URL FILE fetches, or says what is missing.
need() {
	fetch "$1" "$2" || fail "could not download $1; nothing was changed"
}

# sha256 FILE
sha256() {
	case $hasher in
	sha256sum) as_root sha256sum "$1" ;;
	shasum) as_root shasum -a 256 "$1" ;;
	openssl) as_root openssl dgst -sha256 -r "$1" ;;
	esac | cut -d ' ' -f 1
}

# in_url TEXT is a version as it stands in a URL: some servers take a plus for a space.
in_url() {
	case $1 in
	file://*) printf '%s' "$1" ;;
	*) printf '%s' "$1" | sed 's/+/%2B/g' ;;
	esac
}

choose_version() {
	url=${INSTALL_PODO_ARTIFACT_URL:-}
	url=${url%/}
	[ -n "$url" ] || refuse 'INSTALL_PODO_ARTIFACT_URL is not set: give the mirror to install from, such as https://mirror.example.org/podo or file:///media/usb/podo'
	version=${INSTALL_PODO_COMMIT:-${INSTALL_PODO_VERSION:-}}
	if [ -n "$version" ]; then
		return
	fi
	channel=${INSTALL_PODO_CHANNEL_URL:-$url/channels}/${INSTALL_PODO_CHANNEL:-stable}
	need "$channel" "$scratch/channel"
	version=$(cat "$scratch/channel")
	case $version in
	'' | *[!A-Za-z0-9._+-]*) fail "$channel does not hold a version; give one with INSTALL_PODO_VERSION" ;;
	esac
}

# runs PROGRAM: whether it says its version here. The kernel has to know what it is, as a
# shell would take what the kernel refuses for a script, and execute that.
runs() {
	begins=$(as_root od -An -tx1 -N20 "$1" 2>/dev/null | tr -d ' \n')
	# shellcheck disable=SC2254 # it is a pattern: class, byte order, machine
	case $begins in
	'' | 7f454c46$elf | 2321*) as_root "$1" version >/dev/null 2>&1 ;;
	*) return 1 ;;
	esac
}

# download stages the program, unless it is there already.
download() {
	case ${INSTALL_PODO_SKIP_DOWNLOAD:-}${INSTALL_PODO_BIN_DIR_READ_ONLY:-} in
	*true* | *binary*)
		[ -x "$bin_dir/podo" ] || refuse "there is no $bin_dir/podo, and none is to be downloaded; put one there and make it executable"
		runs "$bin_dir/podo" || fail "$bin_dir/podo does not run on this machine ($(uname -m), Linux $(uname -r)); put a whole one there"
		return
		;;
	esac
	choose_version
	from=$(in_url "$url/$version")
	sums=$from/sha256sum-$arch.txt
	need "$sums" "$scratch/sums"
	if [ -n "${INSTALL_PODO_PUBLIC_KEY:-}" ]; then
		has openssl || fail 'INSTALL_PODO_PUBLIC_KEY: nothing is here to check a signature with; install openssl'
		need "$sums.sig" "$scratch/sums.sig"
		openssl dgst -sha256 -verify "$INSTALL_PODO_PUBLIC_KEY" -signature "$scratch/sums.sig" "$scratch/sums" >/dev/null 2>&1 ||
			fail "$sums is not signed with $INSTALL_PODO_PUBLIC_KEY; nothing was changed"
	fi
	wanted=$(sed -n "s/^\\([0-9a-f]\\{64\\}\\) [ *]$program\$/\\1/p" "$scratch/sums")
	[ ${#wanted} -eq 64 ] || fail "$sums has no checksum of $program; nothing was changed"
	if [ -x "$bin_dir/podo" ] && [ "$(sha256 "$bin_dir/podo")" = "$wanted" ]; then
		say "podo $version is in $bin_dir already"
		return
	fi
	say "downloading podo $version from $url"
	staged=$staged$bin_dir/podo$newline
	as_root rm -f "$bin_dir/podo.podo-new" # what a run that was killed left may still be written to
	need "$from/$program" "$bin_dir/podo.podo-new"
	got=$(sha256 "$bin_dir/podo.podo-new")
	[ "$got" = "$wanted" ] || fail "$from/$program is damaged: its SHA-256 is $got, and should be $wanted; nothing was changed"
	as_root chmod 755 "$bin_dir/podo.podo-new"
	as_root chown 0:0 "$bin_dir/podo.podo-new"
	runs "$bin_dir/podo.podo-new" || fail "$from/$program does not run on this machine ($(uname -m), Linux $(uname -r)); nothing was changed"
	label "$bin_dir/podo.podo-new"
}

# wait_turn has this run go on alone: two at once would write the same files. The lock names
# the process that holds it, so that one that was killed is in nobody's way.
wait_turn() {
	turns=0
	until as_root ln -s "$$" "$lock" 2>/dev/null; do
		holder=$(readlink "$lock" 2>/dev/null) || holder=
		if [ -z "$holder" ]; then # it has just ended, or there can be no lock
			[ "$turns" -lt 5 ] || fail "could not write $lock; nothing was changed"
		elif ! as_root test -d "/proc/$holder"; then
			# Only one of those who find that takes it away; another's fresh one goes back.
			[ "$turns" -lt 300 ] || fail "could not remove $lock; nothing was changed"
			if as_root mv "$lock" "$lock.$$" 2>/dev/null; then
				if [ "$(readlink "$lock.$$")" = "$holder" ]; then
					as_root rm -f "$lock.$$"
				else
					as_root mv "$lock.$$" "$lock"
				fi
			fi
		elif [ "$turns" -ge 300 ]; then
			fail "another install.sh (process $holder) is still at work; nothing was changed"
		elif [ "$turns" -eq 0 ]; then
			say "waiting for another install.sh (process $holder)"
		fi
		turns=$((turns + 1))
		sleep 1
	done
	locked=yes
}

# label gives the program the type by which SELinux lets container engines work.
label() {
	if ! has getenforce || [ "$(getenforce)" = Disabled ]; then
		return
	fi
	if as_root chcon -u system_u -r object_r -t container_runtime_exec_t "$1" 2>/dev/null; then
		return
	fi
	if [ "$(getenforce)" = Enforcing ] && [ "${INSTALL_PODO_SELINUX_WARN:-}" != true ]; then
		fail "SELinux does not know container_runtime_exec_t, and would stop pods; install the package container-selinux, or set INSTALL_PODO_SELINUX_WARN=true; nothing was changed"
	fi
	warn 'SELinux does not know container_runtime_exec_t; pods need the package container-selinux'
}

# stage PATH MODE COMMAND... notes what a file should hold, which a command prints, if that
# differs from what it holds.
stage() {
	path=$1 mode=$2
	shift 2
	"$@" >"$scratch/text"
	if as_root test -f "$path" && [ "$(sha256 "$path")" = "$(sha256 "$scratch/text")" ]; then
		return
	fi
	staged=$staged$path$newline
	as_root mkdir -p "${path%/*}"
	# shellcheck disable=SC2016 # they are for that shell
	as_root sh -c 'umask 077 && cp "$1" "$2" && chown 0:0 "$2" && chmod "$3" "$2"' sh "$scratch/text" "$path.podo-new" "$mode" ||
		fail "could not write $path.podo-new; nothing was changed"
}

# stage_link NAME
stage_link() {
	case ${INSTALL_PODO_SYMLINK:-} in
	skip) return ;;
	force) ;;
	*)
		if as_root test -e "$bin_dir/$1" || has "$1"; then
			return
		fi
		;;
	esac
	if [ "$(readlink "$bin_dir/$1" 2>/dev/null)" = podo ]; then
		return
	fi
	staged=$staged$bin_dir/$1$newline
	as_root ln -sf podo "$bin_dir/$1.podo-new"
}

# service_variables prints the names of what the service gets of this environment.
service_variables() { names PODO_ K3S_ CONTAINERD_ HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; }

# environment prints the service's variables, in a form that both systemd and a shell
# read.
environment() {
	printf '# %s\n' "$origin"
	for name in $(service_variables); do
		eval "value=\${$name-}"
		# shellcheck disable=SC2016 # it is for sed
		printf '%s="%s"\n' "$name" "$(printf '%s' "$value" | sed 's/[\"`$]/\\&/g')"
	done
}

# each_word COMMAND... calls a command with each of podo's arguments, and joins what it
# prints.
each_word() {
	printf '%s\n' "$words" | while IFS= read -r word; do
		printf ' '
		"$@" "$word"
	done
}

# for_systemd quotes a word of ExecStart=.
for_systemd() {
	case $1 in
	'' | *[!A-Za-z0-9_./:=,@+-]*) printf '"%s"' "$(printf '%s' "$1" | sed 's/[\"]/\\&/g; s/[%$]/&&/g')" ;;
	*) printf '%s' "$1" ;;
	esac
}

# for_shell quotes a word for a shell.
for_shell() {
	case $1 in
	'' | *[!A-Za-z0-9_./:=,@+-]*) printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")" ;;
	*) printf '%s' "$1" ;;
	esac
}

unit() {
	type=notify
	[ "$role" = server ] || type='exec'
	cat <<UNIT
# $origin
[Unit]
Description=podo $role, Kubernetes in one file
Documentation=https://github.com/podo-dev/podo
Wants=network-online.target
After=network-online.target

[Service]
Type=${INSTALL_PODO_TYPE:-$type}
ExecStart=$bin_dir/podo$(each_word for_systemd)
EnvironmentFile=-/etc/default/%N
EnvironmentFile=-/etc/sysconfig/%N
EnvironmentFile=-$systemd_dir/$service.service.env
# Pods outlive podo: only its main process is stopped.
KillMode=process
Delegate=yes
Restart=always
RestartSec=5s
# What podo refuses, it will refuse again.
RestartPreventExitStatus=2
# A start may wait for other machines, for as long as those take.
TimeoutStartSec=infinity
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity

[Install]
WantedBy=multi-user.target
UNIT
}

# A machine that is shut down stops this unit after podo, and before the network and
# what is mounted over it.
shutdown_unit() {
	cat <<UNIT
# $origin
[Unit]
Description=Stop podo's pods when the machine is shut down
Before=$service.service
After=network.target network-online.target remote-fs.target

[Service]
Type=oneshot
RemainAfterExit=yes
EnvironmentFile=-/etc/default/$service
EnvironmentFile=-/etc/sysconfig/$service
EnvironmentFile=-$systemd_dir/$service.service.env
ExecStop=/bin/sh -c '[ "\`systemctl is-system-running\`" != stopping ] || exec $bin_dir/podo kill --grace=20s${data_dir:+ --data-dir=$data_dir}'
TimeoutStopSec=45s

[Install]
WantedBy=multi-user.target
UNIT
}

openrc_script() {
	cat <<SCRIPT
#!/sbin/openrc-run
# $origin
description="podo $role, Kubernetes in one file"
supervisor=supervise-daemon
command=$bin_dir/podo
command_args=$(for_shell "$(each_word for_shell)")
pidfile=/run/$service.pid
output_log=/var/log/$service.log
error_log=/var/log/$service.log
respawn_delay=5
respawn_max=0
rc_ulimit="-n 1048576"
rc_cgroup_cleanup=no

set -a
[ ! -f /etc/podo/$service.env ] || . /etc/podo/$service.env
set +a

depend() {
	use localmount net dns cgroups logger
	after firewall ntp-client
}

# Pods outlive podo, but not the machine. They end while podo is there to run their hooks.
stop_pre() {
	yesno "\${RC_GOINGDOWN:-no}" || return 0
	"\$command" kill --grace=45s${data_dir:+ --data-dir=$data_dir} || ewarn "not all pods ended in good order"
}
SCRIPT
}

rotation() {
	cat <<ROTATION
# $origin
/var/log/$service.log {
	size 10M
	rotate 4
	compress
	missingok
	notifempty
	copytruncate
}
ROTATION
}

# habit COMMAND... prints a script that calls podo by another name.
habit() {
	# shellcheck disable=SC2016 # it is for that script
	printf '#!/bin/sh\n# %s\nexec %s/podo %s "$@"\n' "$origin" "$bin_dir" "$*${data_dir:+ --data-dir=$data_dir}"
}

stage_all() {
	download
	if [ "${INSTALL_PODO_BIN_DIR_READ_ONLY:-}" != true ]; then
		stage "$bin_dir/podo-killall.sh" 755 habit kill
		stage "$bin_dir/podo-uninstall.sh" 755 habit uninstall --yes
		[ "$role" = server ] || stage "$bin_dir/podo-agent-uninstall.sh" 755 habit uninstall --yes
		for name in kubectl crictl ctr; do stage_link $name; done
	fi
	case $init in
	systemd)
		stage "$systemd_dir/$service.service.env" 600 environment
		stage "$systemd_dir/$service.service" 644 unit
		stage "$systemd_dir/podo-shutdown.service" 644 shutdown_unit
		;;
	openrc)
		stage "/etc/podo/$service.env" 600 environment
		stage "/etc/init.d/$service" 755 openrc_script
		stage "/etc/logrotate.d/$service" 644 rotation
		;;
	none) stage "/etc/podo/$service.env" 600 environment ;;
	esac
}

# keep PATH keeps what is there beside it. A program is linked, not copied.
keep() {
	as_root rm -f "$1.podo-old" # of a run that was killed
	if as_root test -L "$1"; then
		as_root cp -P "$1" "$1.podo-old"
	elif as_root test -e "$1"; then
		as_root ln -f "$1" "$1.podo-old" 2>/dev/null || as_root cp -p "$1" "$1.podo-old"
	fi
}

# put_in_place renames what was staged over what is there.
put_in_place() {
	for path in $staged; do
		keep "$path" || fail "could not keep $path as it was; nothing was changed"
		as_root mv -f "$path.podo-new" "$path" || fail "could not write $path; nothing was changed"
		placed=$path$newline$placed
	done
}

# put_back undoes put_in_place.
put_back() {
	for path in $placed; do
		if as_root test -e "$path.podo-old" || as_root test -L "$path.podo-old"; then
			as_root mv -f "$path.podo-old" "$path"
		else
			as_root rm -f "$path"
		fi
	done
	placed=
}

# clean_up ends every run: what was put in place stays only if that was the plan.
clean_up() {
	status=$?
	trap - EXIT
	set +e
	[ "$status" -eq 0 ] || put_back
	for path in $staged; do
		as_root rm -f "$path.podo-new" "$path.podo-old"
	done
	[ -z "$scratch" ] || as_root rm -rf "$scratch"
	[ -z "$locked" ] || as_root rm -f "$lock"
	exit "$status"
}

# stale: whether the service that runs was started from another file.
stale() {
	pid=$(systemctl show -p MainPID --value "$service" 2>/dev/null) || return 1
	case $pid in
	'' | 0) return 1 ;;
	esac
	! as_root test "/proc/$pid/exe" -ef "$bin_dir/podo"
}

# active: whether the service runs.
active() {
	case $init in
	systemd) systemctl is-active --quiet "$service" ;;
	openrc) as_root rc-service -q "$service" status >/dev/null 2>&1 ;;
	esac
}

# start_service returns once podo is ready, or an agent has been started.
start_service() {
	case $init in
	systemd)
		as_root systemctl restart "$service" && as_root systemctl start podo-shutdown
		;;
	openrc)
		as_root rc-service "$service" restart && { [ "$role" = agent ] || becomes_ready; }
		;;
	esac
}

# becomes_ready: whether podo is ready within 3 minutes. One that OpenRC starts again and
# again to no avail answers nothing, which is asked 15 times; nor does one that waits for
# the server that it is to join.
becomes_ready() {
	waited=0 silent=0 patience=15
	case ${PODO_SERVER:-}${PODO_URL:-}${K3S_URL:-}$words in
	http* | *--server*) patience=180 ;;
	esac
	until as_root "$bin_dir/podo" status >"$scratch/status" 2>/dev/null; do
		waited=$((waited + 1)) silent=$((silent + 1))
		[ ! -s "$scratch/status" ] || silent=0
		if [ "$waited" -ge 180 ] || [ "$silent" -ge "$patience" ]; then
			return 1
		fi
		sleep 1
	done
}

last_words() {
	case $init in
	systemd) as_root journalctl "_SYSTEMD_UNIT=$service.service" -n 8 --no-pager -o cat 2>/dev/null ;;
	openrc) as_root tail -n 8 "/var/log/$service.log" 2>/dev/null ;;
	esac | uniq | sed 's/^/  /' >&2
}

enable_service() {
	case $init in
	systemd)
		[ -z "$running" ] || as_root systemctl daemon-reload
		as_root systemctl enable -q "$service" podo-shutdown
		;;
	openrc) as_root rc-update -q add "$service" default ;;
	esac
}

# run_service starts what is in place, if it has to be. A podo that ran before comes back
# if this one does not start.
run_service() {
	if [ "$init" = none ]; then
		say "there is neither systemd nor OpenRC here; start podo with:"
		say "  set -a; . /etc/podo/$service.env; set +a; $bin_dir/podo$(each_word for_shell)"
		return
	fi
	if [ "${INSTALL_PODO_SKIP_ENABLE:-}" = true ]; then
		say "service $service is installed, and neither enabled nor started, as asked"
		return
	fi
	was_active=
	if [ -n "$running" ] && active; then was_active=yes; fi
	enable_service
	if [ -z "$running" ]; then
		say "service $service is enabled; $init is not running here, so it starts with the machine"
		return
	fi
	if [ "${INSTALL_PODO_SKIP_START:-}" = true ]; then
		say "service $service is enabled, and not started, as asked"
		return
	fi
	if [ -n "$was_active" ] && [ "${INSTALL_PODO_FORCE_RESTART:-}" != true ] && [ -z "$staged" ] && ! stale; then
		say "service $service runs, and nothing differs"
		return
	fi
	say "${was_active:+re}starting service $service"
	if start_service; then
		return
	fi
	last_words
	if [ -z "$was_active" ]; then
		placed= # what is there can be looked at, and mended by another run
		fail "podo is installed, and did not start; its last words are above"
	fi
	put_back
	enable_service
	start_service || fail "podo did not start, and neither did the one before it, which is in place again; its last words are above"
	fail "podo did not start, so the one before it is in place again, and runs; its last words are above"
}

main() {
	umask 022
	me=$(id -u)
	staged='' placed='' scratch='' locked=''
	trap clean_up EXIT
	trap 'exit 130' INT
	trap 'exit 143' HUP PIPE TERM
	check_variables
	read_command "$@"
	check_machine
	choose_bin_dir
	scratch=$(mktemp -d) || fail 'there is no room for temporary files; set TMPDIR to where there is'
	wait_turn
	stage_all
	put_in_place
	run_service
	say "$("$bin_dir/podo" version | tr -s ' ' | head -n 2 | tr '\n' ' ')is installed; podo uninstall removes it"
	if [ "$role" = server ]; then
		say 'try: sudo podo kubectl get nodes'
	else
		say 'see it on a server with: sudo podo kubectl get nodes'
	fi
}

main "$@"
