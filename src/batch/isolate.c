/*
 * isolate.c
 *	  Finding the rows of a batch that fail, and saving the others from them.
 *
 * A batch that fails as a whole is halved, and the halves that fail again,
 * until the rows that fail stand alone.  All of it happens in one transaction,
 * in which each piece has a subtransaction: what passes is kept, and commits
 * together with what becomes of the rows that do not: those at fault are
 * charged with an attempt and wait to be tried again by themselves, or are
 * dead letters.  Rows that failed before are tried one by one.
 *
 * The pieces are tried in the order of the rows, and a row that fails holds
 * back the later rows of its key.
 *
 * A transaction with many subtransactions slows every snapshot of the server,
 * so at most MAX_PIECES pieces pass in one; and it takes about flush_timeout at
 * most.  What is left then stays for the next batch.  The worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/clock.h"
#include "batch/batch.h"
#include "batch/keyset.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timeout.h"

/*
 * Pieces that may pass in one transaction.  The server keeps 64 open
 * subtransactions of each transaction at hand (PGPROC_MAX_CACHED_SUBXIDS); a
 * statement may have a few of its own.
 */
#define MAX_PIECES		50

/* A piece of more than one row may take this part of flush_timeout. */
#define PIECE_SHARE		16

struct BatcherIsolation
{
	BatcherLaneView *view;
	BatcherBatch *batch;
	MemoryContext cxt;			/* outlives the transaction */
	ErrorData  *whole_error;	/* of the batch as a whole, or NULL */
	BatcherFault whole_fault;
	ErrorData **errors;			/* of each row that failed, else NULL */
	BatcherFault *faults;		/* the same */
	ErrorData  *first_error;	/* of a row, or of the whole */
	BatcherFault first_fault;
	bool		broken;			/* the statement itself is: no row can pass */
	bool		cut;			/* the time was over before all were tried */
	int			npieces;		/* that have passed */
	TimestampTz end;			/* no piece begins after this */
	BatcherKeySet held;			/* keys of rows that failed */
};

/*
 * Begin to isolate the rows of a batch.  'error' is what the batch as a whole
 * has failed with, of 'fault', or NULL.  In a context that outlives the
 * transaction.
 */
BatcherIsolation *
batcher_isolation_new(BatcherLaneView *view, BatcherBatch *batch,
					  ErrorData *error, BatcherFault fault)
{
	BatcherIsolation *iso = palloc0(sizeof(BatcherIsolation));

	iso->view = view;
	iso->batch = batch;
	iso->cxt = CurrentMemoryContext;
	iso->whole_error = iso->first_error = error;
	iso->whole_fault = iso->first_fault = fault;
	return iso;
}

/* Execute the statement over some rows, in a subtransaction; its error. */
static ErrorData *
try_piece(BatcherIsolation *iso, BatcherBatch *piece, BatcherFault *fault)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	const double timeout = iso->view->def->options.flush_timeout /
		(piece->nrows > 1 ? PIECE_SHARE : 1);
	const int	made = batcher_message_made();
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		batcher_executor_run(iso->view, piece, timeout);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(iso->cxt);
		error = CopyErrorData();
		FlushErrorState();
		disable_all_timeouts(false);
		QueryCancelPending = false;
		*fault = batcher_failure_fault(error);
		batcher_executor_phase = BATCHER_PHASE_OUTSIDE;
		RollbackAndReleaseCurrentSubTransaction();
		batcher_message_cut(made);
		batcher_executor_reset(iso->view);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;
	return error;
}

/* Must the rest wait for the next batch? */
static bool
is_over(BatcherIsolation *iso)
{
	if (iso->first_error && batcher_clock_now() >= iso->end)
		iso->cut = true;
	return iso->broken || iso->cut || iso->npieces >= MAX_PIECES;
}

static uint64
row_ticket(const BatcherBatchRow *r)
{
	return r->chunk->first_ticket + r->row->ticket;
}

/* Some rows, or one, have failed. */
static void
piece_failed(BatcherIsolation *iso, ErrorData *error, BatcherFault fault)
{
	if (iso->first_error == NULL)
	{
		iso->first_error = error;
		iso->first_fault = fault;
		batcher_failure_note_row(iso->view, error, fault);
	}
	if (fault == BATCHER_FAULT_DEFINITION)
		iso->broken = true;
}

