/*
 * fate.c
 *	  What became of a queue's settled tickets, for batch_wait.
 *
 * The last 100,000 tickets of a lane, and those that share a page with the
 * oldest of them, are kept in pages of the shared area, as differences from
 * one ticket to the next in as few bytes as they need: one or two each, where
 * tickets leave about in the order in which they were given.  All pages of all
 * queues together take at most an eighth of the area, but for one page that
 * each lane has in any case; a lane that may not take another page forgets its
 * oldest.  Protected by lane.lock; nothing here raises an error.
 *
 * The first byte of a difference has the fate, and the lowest bits of the
 * difference, whose sign is folded into the lowest; seven bits more are in each
 * byte that follows one whose highest bit is set.
 */
#include "postgres.h"

#include "queue/chunk.h"

#define FATES_KEPT		100000	/* tickets of one lane */
#define FATE_PAGE_SIZE	2048	/* a size class of dsa.c */
#define DIFF_MAX		10		/* bytes that a difference takes at most */
#define FATE_FIRST		BATCHER_FATE_FLUSHED	/* of four: two bits tell */
#define FIRST_BITS		5		/* of a difference in its first byte */

typedef struct FatePage
{
	dsa_pointer newer;
	uint64		smallest;
	uint64		largest;
	uint64		last;			/* the ticket recorded last */
	uint16		ntickets;
	uint16		used;			/* bytes of 'diffs' */
	uint8		diffs[FLEXIBLE_ARRAY_MEMBER];
} FatePage;

#define PAGE_ROOM		(FATE_PAGE_SIZE - offsetof(FatePage, diffs))

/* A signed difference as an unsigned number that is small if it is small. */
static inline uint64
fold_sign(int64 diff)
{
	return ((uint64) diff << 1) ^ (uint64) (diff >> 63);
}

static inline int64
unfold_sign(uint64 folded)
{
	return (int64) (folded >> 1) ^ -(int64) (folded & 1);
}

static void
free_oldest(BatcherSharedQueue *queue)
{
	BatcherSharedFates *fates = &queue->fates;
	dsa_pointer p = fates->oldest;
	FatePage   *page = batcher_area_address(p);

	fates->ntickets -= page->ntickets;
	fates->oldest = page->newer;
	if (!DsaPointerIsValid(fates->oldest))
		fates->newest = InvalidDsaPointer;
	dsa_free(batcher_shmem_area(), p);
	(void) pg_atomic_fetch_sub_u64(&batcher_shared->area_used, FATE_PAGE_SIZE);
	(void) pg_atomic_fetch_sub_u64(&batcher_shared->fate_bytes, FATE_PAGE_SIZE);
}

/* Are there enough tickets without those of the oldest page? */
static bool
is_superfluous(const BatcherSharedFates *fates)
{
	const FatePage *page = batcher_area_address(fates->oldest);

	return fates->ntickets - page->ntickets >= FATES_KEPT;
}

/* A new page at the end, or NULL. */
static FatePage *
add_page(BatcherSharedQueue *queue)
{
	BatcherSharedFates *fates = &queue->fates;
	dsa_pointer p;
	FatePage   *page;

	while (DsaPointerIsValid(fates->oldest) &&
		   (is_superfluous(fates) ||
			pg_atomic_read_u64(&batcher_shared->fate_bytes) + FATE_PAGE_SIZE >
			batcher_shared->area_size / 8))
		free_oldest(queue);

	p = dsa_allocate_extended(batcher_shmem_area(), FATE_PAGE_SIZE,
							  DSA_ALLOC_NO_OOM);
	if (!DsaPointerIsValid(p))
		return NULL;
	(void) pg_atomic_fetch_add_u64(&batcher_shared->area_used, FATE_PAGE_SIZE);
	(void) pg_atomic_fetch_add_u64(&batcher_shared->fate_bytes, FATE_PAGE_SIZE);
	page = batcher_area_address(p);
	memset(page, 0, offsetof(FatePage, diffs));
	page->smallest = PG_UINT64_MAX;
	if (DsaPointerIsValid(fates->newest))
		((FatePage *) batcher_area_address(fates->newest))->newer = p;
	else
		fates->oldest = p;
	fates->newest = p;
	return page;
}

/*
 * Remember how the row with this ticket ended.  lane.lock is held
 * exclusively.  If there is no room it is forgotten at once.
 */
void
batcher_fate_record(BatcherSharedQueue *queue, uint64 ticket,
					BatcherFate fate)
{
	BatcherSharedFates *fates = &queue->fates;
	FatePage   *page = NULL;
	uint64		diff;
	uint8		byte;

	Assert(fate >= FATE_FIRST && fate < FATE_FIRST + 4);
	Assert(LWLockHeldByMeInMode(&queue->lane.lock, LW_EXCLUSIVE));
	if (DsaPointerIsValid(fates->newest))
		page = batcher_area_address(fates->newest);
	if (page == NULL || page->used + DIFF_MAX > PAGE_ROOM)
		page = add_page(queue);
	if (page == NULL)
		return;

	diff = fold_sign((int64) (ticket - page->last));
	byte = (uint8) ((fate - FATE_FIRST) << FIRST_BITS |
					(diff & ((1 << FIRST_BITS) - 1)));
	for (diff >>= FIRST_BITS; diff != 0; diff >>= 7)
	{
		page->diffs[page->used++] = byte | 0x80;
		byte = diff & 0x7F;
	}
	page->diffs[page->used++] = byte;
	page->last = ticket;
	page->smallest = Min(page->smallest, ticket);
	page->largest = Max(page->largest, ticket);
	page->ntickets++;
	fates->ntickets++;
}

