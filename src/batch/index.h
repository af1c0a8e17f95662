/*
 * index.h
 *	  The waiting rows of a lane, in the order in which they may leave.
 *
 * See index.c.  For place.c, unit.c, index.c, take.c, passed.c
 * and gather.c only.
 */
#ifndef BATCHER_INDEX_H
#define BATCHER_INDEX_H

#include "batch/batch.h"
#include "lib/ilist.h"
#include "lib/pairingheap.h"

/* One waiting row. */
struct BatcherRef
{
	BatcherRef *next;	/* in its unit */
	BatcherChunk *chunk;		/* NULL: rolled back, to be passed over */
	BatcherRow *row;
};

/* What the rows of a unit have in common. */
typedef enum BatcherUnitClass
{
	BATCHER_UNIT_KEY,			/* a key */
	BATCHER_UNIT_LEVEL,			/* no key, and a priority */
	BATCHER_UNIT_IMMEDIATE,		/* the same, and they are immediate */
	BATCHER_UNIT_ALONE,			/* the same, and each is a batch of its own */
	BATCHER_UNIT_SINGLE			/* no key, one row that has failed */
} BatcherUnitClass;

typedef struct BatcherUnitId
{
	text	   *key;			/* of the first row; else NULL */
	BatcherUnitClass class;
	uint64		number;			/* the priority, or the ticket */
} BatcherUnitId;

/* Where a unit is. */
typedef enum BatcherPlace
{
	BATCHER_PLACE_NONE,			/* its first row is held back */
	BATCHER_PLACE_TIMER,		/* in 'timers' */
	BATCHER_PLACE_WAITING,		/* in 'ages' and 'ready' */
	BATCHER_PLACE_RETRY,		/* in 'retries' */
	BATCHER_PLACE_URGENT		/* in 'urgent' */
} BatcherPlace;

/*
 * The highest priority of the ready rows of a unit once those of a higher one
 * have left, and how many of the former have it.
 */
typedef struct BatcherLevel
{
	dlist_node	node;
	int32		priority;
	int			nrows;
} BatcherLevel;

/*
 * Rows that leave one after the other.  Those before 'barrier' are ready.
 */
typedef struct BatcherUnit
{
	BatcherUnitId id;			/* hash key, must be first */
	BatcherRef *head;
	BatcherRef *tail;
	BatcherRef *barrier;		/* the first row that is undecided or is tried
								 * again; NULL: none */
	BatcherRef *last;			/* the row before it, if nready > 0 */
	int			nready;			/* rows before it */
	int			nbelow;			/* of these, in chunks below the index's 'below' */
	int			nurgent;		/* of these, immediate ones and such that are a
								 * batch of their own */
	int			nalone;			/* of these, the latter */
	int32		priority;		/* the highest of these */
	int			npriority;		/* how many have it */
	dlist_head	lower;			/* levels that come then, falling: only rows
								 * behind which none of a higher priority is
								 * ready are in one */
	TimestampTz oldest_at;		/* the oldest commit of these */
	TimestampTz newest_at;		/* and the newest */
	TimestampTz held_at;		/* the oldest commit of those that an undecided
								 * barrier holds back, 0 if one is immediate */
	BatcherPlace place;
	int			weight;			/* counted in the index's 'nready' */
	uint64		split_below;	/* its rows in chunks with a smaller number are
								 * not merged, because that failed; 0: none */
	bool		swept;			/* it is due because of max_wait */
	TimestampTz time;			/* when it began to wait, or is tried again */
	pairingheap_node by_time;
	pairingheap_node by_priority;
	dlist_node	held;			/* if held_at is not BATCHER_NEVER */
} BatcherUnit;

/* A chunk whose transaction had not ended when we looked last. */
typedef struct BatcherUndecided
{
	BatcherChunk *chunk;
	uint32		state;			/* as of this look */
	int			nrefs;			/* -1: it has just come */
	BatcherRef **refs;			/* of its rows with a key */
} BatcherUndecided;

