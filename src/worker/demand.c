/*
 * demand.c
 *	  Which workers are needed, and how they get a slot.
 *
 * In each turn the launcher computes anew, from shared memory, who needs a
 * worker: databases that nobody has looked into, databases that have the
 * extension and no worker, and lanes in which something waits and that nobody
 * owns.  So a wake-up is only a hint, and nothing is forgotten.  What is kept
 * from turn to turn, for each database and role, is since when a worker is
 * needed, so that who waits longest is served first, and how often a worker
 * ended as soon as it was there, so that a permanent error does not become a
 * storm of processes.
 *
 * When all slots are in use, an idle worker is asked to leave; failing that,
 * one that has flushed for a while goes after its flush.  A worker that only
 * keeps a place warm for its database is started in a free slot and never
 * drives another one away.
 *
 * That a worker cannot be had is logged once, and tried again by a timer.
 * The launcher only.
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

/* How long a worker has its slot for itself. */
#define MIN_STAY_MS			1000

/* When to try again without room: if workers of ours may leave, and else. */
#define ROOM_RETRY_MS		1000
#define PROCESS_RETRY_MS	5000

/*
 * After what wait the log says that slots are missing, and how often it says
 * that slots or processes are.
 */
#define NO_SLOT_LOG_AFTER_MS 2000
#define LOG_INTERVAL_MS		60000

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
	bool		visit;			/* to see whether the extension is there */
	int			failures;		/* workers in a row that ended at once */
	TimestampTz not_before;		/* after failures; 0: at once */
} Demand;

static HTAB *demands = NULL;
static uint64 turn_number = 0;

/* What the log has said, so that it is not said again until it is over. */
static bool no_slot_logged = false;
static TimestampTz no_slot_logged_at = 0;
static bool no_process_logged = false;
static TimestampTz no_process_logged_at = 0;

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
		demand->visit = false;
		demand->failures = 0;
		demand->not_before = 0;
	}
	return demand;
}

/* A worker is needed. */
static void
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
		demand->visit = false;
	}
	demand->waits |= waits;
	demand->visit |= visit;
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
	return !pg_atomic_read_u32(&db->surveyed) ||
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
			batcher_turn_find_worker(key, NULL) < 0)
			need_worker(key.dboid, superusers, has_news(db), false);
	}

	unvisited = batcher_database_list_unvisited();
	foreach(lc, unvisited)
	{
		BatcherKnownDatabase *known = lfirst(lc);
		BatcherDatabaseKey key = {known->dboid, InvalidOid};

		if (batcher_turn_find_worker(key, &superusers) < 0)
			need_worker(known->dboid, superusers, true, true);
	}
}

/*
 * What lanes without an owner need.  A worker that is there takes the lane by
 * itself once it is woken; one that is about to leave does not, but its slot
 * will be free soon, so nobody else has to go.
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
		BatcherDatabaseKey key = queues[i]->key.db;
		Oid			identity = queues[i]->identity;
		BatcherSharedLane *lane = &queues[i]->lane;
		int			slot;

		if (pg_atomic_read_u32(&lane->owner) != 0)
			continue;
		/* a lane whose breaker is open is wanted when its time has come */
		if (batcher_lane_breaker_open(lane))
			batcher_turn_look_at(pg_atomic_read_u64(&lane->breaker_until));
		if (!batcher_lane_wants_worker(queues[i]) || !database_is_live(key))
			continue;
		slot = batcher_turn_find_worker(key, &identity);
		if (slot < 0)
			need_worker(key.dboid, identity, true, false);
		else if (batcher_turn.slots[slot].leave)
			need_worker(key.dboid, identity, false, false);
		else
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

/* Is there no other worker of this worker's database? */
static bool
is_last_of_database(int slot)
{
	int			i;

	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		BatcherSlotCopy *copy = &batcher_turn.slots[i];

		if (i != slot && copy->state != BATCHER_WORKER_FREE && !copy->leave &&
			copy->db.dboid == batcher_turn.slots[slot].db.dboid)
			return false;
	}
	return true;
}

