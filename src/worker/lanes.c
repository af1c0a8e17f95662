/*
 * lanes.c
 *	  The lanes that a worker owns, and the definitions that it follows.
 *
 * A worker takes every lane of its identity that nobody owns, or whose owner
 * is too busy for it.  It loads the definitions when their generation has
 * grown, when settings or roles have changed, and when a lane may be taken;
 * what it knows beyond them, shared memory and the spool can be lost at any
 * moment.  What it does with a lane beyond what it knows by itself it does
 * while it holds the lane; see queue/owner.c.  The worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/clock.h"
#include "base/debug.h"
#include "miscadmin.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "worker/lanes.h"
#include "worker/worker.h"

List	   *batcher_lane_views = NIL;

static int	my_slot = -1;
static BatcherSharedWorker *my_worker = NULL;
static BatcherSharedDatabase *my_db = NULL;
static MemoryContext defs_cxt = NULL;	/* the definitions of the last load */
static uint64 loaded_generation = 0;
static bool roles_changed = false;	/* since the last load began */

/*
 * A role was changed or dropped.  Whether it is an owner, still there and a
 * superuser is in the definitions, so none of them holds any more: a flush
 * that has just begun its transaction does nothing then.
 */
static void
forget_roles(Datum arg, int cacheid, uint32 hashvalue)
{
	ListCell   *lc;

	roles_changed = true;
	loaded_generation = 0;
	foreach(lc, batcher_lane_views)
		((BatcherLaneView *) lfirst(lc))->generation = 0;
}

/* Forget all that is known of a lane. */
static void
forget_view(BatcherLaneView *view)
{
	batcher_lane_views = list_delete_ptr(batcher_lane_views, view);
	batcher_executor_reset(view);
	batcher_readback_reset(view);
	batcher_index_reset(view);
	batcher_retry_reset(view);
	batcher_grave_reset(view);
	pfree(view);
}

/* By key and entry: one that we have lost may be another lane's by now. */
static BatcherLaneView *
find_view(BatcherQueueKey key, BatcherSharedQueue *queue)
{
	ListCell   *lc;

	foreach(lc, batcher_lane_views)
	{
		BatcherLaneView *view = lfirst(lc);

		if (view->queue == queue && memcmp(&view->key, &key, sizeof(key)) == 0)
			return view;
	}
	return NULL;
}

/*
 * Forget the lanes that others have taken over.  Returns in how many of those
 * that stay there is something to do.
 */
int
batcher_lanes_forget_lost(void)
{
	ListCell   *lc;
	List	   *lost = NIL;
	int			nwaiting = 0;

	foreach(lc, batcher_lane_views)
	{
		BatcherLaneView *view = lfirst(lc);

		if (batcher_lane_owner(&view->queue->lane) != my_slot)
			lost = lappend(lost, view);
		else if (batcher_lane_wants_worker(view->queue))
			nwaiting++;
	}
	foreach(lc, lost)
		forget_view(lfirst(lc));
	list_free(lost);
	return nwaiting;
}

/* Say what is flushed now; 0 rows: the spool is read. */
static void
report_flush(BatcherSharedQueue *queue, int rows)
{
	if (rows > 0)
		batcher_slot_report(my_slot, queue, rows);
	batcher_patience_run();
}

/* Own the lane with this key, if it is ours to own, and hold it; NULL if not. */
static BatcherLaneView *
take_lane(BatcherQueueKey key, bool had_owner)
{
	BatcherLaneView *view;
	BatcherSharedQueue *queue = batcher_slot_own_lane(my_slot, key);
	MemoryContext old;
	ListCell   *lc;

	if (queue == NULL)
		return NULL;
	/* of a lane that had the entry before, and that we have lost */
	foreach(lc, batcher_lane_views)
	{
		view = lfirst(lc);
		if (view->queue == queue)
		{
			forget_view(view);
			break;
		}
	}
	if (had_owner)
		batcher_debug_point("taken-over");
	old = MemoryContextSwitchTo(TopMemoryContext);
	view = palloc0(sizeof(BatcherLaneView));
	view->db = my_db;
	view->key = key;
	view->queue = queue;
	view->report = report_flush;
	view->deadline = BATCHER_NEVER;
	batcher_lane_views = lappend(batcher_lane_views, view);
	MemoryContextSwitchTo(old);

	/* what the last owner may have left undone after its last commit */
	batcher_lane_sweep(queue);
	return view;
}

