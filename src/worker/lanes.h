/*
 * lanes.h
 *	  The lanes that a worker owns; no other process uses it.
 */
#ifndef BATCHER_LANES_H
#define BATCHER_LANES_H

#include "batch/batch.h"
#include "nodes/pg_list.h"

extern List *batcher_lane_views;	/* of BatcherLaneView, one per owned lane */

extern void batcher_lanes_start(int slot, BatcherSharedDatabase *db);
extern bool batcher_lanes_load(void);
extern void batcher_lanes_reload(void);
extern void batcher_lanes_look_for_free(bool busy);
extern int	batcher_lanes_forget_lost(void);

#endif							/* BATCHER_LANES_H */
