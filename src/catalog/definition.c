/*
 * definition.c
 *	  The definitions of queues: tuples of batcher.queue_definition.
 *
 * Read by catalog scans with a snapshot of this moment, as the server's own
 * catalogs are, so that a session in an old snapshot does not enqueue under a
 * definition of yesterday.  Written as the owner of the
 * extension; who may write is decided by the callers.  Clients and workers.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/debug.h"
#include "catalog/catalog.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

/* Columns of batcher.queue_definition. */
enum
{
	COL_ID = 1,
	COL_NAME,
	COL_OWNER,
	COL_OWNER_NAME,
	COL_FLUSH_SQL,
	COL_SEARCH_PATH,
	COL_OPTIONS,
	COL_PAUSED,
	COL_PAUSE_REASON,
	COL_DATABASE,
	COL_CREATED_AT,
	COL_NOTIFY_SEARCH_PATH,
	COL_TARGET,
	COL_TARGET_NAME,
	COL_ROW_TYPE,
	COL_ROW_TYPE_NAME,
	NUM_COLS = COL_ROW_TYPE_NAME
};

static char *
text_or_null(Datum value, bool isnull)
{
	return isnull ? NULL : TextDatumGetCString(value);
}

/*
 * What a queue is for: the OIDs count, changed names are followed.
 */
static void
read_names(BatcherQueueDef *def, Datum *values, bool *nulls)
{
	char	   *name;

	def->target_name = text_or_null(values[COL_TARGET_NAME],
									nulls[COL_TARGET_NAME]);
	if (def->target_name)
	{
		def->target = DatumGetObjectId(values[COL_TARGET]);
		name = batcher_named_relation(def->target);
		def->target_name = name ? name : def->target_name;
	}
	def->row_type_name = text_or_null(values[COL_ROW_TYPE_NAME],
									  nulls[COL_ROW_TYPE_NAME]);
	if (def->row_type_name)
	{
		def->row_type = DatumGetObjectId(values[COL_ROW_TYPE]);
		name = batcher_named_type(def->row_type);
		def->row_type_name = name ? name : def->row_type_name;
	}
}

/* A definition from its tuple, in the current context. */
static BatcherQueueDef *
read_definition(HeapTuple tuple, TupleDesc desc)
{
	Datum		values[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
	bool		nulls[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
	BatcherQueueDef *def = palloc0(sizeof(BatcherQueueDef));
	char	   *role_name;

	batcher_catalog_check_columns(desc, NUM_COLS);
	heap_deform_tuple(tuple, desc, values + 1, nulls + 1);
	def->id = DatumGetInt32(values[COL_ID]);
	def->name = TextDatumGetCString(values[COL_NAME]);
	def->owner = DatumGetObjectId(values[COL_OWNER]);
	def->owner_name = TextDatumGetCString(values[COL_OWNER_NAME]);
	def->flush_sql = text_or_null(values[COL_FLUSH_SQL],
								  nulls[COL_FLUSH_SQL]);
	def->search_path = TextDatumGetCString(values[COL_SEARCH_PATH]);
	def->given = DatumGetJsonbPCopy(values[COL_OPTIONS]);
	batcher_options_resolve(def->given, &def->options);
	def->paused = DatumGetBool(values[COL_PAUSED]);
	def->pause_reason = text_or_null(values[COL_PAUSE_REASON],
									 nulls[COL_PAUSE_REASON]);
	def->created_at = DatumGetTimestampTz(values[COL_CREATED_AT]);
	def->notify_search_path = text_or_null(values[COL_NOTIFY_SEARCH_PATH],
										   nulls[COL_NOTIFY_SEARCH_PATH]);
	read_names(def, values, nulls);

	/*
	 * Another database's queue came here by CREATE DATABASE ... TEMPLATE, or
	 * by a restore: it is held until batch_resume.  Whoever reads it sees it
	 * so, from the first moment on.
	 */
	if (DatumGetObjectId(values[COL_DATABASE]) != MyDatabaseId)
	{
		def->paused = true;
		def->pause_reason = pstrdup(BATCHER_RESTORED);
	}

	/* The OID counts; a changed name is followed. */
	role_name = OidIsValid(def->owner) ?
		GetUserNameFromId(def->owner, true) : NULL;
	if (role_name)
		def->owner_name = role_name;
	else
	{
		def->gone_owner = def->owner;
		def->owner = InvalidOid;
		if (!def->paused)
		{
			def->paused = true;
			def->paused_by_loss = true;
			def->pause_reason = psprintf("owner \"%s\" is gone",
										 def->owner_name);
		}
	}
	return def;
}

/*
 * Raise the error (42704) for a name, of 'len' bytes, that no queue has.
 */
void
batcher_definition_missing(const char *name, int len)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("queue \"%s\" does not exist",
					batcher_option_clip(name, len))));
}

