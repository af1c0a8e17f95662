/*
 * shmem.c
 *	  Lays out batcher's shared memory and finds things in it.
 *
 * Everything is requested and made in the postmaster, from the hooks that
 * 15 has for it; no other file but channel.c calls ShmemInitStruct or
 * ShmemInitHash.  After
 * a crash of any process the server makes it all anew, which is why nothing
 * here is trusted to outlive a crash: the spool is the truth.
 */
#include "postgres.h"

#include "base/compat.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "shmem/shmem.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

BatcherShared *batcher_shared = NULL;
int			batcher_tranche_lane = 0;
bool		batcher_in_flush = false;

static int	tranche_area = 0;
static HTAB *databases = NULL;
static HTAB *queues = NULL;
static dsa_area *area = NULL;

static void (*load_at_startup) (void) = NULL;
static void (*save_at_exit) (void) = NULL;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

/* Bytes of the area; a multiple of a page, and never too small for DSA. */
static Size
area_size(void)
{
	return mul_size((Size) batcher_shared_memory_size, 1024 * 1024);
}

/* What batcher needs; used by the request and, by its parts, by the init. */
static Size
shmem_size(void)
{
	Size		size;

	size = MAXALIGN(sizeof(BatcherShared));
	size = add_size(size, hash_estimate_size(batcher_max_queues,
											 sizeof(BatcherSharedDatabase)));
	size = add_size(size, hash_estimate_size(batcher_max_queues,
											 sizeof(BatcherSharedQueue)));
	size = add_size(size, batcher_shmem_channels_size());
	return add_size(size, MAXALIGN(area_size()));
}

static void
request_shmem(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(shmem_size());
	RequestNamedLWLockTranche("Batcher", 1);
	RequestNamedLWLockTranche("BatcherLane", 1);
	RequestNamedLWLockTranche("BatcherArea", 1);
}

/* Fill the root; nobody else exists yet. */
static void
init_root(void *place)
{
	dsa_area   *made;
	dsa_pointer probe;
	MemoryContext old;
	int			i;

	memset(batcher_shared, 0, sizeof(BatcherShared));
	LWLockInitialize(&batcher_shared->lock,
					 GetNamedLWLockTranche("Batcher")->lock.tranche);
	do
	{
		if (!pg_strong_random(&batcher_shared->incarnation, sizeof(uint64)))
			batcher_shared->incarnation = pg_prng_uint64(&pg_global_prng_state);
		/* it is a bigint in the spool, and its low bits are the version */
		batcher_shared->incarnation &= UINT64CONST(0x7FFFFFFFFFFF0000);
	} while (batcher_shared->incarnation == 0);
	batcher_shared->after_crash = true; /* until a file of a clean stop tells */

	batcher_shared->area = place;
	batcher_shared->area_size = area_size();
	/* children inherit the handle: not in the postmaster's own context */
	old = MemoryContextSwitchTo(TopMemoryContext);
	made = dsa_create_in_place(place, area_size(), tranche_area, NULL);
	MemoryContextSwitchTo(old);
	dsa_pin(made);
	dsa_set_size_limit(made, area_size());

	/* With one segment only, every address is this base and the pointer. */
	probe = dsa_allocate(made, 8);
	batcher_shared->area_base = (char *) dsa_get_address(made, probe) - probe;
	dsa_free(made, probe);
	area = made;

	pg_atomic_init_u64(&batcher_shared->area_used, 0);
	pg_atomic_init_u64(&batcher_shared->fate_bytes, 0);
	pg_atomic_init_u32(&batcher_shared->launcher_proc, 0);
	pg_atomic_init_u32(&batcher_shared->wakeups, 0);
	pg_atomic_init_u32(&batcher_shared->scan_wanted, 1);
	pg_atomic_init_u32(&batcher_shared->stopping, 0);
	ConditionVariableInit(&batcher_shared->room_cv);
	ConditionVariableInit(&batcher_shared->worker_cv);
	for (i = 0; i < BATCHER_SETTLED_CVS; i++)
		ConditionVariableInit(&batcher_shared->settled_cv[i]);
	for (i = 0; i < BATCHER_SLAB_PARKS; i++)
	{
		pg_atomic_init_u64(&batcher_shared->parked_slabs[i], 0);
		pg_atomic_init_u64(&batcher_shared->volatile_rows[i], 0);
	}
	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		pg_atomic_init_u32(&batcher_shared->workers[i].proc, 0);
		pg_atomic_init_u32(&batcher_shared->workers[i].leave, 0);
		pg_atomic_init_u32(&batcher_shared->workers[i].terminated, 0);
		pg_atomic_init_u32(&batcher_shared->workers[i].must_end, 0);
		pg_atomic_init_u64(&batcher_shared->workers[i].busy_since, 0);
		pg_atomic_init_u64(&batcher_shared->workers[i].slow_at, 0);
	}
}

