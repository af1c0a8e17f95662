/*
 * database_list.c
 *	  The databases that the launcher knows, and which of them wait for a look.
 *
 * Only a worker that is connected to a database can see whether the extension
 * is in it.  The launcher reads the shared catalog when it starts, and when it
 * is told that the list may have changed, and notes for each database whether
 * somebody should look into it.  Reading the catalog can fail, with any error;
 * what was known stays then.  The launcher only.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "pgstat.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "worker/launcher.h"

/* One row of pg_database. */
typedef struct FoundDatabase
{
	Oid			dboid;
	bool		connectable;
	bool		is_template;
} FoundDatabase;

static HTAB *known = NULL;

/* All databases, as a list of FoundDatabase in the current memory context. */
static List *
read_databases(void)
{
	MemoryContext result_context = CurrentMemoryContext;
	List	   *result = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();

	/* the scan registers a snapshot, which keeps away pruning */
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old = MemoryContextSwitchTo(result_context);
		FoundDatabase *found = palloc(sizeof(FoundDatabase));

		found->dboid = form->oid;
		found->connectable = form->datallowconn &&
			!database_is_invalid_form(form);
		found->is_template = form->datistemplate;
		result = lappend(result, found);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);

	CommitTransactionCommand();
	pgstat_report_stat(true);
	MemoryContextSwitchTo(result_context);
	return result;
}

/* Make the table of known databases, which lives as long as the process. */
static void
init_known(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(BatcherKnownDatabase);
	ctl.hcxt = TopMemoryContext;
	known = hash_create("batcher known databases", 64, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Read the list of databases anew.  A database that is new waits for a look;
 * with 'look_again', each does.  Uses the current memory context, and a
 * transaction of its own; errors are those of reading a catalog.
 */
void
batcher_database_list_refresh(bool look_again)
{
	List	   *databases = read_databases();
	BatcherKnownDatabase *db;
	HASH_SEQ_STATUS status;
	ListCell   *lc;

	if (known == NULL)
		init_known();

	hash_seq_init(&status, known);
	while ((db = hash_seq_search(&status)) != NULL)
		db->present = false;

	foreach(lc, databases)
	{
		FoundDatabase *row = lfirst(lc);
		bool		found;

		db = hash_search(known, &row->dboid, HASH_ENTER, &found);
		if (!found)
		{
			db->visit_wanted = 1;
			db->visit_done = 0;
		}
		else if (look_again)
			db->visit_wanted++;
		db->present = true;
		db->connectable = row->connectable;
		db->is_template = row->is_template;
	}

	hash_seq_init(&status, known);
	while ((db = hash_seq_search(&status)) != NULL)
	{
		if (!db->present)
			(void) hash_search(known, &db->dboid, HASH_REMOVE, NULL);
	}
}

/*
 * What is known of a database; NULL if it was not there at the last look.
 */
BatcherKnownDatabase *
batcher_database_list_find(Oid dboid)
{
	if (known == NULL)
		return NULL;
	return hash_search(known, &dboid, HASH_FIND, NULL);
}

/*
 * The databases that wait for a look and can have one, as a list of
 * BatcherKnownDatabase in the current memory context.  Template databases are
 * left alone: as long as nobody uses one there is nothing to do in it, and a
 * worker would be in the way of those who copy it.
 */
List *
batcher_database_list_unvisited(void)
{
	List	   *result = NIL;
	BatcherKnownDatabase *db;
	HASH_SEQ_STATUS status;

	hash_seq_init(&status, known);
	while ((db = hash_seq_search(&status)) != NULL)
	{
		if (db->visit_wanted != db->visit_done && db->connectable &&
			!db->is_template)
			result = lappend(result, db);
	}
	return result;
}
