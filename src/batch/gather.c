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
	batch = batcher_batch_make(BATCHER_REASON_PURGE);
	for (chunk = first_chunk(view); chunk && batch->nrows < PURGE_BATCH;
		 chunk = next_chunk(view, chunk))
	{
		BatcherRow *row = batcher_chunk_first(chunk);
		int			i;
		int			j;

		if (chunk->number >= upto ||
			pg_atomic_read_u32(&chunk->state) != BATCHER_CHUNK_COMMITTED)
			continue;
		pg_read_barrier();		/* the time was stored before the state */
		for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
		{
			if (row->flags & BATCHER_ROW_DONE)
				continue;
			j = batcher_batch_add(batch, chunk, row);
			batch->rows[j].outcome = BATCHER_OUTCOME_PURGED;
			batch->oldest_at = Min(batch->oldest_at, chunk->committed_at);
		}
	}
	if (batch->nrows == 0)
		return NULL;
	batcher_index_reset(view);
	return batch;
}

/*
 * Is a row ready in a chunk with a smaller number than 'upto'?  What came later
 * is not flushed for who asked then, even if it is not published yet that his
 * rows are settled; nor for who waits for what is to be tried again.
 */
static bool
has_rows_below(BatcherLaneView *view, uint64 upto)
{
	batcher_unit_count_below(view->index, upto);
	return view->index->nbelow > 0;
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
	batch = batcher_batch_make(BATCHER_REASON_RETRY);
	while (n < max && unit && unit->time <= now)
	{
		bool		alone = batcher_row_is_alone(view, unit->head->row);

		if (alone && n > 0)
			break;
		batcher_unit_take_off(index, unit);
		batcher_batch_take(view, batch, unit);
		units[n++] = unit;
		if (alone)
			break;
		unit = batcher_first_by_time(&index->retries);
	}
	for (i = 0; i < n; i++)
		batcher_unit_put(view, units[i]);
	return batch;
}

/* The first row of a unit that is to leave at once. */
static BatcherRef *
first_urgent(BatcherLaneView *view, const BatcherUnit *unit)
{
	BatcherRef *ref = unit->head;

	while (!(ref->row->flags & BATCHER_ROW_IMMEDIATE) &&
		   !batcher_row_is_alone(view, ref->row))
		ref = ref->next;
	return ref;
}

/*
 * Take the rows of a unit that was taken off, up to the first that is a batch
 * of its own; without key only those of one chunk.
 */
static void
take_urgent(BatcherLaneView *view, BatcherBatch *batch, BatcherUnit *unit,
			BatcherChunk *chunk, int max_rows)
{
	do
	{
		batcher_batch_take(view, batch, unit);
	} while (unit->nready > 0 && batch->nrows < max_rows &&
			 !batcher_row_is_alone(view, unit->head->row) &&
			 (unit->id.class == BATCHER_UNIT_KEY ||
			  unit->head->chunk == chunk));
}

/*
 * A batch of what is to leave at once, or NULL: a row that is a batch of its
 * own, or what waits with its key, which goes before it; or immediate rows,
 * those of one chunk, and what waits with their keys.
 */
static BatcherBatch *
gather_urgent(BatcherLaneView *view, int max_rows)
{
	BatcherIndex *index = view->index;
	BatcherUnit *unit = batcher_first_by_priority(&index->urgent);
	BatcherRef *urgent;
	BatcherChunk *chunk;
	BatcherBatch *batch;

	if (unit == NULL)
		return NULL;
	batcher_debug_point("immediate");
	batch = batcher_batch_make(BATCHER_REASON_IMMEDIATE);
	urgent = first_urgent(view, unit);
	chunk = urgent->chunk;
	if (batcher_row_is_alone(view, urgent->row))
	{
		batcher_unit_take_off(index, unit);
		batch->alone = urgent == unit->head;
		if (batch->alone)
			batcher_batch_take(view, batch, unit);
		else
			take_urgent(view, batch, unit, chunk, max_rows);
		batcher_unit_put(view, unit);
		return batch;
	}
	while (unit && batch->nrows < max_rows)
	{
		urgent = first_urgent(view, unit);
		if (urgent->chunk != chunk || batcher_row_is_alone(view, urgent->row))
			break;
		batcher_unit_take_off(index, unit);
		take_urgent(view, batch, unit, chunk, max_rows);
		batcher_unit_put(view, unit);
		unit = batcher_first_by_priority(&index->urgent);
	}
	return batch;
}

