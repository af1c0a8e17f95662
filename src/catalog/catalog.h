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
	Oid			queue_index;	/* its primary key */
	Oid			queue_name_index;	/* its index on name */
	Oid			grant_table;	/* batcher.queue_grant */
	Oid			grant_index;	/* its index on queue_id */
	Oid			spool;			/* batcher.spool */
	Oid			dead_table;		/* batcher.dead_row */
	Oid			dead_index;		/* its primary key */
	Oid			number_sequence;	/* batcher.number */
	Oid			number_table;	/* batcher.number_bound */
} BatcherCatalog;

/*
 * A table of ours may have more columns than this library knows, which a newer
 * version of the extension has added: the library that runs is the old one
 * until the server is restarted.  So many of them are read past, and written
 * as null.
 */
#define BATCHER_MORE_COLUMNS	16

/* The pause_reason of a queue that came from elsewhere. */
#define BATCHER_RESTORED	"restored"

/* The definition of a queue: one tuple of batcher.queue_definition. */
typedef struct BatcherQueueDef
{
	int32		id;
	char	   *name;
	Oid			owner;			/* role; InvalidOid: gone, or restored */
	Oid			gone_owner;		/* the role that owner was; InvalidOid: none */
	char	   *owner_name;		/* of today; else as stored */
	char	   *flush_sql;		/* NULL: none */
	Oid			target;			/* relation; if target_name is not NULL,
								 * InvalidOid: restored */
	char	   *target_name;	/* of today, qualified; else as stored; NULL:
								 * none */
	Oid			row_type;		/* the same of the type */
	char	   *row_type_name;
	char	   *search_path;	/* for the statement */
	char	   *notify_search_path; /* for notify_sql; NULL: none */
	Jsonb	   *given;			/* the options that were given */
	BatcherOptions options;		/* the effective ones */
	bool		paused;
	bool		paused_by_loss; /* only because the owner is gone */
	char	   *pause_reason;	/* NULL: none */
	TimestampTz created_at;
} BatcherQueueDef;

/*
 * What a role may do with a queue.  The owner may all of it, and nobody else
 * what is his alone: change its SQL, grant, drop it, give it away.  MANAGE
 * includes what comes before it here.
 */
typedef enum BatcherPrivilege
{
	BATCHER_LISTEN,
	BATCHER_ENQUEUE,
	BATCHER_MANAGE,
	BATCHER_OWN					/* cannot be granted */
} BatcherPrivilege;

/* A tuple of batcher.queue_grant. */
typedef struct BatcherGrant
{
	Oid			role;			/* InvalidOid: everybody */
	const char *role_name;
	BatcherPrivilege privilege;
} BatcherGrant;

/*
 * Does a flush execute a statement?  If not, rows are only announced.
 */
#define batcher_definition_executes(def) \
	((def)->flush_sql != NULL || (def)->target_name != NULL)

/* Are its rows those of a composite type, which may be gone? */
#define batcher_definition_typed(def) \
	((def)->row_type_name != NULL || (def)->target_name != NULL)

/* extension.c */
extern const BatcherCatalog *batcher_catalog_find(bool missing_ok);
extern Relation batcher_catalog_open(Oid relid, LOCKMODE lockmode);
extern void batcher_catalog_check_columns(TupleDesc desc, int known);
extern BatcherSharedDatabase *batcher_catalog_database(void);
extern uint64 batcher_number_take(BatcherSharedDatabase *db);
extern void batcher_number_refill_early(BatcherSharedDatabase *db);
extern void batcher_number_renew(BatcherSharedDatabase *db, uint64 upto);
extern void batcher_number_raise(uint64 bound);

/* definition.c */
extern void batcher_definition_missing(const char *name, int len);
extern BatcherQueueDef *batcher_definition_by_name(const char *name);
extern bool batcher_definition_exists(int32 id);
extern List *batcher_definition_list(void);
extern bool batcher_definition_may(const BatcherQueueDef *def,
								   BatcherPrivilege privilege);
