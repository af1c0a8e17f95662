/*
 * views.c
 *	  The functions under the views: definitions, options, status and
 *	  statistics.  Waiting rows are in pending.c, workers in workers.c.
 *
 * Each returns all that the current user may see and nothing else; the views
 * add nothing.  The definitions come from the catalog, one list of them for
 * each call, and what happens now from shared memory.  That is copied under
 * its locks and formatted after they are released.
 *
 * A look has no effects: a queue that has no entry in shared memory yet is
 * shown with zeros and gets none here.  Nor does it wait for anybody who
 * drops a queue.  The entry of a dropped queue can be taken away, and its
 * place be used for another, as soon as the control lock is free; so it is
 * read under that lock, and only if it still bears the key that is meant.
 *
 * Errors: 55000 if the library is not preloaded, where shared memory is
 * needed.  Client backends.
 */
#include "postgres.h"

#include <math.h>

#include "base/clock.h"
#include "catalog/pg_authid_d.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "monitor/monitor.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/*
 * Whether the current user sees the statistics of every queue, and all
 * workers.
 */
bool
batcher_monitor_sees_all(void)
{
	return superuser() ||
		has_privs_of_role(GetUserId(), ROLE_PG_MONITOR);
}

/*
 * How much of a queue the current user sees.
 */
BatcherSight
batcher_monitor_sight(const BatcherQueueDef *def)
{
	if (batcher_definition_may(def, BATCHER_MANAGE))
		return BATCHER_SIGHT_ALL;
	return batcher_monitor_sees_all() ? BATCHER_SIGHT_STATISTICS :
		BATCHER_SIGHT_NOTHING;
}

/*
 * The key of a queue's entry in shared memory.
 */
BatcherQueueKey
batcher_monitor_key(const BatcherQueueDef *def)
{
	BatcherQueueKey key;

	memset(&key, 0, sizeof(key));
	key.db = batcher_catalog_find(false)->db;
	key.queue_id = def->id;
	key.lane = 0;
	return key;
}

/* Microseconds as an interval. */
static Datum
interval_datum(int64 us)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = us;
	return IntervalPGetDatum(interval);
}

/* The time from 't' to 'now', as now() - t would show it. */
static Datum
age_datum(TimestampTz t, TimestampTz now)
{
	return DirectFunctionCall2(timestamp_mi,
							   TimestampTzGetDatum(Max(t, now)),
							   TimestampTzGetDatum(t));
}

/* What is known of one queue in shared memory, at one moment. */
typedef struct QueueCopy
{
	int64		npending;
	int64		nspilled;
	int64		nbytes;
	TimestampTz oldest_at;
	TimestampTz runnable_at;
	TimestampTz next_flush_at;
	TimestampTz retry_at;
	uint32		failures;
	uint32		breaker;
	uint32		flushing;
	uint32		current_size;
	uint64		current_window; /* us */
	double		arrival_rate;	/* rows a second */
	uint32		timers;
	pid_t		worker_pid;		/* 0: nobody owns the lane */
	bool		unserved;		/* a worker has found no room for it */
	uint64		counters[BATCHER_NUM_COUNTERS];
	TimestampTz last_error_at;	/* 0: none */
	char		last_error[BATCHER_ERROR_MAX];
	char		breaker_reason[BATCHER_ERROR_MAX];
	char		size_reason[BATCHER_REASON_MAX];
} QueueCopy;

/* The process that owns a lane, or 0; the control lock is held. */
static pid_t
lane_worker_pid(BatcherSharedLane *lane)
{
	int			owner = batcher_lane_owner(lane);
	BatcherSharedWorker *worker;

	if (owner < 0)
		return 0;
	worker = &batcher_shared->workers[owner];
	return worker->state == BATCHER_WORKER_RUNNING ? worker->pid : 0;
}

/*
 * A count of rows or bytes.  What is counted comes and goes in several
 * processes, so that the sum may be below zero for a moment.
 */
static int64
read_count(pg_atomic_uint64 *count)
{
	int64		n = (int64) pg_atomic_read_u64(count);

	return Max(n, 0);
}

