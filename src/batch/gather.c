/*
 * gather.c
 *	  Choosing the rows of the next batch of a lane.
 *
 * The waiting rows of a lane are those of the chunks that its owner has
 * taken, and those that were read back from the spool, which are younger (a
 * lane that has spilled takes nothing into memory until it is read back).
 * index.c keeps them in order.  Nothing is copied: a batch is an array of
 * pointers into the chunks.
 *
 * What is ready leaves by priority, and within one priority in the order of
 * age; what has waited for ten windows counts as of the highest priority.  The
 * worker; no transaction is needed.
 */
#include "postgres.h"

#include "base/clock.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "batch/index.h"
#include "utils/memutils.h"

/* Rows that one purge throws away at most. */
#define PURGE_BATCH		10000

/* So many windows long a row is passed by those with a higher priority. */
#define AGED_WINDOWS	10

/* The first chunk of a lane, and the one after a chunk. */
static BatcherChunk *
first_chunk(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;

	if (DsaPointerIsValid(lane->taken_head))
		return batcher_area_address(lane->taken_head);
	return batcher_readback_first(view);
}

static BatcherChunk *
next_chunk(BatcherLaneView *view, BatcherChunk *chunk)
{
	if (chunk->flags & BATCHER_CHUNK_PRIVATE)
		return batcher_readback_next(chunk);
	if (DsaPointerIsValid(chunk->next))
		return batcher_area_address(chunk->next);
	return batcher_readback_first(view);
}

/* A new batch, in the current context. */
static BatcherBatch *
make_batch(BatcherReason reason)
{
	BatcherBatch *batch = palloc0(sizeof(BatcherBatch));

	batch->reason = reason;
	batch->oldest_at = BATCHER_NEVER;
	batch->allocated = 64;
	batch->rows = palloc(batch->allocated * sizeof(BatcherBatchRow));
	batch->refs = palloc(batch->allocated * sizeof(BatcherRef *));
	return batch;
}

/* Add a row to a batch; 'ref' is what was taken out of the index, or NULL. */
static void
add_row(BatcherBatch *batch, BatcherChunk *chunk, BatcherRow *row,
		BatcherRef *ref)
{
	BatcherBatchRow *r;

	if (batch->nrows == batch->allocated)
	{
		batch->allocated *= 2;
		batch->rows = repalloc_huge(batch->rows, batch->allocated *
									sizeof(BatcherBatchRow));
		batch->refs = repalloc_huge(batch->refs, batch->allocated *
									sizeof(BatcherRef *));
	}
	if (ref)
		batch->refs[batch->nrefs++] = ref;
	r = &batch->rows[batch->nrows++];
	r->chunk = chunk;
	r->row = row;
	r->outcome = BATCHER_OUTCOME_FLUSHED;
	batch->oldest_at = Min(batch->oldest_at, chunk->committed_at);
}

/* Take the first row of a unit that was taken off. */
static void
take_row(BatcherLaneView *view, BatcherBatch *batch, BatcherUnit *unit)
{
	BatcherRef *ref = batcher_unit_pop(view, unit);

	add_row(batch, ref->chunk, ref->row, ref);
}

/*
 * Take note of how a batch has ended: what it has taken out of the index and
 * has not settled is put back.  Before settled chunks are let go; again does
 * no harm.
 */
void
batcher_gather_return(BatcherLaneView *view, BatcherBatch *batch)
{
	int			i;

	if (view->index == NULL || view->index != batch->index)
		return;
	for (i = batch->nrefs - 1; i >= 0; i--)
	{
		BatcherRef *ref = batch->refs[i];

		if (ref->row->flags & BATCHER_ROW_DONE)
			batcher_unit_forget_ref(view->index, ref);
		else
			batcher_unit_push_back(view, ref);
	}
	batch->nrefs = 0;
}

