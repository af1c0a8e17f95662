/*
 * readback.c
 *	  Rows that come back from the spool: after a crash, a promotion or a
 *	  restore, and when memory was full, all by the same code.
 *
 * A lane that counts as spilled takes no durable row into memory.  When its
 * owner has flushed most of what memory holds, one scan of the spool notes
 * number and place of each of its tuples that has its home elsewhere
 * (entries.c), but for those that are passed over (bury.c); sorted by number,
 * they are fetched as batches need them.  When all that a scan noted is flushed,
 * the next scan looks for what was spilled since; one that finds nothing returns
 * the lane to memory (batcher_lane_spill_clear).
 *
 * A reading that cannot go on (the table was rewritten, a tuple is gone)
 * begins anew: nothing here is the truth.  The worker.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "batch/entries.h"
#include "batch/passed.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/*
 * Rows are read so many bytes at a time, while few of those at hand are ready;
 * and at most so many are at hand.  Where rows of one key become one all these
 * are read, because what is at hand may be waiting for later ones.  Elsewhere
 * keys that wait for a row that is tried again are passed over then, so that
 * they do not keep others from being read (passed.c).
 */
#define READ_AHEAD		(4 * 1024 * 1024)
#define MOST_AHEAD		(64 * 1024 * 1024)

struct BatcherReadback
{
	MemoryContext cxt;			/* holds this, the entries and the chunks */
	uint32		version;		/* of the spool, in which the places are */
	BatcherEntries found;
	int			next;			/* of these, the first that was not fetched */
	uint64		scanned_upto;	/* what was visible below this number when the
								 * scan began is among the entries */
	int64		nlive;			/* rows of the chunks that are not settled */
	Size		bytes;			/* of the chunks */
	BatcherPassed passed;		/* keys that are not read for now */
	bool		none_passes;	/* of the chunks none is of these */
	BatcherPrivateChunk *first;
	BatcherPrivateChunk *last;
	BatcherPrivateChunk *untaken;	/* the first that the index does not have */
};

/*
 * Forget what was read: it is read again when it is needed.
 */
void
batcher_readback_reset(BatcherLaneView *view)
{
	if (view->readback == NULL)
		return;
	batcher_index_reset(view);
	MemoryContextDelete(view->readback->cxt);
	view->readback = NULL;
}

/*
 * The chunks that were read and are not settled, oldest first.
 */
BatcherChunk *
batcher_readback_first(BatcherLaneView *view)
{
	return view->readback && view->readback->first ?
		&view->readback->first->chunk : NULL;
}

BatcherChunk *
batcher_readback_next(BatcherChunk *chunk)
{
	BatcherPrivateChunk *next = batcher_private_chunk(chunk)->next;

	return next ? &next->chunk : NULL;
}

/*
 * The next chunk that was read and that the index does not have, or NULL.
 */
BatcherChunk *
batcher_readback_take(BatcherLaneView *view)
{
	BatcherPrivateChunk *private = view->readback ? view->readback->untaken :
		NULL;

	if (private == NULL)
		return NULL;
	view->readback->untaken = private->next;
	return &private->chunk;
}

/*
 * The index is built anew: it has none of the chunks.
 */
void
batcher_readback_rewind(BatcherLaneView *view)
{
	if (view->readback)
		view->readback->untaken = view->readback->first;
}

/*
 * Is it time to look through the spool again?  When all that was found is
 * fetched and settled; also when what is left of it waits, to be tried again
 * or for the row of its key that is, and others have come since.
 */
static bool
wants_scan(BatcherLaneView *view)
{
	BatcherReadback *rb = view->readback;

	if (rb->next < rb->found.n)
		return false;
	return rb->nlive + rb->passed.nrows == 0 ||
		(int64) pg_atomic_read_u64(&view->queue->lane.nspilled) >
		rb->nlive + rb->passed.nrows;
}

static Size
most_ahead(void)
{
	return batcher_debug_limit("most-ahead", MOST_AHEAD);
}

/* May more be read, as far as memory is concerned? */
static bool
has_room(BatcherLaneView *view)
{
	return view->readback->bytes < most_ahead();
}

/* May there be room once more keys are passed over? */
static bool
may_pass(BatcherLaneView *view)
{
	return view->def->options.key_policy == BATCHER_KEYS_ALL &&
		view->index != NULL && !view->readback->none_passes;
}

/* Let go of the chunks whose rows all wait for one that is tried again. */
static void
pass_over(BatcherLaneView *view)
{
	BatcherReadback *rb = view->readback;
	MemoryContext old = MemoryContextSwitchTo(rb->cxt);
	List	   *chunks = NIL;
	ListCell   *lc;
	BatcherChunk *chunk;

	for (chunk = batcher_readback_first(view); chunk;
		 chunk = batcher_readback_next(chunk))
	{
		if (chunk->nlive > 0 && batcher_passed_note(view, &rb->passed, chunk))
			chunks = lappend(chunks, chunk);
	}
	MemoryContextSwitchTo(old);
	if (chunks)
		batcher_index_reset(view);
	foreach(lc, chunks)
	{
		chunk = lfirst(lc);
		batcher_passed_count(&rb->passed, chunk,
							 batcher_private_chunk(chunk)->place);
		rb->nlive -= chunk->nlive;
		batcher_readback_release(view, chunk);
	}
	rb->none_passes = chunks == NIL;
	list_free(chunks);
}

