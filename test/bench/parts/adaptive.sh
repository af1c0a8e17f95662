# adaptive: size of batches and window under a changing load, with a picture
#
# BENCH_SVG: the file for the picture (adaptive.svg in the current folder).

SVG=${BENCH_SVG:-$PWD/adaptive.svg}

# draw_adaptive: samples on standard input, as t|size|window|arrivals|waiting,
# and changes of the load as t||text; a picture in SVG on standard output.
draw_adaptive()
{
	awk -F'|' '
	function panel(top, title, value, most,   i, x, y, points)
	{
		printf "<text x=\"10\" y=\"%d\">%s (to %d)</text>\n", top - 5, title, most
		printf "<rect x=\"10\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#999\"/>\n", top, W, H
		for (i = 1; i <= n; i++) {
			x = 10 + t[i] / end * W
			y = top + H - (most > 0 ? value[i] / most * (H - 4) : 0)
			points = points sprintf("%.1f,%.1f ", x, y)
		}
		printf "<polyline points=\"%s\" fill=\"none\" stroke=\"#06c\"/>\n", points
	}
	$2 == "" { m++; mt[m] = $1; mtext[m] = $3; next }
	{
		n++; t[n] = $1; a[n] = $2; b[n] = $3; c[n] = $4; d[n] = $5
		if (a[n] > amax) amax = a[n]
		if (b[n] > bmax) bmax = b[n]
		if (c[n] > cmax) cmax = c[n]
		if (d[n] > dmax) dmax = d[n]
		end = t[n]
	}
	END {
		W = 780; H = 120
		printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"800\" height=\"660\" font-family=\"sans-serif\" font-size=\"12\">\n"
		printf "<rect width=\"800\" height=\"660\" fill=\"white\"/>\n"
		for (i = 1; i <= m; i++) {
			x = 10 + mt[i] / end * W
			printf "<line x1=\"%.1f\" y1=\"22\" x2=\"%.1f\" y2=\"640\" stroke=\"#c60\" stroke-dasharray=\"3\"/>\n", x, x
			printf "<text x=\"%.1f\" y=\"14\" fill=\"#c60\">%s</text>\n", x + 2, mtext[i]
		}
		panel(50, "current_batch_size, rows", a, amax)
		panel(200, "current_window, ms", b, bmax)
		panel(350, "arrival_rate, rows a second", c, cmax)
		panel(500, "pending, rows", d, dmax)
		printf "<text x=\"10\" y=\"652\">%.0f seconds</text>\n</svg>\n", end
	}'
}

# phase TEXT RATE COST: for a while so many rows a second, each of which takes
# so many microseconds to flush.
phase()
{
	perform "UPDATE cost SET us = $3"
	perform "INSERT INTO sample (at, note) VALUES (clock_timestamp(), '$1')"
	PGOPTIONS="-c synchronous_commit=off" pgbench_must many -c 4 -j 2 \
		-R $(($2 / 20)) -T "$RUN_SECONDS"
}

bench_adaptive()
{
	local sampler

	fresh_server
	sql >/dev/null <<-SQL
		CREATE TABLE cost (us float8);
		INSERT INTO cost VALUES (20);
		CREATE TABLE sample (at timestamptz, size int, "window" float8,
			arrivals float8, waiting bigint, note text, reason text);
		CREATE FUNCTION flush_it(rows bigint) RETURNS void LANGUAGE sql AS
			'SELECT pg_sleep(0.005 + rows * us / 1e6) FROM public.cost';
		CREATE PROCEDURE take_samples() LANGUAGE plpgsql AS \$\$
		BEGIN
			LOOP
				INSERT INTO sample SELECT clock_timestamp(), current_batch_size,
					extract(epoch FROM current_window) * 1000, arrival_rate,
					pending, NULL, size_reason FROM batcher.status;
				COMMIT;
				EXIT WHEN EXISTS (SELECT FROM sample WHERE note = 'end');
				PERFORM pg_sleep(0.05);
			END LOOP;
		END \$\$;
		SELECT batch_create_queue('a', 'SELECT flush_it(count(*)) FROM batch',
			options => '{"preset": "medium", "flush_size": 100, "flush_interval": "50 ms", "latency_target": "50 ms"}');
	SQL
	script many <<-SQL
		SELECT batch_enqueue_many('a', array_fill('1'::jsonb, '{20}'));
	SQL
	sql -c "CALL take_samples()" >/dev/null </dev/null &
	sampler=$!
	phase "few rows" 400 20
	phase "many rows" 15000 20
	phase "a slow statement" 4000 200
	phase "many rows again" 15000 20
	phase "few again" 400 20
	perform "SELECT batch_flush('a', '10 min')"
	perform "INSERT INTO sample (at, note) VALUES (clock_timestamp(), 'end')"
	wait $sampler || die "sampling failed"
	query "SELECT concat_ws('|',
			round(extract(epoch FROM at - min(at) OVER ()), 2),
			coalesce(size::text, ''), coalesce(round(\"window\"::numeric, 2)::text, note),
			round(arrivals::numeric), waiting)
		FROM sample WHERE note IS DISTINCT FROM 'end' ORDER BY at" | draw_adaptive >"$SVG"
	echo "adaptive_size_least=$(query "SELECT min(size) FROM sample")"
	echo "adaptive_size_largest=$(query "SELECT max(size) FROM sample")"
	echo "adaptive_changes=$(query "SELECT count(*) FROM (SELECT size <> lag(size)
		OVER (ORDER BY at) AS c FROM sample WHERE size > 0) s WHERE c")"
	echo "adaptive_rows_per_batch=$(query "SELECT round(avg_batch_size::numeric, 1)
		FROM batcher.stat_queue")"
	query "SELECT DISTINCT ON (substring(reason FOR 40))
		'# ' || reason FROM sample WHERE reason LIKE '% from %' LIMIT 5"
	echo "adaptive_svg=$SVG"
}
