/*
 * place.c
 *	  Where a unit is in the heaps of the index.
 *
 * That is decided by its first rows: whether they are to leave at once, wait
 * for others or for the end of a debounce, or are tried again at some time.  A
 * unit that is empty goes.  See unit.c for its rows.  The worker.
 */
#include "postgres.h"

#include "batch/index.h"
#include "nodes/pg_list.h"

/*
 * Has 'a' waited longer than 'b'?  More than 0 if so, and of equal ones where
 * it comes first in the order of enqueuing.
 */
int
batcher_unit_compare_age(const BatcherUnit *a, const BatcherUnit *b)
{
	if (a->time != b->time)
		return a->time < b->time ? 1 : -1;
	if (a->head->chunk != b->head->chunk)
		return a->head->chunk->number < b->head->chunk->number ? 1 : -1;
	return a->head->row < b->head->row ? 1 : -1;
}

/*
 * Is 'a' to leave before 'b'?  More than 0 if it has the higher priority, or
 * the same and has waited longer.
 */
int
batcher_unit_compare(const BatcherUnit *a, const BatcherUnit *b)
{
	if (a->priority != b->priority)
		return a->priority > b->priority ? 1 : -1;
	return batcher_unit_compare_age(a, b);
}

/*
 * Take a unit out of the heaps, before what they go by is changed.
 */
void
batcher_unit_take_off(BatcherIndex *index, BatcherUnit *unit)
{
	switch (unit->place)
	{
		case BATCHER_PLACE_NONE:
			break;
		case BATCHER_PLACE_WAITING:
			pairingheap_remove(&index->ages, &unit->by_time);
			pairingheap_remove(&index->ready, &unit->by_priority);
			index->nready -= unit->weight;
			index->nbelow -= unit->nbelow;
			break;
		case BATCHER_PLACE_TIMER:
			pairingheap_remove(&index->timers, &unit->by_time);
			index->ntimers--;
			index->nready -= unit->weight;
			index->nbelow -= unit->nbelow;
			break;
		case BATCHER_PLACE_RETRY:
			pairingheap_remove(&index->retries, &unit->by_time);
			break;
		case BATCHER_PLACE_URGENT:
			pairingheap_remove(&index->urgent, &unit->by_priority);
			break;
	}
	unit->place = BATCHER_PLACE_NONE;
}

/*
 * When a unit of a queue with debounce is due.  Rows without key stand alone:
 * the first one counts.
 */
TimestampTz
batcher_unit_due(BatcherLaneView *view, const BatcherUnit *unit)
{
	const BatcherOptions *options = &view->def->options;
	TimestampTz quiet_since = unit->id.class == BATCHER_UNIT_KEY ?
		unit->newest_at : unit->oldest_at;

	return Min(batcher_clock_add_ms(quiet_since, options->debounce),
			   batcher_clock_add_ms(unit->oldest_at, options->max_wait));
}

/*
 * When what is to leave first of a unit is tried again; BATCHER_NO_RETRY if it
 * does not wait for that.
 */
static TimestampTz
unit_retry_at(BatcherLaneView *view, const BatcherUnit *unit)
{
	const BatcherRef *ref = unit->head;

	if (unit->barrier == unit->head)
		return batcher_retry_at(view, ref->chunk, ref->row);
	if (!batcher_unit_folds(view, unit))
		return BATCHER_NO_RETRY;
	/* of the rows that become one it is the one that stays */
	if (view->def->options.key_policy != BATCHER_KEYS_FIRST)
	{
		if (unit->nalone == 0)
			ref = unit->last;
		else if (!batcher_row_is_alone(view, ref->row))
		{
			while (!batcher_row_is_alone(view, ref->next->row))
				ref = ref->next;
		}
	}
	return batcher_retry_at(view, ref->chunk, ref->row);
}

/*
 * Put a unit that was taken off among those that wait to be taken.
 */
void
batcher_unit_put_due(BatcherLaneView *view, BatcherUnit *unit)
{
	BatcherIndex *index = view->index;

	unit->time = unit->oldest_at;
	unit->place = BATCHER_PLACE_WAITING;
	unit->weight = batcher_unit_folds(view, unit) ? 1 : unit->nready;
	index->nready += unit->weight;
	index->nbelow += unit->nbelow;
	pairingheap_add(&index->ages, &unit->by_time);
	pairingheap_add(&index->ready, &unit->by_priority);
}

/*
 * Put a unit where it belongs, after it was taken off and changed.  One that
 * has become empty is gone.
 */
void
batcher_unit_put(BatcherLaneView *view, BatcherUnit *unit)
{
	BatcherIndex *index = view->index;
	TimestampTz retry_at;

	Assert(unit->place == BATCHER_PLACE_NONE);
	if (unit->head == NULL)
	{
		batcher_unit_forget_held(unit);
		(void) hash_search(index->units, &unit->id, HASH_REMOVE, NULL);
		return;
	}
	if (!(unit->head->chunk->flags & BATCHER_CHUNK_SEEN))
		return;					/* it is undecided */
	retry_at = unit_retry_at(view, unit);
	if (retry_at != BATCHER_NO_RETRY)
	{
		unit->time = retry_at;
		unit->place = BATCHER_PLACE_RETRY;
		pairingheap_add(&index->retries, &unit->by_time);
	}
	else if (unit->nurgent > 0)
	{
		unit->time = unit->oldest_at;
		unit->place = BATCHER_PLACE_URGENT;
		pairingheap_add(&index->urgent, &unit->by_priority);
	}
	else if (view->def->options.debounce > 0)
	{
		unit->time = batcher_unit_due(view, unit);
		unit->place = BATCHER_PLACE_TIMER;
		unit->weight = 0;
		pairingheap_add(&index->timers, &unit->by_time);
		index->ntimers++;
		index->nbelow += unit->nbelow;
	}
	else
		batcher_unit_put_due(view, unit);
}

/*
 * The times at which rows are tried again have changed.
 */
void
batcher_unit_force_retries(BatcherLaneView *view)
{
	BatcherIndex *index = view->index;
	List	   *units = NIL;
	ListCell   *lc;

	while (!pairingheap_is_empty(&index->retries))
	{
		BatcherUnit *unit = batcher_first_by_time(&index->retries);

		batcher_unit_take_off(index, unit);
		units = lappend(units, unit);
	}
	foreach(lc, units)
		batcher_unit_put(view, lfirst(lc));
	list_free(units);
}

/*
 * Count the rows that are ready in chunks with a smaller number than 'below',
 * from now on too.
 */
void
batcher_unit_count_below(BatcherIndex *index, uint64 below)
{
	HASH_SEQ_STATUS status;
	BatcherUnit *unit;
	BatcherRef *ref;

	if (index->below == below)
		return;
	index->below = below;
	index->nbelow = 0;
	hash_seq_init(&status, index->units);
	while ((unit = hash_seq_search(&status)) != NULL)
	{
		unit->nbelow = 0;
		if (unit->nready == 0)
			continue;
		for (ref = unit->head; ref != unit->barrier; ref = ref->next)
			unit->nbelow += ref->chunk->number < below;
		if (unit->place == BATCHER_PLACE_WAITING ||
			unit->place == BATCHER_PLACE_TIMER)
			index->nbelow += unit->nbelow;
	}
}
