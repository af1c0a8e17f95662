# memory_flat: a long run: the worker's memory, the spool's size
#
# M5.9 (bounded memory)
#
# BENCH_ROWS: rows in all.

LONG_ROWS=${BENCH_ROWS:-10000000}

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
