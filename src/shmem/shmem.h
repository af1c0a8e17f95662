/*
 * shmem.h
 *	  The layout of batcher's shared memory, and who may touch what.
 *
 * Everything that processes share is laid out here and nowhere else:
 *
 *	 root		BatcherShared, one, with the array of worker slots
 *	 databases	a hash table of BatcherSharedDatabase
 *	 queues		a hash table of BatcherSharedQueue, one for each lane
 *	 channels	a hash table of the counts of messages (channel.c)
 *	 area		a DSA in place, of batcher.shared_memory_size: the rows
 *
 * All of it lies in the main segment, at the same address in each process, so
 * plain pointers to it mean the same everywhere.  The area never grows a
 * second segment, so a dsa_pointer is an offset from 'area_base'.
 *
 * Lock order, outermost first:
 *	 heavyweight locks (the spool before targets)
 *	 -> BatcherShared.lock (control)
 *	 -> BatcherSharedLane.lock (never two)
 *	 -> the locks inside the area
 *	 -> atomics.
 * Under an LWLock of ours there is no palloc, no catalog access, no SetLatch
 * and no waiting; the one allocation is from the area.
 */
#ifndef BATCHER_SHMEM_H
#define BATCHER_SHMEM_H

#include "base/settings.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/itemptr.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/dsa.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

/* Longest name of a queue or a channel, in bytes. */
#define BATCHER_NAME_MAX	(NAMEDATALEN - 1)

/*
 * A database that has the extension: identified by its OID and by that of the
 * extension in it, so that a dropped and made again extension is another.
 */
typedef struct BatcherDatabaseKey
{
	Oid			dboid;
	Oid			extoid;
} BatcherDatabaseKey;

/*
 * What all backends share about one database.
 *
 * 'generation' grows at the commit of each change of a definition; whoever
 * caches definitions compares it.  'loaded' is the generation that a worker
 * of the database has read last; 0: none has.  'next_number' gives tickets and chunk
 * numbers, below 'number_limit', which the sequence batcher.number has
 * persisted; see catalog/extension.c.  'spool' is the file number of the spool
 * table in the upper and a version in the lower 32 bits; it is changed by
 * workers only, which see that the table was rewritten.  'gone' is set when
 * the extension or the database was dropped.  'uncommitted' is set while the
 * transaction that made the extension is open: no worker would find it yet.
 * 'barred' counts the transactions that drop queues without an entry: none is
 * made for a queue that is defined already while it is not 0.
 * All of these are atomics.  The other members are protected by the control
 * lock.
 */
typedef struct BatcherSharedDatabase
{
	BatcherDatabaseKey key;		/* hash key, must be first */
	pg_atomic_uint64 generation;
	pg_atomic_uint64 loaded;
	pg_atomic_uint64 next_number;
	pg_atomic_uint64 number_limit;
	pg_atomic_uint64 spool;
	pg_atomic_uint32 gone;
	pg_atomic_uint32 uncommitted;
	pg_atomic_uint32 barred;	/* raised and looked at under the control lock */
	pg_atomic_uint32 refused;	/* a worker has found no room for a queue */
	pg_atomic_uint32 restores;	/* how often rows came to the spool that nobody
								 * enqueued; at the start of the server, too */
	pg_atomic_uint32 surveyed;	/* ... before a worker last looked through it */
	long		nchannels;		/* that are counted, see channel.c */
} BatcherSharedDatabase;

typedef struct BatcherQueueKey
{
	BatcherDatabaseKey db;
	int32		queue_id;		/* of the definition */
	int32		lane;			/* 0: the queue itself */
} BatcherQueueKey;

/*
 * Counters of a queue.  Atomics, each changed by whoever does the thing; read
 * without a lock, so a reader may see one of a batch changed and another not
 * yet.  Saved at a clean stop, in this order.
 */
