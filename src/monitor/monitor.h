/*
 * monitor.h
 *	  What the functions under the views share.
 */
#ifndef BATCHER_MONITOR_H
#define BATCHER_MONITOR_H

#include "catalog/catalog.h"
#include "fmgr.h"
#include "utils/builtins.h"

/* How much of a queue the current user sees. */
typedef enum BatcherSight
{
	BATCHER_SIGHT_NOTHING,
	BATCHER_SIGHT_STATISTICS,	/* no statement, no options, no error */
	BATCHER_SIGHT_ALL
} BatcherSight;

/* admin.c */
extern BatcherQueueDef *batcher_monitor_lookup_for_change(const char *name,
														  BatcherPrivilege privilege);
extern char *batcher_monitor_text_argument(FunctionCallInfo fcinfo, int arg,
										   const char *name);

/* rights.c */
extern Jsonb *batcher_monitor_grants(const BatcherQueueDef *def);

/* views.c */
extern bool batcher_monitor_sees_all(void);
extern BatcherSight batcher_monitor_sight(const BatcherQueueDef *def);
extern BatcherQueueKey batcher_monitor_key(const BatcherQueueDef *def);
extern bool batcher_monitor_entry_is_of(const BatcherSharedQueue *queue,
										const BatcherQueueKey *key);

/* One column of a result: NULL is null. */
static inline void
batcher_set_text(Datum *value, bool *isnull, const char *text)
{
	*isnull = text == NULL;
	*value = text ? CStringGetTextDatum(text) : (Datum) 0;
}

/* One column of a result: 0, which stands for "none", is null. */
static inline void
batcher_set_time(Datum *value, bool *isnull, TimestampTz t)
{
	*isnull = t == 0;
	*value = TimestampTzGetDatum(t);
}

/* admin.c */
extern int64 batcher_monitor_count_waiting(BatcherSharedQueue *queue,
										   const BatcherQueueDef *def);

/* lanes.c */
extern void batcher_monitor_wait_for_users(TimestampTz end);
extern void batcher_monitor_change_lanes(const BatcherQueueDef *def);

#endif							/* BATCHER_MONITOR_H */
