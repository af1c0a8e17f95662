/*
 * gather.c
 *	  Choosing the rows of the next batch of a lane.
 *
 * The waiting rows of a lane are those of the chunks that its owner has
 * taken, then those that were read back from the spool, which are younger (a
 * lane that has spilled takes nothing into memory until it is read back).
 * Nothing is copied: a batch is an array of pointers into the chunks.
 *
 * A chunk whose transaction has not ended yet holds back the later rows of
 * its keys, and nothing else.  The worker; no transaction is needed.
 */
#include "postgres.h"

#include "base/clock.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "batch/keyset.h"
#include "utils/memutils.h"

/* Rows that one purge throws away at most. */
#define PURGE_BATCH		10000

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

/* What a walk over the rows is to find. */
typedef struct Selection
{
	int			max_rows;
	uint64		below;			/* chunks with a smaller number only */
	bool		all;			/* whether they wait for a retry or not */
	TimestampTz retry_by;		/* only rows that are tried again by then; 0:
								 * only such as have not failed */
	TimestampTz retry_next;		/* found: when the first other one is due */
	TimestampTz oldest_at;		/* found: oldest commit of those looked at */
	TimestampTz held_at;		/* found: the same of those that undecided
								 * chunks hold back; 0: some are immediate */
	BatcherKeySet undecided;	/* keys of undecided chunks */
	BatcherKeySet *keys;		/* only rows of these keys ... */
	BatcherChunk *immediate;	/* ... and immediate ones of this chunk that
								 * have no key */
} Selection;

/* Note the keys that an undecided chunk holds back. */
static void
hold_keys(BatcherKeySet *held, BatcherChunk *chunk)
{
	BatcherRow *row = batcher_chunk_first(chunk);
	int			i;

	if (!(chunk->flags & BATCHER_CHUNK_KEYED))
		return;
	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
		batcher_keyset_add(held, batcher_row_key(chunk, row));
}

/*
 * Is this row to be taken?  One that is tried again by itself holds back the
 * later rows of its key, and nothing else.
 */
static bool
is_selected(BatcherLaneView *view, Selection *sel, BatcherKeySet *held,
			BatcherChunk *chunk, BatcherRow *row)
{
	TimestampTz retry_at;
	text	   *key;

	if (row->flags & BATCHER_ROW_DONE)
		return false;
	if (sel->all)
		return true;
	retry_at = batcher_retry_at(view, chunk, row);
	if (retry_at == BATCHER_NO_RETRY)
	{
		if (sel->retry_by != 0)
			return false;
		key = held->table || sel->undecided.table || sel->keys ?
			batcher_row_key(chunk, row) : NULL;
		if (batcher_keyset_has(held, key))
			return false;
		if (batcher_keyset_has(&sel->undecided, key))
		{
			sel->held_at = Min(sel->held_at, row->flags & BATCHER_ROW_IMMEDIATE ?
							   0 : chunk->committed_at);
			return false;
		}
		if (sel->immediate == NULL)
			return true;
		/* if its key was held back, what has held it may be decided by now */
		return key ? batcher_keyset_has(sel->keys, key) :
			chunk == sel->immediate && (row->flags & BATCHER_ROW_IMMEDIATE);
	}
	key = batcher_row_key(chunk, row);
	if (batcher_keyset_has(held, key) ||
		batcher_keyset_has(&sel->undecided, key))
		return false;
	batcher_keyset_add(held, key);
	if (retry_at <= sel->retry_by)
		return true;
	sel->retry_next = Min(sel->retry_next, retry_at);
	return false;
}