typedef enum BatcherCounter
{
	BATCHER_ROWS_ENQUEUED,
	BATCHER_ROWS_FLUSHED,
	BATCHER_ROWS_SUPERSEDED,
	BATCHER_ROWS_RETRIED,
	BATCHER_ROWS_FAILED,
	BATCHER_ROWS_DEAD,
	BATCHER_ROWS_PURGED,
	BATCHER_ROWS_SPILLED,
	BATCHER_BATCHES,
	BATCHER_BATCHES_BY_SIZE,
	BATCHER_BATCHES_BY_TIME,
	BATCHER_BATCHES_FORCED,
	BATCHER_BATCHES_IMMEDIATE,
	BATCHER_BATCHES_DEBOUNCED,
	BATCHER_BATCHES_SWEPT,
	BATCHER_BATCHES_FAILED,
	BATCHER_BATCHES_SPLIT,
	BATCHER_ROWS_TRIED_ALONE,
	BATCHER_BREAKER_OPENED,
	BATCHER_MESSAGES_SENT,
	BATCHER_MESSAGES_SAVED,
	BATCHER_MESSAGES_DROPPED,
	BATCHER_MESSAGE_BYTES,
	BATCHER_FLUSH_TIME,			/* microseconds */
	BATCHER_DEADLINE_MISSED,
	BATCHER_LAST_FLUSH_AT,		/* a TimestampTz, 0: never */
	BATCHER_STATS_RESET_AT,		/* a TimestampTz */
	BATCHER_NUM_COUNTERS
} BatcherCounter;

/*
 * The breaker of a queue: whether it is flushed at all.  See batch/breaker.c.
 */
typedef enum BatcherBreakerState
{
	BATCHER_BREAKER_CLOSED,
	BATCHER_BREAKER_OPEN,		/* nothing is flushed before breaker_until */
	BATCHER_BREAKER_HALF_OPEN	/* small batches are tried */
} BatcherBreakerState;

/* Nobody has looked yet whether the queue is on probation. */
#define BATCHER_PROBATION_UNKNOWN	PG_UINT32_MAX

/* The last error of a queue, as the views show it. */
#define BATCHER_ERROR_MAX	512

/* Why the batches of an adaptive queue have the size that they have. */
#define BATCHER_REASON_MAX	128

/*
 * The spill word of a lane, one atomic: whether rows of it are in the spool
 * and not in memory.
 *
 *	 bit 63		spilled: there may be such rows; all durable rows spill
 *	 bit 62		unknown: nobody has looked through the spool since the start
 *	 bits 40-61	how many transactions are just committing spilled rows
 *	 bits 0-39	version, grows with each change
 *
 * A committer that spills adds itself and sets the bit before its commit
 * record and takes itself off after it has become visible.  The worker clears
 * the bits only by a compare-and-swap from a value that it read, with nobody
 * committing, before it took the snapshot of a scan that found nothing.
 */
#define BATCHER_SPILL_SPILLED	(UINT64CONST(1) << 63)
#define BATCHER_SPILL_UNKNOWN	(UINT64CONST(1) << 62)
#define BATCHER_SPILL_ONE		(UINT64CONST(1) << 40)
#define BATCHER_SPILL_COMMITTING (((UINT64CONST(1) << 22) - 1) << 40)
#define BATCHER_SPILL_VERSION	((UINT64CONST(1) << 40) - 1)

/*
 * What all backends share about one lane of a queue.
 *
 * 'inbox' is the newest of a list of chunks that the owner has not taken yet:
 * producers push by compare-and-swap, the owner takes the whole list by
 * exchange while it holds 'lock' exclusively.  'taken_head' and 'taken_tail'
 * are the list of chunks that the owner has taken, oldest first; only the
 * owner changes it, under 'lock' exclusively, so that others may walk both
 * lists under 'lock' in shared mode.  'owner' is changed under the control
 * lock, but for the bit that says that the owner is at work on the lane, and
 * the count of the times that it was, which the owner changes by itself; see
 * queue/owner.c.  The rest are atomics.
 */
#define BATCHER_OWNER_SLOT		((uint32) 0xFF)	/* worker slot + 1; 0: nobody */
#define BATCHER_OWNER_COUNT		((uint32) 1 << 8)	/* up to the next one */
#define BATCHER_OWNER_HOLDS		((uint32) 1 << 31)

