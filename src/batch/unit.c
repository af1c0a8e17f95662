/*
 * unit.c
 *	  A key's waiting rows, or the rows without key of one priority.
 *
 * A unit is a list of rows that leave one after the other, and has its place in
 * the heaps of the index by its first ones (place.c).  It is taken off the heaps
 * before it is changed and put back afterwards.  See index.c for what all this
 * is good for.  The worker.
 */
#include "postgres.h"

#include "batch/index.h"

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
 * Let go of a unit's claim that somebody holds rows of it back.
 */
void
batcher_unit_forget_held(BatcherUnit *unit)
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
		batcher_unit_forget_held(unit);
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
 * Does a row wait for one before it in its key, 'ticket', that is tried again?
 */
bool
batcher_unit_waits_for(BatcherLaneView *view, BatcherChunk *chunk,
					   BatcherRow *row, uint64 *ticket)
{
	BatcherUnit *unit = NULL;

	if (row->flags & BATCHER_ROW_KEY)
		unit = find_unit(view->index, chunk, row);
	if (unit == NULL || unit->place != BATCHER_PLACE_RETRY ||
		unit->barrier != unit->head || unit->head->row == row)
		return false;
	*ticket = unit->head->chunk->first_ticket + unit->head->row->ticket;
	return true;
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
