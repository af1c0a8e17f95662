/*
 * owner.c
 *	  Runs the functions of src/queue/owner.c against each other.
 *
 * One process plays two workers and a clock that stands still.  What the owner
 * of a lane does at the very moment at which another worker is about to take
 * the lane over, it does in a function that the latter calls then.  What must
 * hold is told as "ok" or "not ok"; the exit status is 1 if anything did not
 * hold.
 *
 * M3.3 (many producers at once, whatever worker has the queue)
 */
#include "postgres.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/settings.h"
#include "queue/chunk.h"

/* that of the server is in its library */
#undef printf

#include "check.h"

#define OWNER	3
#define OTHER	5
#define NOW		1000000

static BatcherShared shared;
static BatcherSharedQueue queue;

/* What the owner does while another worker looks at the lane. */
static void (*meanwhile) (void) = NULL;

/* What src/queue/owner.c needs of the rest. */
BatcherShared *batcher_shared = &shared;
int			batcher_max_workers = 4;

TimestampTz
batcher_clock_now(void)
{
	return NOW;
}

TimestampTz
batcher_clock_add_ms(TimestampTz t, double ms)
{
	return t + (TimestampTz) (ms * 1000.0);
}

/* The last that is asked before a lane that is due is taken over. */
bool
batcher_queue_breaker_open(BatcherSharedQueue *of)
{
	if (meanwhile)
		meanwhile();
	return false;
}

void
batcher_shmem_wake_proc(uint32 proc)
{
}

void
batcher_shmem_wake_launcher(void)
{
}

/* Only assertions need these. */
bool
LWLockHeldByMeInMode(LWLock *lock, LWLockMode mode)
{
	return true;
}

void
ExceptionalCondition(const char *condition, const char *type,
					 const char *file, int line)
{
	printf("%s:%d: %s\n", file, line, condition);
	abort();
}

/* A flush of the owner that leaves 'nmessages' unsent. */
static bool
flush(int nmessages)
{
	if (!batcher_lane_hold(&queue.lane, OWNER))
		return false;
	(void) pg_atomic_fetch_add_u32(&queue.lane.unsent, nmessages);
	batcher_lane_let_go(&queue.lane);
	return true;
}

static void
flush_with_message(void)
{
	(void) flush(1);
}

static void
flush_often(void)
{
	int			i;

	/* so often that a count of a few bits would be where it was */
	for (i = 0; i < 65536; i++)
		(void) flush(0);
	(void) flush(1);
}

/* A lane with rows that are due, whose owner is busy with others. */
static void
set_up(void)
{
	memset(&shared, 0, sizeof(shared));
	memset(&queue, 0, sizeof(queue));
	queue.main = queue.lanes[0] = &queue;
	pg_atomic_write_u64(&queue.lane.npending, 1);
	pg_atomic_write_u64(&queue.lane.next_flush_at, NOW - 1);
	pg_atomic_write_u64(&shared.workers[OWNER].busy_since, NOW - 1);
	meanwhile = NULL;
	if (!batcher_lane_own(&queue, OWNER))
		check(false, "a lane that nobody has can be owned");
	batcher_lane_let_go(&queue.lane);
}

int
main(void)
{
	set_up();
	check(batcher_lane_owner(&queue.lane) == OWNER, "a lane has its owner");
	check(batcher_lane_own(&queue, OTHER) &&
		  batcher_lane_owner(&queue.lane) == OTHER,
		  "another worker takes it over from one that is busy");
	check(!flush(0), "which finds out");

	set_up();
	check(batcher_lane_hold(&queue.lane, OWNER), "the owner holds the lane");
	check(!batcher_lane_hold(&queue.lane, OWNER), "once at a time");
	check(!batcher_lane_own(&queue, OTHER), "nobody takes it from him then");
	batcher_lane_let_go(&queue.lane);
	check(batcher_lane_owner(&queue.lane) == OWNER, "he stays its owner");

	set_up();
	(void) flush(1);
	check(!batcher_lane_own(&queue, OTHER),
		  "a lane with unsent messages is not taken over");

	set_up();
	meanwhile = flush_with_message;
	check(!batcher_lane_own(&queue, OTHER) &&
		  batcher_lane_owner(&queue.lane) == OWNER,
		  "nor is one that got some while somebody looked");

	set_up();
	meanwhile = flush_often;
	check(!batcher_lane_own(&queue, OTHER),
		  "nor one that was held very often meanwhile");

	printf("%d failed\n", failures);
	return failures != 0;
}
