# lib.sh: what the scripts under test/ share.  Source it, do not run it.
#
# All work is done in a private folder below BATCHER_TMP (default /var/tmp,
# because it lies on a disk where /tmp may not, and a benchmark of durable
# writes wants one).  The folder holds a copy of the source, a copy of
# PostgreSQL into which the extension is installed, and the data of private
# servers that listen on a unix socket only: the installed PostgreSQL and its
# servers are never touched.  Everything is stopped and removed at the exit;
# with BATCHER_KEEP=1 the folder stays.
#
# initdb and postgres refuse to run as root: root's work is done as the user
# postgres, anybody else's as himself.  Root's rights (or sudo) are needed for
# the installation of packages only.

PG_MAJOR=${BATCHER_PG_MAJOR:-15}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# How the library is built that tests load: with the debug points of
# src/base/debug.c.  Nobody else's has them.
TESTED_FLAGS="-Werror -DBATCHER_DEBUG_POINTS"

# Set by prepare_work and prepare_postgres.
WORK=
PGBIN=
PGREGRESS=

# A script may define this anew: the last thing that it does, with its status.
at_exit() { exit "$1"; }

trap 'status=$?; trap - EXIT; clean_up || true; at_exit $status' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

note() { printf "%s\n" "$*"; }

die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# Run a command with root's rights.
as_root()
{
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "cannot install packages: run me as root, or install sudo"
	fi
}

# Run a command as the user who owns the private folder, in that folder.
as_pg()
{
	if [ "$(id -u)" -eq 0 ]; then
		(cd "$WORK" && runuser -u postgres -- env HOME="$WORK" "$@")
	else
		(cd "$WORK" && env HOME="$WORK" "$@")
	fi
}