/* Walk the rows and take those that are selected and not held back. */
static BatcherBatch *
select_rows(BatcherLaneView *view, Selection *sel)
{
	BatcherBatch *batch = palloc0(sizeof(BatcherBatch));
	int			allocated = 64;
	BatcherKeySet held = {NULL};
	BatcherChunk *chunk;

	batch->rows = palloc(allocated * sizeof(BatcherBatchRow));
	batch->oldest_at = sel->oldest_at = sel->held_at = BATCHER_NEVER;
	for (chunk = first_chunk(view); chunk && batch->nrows < sel->max_rows;
		 chunk = next_chunk(view, chunk))
	{
		uint32		state = pg_atomic_read_u32(&chunk->state);
		BatcherRow *row = batcher_chunk_first(chunk);
		int			i;

		if (state == BATCHER_CHUNK_COMMITTING)
			hold_keys(&sel->undecided, chunk);
		else if (state == BATCHER_CHUNK_VOID)
			view->has_void = true;
		if (state != BATCHER_CHUNK_COMMITTED || chunk->number >= sel->below)
			continue;
		pg_read_barrier();		/* the time was stored before the state */
		if (chunk->nlive > 0)
			sel->oldest_at = Min(sel->oldest_at, chunk->committed_at);
		for (i = 0; i < chunk->nrows && batch->nrows < sel->max_rows;
			 i++, row = batcher_row_next(row))
		{
			if (!is_selected(view, sel, &held, chunk, row))
				continue;
			if (batch->nrows == allocated)
			{
				allocated *= 2;
				batch->rows = repalloc_huge(batch->rows,
											allocated * sizeof(BatcherBatchRow));
			}
			batch->rows[batch->nrows].chunk = chunk;
			batch->rows[batch->nrows].row = row;
			batch->rows[batch->nrows].outcome = BATCHER_OUTCOME_FLUSHED;
			batch->nrows++;
			batch->oldest_at = Min(batch->oldest_at, chunk->committed_at);
		}
	}
	return batch;
}

/*
 * The first chunk with immediate rows that nothing holds back, their keys in
 * 'keys'; NULL, and then view->nimmediate is set, if there is none.
 */
static BatcherChunk *
find_immediate(BatcherLaneView *view, BatcherKeySet *keys)
{
	BatcherKeySet held = {NULL};
	BatcherChunk *found = NULL;
	BatcherChunk *chunk;
	int			left = 0;

	for (chunk = first_chunk(view); chunk && found == NULL;
		 chunk = next_chunk(view, chunk))
	{
		uint32		state = pg_atomic_read_u32(&chunk->state);
		bool		immediate = chunk->flags & BATCHER_CHUNK_IMMEDIATE;
		BatcherRow *row = batcher_chunk_first(chunk);
		int			i;

		if (state == BATCHER_CHUNK_COMMITTING)
		{
			hold_keys(&held, chunk);
			left += immediate;
		}
		/* other rows are of interest if they are tried again */
		if (state != BATCHER_CHUNK_COMMITTED || chunk->nlive == 0 ||
			(!immediate && view->retry_next == BATCHER_NEVER))
			continue;
		for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
		{
			text	   *key = batcher_row_key(chunk, row);

			if (row->flags & BATCHER_ROW_DONE)
				continue;
			if (batcher_retry_at(view, chunk, row) != BATCHER_NO_RETRY)
				batcher_keyset_add(&held, key);
			else if (row->flags & BATCHER_ROW_IMMEDIATE)
			{
				if (batcher_keyset_has(&held, key))
				{
					left++;
					continue;
				}
				found = chunk;
				batcher_keyset_add(keys, key);
			}
		}
	}
	if (found == NULL)
		view->nimmediate = left;
	return found;
}

/* A batch of the first immediate rows and of what waits with their keys. */
static BatcherBatch *
gather_immediate(BatcherLaneView *view, int max_rows)
{
	Selection	sel = {
		.max_rows = max_rows,
		.below = PG_UINT64_MAX
	};
	BatcherKeySet keys = {NULL};
	BatcherBatch *batch;

	if (view->nimmediate == 0)
		return NULL;
	sel.immediate = find_immediate(view, &keys);
	if (sel.immediate == NULL)
		return NULL;
	sel.keys = &keys;
	batcher_debug_point("immediate");
	batch = select_rows(view, &sel);
	batch->reason = BATCHER_REASON_IMMEDIATE;
	return batch->nrows > 0 ? batch : NULL;
}

/* Count what the taken list has of immediate chunks, after it has changed. */
static void
count_immediate(BatcherLaneView *view)
{
	BatcherChunk *chunk;

	view->nimmediate = 0;
	for (chunk = first_chunk(view); chunk; chunk = next_chunk(view, chunk))
	{
		if (chunk->flags & BATCHER_CHUNK_IMMEDIATE)
			view->nimmediate++;
	}
}

/* Take the inbox; notice whether immediate rows came with it. */
static void
take_inbox(BatcherLaneView *view)
{
	int			nimmediate = batcher_lane_take(&view->queue->lane);

	if (view->nimmediate < 0)
		count_immediate(view);
	else
		view->nimmediate += nimmediate;
}