/* Rows to be thrown away, or NULL.  They are not taken out of the index. */
static BatcherBatch *
gather_purge(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;
	uint64		upto = pg_atomic_read_u64(&lane->purge_upto);
	BatcherBatch *batch;
	BatcherChunk *chunk;

	if (upto <= pg_atomic_read_u64(&lane->settled))
		return NULL;
	batch = make_batch(BATCHER_REASON_PURGE);
	for (chunk = first_chunk(view); chunk && batch->nrows < PURGE_BATCH;
		 chunk = next_chunk(view, chunk))
	{
		BatcherRow *row = batcher_chunk_first(chunk);
		int			i;

		if (chunk->number >= upto ||
			pg_atomic_read_u32(&chunk->state) != BATCHER_CHUNK_COMMITTED)
			continue;
		pg_read_barrier();		/* the time was stored before the state */
		for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
		{
			if (row->flags & BATCHER_ROW_DONE)
				continue;
			add_row(batch, chunk, row, NULL);
			batch->rows[batch->nrows - 1].outcome = BATCHER_OUTCOME_PURGED;
		}
	}
	if (batch->nrows == 0)
		return NULL;
	batcher_index_reset(view);
	return batch;
}

/*
 * Is a committed row at hand with a smaller number than 'upto'?  What came
 * later is not flushed for who asked then, even if it is not published yet
 * that his rows are settled.
 */
static bool
has_rows_below(BatcherLaneView *view, uint64 upto)
{
	BatcherChunk *chunk;

	for (chunk = first_chunk(view); chunk; chunk = next_chunk(view, chunk))
	{
		if (chunk->number < upto && chunk->nlive > 0 &&
			pg_atomic_read_u32(&chunk->state) == BATCHER_CHUNK_COMMITTED)
			return true;
	}
	return false;
}

/*
 * A batch of rows that failed and are to be tried again now, of each key but
 * one; or NULL.
 */
static BatcherBatch *
gather_retries(BatcherLaneView *view, TimestampTz now, int max_rows)
{
	BatcherIndex *index = view->index;
	BatcherUnit *units[BATCHER_RETRY_BATCH];
	int			max = Min(max_rows, BATCHER_RETRY_BATCH);
	BatcherUnit *unit = batcher_first_by_time(&index->retries);
	BatcherBatch *batch;
	int			n = 0;
	int			i;

	if (unit == NULL || unit->time > now)
		return NULL;
	batch = make_batch(BATCHER_REASON_RETRY);
	while (n < max && unit && unit->time <= now)
	{
		batcher_unit_take_off(index, unit);
		take_row(view, batch, unit);
		units[n++] = unit;
		unit = batcher_first_by_time(&index->retries);
	}
	for (i = 0; i < n; i++)
		batcher_unit_put(view, units[i]);
	return batch;
}

/* The chunk of the first immediate row of a unit. */
static BatcherChunk *
immediate_chunk(const BatcherUnit *unit)
{
	BatcherRef *ref = unit->head;

	while (!(ref->row->flags & BATCHER_ROW_IMMEDIATE))
		ref = ref->next;
	return ref->chunk;
}

/*
 * A batch of immediate rows, those of one chunk, and of what waits with their
 * keys; or NULL.
 */
static BatcherBatch *
gather_immediate(BatcherLaneView *view, int max_rows)
{
	BatcherIndex *index = view->index;
	BatcherUnit *unit = batcher_first_by_priority(&index->urgent);
	BatcherChunk *chunk;
	BatcherBatch *batch;

	if (unit == NULL)
		return NULL;
	batcher_debug_point("immediate");
	chunk = immediate_chunk(unit);
	batch = make_batch(BATCHER_REASON_IMMEDIATE);
	while (unit && batch->nrows < max_rows &&
		   immediate_chunk(unit) == chunk)
	{
		batcher_unit_take_off(index, unit);
		while (unit->nready > 0 && batch->nrows < max_rows &&
			   (unit->id.class == BATCHER_UNIT_KEY ||
				unit->head->chunk == chunk))
			take_row(view, batch, unit);
		batcher_unit_put(view, unit);
		unit = batcher_first_by_priority(&index->urgent);
	}
	return batch;
}

/* Has a unit waited for so long that its priority does not count? */
static bool
is_aged(const BatcherUnit *unit, TimestampTz now,
		const BatcherLimits *limits)
{
	return batcher_clock_add_ms(unit->oldest_at,
								AGED_WINDOWS * limits->longest) <= now;
}

/* The unit that comes next, or NULL. */
static BatcherUnit *
next_unit(BatcherIndex *index, TimestampTz now, const BatcherLimits *limits)
{
	BatcherUnit *oldest = batcher_first_by_time(&index->ages);

	if (oldest && is_aged(oldest, now, limits))
		return oldest;
	return batcher_first_by_priority(&index->ready);
}