/* A row has failed by itself. */
static void
row_failed(BatcherIsolation *iso, int index, ErrorData *error,
		   BatcherFault fault)
{
	BatcherBatchRow *r = &iso->batch->rows[index];

	iso->errors[index] = error;
	iso->faults[index] = fault;
	batcher_keyset_add(&iso->held, batcher_row_key(r->chunk, r->row));
}

/*
 * Try the rows from 'first' on, 'n' of them; 'failed': they have failed
 * together already.
 */
static void
try_rows(BatcherIsolation *iso, int first, int n, bool failed)
{
	BatcherBatch *batch = iso->batch;
	BatcherBatch piece = {0};
	ErrorData  *error = NULL;
	BatcherFault fault = BATCHER_FAULT_ROW;
	int			last = first;
	int			i;

	CHECK_FOR_INTERRUPTS();
	if (!failed)
	{
		if (is_over(iso))
			return;
		piece.rows = palloc_array(BatcherBatchRow, n);
		for (i = first; i < first + n; i++)
		{
			BatcherBatchRow *r = &batch->rows[i];

			if (batcher_keyset_has(&iso->held, batcher_row_key(r->chunk, r->row)))
				continue;
			piece.rows[piece.nrows++] = *r;
			last = i;
		}
		if (piece.nrows == 0)
			return;
		if (piece.nrows == 1)
		{
			batcher_failure_step(iso->view, BATCHER_STEP_SINGLE, 1);
			batcher_count(iso->view->queue, BATCHER_ROWS_TRIED_ALONE, 1);
		}
		error = try_piece(iso, &piece, &fault);
		if (error == NULL)
		{
			int			j = 0;

			iso->npieces++;
			batch->nflushed += piece.nrows;
			for (i = first; j < piece.nrows; i++)
			{
				if (batch->rows[i].row != piece.rows[j].row)
					continue;
				batch->rows[i].outcome = BATCHER_OUTCOME_FLUSHED;
				j++;
			}
		}
		else
			piece_failed(iso, error, fault);
		if (error && piece.nrows == 1)
			row_failed(iso, last, error, fault);
		pfree(piece.rows);
		if (error == NULL || piece.nrows == 1 || iso->broken)
			return;
	}
	try_rows(iso, first, n / 2, false);
	try_rows(iso, first + n / 2, n - n / 2, false);
}

/* Have others passed where this row has failed with an error of this kind? */
static bool
failed_so_alone(BatcherIsolation *iso, BatcherBatchRow *r)
{
	BatcherFault fault;

	return batcher_retry_alone(iso->view, row_ticket(r), &fault) &&
		fault == BATCHER_FAULT_STATEMENT;
}

/* What becomes of the rows that failed. */
static void
judge_rows(BatcherIsolation *iso)
{
	BatcherBatch *batch = iso->batch;
	int			max_attempts = iso->view->def->options.max_attempts;
	int			i;

	for (i = 0; i < batch->nrows; i++)
	{
		BatcherBatchRow *r = &batch->rows[i];

		if (iso->errors[i] == NULL)
			continue;
		if (iso->faults[i] == BATCHER_FAULT_PASSING)
			r->outcome = BATCHER_OUTCOME_PUT_OFF;
		else if (iso->faults[i] == BATCHER_FAULT_ROW ||
				 (iso->faults[i] == BATCHER_FAULT_STATEMENT &&
				  (batch->nflushed > 0 || failed_so_alone(iso, r))))
		{
			/* of several rows that are merged, who knows which is at fault */
			r->split = r->merged != NULL;
			r->outcome = r->split ? BATCHER_OUTCOME_PUT_OFF :
				r->row->attempts + 1 >= max_attempts ?
				BATCHER_OUTCOME_DEAD : BATCHER_OUTCOME_FAILED;
		}
	}
}

/* Does the transaction settle or change any row? */
static bool
has_effect(BatcherBatch *batch)
{
	int			i;

	for (i = 0; i < batch->nrows; i++)
	{
		if (batch->rows[i].split ||
			(batch->rows[i].outcome != BATCHER_OUTCOME_STAYS &&
			 batch->rows[i].outcome != BATCHER_OUTCOME_PUT_OFF))
			return true;
	}
	return false;
}

/*
 * Isolate the rows of the batch, which are claimed, in the transaction in
 * progress.  False if nothing has passed and nobody is charged: then the
 * transaction is to be given up.
 */
