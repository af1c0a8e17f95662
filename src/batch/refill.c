/*
 * refill.c
 *	  Reading rows back when it is time for that, whatever is in the spool.
 *
 * A failure puts the lane off, unless a damaged tuple is to blame for it: that,
 * and others that cannot be read, are taken out of the way, or passed over
 * (bury.c).  The worker.
 */
#include "postgres.h"

#include "base/clock.h"
#include "batch/batch.h"
#include "pgstat.h"

/* Does an error tell that a tuple is damaged, and not what stands around it? */
static bool
is_damage(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_DATA_CORRUPTED ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_DATA_EXCEPTION;
}

/* Has the reading failed by a tuple that can be taken out of the way? */
static bool
met_damaged(BatcherLaneView *view, const BatcherGrave *grave,
			const ErrorData *error)
{
	const BatcherSpoolEntry *entry = batcher_spool_unreadable();

	/* a look at the spool cannot pass over one whose number of rows is damaged */
	return entry && grave->version != 0 && is_damage(error) &&
		!batcher_grave_is_stuck(view, entry);
}

/*
 * Run one of the two steps of reading back; its error, or NULL.  Of a damaged
 * tuple there is none: it is noted, or passed over if it cannot be deleted, and
 * what was read stays.
 */
static ErrorData *
try_reading(BatcherLaneView *view, BatcherGrave *grave, bool bury)
{
	MemoryContext cxt = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;
	volatile bool damaged = false;
	BatcherFault fault;

	view->report(view->queue, 0);
	PG_TRY();
	{
		pgstat_report_activity(STATE_RUNNING, "batcher: reading the spool");
		if (bury)
			batcher_grave_bury(view, grave);
		else
			batcher_readback_refill(view, grave);
	}
	PG_CATCH();
	{
		error = batcher_failure_recover(view, cxt, &fault);
		damaged = bury ? is_damage(error) &&
			batcher_grave_pass_over(view, grave, error) :
			met_damaged(view, grave, error);
		if (!damaged ||
			(!bury && !batcher_readback_skip(view, batcher_spool_unreadable())))
			batcher_readback_reset(view);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	if (error)
		batcher_count(view->queue, BATCHER_BATCHES_FAILED, 1);
	if (!damaged)
		return error;
	if (bury)
		return NULL;
	batcher_grave_note(grave, batcher_spool_unreadable(), error->sqlerrcode,
					   error->message ? error->message : "");
	return NULL;
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
	BatcherGrave grave = {.cxt = CurrentMemoryContext};
	ErrorData  *error;
	bool		some_noted;

	if (!batcher_readback_low(view) || !may_read_back(view, draining))
		return BATCHER_REFILL_NOT_DONE;
	error = try_reading(view, &grave, false);
	some_noted = grave.n > 0;
	while (error == NULL && grave.done < grave.n)
		error = try_reading(view, &grave, true);
	if (error == NULL)
		return some_noted ? BATCHER_REFILL_AGAIN : BATCHER_REFILL_DONE;
	view->forced_upto = pg_atomic_read_u64(&view->queue->lane.flush_upto);
	batcher_failure_put_off(view);
	return BATCHER_REFILL_FAILED;
}
