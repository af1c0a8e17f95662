/*
 * claim.c
 *	  Making a batch ours, and settling it.
 *
 * The claim is the first thing that a flush does: it deletes the tuples of the
 * batch from the spool, in the transaction of the flush.  A tuple of which
 * some rows stay is replaced by one with those rows.  A tuple that is not
 * where memory has it was settled another way, and its rows leave the batch:
 * so a durable row cannot be flushed twice, whatever else goes wrong.
 *
 * What the commit settles is marked in the chunks by this process's own
 * callback at the commit, with nothing in it that can fail, because a worker
 * that dies right after its commit must not leave rows that look as if they
 * waited.  Memory is freed afterwards from these marks, by whoever owns the
 * lane then.  The worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/clock.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* What the transaction in progress settles if it commits. */
static BatcherLaneView *settling_view = NULL;
static BatcherBatch *settling_batch = NULL;

/* Tuples that this process has deleted from the spool. */
static uint64 ndeleted = 0;

/*
 * How many tuples this process has deleted from the spool since the last call
 * with 'reset'.
 */
uint64
batcher_claim_deleted(bool reset)
{
	uint64		n = ndeleted;

	if (reset)
		ndeleted = 0;
	return n;
}

/* Group the rows of a batch by chunk; what is made outlives the transaction. */
static void
make_claims(BatcherBatch *batch)
{
	int			i;

	batch->claims = MemoryContextAllocHuge(GetMemoryChunkContext(batch),
										   batch->nrows * sizeof(BatcherClaim));
	batch->nclaims = 0;
	for (i = 0; i < batch->nrows; i++)
	{
		BatcherChunk *chunk = batch->rows[i].chunk;
		BatcherClaim *claim;

		if (i > 0 && batch->rows[i - 1].chunk == chunk)
		{
			batch->claims[batch->nclaims - 1].nrows++;
			continue;
		}
		claim = &batch->claims[batch->nclaims++];
		claim->chunk = chunk;
		claim->first = i;
		claim->nrows = 1;
		claim->gone = false;
		ItemPointerSetInvalid(&claim->new_tid);
	}
}

/* A claim with its tuple's place, block and offset, as one number. */
typedef struct Place
{
	uint64		place;
	BatcherClaim *claim;
} Place;

#define ST_SORT sort_places
#define ST_ELEMENT_TYPE Place
#define ST_COMPARE(a, b) ((a)->place < (b)->place ? -1 : (a)->place > (b)->place)
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

/* Store the rows of a claimed chunk that stay. */
static void
keep_rest(BatcherLaneView *view, BatcherBatch *batch, BatcherClaim *claim,
		  Relation spool, uint64 home)
{
	BatcherChunk *chunk = claim->chunk;
	BatcherRow **skip = palloc(claim->nrows * sizeof(BatcherRow *));
	const char *by = NULL;
	int			i;

	for (i = 0; i < claim->nrows; i++)
		skip[i] = batch->rows[claim->first + i].row;
	if (chunk->flags & BATCHER_CHUNK_PRIVATE)
		by = batcher_private_chunk(chunk)->enqueued_by;
	else
		by = GetUserNameFromId(chunk->enqueued_by, true);
	batcher_spool_write(spool, view->queue->key.queue_id, chunk, skip,
						claim->nrows,
						chunk->flags & BATCHER_CHUNK_PRIVATE ? 0 : home,
						by ? by : "", &claim->new_tid);
}

/* Take the rows of chunks that are gone out of the batch. */
static void
drop_gone(BatcherBatch *batch)
{
	int			kept = 0;
	int			i;
	int			j;

	for (i = 0; i < batch->nclaims; i++)
	{
		BatcherClaim *claim = &batch->claims[i];
		int			first = kept;

		if (claim->gone)
			continue;
		for (j = 0; j < claim->nrows; j++)
			batch->rows[kept++] = batch->rows[claim->first + j];
		claim->first = first;
	}
	batch->nrows = kept;
}

/*
 * Claim the rows of a batch, in the transaction of the flush, with the spool
 * open and locked.  False if the places that memory has are void, because the
 * table was rewritten: then the transaction is to be given up.
 */