/*
 * The postmaster ends, or makes shared memory anew after a crash; it is the
 * last process that sees this memory.
 */
static void
save_on_exit(int code, Datum arg)
{
	if (code == 0 && save_at_exit)
		save_at_exit();
	else
		batcher_shmem_report_lost();
}

static void
startup_shmem(void)
{
	HASHCTL		ctl;
	bool		found;
	void	   *place;
	bool		found_area;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	tranche_area = GetNamedLWLockTranche("BatcherArea")->lock.tranche;
	batcher_tranche_lane = GetNamedLWLockTranche("BatcherLane")->lock.tranche;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);

	batcher_shared = ShmemInitStruct("batcher", sizeof(BatcherShared), &found);
	place = ShmemInitStruct("batcher area", area_size(), &found_area);

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(BatcherDatabaseKey);
	ctl.entrysize = sizeof(BatcherSharedDatabase);
	databases = ShmemInitHash("batcher databases", batcher_max_queues,
							  batcher_max_queues, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	ctl.keysize = sizeof(BatcherQueueKey);
	ctl.entrysize = sizeof(BatcherSharedQueue);
	queues = ShmemInitHash("batcher queues", batcher_max_queues,
						   batcher_max_queues, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	batcher_shmem_channels_init();

	if (!found)
		init_root(place);
	LWLockRelease(AddinShmemInitLock);

	if (!IsUnderPostmaster)
	{
		on_shmem_exit(save_on_exit, (Datum) 0);
		if (load_at_startup)
			load_at_startup();
	}
}

/*
 * Install the hooks that request and make the shared memory.  From _PG_init,
 * while shared_preload_libraries is processed.
 */
void
batcher_shmem_install(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shmem;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}

/*
 * Name what is to be called in the postmaster when the shared memory has been
 * made, and when the postmaster ends in good order.  From _PG_init.
 */
void
batcher_shmem_at_startup(void (*load) (void), void (*save) (void))
{
	load_at_startup = load;
	save_at_exit = save;
}

/*
 * Raise an error unless the library is preloaded.
 */
void
batcher_shmem_require(void)
{
	if (batcher_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("batcher is not loaded at server start"),
				 errhint("Add \"batcher\" to \"%s\" and restart the server.",
						 "shared_preload_libraries")));
}

/*
 * The area of the rows, attached for the life of this process.  The first
 * call of a process allocates: never make it in a commit or abort callback.
 */
dsa_area *
batcher_shmem_area(void)
{
	if (area == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		area = dsa_attach_in_place(batcher_shared->area, NULL);
		dsa_pin_mapping(area);
		on_shmem_exit(dsa_on_shmem_exit_release_in_place,
					  PointerGetDatum(batcher_shared->area));
		MemoryContextSwitchTo(old);
	}
	return area;
}

/*
 * The shared state of a database, or NULL if there is none.  With 'create' it
 * is made; an ERROR (53400) if there is no room for another.
 */
BatcherSharedDatabase *
batcher_shmem_database(BatcherDatabaseKey key, bool create)
{
	BatcherSharedDatabase *db;
	bool		found;

	LWLockAcquire(&batcher_shared->lock, create ? LW_EXCLUSIVE : LW_SHARED);
	db = hash_search(databases, &key, create ? HASH_ENTER_NULL : HASH_FIND,
					 &found);
	if (db && !found)
	{
		pg_atomic_init_u64(&db->generation, 1);
		pg_atomic_init_u64(&db->loaded, 0);
		pg_atomic_init_u64(&db->next_number, 0);
		pg_atomic_init_u64(&db->number_limit, 0);
		pg_atomic_init_u64(&db->spool, 0);
		pg_atomic_init_u32(&db->gone, 0);
		pg_atomic_init_u32(&db->uncommitted, 0);
		pg_atomic_init_u32(&db->restores, 1);
		pg_atomic_init_u32(&db->surveyed, 0);
		db->nchannels = 0;
	}
	LWLockRelease(&batcher_shared->lock);
	if (create && db == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases use batcher"),
				 errhint("Increase \"%s\" and restart the server.",
						 "batcher.max_queues")));
	return db;
}

