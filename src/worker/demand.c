/*
 * demand.c
 *	  Which workers are needed, and how they get a slot.
 *
 * In each turn the launcher computes anew, from shared memory, who needs a
 * worker: databases that nobody has looked into, databases that have the
 * extension and no worker, and lanes in which something waits and that nobody
 * owns, or whose owner is busy with others.  So a wake-up is only a hint, and
 * nothing is forgotten.  What is kept
 * from turn to turn, for each database and role, is since when a worker is
 * needed, so that who waits longest is served first, and how often a worker
 * ended as soon as it was there, so that a permanent error does not become a
 * storm of processes.
 *
 * A worker that cannot be had is tried again by a timer; see shortage.c.  The
 * launcher only.
 */
#include "postgres.h"

#include "base/clock.h"
#include "miscadmin.h"
#include "queue/chunk.h"
#include "utils/hsearch.h"
#include "worker/launcher.h"

/* How many workers look into databases at a time. */
#define MAX_VISITS			2

/* A worker that ends sooner than this has not been of use. */
#define SHORT_LIFE_MS		1000

/* The longest wait before a worker that ends at once is started again. */
#define MAX_BACKOFF_MS		60000

/*
 * Somebody was woken for a lane, or will be ready in a moment: when to see
 * what has become of it.
 */
#define LOOK_AGAIN_MS		10

/* When to try again to have another worker for lanes that wait for theirs. */
#define HELP_RETRY_MS		1000

typedef struct DemandKey
{
	Oid			dboid;
	Oid			identity;
} DemandKey;

/* The need of a worker for one database and role. */
typedef struct Demand
{
	DemandKey	key;			/* hash key, must be first */
	uint64		turn;			/* last turn in which it was needed */
	TimestampTz since;			/* needed without a pause since then */
	bool		waits;			/* something waits: others may have to go */
	bool		extra;			/* only because those that are there are busy */
	bool		visit;			/* to see whether the extension is there */
	int			failures;		/* workers in a row that ended at once */
	TimestampTz not_before;		/* after failures; 0: at once */
} Demand;

static HTAB *demands = NULL;
static uint64 turn_number = 0;

