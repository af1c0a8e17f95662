/*
 * merge.h
 *	  Merging JSON values.
 */
#ifndef BATCHER_MERGE_H
#define BATCHER_MERGE_H

#include "utils/jsonb.h"

extern Jsonb *batcher_merge_jsonb(Jsonb *older, Jsonb *newer);

#endif							/* BATCHER_MERGE_H */
