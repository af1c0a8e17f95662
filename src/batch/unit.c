/*
 * unit.c
 *	  A key's waiting rows, or the rows without key of one priority.
 *
 * A unit is a list of rows that leave one after the other, and has its place in
 * the heaps of the index by its first ones.  It is taken off the heaps before
 * it is changed and put back afterwards.  See index.c for what all this is good
 * for.  The worker.
 */
#include "postgres.h"

#include "batch/index.h"
#include "batch/keyset.h"
#include "nodes/pg_list.h"
#include "utils/memutils.h"

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
 * Is a row a batch of its own, because its session or its queue gathers
 * nothing?
 */
bool
batcher_row_is_alone(BatcherLaneView *view, const BatcherRow *row)
{
	return (row->flags & BATCHER_ROW_ALONE) || !view->def->options.enabled;
}

/*
 * Do the rows of a unit become one?
 */
bool
batcher_unit_folds(BatcherLaneView *view, const BatcherUnit *unit)
{
	return unit->id.class == BATCHER_UNIT_KEY && unit->split_below == 0 &&
		view->def->options.key_policy != BATCHER_KEYS_ALL;
}

/* Does a row wait to be tried again by itself? */
static bool
is_retried(BatcherLaneView *view, const BatcherRef *ref)
{
	return batcher_retry_at(view, ref->chunk, ref->row) != BATCHER_NO_RETRY;
}

/* Which unit a row belongs to. */
static void
identify_unit(BatcherLaneView *view, const BatcherRef *ref, BatcherUnitId *id)
{
	uint64		ticket = ref->chunk->first_ticket + ref->row->ticket;

	memset(id, 0, sizeof(*id));
	id->key = batcher_row_key(ref->chunk, ref->row);
	if (id->key)
		id->class = BATCHER_UNIT_KEY;
	else if (ref->row->attempts > 0 || batcher_retry_known(view, ticket))
	{
		id->class = BATCHER_UNIT_SINGLE;
		id->number = ticket;
	}
	else
	{
		id->class = batcher_row_is_alone(view, ref->row) ? BATCHER_UNIT_ALONE :
			ref->row->flags & BATCHER_ROW_IMMEDIATE ? BATCHER_UNIT_IMMEDIATE :
			BATCHER_UNIT_LEVEL;
		id->number = (uint32) batcher_row_priority(ref->row);
	}
}

static BatcherUnit *
get_unit(BatcherIndex *index, const BatcherUnitId *id)
{
	bool		found;
	BatcherUnit *unit = hash_search(index->units, id, HASH_ENTER, &found);

	if (!found)
	{
		memset((char *) unit + sizeof(BatcherUnitId), 0,
			   sizeof(BatcherUnit) - sizeof(BatcherUnitId));
		unit->held_at = BATCHER_NEVER;
		unit->place = BATCHER_PLACE_NONE;
	}
	return unit;
}

static BatcherRef *
make_ref(BatcherIndex *index, BatcherChunk *chunk, BatcherRow *row)
{
	BatcherRef *ref = MemoryContextAlloc(index->ref_cxt, sizeof(BatcherRef));

	ref->next = NULL;
	ref->chunk = chunk;
	ref->row = row;
	index->nrefs++;
	return ref;
}

/*
 * Forget a row that was taken out, because it is settled.
 */
