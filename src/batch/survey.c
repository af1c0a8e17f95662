/*
 * survey.c
 *	  The first look of a worker at the spool.
 */
#include "postgres.h"

#include "access/table.h"
#include "batch/batch.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"

/* What it is about. */
typedef struct Survey
{
	uint64		home;
	Oid			extoid;			/* queues of another may not be gone yet */
	int			nqueues;
	BatcherSharedQueue **queues;
	uint64	   *seen;
	int64	   *nrows;
} Survey;

static void
visit_survey(HeapTuple tuple, const BatcherSpoolEntry *entry, void *arg)
{
	Survey	   *survey = arg;
	int			i;

	if (entry->home == survey->home)
		return;
	for (i = 0; i < survey->nqueues; i++)
	{
		BatcherQueueKey *key = &survey->queues[i]->key;
		uint32		nlanes = pg_atomic_read_u32(&survey->queues[i]->main->nlanes);

		if (key->queue_id == entry->queue_id &&
			key->db.extoid == survey->extoid &&
			(uint32) entry->lane % nlanes == key->lane)
		{
			survey->nrows[i] += entry->nrows;
			break;
		}
	}
}

/*
 * Look once through the spool after a start, or when rows were restored, so
 * that the queues that have nothing there need no reading, and the launcher
 * knows the others.  'restores' is db.restores before the definitions were read
 * from which every queue has its shared entry.  In a transaction.
 */
void
batcher_survey_spool(BatcherSharedDatabase *db, uint32 restores)
{
	uint32		surveyed = pg_atomic_read_u32(&db->surveyed);
	Survey		survey;
	Relation	spool = batcher_spool_open(AccessShareLock);
	Snapshot	snapshot;
	uint32		version;
	int			i;

	(void) batcher_spool_version(db, spool, &version);
	survey.home = batcher_spool_home(version);
	survey.extoid = db->key.extoid;
	survey.queues = palloc_array(BatcherSharedQueue *, batcher_max_queues);
	survey.nqueues = batcher_shmem_queue_list(MyDatabaseId, survey.queues,
											  batcher_max_queues);
	survey.seen = palloc_array(uint64, survey.nqueues);
	survey.nrows = palloc0_array(int64, survey.nqueues);
	for (i = 0; i < survey.nqueues; i++)
		survey.seen[i] = pg_atomic_read_u64(&survey.queues[i]->lane.spill);

	snapshot = RegisterSnapshot(GetLatestSnapshot());
	batcher_spool_scan(spool, snapshot, visit_survey, &survey);
	UnregisterSnapshot(snapshot);
	for (i = 0; i < survey.nqueues; i++)
	{
		BatcherSharedLane *lane = &survey.queues[i]->lane;

		if (!(survey.seen[i] & BATCHER_SPILL_UNKNOWN))
			continue;
		pg_atomic_write_u64(&lane->nspilled, survey.nrows[i]);
		if (survey.nrows[i] > 0 ||
			!batcher_lane_spill_clear(lane, survey.seen[i]))
			batcher_lane_spill_known(lane, db, restores);
	}
	table_close(spool, AccessShareLock);
	/* another worker may know of more */
	while (surveyed < restores &&
		   !pg_atomic_compare_exchange_u32(&db->surveyed, &surveyed, restores))
		;
}
