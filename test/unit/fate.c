/*
 * fate.c
 *	  Runs the functions of src/queue/fate.c over more tickets than they keep.
 *
 * The shared area is an array of pages.  What is remembered is compared with
 * the list of all that was recorded.  What must hold is told as "ok" or "not
 * ok"; the exit status is 1 if anything did not hold.
 */
#include "postgres.h"

#include <stdio.h>
#include <stdlib.h>

#include "queue/chunk.h"

/* that of the server is in its library */
#undef printf

#include "check.h"

#define KEPT		100000		/* tickets, as the documentation says */
#define PAGE_SIZE	2048
#define AREA_PAGES	1024		/* an eighth of them for fates */
#define MAX_RECORDS	1000000

static BatcherShared shared;
static BatcherSharedQueue queue;
static BatcherSharedQueue lane;
static BatcherSharedQueue other;

static char area[AREA_PAGES][PAGE_SIZE] pg_attribute_aligned(8);
static bool page_used[AREA_PAGES];
static int	pages_left;			/* that are given out before there is no more */

/* What was recorded, in this order. */
static struct
{
	uint64		ticket;
	BatcherFate fate;
}			records[MAX_RECORDS];
static int	nrecords;

/* What src/queue/fate.c needs of the rest. */
BatcherShared *batcher_shared = &shared;

dsa_area *
batcher_shmem_area(void)
{
	return NULL;
}

dsa_pointer
dsa_allocate_extended(dsa_area *of, size_t size, int flags)
{
	int			i;

	if (size != PAGE_SIZE || pages_left == 0)
		return InvalidDsaPointer;
	/* the first place looks like no pointer */
	for (i = 1; i < AREA_PAGES && page_used[i]; i++)
		;
	if (i == AREA_PAGES)
		return InvalidDsaPointer;
	page_used[i] = true;
	pages_left--;
	memset(area[i], 0x7f, PAGE_SIZE);
	return i * PAGE_SIZE;
}

void
dsa_free(dsa_area *of, dsa_pointer p)
{
	if (p % PAGE_SIZE != 0 || !page_used[p / PAGE_SIZE])
		abort();
	page_used[p / PAGE_SIZE] = false;
	pages_left++;
	memset(area[p / PAGE_SIZE], 0x7f, PAGE_SIZE);
}

BatcherSharedQueue *
batcher_shmem_queue_locked(BatcherQueueKey key)
{
	return key.queue_id == queue.key.queue_id ? &queue :
		key.queue_id == other.key.queue_id ? &other : NULL;
}

bool
LWLockAcquire(LWLock *lock, LWLockMode mode)
{
	return true;
}

void
LWLockRelease(LWLock *lock)
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

static uint64
random_below(uint64 n)
{
	static uint64 seed = 1;

	seed = seed * UINT64CONST(6364136223846793005) +
		UINT64CONST(1442695040888963407);
	return (seed >> 33) % n;
}

static void
record_in(BatcherSharedQueue *in, uint64 ticket, BatcherFate fate)
{
	batcher_fate_record(in, ticket, fate);
	records[nrecords].ticket = ticket;
	records[nrecords++].fate = fate;
}

static void
record(uint64 ticket, BatcherFate fate)
{
	record_in(&queue, ticket, fate);
}

static BatcherFate
find(uint64 ticket)
{
	return batcher_fate_find(queue.key, ticket);
}

/* Is it remembered how the n-th last ticket ended? */
static bool
remembers(int n)
{
	return find(records[nrecords - n].ticket) == records[nrecords - n].fate;
}

/* The number of the last tickets that are all remembered. */
static int
count_remembered(void)
{
	int			n = 0;

	while (n < nrecords && remembers(n + 1))
		n++;
	return n;
}

static int
count_pages(void)
{
	int			n = 0;
	int			i;

	for (i = 0; i < AREA_PAGES; i++)
		n += page_used[i];
	return n;
}

