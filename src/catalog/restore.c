/*
 * restore.c
 *	  What comes into our tables that our own functions did not write.
 *
 * A dump is restored by COPY and INSERT, and logical replication brings rows,
 * too: the trigger batcher.arrived sees all of it, and takes out what it says of
 * another database.  Client backends.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/catalog.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/logicalworker.h"
#include "utils/rel.h"

/* The columns of an arriving tuple that are replaced, at most. */
#define MAX_REPLACED	4

/* Replace some columns of an arriving tuple. */
static HeapTuple
replace_columns(TriggerData *trigdata, int n, const char **names,
				Datum *values, bool *nulls)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	int			columns[MAX_REPLACED];
	int			i;

	Assert(n <= lengthof(columns));
	for (i = 0; i < n; i++)
	{
		columns[i] = SPI_fnumber(desc, names[i]);
		if (columns[i] <= 0)
			elog(ERROR, "column \"%s\" is missing in table \"%s\"", names[i],
				 RelationGetRelationName(trigdata->tg_relation));
	}
	return heap_modify_tuple_by_cols(trigdata->tg_trigtuple, desc, n, columns,
									 values, nulls);
}

/*
 * Rows have come into the spool, or grants: hold every queue.  The queues of a
 * restored database are held as they arrive; this is for what is restored into
 * a database that had its queues already.
 */
static void
hold_all_queues(void)
{
	ListCell   *lc;

	if (!batcher_change_note_held())
		return;
	foreach(lc, batcher_definition_list())
	{
		BatcherQueueDef *def = lfirst(lc);

		if (def->paused)
			continue;
		def->paused = true;
		def->pause_reason = pstrdup(BATCHER_RESTORED);
		batcher_definition_update(def);
	}
}

/*
 * A tuple of the spool, a dead letter, or the bound of all numbers has come: no
 * number that it bears is given again.  The bound may come last, or not at all.
 * There must be numbers left.
 */
static void
skip_numbers(TriggerData *trigdata, const BatcherCatalog *cat)
{
	HeapTuple	tuple = trigdata->tg_trigtuple;
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	Oid			relid = RelationGetRelid(trigdata->tg_relation);
	uint64		last;
	bool		isnull = false;

	if (relid == cat->number_table)
		last = DatumGetInt64(heap_getattr(tuple, 1, desc, &isnull));
	else if (relid == cat->dead_table)
		last = batcher_dead_ticket(tuple, desc);
	else
		last = batcher_spool_last_number(tuple, desc);
	if (isnull)
		return;
	if (last > PG_INT64_MAX / 2)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("number or ticket %lld of a row of table \"batcher.%s\" is out of range",
						(long long) last,
						RelationGetRelationName(trigdata->tg_relation))));
	if (relid == cat->number_table)
		batcher_number_raise(last);
	else if (batcher_shared)
		batcher_number_renew(batcher_catalog_database(), last + 1);
}

/*
 * What a restore brings, without what it says of another database: where a row
 * of the spool is at home, and which roles, relations and types are meant.
 */
static HeapTuple
release_tuple(TriggerData *trigdata, const BatcherCatalog *cat)
{
	Oid			relid = RelationGetRelid(trigdata->tg_relation);
	const char *names[MAX_REPLACED];
	int			n = 0;
	Datum		values[MAX_REPLACED] = {0}; /* OIDs too */
	bool		nulls[MAX_REPLACED] = {0};

	if (relid == cat->spool)
	{
		HeapTuple	tuple = trigdata->tg_trigtuple;
		TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
		int64		home = batcher_spool_tuple_home(tuple, desc);

		/* what a large transaction has stored goes on belonging together */
		values[n] = Int64GetDatum(Min(home, 0));
		names[n++] = "home";
		/* once: as long as rows are in the future, their windows do not end */
		values[n] = TimestampTzGetDatum(batcher_spool_tuple_time(tuple, desc));
		names[n++] = "enqueued_at";
		names[n++] = "enqueuer";
	}
	else if (relid == cat->grant_table)
		names[n++] = "role";
	else if (relid == cat->dead_table)
		names[n++] = "enqueuer";
	else
	{
		names[n++] = "owner";
		names[n++] = "database";
		/* as much where there is none: the name decides */
		names[n++] = "target";
		names[n++] = "row_type";
	}
	return replace_columns(trigdata, n, names, values, nulls);
}