/* Is the row that is to leave at once first a batch of its own? */
static bool
first_is_alone(BatcherLaneView *view)
{
	BatcherUnit *unit = batcher_first_by_priority(&view->index->urgent);

	return unit && batcher_row_is_alone(view, unit->head->row);
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
	unit->time = unit->oldest_at;
	if (is_aged(other, now, limits))
		return batcher_unit_compare_age(unit, other) > 0;
	return is_aged(unit, now, limits) || batcher_unit_compare(unit, other) > 0;
}

/*
 * Is what is left of a unit due too?  In a queue with debounce rows without key
 * have a time each.
 */
static bool
is_due(BatcherLaneView *view, const BatcherUnit *unit, BatcherReason reason,
	   TimestampTz now)
{
	return view->def->options.debounce == 0 ||
		reason == BATCHER_REASON_FORCED || batcher_unit_due(view, unit) <= now;
}

/* A batch of what is ready. */
static BatcherBatch *
take_ready(BatcherLaneView *view, BatcherReason reason, TimestampTz now,
		   int max_rows)
{
	BatcherIndex *index = view->index;
	BatcherBatch *batch = batcher_batch_make(reason);
	BatcherUnit *unit;

	while (batch->nrows < max_rows &&
		   (unit = next_unit(index, now, &view->limits)) != NULL)
	{
		BatcherUnit *next;

		batcher_unit_take_off(index, unit);
		next = next_unit(index, now, &view->limits);
		do
		{
			batcher_batch_take(view, batch, unit);
		} while (batch->nrows < max_rows && unit->nready > 0 &&
				 is_due(view, unit, reason, now) &&
				 (next == NULL || comes_first(unit, next, now, &view->limits)));
		batcher_unit_put(view, unit);
	}
	return batch;
}

/*
 * Move what is due in a queue with debounce to what waits to be taken; 'all':
 * everything is due.  Returns when the next one is.
 */
