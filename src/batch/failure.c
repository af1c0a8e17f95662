/*
 * failure.c
 *	  What kind of failure an error is, who is told of it, and what is done at
 *	  once.
 *
 * Errors outside of the statement (at the claim, at the commit) are nobody's
 * fault.  Those of the statement are sorted by SQLSTATE: what may pass by
 * itself; what lies in the statement, its objects and its rights, if no row of
 * the batch passes; and the rest, which lies in a row.  The worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/clock.h"
#include "batch/batch.h"
#include "common/pg_prng.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/timeout.h"

/* Flushing counts as degraded for so long after the last sign of it, in ms. */
#define DEGRADED_MS		60000.0

/* Is this an error that may pass by itself? */
static bool
may_pass(int sqlerrcode)
{
	switch (sqlerrcode)
	{
		case ERRCODE_T_R_SERIALIZATION_FAILURE:
		case ERRCODE_T_R_DEADLOCK_DETECTED:
		case ERRCODE_LOCK_NOT_AVAILABLE:
			return true;
		case ERRCODE_QUERY_CANCELED:
			/* not if the statement itself has raised it */
			return batcher_executor_cancelled;
	}
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case MAKE_SQLSTATE('0', '8', '0', '0', '0'):	/* connections */
		case MAKE_SQLSTATE('5', '3', '0', '0', '0'):	/* resources */
		case MAKE_SQLSTATE('5', '7', '0', '0', '0'):	/* cancel, shutdown */
			return true;
	}
	return false;
}

/* Is this an error of the statement, its objects or its rights, as a rule? */
static bool
is_of_statement(int sqlerrcode)
{
	/* nobody has cancelled the flush: another server its own statement, say */
	if (sqlerrcode == ERRCODE_QUERY_CANCELED)
		return true;
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case MAKE_SQLSTATE('0', 'A', '0', '0', '0'):	/* not supported */
		case MAKE_SQLSTATE('2', '5', '0', '0', '0'):	/* transaction state */
		case MAKE_SQLSTATE('2', '8', '0', '0', '0'):	/* authorization */
		case MAKE_SQLSTATE('3', 'D', '0', '0', '0'):	/* database name */
		case MAKE_SQLSTATE('3', 'F', '0', '0', '0'):	/* schema name */
		case MAKE_SQLSTATE('4', '2', '0', '0', '0'):	/* syntax or rights */
		case MAKE_SQLSTATE('5', '5', '0', '0', '0'):	/* object state */
		case MAKE_SQLSTATE('5', '8', '0', '0', '0'):	/* system */
		case MAKE_SQLSTATE('X', 'X', '0', '0', '0'):	/* internal */
			return true;
	}
	return false;
}

/*
 * Whose fault an error is that was just caught; batcher_executor_phase says
 * where it was raised.  One while the statement is prepared is the
 * statement's, whatever its code: no row has been looked at yet.
 */
BatcherFault
batcher_failure_fault(const ErrorData *error)
{
	if (batcher_executor_phase == BATCHER_PHASE_OUTSIDE ||
		may_pass(error->sqlerrcode))
		return BATCHER_FAULT_PASSING;
	if (batcher_executor_phase == BATCHER_PHASE_PREPARING)
		return BATCHER_FAULT_DEFINITION;
	return is_of_statement(error->sqlerrcode) ?
		BATCHER_FAULT_STATEMENT : BATCHER_FAULT_ROW;
}

/*
 * What an error says, for the views, in the current context.  Where the
 * definition is at fault, or what it uses, somebody has to mend that: what the
 * server knows of it goes with it.  What is said of a row is in its dead letter.
 */
const char *
batcher_failure_text(const ErrorData *error, BatcherFault fault)
{
	StringInfoData s;

	if (error == NULL || error->message == NULL)
		return "no reason is known";
	if ((fault != BATCHER_FAULT_DEFINITION &&
		 fault != BATCHER_FAULT_STATEMENT) ||
		(error->detail == NULL && error->hint == NULL))
		return error->message;
	initStringInfo(&s);
	appendStringInfo(&s, "%s.", error->message);
	if (error->detail)
		appendStringInfo(&s, " %s", error->detail);
	if (error->hint)
		appendStringInfo(&s, " %s", error->hint);
	return s.data;
}

