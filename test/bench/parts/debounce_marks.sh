# debounce_marks: 100,000 marks a second over 10,000 keys, with debounce or not
#
# Sessions enqueue 100 marks a transaction, at a rate of 100,000 marks a second
# in all, into a queue that is not durable, key_policy last: with a debounce of
# 200 ms and max_wait 5 s, or with a window of 200 ms.  The worker's CPU is told
# in percent of one core, and how many rows waited at the end.
#
# BENCH_MARKS   marks a second (100000)

MARKS=${BENCH_MARKS:-100000}

# debounce_marks_run KIND OPTIONS: one run; adds KIND_core, KIND_marks and KIND_waiting.
debounce_marks_run()
{
	local kind=$1 pid before begin after

	perform "SELECT batch_create_queue('marks', 'SELECT count(*) FROM batch',
		options => '{\"durable\": false, \"key_policy\": \"last\", $2}')"
	perform "SELECT batch_enqueue('marks', '1', 'k'), batch_flush('marks')"
	pid=$(query "SELECT worker_pid FROM batcher.status WHERE queue = 'marks'")
	before=$(cpu_seconds "$pid")
	begin=$(date +%s.%N)
	pgbench_must marks -c 2 -j 1 -T "$RUN_SECONDS" -R $((MARKS / 100))
	after=$(cpu_seconds "$pid")
	add "${kind}_core" "$(awk -v b="$before" -v a="$after" -v t0="$begin" \
		-v t1="$(date +%s.%N)" 'BEGIN { printf "%.1f", (a - b) * 100 / (t1 - t0) }')"
	add "${kind}_marks" "$(query "SELECT round(rows_enqueued / $RUN_SECONDS)
		FROM batcher.stat_queue WHERE queue = 'marks'")"
	add "${kind}_waiting" "$(query "SELECT pending FROM batcher.status
		WHERE queue = 'marks'")"
	perform "SELECT batch_drop_queue('marks', true)"
}

bench_debounce_marks()
{
	local run kind

	fresh_server
	script marks <<-SQL
		\set first random(0, 99)
		SELECT batch_enqueue_many('marks', array_fill('1'::jsonb, ARRAY[100]), k.keys)
		FROM keys k WHERE k.id = :first
	SQL
	sql >/dev/null <<-SQL
		CREATE TABLE keys (id int PRIMARY KEY, keys text[]);
		INSERT INTO keys SELECT i, array_agg('key ' || i * 100 + j)
		FROM generate_series(0, 99) i, generate_series(0, 99) j GROUP BY i;
	SQL
	for ((run = 1; run <= RUNS; run++)); do
		debounce_marks_run window '"flush_interval": "200 ms"'
		debounce_marks_run debounce '"debounce": "200 ms", "max_wait": "5 s"'
	done
	for kind in window debounce; do
		echo "debounce_marks_${kind}_core_percent=$(middle "${kind}_core")"
		echo "debounce_marks_${kind}_per_s=$(middle "${kind}_marks")"
		echo "debounce_marks_${kind}_waiting=$(middle "${kind}_waiting")"
	done
	echo "# at most 20"
	echo "debounce_marks_added_percent=$(awk -v a="$(middle debounce_core)" \
		-v b="$(middle window_core)" 'BEGIN { printf "%.1f", a - b }')"
}
