# bytes_per_row: shared memory that a waiting row takes
#
# M5.9 (memory that grows with what waits)

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
