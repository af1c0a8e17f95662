/*
 * slab.c
 *	  Room for chunks, cut from slabs of the shared area.
 *
 * Asking the area for each chunk would cost more than the chunk.  So a
 * backend takes a slab for the time of its transaction, fills it from the
 * front, and parks it for the next transaction of any backend; the parking
 * places are few, so the room that lies in partly filled slabs is bounded
 * however many backends there are.
 *
 * A slab counts who needs it: one for the backend that fills it or its
 * parking place, and one for each chunk that is not yet released.  Whoever
 * takes the last one off frees it.  Only who holds a slab adds to the count,
 * so a holder that finds itself alone may fill the slab anew from the front:
 * in a steady state the area is never asked for anything.
 *
 * Rows larger than a slab get one of their own.  Nothing here raises an
 * error; a full area is reported by NULL.
 *
 * Each queue can have a share of the area, whatever the others hold: a queue
 * that has more than its share is refused what is left when that is no more
 * than the sum of all shares.
 */
#include "postgres.h"

#include "queue/chunk.h"
#include "utils/memutils.h"

typedef struct BatcherSlab
{
	pg_atomic_uint32 refs;		/* the holder, and chunks not released */
	uint32		size;			/* bytes, with this header */
	uint32		fill;			/* bytes in use; the holder's alone */
	uint32		unused;
} BatcherSlab;

#define SLAB_SIZE		8192	/* a size class of dsa.c */
#define SLAB_HEADER		MAXALIGN(sizeof(BatcherSlab))

/*
 * A share is a 128th of the area; where there are many queues, their shares
 * are a quarter of it together.
 */
#define MAX_SHARE_OF(area)		((area) / 128)
#define ALL_SHARES_OF(area)		((area) / 4)

/* The slab that this backend fills in this transaction, or NULL. */
static BatcherSlab *my_slab = NULL;

static void
free_slab(BatcherSlab *slab)
{
	Size		size = slab->size;

	dsa_free(batcher_shmem_area(), batcher_area_pointer(slab));
	(void) pg_atomic_fetch_sub_u64(&batcher_shared->area_used, size);
}

static void
unref_slab(BatcherSlab *slab)
{
	if (pg_atomic_sub_fetch_u32(&slab->refs, 1) == 0)
		free_slab(slab);
}

static BatcherSlab *
allocate_slab(Size size)
{
	dsa_pointer p;
	BatcherSlab *slab;

	p = dsa_allocate_extended(batcher_shmem_area(), size, DSA_ALLOC_NO_OOM);
	if (!DsaPointerIsValid(p))
		return NULL;
	slab = batcher_area_address(p);
	pg_atomic_init_u32(&slab->refs, 1);
	slab->size = size;
	slab->fill = SLAB_HEADER;
	(void) pg_atomic_fetch_add_u64(&batcher_shared->area_used, size);
	return slab;
}

/* This process's parking place. */
static pg_atomic_uint64 *
my_park(void)
{
	return &batcher_shared->parked_slabs[batcher_shmem_place()];
}

/* Take the parked slab, if there is one. */
static BatcherSlab *
unpark_slab(void)
{
	dsa_pointer p;

	if (pg_atomic_read_u64(my_park()) == 0)
		return NULL;
	p = pg_atomic_exchange_u64(my_park(), 0);
	return p ? batcher_area_address(p) : NULL;
}

/*
 * Whether a queue that has 'bytes' of the area is to be refused 'size' bytes
 * more, because the room that is left is needed for the shares of others.
 */
bool
batcher_slab_refuses(uint64 bytes, Size size)
{
	Size		area = batcher_shared->area_size;
	uint64		used = pg_atomic_read_u64(&batcher_shared->area_used) + size;
	Size		share;
	int			n;

	if (used <= area - ALL_SHARES_OF(area))
		return false;
	n = batcher_shmem_queue_count();
	share = Min(MAX_SHARE_OF(area), ALL_SHARES_OF(area) / Max(n, 1));
	return n > 1 && bytes + size > share && used > area - n * share;
}

/*
 * Room for 'size' bytes, aligned to eight, counted as one chunk of its slab;
 * NULL if the area is full.  Not in a commit or abort callback.
 */
void *
batcher_slab_reserve(Size size)
{
	char	   *place;

	size = MAXALIGN(size);
	if (size > SLAB_SIZE - SLAB_HEADER)
	{
		BatcherSlab *slab;

		if (size > MaxAllocSize - SLAB_HEADER)
			return NULL;
		slab = allocate_slab(SLAB_HEADER + size);
		if (slab == NULL)
			return NULL;
		/* the count of its maker goes over to the chunk */
		slab->fill = slab->size;
		return (char *) slab + SLAB_HEADER;
	}

	if (my_slab == NULL)
		my_slab = unpark_slab();
	if (my_slab && pg_atomic_read_u32(&my_slab->refs) == 1)
		my_slab->fill = SLAB_HEADER;
	if (my_slab && my_slab->fill + size > my_slab->size)
	{
		BatcherSlab *full = my_slab;

		my_slab = NULL;
		unref_slab(full);
	}
	if (my_slab == NULL)
		my_slab = allocate_slab(SLAB_SIZE);
	if (my_slab == NULL)
		return NULL;

	place = (char *) my_slab + my_slab->fill;
	my_slab->fill += size;
	(void) pg_atomic_fetch_add_u32(&my_slab->refs, 1);
	return place;
}

/*
 * Add 'size' bytes to what was reserved last and ends at 'end' (up to its
 * alignment); returns 'end', or NULL if that is not the end of what this
 * backend's slab has given out, or if there is no room.
 */
void *
batcher_slab_extend(void *end, Size size)
{
	Size		from;

	if (my_slab == NULL)
		return NULL;
	if ((char *) end <= (char *) my_slab ||
		(char *) end > (char *) my_slab + my_slab->size)
		return NULL;
	from = (char *) end - (char *) my_slab;
	if (MAXALIGN(from) != my_slab->fill ||
		MAXALIGN(from + size) > my_slab->size)
		return NULL;
	my_slab->fill = MAXALIGN(from + size);
	return end;
}

/*
 * Leave this backend's slab to the next transaction.  In a commit or abort
 * callback, and at the end of a process.
 */
void
batcher_slab_end_transaction(void)
{
	BatcherSlab *slab = my_slab;
	uint64		nobody = 0;

	if (slab == NULL)
		return;
	my_slab = NULL;
	if (!pg_atomic_compare_exchange_u64(my_park(), &nobody,
										batcher_area_pointer(slab)))
		unref_slab(slab);
}

/*
 * Release a chunk's room.  The chunk is not to be touched any more.
 */
void
batcher_slab_unref(BatcherChunk *chunk)
{
	Assert(!(chunk->flags & BATCHER_CHUNK_PRIVATE));
	unref_slab((BatcherSlab *) ((char *) chunk - chunk->slab_offset * 8));
}

/*
 * Where a chunk begins within its slab, in units of eight bytes, for a place
 * that batcher_slab_reserve(size) gave.
 */
uint16
batcher_slab_offset(void *place, Size size)
{
	if (MAXALIGN(size) > SLAB_SIZE - SLAB_HEADER)
		return SLAB_HEADER / 8;
	return ((char *) place - (char *) my_slab) / 8;
}
