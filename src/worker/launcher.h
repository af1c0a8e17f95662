/*
 * launcher.h
 *	  What the files of the launcher share; no other process uses it.
 */
#ifndef BATCHER_LAUNCHER_H
#define BATCHER_LAUNCHER_H

#include "nodes/pg_list.h"
#include "postmaster/bgworker.h"
#include "worker/worker.h"

/*
 * A database that the launcher knows.
 *
 * A worker is to look into it whenever 'visit_wanted' differs from
 * 'visit_done'.  They are numbers, so that the answer of a worker that was
 * started before the last request does not count.
 */
typedef struct BatcherKnownDatabase
{
	Oid			dboid;			/* hash key, must be first */
	bool		present;		/* in pg_database at the last look */
	bool		connectable;
	bool		is_template;
	uint32		visit_wanted;
	uint32		visit_done;
} BatcherKnownDatabase;

/* database_list.c */
extern void batcher_database_list_refresh(bool look_again);
extern BatcherKnownDatabase *batcher_database_list_find(Oid dboid);
extern List *batcher_database_list_unvisited(void);

/*
 * What the launcher remembers of the worker that it started for a slot.
 */
typedef struct BatcherLaunch
{
	uint64		generation;		/* of the slot; 0: no worker known */
	BackgroundWorkerHandle *handle; /* NULL: an earlier launcher had it */
	TimestampTz started_at;
	bool		visit;			/* to see whether the extension is there */
	uint32		visit_number;	/* the request that it answers */
	TimestampTz terminated_at;	/* its first SIGTERM was seen, 0: none was */
	bool		signalled;		/* it was sent a second SIGTERM */
} BatcherLaunch;

/*
 * The state of one turn: when it began, when to look again at the latest, and
 * all slots as they were at its start, with what was changed since.
 */
typedef struct BatcherTurn
{
	TimestampTz now;
	TimestampTz look_at;		/* BATCHER_NEVER: when woken */
	BatcherSlotCopy slots[BATCHER_MAX_WORKERS];
	int			nasides;
	Oid			asides[BATCHER_MAX_ASIDE];	/* databases to stay away from */
	int			nkeys;
	BatcherDatabaseKey *keys;	/* databases that have the extension */
	BatcherSharedQueue **queues;	/* room for all queues */
} BatcherTurn;

/* launcher.c */
extern BatcherTurn batcher_turn;
extern BatcherLaunch batcher_launches[BATCHER_MAX_WORKERS];
extern MemoryContext batcher_launcher_context;
extern void batcher_turn_look_at(TimestampTz t);
extern int	batcher_turn_find_worker(BatcherDatabaseKey db,
									 const Oid *identity,
									 BatcherSharedQueue *lane);
extern void batcher_turn_ask_to_leave(int slot);

/* demand.c */
extern void batcher_demand_collect(void);
extern void batcher_demand_serve(void);
extern void batcher_demand_worker_ended(int slot, bool attached);

/* shortage.c */
extern void batcher_shortage_make_room(int nwaiting, int nextra,
									   bool no_process);
extern void batcher_shortage_log(int nwaiting, TimestampTz since,
								 bool no_process);

#endif							/* BATCHER_LAUNCHER_H */