/* Take away the entry of a lane of a queue whose drop has committed. */
static void
remove_lane(BatcherSharedQueue *queue)
{
	BatcherQueueKey key = queue->key;
	BatcherLaneView *view = find_view(key, queue);
	BatcherSharedQueue *main;

	if (view == NULL)
		queue = batcher_slot_own_lane(my_slot, key);
	else if (!batcher_lane_hold(&queue->lane, my_slot))
		queue = NULL;
	if (queue == NULL)
		return;
	main = queue->main;
	/* meanwhile another worker may have taken it away */
	if (pg_atomic_read_u32(&main->dropped) == 0)
	{
		batcher_slot_disown_lane(my_slot, queue);
		return;
	}
	if (view)
		forget_view(view);
	batcher_lane_discard(queue);
	batcher_probation_forget(&key);
	/* lane 0 stays while there are others */
	if (!batcher_shmem_queue_remove(key))
		batcher_slot_disown_lane(my_slot, queue);
	else if (main != queue)
		batcher_lane_wake(main);	/* the last one may be gone now */
}

/*
 * Take away the entries of queues whose drop has committed, and hold those of
 * which there is no definition (not yet, or not any more): nobody is to come
 * for their rows.
 */
static void
remove_dropped(uint64 generation)
{
	BatcherSharedQueue **list;
	int			nentries;
	int			i;
	bool		last;

	list = palloc_array(BatcherSharedQueue *, batcher_max_queues);
	nentries = batcher_shmem_queue_list(MyDatabaseId, list, batcher_max_queues);
	for (i = 0; i < nentries; i++)
	{
		if (pg_atomic_read_u32(&list[i]->main->dropped) == 0 &&
			pg_atomic_read_u64(&list[i]->main->defined_at) < generation)
			pg_atomic_write_u32(&list[i]->paused, 1);
	}
	/* lane 0 goes last */
	for (last = false;; last = true)
	{
		for (i = 0; i < nentries; i++)
		{
			if (list[i] && last == (list[i]->key.lane == 0) &&
				pg_atomic_read_u32(&list[i]->main->dropped) != 0)
			{
				remove_lane(list[i]);
				list[i] = NULL;
			}
		}
		if (last)
			break;
	}
}

/* Are two texts the same, or both NULL? */
static bool
same_text(const char *a, const char *b)
{
	return a == b || (a && b && strcmp(a, b) == 0);
}

/* Does a flush execute the same under both definitions? */
static bool
same_statement(const BatcherQueueDef *a, const BatcherQueueDef *b)
{
	return same_text(a->search_path, b->search_path) &&
		same_text(a->flush_sql, b->flush_sql) &&
		a->target == b->target &&
		same_text(a->target_name, b->target_name) &&
		a->row_type == b->row_type &&
		same_text(a->row_type_name, b->row_type_name) &&
		a->options.on_conflict == b->options.on_conflict &&
		same_text(a->options.notify_sql, b->options.notify_sql) &&
		same_text(a->notify_search_path, b->notify_search_path);
}

static bool
same_options(const BatcherQueueDef *a, const BatcherQueueDef *b)
{
	return VARSIZE(a->given) == VARSIZE(b->given) &&
		memcmp(a->given, b->given, VARSIZE(b->given)) == 0;
}

/* Use a definition; if it is a changed one, a failing queue is tried anew. */
static void
adopt_definition(BatcherLaneView *view, BatcherQueueDef *def)
{
	BatcherQueueDef *old = view->def;

	batcher_executor_reset(view);
	view->def = def;
	/* other tuples of the spool are its own now */
	if (old && old->options.lanes != def->options.lanes)
		batcher_readback_reset(view);
	/* its rows are in another order now, perhaps */
	if (old && (old->options.key_policy != def->options.key_policy ||
				old->options.debounce != def->options.debounce ||
				old->options.max_wait != def->options.max_wait ||
				old->options.enabled != def->options.enabled))
		batcher_index_reset(view);
	if (old == NULL)
	{
		batcher_message_recover(view);
		batcher_probation_look(view);
	}
	else if (!same_statement(old, def) || !same_options(old, def))
	{
		batcher_queue_reset_breaker(view->queue);
		view->forced_upto = 0;
		if (!same_statement(old, def))
			batcher_retry_absolve(view);
	}
}

