/*
 * bury.c
 *	  Tuples of the spool that cannot be read become dead letters.
 *
 * A fetch that meets such tuples passes over them and notes them, and when it
 * has ended they are buried together: so that they cost neither a transaction
 * nor a look through the spool each.  A dead letter and the removal of its
 * tuple are of one transaction.  When MOST_NOTED are noted the fetch ends, and
 * goes on when these are buried.  A damaged tuple, which raises an error, ends
 * the fetch, and so costs two transactions; where what a look itself reads is
 * damaged (an array of tickets that is stored out of line) also that look.
 *
 * Until then they are nowhere but here and in the spool.  If they are not
 * buried, the spool is read anew, and they are met again.
 *
 * A tuple goes with what it has stored out of line, so one on whose TOAST pages
 * the server finds garbage cannot be deleted either.  Those before it are
 * buried then, and those behind it; it stays as it is, and is passed over by
 * this owner of the lane.  Such tuples are remembered by their place, in some
 * 40 bytes for each, of which kilobytes are damaged.  The worker.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* They take some hundred bytes each, and as long as it takes to store them. */
#define MOST_NOTED		1000

/* A tuple that is passed over. */
typedef struct Stuck
{
	ItemPointerData tid;		/* hash key */
	uint64		number;			/* what comes to this place later has another */
} Stuck;

/*
 * Can no more be noted before those are buried?
 */
bool
batcher_grave_full(const BatcherGrave *grave)
{
	return grave->n >= batcher_debug_limit("most-noted", MOST_NOTED);
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

/*
 * Bury what is noted from grave->done to grave->end, in the transaction in
 * progress.  Returns how many were buried; 'first' is one of them.
 */
static int
bury_tuples(BatcherGrave *grave, Relation spool, BatcherUnreadable **first,
			int64 *nrows)
{
	BlockNumber nblocks = RelationGetNumberOfBlocks(spool);
	Buffer		pin = InvalidBuffer;
	int			nburied = 0;
	int			i;

	PushActiveSnapshot(GetTransactionSnapshot());
	for (i = grave->done; i < grave->end; i++)
	{
		BatcherUnreadable *tuple = &grave->tuples[i];
		bool		deleted;

		CHECK_FOR_INTERRUPTS();
		grave->at = i;
		deleted = ItemPointerGetBlockNumber(&tuple->entry.tid) < nblocks &&
			batcher_spool_delete(spool, &tuple->entry.tid,
								 tuple->entry.number, &pin);
		grave->at = -1;
		/* one that is gone was settled another way, or was mended */
		if (!deleted)
			continue;
		batcher_dead_insert_unreadable(&tuple->entry, tuple->sqlerrcode,
									   tuple->why);
		if (nburied++ == 0)
			*first = tuple;
		*nrows += tuple->entry.nrows;
	}
	if (BufferIsValid(pin))
		ReleaseBuffer(pin);
	PopActiveSnapshot();
	return nburied;
}

/* Say what was buried. */
static void
report(BatcherLaneView *view, const BatcherUnreadable *first, int nburied)
{
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
 * Make what is noted dead letters, up to grave->end, in a transaction of its
 * own.
 */
void
batcher_grave_bury(BatcherLaneView *view, BatcherGrave *grave)
{
	Relation	spool;
	BatcherUnreadable *first = NULL;
	uint32		version;
	int64		nrows = 0;
	int			nburied = 0;

	if (grave->end <= grave->done)
		grave->end = grave->n;
	grave->at = -1;
	batcher_debug_point("noted");
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	spool = batcher_spool_open(RowExclusiveLock);
	/* as in a flush; and places are void if the table was rewritten */
	if (pg_atomic_read_u32(&view->queue->main->lane.frozen) == 0 &&
		pg_atomic_read_u64(&view->db->generation) == view->generation &&
		batcher_spool_version(view->db, spool, &version) &&
		version == grave->version)
		nburied = bury_tuples(grave, spool, &first, &nrows);
	table_close(spool, NoLock);
	batcher_debug_point("buried");
	CommitTransactionCommand();

	/* whoever was not buried may have to be read after all, in its place */
	if (nburied < grave->end - grave->done)
		batcher_readback_reset(view);
	grave->done = grave->end;
	if (nburied == 0)
		return;
	(void) pg_atomic_fetch_sub_u64(&view->queue->lane.nspilled, nrows);
	batcher_count(view->queue, BATCHER_ROWS_DEAD, nburied);
	report(view, first, nburied);
}

/* Remember that a tuple is passed over, and say so. */
static void
note_stuck(BatcherLaneView *view, const BatcherSpoolEntry *entry,
		   const ErrorData *error)
{
	ItemPointerData tid = entry->tid;
	Stuck	   *stuck;

	if (view->stuck == NULL)
	{
		HASHCTL		ctl;

		memset(&ctl, 0, sizeof(ctl));
		ctl.keysize = sizeof(ItemPointerData);
		ctl.entrysize = sizeof(Stuck);
		ctl.hcxt = TopMemoryContext;
		view->stuck = hash_create("batcher stuck tuples", 64, &ctl,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	stuck = hash_search(view->stuck, &tid, HASH_ENTER, NULL);
	stuck->number = entry->number;
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("queue \"%s\": a tuple of the spool can be neither read nor deleted, and is passed over",
					view->def->name),
			 errdetail("It is at (%u,%u) of the table batcher.spool: %s.",
					   ItemPointerGetBlockNumber(&tid),
					   ItemPointerGetOffsetNumber(&tid),
					   error->message ? error->message : ""),
			 errhint("It is tried again after a restart. A superuser can delete it with the trigger \"arrived\" of the table disabled and \"zero_damaged_pages\" on.")));
}

/*
 * A burial has failed by damage.  If that is of the tuple that it was about to
 * delete, pass over this one from now on, so that the burial can be tried
 * again.  False if it is not.
 */
bool
batcher_grave_pass_over(BatcherLaneView *view, BatcherGrave *grave,
						const ErrorData *error)
{
	int			at = grave->at;

	if (at < 0)
		return false;
	note_stuck(view, &grave->tuples[at].entry, error);
	grave->n--;
	memmove(&grave->tuples[at], &grave->tuples[at + 1],
			(grave->n - at) * sizeof(BatcherUnreadable));
	/* those before it passed: with them, none is deleted more than twice */
	grave->end = at;
	return true;
}

/*
 * Whether a tuple is one that is passed over.
 */
bool
batcher_grave_is_stuck(BatcherLaneView *view, const BatcherSpoolEntry *entry)
{
	Stuck	   *stuck;

	if (view->stuck == NULL)
		return false;
	stuck = hash_search(view->stuck, &entry->tid, HASH_FIND, NULL);
	return stuck && stuck->number == entry->number;
}

/*
 * Forget what is passed over.
 */
void
batcher_grave_reset(BatcherLaneView *view)
{
	if (view->stuck)
		hash_destroy(view->stuck);
	view->stuck = NULL;
}