bool
batcher_claim(BatcherLaneView *view, BatcherBatch *batch, Relation spool)
{
	Place	   *durable;
	Buffer		pin = InvalidBuffer;
	BlockNumber nblocks = InvalidBlockNumber;
	bool		some_gone = false;
	uint32		version;
	int			n = 0;
	int			i;

	make_claims(batch);
	if (!batcher_spool_version(view->db, spool, &version))
		return false;
	durable = palloc_extended(batch->nclaims * sizeof(Place),
							  MCXT_ALLOC_HUGE);
	for (i = 0; i < batch->nclaims; i++)
	{
		BatcherChunk *chunk = batch->claims[i].chunk;

		if (!(chunk->flags & BATCHER_CHUNK_DURABLE))
			continue;
		if (chunk->spool_version != (uint16) version)
			return false;
		durable[n].claim = &batch->claims[i];
		durable[n++].place =
			(uint64) ItemPointerGetBlockNumberNoCheck(&chunk->tid) << 16 |
			ItemPointerGetOffsetNumberNoCheck(&chunk->tid);
	}

	/* by place: one page after the other, and locks always in one order */
	sort_places(durable, n);
	if (n > 0)
		nblocks = RelationGetNumberOfBlocks(spool);
	for (i = 0; i < n; i++)
	{
		BatcherClaim *claim = durable[i].claim;
		BatcherChunk *chunk = claim->chunk;

		if (ItemPointerGetBlockNumber(&chunk->tid) >= nblocks ||
			!batcher_spool_delete(spool, &chunk->tid, chunk->number, &pin))
		{
			claim->gone = true;
			some_gone = true;
			elog(DEBUG1, "tuple (%u,%u) of chunk " UINT64_FORMAT " was settled another way",
				 ItemPointerGetBlockNumberNoCheck(&chunk->tid),
				 ItemPointerGetOffsetNumberNoCheck(&chunk->tid),
				 chunk->number);
		}
		else if (claim->nrows < chunk->nlive)
			keep_rest(view, batch, claim, spool, batcher_spool_home(version));
	}
	if (BufferIsValid(pin))
		ReleaseBuffer(pin);
	ndeleted += n;
	if (some_gone)
		drop_gone(batch);
	batcher_debug_point("claimed");
	return true;
}

/*
 * Have the batch settled when the transaction in progress commits.  Both
 * arguments must live until it has ended.
 */
void
batcher_settle_at_commit(BatcherLaneView *view, BatcherBatch *batch)
{
	settling_view = view;
	settling_batch = batch;
}

/* Mark the rows of one claim as settled; returns how many were. */
static int
mark_claim(BatcherBatch *batch, BatcherClaim *claim)
{
	BatcherChunk *chunk = claim->chunk;
	uint16		done = BATCHER_ROW_DONE;
	int			i;

	if (claim->gone)
	{
		BatcherRow *row = batcher_chunk_first(chunk);
		int			live = chunk->nlive;

		for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
			row->flags |= BATCHER_ROW_DONE | BATCHER_ROW_RECORDED;
		chunk->nlive = 0;
		return live;
	}
	if (batch->reason == BATCHER_REASON_PURGE)
		done |= BATCHER_ROW_PURGED;
	for (i = 0; i < claim->nrows; i++)
		batch->rows[claim->first + i].row->flags |= done;
	chunk->tid = claim->new_tid;
	chunk->nlive -= claim->nrows;
	return claim->nrows;
}

/* The flush has committed.  Nothing here may fail. */
static void
settle(BatcherLaneView *view, BatcherBatch *batch)
{
	BatcherSharedQueue *queue = view->queue;
	BatcherSharedLane *lane = &queue->lane;
	bool		purged = batch->reason == BATCHER_REASON_PURGE;
	uint64		from_memory = 0;
	uint64		from_spool = 0;
	int64		nvolatile = 0;
	int			i;

	for (i = 0; i < batch->nclaims; i++)
	{
		BatcherClaim *claim = &batch->claims[i];
		int			n = mark_claim(batch, claim);

		if (claim->chunk->flags & BATCHER_CHUNK_PRIVATE)
			from_spool += n;
		else
			from_memory += n;
		if (!(claim->chunk->flags & BATCHER_CHUNK_DURABLE))
			nvolatile += n;
	}
	if (nvolatile > 0)
		batcher_shmem_add_volatile(-nvolatile);
	(void) pg_atomic_fetch_sub_u64(&lane->npending, from_memory);
	(void) pg_atomic_fetch_sub_u64(&lane->nspilled, from_spool);
	(void) pg_atomic_fetch_add_u64(purged ? &lane->npurged : &lane->nflushed,
								   batch->nrows);
	if (!purged && batch->nrows > 0 && view->def->flush_sql &&
		batcher_message_wanted(view->def))
		(void) pg_atomic_fetch_add_u32(&lane->unsent, 1);
	batcher_count(queue, purged ? BATCHER_ROWS_PURGED : BATCHER_ROWS_FLUSHED,
				  batch->nrows);
}