/*
 * The worker that can be spared most: one that has long been idle, else one
 * that is not flushing, else one that has flushed for a while, and of equals
 * one that is not alone in its database.  -1 if none can be spared now.
 */
static int
choose_victim(void)
{
	TimestampTz stayed = batcher_clock_add_ms(batcher_turn.now, -MIN_STAY_MS);
	int			best = -1;
	int			best_score = 0;
	int			i;

	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		BatcherSlotCopy *copy = &batcher_turn.slots[i];
		int			score;

		if (copy->state != BATCHER_WORKER_RUNNING || copy->leave)
			continue;
		if (copy->idle_long)
			score = 6;
		else if (copy->registered_at > stayed)
			continue;
		else if (copy->queue_id == 0)
			score = 4;
		else if (copy->since <= stayed)
			score = 2;
		else
			continue;
		if (!is_last_of_database(i))
			score++;
		if (score > best_score ||
			(score == best_score &&
			 copy->since < batcher_turn.slots[best].since))
		{
			best = i;
			best_score = score;
		}
	}
	return best;
}

/*
 * 'nwaiting' demands could not be served: have as many workers leave, and
 * those above batcher.max_workers.  If it was for want of processes, only
 * those that we have ourselves can be freed.
 */
static void
make_room(int nwaiting, bool no_process)
{
	int			used = 0;
	int			leaving = 0;
	int			needed;
	int			victim;
	int			i;

	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		if (batcher_turn.slots[i].state == BATCHER_WORKER_FREE)
			continue;
		used++;
		if (batcher_turn.slots[i].leave)
			leaving++;
	}
	needed = nwaiting - leaving;
	if (!no_process || used > batcher_max_workers)
		needed += used - batcher_max_workers;

	for (; needed > 0 && (victim = choose_victim()) >= 0; needed--)
		batcher_turn_ask_to_leave(victim);

	/* without a worker of ours to leave, only others can end the shortage */
	if (needed > 0 || nwaiting > 0)
		batcher_turn_look_at(batcher_clock_add_ms(batcher_turn.now,
												  used > 0 ? ROOM_RETRY_MS :
												  PROCESS_RETRY_MS));
}

/* Is it time to say this again, that was said at 'logged_at'? */
static bool
may_log(bool logged, TimestampTz logged_at)
{
	return !logged && batcher_turn.now >=
		batcher_clock_add_ms(logged_at, LOG_INTERVAL_MS);
}

/*
 * Say that 'nwaiting' demands, the first of them since 'since', could not be
 * served, unless the log has it already.
 */
static void
log_shortage(int nwaiting, TimestampTz since, bool no_process)
{
	if (nwaiting == 0)
	{
		no_slot_logged = false;
		no_process_logged = false;
	}
	else if (no_process && may_log(no_process_logged, no_process_logged_at))
	{
		ereport(LOG,
				(errmsg("could not start a worker for batcher"),
				 errdetail("All background worker processes are in use."),
				 errhint("Increase \"%s\".", "max_worker_processes")));
		no_process_logged = true;
		no_process_logged_at = batcher_turn.now;
	}
	else if (!no_process && may_log(no_slot_logged, no_slot_logged_at) &&
			 batcher_turn.now >=
			 batcher_clock_add_ms(since, NO_SLOT_LOG_AFTER_MS))
	{
		ereport(LOG,
				(errmsg("no free worker slot for batcher"),
				 errdetail_plural("%d worker cannot be started.",
								  "%d workers cannot be started.",
								  nwaiting, nwaiting),
				 errhint("Increase \"%s\".", "batcher.max_workers")));
		no_slot_logged = true;
		no_slot_logged_at = batcher_turn.now;
	}
}

/* Who has something that waits comes first, then who is older. */
static int
compare_demands(const ListCell *a, const ListCell *b)
{
	const Demand *x = lfirst(a);
	const Demand *y = lfirst(b);

	if (x->waits != y->waits)
		return x->waits ? -1 : 1;
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
		else if (demand->waits)
		{
			nwaiting++;
			since = Min(since, demand->since);
		}
	}

	log_shortage(nwaiting, since, no_process);
	make_room(nwaiting, no_process);
}