/* Is a unit that was taken off still to come before 'other'? */
static bool
comes_first(BatcherUnit *unit, const BatcherUnit *other, TimestampTz now,
			const BatcherLimits *limits)
{
	if (unit->npriority == 0)
		return false;			/* to be found first */
	unit->time = unit->oldest_at;
	if (is_aged(other, now, limits))
		return batcher_unit_compare_age(unit, other) > 0;
	return is_aged(unit, now, limits) || batcher_unit_compare(unit, other) > 0;
}

/* A batch of what is ready. */
static BatcherBatch *
take_ready(BatcherLaneView *view, BatcherReason reason, TimestampTz now,
		   int max_rows)
{
	BatcherIndex *index = view->index;
	BatcherBatch *batch = make_batch(reason);
	BatcherUnit *unit;

	while (batch->nrows < max_rows &&
		   (unit = next_unit(index, now, &view->limits)) != NULL)
	{
		BatcherUnit *next;

		batcher_unit_take_off(index, unit);
		next = next_unit(index, now, &view->limits);
		do
		{
			take_row(view, batch, unit);
		} while (batch->nrows < max_rows && unit->nready > 0 &&
				 (next == NULL || comes_first(unit, next, now, &view->limits)));
		batcher_unit_put(view, unit);
	}
	return batch;
}

/* The oldest commit of rows that an undecided chunk holds back. */
static TimestampTz
held_since(BatcherIndex *index)
{
	TimestampTz held_at = BATCHER_NEVER;
	dlist_iter	iter;

	dlist_foreach(iter, &index->held)
		held_at = Min(held_at,
					  dlist_container(BatcherUnit, held, iter.cur)->held_at);
	return held_at;
}

/* The oldest commit of a row that waits, about. */
static TimestampTz
oldest_waiting(BatcherLaneView *view)
{
	BatcherChunk *chunk;

	for (chunk = first_chunk(view); chunk; chunk = next_chunk(view, chunk))
	{
		if (chunk->nlive > 0 && (chunk->flags & BATCHER_CHUNK_SEEN))
			return chunk->committed_at;
	}
	return 0;
}

/*
 * A batch of what has not failed yet, if it is due; else NULL, and
 * view->deadline is when.  'force': it is due now.
 */
static BatcherBatch *
gather_rows(BatcherLaneView *view, TimestampTz now, int max_rows,
			bool force, uint64 force_below)
{
	BatcherSharedLane *lane = &view->queue->lane;
	BatcherIndex *index = view->index;
	BatcherUnit *oldest = batcher_first_by_time(&index->ages);
	BatcherUnit *retry = batcher_first_by_time(&index->retries);
	TimestampTz held_at = held_since(index);
	TimestampTz due = BATCHER_NEVER;
	BatcherReason reason;

	if (oldest)
		due = batcher_clock_add_ms(oldest->time, view->limits.window);
	view->deadline = Min(due, retry ? retry->time : BATCHER_NEVER);
	pg_atomic_write_u64(&lane->oldest_at, oldest_waiting(view));
	pg_atomic_write_u64(&lane->next_flush_at,
						view->deadline == BATCHER_NEVER ? 0 : view->deadline);
	view->wants_news = view->deadline >
		batcher_clock_add_ms(now, view->limits.window);
	if (held_at != BATCHER_NEVER &&
		(force || force_below > 0 || held_at == 0 ||
		 batcher_clock_add_ms(held_at, view->limits.window) <= now))
		view->wants_news = true;
	if (oldest == NULL)
		return NULL;
	if (force || (force_below > 0 && has_rows_below(view, force_below)))
		reason = BATCHER_REASON_FORCED;
	else if (index->nready >= view->limits.size)
		reason = BATCHER_REASON_SIZE;
	else if (due <= now)
		reason = BATCHER_REASON_TIME;
	else
		return NULL;
	return take_ready(view, reason, now, max_rows);
}

