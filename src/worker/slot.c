/*
 * slot.c
 *	  The places that workers take, one each.
 *
 * The launcher reserves a slot before it has a worker started, and the worker
 * attaches to it: so that there are never more workers than places, and each
 * process knows what every worker is about.  A slot's generation, which grows
 * at each use, tells a worker that comes too late from the one that is meant.
 *
 * A worker owns lanes by the number of its slot.  It attaches before it
 * connects to its database, so that at its end the slot is given back, and
 * its lanes with it, after its last transaction has ended: the next owner of
 * a lane never meets a flush of the one before.
 *
 * A slot that is free again keeps what is said of its last worker, but for
 * what the worker was doing: the launcher learns from it how that one ended.
 *
 * Everything is under the control lock, and what takes longer than a store is
 * done after its release.  Nothing here raises an error but for want of
 * memory, in batcher_slot_attach.  The launcher and the workers.
 */
#include "postgres.h"

#include <signal.h>

#include "base/clock.h"
#include "base/compat.h"
#include "miscadmin.h"
#include "queue/chunk.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "worker/worker.h"

/* The slot of this process, -1: none; changed under the control lock. */
static int	my_slot = -1;

/*
 * Room for a list of all queues, made when this process attaches, because it
 * is needed when the process ends.
 */
static BatcherSharedQueue **queue_list = NULL;

/* A worker came or went: tell who waits for that. */
static void
announce_change(void)
{
	ConditionVariableBroadcast(&batcher_shared->worker_cv);
	batcher_shmem_wake_launcher();
}

/* Make a slot free; the control lock is held. */
static void
free_slot(BatcherSharedWorker *worker)
{
	Assert(LWLockHeldByMeInMode(&batcher_shared->lock, LW_EXCLUSIVE));

	worker->state = BATCHER_WORKER_FREE;
	worker->pid = 0;
	worker->queue_id = 0;
	worker->rows = 0;
	worker->idle_long = false;
	pg_atomic_write_u32(&worker->proc, 0);
	pg_atomic_write_u64(&worker->busy_since, 0);
	pg_atomic_write_u64(&worker->slow_at, 0);
}

/*
 * Give up a lane if this slot owns it, holding it or not; the control lock is
 * held, without which nobody takes a lane over.  'armed' goes
 * first: whoever finds no owner must not believe that somebody will look.
 */
static void
give_up_lane(int slot, BatcherSharedQueue *queue)
{
	BatcherSharedLane *lane = &queue->lane;

	Assert(LWLockHeldByMeInMode(&batcher_shared->lock, LW_EXCLUSIVE));

	if (batcher_lane_owner(lane) != slot)
		return;
	pg_atomic_write_u32(&lane->flushing, 0);
	pg_atomic_write_u32(&lane->armed, 0);
	pg_write_barrier();
	pg_atomic_write_u32(&lane->owner, 0);
}

/*
 * Reserve a slot for a worker of database 'dboid' and role 'identity' that is
 * about to be started.  Returns the slot, and its generation in *generation;
 * -1 if batcher.max_workers slots are in use or the database is set aside.
 * The launcher only.
 */
int
batcher_slot_reserve(Oid dboid, Oid identity, uint64 *generation)
{
	TimestampTz now = batcher_clock_now();
	int			slot = -1;
	int			used = 0;
	int			i;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		if (batcher_shared->workers[i].state != BATCHER_WORKER_FREE)
			used++;
		else if (slot < 0)
			slot = i;
	}
	if (used >= batcher_max_workers || batcher_aside_marked(dboid))
		slot = -1;
	if (slot >= 0)
	{
		BatcherSharedWorker *worker = &batcher_shared->workers[slot];

		worker->state = BATCHER_WORKER_STARTING;
		worker->generation++;
		worker->db.dboid = dboid;
		worker->db.extoid = InvalidOid;
		worker->identity = identity;
		worker->registered_at = now;
		worker->since = now;
		pg_atomic_write_u32(&worker->leave, 0);
		pg_atomic_write_u32(&worker->terminated, 0);
		pg_atomic_write_u32(&worker->must_end, 0);
		*generation = worker->generation;
	}
	LWLockRelease(&batcher_shared->lock);
	return slot;
}

/* This worker ends: give back its lanes and its slot. */
static void
leave_slot(int code, Datum arg)
{
	BatcherSharedWorker *worker;
	int			n;

	if (my_slot < 0)
		return;
	worker = &batcher_shared->workers[my_slot];
	n = batcher_shmem_queue_list(worker->db.dboid, queue_list,
								 batcher_max_queues);

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	while (n-- > 0)
		give_up_lane(my_slot, queue_list[n]);
	free_slot(worker);
	my_slot = -1;
	LWLockRelease(&batcher_shared->lock);
	announce_change();
}

