/*
 * worker.h
 *	  The launcher, the workers and their slots.
 */
#ifndef BATCHER_WORKER_H
#define BATCHER_WORKER_H

#include "shmem/shmem.h"

/* registration, from _PG_init */
extern void batcher_launcher_register(void);

/* launcher.c */
extern PGDLLEXPORT void batcher_launcher_main(Datum arg);

/* worker.c */
extern PGDLLEXPORT void batcher_worker_main(Datum arg);

/* slot.c */
extern int	batcher_slot_reserve(Oid dboid, Oid identity,
								 uint64 *generation);
extern bool batcher_slot_attach(int slot, uint64 generation);
extern void batcher_slot_set_extension(int slot, Oid extoid);
extern void batcher_slot_release(int slot, uint64 generation);
extern void batcher_slot_report(int slot, BatcherSharedQueue *queue,
								int rows);
extern BatcherSharedQueue *batcher_slot_own_lane(int slot,
												 BatcherQueueKey key);
extern void batcher_slot_disown_lane(int slot, BatcherSharedQueue *queue);

extern void batcher_slot_set_idle_long(int slot);
extern bool batcher_slot_retire(int slot, bool has_lanes, bool *later);

/*
 * Idle for so long, a worker is willing to give its place up; so long after
 * another one's last long turn, it may be needed again.
 */
#define BATCHER_IDLE_LONG_MS	60000

/*
 * patience.c: who has been at work for so long lets others have its lanes; for
 * rows that are so late, and turns that are so long, another worker is worth
 * it.
 */
#define BATCHER_PATIENCE_MS		5
#define BATCHER_LONG_TURN_MS	50

extern void batcher_patience_install(int slot);
extern void batcher_patience_begin(int nlanes, int nwaiting,
								   uint32 wakeups);
extern void batcher_patience_run(void);
extern void batcher_patience_end(void);

/*
 * In the place of an extension's OID in a slot: the worker has looked, and
 * the extension is not in its database.
 */
#define BATCHER_EXTENSION_ABSENT	OID_MAX

/*
 * A slot as it was at some moment; the members are as in BatcherSharedWorker.
 * In a free slot 'db', 'identity', 'leave' and 'terminated' are those of the
 * last worker.
 */
typedef struct BatcherSlotCopy
{
	BatcherWorkerState state;
	uint64		generation;
	BatcherDatabaseKey db;
	Oid			identity;
	pid_t		pid;
	TimestampTz registered_at;	/* or when it attached, once it has */
	TimestampTz since;
	int32		queue_id;
	int32		rows;
	bool		idle_long;
	uint32		proc;
	bool		leave;
	bool		terminated;
	TimestampTz busy_since;
} BatcherSlotCopy;

extern void batcher_slot_copy(BatcherSlotCopy *copies);
extern void batcher_slot_ask_to_leave(int slot, uint64 generation);
extern void batcher_slot_signal(int slot, uint64 generation, int signo);

/* maintain.c */
extern bool batcher_maintain_spool(bool idle);

/* aside.c: commands that need a database to themselves */
extern void batcher_aside_install(void);
extern bool batcher_aside_marked(Oid dboid);
extern int	batcher_aside_list(Oid *dboids);

/*
 * Values of BatcherShared.scan_wanted: a database may have got the extension,
 * so look into each that is not known to have it; and, a bit by itself, the
 * list of databases has changed, so look at that only.
 */
#define BATCHER_SCAN_ALL	1
#define BATCHER_SCAN_LIST	2

/* savefile.c: what survives a clean stop */
extern void batcher_savefile_install(void);

#endif							/* BATCHER_WORKER_H */