typedef struct BatcherSharedLane
{
	LWLock		lock;			/* tranche BatcherLane */
	dsa_pointer taken_head;
	dsa_pointer taken_tail;
	pg_atomic_uint64 inbox;		/* dsa_pointer of the newest chunk */
	pg_atomic_uint64 spill;		/* the spill word */
	pg_atomic_uint32 stored;	/* 1: chunks in memory may have a tuple in the
								 * spool; set before the first comes, and
								 * stays */
	pg_atomic_uint64 npending;	/* rows in memory, committed, not settled */
	pg_atomic_uint64 nbytes;	/* bytes of the area in use by its rows */
	pg_atomic_uint64 thin_after;	/* TimestampTz: the inbox is not thinned
									 * before */
	pg_atomic_uint64 wake_at;	/* npending at which a committer wakes the
								 * owner, whatever 'armed' says */
	pg_atomic_uint32 armed;		/* 1: the owner will look by itself within the
								 * window */
	pg_atomic_uint32 owner;		/* see above; 0: nobody */
	pg_atomic_uint32 frozen;	/* a transaction is about to drop the queue */
	pg_atomic_uint32 flushing;	/* rows in the flush that runs now */
	pg_atomic_uint32 timers;	/* keys that wait for their debounce or max_wait,
								 * as of the owner's last look */
	pg_atomic_uint64 settled;	/* every visible chunk with a smaller number is
								 * settled */
	pg_atomic_uint64 flush_upto;	/* chunks with a smaller number are wanted
									 * now */
	pg_atomic_uint64 purge_upto;	/* chunks with a smaller number are to be
									 * thrown away */
	pg_atomic_uint64 watch_upto;	/* somebody wants to know when chunks with a
									 * smaller number are settled */
	pg_atomic_uint64 nflushed;	/* rows flushed, never reset */
	pg_atomic_uint64 npurged;	/* rows purged, never reset */
	pg_atomic_uint64 nspilled;	/* rows in the spool only, as far as known */
	pg_atomic_uint64 oldest_at; /* TimestampTz of the oldest waiting row that
								 * the owner knows, 0: none */
	pg_atomic_uint64 runnable_at;	/* the same of those that do not wait to be
									 * tried again */
	pg_atomic_uint64 next_flush_at; /* TimestampTz, 0: none */
	pg_atomic_uint64 retry_at;	/* TimestampTz: no flush before, 0: none */
	pg_atomic_uint32 put_offs;	/* times in a row that a failure set that */
	pg_atomic_uint32 failures;	/* failed flushes in a row */
	pg_atomic_uint32 resets;	/* times that somebody has had all tried again at
								 * once */
	pg_atomic_uint32 breaker;	/* a BatcherBreakerState */
	pg_atomic_uint32 probes_left;	/* of a half-open breaker */
	pg_atomic_uint64 breaker_until; /* TimestampTz */
	pg_atomic_uint32 probation; /* flushes to come that leave a marker, or
								 * BATCHER_PROBATION_UNKNOWN */
	pg_atomic_uint32 crashes;	/* of the server, in a row, while the queue was
								 * flushed */
	pg_atomic_uint32 current_size;	/* of the batches of an adaptive queue, in
									 * rows; 0: nobody has set it */
	pg_atomic_uint64 current_window;	/* its window, in microseconds */
	pg_atomic_uint64 arrival_rate;	/* its forecast, in rows in 1000 seconds */
	pg_atomic_uint32 unsent;	/* messages of committed batches that are not
								 * sent yet */
} BatcherSharedLane;

/* How the fates of settled tickets are kept: see queue/fate.c. */
typedef struct BatcherSharedFates
{
	dsa_pointer oldest;
	dsa_pointer newest;
	uint64		ntickets;
} BatcherSharedFates;

/*
 * What all backends share about one queue, or one more lane of it.
 *
 * Each lane has an entry.  That of lane 0, the main entry, also has what is the
 * queue's as a whole; those of the other lanes point to it, and go before it
 * does.  The lanes count for themselves, and whoever shows a number adds
 * up.  Only in the main entry are used: lane.frozen, lane.nbytes,
 * lane.thin_after, the breaker, lane.failures and lane.resets, 'closed', 'closed_at',
 * 'dropped', 'nlanes', 'lanes', 'defined_at', 'batch_number' and 'rate_empty_at'.
 *
 * 'main' is never NULL, and stays as long as the entry; 'lanes' is changed under
 * the control lock.  Who knows that the queue stays reads both without it, and
 * can count on the lanes of its definition.  One that the queue has no more may
 * go at any time: without the control lock its atomics may be touched, which
 * at worst are another lane's, and its lock must not.
 *
 * 'name', 'owner_role', 'identity', the last error and the reasons are
 * protected by lane.lock, as is 'fates'; the rest are atomics.
 */
