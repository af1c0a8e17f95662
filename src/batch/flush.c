/*
 * flush.c
 *	  One flush: claim, statement, commit, and what comes after it.
 *
 * The order inside the transaction matters.  Constraints are made immediate
 * before anything runs as the owner, and the rows are claimed before the
 * statement runs, so that a row that was settled another way never reaches
 * it.  Nothing of a flush that fails outlives it: no lock, snapshot,
 * transaction, memory, setting or identity; its rows wait as before.  The
 * worker.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "base/clock.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "commands/trigger.h"
#include "common/pg_prng.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

/* What came of one try. */
typedef enum FlushResult
{
	FLUSH_DONE,
	FLUSH_AGAIN,				/* nothing was done: look again */
	FLUSH_FAILED
} FlushResult;

/* The lane that is being flushed, or NULL. */
static BatcherLaneView *flushing_view = NULL;

static void
make_constraints_immediate(void)
{
	ConstraintsSetStmt *all = makeNode(ConstraintsSetStmt);

	all->constraints = NIL;
	all->deferred = false;
	AfterTriggerSetState(all);
}

/*
 * Claim and execute a batch in the transaction in progress.  False if nothing
 * was done and the lane is to be looked at again.
 */
static bool
run_batch(BatcherLaneView *view, BatcherBatch *batch)
{
	Relation	spool = batcher_spool_open(RowExclusiveLock);
	bool		claimed;

	/* with the lock, so that who drops the queue waits for us, or we see it */
	if (pg_atomic_read_u32(&view->queue->lane.frozen) != 0 ||
		pg_atomic_read_u64(&view->db->generation) != view->generation)
	{
		table_close(spool, NoLock);
		return false;
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	make_constraints_immediate();
	claimed = batcher_claim(view, batch, spool);
	if (!claimed)
	{
		PopActiveSnapshot();
		batcher_settle_resync(view, spool);
		table_close(spool, NoLock);
		return false;
	}
	table_close(spool, NoLock);
	if (batch->nrows > 0 && batch->reason != BATCHER_REASON_PURGE)
	{
		if (view->def->flush_sql)
			batcher_executor_run(view, batch);
		else
			batcher_message_notify(view, batch);
	}
	PopActiveSnapshot();
	batcher_number_refill_early(view->db);
	batcher_settle_at_commit(view, batch);
	batcher_debug_point("settle");
	return true;
}

/* Count a batch that was flushed, and say so if it took long. */
static void
report_batch(BatcherLaneView *view, BatcherBatch *batch, TimestampTz started,
			 TimestampTz ended)
{
	static const BatcherCounter by_reason[] = {
		[BATCHER_REASON_SIZE] = BATCHER_BATCHES_BY_SIZE,
		[BATCHER_REASON_TIME] = BATCHER_BATCHES_BY_TIME,
		[BATCHER_REASON_FORCED] = BATCHER_BATCHES_FORCED,
		[BATCHER_REASON_IMMEDIATE] = BATCHER_BATCHES_IMMEDIATE,
	};
	static const char *const reason_names[] = {
		[BATCHER_REASON_SIZE] = "size",
		[BATCHER_REASON_TIME] = "time",
		[BATCHER_REASON_FORCED] = "forced",
		[BATCHER_REASON_IMMEDIATE] = "immediate",
		[BATCHER_REASON_PURGE] = "purge",
	};
	BatcherSharedQueue *queue = view->queue;
	double		ms = (ended - started) / 1000.0;

	if (batch->reason != BATCHER_REASON_PURGE && batch->nrows > 0)
	{
		TimestampTz due = batcher_clock_add_ms(batch->oldest_at,
											   view->def->options.flush_interval);

		batcher_count(queue, BATCHER_BATCHES, 1);
		batcher_count(queue, by_reason[batch->reason], 1);
		batcher_count(queue, BATCHER_FLUSH_TIME, ended - started);
		pg_atomic_write_u64(&queue->counters[BATCHER_LAST_FLUSH_AT], ended);
		/* a window has some slack, as a timer has */
		if (started > batcher_clock_add_ms(due, 10))
			batcher_count(queue, BATCHER_DEADLINE_MISSED, 1);
	}
	if (batcher_log_min_duration >= 0 && ms >= batcher_log_min_duration)
		ereport(LOG,
				(errmsg("queue \"%s\": batch " UINT64_FORMAT " of %d rows (%s) took %.3f ms",
						view->def->name, batch->number, batch->nrows,
						reason_names[batch->reason], ms)));
	else
		ereport(DEBUG1,
				(errmsg_internal("queue \"%s\": batch " UINT64_FORMAT " of %d rows (%s) took %.3f ms",
								 view->def->name, batch->number, batch->nrows,
								 reason_names[batch->reason], ms)));
}

/* The flush has committed: note success and give memory back. */
static void
finish_batch(BatcherLaneView *view, BatcherBatch *batch, TimestampTz started)
{
	BatcherSharedLane *lane = &view->queue->lane;

	if (batch->reason != BATCHER_REASON_PURGE)
	{
		pg_atomic_write_u32(&lane->failures, 0);
		pg_atomic_write_u64(&lane->retry_at, 0);
	}
	if (batch->reason == BATCHER_REASON_IMMEDIATE && view->nimmediate > 0)
		view->nimmediate = -1;	/* count anew */
	/* counted before anybody who waits can see that it is over */
	report_batch(view, batch, started, batcher_clock_now());
	batcher_settle_tidy(view, batch);
	if (view->def->flush_sql && batch->reason != BATCHER_REASON_PURGE)
		batcher_message_add(view, batch);
}

/*
 * A flush of 'nrows' rows has failed: remember why, and when to try again.
 * True if the failure before it, with no success since, was of another kind.
 */
static bool
note_failure(BatcherLaneView *view, int nrows, const char *sqlstate,
			 const char *message)
{
	BatcherSharedQueue *queue = view->queue;
	BatcherSharedLane *lane = &queue->lane;
	bool		is_new;
	int			len = pg_mbcliplen(message, strlen(message),
								   BATCHER_ERROR_MAX - 1);
	int			failures = pg_atomic_add_fetch_u32(&lane->failures, 1);
	TimestampTz now = batcher_clock_now();
	double		delay;

	delay = batcher_schedule_retry_delay(failures,
										 pg_prng_double(&pg_global_prng_state));
	pg_atomic_write_u64(&lane->retry_at, batcher_clock_add_ms(now, delay));
	view->forced_upto = pg_atomic_read_u64(&lane->flush_upto);
	batcher_count(queue, BATCHER_BATCHES_FAILED, 1);
	batcher_count(queue, BATCHER_ROWS_RETRIED, nrows);

	LWLockAcquire(&lane->lock, LW_EXCLUSIVE);
	is_new = failures == 1 || strcmp(queue->last_sqlstate, sqlstate) != 0;
	queue->last_error_at = now;
	strlcpy(queue->last_sqlstate, sqlstate, sizeof(queue->last_sqlstate));
	memcpy(queue->last_error, message, len);
	queue->last_error[len] = '\0';
	LWLockRelease(&lane->lock);
	return is_new;
}

/*
 * Clean up after a failed try, as the server's own loops do; logs the error
 * unless the last failure of the queue was of the same kind.
 */
static void
recover_from_failure(BatcherLaneView *view, BatcherBatch *batch,
					 MemoryContext cxt)
{
	ErrorData  *edata;

	HOLD_INTERRUPTS();
	LWLockReleaseAll();			/* before we take one of ours */
	MemoryContextSwitchTo(cxt);
	edata = CopyErrorData();
	disable_all_timeouts(false);
	QueryCancelPending = false;
	if (note_failure(view, batch ? batch->nrows : 0,
					 unpack_sql_state(edata->sqlerrcode),
					 edata->message ? edata->message : ""))
		EmitErrorReport();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(cxt);
	batcher_executor_forget_session();
	batcher_executor_reset(view);
	RESUME_INTERRUPTS();
}

static void
flush_error_context(void *arg)
{
	errcontext("flush of queue \"%s\"", (const char *) arg);
}

/* Try to flush one batch in a transaction of its own. */
static FlushResult
try_batch(BatcherLaneView *view, BatcherBatch *batch)
{
	MemoryContext cxt = CurrentMemoryContext;
	BatcherSharedLane *lane = &view->queue->lane;
	TimestampTz started = batcher_clock_now();
	volatile FlushResult result = FLUSH_DONE;
	ErrorContextCallback context;

	context.callback = flush_error_context;
	context.arg = view->def->name;
	context.previous = error_context_stack;
	batch->number = pg_atomic_add_fetch_u64(&view->queue->batch_number, 1);
	pg_atomic_write_u32(&lane->flushing, batch->nrows);
	view->report(view->queue, batch->nrows);
	flushing_view = view;
	PG_TRY();
	{
		error_context_stack = &context;
		SetCurrentStatementStartTimestamp();
		pgstat_report_activity(STATE_RUNNING, view->def->flush_sql ?
							   view->def->flush_sql :
							   "batcher: sending messages");
		StartTransactionCommand();
		if (!run_batch(view, batch))
			result = FLUSH_AGAIN;
		CommitTransactionCommand();
		MemoryContextSwitchTo(cxt);
		if (result == FLUSH_DONE)
		{
			batcher_debug_point("committed");
			finish_batch(view, batch, started);
		}
		error_context_stack = context.previous;
	}
	PG_CATCH();
	{
		recover_from_failure(view, batch, cxt);
		result = FLUSH_FAILED;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	flushing_view = NULL;
	pg_atomic_write_u32(&lane->flushing, 0);
	return result;
}

/* The worker ends: a flush that outlived its timeout has failed. */
static void
note_overtime(int code, Datum arg)
{
	if (flushing_view && batcher_executor_overtime())
		(void) note_failure(flushing_view,
							pg_atomic_read_u32(&flushing_view->queue->lane.flushing),
							"57014", "flush outlived its timeout, and its worker was ended");
}

/*
 * Register what is done at the end of a worker.  A worker, once.
 */
void
batcher_flush_install(void)
{
	before_shmem_exit(note_overtime, (Datum) 0);
}

/* Read back from the spool; a failure counts as one of the queue. */
static void
try_refill(BatcherLaneView *view)
{
	MemoryContext cxt = CurrentMemoryContext;

	PG_TRY();
	{
		pgstat_report_activity(STATE_RUNNING, "batcher: reading the spool");
		batcher_readback_refill(view);
	}
	PG_CATCH();
	{
		recover_from_failure(view, NULL, cxt);
		batcher_readback_reset(view);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
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
	return draining || (flush_upto > settled && flush_upto > view->forced_upto) ||
		pg_atomic_read_u64(&lane->retry_at) <= batcher_clock_now();
}

/*
 * Do the next thing that is due for a lane: flush or purge one batch, or read
 * rows back.  True if something was done, so that there may be more; else
 * view->deadline is when to look again.  'draining': everything is due.  Never
 * raises an error for what the statement does.  Memory of the current context
 * is the caller's to reset.
 */
bool
batcher_flush_lane(BatcherLaneView *view, bool draining)
{
	BatcherSharedLane *lane = &view->queue->lane;
	BatcherBatch *batch;

	view->deadline = BATCHER_NEVER;
	if (pg_atomic_read_u32(&lane->frozen) != 0)
		return false;
	if (batcher_readback_low(view) && may_read_back(view, draining))
		try_refill(view);

	batch = batcher_gather(view, batcher_clock_now(), draining);
	if (view->has_void)
	{
		/* otherwise their room is kept until rows of memory are flushed */
		view->has_void = false;
		batcher_lane_sweep(view->queue, PG_INT32_MAX);
	}
	if (batch)
	{
		FlushResult result = try_batch(view, batch);

		if (result == FLUSH_FAILED)
			view->deadline = pg_atomic_read_u64(&lane->retry_at);
		batcher_gather_publish(view);
		return result != FLUSH_FAILED;
	}
	batcher_gather_publish(view);
	return false;
}
