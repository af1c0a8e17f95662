#!/bin/bash
#
# run.sh [NAME]...: measure batcher on a private server; all by default.
#
#   enqueue_volatile_ratio  an enqueue, not durable, to an empty C function
#   enqueue_durable_ratio   an enqueue, durable, to the least durable writes
#   flush_insert_ratio      flushing waiting rows to one INSERT ... SELECT
#   tpcb_ratio              pgbench's transaction with and without a queue
#   bytes_per_row           shared memory that a waiting row takes
#   idle                    WAL, transaction ids and wake-ups of idle queues
#   memory_flat             a long run: the worker's memory, the spool's size
#
# Figures are lines name=value on standard output; what is going on is told on
# standard error.  A ratio is one of medians of runs in turn, because machines
# are noisy; lines that begin with # say what is wanted.  Nothing fails here
# because a figure is bad.
#
# BENCH_SECONDS   length of a run (5)
# BENCH_RUNS      runs of each kind (5)
# BENCH_MEMORY    batcher.shared_memory_size (2GB)
# BENCH_FLUSH_ROWS rows that a measured flush finds waiting (200000)
# BENCH_IDLE_SECONDS  length of the idle time (30)
# BENCH_ROWS      rows of memory_flat (10000000)

set -euo pipefail
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/tpcb.sh"

RUN_SECONDS=${BENCH_SECONDS:-5}
RUNS=${BENCH_RUNS:-5}
MEMORY=${BENCH_MEMORY:-2GB}
FLUSH_ROWS=${BENCH_FLUSH_ROWS:-200000}
IDLE_SECONDS=${BENCH_IDLE_SECONDS:-30}
LONG_ROWS=${BENCH_ROWS:-10000000}

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

# -- enqueue_volatile_ratio

bench_enqueue_volatile_ratio()
{
	local clients run

	fresh_server
	perform "CREATE TABLE v (payload jsonb)"
	perform "SELECT batch_create_queue('paused',
		flush_sql => 'INSERT INTO v SELECT payload FROM batch',
		options => '{\"durable\": false}')"
	perform "SELECT batch_create_queue('busy',
		flush_sql => 'INSERT INTO v SELECT payload FROM batch',
		options => '{\"durable\": false}')"
	perform "SELECT batch_pause('paused')"
	script empty <<<"SELECT empty_enqueue('paused', :payload);"
	script paused <<<"SELECT batch_enqueue('paused', :payload);"
	script busy <<<"SELECT batch_enqueue('busy', :payload);"
	for clients in 32 1; do
		for ((run = 1; run <= RUNS; run++)); do
			add_tps empty_tps_$clients empty $clients
			add_tps paused_tps_$clients paused $clients
			perform "SELECT batch_purge('paused')"
			add_tps busy_tps_$clients busy $clients
			perform "SELECT batch_flush('busy', '5 min')"
			perform "TRUNCATE v"
		done
	done
	for clients in 32 1; do
		echo "empty_tps_$clients=$(middle empty_tps_$clients)"
		echo "enqueue_volatile_tps_paused_$clients=$(middle paused_tps_$clients)"
		echo "enqueue_volatile_tps_busy_$clients=$(middle busy_tps_$clients)"
	done
	echo "# at least 0.95 paused, 0.85 busy"
	for clients in 32 1; do
		echo "enqueue_volatile_ratio_paused_$clients=$(ratio \
			"$(middle paused_tps_$clients)" "$(middle empty_tps_$clients)")"
		echo "enqueue_volatile_ratio_busy_$clients=$(ratio \
			"$(middle busy_tps_$clients)" "$(middle empty_tps_$clients)")"
	done
}

# -- enqueue_durable_ratio

