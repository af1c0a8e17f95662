/*
 * admin.c
 *	  Making, changing, holding and dropping queues.
 *
 * All of it is transactional: the definition is a tuple, and what follows
 * from it for other sessions and the worker happens at the commit
 * (catalog/change.c).  Who changes a queue locks it by a heavyweight lock on
 * its id, so that changes of one queue follow each other.  Client backends.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/clock.h"
#include "batch/batch.h"
#include "batch/statement.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "enqueue/enqueue.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "monitor/monitor.h"
#include "nodes/pg_list.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

/*
 * The definition of a queue with which the current user may do this, locked
 * for a change until the end of the transaction.  Errors: 25006, 42704, 42501.
 */
BatcherQueueDef *
batcher_monitor_lookup_for_change(const char *name, BatcherPrivilege privilege)
{
	PreventCommandDuringRecovery("changing a queue");
	for (;;)
	{
		BatcherQueueDef *def = batcher_definition_allowed(name, privilege);
		int32		id = def->id;

		batcher_definition_lock(id, AccessExclusiveLock);
		/* it may have changed before the lock was had */
		def = batcher_definition_allowed(name, privilege);
		if (def->id == id)
			return def;
		batcher_definition_unlock(id, AccessExclusiveLock);
	}
}

static char *
text_argument(FunctionCallInfo fcinfo, int arg)
{
	return PG_ARGISNULL(arg) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(arg));
}

/*
 * A text argument that must not be null (22004); 'name' is what it is called.
 */
char *
batcher_monitor_text_argument(FunctionCallInfo fcinfo, int arg,
							  const char *name)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
	return text_argument(fcinfo, arg);
}

static char *
queue_argument(FunctionCallInfo fcinfo)
{
	return batcher_monitor_text_argument(fcinfo, 0, "queue");
}

/* The options argument; null is none. */
static Jsonb *
options_argument(FunctionCallInfo fcinfo, int arg)
{
	if (PG_ARGISNULL(arg))
		return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
												  CStringGetDatum("{}")));
	return PG_GETARG_JSONB_P(arg);
}

/*
 * The schemas of the search_path in force, as they are now, with pg_temp last:
 * so that no temporary object can take the place of what a statement means.
 */
static char *
current_search_path(void)
{
	List	   *schemas = fetch_search_path(true);
	StringInfoData s;
	ListCell   *lc;

	initStringInfo(&s);
	foreach(lc, schemas)
	{
		char	   *name;

		if (isTempNamespace(lfirst_oid(lc)))
			continue;
		name = get_namespace_name(lfirst_oid(lc));
		if (name)
			appendStringInfo(&s, "%s, ", quote_identifier(name));
	}
	appendStringInfoString(&s, "pg_temp");
	list_free(schemas);
	return s.data;
}

/* Set the target of a queue.  Errors: 42P01, 42809, 0A000. */
static void
set_target(BatcherQueueDef *def, Oid target)
{
	char	   *name = batcher_named_relation(target);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", target)));
	switch (get_rel_relkind(target))
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
		case RELKIND_FOREIGN_TABLE:
		case RELKIND_VIEW:
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("%s cannot be a target", name),
					 errdetail("It is no table, foreign table or view.")));
	}
	if (get_rel_persistence(target) == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("target must not be a temporary relation")));
	def->target = target;
	def->target_name = name;
}

/* Set the type of a queue's rows.  Errors: 42704, 42809, 0A000. */
static void
set_row_type(BatcherQueueDef *def, Oid type)
{
	char	   *name = batcher_named_type(type);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("type with OID %u does not exist", type)));
	if (get_typtype(type) != TYPTYPE_COMPOSITE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("type %s cannot be a row type", name),
				 errdetail("It is no composite type.")));
	if (get_rel_persistence(get_typ_typrelid(type)) == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("row type must not be a temporary type")));
	def->row_type = type;
	def->row_type_name = name;
}

/*
 * Set what a flush does, as far as the arguments 'sql', 'target' and
 * 'row_type' say: a target takes the place of a statement, and the other way
 * round.  Errors: 22023 both are given, and those of the above.
 */
static void
set_work(BatcherQueueDef *def, FunctionCallInfo fcinfo, int sql, int target,
		 int row_type)
{
	if (!PG_ARGISNULL(sql) && !PG_ARGISNULL(target))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a queue cannot have both \"flush_sql\" and \"target\"")));
	if (!PG_ARGISNULL(sql))
	{
		def->flush_sql = text_argument(fcinfo, sql);
		def->target = InvalidOid;
		def->target_name = NULL;
	}
	if (!PG_ARGISNULL(target))
	{
		set_target(def, PG_GETARG_OID(target));
		def->flush_sql = NULL;
	}
	if (!PG_ARGISNULL(row_type))
		set_row_type(def, PG_GETARG_OID(row_type));
	if (!PG_ARGISNULL(sql) || !PG_ARGISNULL(target))
		def->search_path = current_search_path();
}