struct BatcherIndex
{
	MemoryContext cxt;			/* holds all of it */
	MemoryContext ref_cxt;
	HTAB	   *units;
	int64		nrefs;
	int64		peak;			/* the most refs so far */
	int64		nready;			/* rows of units in PLACE_WAITING */
	uint64		below;			/* somebody waits for chunks with a smaller
								 * number */
	int64		nbelow;			/* rows of such, of units in PLACE_WAITING or
								 * PLACE_TIMER */
	pairingheap ages;			/* what waits, longest first */
	pairingheap ready;			/* the same, highest priority first */
	pairingheap retries;		/* by the time of the retry */
	pairingheap timers;			/* by the end of debounce or max_wait, which may
								 * have moved on since */
	int			ntimers;
	pairingheap urgent;			/* what is to leave at once */
	dlist_head	held;			/* units with rows that an undecided one holds
								 * back */
	BatcherUndecided *undecided;	/* in the order of the taken list */
	int			nundecided;
	int			max_undecided;
};

#define batcher_unit_by_time(node) \
	pairingheap_container(BatcherUnit, by_time, node)
#define batcher_unit_by_priority(node) \
	pairingheap_container(BatcherUnit, by_priority, node)

/* The first unit of a heap, or NULL. */
static inline BatcherUnit *
batcher_first_by_time(pairingheap *heap)
{
	return pairingheap_is_empty(heap) ? NULL :
		batcher_unit_by_time(pairingheap_first(heap));
}

static inline BatcherUnit *
batcher_first_by_priority(pairingheap *heap)
{
	return pairingheap_is_empty(heap) ? NULL :
		batcher_unit_by_priority(pairingheap_first(heap));
}

/* place.c */
extern int	batcher_unit_compare_age(const BatcherUnit *a,
									 const BatcherUnit *b);
extern int	batcher_unit_compare(const BatcherUnit *a, const BatcherUnit *b);
extern void batcher_unit_take_off(BatcherIndex *index, BatcherUnit *unit);
extern TimestampTz batcher_unit_due(BatcherLaneView *view,
									const BatcherUnit *unit);
extern void batcher_unit_put_due(BatcherLaneView *view, BatcherUnit *unit);
extern void batcher_unit_put(BatcherLaneView *view, BatcherUnit *unit);
extern void batcher_unit_force_retries(BatcherLaneView *view);
extern void batcher_unit_count_below(BatcherIndex *index, uint64 below);

/* unit.c */
extern bool batcher_row_is_alone(BatcherLaneView *view, const BatcherRow *row);
extern bool batcher_unit_folds(BatcherLaneView *view, const BatcherUnit *unit);
extern void batcher_unit_forget_ref(BatcherIndex *index, BatcherRef *ref);
extern void batcher_unit_forget_held(BatcherUnit *unit);
extern BatcherRef *batcher_unit_append(BatcherLaneView *view,
									   BatcherChunk *chunk, BatcherRow *row);
extern void batcher_unit_decide(BatcherLaneView *view, BatcherChunk *chunk,
								BatcherRow *row, BatcherRef *ref);
extern bool batcher_unit_waits_for(BatcherLaneView *view, BatcherChunk *chunk,
								   BatcherRow *row, uint64 *ticket);
extern BatcherRef *batcher_unit_pop(BatcherLaneView *view, BatcherUnit *unit);
extern void batcher_unit_push_back(BatcherLaneView *view, BatcherRef *ref);
extern void batcher_unit_split(BatcherLaneView *view, BatcherChunk *chunk,
							   BatcherRow *row);

/* take.c */
extern BatcherBatch *batcher_batch_make(BatcherReason reason);
extern int	batcher_batch_add(BatcherBatch *batch, BatcherChunk *chunk,
							  BatcherRow *row);
extern void batcher_batch_take(BatcherLaneView *view, BatcherBatch *batch,
							   BatcherUnit *unit);
extern void batcher_batch_complete(BatcherBatch *batch);

/* index.c */
extern void batcher_index_update(BatcherLaneView *view);

#endif							/* BATCHER_INDEX_H */
