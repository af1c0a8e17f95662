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
#include "batch/batch.h"
#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

/* Rows that one purge throws away at most. */
#define PURGE_BATCH		10000

/* A set of keys, small or empty as a rule. */
typedef struct KeySet
{
	HTAB	   *table;			/* NULL: empty */
} KeySet;

typedef struct KeySetEntry
{
	text	   *key;			/* hash key */
} KeySetEntry;

static uint32
key_hash(const void *key, Size keysize)
{
	const text *t = *(text *const *) key;

	return hash_bytes((const unsigned char *) VARDATA(t),
					  VARSIZE(t) - VARHDRSZ);
}

static int
key_compare(const void *a, const void *b, Size keysize)
{
	const text *ta = *(text *const *) a;
	const text *tb = *(text *const *) b;

	if (VARSIZE(ta) != VARSIZE(tb))
		return 1;
	return memcmp(VARDATA(ta), VARDATA(tb), VARSIZE(ta) - VARHDRSZ);
}

static void
keyset_add(KeySet *set, text *key)
{
	if (set->table == NULL)
	{
		HASHCTL		ctl;

		memset(&ctl, 0, sizeof(ctl));
		ctl.keysize = sizeof(text *);
		ctl.entrysize = sizeof(KeySetEntry);
		ctl.hash = key_hash;
		ctl.match = key_compare;
		ctl.hcxt = CurrentMemoryContext;
		set->table = hash_create("batcher keys", 32, &ctl,
								 HASH_ELEM | HASH_FUNCTION | HASH_COMPARE |
								 HASH_CONTEXT);
	}
	(void) hash_search(set->table, &key, HASH_ENTER, NULL);
}

static bool
keyset_has(KeySet *set, text *key)
{
	return set->table && key &&
		hash_search(set->table, &key, HASH_FIND, NULL) != NULL;
}

/* The key of a row, or NULL. */
static text *
row_key(BatcherChunk *chunk, BatcherRow *row)
{
	BatcherRowParts parts;

	if (!(row->flags & BATCHER_ROW_KEY))
		return NULL;
	batcher_row_read(chunk, row, &parts);
	return parts.key;
}

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
	BatcherChunk *immediate;	/* only immediate rows of this chunk ... */
	KeySet	   *keys;			/* ... and rows of these keys */
} Selection;

/* Note the keys that an undecided chunk holds back. */
static void
hold_keys(KeySet *held, BatcherChunk *chunk)
{
	BatcherRow *row = batcher_chunk_first(chunk);
	int			i;

	if (!(chunk->flags & BATCHER_CHUNK_KEYED))
		return;
	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
	{
		text	   *key = row_key(chunk, row);

		if (key)
			keyset_add(held, key);
	}
}

static bool
is_selected(const Selection *sel, BatcherChunk *chunk, BatcherRow *row)
{
	if (row->flags & BATCHER_ROW_DONE)
		return false;
	if (sel->immediate == NULL)
		return true;
	return (chunk == sel->immediate && (row->flags & BATCHER_ROW_IMMEDIATE)) ||
		keyset_has(sel->keys, row_key(chunk, row));
}

/* Walk the rows and take those that are selected and not held back. */
static BatcherBatch *
select_rows(BatcherLaneView *view, const Selection *sel)
{
	BatcherBatch *batch = palloc0(sizeof(BatcherBatch));
	int			allocated = 64;
	KeySet		held = {NULL};
	BatcherChunk *chunk;

	batch->rows = palloc(allocated * sizeof(BatcherBatchRow));
	batch->oldest_at = BATCHER_NEVER;
	for (chunk = first_chunk(view); chunk && batch->nrows < sel->max_rows;
		 chunk = next_chunk(view, chunk))
	{
		uint32		state = pg_atomic_read_u32(&chunk->state);
		BatcherRow *row = batcher_chunk_first(chunk);
		int			i;

		if (state == BATCHER_CHUNK_COMMITTING)
			hold_keys(&held, chunk);
		else if (state == BATCHER_CHUNK_VOID)
			view->has_void = true;
		if (state != BATCHER_CHUNK_COMMITTED || chunk->number >= sel->below)
			continue;
		pg_read_barrier();		/* the time was stored before the state */
		for (i = 0; i < chunk->nrows && batch->nrows < sel->max_rows;
			 i++, row = batcher_row_next(row))
		{
			if (!is_selected(sel, chunk, row))
				continue;
			if (held.table && keyset_has(&held, row_key(chunk, row)))
				continue;
			if (batch->nrows == allocated)
			{
				allocated *= 2;
				batch->rows = repalloc_huge(batch->rows,
											allocated * sizeof(BatcherBatchRow));
			}
			batch->rows[batch->nrows].chunk = chunk;
			batch->rows[batch->nrows].row = row;
			batch->nrows++;
			batch->oldest_at = Min(batch->oldest_at, chunk->committed_at);
		}
	}
	return batch;
}