/* The demand of a database and role, made if it is not there. */
static Demand *
enter_demand(Oid dboid, Oid identity)
{
	DemandKey	key;
	Demand	   *demand;
	bool		found;

	if (demands == NULL)
	{
		HASHCTL		ctl;

		memset(&ctl, 0, sizeof(ctl));
		ctl.keysize = sizeof(DemandKey);
		ctl.entrysize = sizeof(Demand);
		ctl.hcxt = batcher_launcher_context;
		demands = hash_create("batcher demands", 64, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	key.dboid = dboid;
	key.identity = identity;
	demand = hash_search(demands, &key, HASH_ENTER, &found);
	if (!found)
	{
		demand->turn = 0;
		demand->since = 0;
		demand->waits = false;
		demand->extra = false;
		demand->visit = false;
		demand->failures = 0;
		demand->not_before = 0;
	}
	return demand;
}

/* A worker is needed. */
static Demand *
need_worker(Oid dboid, Oid identity, bool waits, bool visit)
{
	Demand	   *demand = enter_demand(dboid, identity);

	if (demand->turn != turn_number)
	{
		/* a pause, or a worker was started: it counts from now */
		if (demand->turn != turn_number - 1 || demand->since == 0)
			demand->since = batcher_turn.now;
		demand->turn = turn_number;
		demand->waits = false;
		demand->extra = false;
		demand->visit = false;
	}
	demand->waits |= waits;
	demand->visit |= visit;
	return demand;
}

/* The entry of a database with the extension that can have a worker. */
static bool
database_is_live(BatcherDatabaseKey key)
{
	BatcherKnownDatabase *known = batcher_database_list_find(key.dboid);
	int			i;

	if (known == NULL || !known->connectable)
		return false;
	for (i = 0; i < batcher_turn.nkeys; i++)
	{
		if (batcher_turn.keys[i].dboid == key.dboid &&
			batcher_turn.keys[i].extoid == key.extoid)
			return true;
	}
	return false;
}

/*
 * Has nobody looked through the spool yet, or nobody read the definitions as
 * they are now?  What lanes need may come to light only then: one that was
 * resumed, or has another owner, still looks as it did.
 */
static bool
has_news(BatcherSharedDatabase *db)
{
	return pg_atomic_read_u32(&db->surveyed) !=
		pg_atomic_read_u32(&db->restores) ||
		pg_atomic_read_u64(&db->loaded) != pg_atomic_read_u64(&db->generation);
}

/* What databases need as such. */
static void
collect_databases(void)
{
	const Oid	superusers = InvalidOid;
	List	   *unvisited;
	ListCell   *lc;
	int			i;

	for (i = 0; i < batcher_turn.nkeys; i++)
	{
		BatcherDatabaseKey key = batcher_turn.keys[i];
		BatcherKnownDatabase *known = batcher_database_list_find(key.dboid);
		BatcherSharedDatabase *db = batcher_shmem_database(key, false);

		if (known == NULL || db == NULL)
			continue;
		known->visit_done = known->visit_wanted;
		if (known->connectable && !known->is_template &&
			batcher_turn_find_worker(key, NULL, NULL) < 0)
			(void) need_worker(key.dboid, superusers, has_news(db), false);
	}

	unvisited = batcher_database_list_unvisited();
	foreach(lc, unvisited)
	{
		BatcherKnownDatabase *known = lfirst(lc);
		BatcherDatabaseKey key = {known->dboid, InvalidOid};

		if (batcher_turn_find_worker(key, &superusers, NULL) < 0)
			(void) need_worker(known->dboid, superusers, true, true);
	}
}

/*
 * A lane has something to do, and no owner, or one that is busy with others.
 * Who is ready is woken when the lane is due ('*wake' is set to its slot), and
 * takes it.  If nobody is, another worker is worth it when the lane has waited
 * for long.  A worker that is about to leave does not take it, but its slot
 * will be free soon, so nobody else has to go.
 */
static void
find_help(BatcherSharedQueue *queue, int *wake)
{
	BatcherDatabaseKey key = queue->key.db;
	Oid			identity = queue->identity;
	bool		owned = batcher_lane_owner(&queue->lane) >= 0;
	int			slot = batcher_turn_find_worker(key, &identity, queue);
	BatcherSlotCopy *copy = &batcher_turn.slots[Max(slot, 0)];
	TimestampTz now = batcher_turn.now;
	TimestampTz due = now;
	TimestampTz late_at;
	bool		ready;

	if (slot < 0 || copy->leave)
	{
		(void) need_worker(key.dboid, identity, slot < 0, false);
		return;
	}
	ready = copy->busy_since == 0 && copy->queue_id == 0;
	if (owned)
		due = batcher_lane_stuck_at(queue);
	else if (!ready)
		due = batcher_lane_due(queue, copy->busy_since != 0 ?
							   copy->busy_since : copy->since);
	late_at = batcher_clock_add_ms(batcher_lane_late(queue, due),
								   BATCHER_LONG_TURN_MS);
	if (due > now)
	{
		batcher_turn_look_at(due);
		return;
	}
	*wake = slot;
	if (!ready && now < late_at)
		batcher_turn_look_at(late_at);
	else if (!ready)
	{
		if (batcher_lane_may_own(queue, -1))
			need_worker(key.dboid, identity, true, false)->extra = true;
		batcher_turn_look_at(batcher_clock_add_ms(now, HELP_RETRY_MS));
	}
	else if (owned)
	{
		/* it may have begun with something else at this moment */
		batcher_turn_look_at(batcher_clock_add_ms(now, LOOK_AGAIN_MS));
	}
}

/*
 * What lanes need that nobody looks after.
 *
 * The entries are read without a lock.  One whose queue is just dropped may
 * bring a worker that finds nothing to do, and no more than that.
 */
static void
collect_lanes(void)
{
	BatcherSharedQueue **queues = batcher_turn.queues;
	bool		wake[BATCHER_MAX_WORKERS] = {false};
	int			n = batcher_shmem_queue_list(InvalidOid, queues,
											 batcher_max_queues);
	int			i;

	for (i = 0; i < n; i++)
	{
		BatcherSharedLane *lane = &queues[i]->lane;
		int			owner = batcher_lane_owner(lane);
		int			slot = -1;

		if (owner >= 0 && batcher_turn.slots[owner].busy_since == 0)
			continue;
		/* a lane whose breaker is open is wanted when its time has come */
		if (batcher_queue_breaker_open(queues[i]))
			batcher_turn_look_at(pg_atomic_read_u64(&queues[i]->main->lane.breaker_until));
		if (!batcher_lane_wants_worker(queues[i]) ||
			(owner >= 0 && batcher_lane_stuck_at(queues[i]) == BATCHER_NEVER) ||
			!database_is_live(queues[i]->key.db))
			continue;
		find_help(queues[i], &slot);
		if (slot >= 0)
			wake[slot] = true;
	}
	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		if (wake[i])
			batcher_shmem_wake_proc(batcher_turn.slots[i].proc);
	}
}

/*
 * Find out who needs a worker.  Uses the current memory context.
 */
void
batcher_demand_collect(void)
{
	HASH_SEQ_STATUS status;
	Demand	   *demand;

	turn_number++;
	collect_databases();
	collect_lanes();

	if (demands == NULL)
		return;
	hash_seq_init(&status, demands);
	while ((demand = hash_seq_search(&status)) != NULL)
	{
		if (demand->turn != turn_number &&
			(demand->failures == 0 ||
			 batcher_database_list_find(demand->key.dboid) == NULL))
			(void) hash_search(demands, &demand->key, HASH_REMOVE, NULL);
	}
}

/*
 * The worker of a slot has ended, or never came ('attached' is false); the
 * slot's copy says how.  One that ended at once, though nobody had asked it
 * to leave, is started again only after a while if the one before it did the
 * same.
 */
void
batcher_demand_worker_ended(int slot, bool attached)
{
	BatcherSlotCopy *copy = &batcher_turn.slots[slot];
	BatcherLaunch *launch = &batcher_launches[slot];
	bool		absent = copy->db.extoid == BATCHER_EXTENSION_ABSENT;
	Demand	   *demand;
	double		delay;

	if (absent && launch->visit)
	{
		BatcherKnownDatabase *known =
			batcher_database_list_find(copy->db.dboid);

		if (known)
			known->visit_done = launch->visit_number;
	}

	demand = enter_demand(copy->db.dboid, copy->identity);
	if (copy->leave || copy->terminated || (absent && launch->visit) ||
		(attached && batcher_turn.now >=
		 batcher_clock_add_ms(launch->started_at, SHORT_LIFE_MS)))
	{
		demand->failures = 0;
		demand->not_before = 0;
		return;
	}
	demand->failures++;
	if (demand->failures < 2)
		return;
	delay = 1000.0 * (1 << Min(demand->failures - 2, 6));
	demand->not_before = batcher_clock_add_ms(batcher_turn.now,
											  Min(delay, MAX_BACKOFF_MS));
}

/*
 * Have a worker started.  False if there is no slot for it, or no process: then
 * *no_process is set.
 */
static bool
start_worker(Demand *demand, bool *no_process)
{
	BackgroundWorkerHandle *handle;
	BackgroundWorker worker;
	MemoryContext old;
	BatcherLaunch *launch;
	BatcherSlotCopy *copy;
	uint64		generation;
	bool		registered;
	int			slot;

	slot = batcher_slot_reserve(demand->key.dboid, demand->key.identity,
								&generation);
	if (slot < 0)
		return false;

	StaticAssertStmt(sizeof(generation) <= BGW_EXTRALEN,
					 "generation does not fit bgw_extra");
	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "batcher", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "batcher_worker_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "batcher worker", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "batcher worker", BGW_MAXLEN);
	worker.bgw_main_arg = Int32GetDatum(slot);
	memcpy(worker.bgw_extra, &generation, sizeof(generation));
	worker.bgw_notify_pid = MyProcPid;

	/* the handle is kept until the worker has ended */
	old = MemoryContextSwitchTo(batcher_launcher_context);
	registered = RegisterDynamicBackgroundWorker(&worker, &handle);
	MemoryContextSwitchTo(old);
	if (!registered)
	{
		batcher_slot_release(slot, generation);
		*no_process = true;
		return false;
	}

	launch = &batcher_launches[slot];
	memset(launch, 0, sizeof(*launch));
	launch->generation = generation;
	launch->handle = handle;
	launch->started_at = batcher_turn.now;
	if (demand->visit)
	{
		launch->visit = true;
		launch->visit_number =
			batcher_database_list_find(demand->key.dboid)->visit_wanted;
	}
	copy = &batcher_turn.slots[slot];
	memset(copy, 0, sizeof(*copy));
	copy->state = BATCHER_WORKER_STARTING;
	copy->generation = generation;
	copy->db.dboid = demand->key.dboid;
	copy->identity = demand->key.identity;
	copy->registered_at = copy->since = batcher_turn.now;
	demand->since = 0;
	return true;
}

/*
 * Who has something that waits comes first, and of them who has no worker at
 * all, then who is older.
 */
static int
compare_demands(const ListCell *a, const ListCell *b)
{
	const Demand *x = lfirst(a);
	const Demand *y = lfirst(b);

	if (x->waits != y->waits)
		return x->waits ? -1 : 1;
	if (x->extra != y->extra)
		return x->extra ? 1 : -1;
	if (x->since != y->since)
		return x->since < y->since ? -1 : 1;
	return 0;
}

/* Can this demand be served now?  If time brings it, look again then. */
static bool
demand_is_due(Demand *demand, int nvisits)
{
	int			i;

	for (i = 0; i < batcher_turn.nasides; i++)
	{
		if (batcher_turn.asides[i] == demand->key.dboid)
			return false;
	}
	if (demand->not_before > batcher_turn.now)
	{
		batcher_turn_look_at(demand->not_before);
		return false;
	}
	return !demand->visit || nvisits < MAX_VISITS;
}

/* How many workers are looking whether the extension is there. */
static int
count_visits(void)
{
	int			n = 0;
	int			i;

	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		if (batcher_turn.slots[i].state != BATCHER_WORKER_FREE &&
			batcher_launches[i].visit &&
			!OidIsValid(batcher_turn.slots[i].db.extoid))
			n++;
	}
	return n;
}

/*
 * Start the workers that are needed, as far as there are slots, and make
 * room for the others.  Uses the current memory context.
 */
void
batcher_demand_serve(void)
{
	HASH_SEQ_STATUS status;
	Demand	   *demand;
	List	   *due = NIL;
	ListCell   *lc;
	int			nvisits = count_visits();
	int			nwaiting = 0;
	int			nextra = 0;
	TimestampTz since = batcher_turn.now;
	bool		no_process = false;

	if (demands)
	{
		hash_seq_init(&status, demands);
		while ((demand = hash_seq_search(&status)) != NULL)
		{
			if (demand->turn == turn_number)
				due = lappend(due, demand);
		}
	}
	list_sort(due, compare_demands);

	foreach(lc, due)
	{
		demand = lfirst(lc);
		if (!demand_is_due(demand, nvisits))
			continue;
		if (!no_process && start_worker(demand, &no_process))
		{
			if (demand->visit)
				nvisits++;
		}
		else if (demand->extra)
			nextra++;
		else if (demand->waits)
		{
			nwaiting++;
			since = Min(since, demand->since);
		}
	}

	batcher_shortage_log(nwaiting, since, no_process);
	batcher_shortage_make_room(nwaiting, no_process ? 0 : nextra, no_process);
}