bench_enqueue_durable_ratio()
{
	local run pid before rows

	fresh_server
	perform "CREATE TABLE d (payload jsonb)"
	perform "CREATE TABLE plain (payload jsonb)"
	perform "SELECT batch_create_queue('durable',
		flush_sql => 'INSERT INTO d SELECT payload FROM batch')"
	script message <<<"SELECT pg_logical_emit_message(true, 'p', :payload::text);"
	script insert <<<"INSERT INTO plain VALUES (:payload);"
	script durable <<<"SELECT batch_enqueue('durable', :payload);"
	for ((run = 1; run <= RUNS; run++)); do
		add_tps_cpu message message 32
		add_tps_cpu insert insert 32
		pid=$(query "SELECT pid FROM batcher.worker WHERE database = 'postgres'
			LIMIT 1")
		before=$(cpu_seconds "$pid")
		add_tps_cpu durable durable 32
		perform "SELECT batch_flush('durable', '5 min')"
		rows=$(query "SELECT count(*) FROM d")
		add worker_cpu "$(awk -v b="$before" -v a="$(cpu_seconds "$pid")" \
			-v n="$rows" 'BEGIN { printf "%.2f", (a - b) * 1e6 / n }')"
		perform "TRUNCATE d, plain"
	done
	echo "message_tps=$(middle message_tps)"
	echo "insert_tps=$(middle insert_tps)"
	echo "enqueue_durable_tps=$(middle durable_tps)"
	echo "# at least 0.95 to a message, 1.0 to an insert"
	echo "enqueue_durable_ratio_message=$(ratio \
		"$(middle durable_tps)" "$(middle message_tps)")"
	echo "enqueue_durable_ratio_insert=$(ratio \
		"$(middle durable_tps)" "$(middle insert_tps)")"
	echo "message_cpu_us=$(middle message_cpu)"
	echo "insert_cpu_us=$(middle insert_cpu)"
	echo "enqueue_durable_cpu_us=$(middle durable_cpu)"
	echo "enqueue_durable_worker_cpu_us=$(middle worker_cpu)"
}

# -- flush_insert_ratio

# The target is a table as people have them: columns and a primary key.
FLUSH_COLUMNS="SELECT (payload->>'id')::int, payload->>'user', payload->>'note'"

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