/* The earlier of two times; 0 is none. */
static TimestampTz
earlier(TimestampTz a, TimestampTz b)
{
	return a == 0 || (b != 0 && b < a) ? b : a;
}

/* Add what the entry of one lane tells; the control lock is held. */
static void
add_lane(BatcherSharedQueue *queue, QueueCopy *copy)
{
	BatcherSharedLane *lane = &queue->lane;
	int			i;

	copy->npending += read_count(&lane->npending);
	if (pg_atomic_read_u64(&lane->spill) & BATCHER_SPILL_SPILLED)
		copy->nspilled += read_count(&lane->nspilled);
	copy->oldest_at = earlier(copy->oldest_at,
							  pg_atomic_read_u64(&lane->oldest_at));
	copy->runnable_at = earlier(copy->runnable_at,
								pg_atomic_read_u64(&lane->runnable_at));
	copy->next_flush_at = earlier(copy->next_flush_at,
								  pg_atomic_read_u64(&lane->next_flush_at));
	copy->retry_at = earlier(copy->retry_at,
							 pg_atomic_read_u64(&lane->retry_at));
	copy->arrival_rate += pg_atomic_read_u64(&lane->arrival_rate) / 1000.0;
	copy->flushing += pg_atomic_read_u32(&lane->flushing);
	copy->timers += pg_atomic_read_u32(&lane->timers);
	if (copy->worker_pid == 0)
		copy->worker_pid = lane_worker_pid(lane);
	for (i = 0; i < BATCHER_NUM_COUNTERS; i++)
	{
		uint64		n = batcher_counter(queue, i);

		if (i == BATCHER_LAST_FLUSH_AT || i == BATCHER_STATS_RESET_AT)
			copy->counters[i] = Max(copy->counters[i], n);
		else
			copy->counters[i] += n;
	}

	LWLockAcquire(&lane->lock, LW_SHARED);
	if (queue->last_error_at > copy->last_error_at)
	{
		copy->last_error_at = queue->last_error_at;
		strlcpy(copy->last_error, queue->last_error, sizeof(copy->last_error));
	}
	LWLockRelease(&lane->lock);
}

/* Copy what is known of a queue; the control lock is held. */
static void
copy_entry(BatcherSharedQueue *queue, QueueCopy *copy)
{
	BatcherSharedLane *lane = &queue->lane;
	BatcherSharedQueue *entry;
	int			i;

	copy->nbytes = read_count(&lane->nbytes);
	copy->failures = pg_atomic_read_u32(&lane->failures);
	copy->breaker = pg_atomic_read_u32(&lane->breaker);
	/* each lane of an adaptive queue adapts by itself */
	copy->current_size = pg_atomic_read_u32(&lane->current_size);
	copy->current_window = pg_atomic_read_u64(&lane->current_window);
	batcher_foreach_lane(entry, i, queue)
		add_lane(entry, copy);
	if (copy->npending + copy->nspilled == 0)
	{
		/* who has settled the last row has yet to say so */
		copy->oldest_at = 0;
		copy->runnable_at = 0;
		copy->next_flush_at = 0;
	}
	LWLockAcquire(&lane->lock, LW_SHARED);
	strlcpy(copy->breaker_reason, queue->breaker_reason,
			sizeof(copy->breaker_reason));
	strlcpy(copy->size_reason, queue->size_reason, sizeof(copy->size_reason));
	LWLockRelease(&lane->lock);
}

/*
 * Is this still the entry of that queue?  The control lock is held.
 */
bool
batcher_monitor_entry_is_of(const BatcherSharedQueue *queue,
							const BatcherQueueKey *key)
{
	Assert(LWLockHeldByMe(&batcher_shared->lock));
	return memcmp(&queue->key, key, sizeof(*key)) == 0;
}

/*
 * Has a worker made the entries of all queues that there are, but not of all
 * lanes of this one, because there are more than batcher.max_queues?  The control
 * lock is held; 'queue' may be NULL.
 */
