/*
 * catalog.h
 *	  batcher's tables, as C values.
 */
#ifndef BATCHER_CATALOG_H
#define BATCHER_CATALOG_H

#include "access/htup.h"
#include "base/options.h"
#include "queue/chunk.h"
#include "storage/buf.h"
#include "storage/lockdefs.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/* Where the extension's objects are in this database. */
typedef struct BatcherCatalog
{
	BatcherDatabaseKey db;
	Oid			owner;			/* of the extension */
	Oid			schema;			/* "batcher" */
	Oid			queue_table;	/* batcher.queue_definition */
	Oid			queue_name_index;	/* its index on name */
	Oid			spool;			/* batcher.spool */
	Oid			number_sequence;	/* batcher.number */
	Oid			queue_id_sequence;	/* batcher.queue_id */
} BatcherCatalog;

/* The definition of a queue: one tuple of batcher.queue_definition. */
typedef struct BatcherQueueDef
{
	int32		id;
	char	   *name;
	Oid			owner;			/* role; InvalidOid: it is gone */
	char	   *owner_name;		/* as stored */
	char	   *flush_sql;		/* NULL: rows are only announced */
	char	   *search_path;	/* for flush_sql */
	Jsonb	   *given;			/* the options that were given */
	BatcherOptions options;		/* the effective ones */
	bool		paused;
	char	   *pause_reason;	/* NULL: none */
	TimestampTz created_at;
} BatcherQueueDef;

/* extension.c */
extern const BatcherCatalog *batcher_catalog_find(bool missing_ok);
extern BatcherSharedDatabase *batcher_catalog_database(void);
extern uint64 batcher_number_take(BatcherSharedDatabase *db);
extern void batcher_number_refill_early(BatcherSharedDatabase *db);
extern void batcher_number_renew(BatcherSharedDatabase *db, uint64 upto);

/* definition.c */
extern void batcher_definition_missing(const char *name, int len);
extern BatcherQueueDef *batcher_definition_by_name(const char *name);
extern List *batcher_definition_list(void);
extern bool batcher_definition_may_manage(const BatcherQueueDef *def);
extern BatcherQueueDef *batcher_definition_managed(const char *name);
extern int32 batcher_definition_insert(const BatcherQueueDef *def);
extern void batcher_definition_update(const BatcherQueueDef *def);
extern void batcher_definition_delete(int32 id);
extern Oid	batcher_definition_identity(const BatcherQueueDef *def);
extern BatcherSharedQueue *batcher_definition_shared(const BatcherQueueDef *def);
extern void batcher_definition_publish(const BatcherQueueDef *def,
									   BatcherSharedQueue *queue);
extern void batcher_definition_lock(int32 id, LOCKMODE lockmode);
extern void batcher_definition_lock_name(const char *name);
extern void batcher_definition_unlock(int32 id, LOCKMODE lockmode);

/* change.c: what a change of definitions does at commit */
extern bool batcher_definition_writing; /* our own function writes */
extern uint64 batcher_change_local; /* grows when this transaction's view of
									 * the definitions changes */
extern void batcher_change_freeze(BatcherSharedQueue *queue);
extern void batcher_change_note_created(BatcherSharedQueue *queue);
extern void batcher_change_note_dropped(BatcherSharedQueue *queue);
extern void batcher_change_install(void);

/* spool.c */
extern Relation batcher_spool_open(LOCKMODE lockmode);
extern uint64 batcher_spool_home(uint32 version);
extern bool batcher_spool_version(BatcherSharedDatabase *db, Relation spool,
								  uint32 *version);
extern bool batcher_spool_new_version(BatcherSharedDatabase *db,
									  Relation spool);
extern void batcher_spool_write(Relation spool, int32 queue_id,
								const BatcherChunk *chunk,
								BatcherRow *const *skip, int nskip,
								uint64 home, const char *enqueued_by,
								ItemPointer tid);
extern bool batcher_spool_delete(Relation spool, ItemPointer tid,
								 uint64 number, Buffer *pin);
extern BatcherChunk *batcher_spool_read(Relation spool, HeapTuple tuple);
extern uint64 batcher_spool_last_number(HeapTuple tuple, TupleDesc desc);
extern BatcherChunk *batcher_spool_fetch(Relation spool, Snapshot snapshot,
										 ItemPointer tid, uint64 number);
extern int64 batcher_spool_delete_queue(int32 queue_id);
extern int64 batcher_spool_count_queue(int32 queue_id);

/* What a scan of the spool tells of each tuple, before it is read. */
typedef struct BatcherSpoolEntry
{
	int32		queue_id;
	uint64		number;
	uint64		home;
	int			nrows;
	ItemPointerData tid;
} BatcherSpoolEntry;

typedef void (*BatcherSpoolVisitor) (HeapTuple tuple,
									 const BatcherSpoolEntry *entry,
									 void *arg);
extern void batcher_spool_scan(Relation spool, Snapshot snapshot,
							   BatcherSpoolVisitor visit, void *arg);

#endif							/* BATCHER_CATALOG_H */