/* Rows to be thrown away, or NULL. */
static BatcherBatch *
gather_purge(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;
	Selection	sel = {.max_rows = PURGE_BATCH,.all = true};
	BatcherBatch *batch;
	int			i;

	sel.below = pg_atomic_read_u64(&lane->purge_upto);
	if (sel.below <= pg_atomic_read_u64(&lane->settled))
		return NULL;
	batch = select_rows(view, &sel);
	batch->reason = BATCHER_REASON_PURGE;
	for (i = 0; i < batch->nrows; i++)
		batch->rows[i].outcome = BATCHER_OUTCOME_PURGED;
	return batch->nrows > 0 ? batch : NULL;
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

/* A batch of rows that failed and are to be tried again now, or NULL. */
static BatcherBatch *
gather_retries(BatcherLaneView *view, TimestampTz now, int max_rows)
{
	Selection	sel = {
		.max_rows = Min(max_rows, BATCHER_RETRY_BATCH),
		.below = PG_UINT64_MAX,
		.retry_by = now,
		.retry_next = BATCHER_NEVER
	};
	BatcherBatch *batch;

	if (view->retry_next > now)
		return NULL;
	batch = select_rows(view, &sel);
	batch->reason = BATCHER_REASON_RETRY;
	if (batch->nrows == 0)
	{
		view->retry_next = sel.retry_next;
		return NULL;
	}
	view->retry_next = BATCHER_RETRY_NOW;	/* look again afterwards */
	return batch;
}

/*
 * A batch of what has not failed yet, if it is due; else NULL, and
 * view->deadline is when.  'force': it is due now.
 */
static BatcherBatch *
gather_rows(BatcherLaneView *view, TimestampTz now, int max_rows, bool force,
			uint64 force_below)
{
	BatcherSharedLane *lane = &view->queue->lane;
	Selection	sel = {
		.max_rows = max_rows,
		.below = PG_UINT64_MAX,
		.retry_next = BATCHER_NEVER
	};
	BatcherBatch *batch = select_rows(view, &sel);
	TimestampTz due = BATCHER_NEVER;

	if (batch->nrows > 0)
		due = batcher_clock_add_ms(batch->oldest_at, view->limits.window);
	pg_atomic_write_u64(&lane->oldest_at,
						sel.oldest_at == BATCHER_NEVER ? 0 : sel.oldest_at);
	view->deadline = Min(due, view->retry_next);
	pg_atomic_write_u64(&lane->next_flush_at,
						view->deadline == BATCHER_NEVER ? 0 : view->deadline);
	view->held_back = sel.held_at != BATCHER_NEVER &&
		(force || force_below > 0 || sel.held_at == 0 ||
		 batcher_clock_add_ms(sel.held_at, view->limits.window) <= now);
	if (batch->nrows == 0)
		return NULL;
	if (force || (force_below > 0 && has_rows_below(view, force_below)))
		batch->reason = BATCHER_REASON_FORCED;
	else if (batch->nrows >= view->limits.size)
		batch->reason = BATCHER_REASON_SIZE;
	else if (due <= now)
		batch->reason = BATCHER_REASON_TIME;
	else
		return NULL;
	return batch;
}

/*
 * The next batch of a lane, in the current context, if one is due; else NULL,
 * and view->deadline is when to look again.  'draining': everything is due but
 * what failed and waits to be tried again.
 */
BatcherBatch *
batcher_gather(BatcherLaneView *view, TimestampTz now, bool draining)
{
	BatcherSharedLane *lane = &view->queue->lane;
	TimestampTz retry_at = pg_atomic_read_u64(&lane->retry_at);
	uint64		flush_upto = pg_atomic_read_u64(&lane->flush_upto);
	BatcherBatch *batch;
	int			max_rows;
	bool		asked;
	bool		forced;

	view->deadline = BATCHER_NEVER;
	view->held_back = false;
	take_inbox(view);

	batch = gather_purge(view);
	if (batch)
		return batch;
	if (view->def->paused)
	{
		pg_atomic_write_u64(&lane->next_flush_at, 0);
		return NULL;
	}
	max_rows = batcher_breaker_limit(view, now);
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
	if (forced)
		batcher_retry_force(view);
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
	if (batch)
		return batch;

	batch = gather_immediate(view, max_rows);
	if (batch)
		return batch;
	return gather_rows(view, now, max_rows, draining,
					   asked ? flush_upto : 0);
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
	take_inbox(view);
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
