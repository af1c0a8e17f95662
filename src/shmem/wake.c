/*
 * wake.c
 *	  Wakes the launcher and the workers.
 *
 * A wake-up is the latch of a process.  A wait inside a transaction, for a
 * lock or for a standby, resets it; so wake-ups are counted, too, for those
 * who want to know before they sleep whether they have missed one.  Any
 * process, also in a signal handler.
 */
#include "postgres.h"

#include "shmem/shmem.h"
#include "storage/proc.h"

/* How many of batcher_shared->wakeups are of this process. */
static uint32 my_wakeups = 0;

/*
 * Set the latch of the process with this PGPROC number + 1; 0 is nobody.  A
 * process that is gone, or another in its place, is woken for nothing.
 */
void
batcher_shmem_wake_proc(uint32 proc)
{
	if (proc == 0)
		return;
	(void) pg_atomic_fetch_add_u32(&batcher_shared->wakeups, 1);
	my_wakeups++;
	SetLatch(&ProcGlobal->allProcs[proc - 1].procLatch);
}

/*
 * A number that changes when somebody else wakes anybody.
 */
uint32
batcher_shmem_wakeups(void)
{
	uint32		wakeups = pg_atomic_read_u32(&batcher_shared->wakeups);

	pg_read_barrier();			/* before what they were about is looked at */
	return wakeups - my_wakeups;
}

/*
 * Wake the launcher, if there is one.
 */
void
batcher_shmem_wake_launcher(void)
{
	batcher_shmem_wake_proc(pg_atomic_read_u32(&batcher_shared->launcher_proc));
}

/*
 * Wake all workers, and the launcher.
 */
void
batcher_shmem_wake_all(void)
{
	int			i;

	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
		batcher_shmem_wake_proc(pg_atomic_read_u32(&batcher_shared->workers[i].proc));
	batcher_shmem_wake_launcher();
}
