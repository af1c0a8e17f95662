/*
 * target.c
 *	  Finding the queue that a producer names, and its right to enqueue.
 *
 * The answer is cached in the backend, by name, and holds as long as the
 * generation of the database's definitions is the same, so that a call costs
 * one look at shared memory.  The right is remembered for one user, until a
 * role changes.  Client backends.
 */
#include "postgres.h"

#include "enqueue/enqueue.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

static HTAB *targets = NULL;	/* of this process, for its life */
static BatcherTarget *last_target = NULL;
uint64		batcher_roles_changed = 1;

static void
forget_rights(Datum arg, int cacheid, uint32 hashvalue)
{
	batcher_roles_changed++;
}

static void
make_cache(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = NAMEDATALEN;
	ctl.entrysize = sizeof(BatcherTarget);
	ctl.hcxt = TopMemoryContext;
	targets = hash_create("batcher targets", 16, &ctl,
						  HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	CacheRegisterSyscacheCallback(AUTHOID, forget_rights, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHMEMMEMROLE, forget_rights, (Datum) 0);
}

/* There is no queue of this name (any more). */
static void
forget_target(const char *name)
{
	BatcherTarget *target;

	last_target = NULL;
	if (targets == NULL)
		return;
	target = hash_search(targets, name, HASH_FIND, NULL);
	if (target == NULL)
		return;
	batcher_row_type_free(target->known_type);
	(void) hash_search(targets, name, HASH_REMOVE, NULL);
}

/* The cache's entry for a name, filled from the definition. */
static BatcherTarget *
load_target(const char *name, uint64 generation)
{
	BatcherQueueDef *def = batcher_definition_by_name(name);
	BatcherTarget *target;
	BatcherSharedQueue *queue;
	BatcherQueueKey key;
	bool		found;

	if (def == NULL)
	{
		forget_target(name);
		batcher_definition_missing(name, strlen(name));
	}
	/* no entry is left behind if it is dropped by now */
	queue = batcher_entry_ensure(def, &key, NULL);
	if (queue == NULL)
	{
		forget_target(name);
		batcher_definition_missing(name, strlen(name));
	}
	if (targets == NULL)
		make_cache();
	target = hash_search(targets, name, HASH_ENTER, &found);
	if (!found)
		target->known_type = NULL;
	target->typed = batcher_definition_typed(def);
	target->row_type = batcher_named_row_type(def);
	target->relation = def->target_name ? def->target : InvalidOid;
	target->generation = generation;
	target->local_generation = batcher_change_local;
	target->db = key.db;
	target->queue_id = def->id;
	target->queue = queue;
	target->nlanes = def->options.lanes;
	target->owner = def->owner;
	target->durable = def->options.durable;
	target->enabled = def->options.enabled;
	target->thins = batcher_options_thin(&def->options);
	target->when_full = def->options.when_full;
	target->memory_limit = def->options.memory_limit;
	target->paused = def->paused;
	target->checked_user = InvalidOid;
	return target;
}

/* Raise an error unless the current user may enqueue. */
static void
check_right(BatcherTarget *target)
{
	Oid			user = GetUserId();

	if (target->checked_user == user &&
		target->checked_roles == batcher_roles_changed)
		return;
	if (!batcher_grant_allows(target->queue_id, target->owner,
							  BATCHER_ENQUEUE))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for queue \"%s\"", target->name)));
	target->checked_user = user;
	target->checked_roles = batcher_roles_changed;
}

/*
 * Is the queue closed to this transaction?  Who closed it, or is about to drop
 * it, waits for those that hold the spool, so they must not wait for him.
 */
static bool
is_closed(BatcherSharedQueue *queue)
{
	if (pg_atomic_read_u32(&queue->closed) == 0 || batcher_change_closes(queue))
		return false;
	pg_read_barrier();			/* the number was there before */
	return !batcher_staging_locked_before(pg_atomic_read_u64(&queue->closed_at));
}

/*
 * Wait until whoever is about to drop a queue, or has closed it, has done so,
 * or has not.
 */
static void
wait_for_drop(BatcherTarget *target)
{
	batcher_definition_lock(target->queue_id, AccessShareLock);
	batcher_definition_unlock(target->queue_id, AccessShareLock);
}

/*
 * The queue with this name, into which the current user may enqueue.  The
 * spool is locked afterwards, until the end of the transaction, so that
 * nobody drops the queue.  Errors: 42704, 42501, 55000, and 55P03 in a flush,
 * where others wait for a transaction that drops the queue or changes its lanes.
 */
BatcherTarget *
batcher_target_find(const char *name, int len)
{
	bool		had_lock = batcher_staging_active();
	char		key[NAMEDATALEN];

	if (len >= NAMEDATALEN || len < 1)
		batcher_definition_missing(name, len);

	for (;;)
	{
		BatcherSharedDatabase *db;
		BatcherTarget *target = last_target;
		uint64		generation;

		(void) batcher_staging_lock_spool();
		db = batcher_catalog_database();
		generation = pg_atomic_read_u64(&db->generation);
		if (target == NULL || strncmp(target->name, name, len) != 0 ||
			target->name[len] != '\0')
		{
			memcpy(key, name, len);
			key[len] = '\0';
			target = targets ? hash_search(targets, key, HASH_FIND, NULL) : NULL;
		}
		if (target == NULL || target->generation != generation ||
			target->local_generation != batcher_change_local ||
			memcmp(&target->db, &db->key, sizeof(db->key)) != 0)
		{
			memcpy(key, name, len);
			key[len] = '\0';
			target = load_target(key, generation);
		}

		/* see change.c for why the generation is looked at twice */
		if (unlikely(is_closed(target->queue)))
		{
			/* who has closed it may wait for the worker */
			if (batcher_in_flush)
			{
				batcher_flush_refused = true;
				ereport(ERROR,
						(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
						 errmsg("queue \"%s\" is being changed", target->name),
						 errdetail("A flush does not wait for that, but is tried again.")));
			}
			if (!had_lock)
				batcher_staging_unlock_spool();
			wait_for_drop(target);
			CHECK_FOR_INTERRUPTS();
			continue;
		}
		pg_read_barrier();
		if (unlikely(pg_atomic_read_u64(&db->generation) != generation))
			continue;

		check_right(target);
		last_target = target;
		return target;
	}
}

/*
 * What the rows of a typed queue are now, for checking payloads; NULL if the
 * type or the target is gone: then rows gather unchecked.
 */
BatcherRowType *
batcher_target_row_type(BatcherTarget *target)
{
	BatcherRowType *known = target->known_type;

	target->known_type = NULL;	/* it may be freed, and what follows fail */
	target->known_type = batcher_row_type_refresh(known, target->row_type,
												  target->relation, true);
	return target->known_type;
}
