/*
 * stats.c
 *	  The effective options of queues, for batch_stats().
 *
 * batch_stats() is SQL over the views, so that it has whatever these show.
 * What no view shows comes from here.  Client backends.
 */
#include "postgres.h"

#include "funcapi.h"
#include "monitor/monitor.h"

PG_FUNCTION_INFO_V1(batcher_get_config);

/* One row of batcher.get_config(). */
static void
put_config(ReturnSetInfo *rsinfo, const BatcherQueueDef *def,
		   BatcherSight sight)
{
	Datum		values[2] = {0};
	bool		nulls[2] = {0};

	values[0] = CStringGetTextDatum(def->name);
	if (sight == BATCHER_SIGHT_ALL)
		values[1] = JsonbPGetDatum(batcher_options_explain(def->given));
	else
		nulls[1] = true;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * batcher.get_config(queue): of this queue, or, if that is null, of all that
 * the caller sees, the name and the effective options; null for those who may
 * see statistics only.  Errors, of a queue that is named: 42704, 42501.
 */
Datum
batcher_get_config(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	if (!PG_ARGISNULL(0))
	{
		char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
		BatcherQueueDef *def = batcher_definition_by_name(name);

		if (def != NULL &&
			batcher_monitor_sight(def) == BATCHER_SIGHT_STATISTICS)
			put_config(rsinfo, def, BATCHER_SIGHT_STATISTICS);
		else
			put_config(rsinfo,
					   batcher_definition_allowed(name, BATCHER_MANAGE),
					   BATCHER_SIGHT_ALL);
		return (Datum) 0;
	}
	foreach(lc, batcher_definition_list())
	{
		const BatcherQueueDef *def = lfirst(lc);
		BatcherSight sight = batcher_monitor_sight(def);

		if (sight != BATCHER_SIGHT_NOTHING)
			put_config(rsinfo, def, sight);
	}
	return (Datum) 0;
}
