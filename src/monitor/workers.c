/*
 * workers.c
 *	  The function under the view batcher.worker.
 *
 * The slots are copied under the control lock, and formatted after its
 * release.  What a slot says of a queue of another database is all that is
 * known of it here, so rights on single queues count in the own database only.
 *
 * Errors: 55000 if the library is not preloaded.  Client backends.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "monitor/monitor.h"

/* A worker's slot, as it was at one moment. */
typedef struct WorkerCopy
{
	BatcherWorkerState state;
	BatcherDatabaseKey db;
	pid_t		pid;
	TimestampTz since;
	int32		queue_id;
	int32		rows;
	bool		leave;
} WorkerCopy;

/* Copy the slots in use; returns how many. */
static int
copy_workers(WorkerCopy *copies)
{
	int			n = 0;
	int			i;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		BatcherSharedWorker *worker = &batcher_shared->workers[i];

		if (worker->state == BATCHER_WORKER_FREE)
			continue;
		copies[n].state = worker->state;
		copies[n].db = worker->db;
		copies[n].pid = worker->pid;
		copies[n].since = worker->since;
		copies[n].queue_id = worker->queue_id;
		copies[n].rows = worker->rows;
		copies[n].leave = pg_atomic_read_u32(&worker->leave) != 0;
		n++;
	}
	LWLockRelease(&batcher_shared->lock);
	return n;
}

/*
 * The name of the queue that a worker flushes, if the current user may know
 * it, else NULL.  'defs' are the definitions of this database, to which the
 * rights of those who do not see everything are confined.
 */
static char *
worker_queue_name(const WorkerCopy *worker, List *defs)
{
	BatcherQueueKey key;
	BatcherSharedQueue *queue;
	char		name[NAMEDATALEN] = "";
	ListCell   *lc;

	memset(&key, 0, sizeof(key));
	key.db = worker->db;
	key.queue_id = worker->queue_id;
	key.lane = 0;

	if (memcmp(&key.db, &batcher_catalog_find(false)->db, sizeof(key.db)) == 0)
	{
		foreach(lc, defs)
		{
			BatcherQueueDef *def = lfirst(lc);

			if (def->id == worker->queue_id)
				return batcher_monitor_sight(def) == BATCHER_SIGHT_NOTHING ?
					NULL : def->name;
		}
		return NULL;
	}

	if (!batcher_monitor_sees_all())
		return NULL;
	queue = batcher_shmem_queue(key);
	if (queue == NULL)
		return NULL;
	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	if (batcher_monitor_entry_is_of(queue, &key))
	{
		LWLockAcquire(&queue->lane.lock, LW_SHARED);
		strlcpy(name, queue->name, sizeof(name));
		LWLockRelease(&queue->lane.lock);
	}
	LWLockRelease(&batcher_shared->lock);
	return name[0] ? pstrdup(name) : NULL;
}

static const char *
worker_state_name(const WorkerCopy *worker)
{
	/* before it has looked for the extension it has not really started */
	if (worker->state == BATCHER_WORKER_STARTING ||
		!OidIsValid(worker->db.extoid))
		return "starting";
	if (worker->queue_id != 0)
		return "flushing";
	return worker->leave ? "leaving" : "idle";
}

PG_FUNCTION_INFO_V1(batcher_get_worker);

/*
 * The background workers: all of them for those who see all statistics, those
 * of this database for others.
 */
Datum
batcher_get_worker(PG_FUNCTION_ARGS)
{
	enum
	{
		PID, DATABASE, STATE, QUEUE, ROWS, SINCE, NUM_COLS
	};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	WorkerCopy	copies[BATCHER_MAX_WORKERS];
	List	   *defs;
	int			n;
	int			i;

	batcher_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	n = copy_workers(copies);

	/* after the copy: a queue being flushed has a definition by now */
	defs = batcher_definition_list();
	for (i = 0; i < n; i++)
	{
		WorkerCopy *worker = &copies[i];
		Datum		values[NUM_COLS] = {0};
		bool		nulls[NUM_COLS] = {0};
		char	   *queue_name = NULL;

		if (worker->db.dboid != MyDatabaseId && !batcher_monitor_sees_all())
			continue;
		if (worker->queue_id != 0)
			queue_name = worker_queue_name(worker, defs);
		values[PID] = Int32GetDatum(worker->pid);
		nulls[PID] = worker->pid == 0;
		batcher_set_text(&values[DATABASE], &nulls[DATABASE],
						 get_database_name(worker->db.dboid));
		values[STATE] = CStringGetTextDatum(worker_state_name(worker));
		batcher_set_text(&values[QUEUE], &nulls[QUEUE], queue_name);
		values[ROWS] = Int32GetDatum(worker->rows);
		nulls[ROWS] = queue_name == NULL;
		batcher_set_time(&values[SINCE], &nulls[SINCE], worker->since);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