/*
 * The shared state of a database, or NULL if there is none.  The control lock
 * is held.
 */
BatcherSharedDatabase *
batcher_shmem_database_locked(BatcherDatabaseKey key)
{
	Assert(LWLockHeldByMe(&batcher_shared->lock));
	return hash_search(databases, &key, HASH_FIND, NULL);
}

/*
 * How many databases there are.  The control lock is held.
 */
long
batcher_shmem_database_count(void)
{
	Assert(LWLockHeldByMe(&batcher_shared->lock));
	return hash_get_num_entries(databases);
}

/*
 * The shared state of a queue, or NULL if it has none (yet, or any more).  The
 * control lock is held, and the state stays there as long as it is.
 */
BatcherSharedQueue *
batcher_shmem_queue_locked(BatcherQueueKey key)
{
	Assert(LWLockHeldByMe(&batcher_shared->lock));
	return hash_search(queues, &key, HASH_FIND, NULL);
}

/*
 * The same for who does not hold the control lock, but knows that the queue
 * stays.
 */
BatcherSharedQueue *
batcher_shmem_queue(BatcherQueueKey key)
{
	BatcherSharedQueue *queue;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	queue = batcher_shmem_queue_locked(key);
	LWLockRelease(&batcher_shared->lock);
	return queue;
}

/*
 * Set up the entry of a lane of the queue of 'main', or, with NULL, of lane 0;
 * the control lock is held.
 */
static void
init_queue(BatcherSharedQueue *queue, BatcherSharedQueue *main, bool fresh)
{
	BatcherSharedLane *lane = &queue->lane;
	int			i;

	/* who still looks at what was here before must not stumble over it */
	queue->main = main ? main : queue;
	memset((char *) queue + offsetof(BatcherSharedQueue, lanes), 0,
		   sizeof(*queue) - offsetof(BatcherSharedQueue, lanes));
	pg_atomic_init_u32(&queue->nlanes, 1);
	pg_atomic_init_u32(&queue->closed, 0);
	pg_atomic_init_u64(&queue->closed_at, 0);
	LWLockInitialize(&lane->lock, batcher_tranche_lane);
	pg_atomic_init_u64(&lane->inbox, 0);
	pg_atomic_init_u64(&lane->spill, fresh ? 0 :
					   BATCHER_SPILL_SPILLED | BATCHER_SPILL_UNKNOWN);
	pg_atomic_init_u64(&lane->npending, 0);
	pg_atomic_init_u64(&lane->nbytes, 0);
	pg_atomic_init_u64(&lane->thin_after, 0);
	pg_atomic_init_u64(&lane->wake_at, PG_UINT64_MAX);
	pg_atomic_init_u32(&lane->armed, 0);
	pg_atomic_init_u32(&lane->owner, 0);
	pg_atomic_init_u32(&lane->frozen, 0);
	pg_atomic_init_u32(&lane->flushing, 0);
	pg_atomic_init_u64(&lane->settled, 0);
	pg_atomic_init_u64(&lane->flush_upto, 0);
	pg_atomic_init_u64(&lane->purge_upto, 0);
	pg_atomic_init_u64(&lane->watch_upto, 0);
	pg_atomic_init_u64(&lane->nflushed, 0);
	pg_atomic_init_u64(&lane->npurged, 0);
	pg_atomic_init_u64(&lane->nspilled, 0);
	pg_atomic_init_u32(&lane->stored, 0);
	pg_atomic_init_u64(&lane->oldest_at, 0);
	pg_atomic_init_u64(&lane->runnable_at, 0);
	pg_atomic_init_u32(&lane->timers, 0);
	pg_atomic_init_u64(&lane->next_flush_at, 0);
	pg_atomic_init_u64(&lane->retry_at, 0);
	pg_atomic_init_u32(&lane->put_offs, 0);
	pg_atomic_init_u32(&lane->failures, 0);
	pg_atomic_init_u32(&lane->resets, 0);
	pg_atomic_init_u32(&lane->breaker, BATCHER_BREAKER_CLOSED);
	pg_atomic_init_u32(&lane->probes_left, 0);
	pg_atomic_init_u64(&lane->breaker_until, 0);
	pg_atomic_init_u32(&lane->probation, BATCHER_PROBATION_UNKNOWN);
	pg_atomic_init_u32(&lane->crashes, 0);
	pg_atomic_init_u32(&lane->current_size, 0);
	pg_atomic_init_u64(&lane->current_window, 0);
	pg_atomic_init_u64(&lane->arrival_rate, 0);
	pg_atomic_init_u32(&lane->unsent, 0);
	pg_atomic_init_u32(&queue->paused, 0);
	pg_atomic_init_u32(&queue->window, 0);
	pg_atomic_init_u64(&queue->defined_at, 0);
	pg_atomic_init_u32(&queue->dropped, 0);
	pg_atomic_init_u64(&queue->batch_number, 0);
	pg_atomic_init_u64(&queue->rate_empty_at, 0);
	for (i = 0; i < BATCHER_NUM_COUNTERS; i++)
		pg_atomic_init_u64(&queue->counters[i], 0);
	/* some walk through the lanes without the lock */
	pg_write_barrier();
	queue->main->lanes[queue->key.lane] = queue;
}

