# tpcb.sh: the workload that demo.sh shows and bench/run.sh measures.  Sourced
# after lib.sh.
#
# pgbench's TPC-B-like transaction changes the balances of an account, a
# teller and a branch, and adds a row to a history.  At scale 1 there is one
# branch row, and all clients queue for it.  The other form of the transaction
# enqueues what it would have added to teller and branch.

TPCB_CLIENTS=32

# What a flush does with a batch: two updates in one statement, each row
# touched once however many rows of the batch are about it.
TPCB_FLUSH_SQL="
    WITH d AS (
        SELECT (payload->>'bid')::int AS bid, (payload->>'tid')::int AS tid,
               sum((payload->>'delta')::int) AS delta
        FROM batch GROUP BY 1, 2),
    b AS (
        UPDATE pgbench_branches SET bbalance = bbalance + s.delta
        FROM (SELECT bid, sum(delta) AS delta FROM d GROUP BY bid) s
        WHERE pgbench_branches.bid = s.bid)
    UPDATE pgbench_tellers SET tbalance = tbalance + s.delta
    FROM (SELECT tid, sum(delta) AS delta FROM d GROUP BY tid) s
    WHERE pgbench_tellers.tid = s.tid"

TPCB_ENQUEUE="SELECT batch_enqueue('deltas', jsonb_build_object(
        'bid', :bid::int, 'tid', :tid::int, 'delta', :delta::int));"

# The database $DB with pgbench's tables, the queue, and the script.
tpcb_set_up()
{
	as_pg "$PGBIN/pgbench" -i -s 1 -q -U postgres "$DB" >/dev/null 2>&1 \
		</dev/null
	sql >/dev/null <<-SQL
		CREATE EXTENSION batcher;
		SELECT batch_create_queue('deltas', flush_sql => \$\$$TPCB_FLUSH_SQL\$\$,
			options => '{"notify_channel": "deltas"}');
	SQL
	as_pg tee "$WORK/enqueue.sql" >/dev/null <<-SQL
		\\set aid random(1, 100000)
		\\set bid 1
		\\set tid random(1, 10)
		\\set delta random(-5000, 5000)
		BEGIN;
		UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
		SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
		$TPCB_ENQUEUE
		INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
		VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
		END;
	SQL
}

# tpcb_run plain|batched SECONDS: sets TPCB_TPS, and TPCB_COUNT, the number
# of transactions.  The time that the last flush takes after the clients have
# gone is counted in: tps is of work that is done.
tpcb_run()
{
	local script=-btpcb-like start end

	[ "$1" = plain ] || script=-f$WORK/enqueue.sql
	perform "VACUUM pgbench_branches, pgbench_tellers"
	start=$(date +%s.%N)
	as_pg "$PGBIN/pgbench" -n -M prepared -c $TPCB_CLIENTS -j 2 -T "$2" \
		"$script" -U postgres "$DB" </dev/null >"$WORK/pgbench.log" 2>&1 ||
		{ tail -n 20 "$WORK/pgbench.log" >&2; die "pgbench failed"; }
	perform "SELECT batch_flush('deltas', '5 min')"
	end=$(date +%s.%N)
	TPCB_COUNT=$(sed -n 's/^number of transactions actually processed: //p' \
		"$WORK/pgbench.log")
	TPCB_COUNT=${TPCB_COUNT%%/*}
	TPCB_TPS=$(awk -v n="$TPCB_COUNT" -v s="$start" -v e="$end" \
		'BEGIN { printf "%.0f\n", n / (e - s) }')
}

# One line for each table: its name, the sum of its balances, what the history
# says, and whether any single balance differs from the history.
tpcb_balances()
{
	query "
	SELECT 'accounts', sum(abalance), (SELECT sum(delta) FROM pgbench_history),
	       count(*) FILTER (WHERE abalance IS DISTINCT FROM coalesce(d, 0))
	FROM pgbench_accounts LEFT JOIN (SELECT aid, sum(delta) AS d
	     FROM pgbench_history GROUP BY aid) h USING (aid)
	UNION ALL
	SELECT 'tellers', sum(tbalance), (SELECT sum(delta) FROM pgbench_history),
	       count(*) FILTER (WHERE tbalance IS DISTINCT FROM coalesce(d, 0))
	FROM pgbench_tellers LEFT JOIN (SELECT tid, sum(delta) AS d
	     FROM pgbench_history GROUP BY tid) h USING (tid)
	UNION ALL
	SELECT 'branches', sum(bbalance), (SELECT sum(delta) FROM pgbench_history),
	       count(*) FILTER (WHERE bbalance IS DISTINCT FROM coalesce(d, 0))
	FROM pgbench_branches LEFT JOIN (SELECT bid, sum(delta) AS d
	     FROM pgbench_history GROUP BY bid) h USING (bid)"
}