typedef struct BatcherSharedQueue
{
	BatcherQueueKey key;		/* hash key, must be first */
	struct BatcherSharedQueue *main;
	struct BatcherSharedQueue *lanes[BATCHER_MAX_LANES];	/* NULL: none */
	pg_atomic_uint32 nlanes;	/* in the definition; rows wait in no other */
	BatcherSharedLane lane;
	char		name[NAMEDATALEN];
	Oid			owner_role;
	Oid			identity;		/* role whose worker may flush it; InvalidOid:
								 * the superusers' */
	pg_atomic_uint32 paused;	/* or there is no definition of it */
	pg_atomic_uint32 window;	/* flush_interval in ms, about */
	pg_atomic_uint64 defined_at;	/* generation of the definitions in which
									 * a worker found it last */
	pg_atomic_uint32 dropped;	/* its drop has committed: a worker may take it
								 * away; its lane stays frozen */
	pg_atomic_uint32 closed;	/* it is about to be dropped, or the number of
								 * its lanes to change: nobody begins to
								 * enqueue ... */
	pg_atomic_uint64 closed_at; /* ... who has not locked the spool before this
								 * number was drawn */
	pg_atomic_uint64 batch_number;	/* of the last batch */
	pg_atomic_uint64 rate_empty_at;	/* the token bucket of rate_limit: see
									 * batch/schedule.c */
	pg_atomic_uint64 counters[BATCHER_NUM_COUNTERS];
	BatcherSharedFates fates;
	TimestampTz last_error_at;	/* 0: none */
	char		last_sqlstate[6];
	char		last_error[BATCHER_ERROR_MAX];
	char		breaker_reason[BATCHER_ERROR_MAX];	/* why it opened last */
	char		size_reason[BATCHER_REASON_MAX];	/* see lane.current_size */
} BatcherSharedQueue;

typedef enum BatcherWorkerState
{
	BATCHER_WORKER_FREE,
	BATCHER_WORKER_STARTING,	/* registered, has not attached yet */
	BATCHER_WORKER_RUNNING
} BatcherWorkerState;

/*
 * One slot for a worker.
 *
 * Protected by the control lock, but for the atomics: 'proc' is the number of
 * the worker's PGPROC + 1, so that a committer can set its latch without a
 * lock (a stale one costs a spurious wake-up); 'leave' asks the worker to
 * step aside; 'terminated' is set by its SIGTERM handler, and 'must_end' before
 * the launcher repeats the signal, which then ends the worker at once.  'generation' grows at each use.
 * 'busy_since' is set, while the worker has had something to do for longer than
 * it may keep its lanes waiting, to when its turn began; 'slow_at' is when the
 * last long turn ended; see worker/patience.c.
 */
typedef struct BatcherSharedWorker
{
	BatcherWorkerState state;
	uint64		generation;
	BatcherDatabaseKey db;		/* extoid InvalidOid until it has attached */
	Oid			identity;		/* see BatcherSharedQueue */
	pid_t		pid;			/* 0 until it has attached */
	TimestampTz registered_at;
	TimestampTz since;			/* when 'queue' or idleness began */
	int32		queue_id;		/* being flushed, 0: none */
	int32		rows;			/* of the batch being flushed */
	bool		idle_long;		/* has had nothing to do for a while */
	pg_atomic_uint32 proc;
	pg_atomic_uint32 leave;
	pg_atomic_uint32 terminated;
	pg_atomic_uint32 must_end;
	pg_atomic_uint64 busy_since;	/* TimestampTz, 0: is not */
	pg_atomic_uint64 slow_at;	/* TimestampTz, 0: never */
} BatcherSharedWorker;

/*
 * A database whose workers have stepped aside for a command that needs the
 * database to itself; protected by the control lock.
 */