static void
settle_xact_callback(XactEvent event, void *arg)
{
	if (settling_batch == NULL)
		return;
	if (event == XACT_EVENT_COMMIT)
		settle(settling_view, settling_batch);
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
	{
		settling_view = NULL;
		settling_batch = NULL;
	}
}

/*
 * Register the callback that settles.  A worker, once.
 */
void
batcher_settle_install(void)
{
	RegisterXactCallback(settle_xact_callback, NULL);
}

/*
 * After the commit: remember the fates of the batch's rows and give memory
 * back.
 */
void
batcher_settle_tidy(BatcherLaneView *view, BatcherBatch *batch)
{
	BatcherSharedQueue *queue = view->queue;
	int			settled = 0;
	int			i;

	LWLockAcquire(&queue->lane.lock, LW_EXCLUSIVE);
	for (i = 0; i < batch->nrows; i++)
	{
		BatcherBatchRow *r = &batch->rows[i];

		if (r->row->flags & BATCHER_ROW_RECORDED)
			continue;
		r->row->flags |= BATCHER_ROW_RECORDED;
		batcher_fate_record(queue, r->chunk->first_ticket + r->row->ticket,
							batch->reason == BATCHER_REASON_PURGE ?
							BATCHER_FATE_PURGED : BATCHER_FATE_FLUSHED);
	}
	LWLockRelease(&queue->lane.lock);

	for (i = 0; i < batch->nclaims; i++)
	{
		BatcherChunk *chunk = batch->claims[i].chunk;

		if (chunk->nlive == 0 && !(chunk->flags & BATCHER_CHUNK_PRIVATE))
			settled++;
	}
	if (settled > 0)
		batcher_lane_sweep(queue, settled);
	batcher_readback_tidy(view);
	ConditionVariableBroadcast(batcher_settled_cv(queue->key.queue_id));
}

/*
 * The spool was rewritten (VACUUM FULL, CLUSTER): every place that memory has
 * is void, and the rows are read back.  Before the new file is taken as a new
 * version, all lanes count as spilled, so that nothing overtakes the rows
 * whose places are void; each lane lets its own chunks go when a claim meets
 * them.  The spool is open and locked.
 */
void
batcher_settle_resync(BatcherLaneView *view, Relation spool)
{
	BatcherSharedLane *lane = &view->queue->lane;
	dsa_pointer p;
	uint64		forgotten = 0;
	uint32		version;

	if (!batcher_spool_version(view->db, spool, &version))
	{
		BatcherSharedQueue **list;
		int			n;

		list = palloc_array(BatcherSharedQueue *, batcher_max_queues);
		n = batcher_shmem_queue_list(MyDatabaseId, list, batcher_max_queues);
		while (n-- > 0)
			batcher_lane_spill_mark(&list[n]->lane);
		pfree(list);
		(void) batcher_spool_new_version(view->db, spool);
		(void) batcher_spool_version(view->db, spool, &version);
	}
	batcher_lane_spill_mark(lane);
	batcher_readback_reset(view);
	if (batcher_lane_take(lane) > 0)
		view->nimmediate = -1;	/* count anew */
	for (p = lane->taken_head; DsaPointerIsValid(p);)
	{
		BatcherChunk *chunk = batcher_area_address(p);
		BatcherRow *row = batcher_chunk_first(chunk);
		int			i;

		p = chunk->next;
		if (!(chunk->flags & BATCHER_CHUNK_DURABLE) ||
			chunk->spool_version == (uint16) version ||
			pg_atomic_read_u32(&chunk->state) != BATCHER_CHUNK_COMMITTED)
			continue;
		for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
			row->flags |= BATCHER_ROW_DONE | BATCHER_ROW_RECORDED;
		forgotten += chunk->nlive;
		chunk->nlive = 0;
	}
	(void) pg_atomic_fetch_sub_u64(&lane->npending, forgotten);
	(void) pg_atomic_fetch_add_u64(&lane->nspilled, forgotten);
	batcher_lane_sweep(view->queue, PG_INT32_MAX);
	elog(DEBUG1, "the spool was rewritten: " UINT64_FORMAT " rows of queue \"%s\" are read back",
		 forgotten, view->def->name);
}
