/*
 * patience.c
 *	  A worker that is busy for long lets others take its lanes.
 *
 * A worker cannot look at its other lanes while it flushes one, and may have
 * more to do than it can.  So a timer runs from its first flush on, turn after
 * turn, until it sleeps.  When it fires, the worker's slot says that it is
 * busy, and when its turn began: lanes of it that are due may be taken over
 * then (queue/owner.c), and committers that would wake it wake the launcher
 * too, which finds somebody (demand.c).  Who is done in time pays for the
 * timer only, and a worker with a single lane has none.
 *
 * The server does not take back a timer that is not needed any more; it ends
 * the sleep of a process once.  Therefore this one is not started by a mere look.
 *
 * The handler wakes the launcher only if more than one lane had something to
 * do at the beginning of the turn, or somebody was woken since.  It says that
 * the worker is busy before it looks for that, and committers wake before they
 * look whether it is, so that not both can miss the other.  The worker.
 */
#include "postgres.h"

#include "base/clock.h"
#include "utils/timeout.h"
#include "worker/worker.h"

static BatcherSharedWorker *my_worker = NULL;
static TimeoutId patience_timeout = MAX_TIMEOUTS;
static TimestampTz turn_began = 0;
static uint32 wakeups_before = 0;	/* batcher_shmem_wakeups at that time */
static volatile bool has_others = false;	/* more than one lane */
static volatile bool others_wait = false;

/* The timer has fired.  In a signal handler. */
static void
patience_is_over(void)
{
	if (!has_others)
		return;
	pg_atomic_write_u64(&my_worker->busy_since, turn_began);
	pg_memory_barrier();
	if (others_wait || batcher_shmem_wakeups() != wakeups_before)
		batcher_shmem_wake_launcher();
}

/*
 * Register the timer of the worker of this slot.  Once, after it has
 * connected.
 */
void
batcher_patience_install(int slot)
{
	my_worker = &batcher_shared->workers[slot];
	patience_timeout = RegisterTimeout(USER_TIMEOUT, patience_is_over);
}

/*
 * Something begins that may last: see to it that the timer runs.  An error
 * stops it.
 */
void
batcher_patience_run(void)
{
	if (has_others && !get_timeout_active(patience_timeout) &&
		pg_atomic_read_u64(&my_worker->busy_since) == 0)
		enable_timeout_after(patience_timeout, BATCHER_PATIENCE_MS);
}

/* A turn has ended at 'now'. */
static void
note_turn(TimestampTz now)
{
	if (turn_began != 0 &&
		now >= batcher_clock_add_ms(turn_began, BATCHER_LONG_TURN_MS))
		pg_atomic_write_u64(&my_worker->slow_at, now);
}

/*
 * A turn begins, and all of 'nlanes' lanes are looked at, of which 'nwaiting'
 * have something to do.  'wakeups' is what batcher_shmem_wakeups was before.
 */
void
batcher_patience_begin(int nlanes, int nwaiting, uint32 wakeups)
{
	TimestampTz now = batcher_clock_now();

	note_turn(now);
	turn_began = now;
	wakeups_before = wakeups;
	has_others = nlanes > 1;
	others_wait = nwaiting > 1;
	if (pg_atomic_read_u64(&my_worker->busy_since) != 0)
		pg_atomic_write_u64(&my_worker->busy_since, has_others ? now : 0);
}

/*
 * There is nothing to do for the time being.
 */
void
batcher_patience_end(void)
{
	note_turn(batcher_clock_now());
	turn_began = 0;
	has_others = false;
	disable_timeout(patience_timeout, false);
	pg_atomic_write_u64(&my_worker->busy_since, 0);
}
