/*
 * refill.c
 *	  Reading rows back when it is time for that, whatever is in the spool.
 *
 * A failure puts the lane off.  One that a damaged tuple is to blame for takes
 * that tuple out of the way: it becomes a dead letter.  The worker.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "base/clock.h"
#include "batch/batch.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/*
 * A tuple of the spool cannot be read: make it a dead letter, so that it does
 * not stand in the way of the others.
 */
static void
bury_unreadable(const BatcherSpoolEntry *entry, const ErrorData *error)
{
	BatcherSpoolEntry buried = *entry;
	Buffer		pin = InvalidBuffer;
	Relation	spool;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	spool = batcher_spool_open(RowExclusiveLock);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (batcher_spool_delete(spool, &buried.tid, buried.number, &pin))
		batcher_dead_insert_unreadable(buried.queue_id, buried.number,
									   &buried.tid, error);
	if (BufferIsValid(pin))
		ReleaseBuffer(pin);
	PopActiveSnapshot();
	table_close(spool, NoLock);
	CommitTransactionCommand();
}

/* Does an error tell that a tuple is damaged, and not what stands around it? */
static bool
is_damage(const ErrorData *error)
{
	return batcher_spool_unreadable() != NULL &&
		(error->sqlerrcode == ERRCODE_DATA_CORRUPTED ||
		 ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_DATA_EXCEPTION);
}

/* Run one of the two steps of reading back; its error, or NULL. */
static ErrorData *
try_reading(BatcherLaneView *view, const ErrorData *damage)
{
	MemoryContext cxt = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;
	BatcherFault fault;

	view->report(view->queue, 0);
	PG_TRY();
	{
		pgstat_report_activity(STATE_RUNNING, "batcher: reading the spool");
		if (damage)
			bury_unreadable(batcher_spool_unreadable(), damage);
		else
			batcher_readback_refill(view);
	}
	PG_CATCH();
	{
		error = batcher_failure_recover(view, cxt, &fault);
		batcher_readback_reset(view);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	return error;
}

/* Is somebody waiting for rows of the spool, or is it time for them? */
static bool
may_read_back(BatcherLaneView *view, bool draining)
{
	BatcherSharedLane *lane = &view->queue->lane;
	uint64		settled = pg_atomic_read_u64(&lane->settled);
	uint64		flush_upto = pg_atomic_read_u64(&lane->flush_upto);

	if (pg_atomic_read_u64(&lane->purge_upto) > settled)
		return true;
	if (view->def->paused)
		return false;
	if (batcher_queue_breaker_open(view->queue))
		return false;
	return draining || (flush_upto > settled && flush_upto > view->forced_upto) ||
		pg_atomic_read_u64(&lane->retry_at) <= batcher_clock_now();
}

/*
 * Read rows back from the spool, if few are at hand and somebody waits for them
 * or it is time.  'draining': it is.
 */
BatcherRefill
batcher_refill_lane(BatcherLaneView *view, bool draining)
{
	ErrorData  *error;

	if (!batcher_readback_low(view) || !may_read_back(view, draining))
		return BATCHER_REFILL_NOT_DONE;
	error = try_reading(view, NULL);
	if (error == NULL)
		return BATCHER_REFILL_DONE;
	batcher_count(view->queue, BATCHER_BATCHES_FAILED, 1);
	if (is_damage(error) && try_reading(view, error) == NULL)
	{
		batcher_count(view->queue, BATCHER_ROWS_DEAD, 1);
		return BATCHER_REFILL_AGAIN;
	}
	view->forced_upto = pg_atomic_read_u64(&view->queue->lane.flush_upto);
	batcher_failure_put_off(view);
	return BATCHER_REFILL_FAILED;
}
