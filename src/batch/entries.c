/*
 * entries.c
 *	  Looking through the spool for what of a lane is to be read back.
 *
 * What is noted takes 24 bytes a tuple.  Of a spool with more tuples than
 * MAX_ENTRIES the oldest are noted, and the next scan finds the others.  The
 * worker.
 */
#include "postgres.h"

#include "base/debug.h"
#include "batch/entries.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define MAX_ENTRIES		(4 * 1024 * 1024)

/* The largest number of a group; until a look has ended, so far. */
typedef struct Group
{
	uint64		group;			/* hash key */
	uint64		last;
} Group;

static int
compare_entries(const void *a, const void *b)
{
	const BatcherEntry *ea = a;
	const BatcherEntry *eb = b;

	if (ea->order != eb->order)
		return ea->order < eb->order ? -1 : 1;
	return ea->number < eb->number ? -1 : ea->number > eb->number;
}

/* What the scan for one lane is about. */
typedef struct LaneScan
{
	BatcherLaneView *view;
	BatcherEntries *found;
	uint64		home;
	int			max_entries;
	bool		second;			/* the groups are complete by the first look */
	bool		too_many;		/* the first look has met too many to keep */
	BatcherEntry cut;			/* the oldest that was not kept, if partial */
	int64		nrows;
	HTAB	   *groups;			/* NULL: none seen */
} LaneScan;

/* Note that a group has a tuple with this number. */
static void
note_group(LaneScan *scan, uint64 group, uint64 number)
{
	Group	   *entry;
	bool		found;

	if (scan->groups == NULL)
	{
		HASHCTL		ctl;

		memset(&ctl, 0, sizeof(ctl));
		ctl.keysize = sizeof(uint64);
		ctl.entrysize = sizeof(Group);
		ctl.hcxt = scan->found->cxt;
		scan->groups = hash_create("batcher groups", 64, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(scan->groups, &group, HASH_ENTER, &found);
	if (!found || number > entry->last)
		entry->last = number;
}

/* Where a tuple comes that has this group; what is no group is a place. */
static uint64
place_of_group(LaneScan *scan, uint64 group)
{
	Group	   *entry = NULL;

	if (scan->groups)
		entry = hash_search(scan->groups, &group, HASH_FIND, NULL);
	return entry ? entry->last : group;
}

/* Keep the older half of too many entries. */
static void
keep_oldest(LaneScan *scan)
{
	BatcherEntries *found = scan->found;

	qsort(found->list, found->n, sizeof(BatcherEntry), compare_entries);
	found->n = scan->max_entries;
	found->partial = true;
	scan->cut = found->list[found->n];
}

/* Note one tuple. */
static void
add_entry(LaneScan *scan, const BatcherEntry *entry)
{
	BatcherEntries *found = scan->found;

	/* nothing that comes after what is left for the next scan */
	if (found->partial && compare_entries(entry, &scan->cut) > 0)
		return;
	if (found->n == found->allocated)
	{
		found->allocated = found->allocated ? found->allocated * 2 : 1024;
		if (found->list == NULL)
			found->list = MemoryContextAllocHuge(found->cxt, found->allocated *
												 sizeof(BatcherEntry));
		else
			found->list = repalloc_huge(found->list, found->allocated *
										sizeof(BatcherEntry));
	}
	found->list[found->n++] = *entry;
}

static void
visit_entry(HeapTuple tuple, const BatcherSpoolEntry *entry, void *arg)
{
	LaneScan   *scan = arg;
	BatcherLaneView *view = scan->view;
	BatcherEntries *found = scan->found;
	uint64		group = (int64) entry->home < 0 ?
		0 - entry->home : 0;
	BatcherEntry noted;

	/* a lane that there is not, though none should be stored, is another one */
	if (entry->queue_id != view->key.queue_id || entry->home == scan->home ||
		(uint32) entry->lane % view->def->options.lanes != view->key.lane)
		return;
	if (!scan->second && group != 0)
		note_group(scan, group, entry->number);
	if (batcher_grave_is_stuck(view, entry))
		return;
	if (!scan->second)
	{
		scan->nrows += entry->nrows;
		/* which of them are the oldest is known when all groups are */
		if (found->n == 2 * scan->max_entries)
			scan->too_many = true;
		if (scan->too_many)
			return;
	}
	else if (found->n == 2 * scan->max_entries)
		keep_oldest(scan);
	noted.number = entry->number;
	noted.order = group == 0 ? entry->number :
		scan->second ? place_of_group(scan, group) : group;
	noted.tid = entry->tid;
	add_entry(scan, &noted);
}

/* Fill the entries, in order, by one look or two at what a snapshot sees. */
static void
find_entries(LaneScan *scan, Relation spool)
{
	BatcherEntries *found = scan->found;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int			i;

	batcher_spool_scan(spool, snapshot, visit_entry, scan);
	if (!scan->too_many)
	{
		for (i = 0; scan->groups && i < found->n; i++)
			found->list[i].order = place_of_group(scan, found->list[i].order);
	}
	else
	{
		scan->second = true;
		found->n = 0;
		batcher_spool_scan(spool, snapshot, visit_entry, scan);
	}
	UnregisterSnapshot(snapshot);
	qsort(found->list, found->n, sizeof(BatcherEntry), compare_entries);
	if (scan->groups)
		hash_destroy(scan->groups);
}

/*
 * Find the tuples of a lane that have another home than this one, but for those
 * that are passed over; 'found' is empty.  Returns how many rows they have.
 */
int64
batcher_entries_find(BatcherEntries *found, Relation spool,
					 BatcherLaneView *view, uint64 home)
{
	LaneScan	scan = {
		.view = view,
		.found = found,
		.home = home,
		.max_entries = batcher_debug_limit("max-entries", MAX_ENTRIES)
	};

	find_entries(&scan, spool);
	return scan.nrows;
}