/*
 * The same for a lane that we have just taken, and hold: nobody takes it from us
 * before we have looked what its last owner has left.
 */
static void
adopt_first(BatcherLaneView *view, BatcherQueueDef *def)
{
	PG_TRY();
	{
		adopt_definition(view, def);
	}
	PG_CATCH();
	{
		batcher_lane_let_go(&view->queue->lane);
		PG_RE_THROW();
	}
	PG_END_TRY();
	batcher_lane_let_go(&view->queue->lane);
}

/*
 * Serve a lane, which has this entry, with this definition, if it is ours to
 * serve.
 */
static void
adopt_lane(BatcherQueueKey key, BatcherSharedQueue *queue,
		   BatcherQueueDef *def, uint64 generation)
{
	BatcherLaneView *view = find_view(key, queue);

	if (batcher_definition_identity(def) != my_worker->identity)
	{
		/* another owner now: another worker's */
		if (view)
		{
			forget_view(view);
			batcher_slot_disown_lane(my_slot, queue);
		}
		return;
	}
	if (view)
		adopt_definition(view, def);
	else if ((view = take_lane(key, batcher_lane_owner(&queue->lane) >= 0)) !=
			 NULL)
		adopt_first(view, def);
	else
		return;
	view->generation = generation;
}

/*
 * Take away a lane whose number is not among those of its queue any more.  False
 * if that is not to be yet.
 */
static bool
retire_lane(BatcherQueueKey key, BatcherSharedQueue *queue, uint64 generation)
{
	BatcherLaneView *view = find_view(key, queue);

	if (view && !batcher_lane_hold(&queue->lane, my_slot))
		return false;
	if (!batcher_lane_retire(key, my_slot, &my_db->generation, generation))
	{
		if (view)
			batcher_lane_let_go(&queue->lane);
		return false;
	}
	if (view)
		forget_view(view);
	batcher_probation_forget(&key);
	return true;
}

/*
 * Use the definitions of 'list', which were those of 'generation'.  Returns how
 * many cannot be served, because there are more queues than entries.
 */
static int
adopt_definitions(List *list, uint64 generation)
{
	int			unserved = 0;
	ListCell   *lc;

	foreach(lc, list)
	{
		BatcherQueueDef *def = lfirst(lc);
		BatcherQueueKey key = {my_db->key, def->id, 0};
		BatcherSharedQueue *queue;
		BatcherSharedQueue *entry;
		bool		over;
		int			i;

		queue = batcher_shmem_lanes_follow(my_db, generation, key,
										   def->options.lanes, &over);
		if (queue == NULL)
		{
			/* else the definitions are loaded anew */
			if (!over)
			{
				unserved++;
				batcher_shmem_lanes_give_back(key);
			}
			continue;
		}
		batcher_entry_publish(def, key, &generation);
		batcher_raise_to(&queue->defined_at, generation);
		batcher_foreach_lane(entry, i, queue)
		{
			key.lane = i;
			if (i < def->options.lanes ||
				!retire_lane(key, entry, generation))
				adopt_lane(key, entry, def, generation);
		}
	}
	return unserved;
}

/* Say, once for each number, that some queues are not served. */
static void
report_unserved(int unserved)
{
	static int	reported = 0;

	if (unserved > 0 && unserved != reported)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg_plural("too many queues: %d is not served",
							   "too many queues: %d are not served",
							   unserved, unserved),
				 errhint("Increase \"%s\" and restart the server, or drop a queue; last_error in batcher.status says which are not served.",
						 "batcher.max_queues")));
	reported = unserved;
}

/*
 * Lanes of which 'cxt', which holds the definitions, has none are not served
 * any more.  Their queues are dropped, as a rule, and we may see that before
 * the entry says so; without this we would go on with what is about to be
 * freed.
 */
static void
forget_undefined(MemoryContext cxt)
{
	ListCell   *lc;

	foreach(lc, batcher_lane_views)
	{
		BatcherLaneView *view = lfirst(lc);

		if (view->def == NULL || GetMemoryChunkContext(view->def) == cxt)
			continue;
		batcher_executor_reset(view);
		batcher_readback_reset(view);
		view->def = NULL;
	}
}

/*
 * Load the definitions, if they have changed or lanes may have become free.
 * False if the extension is gone.
 */
