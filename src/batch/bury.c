/*
 * bury.c
 *	  Tuples of the spool that cannot be read become dead letters.
 *
 * A fetch that meets such tuples passes over them and notes them, and when it
 * has ended they are buried together: so that they cost neither a transaction
 * nor a look through the spool each.  A dead letter and the removal of its
 * tuple are of one transaction.  When MOST_NOTED are noted the fetch ends, and
 * goes on when these are buried.
 *
 * Until then they are nowhere but here and in the spool.  If they are not
 * buried, the spool is read anew, and they are met again.  The worker.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* They take some hundred bytes each, and as long as it takes to store them. */
#define MOST_NOTED		1000

static int
most_noted(void)
{
	return batcher_debug_limit("most-noted", MOST_NOTED);
}

/*
 * Can no more be noted before those are buried?
 */
bool
batcher_grave_full(const BatcherGrave *grave)
{
	return grave->n >= most_noted();
}

/*
 * Note a tuple that cannot be read, and why.
 */
void
batcher_grave_note(BatcherGrave *grave, const BatcherSpoolEntry *entry,
				   int sqlerrcode, const char *why)
{
	BatcherUnreadable *tuple;

	if (grave->n == grave->allocated)
	{
		grave->allocated = Max(2 * grave->allocated, 16);
		grave->tuples = grave->tuples == NULL ?
			MemoryContextAlloc(grave->cxt, grave->allocated *
							   sizeof(BatcherUnreadable)) :
			repalloc(grave->tuples, grave->allocated *
					 sizeof(BatcherUnreadable));
	}
	tuple = &grave->tuples[grave->n];
	tuple->entry = *entry;
	tuple->sqlerrcode = sqlerrcode;
	tuple->why = MemoryContextStrdup(grave->cxt, why);
	grave->n++;
}

/* Bury what is noted, in the transaction in progress; returns how many. */
static int
bury_tuples(BatcherGrave *grave, Relation spool, int64 *nrows)
{
	Buffer		pin = InvalidBuffer;
	int			nburied = 0;
	int			i;

	PushActiveSnapshot(GetTransactionSnapshot());
	for (i = 0; i < grave->n; i++)
	{
		BatcherUnreadable *tuple = &grave->tuples[i];

		CHECK_FOR_INTERRUPTS();
		/* one that is gone was settled another way, or was mended */
		if (!batcher_spool_delete(spool, &tuple->entry.tid,
								  tuple->entry.number, &pin))
			continue;
		batcher_dead_insert_unreadable(&tuple->entry, tuple->sqlerrcode,
									   tuple->why);
		nburied++;
		*nrows += tuple->entry.nrows;
	}
	if (BufferIsValid(pin))
		ReleaseBuffer(pin);
	PopActiveSnapshot();
	return nburied;
}

/* Say what was buried. */
static void
report(BatcherLaneView *view, BatcherGrave *grave, int nburied)
{
	BatcherUnreadable *first = &grave->tuples[0];

	(void) batcher_failure_note(view, unpack_sql_state(first->sqlerrcode),
								first->why);
	ereport(LOG,
			(errcode(first->sqlerrcode),
			 errmsg_plural("queue \"%s\": %d tuple of the spool cannot be read, and is a dead letter",
						   "queue \"%s\": %d tuples of the spool cannot be read, and are dead letters",
						   nburied, view->def->name, nburied),
			 errdetail("The first one was at (%u,%u) of the table batcher.spool: %s.",
					   ItemPointerGetBlockNumber(&first->entry.tid),
					   ItemPointerGetOffsetNumber(&first->entry.tid),
					   first->why)));
}

/*
 * Make all that is noted dead letters, in a transaction of its own.
 */
void
batcher_grave_bury(BatcherLaneView *view, BatcherGrave *grave)
{
	Relation	spool;
	uint32		version;
	int64		nrows = 0;
	int			nburied = 0;

	batcher_debug_point("noted");
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	spool = batcher_spool_open(RowExclusiveLock);
	/* as in a flush; and places are void if the table was rewritten */
	if (pg_atomic_read_u32(&view->queue->main->lane.frozen) == 0 &&
		pg_atomic_read_u64(&view->db->generation) == view->generation &&
		batcher_spool_version(view->db, spool, &version) &&
		version == grave->version)
		nburied = bury_tuples(grave, spool, &nrows);
	table_close(spool, NoLock);
	batcher_debug_point("buried");
	CommitTransactionCommand();

	/* whoever was not buried may have to be read after all, in its place */
	if (nburied < grave->n)
		batcher_readback_reset(view);
	if (nburied == 0)
		return;
	(void) pg_atomic_fetch_sub_u64(&view->queue->lane.nspilled, nrows);
	batcher_count(view->queue, BATCHER_ROWS_DEAD, nburied);
	report(view, grave, nburied);
}
