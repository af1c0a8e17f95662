/*
 * change.c
 *	  What a change of definitions does when its transaction ends.
 *
 * Every session and worker caches definitions under the generation of the
 * database.  The generation grows at the commit of a transaction that changed
 * definitions, whoever changed them: the trigger batcher.changed on the table
 * notes it.  Here too: the shared entries of queues that a transaction made
 * or dropped, the lanes that it froze, and what CREATE and DROP EXTENSION
 * mean for the workers.
 *
 * Notes are kept by nesting level, as a rolled back savepoint takes its part
 * with it.  The callbacks at the end of the transaction cannot fail; they
 * allocate nothing.  Client backends, and whoever restores (restore.c).
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"

bool		batcher_definition_writing = false;
uint64		batcher_change_local = 0;

typedef enum ChangeKind
{
	CHANGE_CREATED,				/* the entry goes if rolled back */
	CHANGE_ALTERED,				/* the breaker closes if committed */
	CHANGE_FROZEN,				/* the queue thaws, unless dropped */
	CHANGE_CLOSED,				/* the queue opens, unless dropped */
	CHANGE_LANES,				/* lanes that were made go if rolled back */
	CHANGE_DROPPED,				/* the entry may go if committed */
	CHANGE_BARRED,				/* entries can be made again */
	CHANGE_EXTENSION_CREATED,	/* nobody else has the database's entry yet */
	CHANGE_EXTENSION_DROPPED	/* the database's entry goes if committed */
} ChangeKind;

typedef struct Change
{
	struct Change *next;
	ChangeKind	kind;
	int			level;			/* nesting level of the transaction */
	BatcherSharedQueue *queue;	/* or NULL, and then: */
	BatcherSharedDatabase *db;
} Change;

/* Of the current transaction; in TopTransactionContext, which frees them. */
static Change *changes = NULL;
static int	changed_level = 0;	/* lowest level that changed definitions, 0:
								 * none */
static BatcherSharedDatabase *changed_db = NULL;
static int	arrived_level = 0;	/* the same, into which a restore brought
								 * something */
static int	held_level = 0;		/* the same, that has held all queues for it */

/* An extension that was just made, and whose script has not come to us yet. */
static Oid	created_extension = InvalidOid;

static object_access_hook_type prev_object_access_hook = NULL;

static void
note_level(int *level)
{
	int			current = GetCurrentTransactionNestLevel();

	if (*level == 0 || current < *level)
		*level = current;
}

static void
add_change(ChangeKind kind, BatcherSharedQueue *queue,
		   BatcherSharedDatabase *db)
{
	Change	   *change = MemoryContextAlloc(TopTransactionContext,
											sizeof(Change));

	/* not in the callback, because it allocates */
	(void) batcher_shmem_area();

	change->kind = kind;
	change->level = GetCurrentTransactionNestLevel();
	change->queue = queue;
	change->db = db;
	change->next = changes;
	changes = change;
}

/*
 * Definitions were changed in this transaction.  The script of the extension
 * changes them too; until that is committed no worker would find it.
 */
static void
note_change(void)
{
	if (batcher_shared == NULL)
		return;
	changed_db = batcher_catalog_database();
	if (changed_db->key.extoid == created_extension)
	{
		add_change(CHANGE_EXTENSION_CREATED, NULL, changed_db);
		pg_atomic_write_u32(&changed_db->uncommitted, 1);
		created_extension = InvalidOid;
	}
	note_level(&changed_level);
	batcher_change_local++;
}

/*
 * A restore brings something in this transaction: at the commit every lane counts
 * as spilled, and the workers look through the spool.  Not before: who looks then
 * finds nothing.
 */
void
batcher_change_note_arrival(void)
{
	if (batcher_shared == NULL)
		return;
	note_change();
	note_level(&arrived_level);
}

/*
 * This transaction is about to hold all queues for a restore; false if it has
 * already.
 */
bool
batcher_change_note_held(void)
{
	if (held_level)
		return false;
	note_level(&held_level);
	return true;
}

/*
 * Whether this transaction has changed definitions, so that the workers follow
 * others than it sees.
 */
bool
batcher_change_is_open(void)
{
	return changed_level != 0;
}

/*
 * This transaction made a queue and its shared entry.
 */
void
batcher_change_note_created(BatcherSharedQueue *queue)
{
	add_change(CHANGE_CREATED, queue, NULL);
}

/*
 * This transaction changes a queue, so that it is worth trying it again.
 */
void
batcher_change_note_altered(BatcherSharedQueue *queue)
{
	add_change(CHANGE_ALTERED, queue, NULL);
}

/*
 * This transaction drops a queue.  The caller has frozen its lane and has
 * waited for everybody who used it.
 */
void
batcher_change_note_dropped(BatcherSharedQueue *queue)
{
	add_change(CHANGE_DROPPED, queue, NULL);
}