bool
batcher_isolation_run(BatcherIsolation *iso)
{
	BatcherBatch *batch = iso->batch;
	BatcherLaneView *view = iso->view;
	MemoryContext caller = MemoryContextSwitchTo(iso->cxt);
	int			i;

	iso->errors = palloc0_array(ErrorData *, Max(batch->nrows, 1));
	iso->faults = palloc0_array(BatcherFault, Max(batch->nrows, 1));
	iso->end = batcher_clock_add_ms(batcher_clock_now(),
									view->def->options.flush_timeout);
	batch->nflushed = 0;
	for (i = 0; i < batch->nrows; i++)
	{
		batch->rows[i].outcome = BATCHER_OUTCOME_STAYS;
		batch->rows[i].split = false;
	}

	if (batch->reason == BATCHER_REASON_RETRY)
	{
		for (i = 0; i < batch->nrows; i++)
			try_rows(iso, i, 1, false);
	}
	else if (batch->nrows == 1 && iso->whole_error)
		row_failed(iso, 0, iso->whole_error, iso->whole_fault);
	else if (batch->nrows > 0)
	{
		batcher_failure_step(view, BATCHER_STEP_SMALLER, batch->nrows);
		batcher_count(view->queue, BATCHER_BATCHES_SPLIT, 1);
		try_rows(iso, 0, batch->nrows, batch->nrows > 1);
	}
	judge_rows(iso);
	MemoryContextSwitchTo(caller);
	for (i = 0; i < batch->nrows; i++)
	{
		BatcherBatchRow *r = &batch->rows[i];

		if (r->outcome == BATCHER_OUTCOME_DEAD)
			batcher_dead_insert(view->queue->key.queue_id, r->chunk, r->row,
								iso->errors[i]);
	}
	return batch->nrows == 0 || has_effect(batch);
}

/* A row has failed, in a transaction that was given up. */
static void
put_off_uncharged(BatcherIsolation *iso, int index, double random)
{
	BatcherBatchRow *r = &iso->batch->rows[index];
	bool		retry = iso->batch->reason == BATCHER_REASON_RETRY;

	if (iso->errors[index] == NULL || (!retry && !iso->cut))
		return;
	if (iso->faults[index] == BATCHER_FAULT_PASSING)
		batcher_retry_add(iso->view, row_ticket(r), r->row->attempts, false,
						  BATCHER_FAULT_PASSING, random);
	else if (retry && iso->faults[index] == BATCHER_FAULT_STATEMENT)
		batcher_retry_rejoin(iso->view, row_ticket(r));
}

/*
 * The transaction has committed, or was given up: see to it that the rows that
 * failed are tried again by themselves, and do not stand in the way of others.
 */
void
batcher_isolation_finish(BatcherIsolation *iso, bool committed)
{
	BatcherBatch *batch = iso->batch;
	double		random = pg_prng_double(&pg_global_prng_state);
	bool		alone = batch->nflushed > 0;
	int			ndead = 0;
	int			i;

	iso->view->forced_upto = iso->view->asked_upto;
	for (i = 0; i < batch->nrows; i++)
	{
		BatcherBatchRow *r = &batch->rows[i];

		if (!committed)
			put_off_uncharged(iso, i, random);
		else if (r->split)
			continue;
		else if (r->outcome == BATCHER_OUTCOME_FAILED ||
				 r->outcome == BATCHER_OUTCOME_PUT_OFF)
			batcher_retry_add(iso->view, row_ticket(r), r->row->attempts, alone,
							  iso->faults[i], random);
		else if (r->outcome == BATCHER_OUTCOME_DEAD)
			ndead++;
	}
	if (ndead > 0)
		ereport(LOG,
				(errmsg_plural("queue \"%s\": %d row is a dead letter",
							   "queue \"%s\": %d rows are dead letters",
							   ndead, iso->view->def->name, ndead),
				 errdetail("The first error of the batch was: %s",
						   iso->first_error->message)));
}

/*
 * Whether it counts for the breaker that no row has passed: not if all that was
 * tried were rows that had failed where others passed.
 */
bool
batcher_isolation_counts(BatcherIsolation *iso)
{
	BatcherBatch *batch = iso->batch;
	int			i;

	for (i = 0; i < batch->nrows; i++)
	{
		if (!batcher_retry_alone(iso->view, row_ticket(&batch->rows[i]), NULL))
			return true;
	}
	return false;
}

/*
 * What the rows of the batch failed with first, and whose fault it was; NULL
 * if none has failed.
 */
ErrorData *
batcher_isolation_error(BatcherIsolation *iso, BatcherFault *fault)
{
	*fault = iso->broken ? BATCHER_FAULT_DEFINITION : iso->first_fault;
	return iso->first_error;
}