/*
 * Is this a row of a queue that is not there?  A restore that could not bring
 * the definition leaves such rows; nobody uses them.
 */
static bool
is_orphan(TriggerData *trigdata, const BatcherCatalog *cat)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	Oid			relid = RelationGetRelid(trigdata->tg_relation);
	bool		isnull;
	Datum		id;

	if (relid == cat->queue_table || relid == cat->number_table)
		return false;
	id = heap_getattr(trigdata->tg_trigtuple, SPI_fnumber(desc, "queue_id"),
					  desc, &isnull);
	return isnull || !batcher_definition_exists(DatumGetInt32(id));
}

/* Is this one of the tables that have the trigger? */
static bool
is_our_table(Oid relid, const BatcherCatalog *cat)
{
	return relid == cat->spool || relid == cat->queue_table ||
		relid == cat->grant_table || relid == cat->dead_table ||
		relid == cat->number_table;
}

PG_FUNCTION_INFO_V1(batcher_arrived);

/*
 * Trigger on our tables: a row has come that our own functions did not write.
 *
 * What logical replication brings, changes or removes is skipped: the
 * publisher flushes its rows itself, and its queues are not ours.  (A TRUNCATE
 * cannot be skipped, and is refused; none comes, unless somebody has taken our
 * triggers out of the way at the publisher.)  Everything
 * else that comes is a restore.  A restored queue belongs to no database, so
 * it is held until batch_resume and nothing is flushed before its target is
 * there; its owner, and the roles of its grants, are found by name then.  A
 * restored tuple of the spool is at home nowhere, so that it is read back.
 * Only superusers restore: a definition runs as whoever it names.  What is
 * there nobody changes, removes or truncates by hand, but for rows of queues
 * that are not there, which superusers may delete.
 */
Datum
batcher_arrived(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	const BatcherCatalog *cat;
	Oid			relid;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigdata->tg_event) ||
		!(TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		  TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event)))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called as a trigger",
						"batcher.arrived")));
	cat = batcher_catalog_find(false);
	relid = RelationGetRelid(trigdata->tg_relation);
	if (!is_our_table(relid, cat))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" cannot be a trigger of table \"%s\"",
						"batcher.arrived",
						RelationGetRelationName(trigdata->tg_relation))));
	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		batcher_change_refuse_direct(trigdata->tg_relation);
	if (!batcher_definition_writing && IsLogicalWorker())
		return PointerGetDatum(NULL);
	if (!batcher_definition_writing &&
		!TRIGGER_FIRED_BY_INSERT(trigdata->tg_event) &&
		!(TRIGGER_FIRED_BY_DELETE(trigdata->tg_event) && superuser() &&
		  is_orphan(trigdata, cat)))
		batcher_change_refuse_direct(trigdata->tg_relation);
	if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		return PointerGetDatum(trigdata->tg_newtuple);
	if (batcher_definition_writing ||
		TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
		return PointerGetDatum(trigdata->tg_trigtuple);
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to restore into table \"%s.%s\"",
						"batcher",
						RelationGetRelationName(trigdata->tg_relation))));
	if (relid == cat->number_table)
	{
		skip_numbers(trigdata, cat);
		return PointerGetDatum(NULL);
	}
	batcher_change_note_arrival();
	if (relid == cat->spool || relid == cat->grant_table)
		hold_all_queues();		/* batch_resume looks for the role of a grant */
	if (relid == cat->spool || relid == cat->dead_table)
		skip_numbers(trigdata, cat);
	return PointerGetDatum(release_tuple(trigdata, cat));
}