/*
 * Take the slot that was reserved for this process.  To be called once, before
 * the process connects to its database.  False if the slot is not meant for it
 * any more, or its database was set aside meanwhile: it is to exit then.  At
 * the end of the process, however it comes, the slot and its lanes are given
 * back.
 */
bool
batcher_slot_attach(int slot, uint64 generation)
{
	BatcherSharedWorker *worker = &batcher_shared->workers[slot];
	TimestampTz now = batcher_clock_now();
	bool		refused = false;

	Assert(slot >= 0 && slot < BATCHER_MAX_WORKERS);
	Assert(my_slot < 0);

	/* lives as long as the process */
	queue_list = MemoryContextAlloc(TopMemoryContext,
									mul_size(batcher_max_queues,
											 sizeof(BatcherSharedQueue *)));
	before_shmem_exit(leave_slot, (Datum) 0);

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	if (worker->state == BATCHER_WORKER_STARTING &&
		worker->generation == generation)
	{
		if (pg_atomic_read_u32(&worker->leave) ||
			batcher_aside_marked(worker->db.dboid))
		{
			pg_atomic_write_u32(&worker->leave, 1);
			free_slot(worker);
			refused = true;
		}
		else
		{
			worker->state = BATCHER_WORKER_RUNNING;
			worker->pid = MyProcPid;
			worker->registered_at = now;
			worker->since = now;
			pg_atomic_write_u32(&worker->proc, batcher_my_proc_number() + 1);
			my_slot = slot;
		}
	}
	LWLockRelease(&batcher_shared->lock);
	if (refused)
		announce_change();
	return my_slot >= 0;
}

/*
 * Say which extension the worker of this slot has found in its database;
 * InvalidOid if there is none.  Until then the launcher does not know that
 * somebody has looked, and sends another worker when this one ends.
 */
void
batcher_slot_set_extension(int slot, Oid extoid)
{
	Assert(slot == my_slot);

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	batcher_shared->workers[slot].db.extoid =
		OidIsValid(extoid) ? extoid : BATCHER_EXTENSION_ABSENT;
	LWLockRelease(&batcher_shared->lock);
	batcher_shmem_wake_launcher();
}

/*
 * Give back a reserved slot whose worker never attached and never will.  Does
 * nothing if it has attached after all.  The launcher only.
 */
void
batcher_slot_release(int slot, uint64 generation)
{
	BatcherSharedWorker *worker = &batcher_shared->workers[slot];

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	if (worker->state == BATCHER_WORKER_STARTING &&
		worker->generation == generation)
		free_slot(worker);
	LWLockRelease(&batcher_shared->lock);
	ConditionVariableBroadcast(&batcher_shared->worker_cv);
}

/*
 * Say that the worker of this slot flushes 'rows' rows of a queue from now
 * on, or, with NULL, nothing.
 */
void
batcher_slot_report(int slot, BatcherSharedQueue *queue, int rows)
{
	BatcherSharedWorker *worker = &batcher_shared->workers[slot];
	TimestampTz now = batcher_clock_now();

	Assert(slot == my_slot);

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	if (queue)
	{
		worker->queue_id = queue->key.queue_id;
		worker->rows = rows;
		worker->since = now;
		worker->idle_long = false;
	}
	else if (worker->queue_id != 0)
	{
		worker->queue_id = 0;
		worker->rows = 0;
		worker->since = now;
	}
	LWLockRelease(&batcher_shared->lock);
}

/*
 * Say that the worker of this slot has had nothing to do for a while, so that
 * it is the first to make room for others.  A report of a flush ends that.
 */
void
batcher_slot_set_idle_long(int slot)
{
	Assert(slot == my_slot);

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	batcher_shared->workers[slot].idle_long = true;
	LWLockRelease(&batcher_shared->lock);
}

/* May a turn of this worker last long?  The control lock is held. */
static bool
is_slow(BatcherSharedWorker *worker, TimestampTz now)
{
	TimestampTz slow_at = pg_atomic_read_u64(&worker->slow_at);

	return (worker->queue_id != 0 &&
			now >= batcher_clock_add_ms(worker->since, BATCHER_LONG_TURN_MS)) ||
		(slow_at != 0 &&
		 now < batcher_clock_add_ms(slow_at, BATCHER_IDLE_LONG_MS));
}

/*
 * The worker of this slot has nothing to do and would rather leave.  True if
 * it may, because another worker of its database stays; 'leave' is set then.
 * Of two that ask at the same time, one stays.  '*later' says that it may ask
 * again in a while: now its lanes, if it has any, would go to a worker that was
 * slow lately.
 */