bool
batcher_lanes_load(void)
{
	uint64		generation = pg_atomic_read_u64(&my_db->generation);
	uint32		restores = pg_atomic_read_u32(&my_db->restores);
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext cxt;
	List	   *list;
	int			unserved;

	if (pg_atomic_read_u32(&my_db->gone))
	{
		/* the launcher need not wonder about a short life */
		pg_atomic_write_u32(&my_worker->leave, 1);
		return false;
	}
	if (generation == loaded_generation)
		return true;

	cxt = AllocSetContextCreate(TopMemoryContext, "batcher definitions",
								ALLOCSET_DEFAULT_SIZES);
	roles_changed = false;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (batcher_catalog_find(true) == NULL)
	{
		CommitTransactionCommand();
		return false;
	}
	MemoryContextSwitchTo(cxt);
	list = batcher_definition_list();
	MemoryContextSwitchTo(caller);
	batcher_debug_point("definitions-read");
	unserved = adopt_definitions(list, generation);
	remove_dropped(generation);
	if (unserved > 0)			/* there may be room now */
		unserved = adopt_definitions(list, generation);
	report_unserved(unserved);
	/* if there are other definitions by now, their queues may have no entry */
	if (pg_atomic_read_u32(&my_db->surveyed) < restores &&
		pg_atomic_read_u64(&my_db->generation) == generation)
		batcher_survey_spool(my_db, restores);
	batcher_number_refill_early(my_db);
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);

	forget_undefined(cxt);
	if (defs_cxt)
		MemoryContextDelete(defs_cxt);
	defs_cxt = cxt;
	loaded_generation = generation;
	pg_atomic_write_u64(&my_db->loaded, generation);
	if (roles_changed)			/* maybe after we had looked */
		forget_roles((Datum) 0, AUTHOID, 0);
	batcher_shmem_wake_launcher();	/* other identities may have work */
	return true;
}

/*
 * Has a queue that we know no such lane any more, and may the lane go now?
 */
static bool
may_retire(BatcherSharedQueue *queue)
{
	BatcherQueueKey key = queue->key;
	bool		may;

	if (key.lane < pg_atomic_read_u32(&queue->main->nlanes))
		return false;
	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	may = batcher_shmem_queue_locked(key) == queue &&
		pg_atomic_read_u64(&queue->main->defined_at) == loaded_generation &&
		batcher_lane_may_retire(queue, &my_db->generation, loaded_generation);
	LWLockRelease(&batcher_shared->lock);
	return may;
}

/*
 * Take lanes that have become free since the definitions were loaded, or whose
 * owners are too busy, and take dropped queues and lanes away that could not go
 * then.
 */
void
batcher_lanes_look_for_free(bool busy)
{
	BatcherSharedQueue **list;
	int			n;
	bool		found = false;
	static TimestampTz look_at = 0;
	TimestampTz now = batcher_clock_now();
	int			owner;

	/* the launcher wakes us for them; a busy worker need not look each turn */
	if (busy && now < look_at)
		return;
	look_at = batcher_clock_add_ms(now, 1000);
	list = palloc_array(BatcherSharedQueue *, batcher_max_queues);
	n = batcher_shmem_queue_list(MyDatabaseId, list, batcher_max_queues);
	while (n-- > 0)
	{
		BatcherSharedQueue *queue = list[n];

		owner = batcher_lane_owner(&queue->lane);
		if (queue->identity == my_worker->identity &&
			(owner < 0 ? batcher_lane_wants_worker(queue) :
			 !busy && batcher_lane_stuck_at(queue) <= now) &&
			batcher_lane_may_own(queue, my_slot))
			found = true;
		if ((owner < 0 || owner == my_slot) &&
			(pg_atomic_read_u32(&queue->main->dropped) != 0 ||
			 may_retire(queue)))
			found = true;
	}
	if (found)
		loaded_generation = 0;	/* load anew, which does that */
}

/*
 * Have the definitions loaded at the next turn, changed or not.
 */
void
batcher_lanes_reload(void)
{
	loaded_generation = 0;
}

/*
 * Begin, as the worker of this slot, in the database of 'db'.  Once.
 */
void
batcher_lanes_start(int slot, BatcherSharedDatabase *db)
{
	my_slot = slot;
	my_worker = &batcher_shared->workers[slot];
	my_db = db;
	CacheRegisterSyscacheCallback(AUTHOID, forget_roles, (Datum) 0);
}
