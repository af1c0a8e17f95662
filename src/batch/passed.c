/*
 * passed.c
 *	  Keys that reading back passes over, because a row of theirs is tried again.
 *
 * A row that waits to be tried again holds back the later rows of its key, and
 * the order of a key asks for no more than that they come after it.  So they
 * need not be in memory while it waits: when what is at hand is as much as may
 * be, chunks that have only such rows are let go, and what comes of these keys
 * is not kept when it is read, so that reading goes on to other keys.  A chunk
 * that has rows of other keys too stays.
 *
 * Once one of the rows that are waited for is settled, or is no longer tried by
 * itself, everything is read anew, from the oldest on: before the next batch is
 * gathered, else later rows of its key could overtake what was passed over.  The
 * worker.
 */
#include "postgres.h"

#include "batch/index.h"
#include "batch/passed.h"

/* Note that the rows of a key wait for the one of this ticket. */
static void
note_key(BatcherPassed *passed, text *key, uint64 ticket)
{
	text	   *copy;

	if (batcher_keyset_has(&passed->keys, key))
		return;
	copy = palloc(VARSIZE(key));
	memcpy(copy, key, VARSIZE(key));
	batcher_keyset_add(&passed->keys, copy);
	if (passed->ntickets == passed->allocated)
	{
		passed->allocated = Max(2 * passed->allocated, 16);
		if (passed->tickets == NULL)
			passed->tickets = palloc_array(uint64, passed->allocated);
		else
			passed->tickets = repalloc_huge(passed->tickets,
											passed->allocated * sizeof(uint64));
	}
	passed->tickets[passed->ntickets++] = ticket;
}

/*
 * If each row of a chunk that is not settled waits for one of its key that is
 * tried again, note their keys, in the current context, and return true.  The
 * chunk is in the index, and all units are in their places.
 */
bool
batcher_passed_note(BatcherLaneView *view, BatcherPassed *passed,
					BatcherChunk *chunk)
{
	int			pass;

	for (pass = 0; pass < 2; pass++)
	{
		BatcherRow *row = batcher_chunk_first(chunk);
		int			i;

		for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
		{
			uint64		ticket;

			if (row->flags & BATCHER_ROW_DONE)
				continue;
			if (!batcher_unit_waits_for(view, chunk, row, &ticket) ||
				!batcher_retry_waits(view, ticket))
				return false;
			if (pass == 1)
				note_key(passed, batcher_row_key(chunk, row), ticket);
		}
	}
	return true;
}

/*
 * Has a chunk only rows of keys that are passed over?
 */
bool
batcher_passed_has(const BatcherPassed *passed, BatcherChunk *chunk)
{
	BatcherRow *row = batcher_chunk_first(chunk);
	int			i;

	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
	{
		if (!(row->flags & BATCHER_ROW_DONE) &&
			!batcher_keyset_has(&passed->keys, batcher_row_key(chunk, row)))
			return false;
	}
	return true;
}

/*
 * A chunk that comes at this place is not kept.
 */
void
batcher_passed_count(BatcherPassed *passed, const BatcherChunk *chunk,
					 uint64 place)
{
	passed->from = passed->nrows == 0 ? place : Min(passed->from, place);
	passed->nrows += chunk->nlive;
}

/*
 * Do all keys still wait for which something was passed over?
 */
bool
batcher_passed_wait(BatcherLaneView *view, const BatcherPassed *passed)
{
	int			i;

	for (i = 0; i < passed->ntickets; i++)
	{
		if (!batcher_retry_waits(view, passed->tickets[i]))
			return false;
	}
	return true;
}
