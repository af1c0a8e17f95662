/*
 * entry.c
 *	  The entries of a queue in shared memory, made and filled from its
 *	  definition.
 *
 * Client backends; workers fill them too.
 */
#include "postgres.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/debug.h"
#include "catalog/catalog.h"

/*
 * Tell in shared memory what others need to know of a definition: of those of
 * 'generation', unless there are others by now, or, with NULL, of one that stays
 * as it is, because the caller keeps others from changing it.
 */
void
batcher_entry_publish(const BatcherQueueDef *def, BatcherQueueKey key,
						   const uint64 *generation)
{
	BatcherSharedDatabase *db = batcher_catalog_database();
	Oid			identity = batcher_definition_identity(def);
	BatcherSharedQueue *queue;
	BatcherSharedQueue *entry;
	int			i;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	key.lane = 0;
	queue = batcher_shmem_queue_locked(key);
	if (queue == NULL ||
		(generation && pg_atomic_read_u64(&db->generation) != *generation))
	{
		LWLockRelease(&batcher_shared->lock);
		return;
	}
	pg_atomic_write_u32(&queue->nlanes, def->options.lanes);
	batcher_foreach_lane(entry, i, queue)
	{
		LWLockAcquire(&entry->lane.lock, LW_EXCLUSIVE);
		strlcpy(entry->name, def->name, sizeof(entry->name));
		entry->owner_role = def->owner;
		entry->identity = identity;
		LWLockRelease(&entry->lane.lock);
		pg_atomic_write_u32(&entry->paused, def->paused);
		pg_atomic_write_u32(&entry->window,
							(uint32) Min(def->options.flush_interval,
										 PG_INT32_MAX));
	}
	LWLockRelease(&batcher_shared->lock);
}

/* Does an entry wait to be taken away, because its queue was dropped? */
static bool
has_dropped(void)
{
	BatcherSharedQueue **list = palloc_array(BatcherSharedQueue *,
											 batcher_max_queues);
	int			n = batcher_shmem_queue_list(InvalidOid, list,
											 batcher_max_queues);
	bool		has = false;

	while (n-- > 0 && !has)
		has = pg_atomic_read_u32(&list[n]->main->dropped) != 0;
	pfree(list);
	return has;
}

/*
 * As batcher_entry_make; NULL if there is no room.
 */
static BatcherSharedQueue *
try_lanes(BatcherQueueKey key, int nlanes, bool fresh)
{
	static uint32 wait_event = 0;
	BatcherSharedQueue *queue;
	TimestampTz end = batcher_clock_add_ms(batcher_clock_now(), 1000);
	bool		hope = true;

	queue = batcher_shmem_lanes_create(key, nlanes, fresh);
	if (queue)
		return queue;
	if (wait_event == 0)
		wait_event = batcher_wait_event("BatcherRoom");
	ConditionVariablePrepareToSleep(&batcher_shared->room_cv);
	while (hope)
	{
		long		ms = batcher_clock_ms_until(end, batcher_clock_now());

		hope = ms > 0 && has_dropped(); /* before it may go */
		queue = batcher_shmem_lanes_create(key, nlanes, fresh);
		if (queue)
			break;
		if (hope)
			(void) ConditionVariableTimedSleep(&batcher_shared->room_cv, ms,
											   wait_event);
	}
	ConditionVariableCancelSleep();
	return queue;
}

static void
raise_no_room(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("too many queues"),
			 errdetail("Each lane of a queue counts as a queue."),
			 errhint("Increase \"%s\" and restart the server, or drop a queue; last_error in batcher.status says which are not served.",
					 "batcher.max_queues")));
}

/*
 * Make the shared state of lanes 0 to 'nlanes' - 1 of a queue, and of none that
 * is there; 'fresh' as in batcher_shmem_queue_create.  Returns the main entry.
 * Where the entries of dropped queues have the room, it waits a second for the
 * workers that take them away.  An ERROR (53400) if there is no room.
 */
BatcherSharedQueue *
batcher_entry_make(BatcherQueueKey key, int nlanes, bool fresh)
{
	BatcherSharedQueue *queue = try_lanes(key, nlanes, fresh);

	if (queue == NULL)
		raise_no_room();
	return queue;
}

/*
 * The shared state of a queue, and its key; NULL if it, or that of a lane of it,
 * was not made.
 */
static BatcherSharedQueue *
find_shared(const BatcherQueueDef *def, BatcherQueueKey *key)
{
	BatcherSharedQueue *queue;
	int			i = 0;

	key->db = batcher_catalog_find(false)->db;
	key->queue_id = def->id;
	key->lane = 0;
	queue = batcher_shmem_queue(*key);
	while (queue && i < def->options.lanes && queue->lanes[i])
		i++;
	return i == def->options.lanes ? queue : NULL;
}

/*
 * The shared state of a queue, made with that of all lanes if it has none.
 * NULL if the library is not preloaded; an ERROR (53400) if there are too many
 * queues.
 */
BatcherSharedQueue *
batcher_entry_get(const BatcherQueueDef *def)
{
	BatcherQueueKey key;
	BatcherSharedQueue *queue;

	if (batcher_shared == NULL)
		return NULL;
	queue = find_shared(def, &key);
	if (queue)
		return queue;
	queue = batcher_entry_make(key, def->options.lanes, false);
	batcher_entry_publish(def, key, NULL);
	return queue;
}

/*
 * See to it that a queue has its shared state, and set its key, for a caller
 * that does not keep others from dropping it.  Returns the state; NULL if the
 * queue is dropped: then what may have been made for it is taken away by a
 * worker, as that of a dropped queue is.  Where there are too many queues: an
 * ERROR (53400), or, if 'unserved' is not NULL, that is set and the result NULL.
 */
BatcherSharedQueue *
batcher_entry_ensure(const BatcherQueueDef *def,
								 BatcherQueueKey *key, bool *unserved)
{
	BatcherQueueDef *now;
	BatcherSharedQueue *queue = find_shared(def, key);

	if (unserved)
		*unserved = false;
	batcher_debug_point("ensure-shared");
	if (queue)
		return queue;
	queue = try_lanes(*key, def->options.lanes, false);
	if (queue == NULL)
	{
		if (unserved == NULL)
			raise_no_room();
		*unserved = true;
		return NULL;
	}
	batcher_entry_publish(def, *key, NULL);
	now = batcher_definition_by_name(def->name);
	if (now && now->id == def->id)
		return queue;
	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	queue = batcher_shmem_queue_locked(*key);
	if (queue)
		pg_atomic_write_u32(&queue->dropped, 1);
	LWLockRelease(&batcher_shared->lock);
	batcher_change_wake_workers();
	return NULL;
}
