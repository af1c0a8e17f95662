/*
 * shortage.c
 *	  What the launcher does when there are not enough workers for all.
 *
 * When all slots are in use, an idle worker is asked to leave; failing that,
 * one that has flushed for a while goes after its flush.  A worker that only
 * keeps a place warm for its database is started in a free slot and never
 * drives another one away; one that comes to the help of others of its kind
 * drives away only who has long been idle and is not alone in its database.
 *
 * That a worker cannot be had is logged once, until it is over.  The launcher
 * only.
 */
#include "postgres.h"

#include "base/clock.h"
#include "worker/launcher.h"

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

/* What the log has said, so that it is not said again until it is over. */
static bool no_slot_logged = false;
static TimestampTz no_slot_logged_at = 0;
static bool no_process_logged = false;
static TimestampTz no_process_logged_at = 0;

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
 * one that is not alone in its database.  With 'only_idle' only one that has
 * long been idle and is not alone.  -1 if none can be spared now.
 */
static int
choose_victim(bool only_idle)
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
		if (only_idle && score < 7)
			continue;
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
 * 'nwaiting' demands could not be served, and 'nextra' of workers that are to help
 * others: have as many workers leave, and those above
 * batcher.max_workers.  If it was for want of processes, only those that we
 * have ourselves can be freed.
 */
void
batcher_shortage_make_room(int nwaiting, int nextra, bool no_process)
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

	for (; needed > 0 && (victim = choose_victim(false)) >= 0; needed--)
		batcher_turn_ask_to_leave(victim);
	for (nextra -= leaving;
		 nextra > 0 && (victim = choose_victim(true)) >= 0; nextra--)
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
void
batcher_shortage_log(int nwaiting, TimestampTz since, bool no_process)
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
