/*
 * entries.h
 *	  What of a lane is in the spool, and where.
 */
#ifndef BATCHER_ENTRIES_H
#define BATCHER_ENTRIES_H

#include "batch/batch.h"

/*
 * One tuple.  Tuples that one large transaction sealed have a group, and come
 * at the place of its last number, in the order of their own.
 */
typedef struct BatcherEntry
{
	uint64		order;			/* where it comes */
	uint64		number;
	ItemPointerData tid;
} BatcherEntry;

/* In the order in which they come.  All zero but 'cxt': none. */
typedef struct BatcherEntries
{
	MemoryContext cxt;			/* holds the list */
	BatcherEntry *list;
	int			n;
	int			allocated;
	bool		partial;		/* there are more */
} BatcherEntries;

extern int64 batcher_entries_find(BatcherEntries *found, Relation spool,
								  BatcherLaneView *view, uint64 home);

#endif							/* BATCHER_ENTRIES_H */
