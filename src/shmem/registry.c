/*
 * registry.c
 *	  The entries of databases, queues and lanes in shared memory.
 *
 * Two hash tables under the control lock.  They are made with shmem.c's
 * memory, in the postmaster.
 */
#include "postgres.h"

#include "shmem/shmem.h"
#include "storage/shmem.h"

static HTAB *databases = NULL;
static HTAB *queues = NULL;

/*
 * The shared memory that both tables take, in bytes.
 */
Size
batcher_shmem_registry_size(void)
{
	return add_size(hash_estimate_size(batcher_max_queues,
									   sizeof(BatcherSharedDatabase)),
					hash_estimate_size(batcher_max_queues,
									   sizeof(BatcherSharedQueue)));
}

/*
 * Make the tables, or find them.  AddinShmemInitLock is held.
 */
void
batcher_shmem_registry_init(void)
{
	databases = batcher_shmem_hash("batcher databases", batcher_max_queues,
								   sizeof(BatcherDatabaseKey),
								   sizeof(BatcherSharedDatabase));
	queues = batcher_shmem_hash("batcher queues", batcher_max_queues,
								sizeof(BatcherQueueKey),
								sizeof(BatcherSharedQueue));
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
		pg_atomic_init_u32(&db->barred, 0);
		pg_atomic_init_u32(&db->refused, 0);
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

/* Does somebody drop queues of this database that have no entry? */
static bool
is_barred(BatcherDatabaseKey key)
{
	BatcherSharedDatabase *db = batcher_shmem_database_locked(key);

	return db && pg_atomic_read_u32(&db->barred) != 0;
}

/* As batcher_shmem_queue_create; the control lock is held. */
static BatcherSharedQueue *
make_queue(BatcherQueueKey key, bool fresh)
{
	BatcherSharedQueue *main = NULL;
	BatcherSharedQueue *queue;
	bool		may_make = fresh || !is_barred(key.db);
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
	queue = hash_search(queues, &key, may_make ? HASH_ENTER_NULL : HASH_FIND,
						&found);
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
 * The shared state of a queue that is about to be dropped, made if there is
 * room.  If not: NULL, and nobody else makes it before the caller takes the bar
 * away again, which is counted in the database's 'barred'.
 */
BatcherSharedQueue *
batcher_shmem_queue_bar(BatcherSharedDatabase *db, BatcherQueueKey key)
{
	BatcherSharedQueue *queue;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	queue = make_queue(key, false);
	if (queue == NULL)
		(void) pg_atomic_fetch_add_u32(&db->barred, 1);
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
 * There is room for an entry: who waits for it, and the databases that have
 * queues without one, try again.  No lock of ours is held.
 */
void
batcher_shmem_queue_removed(void)
{
	HASH_SEQ_STATUS status;
	BatcherSharedDatabase *db;
	bool		wanted = false;

	ConditionVariableBroadcast(&batcher_shared->room_cv);
	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	hash_seq_init(&status, databases);
	while ((db = hash_seq_search(&status)) != NULL)
	{
		if (pg_atomic_exchange_u32(&db->refused, 0) == 0)
			continue;
		(void) pg_atomic_fetch_add_u64(&db->generation, 1);
		wanted = true;
	}
	LWLockRelease(&batcher_shared->lock);
	if (wanted)
		batcher_shmem_wake_all();
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
	if (removed)
		batcher_shmem_queue_removed();
	return removed;
}

/* As batcher_shmem_lanes_create; the control lock is held. */
static BatcherSharedQueue *
make_lanes(BatcherQueueKey key, int nlanes, bool fresh)
{
	BatcherSharedQueue *main;
	bool		made[BATCHER_MAX_LANES] = {false};

	key.lane = 0;
	made[0] = batcher_shmem_queue_locked(key) == NULL;
	main = make_queue(key, fresh);
	for (key.lane = 1; main && key.lane < nlanes; key.lane++)
	{
		if (main->lanes[key.lane] != NULL)
			continue;
		made[key.lane] = make_queue(key, fresh) != NULL;
		if (made[key.lane])
			continue;
		while (--key.lane >= 0)
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
 * again, and the result is NULL.
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
	if (main == NULL && !*over)
		pg_atomic_write_u32(&db->refused, 1);
	LWLockRelease(&batcher_shared->lock);
	return main;
}

/*
 * A queue has not the room for all its lanes: take those away that a start of
 * the server has restored, unless rows are in them.  Nobody uses one without
 * the others.
 */
void
batcher_shmem_lanes_give_back(BatcherQueueKey key)
{
	BatcherSharedQueue *main;
	BatcherSharedQueue *entry;
	bool		remove;
	int			i;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	main = batcher_shmem_queue_locked(key);
	remove = main != NULL;
	if (main)
	{
		batcher_foreach_lane(entry, i, main)
			remove = remove && pg_atomic_read_u64(&entry->lane.npending) == 0;
	}
	/* lane 0 last */
	for (key.lane = BATCHER_MAX_LANES - 1; remove && key.lane >= 0; key.lane--)
		(void) batcher_shmem_queue_remove_locked(key);
	LWLockRelease(&batcher_shared->lock);
	if (remove)
		batcher_shmem_queue_removed();
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
batcher_shmem_database_unread(BatcherSharedDatabase *db)
{
	HASH_SEQ_STATUS status;
	BatcherSharedQueue *queue;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	hash_seq_init(&status, queues);
	while ((queue = hash_seq_search(&status)) != NULL)
	{
		/* the version grows, so that nobody clears it who looked before */
		if (queue->key.db.dboid == db->key.dboid)
			batcher_spill_change(&queue->lane, BATCHER_SPILL_SPILLED |
								 BATCHER_SPILL_UNKNOWN, 0);
	}
	(void) pg_atomic_fetch_add_u32(&db->restores, 1);
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
