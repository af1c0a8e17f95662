/*
 * settle.c
 *	  Settling a batch that was claimed.
 *
 * At the end of the transaction a tuple of the spool of which some rows stay is
 * replaced by one with those rows.
 *
 * What the commit settles is marked in the chunks by this process's own
 * callback at the commit, with nothing in it that can fail, because a worker
 * that dies right after its commit must not leave rows that look as if they
 * waited.  Memory is freed afterwards from these marks, by whoever owns the
 * lane then.  The worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "batch/batch.h"
#include "miscadmin.h"

/* What the transaction in progress settles if it commits. */
static BatcherLaneView *settling_view = NULL;
static BatcherBatch *settling_batch = NULL;

/*
 * Store the rows of a claimed chunk that stay.  What was read back goes on
 * having no home, but for that of the large transaction that it is part of.
 */
static void
keep_rest(BatcherLaneView *view, BatcherBatch *batch, BatcherClaim *claim,
		  Relation spool, uint64 home)
{
	BatcherChunk *chunk = claim->chunk;
	BatcherRow **skip = palloc_array(BatcherRow *, Max(claim->nsettled, 1));
	const char *by = batcher_spool_enqueuer(chunk);
	int			n = 0;
	int			i;

	for (i = claim->first; i >= 0; i = batch->rows[i].next)
	{
		if (batcher_outcome_settles(batch->rows[i].outcome))
			skip[n++] = batch->rows[i].row;
	}
	batcher_spool_write(spool, &view->queue->key, chunk,
						claim->new_number ? claim->new_number : chunk->number,
						skip, n,
						chunk->flags & BATCHER_CHUNK_PRIVATE ?
						Min(batcher_private_chunk(chunk)->home, 0) : home,
						by ? by : "", &claim->new_tid);
}

/*
 * Have the batch settled, as the outcomes of its rows say, when the
 * transaction in progress commits; what stays of claimed tuples is stored.
 * The first two arguments must live until the transaction has ended; the
 * spool is open and locked.
 */
void
batcher_settle_at_commit(BatcherLaneView *view, BatcherBatch *batch,
						 Relation spool)
{
	uint32		version;
	int			i;
	int			j;

	/* an abort takes the charges back */
	settling_view = view;
	settling_batch = batch;
	for (i = batch->nrows; i < batch->nall; i++)
	{
		BatcherBatchRow *r = &batch->rows[i];

		r->outcome = r->by >= 0 &&
			batch->rows[r->by].outcome == BATCHER_OUTCOME_FLUSHED ?
			BATCHER_OUTCOME_SUPERSEDED : BATCHER_OUTCOME_STAYS;
	}
	(void) batcher_spool_version(view->db, spool, &version);
	for (i = 0; i < batch->nclaims; i++)
	{
		BatcherClaim *claim = &batch->claims[i];

		if (claim->gone)
			continue;
		claim->nsettled = 0;
		for (j = claim->first; j >= 0; j = batch->rows[j].next)
		{
			BatcherBatchRow *r = &batch->rows[j];

			if (batcher_outcome_settles(r->outcome))
				claim->nsettled++;
			else if (r->outcome == BATCHER_OUTCOME_FAILED)
				r->row->attempts++;
		}
		batch->ncharged = i + 1;
	}
	for (i = 0; i < batch->nclaims; i++)
	{
		BatcherClaim *heir = batcher_claim_heir(batch, &batch->claims[i]);

		if (heir)
			heir->new_number = batch->claims[i].chunk->number;
	}
	for (i = 0; i < batch->nclaims; i++)
	{
		BatcherClaim *claim = &batch->claims[i];

		if ((claim->chunk->flags & BATCHER_CHUNK_DURABLE) && !claim->gone &&
			claim->nsettled < claim->chunk->nlive)
			keep_rest(view, batch, claim, spool, batcher_spool_home(version));
	}
}

/* Mark the rows of one claim; returns how many of its chunk are settled. */
static int
mark_claim(BatcherBatch *batch, BatcherClaim *claim)
{
	static const uint16 flags[] = {
		[BATCHER_OUTCOME_FLUSHED] = BATCHER_ROW_DONE,
		[BATCHER_OUTCOME_PURGED] = BATCHER_ROW_DONE | BATCHER_ROW_PURGED,
		[BATCHER_OUTCOME_DEAD] = BATCHER_ROW_DONE | BATCHER_ROW_DEAD,
		[BATCHER_OUTCOME_SUPERSEDED] = BATCHER_ROW_DONE | BATCHER_ROW_SUPERSEDED,
	};
	BatcherChunk *chunk = claim->chunk;
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
	for (i = claim->first; i >= 0; i = batch->rows[i].next)
	{
		BatcherBatchRow *r = &batch->rows[i];

		if (batcher_outcome_settles(r->outcome))
			r->row->flags |= flags[r->outcome];
	}
	chunk->tid = claim->new_tid;
	if (claim->new_number != 0)
		chunk->number = claim->new_number;
	chunk->nlive -= claim->nsettled;
	return claim->nsettled;
}