static bool
is_unserved(const BatcherQueueDef *def, BatcherDatabaseKey key,
			BatcherSharedQueue *queue)
{
	BatcherSharedDatabase *db = batcher_shmem_database_locked(key);
	int			i = 0;

	while (queue && i < def->options.lanes && queue->lanes[i])
		i++;
	return i < def->options.lanes && db &&
		pg_atomic_read_u64(&db->loaded) == pg_atomic_read_u64(&db->generation);
}

/* Copy what shared memory holds of a queue; zeros if nothing. */
static void
copy_queue(const BatcherQueueDef *def, QueueCopy *copy)
{
	BatcherQueueKey key = batcher_monitor_key(def);
	BatcherSharedQueue *queue;

	memset(copy, 0, sizeof(*copy));
	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	queue = batcher_shmem_queue_locked(key);
	if (queue)
		copy_entry(queue, copy);
	copy->unserved = is_unserved(def, key.db, queue);
	LWLockRelease(&batcher_shared->lock);
}

/*
 * The text of the last error, or NULL where there is none to be seen.  It was
 * cut to a number of bytes, maybe within a character, which is left out.  That
 * a queue has no place is told to whoever sees it.
 */
static const char *
visible_error(const QueueCopy *copy, BatcherSight sight)
{
	int			len = strlen(copy->last_error);

	if (copy->unserved)
		return "too many queues: this one is not served";
	if (sight != BATCHER_SIGHT_ALL || copy->last_error_at == 0)
		return NULL;
	return pnstrdup(copy->last_error,
					pg_mbcliplen(copy->last_error, len, len));
}

PG_FUNCTION_INFO_V1(batcher_get_queue);

/*
 * The definitions of the queues.
 */