/*
 * How the row with this ticket ended, if the page tells, else 'fate'.  A dead
 * letter that was tried again is there twice: its end counts.
 */
static BatcherFate
find_in_page(const FatePage *page, uint64 ticket, BatcherFate fate)
{
	uint64		at = 0;
	int			i = 0;

	if (ticket < page->smallest || ticket > page->largest)
		return fate;
	while (i < page->used)
	{
		uint8		first = page->diffs[i];
		uint64		folded = first & ((1 << FIRST_BITS) - 1);
		int			shift = FIRST_BITS;

		for (; page->diffs[i++] & 0x80; shift += 7)
			folded |= (uint64) (page->diffs[i] & 0x7F) << shift;
		at += (uint64) unfold_sign(folded);
		if (at == ticket &&
			(fate == BATCHER_FATE_UNKNOWN || fate == BATCHER_FATE_DEAD))
			fate = FATE_FIRST + ((first & 0x7F) >> FIRST_BITS);
	}
	return fate;
}

/* How the row with this ticket ended, as far as its lane remembers it. */
static BatcherFate
find_in_lane(BatcherSharedQueue *queue, uint64 ticket)
{
	BatcherFate fate = BATCHER_FATE_UNKNOWN;
	dsa_pointer p;

	LWLockAcquire(&queue->lane.lock, LW_SHARED);
	for (p = queue->fates.oldest; DsaPointerIsValid(p);)
	{
		FatePage   *page = batcher_area_address(p);

		fate = find_in_page(page, ticket, fate);
		p = page->newer;
	}
	LWLockRelease(&queue->lane.lock);
	return fate;
}

/*
 * How the row with this ticket ended, as far as it is remembered; 'key' is that
 * of its queue, which may be gone.  Takes the control lock, as a lane may be taken
 * away, and lane.lock of one lane after the other.
 */
BatcherFate
batcher_fate_find(BatcherQueueKey key, uint64 ticket)
{
	BatcherFate fate = BATCHER_FATE_UNKNOWN;
	BatcherSharedQueue *queue;
	BatcherSharedQueue *entry;
	int			i;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	queue = batcher_shmem_queue_locked(key);
	if (queue == NULL)
	{
		LWLockRelease(&batcher_shared->lock);
		return fate;
	}
	batcher_foreach_lane(entry, i, queue)
	{
		BatcherFate found = find_in_lane(entry, ticket);

		if (found != BATCHER_FATE_UNKNOWN)
			fate = found;
		/* a dead letter may have been tried again in another lane */
		if (fate != BATCHER_FATE_UNKNOWN && fate != BATCHER_FATE_DEAD)
			break;
	}
	LWLockRelease(&batcher_shared->lock);
	return fate;
}

/*
 * Merge two lists of pages by the tickets that they begin with, so that the
 * older rows are forgotten first.
 */
static void
merge_pages(BatcherSharedFates *fates, const BatcherSharedFates *more)
{
	dsa_pointer p = fates->oldest;
	dsa_pointer q = more->oldest;
	dsa_pointer *link = &fates->oldest;

	while (DsaPointerIsValid(p) || DsaPointerIsValid(q))
	{
		FatePage   *a = DsaPointerIsValid(p) ? batcher_area_address(p) : NULL;
		FatePage   *b = DsaPointerIsValid(q) ? batcher_area_address(q) : NULL;

		if (b == NULL || (a && a->smallest <= b->smallest))
		{
			*link = fates->newest = p;
			link = &a->newer;
			p = a->newer;
		}
		else
		{
			*link = fates->newest = q;
			link = &b->newer;
			q = b->newer;
		}
	}
	fates->ntickets += more->ntickets;
}

/*
 * Hand what a lane remembers to the main entry.  The control lock is held
 * exclusively, so that nobody looks meanwhile; takes both lanes' locks, one
 * after the other.  The area is attached.
 */
void
batcher_fate_hand_over(BatcherSharedQueue *queue)
{
	BatcherSharedQueue *main = queue->main;
	BatcherSharedFates fates;

	Assert(LWLockHeldByMeInMode(&batcher_shared->lock, LW_EXCLUSIVE));
	LWLockAcquire(&queue->lane.lock, LW_EXCLUSIVE);
	fates = queue->fates;
	memset(&queue->fates, 0, sizeof(queue->fates));
	LWLockRelease(&queue->lane.lock);
	LWLockAcquire(&main->lane.lock, LW_EXCLUSIVE);
	merge_pages(&main->fates, &fates);
	LWLockRelease(&main->lane.lock);
}

/*
 * Forget all of a queue.  lane.lock is held exclusively.
 */
void
batcher_fate_discard(BatcherSharedQueue *queue)
{
	while (DsaPointerIsValid(queue->fates.oldest))
		free_oldest(queue);
}