/* Count what has become of the rows of a batch. */
static void
count_outcomes(BatcherSharedQueue *queue, BatcherBatch *batch)
{
	int64		counts[BATCHER_OUTCOME_STAYS + 1] = {0};
	int64		nretried;
	int			i;

	for (i = 0; i < batch->nall; i++)
		counts[batch->rows[i].outcome]++;
	nretried = counts[BATCHER_OUTCOME_FAILED] + counts[BATCHER_OUTCOME_PUT_OFF];
	(void) pg_atomic_fetch_add_u64(&queue->lane.nflushed,
								   counts[BATCHER_OUTCOME_FLUSHED]);
	(void) pg_atomic_fetch_add_u64(&queue->lane.npurged,
								   counts[BATCHER_OUTCOME_PURGED]);
	batcher_count(queue, BATCHER_ROWS_FLUSHED, counts[BATCHER_OUTCOME_FLUSHED]);
	batcher_count(queue, BATCHER_ROWS_SUPERSEDED,
				  counts[BATCHER_OUTCOME_SUPERSEDED]);
	batcher_count(queue, BATCHER_ROWS_PURGED, counts[BATCHER_OUTCOME_PURGED]);
	batcher_count(queue, BATCHER_ROWS_DEAD, counts[BATCHER_OUTCOME_DEAD]);
	batcher_count(queue, BATCHER_ROWS_FAILED, counts[BATCHER_OUTCOME_FAILED] +
				  counts[BATCHER_OUTCOME_DEAD]);
	batcher_count(queue, BATCHER_ROWS_RETRIED, nretried);
}

/* The flush has committed.  Nothing here may fail. */
static void
settle(BatcherLaneView *view, BatcherBatch *batch)
{
	BatcherSharedLane *lane = &view->queue->lane;
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
	batcher_readback_count_settled(view, from_spool);
	if (batcher_definition_executes(view->def))
		(void) pg_atomic_fetch_add_u32(&lane->unsent, batcher_message_made());
	count_outcomes(view->queue, batch);
}

/* The flush has failed: nobody is charged. */
static void
take_charges_back(BatcherBatch *batch)
{
	int			i;
	int			j;

	for (i = 0; i < batch->ncharged; i++)
	{
		BatcherClaim *claim = &batch->claims[i];

		for (j = claim->first; j >= 0; j = batch->rows[j].next)
		{
			if (batch->rows[j].outcome == BATCHER_OUTCOME_FAILED)
				batch->rows[j].row->attempts--;
		}
	}
}

static void
settle_xact_callback(XactEvent event, void *arg)
{
	if (settling_batch == NULL)
		return;
	if (event == XACT_EVENT_COMMIT)
		settle(settling_view, settling_batch);
	else if (event == XACT_EVENT_ABORT)
		take_charges_back(settling_batch);
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
	static const BatcherFate fates[] = {
		[BATCHER_OUTCOME_FLUSHED] = BATCHER_FATE_FLUSHED,
		[BATCHER_OUTCOME_PURGED] = BATCHER_FATE_PURGED,
		[BATCHER_OUTCOME_DEAD] = BATCHER_FATE_DEAD,
		[BATCHER_OUTCOME_SUPERSEDED] = BATCHER_FATE_SUPERSEDED,
	};
	BatcherSharedQueue *queue = view->queue;
	BatcherChunk **settled;
	int			nsettled = 0;
	int			i;

	LWLockAcquire(&queue->lane.lock, LW_EXCLUSIVE);
	for (i = 0; i < batch->nall; i++)
	{
		BatcherBatchRow *r = &batch->rows[i];

		if (!batcher_outcome_settles(r->outcome) ||
			(r->row->flags & BATCHER_ROW_RECORDED))
			continue;
		r->row->flags |= BATCHER_ROW_RECORDED;
		batcher_fate_record(queue, r->chunk->first_ticket + r->row->ticket,
							fates[r->outcome]);
	}
	LWLockRelease(&queue->lane.lock);
	for (i = 0; view->retries && i < batch->nall; i++)
	{
		BatcherBatchRow *r = &batch->rows[i];

		if (batcher_outcome_settles(r->outcome))
			batcher_retry_remove(view, r->chunk->first_ticket + r->row->ticket);
	}

	/* rows that are not of the batch are settled with it if a chunk is gone */
	for (i = 0; i < batch->nclaims; i++)
	{
		if (batch->claims[i].gone)
			batcher_index_reset(view);
	}
	batcher_batch_return(view, batch);
	settled = palloc_extended(batch->nclaims * sizeof(BatcherChunk *),
							  MCXT_ALLOC_HUGE);
	for (i = 0; i < batch->nclaims; i++)
	{
		BatcherChunk *chunk = batch->claims[i].chunk;

		if (chunk->nlive > 0)
			continue;
		if (chunk->flags & BATCHER_CHUNK_PRIVATE)
			batcher_readback_release(view, chunk);
		else
			settled[nsettled++] = chunk;
	}
	batcher_lane_release(queue, settled, nsettled);
	pfree(settled);
	ConditionVariableBroadcast(batcher_settled_cv(queue->key.queue_id));
}

/*
 * Places are not what they were.  If the spool was rewritten (VACUUM FULL,
 * CLUSTER), each that memory has is void, and the rows are read back; else only
 * those are that were read back.  Before the new file is taken as a new
 * version, all lanes that may have such chunks count as spilled, so that
 * nothing overtakes the rows whose places are void; each lane lets its own go
 * when a claim meets them.  The spool is open and locked.
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
		{
			/* a queue that is not durable has no place in it */
			if (pg_atomic_read_u32(&list[n]->lane.stored) != 0)
				batcher_lane_spill_mark(&list[n]->lane);
		}
		pfree(list);
		(void) batcher_spool_new_version(view->db, spool);
		(void) batcher_spool_version(view->db, spool, &version);
	}
	batcher_lane_spill_mark(lane);
	batcher_readback_reset(view);
	batcher_index_reset(view);
	(void) batcher_lane_take(lane);
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
	batcher_lane_sweep(view->queue);
	elog(DEBUG1, "the spool is read anew: " UINT64_FORMAT " rows of queue \"%s\" leave memory",
		 forgotten, view->def->name);
}
