/*
 * row_type.h
 *	  The rows of typed queues: composite types, and payloads of their values.
 */
#ifndef BATCHER_ROW_TYPE_H
#define BATCHER_ROW_TYPE_H

#include "catalog/catalog.h"
#include "fmgr.h"

/* May a row give this column a value? */
typedef enum BatcherColumnUse
{
	BATCHER_COLUMN_FREE,
	BATCHER_COLUMN_GENERATED,	/* the target computes it */
	BATCHER_COLUMN_IDENTITY,	/* the target always numbers it */
	BATCHER_COLUMN_ABSENT		/* the target has none of that name */
} BatcherColumnUse;

/*
 * A column, and how a value of it is made from JSON: of 'read_type', which is
 * its type, or, where payloads are checked, the type under its domains.
 */
typedef struct BatcherColumn
{
	char	   *name;
	Oid			type;
	int32		typmod;
	Oid			collation;
	BatcherColumnUse use;
	bool		builtin;		/* reading it runs nothing that a user wrote */
	bool		unsettled;		/* its text means what the session's settings
								 * say */
	Oid			read_type;
	int32		read_typmod;
	bool		is_json;		/* json, jsonb or a domain over them */
	Oid			composite;		/* the type under its domains, or that of its
								 * elements, if that is composite */
	struct BatcherRowType *nested;	/* what that is now, for a check; NULL: not
									 * needed yet */
	bool		ready;			/* the next are set */
	FmgrInfo	input;
	Oid			ioparam;
	FmgrInfo   *populate;		/* NULL: not needed yet */
	Datum		empty;			/* for it: a record of a null of read_type */
	TupleDesc	desc;			/* and the type of that */
} BatcherColumn;

/* A composite type as it was when it was looked at; dropped columns are not. */
typedef struct BatcherRowType
{
	MemoryContext cxt;			/* of all of it */
	uint64		number;			/* of each that was made another; not its place */
	Oid			type;
	uint64		identifier;		/* differs when the type has changed */
	Oid			target;			/* InvalidOid: none */
	uint64		target_identifier;
	int			ncolumns;
	BatcherColumn *columns;
} BatcherRowType;

/* row_type.c */
extern BatcherRowType *batcher_row_type_refresh(BatcherRowType *known,
												Oid type, Oid target,
												bool checking);
extern void batcher_row_type_free(BatcherRowType *row_type);
extern BatcherColumn *batcher_row_type_column(const BatcherRowType *row_type,
											  const char *name, int len);
extern bool batcher_row_type_named(const BatcherColumn *column,
								   Jsonb *payload);
extern void batcher_row_type_read(BatcherRowType *row_type, Jsonb *payload,
								  Datum *values, bool *nulls);
extern Datum batcher_row_type_read_column(BatcherRowType *row_type, int column,
										  Jsonb *payload, bool *isnull);
extern Datum batcher_row_type_read_member(BatcherRowType *row_type,
										  BatcherColumn *column,
										  Jsonb *payload, JsonbValue *member,
										  bool *isnull);
extern void batcher_row_type_require_object(Jsonb *payload);
extern bool batcher_row_type_builtin(Oid base);
extern bool batcher_row_type_unsettled(Oid type);

/* row_check.c */
extern Jsonb *batcher_row_type_check(BatcherRowType *row_type, Jsonb *payload,
									 const char *queue_name);

/* row_json.c */
extern int	batcher_row_json_settings_begin(bool writing);
extern void batcher_row_json_settings_end(int level);
extern char *batcher_row_json_text(Datum value, Oid type);
extern void batcher_row_json_push(JsonbParseState **state,
							  JsonbIteratorToken token, Datum value,
							  bool isnull, Oid type, bool exact);
extern Jsonb *batcher_row_json_record(Datum record, BatcherRowType *row_type,
									 const char *queue_name);

#endif							/* BATCHER_ROW_TYPE_H */