/*
 * Freeze a closed queue until the end of this transaction, or of its rolled back
 * part: nobody begins to flush it from now on.  If the queue is dropped it stays
 * closed and frozen.
 */
void
batcher_change_freeze(BatcherSharedQueue *queue)
{
	add_change(CHANGE_FROZEN, queue, NULL);
	(void) pg_atomic_fetch_add_u32(&queue->lane.frozen, 1);
	pg_memory_barrier();
}

/*
 * Close a queue until the end of this transaction, or of its rolled back part:
 * nobody else begins to enqueue into it, but for transactions that hold the
 * spool already, which the caller waits for.  It is flushed as ever.
 */
void
batcher_change_close(BatcherSharedQueue *queue)
{
	uint64		number = batcher_number_take(batcher_catalog_database());

	/* what may fail is done: from here on it is to be undone */
	add_change(CHANGE_CLOSED, queue, NULL);
	pg_atomic_write_u64(&queue->closed_at, number);
	pg_memory_barrier();
	(void) pg_atomic_fetch_add_u32(&queue->closed, 1);
	pg_memory_barrier();
}

/*
 * This transaction is about to make more lanes for a queue, perhaps.
 */
void
batcher_change_note_lanes(void)
{
	add_change(CHANGE_LANES, NULL, batcher_catalog_database());
}

/*
 * The entry of a queue that this transaction is about to drop.  NULL if there is
 * no room for one: nobody uses the queue then, and none is made until the end of
 * the transaction, or of its rolled back part.
 */
BatcherSharedQueue *
batcher_change_bar(BatcherQueueKey key)
{
	BatcherSharedDatabase *db = batcher_catalog_database();
	BatcherSharedQueue *queue;

	add_change(CHANGE_BARRED, NULL, NULL);
	queue = batcher_shmem_queue_bar(db, key);
	if (queue == NULL)
		changes->db = db;
	return queue;
}

/*
 * Whether this transaction has closed a queue.
 */
bool
batcher_change_closes(BatcherSharedQueue *queue)
{
	Change	   *change;

	for (change = changes; change; change = change->next)
	{
		if (change->kind == CHANGE_CLOSED && change->queue == queue)
			return true;
	}
	return false;
}

/*
 * A queue is dropped: its lane stays frozen.  To be called before others can
 * see the drop, as its entry may be gone right after that.
 */
static void
forget_freezes(Change *change, BatcherSharedQueue *queue)
{
	for (; change; change = change->next)
	{
		if ((change->kind == CHANGE_FROZEN || change->kind == CHANGE_CLOSED ||
			 change->kind == CHANGE_ALTERED) && change->queue == queue)
			change->queue = NULL;
	}
}

/*
 * Queues can be made in a database again.
 */
static void
lower_bar(Change *change)
{
	BatcherSharedDatabase *db = change->db;

	change->db = NULL;
	if (db == NULL)
		return;
	(void) pg_atomic_fetch_sub_u32(&db->barred, 1);
	/* who could make none meanwhile tries again */
	(void) pg_atomic_fetch_add_u64(&db->generation, 1);
}

/*
 * The extension was dropped: right after that the entries of the database and of
 * its queues may be others'.  So nothing is changed in them later, and what is
 * counted in that of the database, which may be used again, is undone before.
 */
static void
give_up_database(BatcherSharedDatabase *db)
{
	Change	   *change;

	for (change = changes; change; change = change->next)
	{
		if (change->kind == CHANGE_BARRED && change->db == db)
			lower_bar(change);
		if (change->queue &&
			change->queue->key.db.extoid == db->key.extoid)
			change->queue = NULL;
	}
	pg_memory_barrier();
	pg_atomic_write_u32(&db->gone, 1);
}

/*
 * Carry out or undo the changes of nesting level 'level' and deeper.  They
 * are in reverse order, so that a drop is met before its freeze.
 */
static void
end_changes(bool commit, int level)
{
	Change	  **link = &changes;

	while (*link)
	{
		Change	   *change = *link;
		BatcherSharedQueue *queue = change->queue;

		if (change->level < level)
		{
			link = &change->next;
			continue;
		}
		*link = change->next;
		switch (change->kind)
		{
			case CHANGE_DROPPED:
				if (commit && queue)
				{
					forget_freezes(changes, queue);
					pg_write_barrier();
					pg_atomic_write_u32(&queue->dropped, 1);
				}
				break;
			case CHANGE_ALTERED:
				if (commit && queue)
					batcher_queue_reset_breaker(queue);
				break;
			case CHANGE_FROZEN:
				if (queue)
					(void) pg_atomic_fetch_sub_u32(&queue->lane.frozen, 1);
				break;
			case CHANGE_CLOSED:
				if (queue)
					(void) pg_atomic_fetch_sub_u32(&queue->closed, 1);
				break;
			case CHANGE_LANES:
				/* who reads the definitions then takes them away */
				if (!commit)
					(void) pg_atomic_fetch_add_u64(&change->db->generation, 1);
				break;
			case CHANGE_BARRED:
				lower_bar(change);
				break;
			case CHANGE_CREATED:
				if (!commit)
				{
					/* nobody else has ever seen it */
					batcher_queue_discard(queue);
				}
				break;
			case CHANGE_EXTENSION_CREATED:
				if (!commit)
					pg_atomic_write_u32(&change->db->gone, 1);
				pg_memory_barrier();
				pg_atomic_write_u32(&change->db->uncommitted, 0);
				break;
			case CHANGE_EXTENSION_DROPPED:
				break;			/* is done before */
		}
	}
}