Datum
batcher_get_queue(PG_FUNCTION_ARGS)
{
	enum
	{
		QUEUE, OWNER, GRANTS, FLUSH_SQL, TARGET, ROW_TYPE, SEARCH_PATH,
		OPTIONS, PAUSED, PAUSE_REASON, CREATED_AT, NUM_COLS
	};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, batcher_definition_list())
	{
		BatcherQueueDef *def = lfirst(lc);
		BatcherSight sight = batcher_monitor_sight(def);
		Datum		values[NUM_COLS] = {0};
		bool		nulls[NUM_COLS] = {0};

		if (sight == BATCHER_SIGHT_NOTHING)
			continue;
		values[QUEUE] = CStringGetTextDatum(def->name);
		values[OWNER] = CStringGetTextDatum(def->owner_name);
		if (sight == BATCHER_SIGHT_ALL)
		{
			values[GRANTS] = JsonbPGetDatum(batcher_monitor_grants(def));
			batcher_set_text(&values[FLUSH_SQL], &nulls[FLUSH_SQL],
							 def->flush_sql);
			batcher_set_text(&values[TARGET], &nulls[TARGET], def->target_name);
			batcher_set_text(&values[ROW_TYPE], &nulls[ROW_TYPE],
							 def->row_type_name);
			values[SEARCH_PATH] = CStringGetTextDatum(def->search_path);
			values[OPTIONS] = JsonbPGetDatum(def->given);
		}
		else
			nulls[GRANTS] = nulls[FLUSH_SQL] = nulls[TARGET] =
				nulls[ROW_TYPE] = nulls[SEARCH_PATH] = nulls[OPTIONS] = true;
		values[PAUSED] = BoolGetDatum(def->paused);
		batcher_set_text(&values[PAUSE_REASON], &nulls[PAUSE_REASON],
						 def->pause_reason);
		values[CREATED_AT] = TimestampTzGetDatum(def->created_at);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(batcher_get_option);

/*
 * The options that a queue can have.  For everybody.
 */
Datum
batcher_get_option(PG_FUNCTION_ARGS)
{
	enum
	{
		NAME, TYPE, FALLBACK, LOWER, UPPER, DESCRIPTION, NUM_COLS
	};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int			i;

	InitMaterializedSRF(fcinfo, 0);
	for (i = 0; i < batcher_num_options; i++)
	{
		const BatcherOption *option = &batcher_options[i];
		Datum		values[NUM_COLS] = {0};
		bool		nulls[NUM_COLS] = {0};

		values[NAME] = CStringGetTextDatum(option->name);
		batcher_set_text(&values[TYPE], &nulls[TYPE],
						 batcher_option_type_name(option->type));
		batcher_set_text(&values[FALLBACK], &nulls[FALLBACK], option->fallback);
		batcher_set_text(&values[LOWER], &nulls[LOWER],
						 batcher_option_limit(option, false));
		batcher_set_text(&values[UPPER], &nulls[UPPER],
						 batcher_option_limit(option, true));
		batcher_set_text(&values[DESCRIPTION], &nulls[DESCRIPTION],
						 option->description);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Columns of batcher.status. */
enum
{
	STATUS_QUEUE, STATUS_PENDING, STATUS_PENDING_BYTES, STATUS_SPILLED,
	STATUS_TIMERS, STATUS_OLDEST_AT, STATUS_OLDEST_AGE, STATUS_OLDEST_RUNNABLE_AGE,
	STATUS_NEXT_FLUSH_AT, STATUS_IS_FLUSHING, STATUS_PAUSED,
	STATUS_PAUSE_REASON, STATUS_ENABLED, STATUS_BREAKER_STATE, STATUS_BREAKER_REASON,
	STATUS_CONSECUTIVE_FAILURES, STATUS_RETRY_AT,
	STATUS_LAST_ERROR, STATUS_CURRENT_BATCH_SIZE, STATUS_CURRENT_WINDOW,
	STATUS_SIZE_REASON, STATUS_ARRIVAL_RATE, STATUS_LANES, STATUS_WORKER_PID, NUM_STATUS_COLS
};

/* The columns of batcher.status that are about the breaker. */
static void
set_status_breaker(Datum *values, bool *nulls, const QueueCopy *copy,
				   BatcherSight sight)
{
	static const char *const states[] = {
		[BATCHER_BREAKER_CLOSED] = "closed",
		[BATCHER_BREAKER_OPEN] = "open",
		[BATCHER_BREAKER_HALF_OPEN] = "half_open",
	};
	bool		told = copy->breaker != BATCHER_BREAKER_CLOSED &&
		sight == BATCHER_SIGHT_ALL;

	values[STATUS_BREAKER_STATE] = CStringGetTextDatum(states[copy->breaker]);
	batcher_set_text(&values[STATUS_BREAKER_REASON],
					 &nulls[STATUS_BREAKER_REASON],
					 told ? copy->breaker_reason : NULL);
	values[STATUS_CONSECUTIVE_FAILURES] = Int32GetDatum(copy->failures);
}

/* The columns of batcher.status that say when something was or will be. */
static void
set_status_times(Datum *values, bool *nulls, const BatcherQueueDef *def,
				 const QueueCopy *copy, TimestampTz now)
{
	/* a retry whose time has come is no longer waited for */
	TimestampTz retry_at = copy->retry_at > now ? copy->retry_at : 0;

	batcher_set_time(&values[STATUS_OLDEST_AT], &nulls[STATUS_OLDEST_AT],
					 copy->oldest_at);
	if (copy->oldest_at != 0)
		values[STATUS_OLDEST_AGE] = age_datum(copy->oldest_at, now);
	else
		nulls[STATUS_OLDEST_AGE] = true;
	if (copy->runnable_at != 0 && !def->paused && retry_at == 0 &&
		copy->breaker != BATCHER_BREAKER_OPEN)
		values[STATUS_OLDEST_RUNNABLE_AGE] = age_datum(copy->runnable_at, now);
	else
		nulls[STATUS_OLDEST_RUNNABLE_AGE] = true;
	batcher_set_time(&values[STATUS_NEXT_FLUSH_AT],
					 &nulls[STATUS_NEXT_FLUSH_AT], copy->next_flush_at);
	batcher_set_time(&values[STATUS_RETRY_AT], &nulls[STATUS_RETRY_AT],
					 retry_at);
}

/*
 * The columns of batcher.status that say how many rows are to be flushed after
 * what time.  Where nobody has adapted that yet, it is as the options say.
 */
static void
set_status_pace(Datum *values, bool *nulls, const BatcherQueueDef *def,
				const QueueCopy *copy)
{
	bool		adapted = def->options.adaptive && copy->current_size != 0;
	int64		window = (int64) rint(def->options.flush_interval * 1000.0);

	values[STATUS_CURRENT_BATCH_SIZE] =
		Int32GetDatum(adapted ? copy->current_size : def->options.flush_size);
	values[STATUS_CURRENT_WINDOW] =
		interval_datum(adapted ? (int64) copy->current_window : window);
	batcher_set_text(&values[STATUS_SIZE_REASON], &nulls[STATUS_SIZE_REASON],
					 adapted ? copy->size_reason : NULL);
	values[STATUS_ARRIVAL_RATE] = Float8GetDatum(copy->arrival_rate);
	nulls[STATUS_ARRIVAL_RATE] = !adapted;
}

PG_FUNCTION_INFO_V1(batcher_get_status);

/*
 * What each queue is doing now.
 */
Datum
batcher_get_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	TimestampTz now = batcher_clock_now();
	ListCell   *lc;

	batcher_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, batcher_definition_list())
	{
		BatcherQueueDef *def = lfirst(lc);
		BatcherSight sight = batcher_monitor_sight(def);
		QueueCopy	copy;
		Datum		values[NUM_STATUS_COLS] = {0};
		bool		nulls[NUM_STATUS_COLS] = {0};

		if (sight == BATCHER_SIGHT_NOTHING)
			continue;
		copy_queue(def, &copy);
		values[STATUS_QUEUE] = CStringGetTextDatum(def->name);
		values[STATUS_PENDING] = Int64GetDatum(copy.npending + copy.nspilled);
		values[STATUS_PENDING_BYTES] = Int64GetDatum(copy.nbytes);
		values[STATUS_SPILLED] = Int64GetDatum(copy.nspilled);
		values[STATUS_TIMERS] = Int32GetDatum(copy.timers);
		set_status_times(values, nulls, def, &copy, now);
		values[STATUS_IS_FLUSHING] = BoolGetDatum(copy.flushing > 0);
		values[STATUS_PAUSED] = BoolGetDatum(def->paused);
		values[STATUS_ENABLED] = BoolGetDatum(def->options.enabled);
		batcher_set_text(&values[STATUS_PAUSE_REASON],
						 &nulls[STATUS_PAUSE_REASON], def->pause_reason);
		set_status_breaker(values, nulls, &copy, sight);
		batcher_set_text(&values[STATUS_LAST_ERROR], &nulls[STATUS_LAST_ERROR],
						 visible_error(&copy, sight));
		set_status_pace(values, nulls, def, &copy);
		values[STATUS_LANES] = Int32GetDatum(def->options.lanes);
		values[STATUS_WORKER_PID] = Int32GetDatum(copy.worker_pid);
		nulls[STATUS_WORKER_PID] = copy.worker_pid == 0;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(batcher_get_stat_queue);

/*
 * The counters of each queue.
 */
Datum
batcher_get_stat_queue(PG_FUNCTION_ARGS)
{
	/* the columns that follow the name and are counters as they stand */
	static const BatcherCounter plain[] = {
		BATCHER_ROWS_ENQUEUED, BATCHER_ROWS_FLUSHED,
		BATCHER_ROWS_SUPERSEDED, BATCHER_ROWS_RETRIED,
		BATCHER_ROWS_FAILED, BATCHER_ROWS_DEAD,
		BATCHER_ROWS_PURGED, BATCHER_ROWS_SPILLED, BATCHER_BATCHES,
		BATCHER_BATCHES_BY_SIZE, BATCHER_BATCHES_BY_TIME,
		BATCHER_BATCHES_FORCED, BATCHER_BATCHES_IMMEDIATE,
		BATCHER_BATCHES_DEBOUNCED, BATCHER_BATCHES_SWEPT,
		BATCHER_BATCHES_FAILED, BATCHER_BATCHES_SPLIT,
		BATCHER_ROWS_TRIED_ALONE, BATCHER_BREAKER_OPENED, BATCHER_MESSAGES_SENT,
		BATCHER_MESSAGES_SAVED, BATCHER_MESSAGES_DROPPED,
		BATCHER_MESSAGE_BYTES
	};
	enum
	{
		QUEUE, FLUSH_TIME = lengthof(plain) + 1, AVG_BATCH_SIZE,
		LAST_FLUSH_AT, LAST_ERROR, LAST_ERROR_AT, DEADLINE_MISSED,
		STATS_RESET, NUM_COLS
	};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ListCell   *lc;

	batcher_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, batcher_definition_list())
	{
		BatcherQueueDef *def = lfirst(lc);
		BatcherSight sight = batcher_monitor_sight(def);
		QueueCopy	copy;
		const uint64 *c = copy.counters;
		Datum		values[NUM_COLS] = {0};
		bool		nulls[NUM_COLS] = {0};
		int			i;

		if (sight == BATCHER_SIGHT_NOTHING)
			continue;
		copy_queue(def, &copy);
		values[QUEUE] = CStringGetTextDatum(def->name);
		for (i = 0; i < lengthof(plain); i++)
			values[i + 1] = Int64GetDatum(c[plain[i]]);
		values[FLUSH_TIME] = interval_datum(c[BATCHER_FLUSH_TIME]);
		if (c[BATCHER_BATCHES] != 0)
			values[AVG_BATCH_SIZE] =
				Float8GetDatum((double) c[BATCHER_ROWS_FLUSHED] /
							   c[BATCHER_BATCHES]);
		else
			nulls[AVG_BATCH_SIZE] = true;
		batcher_set_time(&values[LAST_FLUSH_AT], &nulls[LAST_FLUSH_AT],
						 c[BATCHER_LAST_FLUSH_AT]);
		batcher_set_text(&values[LAST_ERROR], &nulls[LAST_ERROR],
						 visible_error(&copy, sight));
		batcher_set_time(&values[LAST_ERROR_AT], &nulls[LAST_ERROR_AT],
						 copy.last_error_at);
		values[DEADLINE_MISSED] = Int64GetDatum(c[BATCHER_DEADLINE_MISSED]);
		batcher_set_time(&values[STATS_RESET], &nulls[STATS_RESET],
						 c[BATCHER_STATS_RESET_AT]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Set the counters of a lane to zero and forget its last error. */
static void
reset_lane(BatcherSharedQueue *queue, TimestampTz now)
{
	int			i;

	for (i = 0; i < BATCHER_NUM_COUNTERS; i++)
		pg_atomic_write_u64(&queue->counters[i],
							i == BATCHER_STATS_RESET_AT ? now : 0);
	LWLockAcquire(&queue->lane.lock, LW_EXCLUSIVE);
	queue->last_error_at = 0;
	queue->last_sqlstate[0] = '\0';
	queue->last_error[0] = '\0';
	LWLockRelease(&queue->lane.lock);
}

/* The same for a whole queue. */
static void
reset_queue(const BatcherQueueDef *def)
{
	BatcherQueueKey key = batcher_monitor_key(def);
	BatcherSharedQueue *queue;
	TimestampTz now = batcher_clock_now();
	BatcherSharedQueue *entry;
	int			lane;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	queue = batcher_shmem_queue_locked(key);
	if (queue)
	{
		batcher_foreach_lane(entry, lane, queue)
			reset_lane(entry, now);
	}
	LWLockRelease(&batcher_shared->lock);
}

PG_FUNCTION_INFO_V1(batcher_reset_stats);

/*
 * batch_reset_stats(queue text): acts at once, whatever becomes of the
 * transaction.  NULL: all queues that the caller may manage.  Errors: 42704,
 * 42501, 55000.
 */
Datum
batcher_reset_stats(PG_FUNCTION_ARGS)
{
	ListCell   *lc;

	batcher_shmem_require();
	if (!PG_ARGISNULL(0))
	{
		char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));

		reset_queue(batcher_definition_allowed(name, BATCHER_MANAGE));
		PG_RETURN_VOID();
	}
	foreach(lc, batcher_definition_list())
	{
		BatcherQueueDef *def = lfirst(lc);

		if (batcher_definition_may(def, BATCHER_MANAGE))
			reset_queue(def);
	}
	PG_RETURN_VOID();
}
