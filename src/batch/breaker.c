/*
 * breaker.c
 *	  The breaker of a queue.
 *
 * Closed, it counts the failed flushes in a row; at breaker_threshold, or at
 * once by a failure of the statement itself, it opens.  Open, nothing is
 * flushed for breaker_recovery, and rows gather.  Then it is half open: small
 * batches are tried, twice as large after each that failed; breaker_probes of
 * them close it, and a failed one opens it again.  Its state is in shared
 * memory, so that everybody can see it, and is changed by the workers that own
 * its lanes, and by who closes it by hand (batcher_queue_reset_breaker).
 */
#include "postgres.h"

#include <math.h>

#include "base/clock.h"
#include "batch/batch.h"
#include "mb/pg_wchar.h"

/* The most rows of a batch that tries whether the breaker may close. */
#define PROBE_ROWS		10

/*
 * How many rows a batch may have at 'now'; 0: nothing is flushed before
 * lane.breaker_until.
 */
int
batcher_breaker_limit(BatcherLaneView *view, TimestampTz now)
{
	BatcherSharedLane *lane = &view->queue->main->lane;
	int			max_rows = view->def->options.max_batch_size;

	view->probes = 0;
	switch ((BatcherBreakerState) pg_atomic_read_u32(&lane->breaker))
	{
		case BATCHER_BREAKER_CLOSED:
			view->reopened = 0;
			break;
		case BATCHER_BREAKER_OPEN:
			if (now < (TimestampTz) pg_atomic_read_u64(&lane->breaker_until))
				return 0;
			pg_atomic_write_u32(&lane->probes_left,
								view->def->options.breaker_probes);
			pg_atomic_write_u32(&lane->breaker, BATCHER_BREAKER_HALF_OPEN);
			/* FALLTHROUGH */
		case BATCHER_BREAKER_HALF_OPEN:
			view->probes = pg_atomic_read_u64(&lane->breaker_until);
			/* more after each probe that failed: other rows may pass */
			return (int) Min(max_rows, ldexp(PROBE_ROWS, view->reopened));
	}
	return max_rows;
}

/*
 * Open the breaker for 'ms' milliseconds; less than 0: until it is reset.
 * 'reason' is for those who may manage the queue.
 */
void
batcher_breaker_open(BatcherLaneView *view, const char *reason, double ms)
{
	BatcherSharedQueue *queue = view->queue->main;
	BatcherSharedLane *lane = &queue->lane;
	int			len = pg_mbcliplen(reason, strlen(reason),
								   BATCHER_ERROR_MAX - 1);

	LWLockAcquire(&lane->lock, LW_EXCLUSIVE);
	memcpy(queue->breaker_reason, reason, len);
	queue->breaker_reason[len] = '\0';
	LWLockRelease(&lane->lock);
	pg_atomic_write_u64(&lane->breaker_until,
						ms < 0 ? BATCHER_NEVER :
						batcher_clock_add_ms(batcher_clock_now(), ms));
	pg_write_barrier();
	pg_atomic_write_u32(&lane->breaker, BATCHER_BREAKER_OPEN);
	/* who waits for a flush waits in vain */
	ConditionVariableBroadcast(batcher_settled_cv(queue->key.queue_id));
	batcher_count(queue, BATCHER_BREAKER_OPENED, 1);
	ereport(LOG,
			(errmsg("breaker of queue \"%s\" is open: %s",
					view->def->name, reason),
			 ms < 0 ?
			 errdetail("Nothing is flushed until batch_reset_breaker() is called; rows gather.") :
			 errdetail("Nothing is flushed for %g s; rows gather.",
					   ms / 1000.0)));
}

/*
 * Has the flush that has just ended tried whether the breaker may close?  While
 * it ran, other lanes may have opened it, and tried by now; of that it can tell
 * nothing.
 */
static bool
is_probe(BatcherLaneView *view)
{
	return view->probes ==
		pg_atomic_read_u64(&view->queue->main->lane.breaker_until);
}

/*
 * May the failure of the flush that has just ended open the breaker?  Not if it
 * is open, and half open only if that flush was to tell.
 */
bool
batcher_breaker_may_open(BatcherLaneView *view)
{
	uint32		state = pg_atomic_read_u32(&view->queue->main->lane.breaker);

	return state == BATCHER_BREAKER_CLOSED ||
		(state == BATCHER_BREAKER_HALF_OPEN && is_probe(view));
}

/*
 * A flush has passed rows.
 */
void
batcher_breaker_note_success(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->main->lane;
	uint32		state = BATCHER_BREAKER_HALF_OPEN;

	pg_atomic_write_u32(&lane->failures, 0);
	pg_atomic_write_u32(&view->queue->lane.put_offs, 0);
	pg_atomic_write_u64(&view->queue->lane.retry_at, 0);
	if (pg_atomic_read_u32(&lane->breaker) != state || !is_probe(view))
		return;
	/* other lanes try, too: the count may be below zero when they are done */
	if ((int32) pg_atomic_fetch_sub_u32(&lane->probes_left, 1) > 1)
		return;
	if (pg_atomic_compare_exchange_u32(&lane->breaker, &state,
									   BATCHER_BREAKER_CLOSED))
		ereport(LOG,
				(errmsg("breaker of queue \"%s\" is closed", view->def->name)));
}

/*
 * A flush in which no row passed has failed, with this error.
 */
void
batcher_breaker_note_failure(BatcherLaneView *view, const char *message)
{
	BatcherSharedLane *lane = &view->queue->main->lane;
	uint32		failures = pg_atomic_add_fetch_u32(&lane->failures, 1);
	double		recovery = view->def->options.breaker_recovery;

	if (!batcher_breaker_may_open(view))
		return;
	if (pg_atomic_read_u32(&lane->breaker) == BATCHER_BREAKER_HALF_OPEN)
	{
		view->reopened = Min(view->reopened + 1, 20);
		batcher_breaker_open(view, message, recovery);
	}
	else if (failures >= view->def->options.breaker_threshold)
	{
		char	   *reason = psprintf("%u flushes in a row failed, the last with: %s",
									  failures, message);

		batcher_breaker_open(view, reason, recovery);
		pfree(reason);
	}
}