extern BatcherQueueDef *batcher_definition_allowed(const char *name,
												   BatcherPrivilege privilege);
extern int32 batcher_definition_insert(const BatcherQueueDef *def);
extern void batcher_definition_update(const BatcherQueueDef *def);
extern void batcher_definition_set_owner(BatcherQueueDef *def, Oid owner);
extern void batcher_definition_delete(int32 id);
extern Oid	batcher_definition_identity(const BatcherQueueDef *def);
extern void batcher_definition_lock(int32 id, LOCKMODE lockmode);
extern void batcher_definition_lock_name(const char *name);
extern void batcher_definition_unlock(int32 id, LOCKMODE lockmode);

/* entry.c */
extern void batcher_entry_publish(const BatcherQueueDef *def,
								  BatcherQueueKey key,
								  const uint64 *generation);
extern BatcherSharedQueue *batcher_entry_make(BatcherQueueKey key, int nlanes,
											  bool fresh);
extern BatcherSharedQueue *batcher_entry_get(const BatcherQueueDef *def);
extern BatcherSharedQueue *batcher_entry_ensure(const BatcherQueueDef *def,
												BatcherQueueKey *key,
												bool *unserved);

/* named.c */
extern char *batcher_named_relation(Oid relation);
extern char *batcher_named_type(Oid type);
extern bool batcher_named_resolve(BatcherQueueDef *def, int elevel);
extern Oid	batcher_named_row_type(const BatcherQueueDef *def);

/* write.c */

/* What a statement that writes has returned. */
typedef struct BatcherWritten
{
	uint64		ntuples;
	HeapTuple  *tuples;
	TupleDesc	desc;
} BatcherWritten;

extern uint64 batcher_catalog_write(const char *sql, int nargs, Oid *types,
									Datum *values, const char *nulls,
									BatcherWritten *written);
/* grant.c */
extern const char *batcher_privilege_name(BatcherPrivilege privilege);
extern bool batcher_privilege_parse(const char *name,
									BatcherPrivilege *privilege);
extern List *batcher_grant_list(int32 queue_id);
extern bool batcher_grant_allows(int32 queue_id, Oid owner,
								 BatcherPrivilege privilege);
extern void batcher_grant_add(int32 queue_id, Oid role,
							  BatcherPrivilege privilege);
extern void batcher_grant_remove(int32 queue_id, Oid role,
								 BatcherPrivilege privilege);
extern void batcher_grant_remove_all(int32 queue_id);
extern void batcher_grant_resolve(const BatcherQueueDef *def);

/* change.c: what a change of definitions does at commit */
extern bool batcher_definition_writing; /* our own function writes */
extern uint64 batcher_change_local; /* grows when this transaction's view of
									 * the definitions changes */
extern bool batcher_change_is_open(void);
extern void batcher_change_freeze(BatcherSharedQueue *queue);
extern void batcher_change_close(BatcherSharedQueue *queue);
extern BatcherSharedQueue *batcher_change_bar(BatcherQueueKey key);
extern void batcher_change_note_arrival(void);
extern bool batcher_change_note_held(void);
extern void batcher_change_refuse_direct(Relation rel);
extern void batcher_change_note_lanes(void);
extern bool batcher_change_closes(BatcherSharedQueue *queue);
extern void batcher_change_note_created(BatcherSharedQueue *queue);
extern void batcher_change_note_altered(BatcherSharedQueue *queue);
extern void batcher_change_note_dropped(BatcherSharedQueue *queue);
extern void batcher_change_wake_workers(void);
extern void batcher_change_install(void);

/* spool.c */
extern const char *batcher_spool_enqueuer(const BatcherChunk *chunk);
extern uint64 batcher_spool_held_since;
extern Relation batcher_spool_open(LOCKMODE lockmode);
extern uint64 batcher_spool_home(uint32 version);
extern bool batcher_spool_version(BatcherSharedDatabase *db, Relation spool,
								  uint32 *version);
extern bool batcher_spool_new_version(BatcherSharedDatabase *db,
									  Relation spool);