/*
 * Wake all workers of this database, and the launcher.
 */
void
batcher_change_wake_workers(void)
{
	int			i;

	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		BatcherSharedWorker *worker = &batcher_shared->workers[i];

		if (worker->db.dboid == MyDatabaseId)
			batcher_shmem_wake_proc(pg_atomic_read_u32(&worker->proc));
	}
	batcher_shmem_wake_launcher();
}

static void
change_xact_callback(XactEvent event, void *arg)
{
	bool		commit = event == XACT_EVENT_COMMIT;
	Change	   *change;

	/* nobody would tell the others when it is committed */
	if (event == XACT_EVENT_PRE_PREPARE && (changes || changed_level))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has changed queues")));
	if (!commit && event != XACT_EVENT_ABORT)
		return;
	created_extension = InvalidOid;
	if (changes == NULL && !changed_level)
		return;

	/* what was restored is to be looked for, by who sees the generation */
	if (commit && arrived_level)
		batcher_shmem_database_unread(changed_db);

	/* who sees the generation is not to look for tables that are gone */
	for (change = commit ? changes : NULL; change; change = change->next)
	{
		if (change->kind == CHANGE_EXTENSION_DROPPED)
			give_up_database(change->db);
	}

	/* the generation first: who finds a queue open has seen it */
	if (commit && changed_level)
		(void) pg_atomic_fetch_add_u64(&changed_db->generation, 1);
	end_changes(commit, 0);
	batcher_change_local++;
	batcher_change_wake_workers();
	changes = NULL;
	changed_level = arrived_level = held_level = 0;
}

/* What a level noted goes to its parent, or away. */
static void
end_level(int *level, bool commit, int current)
{
	if (*level == current)
		*level = commit ? current - 1 : 0;
}

static void
change_subxact_callback(SubXactEvent event, SubTransactionId my_id,
						SubTransactionId parent, void *arg)
{
	int			current = GetCurrentTransactionNestLevel();
	bool		commit = event == SUBXACT_EVENT_COMMIT_SUB;
	Change	   *change;

	if (!commit && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	end_level(&changed_level, commit, current);
	end_level(&arrived_level, commit, current);
	end_level(&held_level, commit, current);
	if (!commit)
	{
		Change	   *newest = changes;

		end_changes(false, current);
		batcher_change_local++;
		/* a lane that thaws may have rows that wait */
		if (changes != newest)
			batcher_change_wake_workers();
	}
	for (change = changes; change; change = change->next)
		change->level = Min(change->level, current - 1);
}

/* Notice when the extension is made, or dropped by whatever command. */
static void
note_extension(ObjectAccessType access, Oid classId, Oid objectId, int subId,
			   void *arg)
{
	BatcherDatabaseKey key;
	BatcherSharedDatabase *db;

	if (prev_object_access_hook)
		prev_object_access_hook(access, classId, objectId, subId, arg);
	if (classId != ExtensionRelationId || batcher_shared == NULL)
		return;
	if (access == OAT_POST_CREATE)
		created_extension = objectId;
	if (access != OAT_DROP || objectId != get_extension_oid("batcher", true))
		return;
	key.dboid = MyDatabaseId;
	key.extoid = objectId;
	db = batcher_shmem_database(key, false);
	if (db)
		add_change(CHANGE_EXTENSION_DROPPED, NULL, db);
}

/*
 * Register the callbacks.  From _PG_init.
 */
void
batcher_change_install(void)
{
	RegisterXactCallback(change_xact_callback, NULL);
	RegisterSubXactCallback(change_subxact_callback, NULL);
	prev_object_access_hook = object_access_hook;
	object_access_hook = note_extension;
}

/*
 * Sessions and workers go on using a queue whose definition goes behind their
 * backs, and look for a row of the spool where it was, so nobody changes the
 * tables by hand.
 */
void
batcher_change_refuse_direct(Relation rel)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s.%s\" cannot be changed directly",
					"batcher", RelationGetRelationName(rel)),
			 errhint("Use the functions batch_*.")));
}

PG_FUNCTION_INFO_V1(batcher_changed);

/*
 * Trigger on the definitions and the grants: they changed.
 */
Datum
batcher_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called as a trigger",
						"batcher.changed")));
	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		batcher_change_refuse_direct(trigdata->tg_relation);
	note_change();
	return PointerGetDatum(NULL);
}
