/*
 * enqueue.h
 *	  Rows of client transactions, until they are committed.
 */
#ifndef BATCHER_ENQUEUE_H
#define BATCHER_ENQUEUE_H

#include "catalog/row_type.h"

/*
 * A queue as a producer needs it: from its definition, cached by name.
 */
typedef struct BatcherTarget
{
	char		name[NAMEDATALEN];	/* hash key, must be first */
	uint64		generation;		/* of the definitions it was made from */
	uint64		local_generation;
	BatcherDatabaseKey db;		/* and of the extension */
	int32		queue_id;
	BatcherSharedQueue *queue;	/* its main entry */
	int			nlanes;
	Oid			owner;
	bool		typed;
	Oid			row_type;		/* if typed; InvalidOid: it is gone */
	Oid			relation;		/* its target; InvalidOid: none */
	BatcherRowType *known_type; /* as it was last; NULL: not looked at */
	bool		durable;
	bool		enabled;
	bool		thins;			/* rows of a hot key can be given up */
	BatcherWhenFull when_full;
	int64		memory_limit;	/* bytes, 0: none */
	bool		paused;
	Oid			checked_user;	/* who was found to have the right */
	uint64		checked_roles;	/* and when */
} BatcherTarget;

/* enqueue.c */
extern BatcherTarget *batcher_enqueue_begin(const char *name, int len,
											const char *function);
extern uint64 batcher_enqueue_parts(BatcherTarget *target,
									BatcherRowParts *parts, Oid by);

/* target.c */
extern uint64 batcher_roles_changed;	/* grows when a role changes */
extern BatcherTarget *batcher_target_find(const char *name, int len);
extern BatcherRowType *batcher_target_row_type(BatcherTarget *target);

/* staging.c */
extern void batcher_staging_add(BatcherTarget *target,
								const BatcherRowParts *parts, Oid by);
extern bool batcher_staging_has_queue(BatcherSharedQueue *queue);
extern bool batcher_staging_has_ticket(BatcherQueueKey key,
									   uint64 ticket);
extern bool batcher_staging_active(void);
extern Oid	batcher_staging_lock_spool(void);
extern bool batcher_staging_locked_before(uint64 number);
extern void batcher_staging_unlock_spool(void);
extern void batcher_staging_install(void);

/* room.c */
extern bool batcher_room_make(BatcherTarget *target);
extern void batcher_room_wait(BatcherTarget *target, Size size,
							  TimestampTz *end);

/* wait.c */
extern bool batcher_wait_is_blocked_by_us(BatcherQueueKey key);
extern bool batcher_wait_flushed(BatcherQueueKey key, const char *name,
								 TimestampTz end);

#endif							/* BATCHER_ENQUEUE_H */
