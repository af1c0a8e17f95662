# idle: WAL, transaction ids and wake-ups of idle queues
#
# BENCH_IDLE_SECONDS: length of the idle time.

IDLE_SECONDS=${BENCH_IDLE_SECONDS:-30}

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
