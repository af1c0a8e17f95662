/*
 * shmem.c
 *	  Lays out batcher's shared memory.
 *
 * Everything is requested and made in the postmaster, from the hooks that
 * 15 has for it; no other file calls ShmemInitStruct or ShmemInitHash.  After
 * a crash of any process the server makes it all anew, which is why nothing
 * here is trusted to outlive a crash: the spool is the truth.
 */
#include "postgres.h"

#include "base/compat.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "shmem/shmem.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"

BatcherShared *batcher_shared = NULL;
int			batcher_tranche_lane = 0;
bool		batcher_in_flush = false;
bool		batcher_flush_refused = false;

static int	tranche_area = 0;
static dsa_area *area = NULL;

static void (*load_at_startup) (void) = NULL;
static void (*save_at_exit) (void) = NULL;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

/* Bytes of the area; a multiple of a page, and never too small for DSA. */
static Size
area_size(void)
{
	return mul_size((Size) batcher_shared_memory_size, 1024 * 1024);
}

/* What batcher needs; used by the request and, by its parts, by the init. */
static Size
shmem_size(void)
{
	Size		size;

	size = MAXALIGN(sizeof(BatcherShared));
	size = add_size(size, batcher_shmem_registry_size());
	size = add_size(size, batcher_shmem_channels_size());
	return add_size(size, MAXALIGN(area_size()));
}

static void
request_shmem(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(shmem_size());
	RequestNamedLWLockTranche("Batcher", 1);
	RequestNamedLWLockTranche("BatcherLane", 1);
	RequestNamedLWLockTranche("BatcherArea", 1);
}

/* Fill the root; nobody else exists yet. */
static void
init_root(void *place)
{
	dsa_area   *made;
	dsa_pointer probe;
	MemoryContext old;
	int			i;

	memset(batcher_shared, 0, sizeof(BatcherShared));
	LWLockInitialize(&batcher_shared->lock,
					 GetNamedLWLockTranche("Batcher")->lock.tranche);
	do
	{
		if (!pg_strong_random(&batcher_shared->incarnation, sizeof(uint64)))
			batcher_shared->incarnation = pg_prng_uint64(&pg_global_prng_state);
		/* it is a bigint in the spool, and its low bits are the version */
		batcher_shared->incarnation &= UINT64CONST(0x7FFFFFFFFFFF0000);
	} while (batcher_shared->incarnation == 0);
	batcher_shared->after_crash = true; /* until a file of a clean stop tells */

	batcher_shared->area = place;
	batcher_shared->area_size = area_size();
	/* children inherit the handle: not in the postmaster's own context */
	old = MemoryContextSwitchTo(TopMemoryContext);
	made = dsa_create_in_place(place, area_size(), tranche_area, NULL);
	MemoryContextSwitchTo(old);
	dsa_pin(made);
	dsa_set_size_limit(made, area_size());

	/* With one segment only, every address is this base and the pointer. */
	probe = dsa_allocate(made, 8);
	batcher_shared->area_base = (char *) dsa_get_address(made, probe) - probe;
	dsa_free(made, probe);
	area = made;

	pg_atomic_init_u64(&batcher_shared->area_used, 0);
	pg_atomic_init_u64(&batcher_shared->fate_bytes, 0);
	pg_atomic_init_u32(&batcher_shared->launcher_proc, 0);
	pg_atomic_init_u32(&batcher_shared->wakeups, 0);
	pg_atomic_init_u32(&batcher_shared->scan_wanted, 1);
	pg_atomic_init_u32(&batcher_shared->stopping, 0);
	ConditionVariableInit(&batcher_shared->room_cv);
	ConditionVariableInit(&batcher_shared->worker_cv);
	for (i = 0; i < BATCHER_SETTLED_CVS; i++)
		ConditionVariableInit(&batcher_shared->settled_cv[i]);
	for (i = 0; i < BATCHER_SLAB_PARKS; i++)
	{
		pg_atomic_init_u64(&batcher_shared->parked_slabs[i], 0);
		pg_atomic_init_u64(&batcher_shared->volatile_rows[i], 0);
	}
	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		pg_atomic_init_u32(&batcher_shared->workers[i].proc, 0);
		pg_atomic_init_u32(&batcher_shared->workers[i].leave, 0);
		pg_atomic_init_u32(&batcher_shared->workers[i].terminated, 0);
		pg_atomic_init_u32(&batcher_shared->workers[i].must_end, 0);
		pg_atomic_init_u64(&batcher_shared->workers[i].busy_since, 0);
		pg_atomic_init_u64(&batcher_shared->workers[i].slow_at, 0);
	}
}

