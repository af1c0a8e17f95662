/*
 * readback.c
 *	  Rows that come back from the spool: after a crash, a promotion or a
 *	  restore, and when memory was full, all by the same code.
 *
 * A lane that counts as spilled takes no durable row into memory.  When its
 * owner has flushed most of what memory holds, one scan of the spool notes
 * number and place of each of its tuples that has its home elsewhere; sorted
 * by number, they are fetched as batches need them.  When all that a scan
 * noted is flushed, the next scan looks for what was spilled since; one that
 * finds nothing returns the lane to memory (batcher_lane_spill_clear).
 *
 * What is noted takes 24 bytes a tuple.  Of a spool with more tuples than
 * MAX_ENTRIES the oldest are noted, and the next scan finds the others.
 *
 * A reading that cannot go on (the table was rewritten, a tuple is gone)
 * begins anew: nothing here is the truth.  The worker.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "batch/passed.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define MAX_ENTRIES		(4 * 1024 * 1024)

/*
 * Rows are read so many bytes at a time, while few of those at hand are ready;
 * and at most so many are at hand.  Where rows of one key become one all these
 * are read, because what is at hand may be waiting for later ones.  Elsewhere
 * keys that wait for a row that is tried again are passed over then, so that
 * they do not keep others from being read (passed.c).
 */
#define READ_AHEAD		(4 * 1024 * 1024)
#define MOST_AHEAD		(64 * 1024 * 1024)

/*
 * One tuple.  Tuples that one large transaction sealed have a group, and come
 * at the place of its last number, in the order of their own.
 */
typedef struct Entry
{
	uint64		order;			/* where it comes */
	uint64		number;
	ItemPointerData tid;
} Entry;

/* The largest number of a group; until a look has ended, so far. */
typedef struct Group
{
	uint64		group;			/* hash key */
	uint64		last;
} Group;

struct BatcherReadback
{
	MemoryContext cxt;			/* holds this, the entries and the chunks */
	uint32		version;		/* of the spool, in which the places are */
	Entry	   *entries;
	int			nentries;
	int			allocated;
	int			next;			/* the first that was not fetched */
	uint64		scanned_upto;	/* what was visible below this number when the
								 * scan began is among the entries */
	bool		partial;		/* there are more than the entries */
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

	if (rb->next < rb->nentries)
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
	if (rb == NULL || rb->next < rb->nentries)
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

