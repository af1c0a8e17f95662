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
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* What came of one try. */
typedef enum FlushResult
{
	FLUSH_DONE,
	FLUSH_AGAIN,				/* nothing was done: look again */
	FLUSH_FAILED				/* the transaction was given up */
} FlushResult;

/* One try, in a transaction of its own. */
typedef struct Try
{
	BatcherLaneView *view;
	BatcherBatch *batch;
	BatcherIsolation *iso;		/* NULL: the batch as a whole */
	ErrorData  *error;			/* what it failed with */
	BatcherFault fault;
	bool		rows_seen_to;	/* it was given up, and each row that failed is
								 * tried again by itself */
	TimestampTz started;
} Try;

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

/* Has a queue SQL of its own? */
static bool
executes(const BatcherQueueDef *def)
{
	return batcher_definition_executes(def) || def->options.notify_sql != NULL;
}

/* What a claimed batch is for; false if the transaction is to be given up. */
static bool
execute_batch(Try *t)
{
	BatcherLaneView *view = t->view;
	BatcherBatch *batch = t->batch;
	bool		worth = true;

	if (batch->reason == BATCHER_REASON_PURGE)
		return true;
	if (t->iso)
		worth = batcher_isolation_run(t->iso);
	else if (batch->nrows > 0)
	{
		batch->nflushed = batch->nrows;
		if (executes(view->def))
			batcher_executor_run(view, batch, view->def->options.flush_timeout);
	}
	batcher_executor_forget_session();
	if (worth)
	{
		batcher_payload_make(view, batch);
		batcher_message_complete(view, batch);
	}
	return worth;
}

/* Claim and execute a batch in the transaction in progress. */
static FlushResult
run_batch(Try *t)
{
	BatcherLaneView *view = t->view;
	BatcherBatch *batch = t->batch;
	Relation	spool = batcher_spool_open(RowExclusiveLock);
	FlushResult result = FLUSH_DONE;

	batch->nflushed = 0;
	batcher_spool_held_since =
		Max(pg_atomic_read_u64(&view->db->next_number), 1);
	batcher_message_begin(view);
	/* with the lock, so that who drops the queue waits for us, or we see it */
	if (pg_atomic_read_u32(&view->queue->main->lane.frozen) != 0 ||
		pg_atomic_read_u64(&view->db->generation) != view->generation)
	{
		table_close(spool, NoLock);
		return FLUSH_AGAIN;
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	make_constraints_immediate();
	if (!batcher_claim(view, batch, spool))
	{
		PopActiveSnapshot();
		batcher_settle_resync(view, spool);
		table_close(spool, NoLock);
		return FLUSH_AGAIN;
	}
	if (!execute_batch(t))
		result = FLUSH_FAILED;
	else
		batcher_settle_at_commit(view, batch, spool);
	PopActiveSnapshot();
	table_close(spool, NoLock);
	batcher_number_refill_early(view->db);
	batcher_debug_point("settle");
	return result;
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
		[BATCHER_REASON_DEBOUNCED] = BATCHER_BATCHES_DEBOUNCED,
		[BATCHER_REASON_SWEPT] = BATCHER_BATCHES_SWEPT,
		[BATCHER_REASON_RETRY] = BATCHER_BATCHES_BY_TIME,
	};
	static const char *const reason_names[] = {
		[BATCHER_REASON_SIZE] = "size",
		[BATCHER_REASON_TIME] = "time",
		[BATCHER_REASON_FORCED] = "forced",
		[BATCHER_REASON_IMMEDIATE] = "immediate",
		[BATCHER_REASON_DEBOUNCED] = "debounced",
		[BATCHER_REASON_SWEPT] = "swept",
		[BATCHER_REASON_RETRY] = "retry",
		[BATCHER_REASON_PURGE] = "purge",
	};
	BatcherSharedQueue *queue = view->queue;
	double		ms = (ended - started) / 1000.0;
	int			level;

	if (batch->nflushed > 0)
	{
		const BatcherOptions *options = &view->def->options;
		TimestampTz due = batcher_clock_add_ms(batch->oldest_at,
											   options->debounce > 0 ?
											   options->max_wait :
											   options->flush_interval);

		batcher_count(queue, BATCHER_BATCHES, 1);
		batcher_count(queue, by_reason[batch->reason], 1);
		batcher_count(queue, BATCHER_FLUSH_TIME, ended - started);
		pg_atomic_write_u64(&queue->counters[BATCHER_LAST_FLUSH_AT], ended);
		/* a window has some slack, as a timer has */
		if (batch->reason != BATCHER_REASON_RETRY &&
			started > batcher_clock_add_ms(due, 10))
			batcher_count(queue, BATCHER_DEADLINE_MISSED, 1);
	}
	level = batcher_log_min_duration >= 0 && ms >= batcher_log_min_duration ?
		LOG : DEBUG1;
	if (message_level_is_interesting(level))
		ereport(level,
				(errmsg("queue \"%s\": batch " UINT64_FORMAT " of %d rows (%s) took %.3f ms, messages: %d, channels: %d",
						view->def->name, batch->number, batch->nrows,
						reason_names[batch->reason], ms,
						batcher_message_made(), batcher_message_channels())));
}