/*
 * If rows that were passed over need not wait any longer, forget what was read:
 * it is read anew with them.  Before rows are gathered.
 */
void
batcher_readback_recall(BatcherLaneView *view)
{
	if (view->readback && !batcher_passed_wait(view, &view->readback->passed))
		batcher_readback_reset(view);
}

/*
 * Whether more should be read: the lane is spilled, and fewer rows than a
 * batch takes are at hand.  What is held back, or waits to be tried again, is
 * no row for the next batch.  Where rows of one key become one, those that
 * were found in the spool are read in any case.
 */
bool
batcher_readback_low(BatcherLaneView *view)
{
	BatcherReadback *rb = view->readback;
	const BatcherOptions *options = &view->def->options;
	bool		low = batcher_gather_ready(view) < options->max_batch_size;

	if (!batcher_lane_spilled(&view->queue->lane))
		return false;
	if (rb == NULL || rb->next < rb->found.n)
		return (low || options->key_policy != BATCHER_KEYS_ALL) &&
			(rb == NULL || has_room(view) || may_pass(view));
	return low && wants_scan(view);
}

/*
 * Whether some of what was found has not been read, and there is room for it, or
 * may be.
 */
bool
batcher_readback_unread(BatcherLaneView *view)
{
	BatcherReadback *rb = view->readback;

	return rb != NULL && rb->next < rb->found.n &&
		(has_room(view) || may_pass(view));
}

/*
 * Whether the spool holds nothing of the lane with a smaller number that was
 * visible when 'upto' was drawn.
 */
bool
batcher_readback_settled(BatcherLaneView *view, uint64 upto)
{
	BatcherReadback *rb = view->readback;

	if (!batcher_lane_spilled(&view->queue->lane))
		return true;
	/*
	 * The chunks that were read have been looked at by the caller.  The scan
	 * must have begun after 'upto' was drawn, which moved the next number
	 * beyond it.
	 */
	return rb != NULL && rb->scanned_upto > upto &&
		(rb->passed.nrows == 0 || rb->passed.from >= upto) &&
		(rb->next < rb->found.n ? rb->found.list[rb->next].order >= upto :
		 !rb->found.partial);
}

/*
 * So many rows of the chunks are settled.  In a commit callback.
 */
void
batcher_readback_count_settled(BatcherLaneView *view, int64 nrows)
{
	if (view->readback)
		view->readback->nlive -= nrows;
}

/*
 * Let go of a chunk that is settled.
 */
void
batcher_readback_release(BatcherLaneView *view, BatcherChunk *chunk)
{
	BatcherReadback *rb = view->readback;
	BatcherPrivateChunk *private = batcher_private_chunk(chunk);

	if (private->previous)
		private->previous->next = private->next;
	else
		rb->first = private->next;
	if (private->next)
		private->next->previous = private->previous;
	else
		rb->last = private->previous;
	if (rb->untaken == private)
		rb->untaken = private->next;
	rb->bytes -= batcher_chunk_bytes(chunk);
	rb->none_passes = false;
	pfree(private->enqueued_by);
	pfree(private);
}

/*
 * A scan has found 'nrows' rows of a lane, after its spill word was 'seen' and
 * its count 'before'.  Later they are counted by those who spill, settle and
 * bury, but not those of a damaged tuple: so each scan in which nobody has
 * spilled sets the count right.
 */
static void
count_spilled(BatcherSharedLane *lane, uint64 seen, uint64 before,
			  int64 nrows)
{
	if (seen & BATCHER_SPILL_UNKNOWN)
		pg_atomic_write_u64(&lane->nspilled, nrows);
	else if (!(seen & BATCHER_SPILL_COMMITTING) &&
			 pg_atomic_read_u64(&lane->spill) == seen)
		(void) pg_atomic_compare_exchange_u64(&lane->nspilled, &before, nrows);
}

/*
 * Look through the spool.  If there is nothing the lane is in memory again; if
 * that is not certain nothing is known of it, and the definitions are read anew.
 */