	return rb != NULL && rb->next < rb->nentries &&
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
		(rb->next < rb->nentries ? rb->entries[rb->next].order >= upto :
		 !rb->partial);
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

static int
compare_entries(const void *a, const void *b)
{
	const Entry *ea = a;
	const Entry *eb = b;

	if (ea->order != eb->order)
		return ea->order < eb->order ? -1 : 1;
	return ea->number < eb->number ? -1 : ea->number > eb->number;
}

/* What the scan for one lane is about. */
typedef struct LaneScan
{
	BatcherReadback *rb;
	int32		queue_id;
	int32		lane;
	int32		nlanes;
	uint64		home;
	int			max_entries;
	bool		second;			/* the groups are complete by the first look */
	bool		too_many;		/* the first look has met too many to keep */
	Entry		cut;			/* the oldest that was not kept, if partial */
	int64		nrows;
	HTAB	   *groups;			/* NULL: none seen */
} LaneScan;

/* Note that a group has a tuple with this number. */
static void
note_group(LaneScan *scan, uint64 group, uint64 number)
{
	Group	   *entry;
	bool		found;

	if (scan->groups == NULL)
	{
		HASHCTL		ctl;

		memset(&ctl, 0, sizeof(ctl));
		ctl.keysize = sizeof(uint64);
		ctl.entrysize = sizeof(Group);
		ctl.hcxt = scan->rb->cxt;
		scan->groups = hash_create("batcher groups", 64, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(scan->groups, &group, HASH_ENTER, &found);
	if (!found || number > entry->last)
		entry->last = number;
}

/* Where a tuple comes that has this group; what is no group is a place. */
static uint64
place_of_group(LaneScan *scan, uint64 group)
{
	Group	   *entry = NULL;

	if (scan->groups)
		entry = hash_search(scan->groups, &group, HASH_FIND, NULL);
	return entry ? entry->last : group;
}

/* Keep the older half of too many entries. */
static void
keep_oldest(LaneScan *scan)
{
	BatcherReadback *rb = scan->rb;

	qsort(rb->entries, rb->nentries, sizeof(Entry), compare_entries);
	rb->nentries = scan->max_entries;
	rb->partial = true;
	scan->cut = rb->entries[rb->nentries];
}

/* Note one tuple. */
static void
add_entry(LaneScan *scan, const Entry *entry)
{
	BatcherReadback *rb = scan->rb;

	/* nothing that comes after what is left for the next scan */
	if (rb->partial && compare_entries(entry, &scan->cut) > 0)
		return;
	if (rb->nentries == rb->allocated)
	{
		rb->allocated = rb->allocated ? rb->allocated * 2 : 1024;
		if (rb->entries == NULL)
			rb->entries = MemoryContextAllocHuge(rb->cxt,
												 rb->allocated * sizeof(Entry));
		else
			rb->entries = repalloc_huge(rb->entries,
										rb->allocated * sizeof(Entry));
	}
	rb->entries[rb->nentries++] = *entry;
}

static void
visit_entry(HeapTuple tuple, const BatcherSpoolEntry *entry, void *arg)
{
	LaneScan   *scan = arg;
	BatcherReadback *rb = scan->rb;
	uint64		group = (int64) entry->home < 0 ?
		0 - entry->home : 0;
	Entry		noted;

	/* a lane that there is not, though none should be stored, is another one */
	if (entry->queue_id != scan->queue_id || entry->home == scan->home ||
		(uint32) entry->lane % scan->nlanes != scan->lane)
		return;
	if (!scan->second)
	{
		scan->nrows += entry->nrows;
		if (group != 0)
			note_group(scan, group, entry->number);
		/* which of them are the oldest is known when all groups are */
		if (rb->nentries == 2 * scan->max_entries)
			scan->too_many = true;
		if (scan->too_many)
			return;
	}
	else if (rb->nentries == 2 * scan->max_entries)
		keep_oldest(scan);
	noted.number = entry->number;
	noted.order = group == 0 ? entry->number :
		scan->second ? place_of_group(scan, group) : group;
	noted.tid = entry->tid;
	add_entry(scan, &noted);
}

/* Fill the entries, in order, by one look or two at what a snapshot sees. */
static void
find_entries(LaneScan *scan, Relation spool)
{
	BatcherReadback *rb = scan->rb;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int			i;

	batcher_spool_scan(spool, snapshot, visit_entry, scan);
	if (!scan->too_many)
	{
		for (i = 0; scan->groups && i < rb->nentries; i++)
			rb->entries[i].order = place_of_group(scan, rb->entries[i].order);
	}
	else
	{
		scan->second = true;
		rb->nentries = 0;
		batcher_spool_scan(spool, snapshot, visit_entry, scan);
	}
	UnregisterSnapshot(snapshot);
	qsort(rb->entries, rb->nentries, sizeof(Entry), compare_entries);
	if (scan->groups)
		hash_destroy(scan->groups);
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
	LaneScan	scan = {
		.rb = rb,
		.queue_id = view->queue->key.queue_id,
		.lane = view->queue->key.lane,
		.nlanes = view->def->options.lanes,
		.home = batcher_spool_home(version),
		.max_entries = batcher_debug_limit("max-entries", MAX_ENTRIES)
	};

	rb->cxt = cxt;
	rb->version = version;
	batcher_readback_reset(view);
	view->readback = rb;
	rb->scanned_upto = pg_atomic_read_u64(&view->db->next_number);
	pg_memory_barrier();
	before = pg_atomic_read_u64(&lane->nspilled);
	find_entries(&scan, spool);
	count_spilled(lane, seen, before, scan.nrows);
	if (seen & BATCHER_SPILL_UNKNOWN)
		batcher_lane_spill_known(lane, view->db, restores);
	if (rb->nentries > 0)
		return;
	/* a lane that the queue did not have may have got rows meanwhile */
	if ((scan.lane >= scan.nlanes &&
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

	while (rb->next < rb->nentries && rb->bytes < limit &&
		   !batcher_grave_full(grave))
	{
		Entry	   *entry = &rb->entries[rb->next];
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
	if (rb == NULL || rb->next >= rb->nentries ||
		!ItemPointerEquals(&rb->entries[rb->next].tid,
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