extern void batcher_spool_write(Relation spool, const BatcherQueueKey *key,
								const BatcherChunk *chunk, uint64 number,
								BatcherRow *const *skip, int nskip,
								uint64 home, const char *enqueued_by,
								ItemPointer tid);
extern bool batcher_spool_delete(Relation spool, ItemPointer tid,
								 uint64 number, Buffer *pin);
extern int64 batcher_spool_delete_queue(int32 queue_id);
extern int64 batcher_spool_count_queue(int32 queue_id);
extern bool batcher_spool_find_ticket(int32 queue_id, uint64 ticket);

/* What a scan of the spool tells of each tuple, before it is read. */
typedef struct BatcherSpoolEntry
{
	int32		queue_id;
	int32		lane;
	uint64		number;
	uint64		home;
	int			nrows;
	ItemPointerData tid;
} BatcherSpoolEntry;

extern BatcherChunk *batcher_spool_fetch(Relation spool, Snapshot snapshot,
										 BatcherSpoolEntry *entry,
										 const char **why);
extern const BatcherSpoolEntry *batcher_spool_unreadable(void);

typedef void (*BatcherSpoolVisitor) (HeapTuple tuple,
									 const BatcherSpoolEntry *entry,
									 void *arg);
extern void batcher_spool_scan(Relation spool, Snapshot snapshot,
							   BatcherSpoolVisitor visit, void *arg);

/* dead.c */

/* A dead letter: one tuple of batcher.dead_row. */
typedef struct BatcherDeadLetter
{
	int32		queue_id;
	BatcherRowParts row;		/* payload NULL: it could not be read */
	char	   *sqlstate;
	char	   *message;
	char	   *detail;			/* NULL: none */
	char	   *context;		/* NULL: none */
	int			attempts;
	TimestampTz enqueued_at;	/* 0: unknown */
	char	   *enqueued_by;	/* NULL: unknown */
	Oid			enqueuer;		/* that role, InvalidOid: it was gone */
	TimestampTz died_at;
} BatcherDeadLetter;

typedef void (*BatcherDeadVisitor) (const BatcherDeadLetter *dead, void *arg);

extern void batcher_dead_insert(int32 queue_id, const BatcherChunk *chunk,
								BatcherRow *row, const ErrorData *error);
extern void batcher_dead_insert_unreadable(const BatcherSpoolEntry *entry,
										   int sqlerrcode, const char *why);
extern void batcher_dead_scan(BatcherDeadVisitor visit, void *arg);
extern uint64 batcher_dead_ticket(HeapTuple tuple, TupleDesc desc);
extern bool batcher_dead_exists(int32 queue_id, uint64 ticket);
extern uint64 batcher_dead_delete(int32 queue_id, Datum tickets);
extern BatcherDeadLetter *batcher_dead_take(int32 queue_id, Datum tickets,
											int64 after, int max, int *n);

/* spool_tuple.c */
extern HeapTuple batcher_spool_form(TupleDesc desc, const BatcherQueueKey *key,
									const BatcherChunk *chunk, uint64 number,
									BatcherRow *const *skip, int nskip,
									uint64 home, const char *enqueued_by);
extern uint64 batcher_spool_number(HeapTuple tuple, TupleDesc desc);
extern uint64 batcher_spool_tuple_home(HeapTuple tuple, TupleDesc desc);
extern TimestampTz batcher_spool_tuple_time(HeapTuple tuple, TupleDesc desc);
extern int32 batcher_spool_queue_id(HeapTuple tuple, TupleDesc desc);
extern void batcher_spool_entry(HeapTuple tuple, TupleDesc desc,
								BatcherSpoolEntry *entry);
extern BatcherChunk *batcher_spool_read(Relation spool, HeapTuple tuple,
										const char **why);
extern uint64 batcher_spool_last_number(HeapTuple tuple, TupleDesc desc);
extern bool batcher_spool_has_ticket(HeapTuple tuple, TupleDesc desc,
									 uint64 ticket);

#endif							/* BATCHER_CATALOG_H */