#define BATCHER_MAX_ASIDE	16

typedef struct BatcherSharedAside
{
	Oid			dboid;			/* InvalidOid: unused */
	int			pid;			/* of the backend that runs the command */
} BatcherSharedAside;

/*
 * Those who wait for rows to be settled sleep here rather than at the queue,
 * whose entry may go while they do.
 */
#define BATCHER_SETTLED_CVS	64

/* How many partly filled slabs wait for the next backend. */
#define BATCHER_SLAB_PARKS	64

/*
 * The root.  'lock' is the control lock; what it protects is said at each
 * struct.  Written once before any other process exists: 'incarnation',
 * 'after_crash', 'area', 'area_base', 'area_size'.
 */
typedef struct BatcherShared
{
	LWLock		lock;			/* tranche Batcher */
	uint64		incarnation;	/* random, never 0; low 16 bits are 0 */
	bool		after_crash;	/* the server has not been stopped cleanly
								 * before this start */
	void	   *area;			/* place of the DSA */
	char	   *area_base;
	Size		area_size;
	pg_atomic_uint64 area_used; /* bytes given out */
	int			nqueues;		/* main entries; read without the lock too */
	pg_atomic_uint64 fate_bytes;	/* of these, for fates of tickets */
	pg_atomic_uint32 launcher_proc; /* its PGPROC number + 1 */
	pg_atomic_uint32 wakeups;	/* how often somebody was woken */
	pg_atomic_uint32 scan_wanted;	/* databases may have come: look */
	pg_atomic_uint32 stopping;	/* the server is being stopped */
	ConditionVariable room_cv;	/* memory, or an entry, became free */
	ConditionVariable worker_cv;	/* a worker came or went */
	ConditionVariable settled_cv[BATCHER_SETTLED_CVS];	/* by queue id: rows
														 * were settled */
	BatcherSharedAside aside[BATCHER_MAX_ASIDE];
	pg_atomic_uint64 parked_slabs[BATCHER_SLAB_PARKS];	/* see queue/slab.c */
	pg_atomic_uint64 volatile_rows[BATCHER_SLAB_PARKS]; /* the sum is how many
														 * committed rows of
														 * non-durable queues
														 * wait */
	BatcherSharedWorker workers[BATCHER_MAX_WORKERS];
} BatcherShared;

extern BatcherShared *batcher_shared;	/* NULL: not preloaded */
extern int	batcher_tranche_lane;
extern bool batcher_in_flush;	/* this process is a worker that flushes ... */
extern bool batcher_flush_refused;	/* ... and was not let into a closed queue */

/* shmem.c */
extern void batcher_shmem_install(void);
extern void batcher_shmem_require(void);
extern HTAB *batcher_shmem_hash(const char *name, long n, Size keysize,
								Size entrysize);
extern dsa_area *batcher_shmem_area(void);
extern void batcher_shmem_at_startup(void (*load) (void),
									 void (*save) (void));
extern int	batcher_shmem_place(void);
extern void batcher_shmem_add_volatile(int64 nrows);
extern void batcher_shmem_report_lost(void);

/* registry.c */
extern Size batcher_shmem_registry_size(void);
extern void batcher_shmem_registry_init(void);
extern BatcherSharedDatabase *batcher_shmem_database(BatcherDatabaseKey key,
													 bool create);
extern BatcherSharedDatabase *batcher_shmem_database_locked(BatcherDatabaseKey key);
extern long batcher_shmem_database_count(void);
extern BatcherSharedQueue *batcher_shmem_queue_locked(BatcherQueueKey key);
extern BatcherSharedQueue *batcher_shmem_queue(BatcherQueueKey key);
extern BatcherSharedQueue *batcher_shmem_queue_create(BatcherQueueKey key,
													  bool fresh);
extern BatcherSharedQueue *batcher_shmem_lanes_create(BatcherQueueKey key,
													  int nlanes, bool fresh);
extern BatcherSharedQueue *batcher_shmem_lanes_follow(BatcherSharedDatabase *db,
													  uint64 generation,
													  BatcherQueueKey key,
													  int nlanes, bool *over);