/* The transaction has committed: count it and give memory back. */
static void
finish_batch(Try *t)
{
	BatcherLaneView *view = t->view;
	BatcherBatch *batch = t->batch;

	if (batch->nflushed > 0)
	{
		view->passing = 0;
		batcher_breaker_note_success(view);
		if (t->iso == NULL)
			batcher_failure_whole_passed(view);
	}
	/* counted before anybody who waits can see that it is over */
	report_batch(view, batch, t->started, batcher_clock_now());
	if (t->iso)
		batcher_isolation_finish(t->iso, true);
	batcher_settle_tidy(view, batch);
	if (batcher_definition_executes(view->def))
		batcher_message_keep();
}

static void
flush_error_context(void *arg)
{
	errcontext("flush of queue \"%s\"", (const char *) arg);
}

/* Try to flush a batch in a transaction of its own. */
static FlushResult
try_batch(Try *t)
{
	MemoryContext cxt = CurrentMemoryContext;
	const BatcherQueueDef *def = t->view->def;
	volatile FlushResult result = FLUSH_DONE;
	ErrorContextCallback context;

	context.callback = flush_error_context;
	context.arg = def->name;
	context.previous = error_context_stack;
	t->view->report(t->view->queue, t->batch->nrows);
	batcher_flush_refused = false;
	PG_TRY();
	{
		error_context_stack = &context;
		SetCurrentStatementStartTimestamp();
		pgstat_report_activity(STATE_RUNNING,
							   def->flush_sql ? def->flush_sql :
							   def->target_name ? "batcher: inserting into a target" :
							   def->options.notify_sql ? def->options.notify_sql :
							   "batcher: sending messages");
		StartTransactionCommand();
		result = run_batch(t);
		/* what was claimed before something was missed is not to stay so */
		if (result == FLUSH_DONE)
			CommitTransactionCommand();
		else
			AbortCurrentTransaction();
		error_context_stack = context.previous;
	}
	PG_CATCH();
	{
		t->error = batcher_failure_recover(t->view, cxt, &t->fault);
		result = FLUSH_FAILED;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	if (result == FLUSH_DONE)
	{
		batcher_debug_point("committed");
		finish_batch(t);
	}
	return result;
}

/* No row has passed: that counts for the breaker. */
static void
note_failed_flush(BatcherLaneView *view, const char *message)
{
	view->forced_upto = view->asked_upto;
	batcher_count(view->queue, BATCHER_BATCHES_FAILED, 1);
	batcher_breaker_note_failure(view, message);
}

/*
 * A transaction was given up: no row has passed, and nobody is charged.  It is
 * tried again later, or the breaker opens.  'counts': it is a failed flush for
 * the breaker.
 */
static void
note_given_up(Try *t, bool counts)
{
	BatcherLaneView *view = t->view;
	const char *message = batcher_failure_text(t->error, t->fault);

	if (t->batch->reason == BATCHER_REASON_PURGE)
	{
		batcher_failure_put_off(view);
		return;
	}
	batcher_count(view->queue, BATCHER_ROWS_RETRIED, t->batch->nrows);
	if (batcher_flush_refused)
	{
		/* it is over soon, and nothing is wrong with the queue */
		view->forced_upto = view->asked_upto;
		batcher_count(view->queue, BATCHER_BATCHES_FAILED, 1);
		pg_atomic_write_u32(&view->queue->lane.put_offs, 0);
		batcher_failure_put_off(view);
		return;
	}
	if (counts)
		note_failed_flush(view, message);
	if (t->rows_seen_to && t->fault != BATCHER_FAULT_DEFINITION)
		return;
	if (t->fault == BATCHER_FAULT_PASSING)
	{
		view->passing++;
		batcher_failure_put_off(view);
	}
	else if (batcher_breaker_may_open(view))
		batcher_breaker_open(view, message,
							 view->def->options.breaker_recovery);
	else if (!batcher_queue_breaker_open(view->queue))
		batcher_failure_put_off(view);
}

/* Flush a batch by isolating the rows that fail; 't' is the try before. */
static FlushResult
isolate_batch(Try *t)
{
	FlushResult result;
	BatcherFault fault;
	ErrorData  *error;
	bool		counts;

	t->iso = batcher_isolation_new(t->view, t->batch, t->error, t->fault);
	t->error = NULL;
	t->fault = BATCHER_FAULT_PASSING;
	counts = batcher_isolation_counts(t->iso);
	result = try_batch(t);
	error = batcher_isolation_error(t->iso, &fault);
	if (result == FLUSH_FAILED)
	{
		if (t->error == NULL)	/* it has ended without one of its own */
		{
			t->error = error;
			t->fault = fault;
			t->rows_seen_to = t->batch->reason == BATCHER_REASON_RETRY;
			batcher_isolation_finish(t->iso, false);
		}
		note_given_up(t, counts);
	}
	else if (result == FLUSH_DONE && t->batch->nflushed == 0 &&
			 t->batch->nrows > 0 && counts)
		note_failed_flush(t->view, batcher_failure_text(error, fault));
	return result;
}

/* Flush a batch: as a whole, and if that fails, by isolating rows. */
static FlushResult
flush_batch(BatcherLaneView *view, BatcherBatch *batch)
{
	BatcherSharedLane *lane = &view->queue->lane;
	Try			t = {.view = view,.batch = batch};
	FlushResult result;
	bool		isolable = executes(view->def) &&
		batch->reason != BATCHER_REASON_PURGE;

	batch->number =
		pg_atomic_add_fetch_u64(&view->queue->main->batch_number, 1);
	pg_atomic_write_u32(&lane->flushing, batch->nrows);
	flushing_view = view;
	batcher_probation_begin(view);
	t.started = batcher_clock_now();
	if (isolable && (batch->reason == BATCHER_REASON_RETRY ||
					 view->passing >= view->def->options.max_attempts))
		result = isolate_batch(&t);
	else
	{
		result = try_batch(&t);
		if (result == FLUSH_FAILED)
		{
			if (isolable && (t.fault == BATCHER_FAULT_STATEMENT ||
							 t.fault == BATCHER_FAULT_ROW))
				result = isolate_batch(&t);
			else
				note_given_up(&t, true);
		}
	}
	batcher_probation_end(view);
	view->flush_ms = (batcher_clock_now() - t.started) / 1000.0;
	if (result != FLUSH_AGAIN)
		batcher_schedule_flushed(view, batch, result == FLUSH_FAILED,
								 view->flush_ms);
	flushing_view = NULL;
	pg_atomic_write_u32(&lane->flushing, 0);
	return result;
}

/* Has nobody asked this worker to leave, and is the server to go on? */
static bool
ends_unasked(BatcherLaneView *view)
{
	int			slot = batcher_lane_owner(&view->queue->lane);

	return slot >= 0 &&
		pg_atomic_read_u32(&batcher_shared->workers[slot].leave) == 0 &&
		pg_atomic_read_u32(&batcher_shared->stopping) == 0;
}

/*
 * The worker ends.  A flush that outlived its timeout has failed, and one that
 * was cut off by whoever has ended the worker too: it may be the statement
 * itself.
 */
static void
note_end(int code, Datum arg)
{
	BatcherLaneView *view = flushing_view;
	const char *message = "flush outlived its timeout, and its worker was ended";

	if (view == NULL)
		return;
	batcher_probation_end(view);
	if (batcher_executor_overtime())
	{
		LWLockReleaseAll();
		(void) batcher_failure_note(view, "57014", message);
		batcher_count(view->queue, BATCHER_BATCHES_FAILED, 1);
		batcher_breaker_open(view, message,
							 view->def->options.breaker_recovery);
	}
	else if (IsTransactionState() && ends_unasked(view))
	{
		LWLockReleaseAll();
		message = "the worker was ended in a flush";
		(void) batcher_failure_note(view, "57P01", message);
		note_failed_flush(view, message);
		batcher_failure_put_off(view);
	}
}

/*
 * Register what is done at the end of a worker.  A worker, once.
 */
void
batcher_flush_install(void)
{
	before_shmem_exit(note_end, (Datum) 0);
}

/*
 * Flush a batch that was gathered; as batcher_flush_lane().
 */
static bool
flush_gathered(BatcherLaneView *view, BatcherBatch *batch)
{
	BatcherSharedLane *lane = &view->queue->lane;
	bool		limited = batch->reason != BATCHER_REASON_PURGE &&
		!batch->alone;
	FlushResult result;

	if (limited &&
		!batcher_schedule_take(view, batcher_clock_now(), batch->nrows))
	{
		view->deadline = view->limits.rows_at;
		pg_atomic_write_u64(&lane->next_flush_at, view->deadline);
		return false;
	}
	result = flush_batch(view, batch);
	if (result == FLUSH_AGAIN)
		batcher_index_reset(view);
	if (limited && result == FLUSH_AGAIN)
		batcher_schedule_give_back(view, batch->nrows);
	if (result == FLUSH_FAILED)
	{
		view->deadline = batcher_queue_breaker_open(view->queue) &&
			batch->reason != BATCHER_REASON_PURGE ?
			pg_atomic_read_u64(&view->queue->main->lane.breaker_until) :
			pg_atomic_read_u64(&lane->retry_at);
		pg_atomic_write_u64(&lane->next_flush_at, view->deadline);
	}
	else if (pg_atomic_read_u64(&lane->npending) == 0)
		pg_atomic_write_u64(&lane->next_flush_at, 0);
	/* of a retry, each row has a time of its own */
	return result != FLUSH_FAILED || batch->reason == BATCHER_REASON_RETRY;
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
	BatcherRefill refilled;
	BatcherBatch *batch;

	view->deadline = BATCHER_NEVER;
	if (pg_atomic_read_u32(&view->queue->main->lane.frozen) != 0)
		return false;
	batcher_readback_recall(view);
	refilled = batcher_refill_lane(view, draining);
	batch = batcher_gather(view, batcher_clock_now(), draining);
	if (batch)
	{
		bool		more = flush_gathered(view, batch);

		batcher_batch_return(view, batch);
		batcher_gather_publish(view);
		return more;
	}
	if (refilled == BATCHER_REFILL_FAILED)
		view->deadline = Min(view->deadline,
							 (TimestampTz) pg_atomic_read_u64(&lane->retry_at));
	batcher_gather_publish(view);
	/* of rows that were given up, when none waits */
	if (pg_atomic_read_u64(&lane->npending) == 0 && !batcher_lane_spilled(lane))
		batcher_retry_reset(view);
	/* none of what was read is due: what comes then may be */
	return refilled == BATCHER_REFILL_AGAIN ||
		(refilled == BATCHER_REFILL_DONE && batcher_readback_low(view) &&
		 batcher_readback_unread(view));
}