package_there()
{
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apt_install()
{
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
		--no-install-recommends -o DPkg::Lock::Timeout=120 "$@" \
		</dev/null >>"$APT_LOG" 2>&1 ||
		{ tail -n 20 "$APT_LOG" >&2; die "could not install: $*"; }
}

# Install what is missing of the named packages and of those that every script
# needs; with BATCHER_NO_INSTALL they are taken to be there.  Debian makes and starts a cluster when the server's package comes
# onto a machine; nobody asked us for that, so it is switched off while our
# own installation runs.
ensure_packages()
{
	local p missing=() conf=/etc/postgresql-common/createcluster.conf

	[ -z "${BATCHER_NO_INSTALL:-}" ] || return 0
	for p in "postgresql-$PG_MAJOR" "postgresql-server-dev-$PG_MAJOR" \
		gcc make libc6-dev zlib1g-dev perl procps util-linux "$@"; do
		package_there "$p" || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0

	note "Installing ${missing[*]} ..."
	APT_LOG=$(mktemp)
	as_root apt-get update -qq -o DPkg::Lock::Timeout=120 \
		</dev/null >>"$APT_LOG" 2>&1 || true
	package_there postgresql-common || apt_install postgresql-common
	if ! package_there "postgresql-$PG_MAJOR" && [ -f $conf ]; then
		as_root cp -p $conf $conf.batcher
		printf 'create_main_cluster = false\n' | as_root tee -a $conf >/dev/null
		# A subshell, so that the file is put back if that dies.
		if (apt_install "${missing[@]}"); then
			as_root mv $conf.batcher $conf
		else
			as_root mv $conf.batcher $conf
			exit 1
		fi
	else
		apt_install "${missing[@]}"
	fi
	rm -f "$APT_LOG"
}

# Make the private folder.
prepare_work()
{
	WORK=$(mktemp -d "${BATCHER_TMP:-/var/tmp}/batcher.XXXXXX")
	chmod 755 "$WORK"
	[ "$(id -u)" -ne 0 ] || chown postgres: "$WORK"
	as_pg test -w "$WORK" ||
		die "the user postgres cannot get at \"$WORK\": set BATCHER_TMP"
	as_pg mkdir "$WORK/sock"
	unset PGDATA PGDATABASE PGUSER PGPORT PGOPTIONS PGSERVICE
	export PGHOST=$WORK/sock PGAPPNAME=batcher_test LC_ALL=C.UTF-8
}

# Stop all servers in the private folder, and remove it.
clean_up()
{
	local f

	[ -n "$WORK" ] && [ -d "$WORK" ] || return 0
	# Folders that vanish while find looks are no news.
	{ find "$WORK" -name postmaster.pid -print 2>/dev/null || true; } |
		while read -r f; do
			as_pg "$PGBIN/pg_ctl" -D "${f%/*}" -m immediate -w stop \
				</dev/null >/dev/null 2>&1 || true
		done
	if [ -n "${BATCHER_KEEP:-}" ]; then
		note "kept: $WORK" >&2
	else
		rm -rf --one-file-system "$WORK"
	fi
}

# Copy PostgreSQL, which finds its files relative to its programs: Debian's, or
# the one that was installed below BATCHER_PREFIX.
prepare_postgres()
{
	local usr=$WORK/usr major=$PG_MAJOR

	if [ -n "${BATCHER_PREFIX:-}" ]; then
		[ -x "$BATCHER_PREFIX/bin/postgres" ] ||
			die "there is no PostgreSQL in \"$BATCHER_PREFIX\""
		as_pg cp -r "$BATCHER_PREFIX" "$usr"
		PGBIN=$usr/bin
	else
		[ -x "/usr/lib/postgresql/$major/bin/postgres" ] ||
			die "there is no PostgreSQL $major here: see BATCHER_PG_MAJOR"
		as_pg mkdir -p "$usr/lib/postgresql" "$usr/share/postgresql" \
			"$usr/include"
		as_pg cp -r "/usr/lib/postgresql/$major" "$usr/lib/postgresql/"
		as_pg cp -r "/usr/share/postgresql/$major" "$usr/share/postgresql/"
		as_pg cp -r /usr/include/postgresql "$usr/include/"
		PGBIN=$usr/lib/postgresql/$major/bin
	fi
	PGREGRESS=$("$PGBIN/pg_config" --pgxs)
	PGREGRESS=${PGREGRESS%makefiles/pgxs.mk}test/regress/pg_regress
}

# copy_source NAME: a fresh copy of the source tree, as $WORK/NAME.
copy_source()
{
	as_pg mkdir "$WORK/$1"
	tar -C "$ROOT" --exclude=./.git --exclude='*.o' --exclude='*.so' \
		--exclude='*.bc' --exclude=tmp_check --exclude=results -cf - . |
		as_pg tar -C "$WORK/$1" --no-same-owner -xf -
}

# build NAME ARGUMENT...: make in $WORK/NAME against the private PostgreSQL.
# What make says goes into $WORK/NAME.log.
build()
{
	local name=$1

	shift
	as_pg make -C "$WORK/$name" -j"$(nproc)" PG_CONFIG="$PGBIN/pg_config" \
		with_llvm=no "$@" </dev/null >>"$WORK/$name.log" 2>&1
}

# build_and_install NAME ARGUMENT...: the same, and die if it fails.
build_and_install()
{
	local name=$1

	shift
	build "$name" "$@" && build "$name" "$@" install ||
		{ tail -n 40 "$WORK/$name.log" >&2; die "$name could not be built"; }
}

# init_server NAME: make the data folder $WORK/NAME, with batcher preloaded.
# Lines for its configuration come on standard input.
init_server()
{
	as_pg "$PGBIN/initdb" -D "$WORK/$1" -U postgres -A trust -E UTF8 \
		--no-locale >"$WORK/initdb.log" 2>&1 </dev/null ||
		{ cat "$WORK/initdb.log" >&2; die "initdb failed"; }
	{
		printf '%s\n' "listen_addresses = ''" \
			"unix_socket_directories = '$WORK/sock'" \
			"shared_preload_libraries = 'batcher'" \
			"cluster_name = ''"
		cat
	} | as_pg tee -a "$WORK/$1/postgresql.conf" >/dev/null
}

start_server()
{
	as_pg "$PGBIN/pg_ctl" -D "$WORK/$1" -l "$WORK/$1.log" -w -t 60 start \
		</dev/null >/dev/null ||
		{ tail -n 30 "$WORK/$1.log" >&2; die "the server did not start"; }
}

stop_server()
{
	as_pg "$PGBIN/pg_ctl" -D "$WORK/$1" -m fast -w -t 120 stop \
		</dev/null >/dev/null
}

# sql [psql's options]: statements from standard input, or by -c; values only.
# An error ends the script.
sql()
{
	as_pg "$PGBIN/psql" -XqAt -v ON_ERROR_STOP=1 -U postgres \
		-d "${DB:-postgres}" "$@"
}

# query STATEMENT: the same for one statement.
query()
{
	sql -c "$1" </dev/null
}

# perform STATEMENT: the same, its result thrown away.
perform()
{
	query "$1" >/dev/null
}

# median: of the numbers on standard input, one a line.
median()
{
	sort -g | awk '{ v[NR] = $1 }
		END { m = int((NR + 1) / 2); n = int(NR / 2) + 1
			  printf "%.1f\n", (v[m] + v[n]) / 2 }'
}

# ratio A B: A / B with three digits behind the point.
ratio()
{
	awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f\n", (b > 0 ? a / b : 0) }'
}