extern void batcher_shmem_lanes_give_back(BatcherQueueKey key);
extern bool batcher_shmem_queue_remove(BatcherQueueKey key);
extern void batcher_shmem_queue_removed(void);
extern BatcherSharedQueue *batcher_shmem_queue_bar(BatcherSharedDatabase *db,
												   BatcherQueueKey key);
extern bool batcher_shmem_queue_remove_locked(BatcherQueueKey key);
extern int	batcher_shmem_queue_count(void);
extern int	batcher_shmem_queue_list(Oid dboid, BatcherSharedQueue **list,
									 int max);
extern void batcher_shmem_database_unread(BatcherSharedDatabase *db);
extern void batcher_shmem_database_remove(BatcherDatabaseKey key);
extern int	batcher_shmem_database_list(BatcherDatabaseKey *list, int max);

/* channel.c */
extern Size batcher_shmem_channels_size(void);
extern void batcher_shmem_channels_init(void);
extern void batcher_shmem_channel_read(BatcherDatabaseKey db, const char *name,
									   uint64 *epoch, uint64 *seq);
extern void batcher_shmem_channel_write(BatcherDatabaseKey db,
										const char *name, uint64 epoch,
										uint64 seq);
extern void batcher_shmem_channel_renew(BatcherDatabaseKey db,
										const char *name);
extern void batcher_shmem_channel_forget(BatcherDatabaseKey db);

/* wake.c */
extern void batcher_shmem_wake_proc(uint32 proc);
extern void batcher_shmem_wake_launcher(void);
extern void batcher_shmem_wake_all(void);
extern uint32 batcher_shmem_wakeups(void);

/* The address of something in the area. */
static inline void *
batcher_area_address(dsa_pointer p)
{
	return batcher_shared->area_base + p;
}

static inline dsa_pointer
batcher_area_pointer(void *address)
{
	return (dsa_pointer) ((char *) address - batcher_shared->area_base);
}

/*
 * Change the spill word of a lane: set 'bits', add 'delta' (1, 0 or -1)
 * committers, and grow the version.
 */
static inline void
batcher_spill_change(BatcherSharedLane *lane, uint64 bits, int delta)
{
	uint64		seen = pg_atomic_read_u64(&lane->spill);
	uint64		want;

	do
	{
		want = (seen & ~BATCHER_SPILL_VERSION) |
			((seen + 1) & BATCHER_SPILL_VERSION);
		want |= bits;
		if (delta > 0)
			want += BATCHER_SPILL_ONE;
		else if (delta < 0)
			want -= BATCHER_SPILL_ONE;
	} while (!pg_atomic_compare_exchange_u64(&lane->spill, &seen, want));
}

/* Raise an atomic to at least 'value'. */
static inline void
batcher_raise_to(pg_atomic_uint64 *atomic, uint64 value)
{
	uint64		seen = pg_atomic_read_u64(atomic);

	while (seen < value &&
		   !pg_atomic_compare_exchange_u64(atomic, &seen, value))
		;
}

static inline ConditionVariable *
batcher_settled_cv(int32 queue_id)
{
	return &batcher_shared->settled_cv[(uint32) queue_id % BATCHER_SETTLED_CVS];
}

static inline void
batcher_count(BatcherSharedQueue *queue, BatcherCounter counter, int64 n)
{
	(void) pg_atomic_fetch_add_u64(&queue->counters[counter], n);
}

/*
 * The lane after lane 'i' of a queue, given by its main entry, -1 for the first;
 * NULL if there is none.  '*i' becomes its number.
 */
static inline BatcherSharedQueue *
batcher_next_lane(BatcherSharedQueue *queue, int *i)
{
	BatcherSharedQueue *entry = NULL;

	while (entry == NULL && ++*i < BATCHER_MAX_LANES)
		entry = queue->lanes[*i];
	return entry;
}

/* Walk through the lanes of a queue, given by its main entry. */
#define batcher_foreach_lane(entry, i, queue) \
	for ((i) = -1; ((entry) = batcher_next_lane((queue), &(i))) != NULL;)

static inline uint64
batcher_counter(BatcherSharedQueue *queue, BatcherCounter counter)
{
	return pg_atomic_read_u64(&queue->counters[counter]);
}

#endif							/* BATCHER_SHMEM_H */
