#!/bin/bash
#
# run.sh [--list] [NAME]...: measure batcher on a private server; all by
# default.
#
# Each benchmark is a file NAME.sh in parts/, which defines bench_NAME and is
# sourced here; its first line says what it measures, and --list shows these
# lines.
#
# Figures are lines name=value on standard output; what is going on is told on
# standard error.  A ratio is one of medians of runs in turn, because machines
# are noisy; lines that begin with # say what is wanted.  Nothing fails here
# because a figure is bad.
#
# BENCH_SECONDS   length of a run (5)
# BENCH_RUNS      runs of each kind (5)
# BENCH_MEMORY    batcher.shared_memory_size (2GB)
# What else can be set is said in the parts.

set -euo pipefail
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/tpcb.sh"

RUN_SECONDS=${BENCH_SECONDS:-5}
RUNS=${BENCH_RUNS:-5}
MEMORY=${BENCH_MEMORY:-2GB}
PARTS=$(dirname "$0")/parts

# 100 bytes of JSON.
PAYLOAD='{"id": 12345678, "user": "u-0123456789", "note": "abcdefghijklmnopqrstuvwxyz0123456789abcdefghijkl"}'
SERVERS=0
SERVER=

progress() { printf '%s\n' "$*" >&2; }

# fresh_server LINE...: a server with these lines in its configuration, and
# both extensions in the database postgres.
fresh_server()
{
	end_server
	SERVERS=$((SERVERS + 1))
	SERVER=data$SERVERS
	{
		printf '%s\n' "shared_buffers = 512MB" "max_wal_size = 16GB" \
			"checkpoint_timeout = 1h" "autovacuum = off" \
			"batcher.shared_memory_size = '$MEMORY'"
		printf '%s\n' "$@"
	} | init_server $SERVER
	start_server $SERVER
	DB=postgres
	perform "CREATE EXTENSION batcher"
	perform "CREATE EXTENSION empty"
}

end_server()
{
	[ -n "$SERVER" ] || return 0
	stop_server $SERVER
	rm -rf --one-file-system "${WORK:?}/$SERVER"
	SERVER=
}

# script NAME: a script for pgbench, from standard input.
script() { as_pg tee "$WORK/$1.sql" >/dev/null; }

# pgbench_run SCRIPT OPTION...: run it, prepared; what it says is in
# $WORK/pgbench.log.
pgbench_run()
{
	local name=$1

	shift
	as_pg "$PGBIN/pgbench" -n -M prepared -D payload="$PAYLOAD" "$@" \
		-f "$WORK/$name.sql" -U postgres postgres \
		</dev/null >"$WORK/pgbench.log" 2>&1
}

# The same, where a failure ends everything.
pgbench_must()
{
	pgbench_run "$@" ||
		{ tail -n 20 "$WORK/pgbench.log" >&2; die "pgbench failed"; }
}

# add NAME VALUE: keep a measured value; middle NAME is the median of all.
declare -A SERIES
add() { SERIES[$1]+=$2$'\n'; progress "  $1: $2"; }
middle() { printf %s "${SERIES[$1]}" | median; }

# add_tps NAME SCRIPT CLIENTS: run it, and keep the transactions a second.
add_tps()
{
	pgbench_must "$2" -c "$3" -j 2 -T "$RUN_SECONDS"
	add "$1" "$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$WORK/pgbench.log")"
}

# cpu_seconds PID: how long this process has been on a CPU.
cpu_seconds()
{
	awk '{ print $1 / 1e9 }' "/proc/$1/schedstat"
}

# backend_seconds: how long the sessions that have ended were on a CPU, as far
# as their parent, the postmaster, knows.
backend_seconds()
{
	awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($14 + $15) / hz }' \
		"/proc/$(head -n 1 "$WORK/$SERVER/postmaster.pid")/stat"
}

# add_tps_cpu NAME SCRIPT CLIENTS: as add_tps; and keep the microseconds that a
# transaction takes on a CPU in the server, which other load disturbs less.
add_tps_cpu()
{
	local before

	before=$(backend_seconds)
	add_tps "${1}_tps" "$2" "$3"
	add "${1}_cpu" "$(awk -v b="$before" -v a="$(backend_seconds)" \
		-v n="$(sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p' \
			"$WORK/pgbench.log")" 'BEGIN { printf "%.1f", (a - b) * 1e6 / n }')"
}

# measure PID STATEMENT...: sets WALL and CPU, how long the statements took in
# a session of their own, and for how long the process PID was on a CPU then
# (empty: the session's own process).
measure()
{
	local pid=$1 before=0 out

	shift
	[ -z "$pid" ] || before=$(cpu_seconds "$pid")
	out=$(sql <<-SQL
		SELECT clock_timestamp() AS t0,
			split_part(pg_read_file('/proc/self/schedstat'), ' ', 1) AS c0 \\gset
		\\o /dev/null
		$*
		\\o
		SELECT extract(epoch FROM clock_timestamp() - :'t0'::timestamptz),
			(split_part(pg_read_file('/proc/self/schedstat'), ' ', 1)::numeric
			 - :c0) / 1e9;
	SQL
	)
	WALL=${out%%|*}
	CPU=${out#*|}
	[ -z "$pid" ] || CPU=$(cpu_seconds "$pid" |
		awk -v b="$before" '{ print $1 - b }')
}

# enqueue_rows QUEUE ROWS PER: fill a paused queue, PER rows a transaction.
# How durable the enqueuing transactions are does not matter here.
enqueue_rows()
{
	local clients=32

	[ "$3" -eq 1 ] || clients=4
	if [ "$3" -eq 1 ]; then
		script fill <<<"SELECT batch_enqueue('$1', :payload);"
	else
		script fill <<-SQL
			SELECT batch_enqueue_many('$1', array_fill(:payload::jsonb, ARRAY[$3]));
		SQL
	fi
	PGOPTIONS="-c synchronous_commit=off" \
		pgbench_must fill -c $clients -j 2 -t $(($2 / $3 / clients))
}

if [ "${1:-}" = --list ]; then
	cat "$PARTS"/*.sh | sed -n 's/^# \([a-z_]*: .*\)/\1/p'
	exit
fi
[ $# -gt 0 ] || set -- $(cd "$PARTS" && printf '%s\n' *.sh | sed 's/\.sh$//')
for name; do
	[ -e "$PARTS/$name.sh" ] || die "unknown benchmark \"$name\": see --list"
	. "$PARTS/$name.sh"
done

ensure_packages >&2
prepare_work
prepare_postgres
copy_source bench
build_and_install bench
as_pg cp -r "$WORK/bench/test/bench/empty" "$WORK/empty"
build_and_install empty
echo "cpus=$(nproc)"
for name; do
	progress "$name ..."
	"bench_$name"
done
end_server