static TimestampTz
fire_timers(BatcherLaneView *view, TimestampTz now, bool all)
{
	BatcherIndex *index = view->index;
	double		debounce = view->def->options.debounce;
	BatcherUnit *unit;

	while ((unit = batcher_first_by_time(&index->timers)) != NULL)
	{
		TimestampTz due = batcher_unit_due(view, unit);

		if (!all && due > now)
		{
			if (due == unit->time)
				return due;
			/* something has come for it since */
			batcher_unit_take_off(index, unit);
			batcher_unit_put(view, unit);
			continue;
		}
		batcher_unit_take_off(index, unit);
		unit->swept = unit->id.class == BATCHER_UNIT_KEY &&
			due < batcher_clock_add_ms(unit->newest_at, debounce);
		batcher_unit_put_due(view, unit);
	}
	return BATCHER_NEVER;
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

/* The oldest commit of what does not wait to be tried again, about. */
static TimestampTz
oldest_runnable(BatcherIndex *index)
{
	BatcherUnit *first[] = {
		batcher_first_by_time(&index->ages),
		batcher_first_by_time(&index->timers),
		batcher_first_by_priority(&index->urgent)
	};
	TimestampTz oldest = BATCHER_NEVER;
	int			i;

	for (i = 0; i < lengthof(first); i++)
	{
		if (first[i])
			oldest = Min(oldest, first[i]->oldest_at);
	}
	return oldest == BATCHER_NEVER ? 0 : oldest;
}

/* Tell when we look again, and how a commit before that is noticed. */
static void
set_deadline(BatcherLaneView *view, TimestampTz due, TimestampTz now,
			 bool forced)
{
	BatcherSharedLane *lane = &view->queue->lane;
	BatcherUnit *retry = batcher_first_by_time(&view->index->retries);
	TimestampTz held_at = held_since(view->index);

	view->deadline = Min(due, retry ? retry->time : BATCHER_NEVER);
	pg_atomic_write_u64(&lane->oldest_at, oldest_waiting(view));
	pg_atomic_write_u64(&lane->runnable_at, oldest_runnable(view->index));
	pg_atomic_write_u64(&lane->next_flush_at,
						view->deadline == BATCHER_NEVER ? 0 : view->deadline);
	pg_atomic_write_u32(&lane->timers, view->index->ntimers);
	view->wants_news = view->deadline >
		batcher_clock_add_ms(now, view->limits.soonest) ||
		(held_at != BATCHER_NEVER &&
		 (forced || held_at == 0 ||
		  batcher_clock_add_ms(held_at, view->limits.window) <= now));
}

/*
 * A batch of what has not failed yet, if it is due; else NULL, and
 * view->deadline is when.  'force': it is due now.
 */
static BatcherBatch *
gather_rows(BatcherLaneView *view, TimestampTz now, int max_rows,
			bool force, uint64 force_below)
{
	BatcherIndex *index = view->index;
	bool		debounces = view->def->options.debounce > 0;
	bool		asked = force_below > 0;
	BatcherUnit *oldest;
	TimestampTz due = BATCHER_NEVER;

	force |= asked && has_rows_below(view, force_below);
	if (debounces)
		due = fire_timers(view, now, force);
	oldest = batcher_first_by_time(&index->ages);
	if (!debounces && oldest)
		due = batcher_clock_add_ms(oldest->time, view->limits.window);
	set_deadline(view, due, now, force || asked);
	if (oldest == NULL)
		return NULL;
	if (force)
		return take_ready(view, BATCHER_REASON_FORCED, now, max_rows);
	if (debounces)
		return take_ready(view, next_unit(index, now, &view->limits)->swept ?
						  BATCHER_REASON_SWEPT : BATCHER_REASON_DEBOUNCED,
						  now, max_rows);
	if (index->nready >= view->limits.size)
		return take_ready(view, BATCHER_REASON_SIZE, now, max_rows);
	if (due <= now)
		return take_ready(view, BATCHER_REASON_TIME, now, max_rows);
	return NULL;
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
	uint32		resets;
	bool		asked;
	bool		forced;

	if (max_rows == 0)
	{
		view->deadline = pg_atomic_read_u64(&view->queue->main->lane.breaker_until);
		pg_atomic_write_u64(&lane->next_flush_at, view->deadline);
		return NULL;
	}

	/* as if nothing had failed */
	resets = pg_atomic_read_u32(&view->queue->main->lane.resets);
	if (resets != view->resets && batcher_retry_force(view))
		batcher_unit_force_retries(view);
	view->resets = resets;

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
	if (max_rows == 0 && first_is_alone(view))
		return gather_urgent(view, 1);
	if (max_rows == 0)
	{
		view->deadline = view->limits.rows_at;
		pg_atomic_write_u64(&lane->next_flush_at, view->deadline);
		return NULL;
	}
	batch = gather_retries(view, now, max_rows);
	if (batch == NULL)
		batch = gather_urgent(view, max_rows);
	if (batch == NULL)
		batch = gather_rows(view, now, max_rows, draining,
							asked ? flush_upto : 0);
	return batch;
}

/*
 * The next batch of a lane, in the current context, if one is due; else NULL,
 * and view->deadline is when to look again.  'draining': everything is due but
 * what failed and waits to be tried again.  Whatever becomes of the batch,
 * batcher_batch_return is to be called.
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
	{
		batcher_batch_complete(batch);
		return batch;
	}
	if (view->def->paused)
	{
		pg_atomic_write_u64(&view->queue->lane.next_flush_at, 0);
		return NULL;
	}
	batch = gather_from_index(view, now, draining);
	if (batch)
	{
		batch->index = view->index;
		batcher_batch_complete(batch);
	}
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