/* A batch of the first immediate rows and of what waits with their keys. */
static BatcherBatch *
select_immediate(BatcherLaneView *view)
{
	Selection	sel = {
		.max_rows = view->def->options.max_batch_size,
		.below = PG_UINT64_MAX
	};
	KeySet		keys = {NULL};
	BatcherChunk *chunk;
	BatcherRow *row;
	int			left = 0;
	int			i;

	for (chunk = first_chunk(view); chunk && sel.immediate == NULL;
		 chunk = next_chunk(view, chunk))
	{
		if (!(chunk->flags & BATCHER_CHUNK_IMMEDIATE) || chunk->nlive == 0)
			continue;
		if (pg_atomic_read_u32(&chunk->state) == BATCHER_CHUNK_COMMITTING)
			left++;
		if (pg_atomic_read_u32(&chunk->state) != BATCHER_CHUNK_COMMITTED)
			continue;
		row = batcher_chunk_first(chunk);
		for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
		{
			text	   *key = row_key(chunk, row);

			if ((row->flags & BATCHER_ROW_DONE) ||
				!(row->flags & BATCHER_ROW_IMMEDIATE))
				continue;
			sel.immediate = chunk;
			if (key)
				keyset_add(&keys, key);
		}
	}
	if (sel.immediate == NULL)
	{
		view->nimmediate = left;
		return NULL;
	}
	sel.keys = &keys;
	return select_rows(view, &sel);
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
	Selection	sel = {.max_rows = PURGE_BATCH};
	BatcherBatch *batch;

	sel.below = pg_atomic_read_u64(&lane->purge_upto);
	if (sel.below <= pg_atomic_read_u64(&lane->settled))
		return NULL;
	batch = select_rows(view, &sel);
	batch->reason = BATCHER_REASON_PURGE;
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

/*
 * The next batch of a lane, in the current context, if one is due; else NULL,
 * and view->deadline is when to look again.  'draining': everything is due.
 */
BatcherBatch *
batcher_gather(BatcherLaneView *view, TimestampTz now, bool draining)
{
	BatcherSharedLane *lane = &view->queue->lane;
	const BatcherOptions *options = &view->def->options;
	TimestampTz retry_at = pg_atomic_read_u64(&lane->retry_at);
	uint64		flush_upto = pg_atomic_read_u64(&lane->flush_upto);
	Selection	sel = {
		.max_rows = options->max_batch_size,
		.below = PG_UINT64_MAX
	};
	BatcherBatch *batch;
	bool		asked;
	bool		forced;

	view->deadline = BATCHER_NEVER;
	take_inbox(view);

	batch = gather_purge(view);
	if (batch)
		return batch;
	if (view->def->paused)
	{
		pg_atomic_write_u64(&lane->next_flush_at, 0);
		return NULL;
	}

	/* who asks for a flush overrides a retry's delay once, not for ever */
	asked = flush_upto > pg_atomic_read_u64(&lane->settled);
	forced = asked && flush_upto > view->forced_upto;
	if (retry_at > now && !forced && !draining)
	{
		view->deadline = retry_at;
		pg_atomic_write_u64(&lane->next_flush_at, retry_at);
		return NULL;
	}

	if (view->nimmediate > 0)
	{
		batch = select_immediate(view);
		if (batch && batch->nrows > 0)
		{
			batch->reason = BATCHER_REASON_IMMEDIATE;
			return batch;
		}
	}

	batch = select_rows(view, &sel);
	if (batch->nrows > 0)
	{
		TimestampTz due = batcher_clock_add_ms(batch->oldest_at,
											   options->flush_interval);

		pg_atomic_write_u64(&lane->oldest_at, batch->oldest_at);
		pg_atomic_write_u64(&lane->next_flush_at, due);
		if (draining || (asked && has_rows_below(view, flush_upto)))
			batch->reason = BATCHER_REASON_FORCED;
		else if (batch->nrows >= options->flush_size)
			batch->reason = BATCHER_REASON_SIZE;
		else if (due <= now)
			batch->reason = BATCHER_REASON_TIME;
		else
		{
			view->deadline = due;
			batch = NULL;
		}
		return batch;
	}
	pg_atomic_write_u64(&lane->oldest_at, 0);
	pg_atomic_write_u64(&lane->next_flush_at, 0);
	return NULL;
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
