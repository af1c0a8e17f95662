# added_waiting: how long rows wait for their flush, at a window of 10 ms
#
# M5.1 (10 ms or 857 rows, and hardly more than 10 ms added)
#
# BENCH_RATE: rows a second, with Poisson arrivals.

RATE=${BENCH_RATE:-2000}

# waiting NAME OPTIONS: from when the transaction began, which is a little
# before it committed, to when the flush began.
waiting()
{
	local rows

	sql >/dev/null <<-SQL
		SELECT batch_create_queue('w', flush_sql => \$\$INSERT INTO w
			SELECT extract(epoch FROM now() - batch_enqueued_at) * 1000,
				batch_pos FROM batch\$\$, options => '$2');
	SQL
	# What begins is not measured.
	PGOPTIONS="-c synchronous_commit=off" \
		pgbench_must enqueue -c 8 -j 2 -R "$RATE" -T 2
	perform "SELECT batch_flush('w')"
	perform "TRUNCATE w"
	PGOPTIONS="-c synchronous_commit=off" \
		pgbench_must enqueue -c 8 -j 2 -R "$RATE" -T "$RUN_SECONDS"
	perform "SELECT batch_flush('w')"
	rows=$(query "SELECT count(*) FROM w")
	echo "waiting_rows_$1=$rows"
	echo "waiting_rows_per_batch_$1=$(query "SELECT round(avg(rows), 1) FROM
		(SELECT count(*) AS rows FROM w GROUP BY xmin) b")"
	echo "waiting_p50_ms_$1=$(query "SELECT round(percentile_cont(0.5)
		WITHIN GROUP (ORDER BY ms)::numeric, 2) FROM w")"
	echo "# at most 12"
	echo "waiting_p99_ms_$1=$(query "SELECT round(percentile_cont(0.99)
		WITHIN GROUP (ORDER BY ms)::numeric, 2) FROM w")"
	echo "# less than 0.001"
	echo "waiting_share_late_$1=$(ratio \
		"$(query "SELECT count(*) FROM w WHERE ms > 12")" "$rows")"
	perform "SELECT batch_drop_queue('w')"
	perform "TRUNCATE w"
}

bench_added_waiting()
{
	fresh_server
	perform "CREATE TABLE w (ms float8, pos int)"
	script enqueue <<<"SELECT batch_enqueue('w', :payload);"
	waiting fixed '{"flush_interval": "10 ms", "flush_size": 857}'
	waiting adaptive '{"preset": "large"}'
}
