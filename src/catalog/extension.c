/*
 * extension.c
 *	  Where the extension's objects are in this database, and the numbers that
 *	  it gives out.
 *
 * The OIDs are looked up once per backend and forgotten when the relation
 * cache hears of a change of one of our tables, or of everything.  Whoever
 * goes on to use a table locks it, which brings such news.  Any process that
 * is connected to a database.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "base/debug.h"
#include "catalog/catalog.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* The increment of the sequence batcher.number. */
#define NUMBER_INCREMENT	1048576

static BatcherCatalog catalog;
static bool catalog_valid = false;
static bool callback_registered = false;
static BatcherSharedDatabase *my_database = NULL;

static void
forget_catalog(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == catalog.spool ||
		relid == catalog.queue_table || relid == catalog.grant_table ||
		relid == catalog.dead_table)
		catalog_valid = false;
}

/* The owner of the extension. */
static Oid
extension_owner(Oid extoid)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			owner = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extoid));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return owner;
}

static void
raise_not_installed(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension \"%s\" is not installed in this database",
					"batcher"),
			 errhint("Use CREATE EXTENSION.")));
}

/*
 * Where the extension's objects are.  If the extension is not in this
 * database: NULL if 'missing_ok', else an ERROR (55000).  Needs a
 * transaction.  The answer holds until invalidation messages are accepted.
 */
const BatcherCatalog *
batcher_catalog_find(bool missing_ok)
{
	BatcherCatalog found;

	if (likely(catalog_valid))
		return &catalog;

	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(forget_catalog, (Datum) 0);
		callback_registered = true;
	}

	memset(&found, 0, sizeof(found));
	found.db.dboid = MyDatabaseId;
	found.db.extoid = get_extension_oid("batcher", true);
	if (OidIsValid(found.db.extoid))
	{
		found.owner = extension_owner(found.db.extoid);
		found.schema = get_namespace_oid("batcher", true);
		found.queue_table = get_relname_relid("queue_definition", found.schema);
		found.queue_index = get_relname_relid("queue_definition_pkey",
											  found.schema);
		found.queue_name_index =
			get_relname_relid("queue_definition_name_key", found.schema);
		found.grant_table = get_relname_relid("queue_grant", found.schema);
		found.grant_index = get_relname_relid("queue_grant_pkey",
											  found.schema);
		found.spool = get_relname_relid("spool", found.schema);
		found.dead_table = get_relname_relid("dead_row", found.schema);
		found.dead_index = get_relname_relid("dead_row_pkey", found.schema);
		found.number_sequence = get_relname_relid("number", found.schema);
		found.number_table = get_relname_relid("number_bound", found.schema);
	}
	if (!OidIsValid(found.db.extoid) || !OidIsValid(found.spool) ||
		!OidIsValid(found.queue_table) || !OidIsValid(found.grant_table))
	{
		if (missing_ok)
			return NULL;
		raise_not_installed();
	}
	if (found.db.extoid != catalog.db.extoid)
		my_database = NULL;
	catalog = found;
	catalog_valid = true;
	return &catalog;
}

/*
 * Open a table of ours, whose OID is in the catalog.  Who waits for the lock
 * behind a DROP EXTENSION gets the same ERROR (55000) as who comes later.
 */
Relation
batcher_catalog_open(Oid relid, LOCKMODE lockmode)
{
	Relation	rel = try_table_open(relid, lockmode);

	if (rel == NULL)
		raise_not_installed();
	return rel;
}

/*
 * Check that a table of ours has the 'known' columns of this library, and at
 * most BATCHER_MORE_COLUMNS of a newer one.  An ERROR (55000) if not.
 */
void
batcher_catalog_check_columns(TupleDesc desc, int known)
{
	if (desc->natts < known || desc->natts > known + BATCHER_MORE_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the version of extension \"%s\" does not fit the library that is loaded",
						"batcher"),
				 desc->natts < known ?
				 errhint("Use ALTER EXTENSION batcher UPDATE.") :
				 errhint("Restart the server.")));
}

/*
 * The shared state of this database, made if need be.  Errors: as
 * batcher_catalog_find, and 55000 if the library is not preloaded.
 */
BatcherSharedDatabase *
batcher_catalog_database(void)
{
	const BatcherCatalog *cat = batcher_catalog_find(false);

	if (likely(my_database != NULL))
		return my_database;
	batcher_shmem_require();
	my_database = batcher_shmem_database(cat->db, true);
	return my_database;
}

/*
 * The next value of the sequence.  If it is below 'limit', because numbers that
 * a restore brought are above the sequence, that is moved there first: as its
 * owner, because the caller need have no right to it.  The caller holds the
 * lock of numbers, so that nobody moves it back.
 */