# measure_flush NAME QUEUE PER WANTED: one kind.  By the clock, and, because
# that is noisy where the disk or the processors are shared, by the time on a
# CPU too.
measure_flush()
{
	local name=$1 queue=$2 per=$3 run rows pid

	for ((run = 1; run <= RUNS; run++)); do
		perform "TRUNCATE f, g"
		# Here, and not between enqueuing and flushing: rows wait for moments as
		# a rule, so the flush seldom is the first to change a page of the spool.
		perform "CHECKPOINT"
		perform "SELECT batch_pause('$queue')"
		enqueue_rows "$queue" "$FLUSH_ROWS" "$per"
		rows=$(query "SELECT pending FROM batcher.status WHERE queue = '$queue'")
		pid=$(query "SELECT pid FROM batcher.worker WHERE database = 'postgres'
			ORDER BY worker.queue = '$queue' DESC NULLS LAST LIMIT 1")
		measure "$pid" "SELECT batch_resume('$queue');
			SELECT batch_flush('$queue', '10 min');"
		[ "$(query "SELECT count(*) FROM f")" -eq "$rows" ] ||
			die "$name: $rows rows waited, but table f has another number"
		add "${name}_flush" "$(ratio "$rows" "$WALL")"
		add "${name}_flush_cpu" "$(ratio "$rows" "$CPU")"
		measure "" "INSERT INTO g (id, person, note) $FLUSH_COLUMNS FROM source;"
		add "${name}_insert" "$(ratio "$FLUSH_ROWS" "$WALL")"
		add "${name}_insert_cpu" "$(ratio "$FLUSH_ROWS" "$CPU")"
	done
	echo "flush_rows_per_s_$name=$(middle "${name}_flush")"
	echo "insert_rows_per_s_$name=$(middle "${name}_insert")"
	echo "flush_rows_spilled_$name=$(query "SELECT rows_spilled
		FROM batcher.stat_queue WHERE queue = '$queue'")"
	echo "# at least $4"
	echo "flush_insert_ratio_$name=$(ratio \
		"$(middle "${name}_flush")" "$(middle "${name}_insert")")"
	echo "flush_insert_cpu_ratio_$name=$(ratio \
		"$(middle "${name}_flush_cpu")" "$(middle "${name}_insert_cpu")")"
}

bench_flush_insert_ratio()
{
	fresh_server
	sql >/dev/null <<-SQL
		CREATE TABLE f (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
			id int, person text, note text);
		CREATE TABLE g (LIKE f INCLUDING ALL);
		CREATE TABLE source AS SELECT '$PAYLOAD'::jsonb AS payload
		FROM generate_series(1, $FLUSH_ROWS);
		VACUUM ANALYZE source;
		SELECT batch_create_queue('durable',
			flush_sql => \$\$INSERT INTO f (id, person, note) $FLUSH_COLUMNS FROM batch\$\$,
			options => '{"max_batch_size": 1000}');
		SELECT batch_create_queue('volatile',
			flush_sql => \$\$INSERT INTO f (id, person, note) $FLUSH_COLUMNS FROM batch\$\$,
			options => '{"max_batch_size": 1000, "durable": false}');
	SQL
	measure_flush durable_1000 durable 1000 0.9
	measure_flush volatile_1 volatile 1 0.9
	measure_flush durable_1 durable 1 0.5
}

# -- tpcb_ratio

bench_tpcb_ratio()
{
	local run bad

	fresh_server "batcher.shared_memory_size = 64MB"
	DB=tpcb
	DB=postgres perform "CREATE DATABASE tpcb"
	tpcb_set_up
	for ((run = 1; run <= RUNS; run++)); do
		tpcb_run plain "$RUN_SECONDS"
		add tpcb_plain "$TPCB_TPS"
		tpcb_run batched "$RUN_SECONDS"
		add tpcb_batched "$TPCB_TPS"
	done
	bad=$(tpcb_balances | awk -F'|' '$2 != $3 || $4 != 0' | wc -l)
	echo "tpcb_plain_tps=$(middle tpcb_plain)"
	echo "tpcb_batched_tps=$(middle tpcb_batched)"
	echo "tpcb_wrong_tables=$bad"
	echo "# at least 3"
	echo "tpcb_ratio=$(ratio "$(middle tpcb_batched)" "$(middle tpcb_plain)")"
}

# -- bytes_per_row

bytes_per_row()
{
	query "SELECT round(pending_bytes::numeric / nullif(pending, 0), 1)
		FROM batcher.status WHERE queue = '$1'"
}

# Two ways: what the queue says that its rows take, and how many rows the
# whole area holds until it is full, which counts all that is lost in it.
bench_bytes_per_row()
{
	local per held area=$((64 * 1024 * 1024)) wanted

	fresh_server "batcher.shared_memory_size = 64MB"
	perform "SELECT batch_create_queue('m', options =>
		'{\"durable\": false, \"when_full\": \"error\"}')"
	perform "SELECT batch_create_queue('d')"
	perform "SELECT batch_pause()"
	echo "payload_bytes_text=${#PAYLOAD}"
	echo "payload_bytes_jsonb=$(query "SELECT pg_column_size('$PAYLOAD'::jsonb)")"
	for per in 1 100; do
		wanted=200
		[ $per -eq 1 ] || wanted=140
		enqueue_rows m 100000 $per
		echo "# at most $wanted"
		echo "bytes_per_row_$per=$(bytes_per_row m)"
		perform "SELECT batch_purge('m')"
		enqueue_rows d 100000 $per
		echo "bytes_per_row_durable_$per=$(bytes_per_row d)"
		perform "SELECT batch_purge('d')"
		# Until each client has met an error.
		enqueue_rows m 3200 $per
		pgbench_run fill -c 32 -j 2 -T 120 || true
		grep -q 'queue "m" is full\|53400' "$WORK/pgbench.log" ||
			progress "  (not full after two minutes)"
		held=$(query "SELECT pending FROM batcher.status WHERE queue = 'm'")
		progress "  rows held by 64 MB, $per in a transaction: $held"
		echo "bytes_per_row_full_$per=$(ratio $area "$held")"
		perform "SELECT batch_purge('m')"
	done
}

# -- idle

# How often has the process with this pid gone to sleep?  Each wake-up ends in
# that.
sleeps()
{
	[ -e "/proc/$1/status" ] || die "the worker $1 has left"
	sed -n 's/^voluntary_ctxt_switches:[^0-9]*//p' "/proc/$1/status"
}