void
batcher_unit_forget_ref(BatcherIndex *index, BatcherRef *ref)
{
	index->nrefs--;
	pfree(ref);
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

/* Let go of a unit's claim that somebody holds rows of it back. */
static void
forget_held(BatcherUnit *unit)
{
	if (unit->held_at == BATCHER_NEVER)
		return;
	dlist_delete(&unit->held);
	unit->held_at = BATCHER_NEVER;
}

static BatcherLevel *
make_level(BatcherIndex *index, int32 priority, int nrows)
{
	BatcherLevel *level = MemoryContextAlloc(index->cxt, sizeof(BatcherLevel));

	level->priority = priority;
	level->nrows = nrows;
	return level;
}

static void
free_level(BatcherLevel *level)
{
	dlist_delete(&level->node);
	pfree(level);
}

/* A row of this priority is ready, after those that were. */
static void
add_priority_last(BatcherIndex *index, BatcherUnit *unit, int32 priority)
{
	while (!dlist_is_empty(&unit->lower))
	{
		BatcherLevel *level = dlist_tail_element(BatcherLevel, node,
												 &unit->lower);

		if (level->priority > priority)
			break;
		if (level->priority == priority)
		{
			level->nrows++;
			return;
		}
		free_level(level);		/* never the highest: this row outstays it */
	}
	if (unit->npriority == 0 || priority > unit->priority)
	{
		unit->priority = priority;
		unit->npriority = 1;
	}
	else if (priority == unit->priority)
		unit->npriority++;
	else
		dlist_push_tail(&unit->lower, &make_level(index, priority, 1)->node);
}

/* The same, before those that were. */
static void
add_priority_first(BatcherIndex *index, BatcherUnit *unit, int32 priority)
{
	if (unit->npriority > 0 && priority < unit->priority)
		return;					/* it leaves before they do */
	if (unit->npriority > 0 && priority > unit->priority)
	{
		dlist_push_head(&unit->lower, &make_level(index, unit->priority,
												  unit->npriority)->node);
		unit->npriority = 0;
	}
	unit->priority = priority;
	unit->npriority++;
}

/* The first ready row, of this priority, is not any more. */
static void
remove_priority(BatcherUnit *unit, int32 priority)
{
	BatcherLevel *level;

	if (priority < unit->priority || --unit->npriority > 0 ||
		dlist_is_empty(&unit->lower))
		return;
	level = dlist_head_element(BatcherLevel, node, &unit->lower);
	unit->priority = level->priority;
	unit->npriority = level->nrows;
	free_level(level);
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
		forget_held(unit);
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

/* Count a row, by 1 or -1, if it is one that is to leave at once. */
static void
count_urgent(BatcherLaneView *view, BatcherUnit *unit, const BatcherRow *row,
			 int by)
{
	bool		alone = batcher_row_is_alone(view, row);

	if (alone || (row->flags & BATCHER_ROW_IMMEDIATE))
		unit->nurgent += by;
	if (alone)
		unit->nalone += by;
}

/*
 * A row of a unit that was taken off is ready: one that is first, or comes
 * after those that were.
 */
static void
count_ready(BatcherLaneView *view, BatcherUnit *unit, BatcherRef *ref,
			bool is_last)
{
	int32		priority = batcher_row_priority(ref->row);

	if (is_last)
		add_priority_last(view->index, unit, priority);
	else
		add_priority_first(view->index, unit, priority);
	if (is_last || unit->nready == 0)
		unit->last = ref;
	if (unit->nready == 0)
		unit->oldest_at = unit->newest_at = ref->chunk->committed_at;
	unit->nready++;
	unit->nbelow += ref->chunk->number < view->index->below;
	unit->oldest_at = Min(unit->oldest_at, ref->chunk->committed_at);
	unit->newest_at = Max(unit->newest_at, ref->chunk->committed_at);
	count_urgent(view, unit, ref->row, 1);
}

/* The same, of a row that is taken out. */
static void
uncount_ready(BatcherLaneView *view, BatcherUnit *unit, const BatcherRef *ref)
{
	unit->nready--;
	unit->nbelow -= ref->chunk->number < view->index->below;
	remove_priority(unit, batcher_row_priority(ref->row));
	count_urgent(view, unit, ref->row, -1);
	if (unit->nready > 0)
		unit->oldest_at = unit->head->chunk->committed_at;
}

/* None of the rows of a unit that was taken off is ready. */
static void
reset_ready(BatcherUnit *unit)
{
	unit->nready = unit->nbelow = unit->nurgent = unit->nalone = 0;
	unit->npriority = 0;
	while (!dlist_is_empty(&unit->lower))
		free_level(dlist_head_element(BatcherLevel, node, &unit->lower));
}

/*
 * Does a row hold back those behind it?  One that is tried again does, unless
 * they become one with it.
 */
static bool
holds_back(BatcherLaneView *view, const BatcherUnit *unit,
		   const BatcherRef *ref)
{
	if (!(ref->chunk->flags & BATCHER_CHUNK_SEEN))
		return true;
	return !batcher_unit_folds(view, unit) && is_retried(view, ref);
}

/* Take the first row off, which is not ready or was counted out. */
static void
unlink_head(BatcherUnit *unit)
{
	unit->head = unit->head->next;
	if (unit->head == NULL)
		unit->tail = NULL;
	else if (unit->id.class == BATCHER_UNIT_KEY && unit->head->chunk)
		unit->id.key = batcher_row_key(unit->head->chunk, unit->head->row);
}

/*
 * What the barrier was has been decided, or is gone: find the next one.  The
 * unit was taken off.
 */
static void
advance_barrier(BatcherLaneView *view, BatcherUnit *unit)
{
	BatcherRef *previous = unit->nready > 0 ? unit->last : NULL;

	while (unit->barrier)
	{
		BatcherRef *ref = unit->barrier;

		if (ref->chunk == NULL)
		{
			unit->barrier = ref->next;
			if (previous == NULL)
				unlink_head(unit);
			else
			{
				previous->next = ref->next;
				if (unit->tail == ref)
					unit->tail = previous;
			}
			batcher_unit_forget_ref(view->index, ref);
			continue;
		}
		if (holds_back(view, unit, ref))
			break;
		count_ready(view, unit, ref, true);
		unit->barrier = ref->next;
		previous = ref;
	}
	if (unit->barrier == NULL ||
		(unit->barrier->chunk->flags & BATCHER_CHUNK_SEEN))
		forget_held(unit);
}

/* Note that a committed row is behind an undecided one. */
static void
note_held(BatcherLaneView *view, BatcherUnit *unit, const BatcherChunk *chunk,
		  const BatcherRow *row)
{
	bool		urgent = (row->flags & BATCHER_ROW_IMMEDIATE) ||
		batcher_row_is_alone(view, row);

	if (unit->held_at == BATCHER_NEVER)
		dlist_push_tail(&view->index->held, &unit->held);
	unit->held_at = Min(unit->held_at, urgent ? 0 : chunk->committed_at);
}

/* Is the first row of a unit that holds others back undecided? */
static bool
is_undecided(const BatcherUnit *unit)
{
	return unit->barrier && unit->barrier->chunk &&
		!(unit->barrier->chunk->flags & BATCHER_CHUNK_SEEN);
}

/*
 * Add a row that has come at the end of its unit.
 */
BatcherRef *
batcher_unit_append(BatcherLaneView *view, BatcherChunk *chunk,
					BatcherRow *row)
{
	BatcherIndex *index = view->index;
	BatcherRef *ref = make_ref(index, chunk, row);
	bool		seen = chunk->flags & BATCHER_CHUNK_SEEN;
	BatcherUnitId id;
	BatcherUnit *unit;

	identify_unit(view, ref, &id);
	unit = get_unit(index, &id);
	if (unit->tail)
		unit->tail->next = ref;
	else
		unit->head = ref;
	unit->tail = ref;
	if (unit->barrier)
	{
		if (seen && is_undecided(unit))
			note_held(view, unit, chunk, row);
		return ref;
	}
	if (holds_back(view, unit, ref))
	{
		unit->barrier = ref;
		if (unit->head == ref)
			batcher_unit_put(view, unit);
		return ref;
	}
	/* as a rule, nothing changes for the heaps */
	if ((unit->place == BATCHER_PLACE_WAITING ||
		 unit->place == BATCHER_PLACE_TIMER) &&
		!(row->flags & BATCHER_ROW_IMMEDIATE) &&
		!batcher_row_is_alone(view, row) && !is_retried(view, ref) &&
		batcher_row_priority(row) <= unit->priority &&
		chunk->committed_at >= unit->oldest_at)
	{
		count_ready(view, unit, ref, true);
		index->nbelow += chunk->number < index->below;
		if (unit->place == BATCHER_PLACE_WAITING &&
			!batcher_unit_folds(view, unit))
		{
			unit->weight++;
			index->nready++;
		}
		return ref;
	}
	batcher_unit_take_off(index, unit);
	count_ready(view, unit, ref, true);
	batcher_unit_put(view, unit);
	return ref;
}

/* Find the unit of a row with a key that is there. */
static BatcherUnit *
find_unit(BatcherIndex *index, BatcherChunk *chunk, BatcherRow *row)
{
	BatcherUnitId id;

	memset(&id, 0, sizeof(id));
	id.key = batcher_row_key(chunk, row);
	id.class = BATCHER_UNIT_KEY;
	return hash_search(index->units, &id, HASH_FIND, NULL);
}

/*
 * A row with a key, which was there as 'ref', is decided.  If it was rolled
 * back, an earlier row of its chunk and key may have taken the ref away.
 */
void
batcher_unit_decide(BatcherLaneView *view, BatcherChunk *chunk,
					BatcherRow *row, BatcherRef *ref)
{
	BatcherIndex *index = view->index;
	BatcherUnit *unit = find_unit(index, chunk, row);

	if (unit == NULL)
		return;					/* gone with another row of the chunk */
	if (unit->barrier == ref)
	{
		batcher_unit_take_off(index, unit);
		advance_barrier(view, unit);
		batcher_unit_put(view, unit);
	}
	else if ((chunk->flags & BATCHER_CHUNK_SEEN) && is_undecided(unit))
		note_held(view, unit, chunk, row);
}

/* Have the rows left that are not to be merged? */
static bool
is_behind_split(const BatcherUnit *unit)
{
	return unit->split_below != 0 && unit->head && unit->head->chunk &&
		unit->head->chunk->number >= unit->split_below;
}

/*
 * Take the first row out of a unit that was taken off; it is ready, or is to
 * be tried again.
 */
BatcherRef *
batcher_unit_pop(BatcherLaneView *view, BatcherUnit *unit)
{
	BatcherRef *ref = unit->head;
	bool		advances = unit->barrier == ref;

	Assert(unit->place == BATCHER_PLACE_NONE);
	if (advances)
		unit->barrier = ref->next;
	unlink_head(unit);
	if (!advances)
		uncount_ready(view, unit, ref);
	if (is_behind_split(unit))
	{
		unit->split_below = 0;
		advances = true;
	}
	if (advances && unit->barrier)
		advance_barrier(view, unit);
	return ref;
}

/*
 * Put a row back that was taken out, before all that has stayed; rows that
 * were taken out one after the other are put back in the reverse order.
 */
void
batcher_unit_push_back(BatcherLaneView *view, BatcherRef *ref)
{
	BatcherUnitId id;
	BatcherUnit *unit;

	identify_unit(view, ref, &id);
	unit = get_unit(view->index, &id);
	batcher_unit_take_off(view->index, unit);
	ref->next = unit->head;
	unit->head = ref;
	unit->id.key = id.key;
	if (unit->tail == NULL)
		unit->tail = ref;
	if (holds_back(view, unit, ref))
	{
		/* the others are counted again when this is gone */
		unit->barrier = ref;
		reset_ready(unit);
	}
	else
		count_ready(view, unit, ref, false);
	batcher_unit_put(view, unit);
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

/*
 * Do not merge the rows of a key that wait now; those that come later are
 * merged again.  'row' is one of the former, and was put back.
 */
void
batcher_unit_split(BatcherLaneView *view, BatcherChunk *chunk, BatcherRow *row)
{
	BatcherUnit *unit = find_unit(view->index, chunk, row);
	BatcherRef *ref;

	if (unit == NULL || unit->split_below != 0)
		return;
	batcher_unit_take_off(view->index, unit);
	for (ref = unit->head; ref; ref = ref->next)
	{
		if (ref->chunk)
			unit->split_below = Max(unit->split_below, ref->chunk->number + 1);
	}
	reset_ready(unit);
	unit->barrier = unit->head;
	advance_barrier(view, unit);
	batcher_unit_put(view, unit);
}