static void
scan_spool(BatcherLaneView *view, Relation spool, uint32 version)
{
	BatcherSharedLane *lane = &view->queue->lane;
	uint32		restores = pg_atomic_read_u32(&view->db->restores);
	uint64		seen = pg_atomic_read_u64(&lane->spill);
	uint64		before;
	MemoryContext cxt = AllocSetContextCreate(TopMemoryContext,
											  "batcher readback",
											  ALLOCSET_DEFAULT_SIZES);
	BatcherReadback *rb = MemoryContextAllocZero(cxt, sizeof(BatcherReadback));
	int			nlanes = view->def->options.lanes;
	int64		nrows;

	rb->cxt = rb->found.cxt = cxt;
	rb->version = version;
	batcher_readback_reset(view);
	view->readback = rb;
	rb->scanned_upto = pg_atomic_read_u64(&view->db->next_number);
	pg_memory_barrier();
	before = pg_atomic_read_u64(&lane->nspilled);
	nrows = batcher_entries_find(&rb->found, spool, view,
								 batcher_spool_home(version));
	count_spilled(lane, seen, before, nrows);
	if (seen & BATCHER_SPILL_UNKNOWN)
		batcher_lane_spill_known(lane, view->db, restores);
	if (rb->found.n > 0)
		return;
	/* a lane that the queue did not have may have got rows meanwhile */
	if ((view->queue->key.lane >= nlanes &&
		 pg_atomic_read_u64(&view->db->generation) != view->generation) ||
		batcher_lane_spill_clear(lane, seen & ~BATCHER_SPILL_UNKNOWN))
		batcher_readback_reset(view);
}

/*
 * Fetch what the entries name, up to the read-ahead; what cannot be read is
 * noted.  False if something is not where the scan has found it.
 */
static bool
fetch_chunks(BatcherLaneView *view, Relation spool, BatcherGrave *grave)
{
	BatcherReadback *rb = view->readback;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext,
												  "batcher fetch",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(scratch);
	bool		all_there = true;
	/* few of those at hand are ready, the others wait for one of their key */
	Size		limit = view->def->options.key_policy == BATCHER_KEYS_ALL ?
		Min(rb->bytes + READ_AHEAD, most_ahead()) : most_ahead();

	while (rb->next < rb->found.n && rb->bytes < limit &&
		   !batcher_grave_full(grave))
	{
		BatcherEntry *entry = &rb->found.list[rb->next];
		BatcherSpoolEntry place = {.number = entry->number,.tid = entry->tid};
		const char *why;
		BatcherChunk *chunk;
		BatcherPrivateChunk *private;
		Size		size;

		CHECK_FOR_INTERRUPTS();
		chunk = batcher_spool_fetch(spool, snapshot, &place, &why);
		if (chunk == NULL && why == NULL)
		{
			all_there = false;
			break;
		}
		rb->next++;
		if (chunk == NULL)
		{
			batcher_grave_note(grave, &place, ERRCODE_DATA_CORRUPTED, why);
			MemoryContextReset(scratch);
			continue;
		}
		if (batcher_passed_has(&rb->passed, chunk))
		{
			batcher_passed_count(&rb->passed, chunk, entry->order);
			MemoryContextReset(scratch);
			continue;
		}
		size = batcher_chunk_bytes(chunk);
		private = MemoryContextAllocHuge(rb->cxt,
										 offsetof(BatcherPrivateChunk, chunk) +
										 size);
		memcpy(private, batcher_private_chunk(chunk),
			   offsetof(BatcherPrivateChunk, chunk) + size);
		private->next = NULL;
		private->previous = rb->last;
		private->chunk.spool_version = rb->version;
		private->place = entry->order;
		private->enqueued_by = MemoryContextStrdup(rb->cxt,
												   private->enqueued_by);
		if (rb->last)
			rb->last->next = private;
		else
			rb->first = private;
		rb->last = private;
		if (rb->untaken == NULL)
			rb->untaken = private;
		rb->nlive += chunk->nlive;
		rb->bytes += size;
		MemoryContextReset(scratch);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	UnregisterSnapshot(snapshot);
	return all_there;
}

/*
 * If the fetch of this tuple has just raised an error, and nothing else, go on
 * behind it the next time.  False if it was not that.
 */
bool
batcher_readback_skip(BatcherLaneView *view, const BatcherSpoolEntry *entry)
{
	BatcherReadback *rb = view->readback;

	/* a scan that is not complete has nothing of the tuple that it is at */
	if (rb == NULL || rb->next >= rb->found.n ||
		!ItemPointerEquals(&rb->found.list[rb->next].tid,
						   (ItemPointer) &entry->tid))
		return false;
	rb->next++;
	return true;
}

/*
 * Read more rows of a spilled lane, in a transaction of its own.  The caller
 * buries what is noted in 'grave', which is empty, before anything else.
 */
void
batcher_readback_refill(BatcherLaneView *view, BatcherGrave *grave)
{
	Relation	spool;
	uint32		version;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	spool = batcher_spool_open(AccessShareLock);
	if (!batcher_spool_version(view->db, spool, &version))
	{
		/* go on, because nobody may wake us for what is waited for */
		batcher_settle_resync(view, spool);
		(void) batcher_spool_version(view->db, spool, &version);
	}
	grave->version = version;
	/* another lane may have noticed that the table was rewritten */
	if (view->readback && view->readback->version != version)
		batcher_readback_reset(view);
	if (view->readback == NULL || wants_scan(view))
		scan_spool(view, spool, version);
	if (view->readback && !has_room(view) && may_pass(view))
		pass_over(view);
	/* left out now and found later it would come after rows of its key */
	while (view->readback && !fetch_chunks(view, spool, grave))
	{
		grave->n = 0;
		scan_spool(view, spool, version);
	}
	table_close(spool, AccessShareLock);
	CommitTransactionCommand();
}