static void
set_up(void)
{
	memset(&shared, 0, sizeof(shared));
	memset(&queue, 0, sizeof(queue));
	memset(&lane, 0, sizeof(lane));
	memset(&other, 0, sizeof(other));
	memset(page_used, 0, sizeof(page_used));
	shared.area_base = area[0];
	shared.area_size = sizeof(area);
	queue.key.queue_id = 1;
	queue.main = queue.lanes[0] = &queue;
	lane.main = &queue;
	other.key.queue_id = 2;
	other.main = other.lanes[0] = &other;
	pages_left = AREA_PAGES;
	nrecords = 0;
}

/* Tickets one after the other, as a queue without failures has them. */
static void
check_count(void)
{
	bool		kept = true;
	bool		bounded = true;
	uint64		t;

	set_up();
	for (t = 1; t <= 250000; t++)
	{
		record(t, BATCHER_FATE_FLUSHED);
		kept = kept && remembers(Min(t, KEPT)) && remembers(1);
		bounded = bounded && queue.fates.ntickets <= KEPT + 2 * PAGE_SIZE;
	}
	check(kept, "the last 100,000 tickets are remembered at any time");
	check(bounded, "and not many more");
	check(find(1) == BATCHER_FATE_UNKNOWN &&
		  find(t - KEPT - 2 * PAGE_SIZE) == BATCHER_FATE_UNKNOWN,
		  "older ones are forgotten");
	check(find(0) == BATCHER_FATE_UNKNOWN && find(t) == BATCHER_FATE_UNKNOWN &&
		  find(PG_UINT64_MAX) == BATCHER_FATE_UNKNOWN,
		  "those that were never given are unknown");
	check(count_remembered() == queue.fates.ntickets,
		  "their number is that of what is remembered");
	check(count_pages() <= 60, "they take about a byte each");
	check(pg_atomic_read_u64(&shared.fate_bytes) == count_pages() * PAGE_SIZE &&
		  pg_atomic_read_u64(&shared.area_used) == count_pages() * PAGE_SIZE,
		  "the memory is counted");
	batcher_fate_discard(&queue);
	check(count_pages() == 0 && queue.fates.ntickets == 0 &&
		  pg_atomic_read_u64(&shared.fate_bytes) == 0 &&
		  pg_atomic_read_u64(&shared.area_used) == 0,
		  "and given back with the queue");
	check(find(t - 1) == BATCHER_FATE_UNKNOWN, "which is forgotten then");
}

/* Out of order, with gaps small and large, and with all fates. */
static void
check_any_order(void)
{
	static const BatcherFate fates[] = {
		BATCHER_FATE_FLUSHED, BATCHER_FATE_PURGED, BATCHER_FATE_DEAD,
		BATCHER_FATE_SUPERSEDED
	};
	uint64		base = 0;
	bool		unknown = true;
	int			i;

	set_up();
	while (nrecords < 200000)
	{
		BatcherFate fate = fates[random_below(4)];
		int			n = 500 + random_below(1500);
		int			from = nrecords;

		base += random_below(10) > 0 ? random_below(1000) :
			UINT64CONST(1) << random_below(50);
		/* each is even, and given once */
		for (i = 0; i < n; i++)
			record(base + 2 * (i ^ 5), fate);
		base += 2 * (n + 8);
		if (base % 2 != 0)
			base++;
		unknown = unknown &&
			find(records[from].ticket + 1) == BATCHER_FATE_UNKNOWN;
	}
	i = count_remembered();
	check(i >= KEPT, "tickets in any order, with any fate, are remembered");
	check(unknown, "those between them are unknown");
	check(pg_atomic_read_u64(&shared.fate_bytes) <= sizeof(area) / 8,
		  "in the memory that they may take");
}