/*
 * The postmaster ends, or makes shared memory anew after a crash; it is the
 * last process that sees this memory.
 */
static void
save_on_exit(int code, Datum arg)
{
	if (code == 0 && save_at_exit)
		save_at_exit();
	else
		batcher_shmem_report_lost();
}

static void
startup_shmem(void)
{
	bool		found;
	void	   *place;
	bool		found_area;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	tranche_area = GetNamedLWLockTranche("BatcherArea")->lock.tranche;
	batcher_tranche_lane = GetNamedLWLockTranche("BatcherLane")->lock.tranche;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);

	batcher_shared = ShmemInitStruct("batcher", sizeof(BatcherShared), &found);
	place = ShmemInitStruct("batcher area", area_size(), &found_area);

	batcher_shmem_registry_init();
	batcher_shmem_channels_init();

	if (!found)
		init_root(place);
	LWLockRelease(AddinShmemInitLock);

	if (!IsUnderPostmaster)
	{
		on_shmem_exit(save_on_exit, (Datum) 0);
		if (load_at_startup)
			load_at_startup();
	}
}

/*
 * Install the hooks that request and make the shared memory.  From _PG_init,
 * while shared_preload_libraries is processed.
 */
void
batcher_shmem_install(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shmem;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}

/*
 * Name what is to be called in the postmaster when the shared memory has been
 * made, and when the postmaster ends in good order.  From _PG_init.
 */
void
batcher_shmem_at_startup(void (*load) (void), void (*save) (void))
{
	load_at_startup = load;
	save_at_exit = save;
}

/*
 * Make a hash table of 'n' entries at most, whose keys are bytes at their
 * beginning, or find it.  AddinShmemInitLock is held.
 */
HTAB *
batcher_shmem_hash(const char *name, long n, Size keysize, Size entrysize)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = keysize;
	ctl.entrysize = entrysize;
	return ShmemInitHash(name, n, n, &ctl,
						 HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
}

/*
 * Raise an error unless the library is preloaded.
 */
void
batcher_shmem_require(void)
{
	if (batcher_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("batcher is not loaded at server start"),
				 errhint("Add \"batcher\" to \"%s\" and restart the server.",
						 "shared_preload_libraries")));
}

/*
 * The area of the rows, attached for the life of this process.  The first
 * call of a process allocates: never make it in a commit or abort callback.
 */
dsa_area *
batcher_shmem_area(void)
{
	if (area == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		area = dsa_attach_in_place(batcher_shared->area, NULL);
		dsa_pin_mapping(area);
		on_shmem_exit(dsa_on_shmem_exit_release_in_place,
					  PointerGetDatum(batcher_shared->area));
		MemoryContextSwitchTo(old);
	}
	return area;
}

/*
 * This process's place in what is kept in BATCHER_SLAB_PARKS places.  (The
 * postmaster, at its start, has no PGPROC.)
 */
int
batcher_shmem_place(void)
{
	return MyProc ? batcher_my_proc_number() % BATCHER_SLAB_PARKS : 0;
}

/*
 * Count rows of non-durable queues that have been committed, or, negative,
 * that have been settled.  In several places, so that committers do not meet
 * in one.
 */
void
batcher_shmem_add_volatile(int64 nrows)
{
	(void) pg_atomic_fetch_add_u64(&batcher_shared->volatile_rows[batcher_shmem_place()],
								   nrows);
}

/*
 * Log how many rows of non-durable queues are lost with this memory.  In the
 * postmaster, perhaps after a crash: looks at counters only.
 */
void
batcher_shmem_report_lost(void)
{
	int64		lost = 0;
	int			i;

	for (i = 0; i < BATCHER_SLAB_PARKS; i++)
		lost += (int64) pg_atomic_read_u64(&batcher_shared->volatile_rows[i]);
	if (lost > 0)
		ereport(LOG,
				(errmsg_plural("%lld row of non-durable queues is lost",
							   "%lld rows of non-durable queues are lost",
							   (unsigned long) lost, (long long) lost)));
}