bench_idle()
{
	local i pids pid lsn xid worker=0 launcher=0 kind after
	declare -A before kinds

	fresh_server "batcher.shared_memory_size = 64MB"
	perform "CREATE TABLE i (payload jsonb)"
	for ((i = 1; i <= 10; i++)); do
		perform "SELECT batch_create_queue('idle$i',
			flush_sql => 'INSERT INTO i SELECT payload FROM batch',
			options => jsonb_build_object('durable', $i % 2 = 0))"
		perform "SELECT batch_enqueue('idle$i', '$PAYLOAD')"
	done
	perform "SELECT batch_flush()"
	[ "$(query "SELECT count(*) FROM i")" -eq 10 ] || die "ten rows were wanted"
	# What the server itself does after writes must be over: a checkpoint, and
	# the background writer's snapshot 15 s after the last write.
	sleep 2
	perform "CHECKPOINT"
	sleep 20
	pids=$(query "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'batcher%'")
	for pid in $pids; do
		kinds[$pid]=$(query "SELECT CASE WHEN backend_type LIKE '%launcher%'
			THEN 'launcher' ELSE 'worker' END
			FROM pg_stat_activity WHERE pid = $pid")
	done
	lsn=$(query "SELECT pg_current_wal_insert_lsn()")
	xid=$(query "SELECT pg_snapshot_xmax(pg_current_snapshot())")
	for pid in $pids; do before[$pid]=$(sleeps "$pid"); done
	sleep "$IDLE_SECONDS"
	for pid in $pids; do
		kind=${kinds[$pid]}
		after=$(sleeps "$pid")
		progress "  $kind $pid: $((after - before[$pid])) wake-ups"
		if [ "$kind" = worker ]; then
			worker=$((worker + after - before[$pid]))
		else
			launcher=$((launcher + after - before[$pid]))
		fi
	done
	echo "idle_seconds=$IDLE_SECONDS"
	echo "# 0"
	echo "idle_wal_bytes=$(query "SELECT pg_current_wal_insert_lsn() - '$lsn'::pg_lsn")"
	echo "# 0"
	echo "idle_xids=$(query "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint - $xid")"
	echo "# at most one in ten seconds"
	echo "idle_wakeups_worker=$worker"
	echo "idle_wakeups_launcher=$launcher"
}

# -- memory_flat

# A line of /proc/PID/status, in kB, of the worker of this database.
worker_memory()
{
	local pid

	pid=$(query "SELECT worker_pid FROM batcher.status WHERE queue = 'long'")
	[ -n "$pid" ] || pid=$(query "SELECT pid FROM batcher.worker
		WHERE database = 'postgres' LIMIT 1")
	sed -n "s/^$1:[^0-9]*\([0-9]*\) kB/\1/p" "/proc/$pid/status"
}

bench_memory_flat()
{
	local i steps=10 start end first= last

	fresh_server "batcher.shared_memory_size = 64MB"
	sql >/dev/null <<-SQL
		CREATE TABLE counted (rows bigint);
		SELECT batch_create_queue('long', flush_sql =>
			'INSERT INTO counted SELECT count(payload) FROM batch');
	SQL
	script long <<-SQL
		SELECT batch_enqueue_many('long', array_fill(:payload::jsonb, ARRAY[100]));
	SQL
	start=$(date +%s.%N)
	for ((i = 1; i <= steps; i++)); do
		PGOPTIONS="-c synchronous_commit=off" pgbench_must long -c 8 -j 2 \
			-t $((LONG_ROWS / 100 / 8 / steps))
		perform "SELECT batch_flush('long', '10 min')"
		last=$(worker_memory RssAnon)
		[ -n "$first" ] || first=$last
		echo "worker_private_kb_$i=$last"
		echo "worker_resident_kb_$i=$(worker_memory VmRSS)"
		echo "spool_bytes_$i=$(query "SELECT pg_total_relation_size('batcher.spool')")"
		progress "  step $i of $steps"
	done
	end=$(date +%s.%N)
	echo "memory_rows_enqueued=$((LONG_ROWS / 100 / 8 / steps * steps * 100 * 8))"
	echo "memory_rows_flushed=$(query "SELECT sum(rows) FROM counted")"
	echo "memory_rows_spilled=$(query "SELECT rows_spilled FROM batcher.stat_queue")"
	echo "memory_rows_per_s=$(awk -v n="$LONG_ROWS" -v s="$start" -v e="$end" \
		'BEGIN { printf "%.0f", n / (e - s) }')"
	echo "# about 1"
	echo "memory_flat=$(ratio "$last" "$first")"
	# The worker vacuums its table when it is idle.
	sleep 10
	echo "spool_bytes_at_end=$(query "SELECT pg_total_relation_size('batcher.spool')")"
}

ALL="enqueue_volatile_ratio enqueue_durable_ratio flush_insert_ratio tpcb_ratio
	bytes_per_row idle memory_flat"
[ $# -gt 0 ] || set -- $ALL
set -- "${@/#idle_*/idle}"
for name; do
	[[ " $(echo $ALL) " == *" $name "* ]] || die "unknown benchmark \"$name\""
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