/* The fates of a batch are told one after the other. */
static void
check_fates(void)
{
	int			pages;
	uint64		t;

	set_up();
	for (t = 1; t <= 20000; t++)
		record(t, BATCHER_FATE_FLUSHED);
	pages = count_pages();
	batcher_fate_discard(&queue);
	set_up();
	for (t = 1; t <= 20000; t++)
		record(t, BATCHER_FATE_FLUSHED + t % 4);
	check(count_remembered() == 20000, "each ticket has its own fate");
	check(count_pages() == pages, "which take no memory of their own");
}

/* Tickets that are far from each other take more memory than they may. */
static void
check_memory(void)
{
	const int	most = AREA_PAGES / 8;
	const int	in_page = PAGE_SIZE / 10 - 8;	/* 9 bytes for each, or less */
	bool		kept = true;
	bool		bounded = true;
	uint64		far = UINT64CONST(1) << 55;
	int			i;

	set_up();
	for (i = 1; i <= 60000; i++)
	{
		record(i + i % 2 * far, BATCHER_FATE_SUPERSEDED);
		kept = kept && remembers(1) && remembers(Min(i, most * in_page));
		bounded = bounded && count_pages() <= most;
	}
	check(bounded, "fates take no more than an eighth of the memory");
	check(kept && find(2) == BATCHER_FATE_UNKNOWN,
		  "of which the oldest give way");

	/* one queue has it all, another one comes */
	for (i = 1; i <= 30000; i++)
		record_in(&other, i, BATCHER_FATE_PURGED);
	check(batcher_fate_find(other.key, 30000) == BATCHER_FATE_PURGED &&
		  count_pages() <= most + 1,
		  "each queue has a page in any case");
	check(find(60000) == BATCHER_FATE_SUPERSEDED,
		  "and takes none away from another one");

	/* the area is full of rows */
	pages_left = 0;
	for (i = 60001; i <= 61000; i++)
		record(i + i % 2 * far, BATCHER_FATE_FLUSHED);
	check(find(61000) == BATCHER_FATE_FLUSHED,
		  "where there is no room, the place of the oldest is taken");
	batcher_fate_discard(&queue);
	pages_left = 0;
	record(61001, BATCHER_FATE_FLUSHED);
	check(find(61001) == BATCHER_FATE_UNKNOWN,
		  "what finds none is forgotten at once");
	pages_left = 1;
	record(61002, BATCHER_FATE_FLUSHED);
	check(find(61002) == BATCHER_FATE_FLUSHED, "and what comes later is not");
}

/* Of a lane that its queue has no more. */
static void
check_lanes(void)
{
	uint64		t;

	set_up();
	queue.lanes[1] = &lane;
	for (t = 1; t <= 30000; t++)
		record_in(t / 5000 % 2 ? &lane : &queue, t, BATCHER_FATE_FLUSHED);
	check(count_remembered() == 30000, "the tickets of all lanes are found");
	queue.lanes[1] = NULL;
	batcher_fate_hand_over(&lane);
	check(count_remembered() == 30000 && queue.fates.ntickets == 30000 &&
		  lane.fates.ntickets == 0,
		  "also when one of them is gone");
	for (; t <= 110000; t++)
		record(t, BATCHER_FATE_FLUSHED);
	/* a page may have tickets from before and after those of another lane */
	check(count_remembered() >= KEPT - 2 * PAGE_SIZE &&
		  find(1) == BATCHER_FATE_UNKNOWN,
		  "the oldest of both are forgotten first");
	batcher_fate_discard(&queue);
	check(count_pages() == 0, "no page is lost");

	set_up();
	record(7, BATCHER_FATE_DEAD);
	record(8, BATCHER_FATE_FLUSHED);
	record(7, BATCHER_FATE_FLUSHED);
	check(find(7) == BATCHER_FATE_FLUSHED,
		  "of a dead letter that was tried again the end counts");
}

int
main(void)
{
	check_count();
	check_any_order();
	check_fates();
	check_memory();
	check_lanes();
	printf("%d failed\n", failures);
	return failures != 0;
}