/*
 * The definition of the queue with this name, in the current context; NULL if
 * there is none.
 */
BatcherQueueDef *
batcher_definition_by_name(const char *name)
{
	const BatcherCatalog *cat = batcher_catalog_find(false);
	Relation	rel = batcher_catalog_open(cat->queue_table, AccessShareLock);
	BatcherQueueDef *def = NULL;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, COL_NAME, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(name));
	scan = systable_beginscan(rel, cat->queue_name_index, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		def = read_definition(tuple, RelationGetDescr(rel));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return def;
}

/*
 * Is there a queue with this id?
 */
bool
batcher_definition_exists(int32 id)
{
	const BatcherCatalog *cat = batcher_catalog_find(false);
	Relation	rel = batcher_catalog_open(cat->queue_table, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	bool		found;

	ScanKeyInit(&key, COL_ID, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(id));
	scan = systable_beginscan(rel, cat->queue_index, true, NULL, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * All definitions of this database, in the order of their names, as a list of
 * BatcherQueueDef in the current context.
 */
List *
batcher_definition_list(void)
{
	const BatcherCatalog *cat = batcher_catalog_find(false);
	Relation	rel = batcher_catalog_open(cat->queue_table, AccessShareLock);
	Relation	index = index_open(cat->queue_name_index, AccessShareLock);
	List	   *list = NIL;
	SysScanDesc scan;
	HeapTuple	tuple;

	scan = systable_beginscan_ordered(rel, index, NULL, 0, NULL);
	while ((tuple = systable_getnext_ordered(scan,
											 ForwardScanDirection)) != NULL)
		list = lappend(list, read_definition(tuple, RelationGetDescr(rel)));
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return list;
}

/*
 * May the current user do this with a queue?  See grant.c.
 */
bool
batcher_definition_may(const BatcherQueueDef *def, BatcherPrivilege privilege)
{
	return batcher_grant_allows(def->id, def->owner, privilege);
}

/*
 * The definition of the queue with this name, with which the current user may
 * do this.  Errors: 42704, 42501.
 */
BatcherQueueDef *
batcher_definition_allowed(const char *name, BatcherPrivilege privilege)
{
	BatcherQueueDef *def = batcher_definition_by_name(name);

	if (def == NULL)
		batcher_definition_missing(name, strlen(name));
	if (!batcher_definition_may(def, privilege))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 privilege == BATCHER_OWN ?
				 errmsg("must be owner of queue \"%s\"", name) :
				 errmsg("permission denied for queue \"%s\"", name)));
	return def;
}

/* Write one tuple of the definitions. */
static void
write_definition(const char *sql, int nargs, Oid *types, Datum *values,
				 const char *nulls)
{
	uint64		affected = batcher_catalog_write(sql, nargs, types, values,
												 nulls, NULL);

	if (affected != 1)
		elog(ERROR, "could not write the definition of a queue: " UINT64_FORMAT " rows",
			 affected);
}

static Datum
text_datum(const char *s)
{
	return s ? CStringGetTextDatum(s) : (Datum) 0;
}

/*
 * Give a queue an owner, who is not gone.
 */
void
batcher_definition_set_owner(BatcherQueueDef *def, Oid owner)
{
	def->owner = owner;
	def->gone_owner = InvalidOid;
	def->owner_name = GetUserNameFromId(owner, false);
	if (def->paused_by_loss)
	{
		def->paused = def->paused_by_loss = false;
		def->pause_reason = NULL;
	}
}

/* The values of the columns of 'def', for write_definition. */
static void
definition_values(const BatcherQueueDef *def, Oid *types, Datum *values,
				  char *nulls)
{
	static const Oid column_types[NUM_COLS] = {
		INT4OID, TEXTOID, OIDOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID,
		BOOLOID, TEXTOID, OIDOID, TIMESTAMPTZOID, TEXTOID, OIDOID, TEXTOID,
		OIDOID, TEXTOID
	};

	memcpy(types, column_types, sizeof(column_types));
	memset(nulls, ' ', NUM_COLS);
	values[COL_ID - 1] = Int32GetDatum(def->id);
	values[COL_NAME - 1] = text_datum(def->name);
	values[COL_OWNER - 1] =
		ObjectIdGetDatum(OidIsValid(def->gone_owner) ? def->gone_owner :
						 def->owner);
	values[COL_OWNER_NAME - 1] = text_datum(def->owner_name);
	values[COL_FLUSH_SQL - 1] = text_datum(def->flush_sql);
	values[COL_SEARCH_PATH - 1] = text_datum(def->search_path);
	values[COL_OPTIONS - 1] = JsonbPGetDatum(def->given);
	values[COL_PAUSED - 1] = BoolGetDatum(def->paused && !def->paused_by_loss);
	values[COL_PAUSE_REASON - 1] = text_datum(def->pause_reason);
	values[COL_DATABASE - 1] = ObjectIdGetDatum(MyDatabaseId);
	values[COL_CREATED_AT - 1] = TimestampTzGetDatum(def->created_at);
	values[COL_NOTIFY_SEARCH_PATH - 1] = text_datum(def->notify_search_path);
	if (def->notify_search_path == NULL)
		nulls[COL_NOTIFY_SEARCH_PATH - 1] = 'n';
	values[COL_TARGET - 1] = ObjectIdGetDatum(def->target);
	values[COL_TARGET_NAME - 1] = text_datum(def->target_name);
	values[COL_ROW_TYPE - 1] = ObjectIdGetDatum(def->row_type);
	values[COL_ROW_TYPE_NAME - 1] = text_datum(def->row_type_name);
	if (def->flush_sql == NULL)
		nulls[COL_FLUSH_SQL - 1] = 'n';
	if (def->target_name == NULL)
		nulls[COL_TARGET - 1] = nulls[COL_TARGET_NAME - 1] = 'n';
	if (def->row_type_name == NULL)
		nulls[COL_ROW_TYPE - 1] = nulls[COL_ROW_TYPE_NAME - 1] = 'n';
	if (def->pause_reason == NULL || def->paused_by_loss)
		nulls[COL_PAUSE_REASON - 1] = 'n';
}

/*
 * Store a new definition; its id is given here and returned.  It is a random
 * one: numbers in turn would be those of other queues in a database that this
 * one's dump is restored into.
 */
int32
batcher_definition_insert(const BatcherQueueDef *def)
{
	BatcherQueueDef copy = *def;
	Oid			types[NUM_COLS];
	Datum		values[NUM_COLS];
	char		nulls[NUM_COLS];

	do
	{
		copy.id = pg_prng_uint64_range(&pg_global_prng_state, 1, PG_INT32_MAX);
	} while (batcher_definition_exists(copy.id));
	definition_values(&copy, types, values, nulls);
	write_definition("INSERT INTO batcher.queue_definition (id, name, owner,"
				   " owner_name, flush_sql, search_path, options, paused,"
				   " pause_reason, database, created_at, notify_search_path,"
				   " target, target_name, row_type, row_type_name)"
				   " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11,"
				   " $12, $13, $14, $15, $16)",
				   NUM_COLS, types, values, nulls);
	return copy.id;
}

/*
 * Store a changed definition.
 */
void
batcher_definition_update(const BatcherQueueDef *def)
{
	Oid			types[NUM_COLS];
	Datum		values[NUM_COLS];
	char		nulls[NUM_COLS];

	definition_values(def, types, values, nulls);
	write_definition("UPDATE batcher.queue_definition SET name = $2,"
				   " owner = $3, owner_name = $4, flush_sql = $5,"
				   " search_path = $6, options = $7, paused = $8,"
				   " pause_reason = $9, database = $10, created_at = $11,"
				   " notify_search_path = $12, target = $13,"
				   " target_name = $14, row_type = $15, row_type_name = $16"
				   " WHERE id = $1",
				   NUM_COLS, types, values, nulls);
}

/*
 * Remove a definition.
 */
void
batcher_definition_delete(int32 id)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(id)};

	write_definition("DELETE FROM batcher.queue_definition WHERE id = $1",
				   1, types, values, " ");
}

/*
 * Which kind of worker may flush a queue: InvalidOid for the queues of
 * superusers, which share one, else the owner.
 */
Oid
batcher_definition_identity(const BatcherQueueDef *def)
{
	return superuser_arg(def->owner) ? InvalidOid : def->owner;
}

/*
 * Lock a queue against changes of its definition (AccessShareLock), or for
 * one (AccessExclusiveLock), until the end of the transaction.
 */
void
batcher_definition_lock(int32 id, LOCKMODE lockmode)
{
	LockDatabaseObject(batcher_catalog_find(false)->queue_table, id, 0,
					   lockmode);
}

/*
 * Lock a name, so that of those who make a queue of that name the first is
 * seen by the others, until the end of the transaction.
 */
void
batcher_definition_lock_name(const char *name)
{
	LockDatabaseObject(batcher_catalog_find(false)->queue_table,
					   hash_bytes((const unsigned char *) name, strlen(name)),
					   1, ExclusiveLock);
}

/*
 * Give up a lock of batcher_definition_lock.
 */
void
batcher_definition_unlock(int32 id, LOCKMODE lockmode)
{
	UnlockDatabaseObject(batcher_catalog_find(false)->queue_table, id, 0,
						 lockmode);
}
