# lanes_ratio: rows a second with two lanes, to one

# lanes_drain LANES: rows a second of a statement that computes, from a backlog.
lanes_drain()
{
	local rows=${BENCH_LANES_ROWS:-4000}

	perform "SELECT batch_create_queue('l', \$\$INSERT INTO t
		SELECT (payload->>'n')::int, (SELECT count(*) FROM
			generate_series(1, 5000 + (payload->>'n')::int % 2) g
			WHERE md5(g::text) > 'ff') FROM batch\$\$,
		options => '{\"lanes\": $1, \"flush_interval\": \"10 ms\",
			\"max_batch_size\": 50, \"flush_timeout\": \"1 h\"}')"
	# the workers that it needs come with the first rows
	perform "SELECT count(batch_enqueue('l', jsonb_build_object('n', i), i::text))
		FROM generate_series(1, 500) i"
	perform "SELECT batch_flush('l', '1 h')"
	perform "SELECT batch_pause('l')"
	perform "SELECT count(batch_enqueue('l', jsonb_build_object('n', i), i::text))
		FROM generate_series(1, $rows) i"
	measure "" "SELECT batch_resume('l'); SELECT batch_flush('l', '1 h');"
	add "lanes_$1" "$(awk -v n="$rows" -v s="$WALL" 'BEGIN { printf "%.1f", n / s }')"
	perform "SELECT batch_drop_queue('l', force => true)"
}

# What the processors give: how many times as fast two sessions compute as one.
# Two that share a core do not give 2.
bench_lanes_ratio()
{
	local i n

	fresh_server "batcher.max_workers = 4"
	perform "CREATE TABLE t (n int, m bigint)"
	script compute <<<"SELECT count(*) FROM generate_series(1, 5000) g
		WHERE md5(g::text) > 'ff';"
	for ((i = 0; i < RUNS; i++)); do
		for n in 1 2; do
			lanes_drain $n
			add_tps "sessions_$n" compute $n
		done
	done
	echo "# at least 1.6, on two processors that do nothing else"
	echo "lanes_ratio=$(ratio "$(middle lanes_2)" "$(middle lanes_1)")"
	echo "sessions_ratio=$(ratio "$(middle sessions_2)" "$(middle sessions_1)")"
}