/* As batcher_shmem_queue_create; the control lock is held. */
static BatcherSharedQueue *
make_queue(BatcherQueueKey key, bool fresh)
{
	BatcherSharedQueue *main = NULL;
	BatcherSharedQueue *queue;
	bool		found;

	Assert(key.lane >= 0 && key.lane < BATCHER_MAX_LANES);
	if (key.lane > 0)
	{
		BatcherQueueKey main_key = key;

		main_key.lane = 0;
		main = make_queue(main_key, fresh);
		if (main == NULL)
			return NULL;
	}
	queue = hash_search(queues, &key, HASH_ENTER_NULL, &found);
	if (queue && !found)
	{
		init_queue(queue, main, fresh);
		if (main == NULL)
			batcher_shared->nqueues++;
	}
	return queue;
}

/*
 * The shared state of a lane, made if it has none yet, as is that of the queue.
 * 'fresh' says that the queue, or the lane, is just being created, so that the
 * spool can hold no row of it.  Returns NULL if there is no room for another.
 */
BatcherSharedQueue *
batcher_shmem_queue_create(BatcherQueueKey key, bool fresh)
{
	BatcherSharedQueue *queue;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	queue = make_queue(key, fresh);
	LWLockRelease(&batcher_shared->lock);
	return queue;
}

/*
 * As batcher_shmem_queue_remove; the control lock is held exclusively.
 */
bool
batcher_shmem_queue_remove_locked(BatcherQueueKey key)
{
	BatcherSharedQueue *queue = hash_search(queues, &key, HASH_FIND, NULL);
	int			i = 0;

	Assert(LWLockHeldByMeInMode(&batcher_shared->lock, LW_EXCLUSIVE));
	if (queue == NULL ||
		(key.lane == 0 && batcher_next_lane(queue, &i) != NULL))
		return false;
	queue->main->lanes[key.lane] = NULL;
	(void) hash_search(queues, &key, HASH_REMOVE, NULL);
	if (key.lane == 0)
		batcher_shared->nqueues--;
	return true;
}

/*
 * Forget a lane.  The caller has made sure that nobody will use the entry
 * again and that its chunks are discarded.  Lane 0 stays while there are
 * others: false if so.
 */
bool
batcher_shmem_queue_remove(BatcherQueueKey key)
{
	bool		removed;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	removed = batcher_shmem_queue_remove_locked(key);
	LWLockRelease(&batcher_shared->lock);
	return removed;
}

/* As batcher_shmem_lanes_create; the control lock is held. */
static BatcherSharedQueue *
make_lanes(BatcherQueueKey key, int nlanes, bool fresh)
{
	BatcherSharedQueue *main;
	bool		made[BATCHER_MAX_LANES] = {false};

	key.lane = 0;
	main = make_queue(key, fresh);
	for (key.lane = 1; main && key.lane < nlanes; key.lane++)
	{
		if (main->lanes[key.lane] != NULL)
			continue;
		made[key.lane] = make_queue(key, fresh) != NULL;
		if (made[key.lane])
			continue;
		while (--key.lane > 0)
		{
			if (made[key.lane])
				(void) batcher_shmem_queue_remove_locked(key);
		}
		return NULL;
	}
	return main;
}

/*
 * The same for lanes 0 to 'nlanes' - 1 of the queue with this key; returns the
 * main entry.  If there is no room for one, those that were made are taken away
 * again, but for the main entry.
 */
BatcherSharedQueue *
batcher_shmem_lanes_create(BatcherQueueKey key, int nlanes, bool fresh)
{
	BatcherSharedQueue *main;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	main = make_lanes(key, nlanes, fresh);
	LWLockRelease(&batcher_shared->lock);
	return main;
}