bool
batcher_slot_retire(int slot, bool has_lanes, bool *later)
{
	BatcherSharedWorker *worker = &batcher_shared->workers[slot];
	TimestampTz now = batcher_clock_now();
	bool		other = false;
	int			i;

	Assert(slot == my_slot);

	*later = false;
	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		BatcherSharedWorker *w = &batcher_shared->workers[i];

		if (i == slot || w->state != BATCHER_WORKER_RUNNING ||
			w->db.dboid != worker->db.dboid ||
			w->db.extoid != worker->db.extoid ||
			pg_atomic_read_u32(&w->leave))
			continue;
		other = true;
		if (has_lanes && w->identity == worker->identity && is_slow(w, now))
			*later = true;
	}
	other = other && !*later;
	if (other)
		pg_atomic_write_u32(&worker->leave, 1);
	LWLockRelease(&batcher_shared->lock);
	return other;
}

/*
 * Take the lane with this key, if nobody has it, or its owner is too busy for
 * it, and its database is not set aside.  If so it is held, too.  NULL if not,
 * or if there is none any more.
 */
BatcherSharedQueue *
batcher_slot_own_lane(int slot, BatcherQueueKey key)
{
	BatcherSharedQueue *queue;

	Assert(slot == my_slot);

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	queue = batcher_shmem_queue_locked(key);
	if (queue && (batcher_aside_marked(key.db.dboid) ||
				  !batcher_lane_own(queue, slot)))
		queue = NULL;
	LWLockRelease(&batcher_shared->lock);
	return queue;
}

/*
 * Give a lane up.  If something waits in it, the launcher finds another
 * worker.
 */
void
batcher_slot_disown_lane(int slot, BatcherSharedQueue *queue)
{
	Assert(slot == my_slot);

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	give_up_lane(slot, queue);
	LWLockRelease(&batcher_shared->lock);

	/* A committer that still saw the owner woke this process only. */
	pg_memory_barrier();
	if (batcher_lane_wants_worker(queue))
		batcher_shmem_wake_launcher();
}

/*
 * Copy all slots, as they are at one moment.  'copies' has room for
 * BATCHER_MAX_WORKERS.  Any process.
 */
void
batcher_slot_copy(BatcherSlotCopy *copies)
{
	int			i;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		BatcherSharedWorker *worker = &batcher_shared->workers[i];
		BatcherSlotCopy *copy = &copies[i];

		copy->state = worker->state;
		copy->generation = worker->generation;
		copy->db = worker->db;
		copy->identity = worker->identity;
		copy->pid = worker->pid;
		copy->registered_at = worker->registered_at;
		copy->since = worker->since;
		copy->queue_id = worker->queue_id;
		copy->rows = worker->rows;
		copy->idle_long = worker->idle_long;
		copy->proc = pg_atomic_read_u32(&worker->proc);
		copy->leave = pg_atomic_read_u32(&worker->leave) != 0;
		copy->terminated = pg_atomic_read_u32(&worker->terminated) != 0;
		copy->busy_since = pg_atomic_read_u64(&worker->busy_since);
	}
	LWLockRelease(&batcher_shared->lock);
}

/*
 * Ask the worker of a slot to step aside, if it is still that of
 * 'generation'.  The launcher only.
 */
void
batcher_slot_ask_to_leave(int slot, uint64 generation)
{
	BatcherSharedWorker *worker = &batcher_shared->workers[slot];
	uint32		proc = 0;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	if (worker->state != BATCHER_WORKER_FREE &&
		worker->generation == generation)
	{
		pg_atomic_write_u32(&worker->leave, 1);
		proc = pg_atomic_read_u32(&worker->proc);
	}
	LWLockRelease(&batcher_shared->lock);
	batcher_shmem_wake_proc(proc);
}

/*
 * Send a signal to the running worker of a slot, if it is still that of
 * 'generation'.  The launcher only.
 */
void
batcher_slot_signal(int slot, uint64 generation, int signo)
{
	BatcherSharedWorker *worker = &batcher_shared->workers[slot];
	pid_t		pid = 0;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	if (worker->state == BATCHER_WORKER_RUNNING &&
		worker->generation == generation)
	{
		pid = worker->pid;
		if (signo == SIGTERM)
			pg_atomic_write_u32(&worker->must_end, 1);
	}
	LWLockRelease(&batcher_shared->lock);

	/* if it has just ended, the signal finds nobody */
	if (pid != 0)
		(void) kill(pid, signo);
}
