/*
 * passed.h
 *	  Keys that reading back passes over, because a row of theirs is tried again.
 */
#ifndef BATCHER_PASSED_H
#define BATCHER_PASSED_H

#include "batch/batch.h"
#include "batch/keyset.h"

/* All zero: none. */
typedef struct BatcherPassed
{
	BatcherKeySet keys;
	int			ntickets;		/* of the rows that they wait for */
	int			allocated;
	uint64	   *tickets;
	int64		nrows;			/* rows that were passed over */
	uint64		from;			/* the place of the first, if there are such */
} BatcherPassed;

extern bool batcher_passed_note(BatcherLaneView *view, BatcherPassed *passed,
								BatcherChunk *chunk);
extern bool batcher_passed_has(const BatcherPassed *passed,
							   BatcherChunk *chunk);
extern void batcher_passed_count(BatcherPassed *passed,
								 const BatcherChunk *chunk, uint64 place);
extern bool batcher_passed_wait(BatcherLaneView *view,
								const BatcherPassed *passed);

#endif							/* BATCHER_PASSED_H */
