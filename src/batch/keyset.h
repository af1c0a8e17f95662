/*
 * keyset.h
 *	  Sets of keys of rows.
 */
#ifndef BATCHER_KEYSET_H
#define BATCHER_KEYSET_H

#include "queue/chunk.h"
#include "utils/hsearch.h"

/* A set of keys, small or empty as a rule; all zeros is an empty one. */
typedef struct BatcherKeySet
{
	HTAB	   *table;			/* NULL: empty */
} BatcherKeySet;

extern void batcher_keyset_add(BatcherKeySet *set, text *key);
extern bool batcher_keyset_has(const BatcherKeySet *set, text *key);

#endif							/* BATCHER_KEYSET_H */