/*
 * Refuse options that say something of a target that there is not, or that
 * values of a type cannot do.
 */
static void
check_work_options(const BatcherQueueDef *def)
{
	if (def->options.on_conflict != BATCHER_CONFLICT_ERROR &&
		def->target_name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"on_conflict\" needs a target"),
				 errhint("A statement has an ON CONFLICT of its own.")));
	if (def->options.key_policy == BATCHER_KEYS_MERGE &&
		batcher_definition_typed(def))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"key_policy\" cannot be \"merge\" in a queue whose rows have a type"),
				 errhint("Use \"last\" or \"first\".")));
}

static void
check_name(const char *name)
{
	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("queue name must not be empty")));
	if (strlen(name) > BATCHER_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("queue name \"%s\" is too long",
						batcher_option_clip(name, strlen(name))),
				 errdetail("A name has at most %d bytes.", BATCHER_NAME_MAX)));
}

PG_FUNCTION_INFO_V1(batcher_create_queue);

/*
 * batch_create_queue(queue, flush_sql, target, row_type, options,
 * if_not_exists)
 */
Datum
batcher_create_queue(PG_FUNCTION_ARGS)
{
	BatcherQueueDef def;
	BatcherSharedQueue *queue;
	BatcherQueueKey key;

	batcher_shmem_require();
	PreventCommandDuringRecovery("batch_create_queue()");
	memset(&def, 0, sizeof(def));
	def.name = queue_argument(fcinfo);
	check_name(def.name);
	batcher_definition_lock_name(def.name);
	if (batcher_definition_by_name(def.name))
	{
		if (!PG_ARGISNULL(5) && PG_GETARG_BOOL(5))
		{
			ereport(NOTICE,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("queue \"%s\" already exists, skipping",
							def.name)));
			PG_RETURN_VOID();
		}
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("queue \"%s\" already exists", def.name)));
	}
	def.owner = GetUserId();
	def.owner_name = GetUserNameFromId(def.owner, false);
	def.search_path = current_search_path();
	set_work(&def, fcinfo, 1, 2, 3);
	def.given = batcher_options_merge(NULL, options_argument(fcinfo, 4));
	if (batcher_options_give_sql(def.given))
		def.notify_search_path = current_search_path();
	batcher_options_resolve(def.given, &def.options);
	check_work_options(&def);
	def.created_at = GetCurrentTimestamp();
	batcher_statement_check(&def);

	def.id = batcher_definition_insert(&def);
	key.db = batcher_catalog_find(false)->db;
	key.queue_id = def.id;
	key.lane = 0;
	queue = batcher_entry_make(key, 1, true);
	batcher_change_note_created(queue);
	(void) batcher_entry_make(key, def.options.lanes, true);
	batcher_entry_publish(&def, key, NULL);
	PG_RETURN_VOID();
}

/*
 * See that a queue has an owner.  One that was restored is found its owner by
 * name, for superusers: whoever has that name now will have its statement run
 * with his rights.  One whose owner was dropped is not, because another role
 * of that name is another role.
 */
static bool
resolve_owner(BatcherQueueDef *def, int elevel)
{
	Oid			owner;

	if (OidIsValid(def->owner))
		return true;
	if (!superuser())
	{
		ereport(elevel,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to find queue \"%s\" its owner",
						def->name)));
		return false;
	}
	owner = OidIsValid(def->gone_owner) ? InvalidOid :
		get_role_oid(def->owner_name, true);
	if (!OidIsValid(owner))
	{
		ereport(elevel,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 OidIsValid(def->gone_owner) ?
				 errmsg("owner \"%s\" of queue \"%s\" is gone",
						def->owner_name, def->name) :
				 errmsg("owner \"%s\" of queue \"%s\" does not exist",
						def->owner_name, def->name),
				 errhint("Use batch_change_owner.")));
		return false;
	}
	batcher_definition_set_owner(def, owner);
	return true;
}

PG_FUNCTION_INFO_V1(batcher_alter_queue);

/*
 * batch_alter_queue(queue, options, flush_sql, target, row_type): what runs as
 * the owner is the owner's to change, the rest also that of who may manage.
 */
Datum
batcher_alter_queue(PG_FUNCTION_ARGS)
{
	Jsonb	   *given = options_argument(fcinfo, 1);
	bool		new_notify_sql = batcher_options_give_sql(given);
	bool		new_sql = !PG_ARGISNULL(2) || !PG_ARGISNULL(3) ||
		!PG_ARGISNULL(4) || new_notify_sql;
	BatcherQueueDef *def =
		batcher_monitor_lookup_for_change(queue_argument(fcinfo),
										  new_sql ? BATCHER_OWN : BATCHER_MANAGE);
	BatcherOnConflict on_conflict = def->options.on_conflict;
	int			nlanes = def->options.lanes;
	BatcherSharedQueue *queue;

	set_work(def, fcinfo, 2, 3, 4);
	if (new_notify_sql)
		def->notify_search_path = current_search_path();
	def->given = batcher_options_merge(def->given, given);
	batcher_options_resolve(def->given, &def->options);
	check_work_options(def);
	if (def->options.lanes != nlanes)
		batcher_monitor_change_lanes(def);
	if (new_sql || def->options.on_conflict != on_conflict)
	{
		(void) resolve_owner(def, ERROR);	/* as whom it is checked */
		(void) batcher_named_resolve(def, ERROR);
		batcher_statement_check(def);
	}
	batcher_definition_update(def);
	queue = batcher_shared ? batcher_shmem_queue(batcher_monitor_key(def)) : NULL;
	if (queue)					/* else it was never tried */
		batcher_change_note_altered(queue);
	PG_RETURN_VOID();
}

