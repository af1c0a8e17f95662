# slow_queue_delay: how much a statement of 5 s delays another queue

# quick_p99: the 99th percentile of the time from the commit of a row to its
# flush, in ms, of a queue with a window of 10 ms.
quick_p99()
{
	perform "TRUNCATE t"
	script quick <<<"SELECT batch_enqueue('q', jsonb_build_object('at',
		extract(epoch FROM clock_timestamp())));"
	PGOPTIONS="-c synchronous_commit=off" \
		pgbench_must quick -c 1 -R 50 -T "$1"
	perform "SELECT batch_flush('q')"
	query "SELECT round((percentile_cont(0.99) WITHIN GROUP (ORDER BY late)
		* 1000)::numeric, 1) FROM t"
}

bench_slow_queue_delay()
{
	local i seconds=$((RUN_SECONDS > 10 ? RUN_SECONDS : 10))

	fresh_server "batcher.max_workers = 4"
	perform "CREATE TABLE t (late float8)"
	perform "SELECT batch_create_queue('q', \$\$INSERT INTO t
		SELECT extract(epoch FROM clock_timestamp()) -
			(payload->>'at')::float8 FROM batch\$\$,
		options => '{\"flush_interval\": \"10 ms\"}')"
	perform "SELECT batch_create_queue('s', 'SELECT pg_sleep(5)',
		options => '{\"flush_interval\": \"10 ms\"}')"
	for ((i = 0; i < RUNS; i++)); do
		add alone_p99 "$(quick_p99 "$seconds")"
		# one flush after the other
		script slow <<<"SELECT batch_enqueue('s', '{}');"
		pgbench_run slow -c 1 -R 10 -T "$((seconds + 2))" &
		add beside_p99 "$(quick_p99 "$seconds")"
		wait
		perform "SELECT batch_flush('s', '1 min')"
	done
	echo "# at most 10 more"
	echo "slow_queue_delay=$(awk -v a="$(middle alone_p99)" \
		-v b="$(middle beside_p99)" 'BEGIN { print b - a }')"
}