static uint64
next_bound(uint64 limit)
{
	const BatcherCatalog *cat = batcher_catalog_find(false);
	uint64		first = nextval_internal(cat->number_sequence, false);
	Oid			user;
	int			context;

	if (first >= limit)
		return first;
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(cat->owner, context | SECURITY_LOCAL_USERID_CHANGE);
	(void) DirectFunctionCall2(setval_oid,
							   ObjectIdGetDatum(cat->number_sequence),
							   Int64GetDatum(limit));
	SetUserIdAndSecContext(user, context);
	return nextval_internal(cat->number_sequence, false);
}

/*
 * Persist a higher bound of numbers.  The record of the sequence is flushed
 * before a number of the new range is used, so that none repeats after a
 * crash.  Neither a read-only transaction nor a rolled back one matters: the
 * sequence is not transactional and the numbers are ours.  One process at a
 * time, so that nobody moves the sequence back.
 */
static void
refill_numbers(BatcherSharedDatabase *db)
{
	Oid			extoid = batcher_catalog_find(false)->db.extoid;
	bool		read_only = XactReadOnly;
	uint64		first;
	uint64		limit;

	batcher_debug_point("numbers");
	LockDatabaseObject(ExtensionRelationId, extoid, 2, ExclusiveLock);
	XactReadOnly = false;
	PG_TRY();
	{
		first = next_bound(pg_atomic_read_u64(&db->number_limit));
	}
	PG_FINALLY();
	{
		XactReadOnly = read_only;
	}
	PG_END_TRY();
	if (!XLogRecPtrIsInvalid(XactLastRecEnd))
		XLogFlush(XactLastRecEnd);

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	limit = pg_atomic_read_u64(&db->number_limit);
	if (first >= limit)
	{
		/*
		 * Numbers between the old limit and 'first' are not ours; move on
		 * before the limit is raised, so that nobody is given one.
		 */
		if (first != limit)
			pg_atomic_write_u64(&db->next_number, first);
		pg_memory_barrier();
		pg_atomic_write_u64(&db->number_limit, first + NUMBER_INCREMENT);
	}
	LWLockRelease(&batcher_shared->lock);
	UnlockDatabaseObject(ExtensionRelationId, extoid, 2, ExclusiveLock);
}

/*
 * Give out a number (a ticket, or the number of a chunk), never given before
 * in this database.  Seldom writes WAL, and may fail then.
 */
uint64
batcher_number_take(BatcherSharedDatabase *db)
{
	for (;;)
	{
		/*
		 * The limit first: a number drawn before the range was changed is
		 * not to be held against the limit of the next.
		 */
		uint64		limit = pg_atomic_read_u64(&db->number_limit);
		uint64		number = pg_atomic_fetch_add_u64(&db->next_number, 1);

		if (likely(number < limit))
			return number;
		if (pg_atomic_read_u64(&db->number_limit) == limit)
			refill_numbers(db);
	}
}

/*
 * Persist a higher bound before clients run into it.  Workers, in a
 * transaction.
 */
void
batcher_number_refill_early(BatcherSharedDatabase *db)
{
	if (pg_atomic_read_u64(&db->next_number) + NUMBER_INCREMENT / 2 >
		pg_atomic_read_u64(&db->number_limit))
		refill_numbers(db);
}

/*
 * A restore has brought numbers below 'upto': give none of them, and persist a
 * bound above them before the next one is given.
 */
void
batcher_number_renew(BatcherSharedDatabase *db, uint64 upto)
{
	uint64		next;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	next = pg_atomic_read_u64(&db->next_number);
	while (next < upto &&
		   !pg_atomic_compare_exchange_u64(&db->next_number, &next, upto))
		;
	pg_memory_barrier();
	pg_atomic_write_u64(&db->number_limit, Max(next, upto));
	LWLockRelease(&batcher_shared->lock);
}

/*
 * Elsewhere numbers were given below this value of the sequence and its
 * increment: none of them is given here, not after a crash either.  With or
 * without shared memory.
 */
void
batcher_number_raise(uint64 bound)
{
	Oid			extoid = batcher_catalog_find(false)->db.extoid;

	LockDatabaseObject(ExtensionRelationId, extoid, 2, ExclusiveLock);
	(void) next_bound(bound);
	UnlockDatabaseObject(ExtensionRelationId, extoid, 2, ExclusiveLock);
	if (batcher_shared)
		batcher_number_renew(batcher_catalog_database(),
							 bound + NUMBER_INCREMENT);
}