/*
 * How many rows of a queue wait, when nobody uses it.  'queue': NULL if it has
 * no entry.
 */
int64
batcher_monitor_count_waiting(BatcherSharedQueue *queue, const BatcherQueueDef *def)
{
	int64		n = batcher_spool_count_queue(def->id);
	BatcherSharedQueue *entry;
	int			i;

	if (n > 0 || queue == NULL)
		return n;
	batcher_foreach_lane(entry, i, queue)
		n += pg_atomic_read_u64(&entry->lane.npending);
	return n;
}

PG_FUNCTION_INFO_V1(batcher_drop_queue);

/*
 * batch_drop_queue(queue, force)
 *
 * The queue is closed and its lane frozen, so that nobody begins to use it; then
 * who has begun is waited for; what waits then can be counted and thrown away.
 * Of a queue that is not served, because there are too many, nobody can begin
 * to use it, and what waits is in the spool.
 */
Datum
batcher_drop_queue(PG_FUNCTION_ARGS)
{
	bool		force = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);
	BatcherQueueDef *def;
	BatcherSharedQueue *queue;
	int64		waiting;

	batcher_shmem_require();
	def = batcher_monitor_lookup_for_change(queue_argument(fcinfo),
											BATCHER_OWN);
	queue = batcher_change_bar(batcher_monitor_key(def));
	if (queue && batcher_staging_has_queue(queue))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot drop queue \"%s\" because this transaction has enqueued rows into it",
						def->name)));
	if (queue)
	{
		batcher_entry_publish(def, queue->key, NULL);
		batcher_change_close(queue);
		batcher_change_freeze(queue);
	}
	batcher_monitor_wait_for_users(BATCHER_NEVER);
	waiting = batcher_monitor_count_waiting(queue, def);
	if (waiting > 0 && !force)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot drop queue \"%s\" because rows wait in it",
						def->name),
				 errdetail_plural("%lld row waits.", "%lld rows wait.",
								  (unsigned long) waiting, (long long) waiting),
				 errhint("Flush or purge the queue, or drop it with force => true.")));
	if (waiting > 0)
		(void) batcher_spool_delete_queue(def->id);
	(void) batcher_dead_delete(def->id, (Datum) 0);
	batcher_grant_remove_all(def->id);
	batcher_definition_delete(def->id);
	if (queue)
		batcher_change_note_dropped(queue);
	PG_RETURN_VOID();
}

/* Hold a queue, or let it go; 'elevel' is for one that has no owner. */
static void
set_paused(BatcherQueueDef *def, bool paused, int elevel)
{
	if (def->paused == paused && !def->paused_by_loss)
		return;
	if (!paused &&
		!(resolve_owner(def, elevel) && batcher_named_resolve(def, elevel)))
		return;
	if (!paused && def->pause_reason &&
		strcmp(def->pause_reason, BATCHER_RESTORED) == 0)
		batcher_grant_resolve(def);
	def->paused = paused;
	def->paused_by_loss = false;
	def->pause_reason = paused ? pstrdup("paused") : NULL;
	batcher_definition_update(def);
}

/* batch_pause and batch_resume: one queue, or all that may be managed. */
static void
pause_or_resume(FunctionCallInfo fcinfo, bool paused)
{
	ListCell   *lc;

	if (!PG_ARGISNULL(0))
	{
		set_paused(batcher_monitor_lookup_for_change(queue_argument(fcinfo),
													 BATCHER_MANAGE),
				   paused, ERROR);
		return;
	}
	foreach(lc, batcher_definition_list())
	{
		BatcherQueueDef *def = lfirst(lc);

		if (batcher_definition_may(def, BATCHER_MANAGE) &&
			(def->paused != paused || def->paused_by_loss))
			set_paused(batcher_monitor_lookup_for_change(def->name,
														 BATCHER_MANAGE),
					   paused, WARNING);
	}
}

PG_FUNCTION_INFO_V1(batcher_pause);

/*
 * batch_pause(queue)
 */
Datum
batcher_pause(PG_FUNCTION_ARGS)
{
	pause_or_resume(fcinfo, true);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(batcher_resume);

/*
 * batch_resume(queue)
 */
Datum
batcher_resume(PG_FUNCTION_ARGS)
{
	pause_or_resume(fcinfo, false);
	PG_RETURN_VOID();
}