/* Choose a batch from the index, which is up to date. */
static BatcherBatch *
gather_from_index(BatcherLaneView *view, TimestampTz now, bool draining)
{
	BatcherSharedLane *lane = &view->queue->lane;
	TimestampTz retry_at = pg_atomic_read_u64(&lane->retry_at);
	uint64		flush_upto = pg_atomic_read_u64(&lane->flush_upto);
	int			max_rows = batcher_breaker_limit(view, now);
	BatcherBatch *batch;
	bool		asked;
	bool		forced;

	if (max_rows == 0)
	{
		view->deadline = pg_atomic_read_u64(&lane->breaker_until);
		pg_atomic_write_u64(&lane->next_flush_at, view->deadline);
		return NULL;
	}

	/* who asks for a flush overrides a retry's delay once, not for ever */
	view->asked_upto = flush_upto;
	asked = flush_upto > pg_atomic_read_u64(&lane->settled);
	forced = asked && flush_upto > view->forced_upto;
	if (forced && batcher_retry_force(view))
		batcher_unit_force_retries(view);
	if (retry_at > now && !forced && !draining)
	{
		view->deadline = retry_at;
		pg_atomic_write_u64(&lane->next_flush_at, retry_at);
		return NULL;
	}
	max_rows = batcher_schedule_limits(view, now, max_rows);
	if (max_rows == 0)
	{
		view->deadline = view->limits.rows_at;
		pg_atomic_write_u64(&lane->next_flush_at, view->deadline);
		return NULL;
	}
	batch = gather_retries(view, now, max_rows);
	if (batch == NULL)
		batch = gather_immediate(view, max_rows);
	if (batch == NULL)
		batch = gather_rows(view, now, max_rows, draining,
							asked ? flush_upto : 0);
	return batch;
}

/*
 * The next batch of a lane, in the current context, if one is due; else NULL,
 * and view->deadline is when to look again.  'draining': everything is due but
 * what failed and waits to be tried again.  Whatever becomes of the batch,
 * batcher_gather_return is to be called.
 */
BatcherBatch *
batcher_gather(BatcherLaneView *view, TimestampTz now, bool draining)
{
	BatcherBatch *batch;

	view->deadline = BATCHER_NEVER;
	view->wants_news = false;
	batcher_index_update(view);

	batch = gather_purge(view);
	if (batch)
		return batch;
	if (view->def->paused)
	{
		pg_atomic_write_u64(&view->queue->lane.next_flush_at, 0);
		return NULL;
	}
	batch = gather_from_index(view, now, draining);
	if (batch)
		batch->index = view->index;
	return batch;
}

/*
 * How many rows at hand nothing holds back, as of the last look.
 */
int64
batcher_gather_ready(BatcherLaneView *view)
{
	return view->index ? view->index->nready : 0;
}

/* Is everything with a number below 'upto' settled that was visible? */
static bool
settled_below(BatcherLaneView *view, uint64 upto)
{
	BatcherChunk *chunk;

	for (chunk = first_chunk(view); chunk; chunk = next_chunk(view, chunk))
	{
		uint32		state = pg_atomic_read_u32(&chunk->state);

		if (chunk->number < upto && state != BATCHER_CHUNK_VOID &&
			chunk->nlive > 0)
			return false;
	}
	return batcher_readback_settled(view, upto);
}

/*
 * Tell those who wait what is settled.  Cheap when nobody asks: the numbers
 * that are asked for are read before the inbox is taken, and whatever was
 * visible to who drew such a number had been pushed by then.
 */
void
batcher_gather_publish(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;
	uint64		settled = pg_atomic_read_u64(&lane->settled);
	uint64		asked[3];
	bool		moved = false;
	int			i;

	asked[0] = pg_atomic_read_u64(&lane->flush_upto);
	asked[1] = pg_atomic_read_u64(&lane->purge_upto);
	asked[2] = pg_atomic_read_u64(&lane->watch_upto);
	if (asked[0] <= settled && asked[1] <= settled && asked[2] <= settled)
		return;
	pg_memory_barrier();
	batcher_index_update(view);
	for (i = 0; i < lengthof(asked); i++)
	{
		if (asked[i] > settled && settled_below(view, asked[i]))
		{
			settled = asked[i];
			moved = true;
		}
	}
	if (moved)
	{
		pg_atomic_write_u64(&lane->settled, settled);
		ConditionVariableBroadcast(batcher_settled_cv(view->queue->key.queue_id));
	}
}
