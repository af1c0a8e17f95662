/*
 * staged.h
 *	  What a transaction has enqueued, as staging.c and spill.c share it.
 */
#ifndef BATCHER_STAGED_H
#define BATCHER_STAGED_H

#include "catalog/catalog.h"

/* One lane into which the transaction has enqueued. */
typedef struct StagedLane
{
	BatcherSharedQueue *queue;	/* the entry of the lane */
	int			level;			/* nesting level that made it */
	bool		durable;
	bool		has_private;	/* some rows are not in the area */
	bool		spilling;		/* batcher_lane_spill_begin was called */
	uint64		group;			/* number of the first sealed chunk, 0: none */
	int			nnumbered;		/* chunks before this index have numbers */
	bool		urgent;
	int			open;			/* index of the chunk to add to, or -1 */
	Size		bytes;			/* in the area */
	int			nmemory;		/* rows pushed; set at PRE_COMMIT */
	int			nspilled;		/* rows spilled; set at PRE_COMMIT */
	uint64		before;
} StagedLane;

/* One chunk; the array is in the order of making, so of levels. */
typedef struct StagedChunk
{
	BatcherChunk *chunk;		/* NULL: sealed */
	BatcherRow *last;
	int			lane;
	int			level;
	int			nrows;			/* of a sealed one */
	uint64		first_ticket;	/* the same */
	uint64		last_ticket;
	bool		pushed;
} StagedChunk;

/* spill.c */
extern void batcher_staged_release(StagedLane *lanes, StagedChunk *staged);
extern void batcher_staged_seal(StagedLane *lanes, StagedChunk *chunks,
								int index, Oid spool_oid);
extern void batcher_staged_number(StagedLane *lanes, int nlanes,
								  StagedChunk *chunks, int nchunks);
extern void batcher_staged_write(StagedLane *lanes, StagedChunk *chunks,
								 int nchunks, Oid spool_oid);

#endif							/* BATCHER_STAGED_H */