/*
 * Remember the last error of a queue for the views.  True if it should be
 * logged: it is the first since a flush succeeded, or of another kind than
 * the one before.
 */
bool
batcher_failure_note(BatcherLaneView *view, const char *sqlstate,
					 const char *message)
{
	BatcherSharedQueue *queue = view->queue;
	BatcherSharedLane *lane = &queue->lane;
	TimestampTz now = batcher_clock_now();
	bool		is_new;
	int			len = pg_mbcliplen(message, strlen(message),
								   BATCHER_ERROR_MAX - 1);

	LWLockAcquire(&lane->lock, LW_EXCLUSIVE);
	is_new = strcmp(queue->last_sqlstate, sqlstate) != 0 ||
		(pg_atomic_read_u32(&queue->main->lane.failures) == 0 &&
		 now > batcher_clock_add_ms(queue->last_error_at, DEGRADED_MS));
	queue->last_error_at = now;
	strlcpy(queue->last_sqlstate, sqlstate, sizeof(queue->last_sqlstate));
	memcpy(queue->last_error, message, len);
	queue->last_error[len] = '\0';
	LWLockRelease(&lane->lock);
	return is_new;
}

/*
 * The same for an error that was caught in a subtransaction and is not logged
 * yet.
 */
void
batcher_failure_note_row(BatcherLaneView *view, const ErrorData *error,
						 BatcherFault fault)
{
	if (batcher_failure_note(view, unpack_sql_state(error->sqlerrcode),
							 batcher_failure_text(error, fault)))
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("queue \"%s\": a row failed: %s",
						view->def->name,
						error->message ? error->message : ""),
				 error->detail ? errdetail_internal("%s", error->detail) : 0,
				 error->context ? errcontext("%s", error->context) : 0));
}

/*
 * Flushing degrades to this step, for a batch of 'nrows' rows: logged once,
 * until whole batches have passed for a while.
 */
void
batcher_failure_step(BatcherLaneView *view, BatcherStep step, int nrows)
{
	view->step_at = batcher_clock_now();
	if (step <= view->step)
		return;
	view->step = step;
	if (step == BATCHER_STEP_SMALLER)
		ereport(LOG,
				(errmsg("queue \"%s\": a batch of %d rows failed, and is flushed in smaller ones",
						view->def->name, nrows)));
	else
		ereport(LOG,
				(errmsg("queue \"%s\": rows are flushed one by one, to find those that fail",
						view->def->name)));
}

/*
 * A whole batch has passed.
 */
void
batcher_failure_whole_passed(BatcherLaneView *view)
{
	if (view->step != BATCHER_STEP_WHOLE &&
		batcher_clock_now() > batcher_clock_add_ms(view->step_at, DEGRADED_MS))
		view->step = BATCHER_STEP_WHOLE;
}

/*
 * Clean up after a failed transaction, as the server's own loops do.  Its
 * error is returned, in 'cxt'; it is logged unless one of the kind was.
 */
ErrorData *
batcher_failure_recover(BatcherLaneView *view, MemoryContext cxt,
						BatcherFault *fault)
{
	ErrorData  *error;

	HOLD_INTERRUPTS();
	LWLockReleaseAll();			/* before we take one of ours */
	MemoryContextSwitchTo(cxt);
	error = CopyErrorData();
	disable_all_timeouts(false);
	QueryCancelPending = false;
	*fault = batcher_failure_fault(error);
	if (batcher_failure_note(view, unpack_sql_state(error->sqlerrcode),
							 batcher_failure_text(error, *fault)))
		EmitErrorReport();
	FlushErrorState();
	batcher_executor_phase = BATCHER_PHASE_OUTSIDE;
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(cxt);
	batcher_executor_forget_session();
	batcher_executor_reset(view);
	RESUME_INTERRUPTS();
	return error;
}

/*
 * Wait before the lane is tried again, longer each time in a row.
 */
void
batcher_failure_put_off(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;
	uint32		times = pg_atomic_add_fetch_u32(&lane->put_offs, 1);
	double		delay;

	delay = batcher_schedule_retry_delay(&view->def->options, times,
										 pg_prng_double(&pg_global_prng_state));
	pg_atomic_write_u64(&lane->retry_at,
						batcher_clock_add_ms(batcher_clock_now(), delay));
}