/*
 * The same for who found the queue in the definitions of 'generation' and does
 * not keep others from dropping it.  If those are changed by now, nothing is
 * made, because its entry may just have been taken away: '*over' is set then,
 * and the result NULL if there is none.
 */
BatcherSharedQueue *
batcher_shmem_lanes_follow(BatcherSharedDatabase *db, uint64 generation,
						   BatcherQueueKey key, int nlanes, bool *over)
{
	BatcherSharedQueue *main;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	/* who drops a queue changes it before the entry may be taken away */
	*over = pg_atomic_read_u64(&db->generation) != generation;
	main = *over ? batcher_shmem_queue_locked(key) :
		make_lanes(key, nlanes, false);
	LWLockRelease(&batcher_shared->lock);
	return main;
}

/*
 * How many queues have an entry, in all databases, about: no lock is taken.
 */
int
batcher_shmem_queue_count(void)
{
	return batcher_shared->nqueues;
}

/*
 * Up to 'max' queues of one database, or of all if 'dboid' is InvalidOid, into
 * 'list'; returns how many.  An entry stays valid as long as its queue exists.
 */
int
batcher_shmem_queue_list(Oid dboid, BatcherSharedQueue **list, int max)
{
	HASH_SEQ_STATUS status;
	BatcherSharedQueue *queue;
	int			n = 0;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	hash_seq_init(&status, queues);
	while ((queue = hash_seq_search(&status)) != NULL)
	{
		if ((dboid == InvalidOid || queue->key.db.dboid == dboid) && n < max)
			list[n++] = queue;
	}
	LWLockRelease(&batcher_shared->lock);
	return n;
}

/*
 * Rows have come into the spool of a database that memory does not know: each
 * lane counts as spilled until somebody has looked.  Any process, also in its
 * commit.
 */
void
batcher_shmem_database_unread(Oid dboid)
{
	HASH_SEQ_STATUS status;
	BatcherSharedQueue *queue;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	hash_seq_init(&status, queues);
	while ((queue = hash_seq_search(&status)) != NULL)
	{
		/* the version grows, so that nobody clears it who looked before */
		if (queue->key.db.dboid == dboid)
			batcher_spill_change(&queue->lane, BATCHER_SPILL_SPILLED |
								 BATCHER_SPILL_UNKNOWN, 0);
	}
	LWLockRelease(&batcher_shared->lock);
}

/*
 * Forget a database.  Its queues are forgotten already.
 */
void
batcher_shmem_database_remove(BatcherDatabaseKey key)
{
	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	batcher_shmem_channel_forget(key);
	(void) hash_search(databases, &key, HASH_REMOVE, NULL);
	LWLockRelease(&batcher_shared->lock);
}

/*
 * The keys of up to 'max' databases into 'list'; returns how many.
 */
int
batcher_shmem_database_list(BatcherDatabaseKey *list, int max)
{
	HASH_SEQ_STATUS status;
	BatcherSharedDatabase *db;
	int			n = 0;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	hash_seq_init(&status, databases);
	while ((db = hash_seq_search(&status)) != NULL)
	{
		if (n < max)
			list[n++] = db->key;
	}
	LWLockRelease(&batcher_shared->lock);
	return n;
}

/*
 * This process's place in what is kept in BATCHER_SLAB_PARKS places.  (The
 * postmaster, at its start, has no PGPROC.)
 */
int
batcher_shmem_place(void)
{
	return MyProc ? batcher_my_proc_number() % BATCHER_SLAB_PARKS : 0;
}

/*
 * Count rows of non-durable queues that have been committed, or, negative,
 * that have been settled.  In several places, so that committers do not meet
 * in one.
 */
void
batcher_shmem_add_volatile(int64 nrows)
{
	(void) pg_atomic_fetch_add_u64(&batcher_shared->volatile_rows[batcher_shmem_place()],
								   nrows);
}

/*
 * Log how many rows of non-durable queues are lost with this memory.  In the
 * postmaster, perhaps after a crash: looks at counters only.
 */
void
batcher_shmem_report_lost(void)
{
	int64		lost = 0;
	int			i;

	for (i = 0; i < BATCHER_SLAB_PARKS; i++)
		lost += (int64) pg_atomic_read_u64(&batcher_shared->volatile_rows[i]);
	if (lost > 0)
		ereport(LOG,
				(errmsg_plural("%lld row of non-durable queues is lost",
							   "%lld rows of non-durable queues are lost",
							   (unsigned long) lost, (long long) lost)));
}
