/*
 * named.c
 *	  The relations and types that definitions name.
 *
 * They are stored as roles are: the OID counts, and a changed name is followed.
 * What is gone stays stored, and the flush says that it is gone.  After a
 * restore the OIDs mean nothing, and the names are looked up when the queue is
 * resumed.  A name is qualified and quoted as SQL needs it.  Clients and
 * workers.
 */
#include "postgres.h"

#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "nodes/makefuncs.h"
#include "parser/parse_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

/*
 * The name of a relation; NULL if it is gone.
 */
char *
batcher_named_relation(Oid relation)
{
	char	   *name = get_rel_name(relation);
	char	   *schema = name ? get_namespace_name(get_rel_namespace(relation)) :
		NULL;

	return schema ? quote_qualified_identifier(schema, name) : NULL;
}

/*
 * The name of a type; NULL if it is gone.
 */
char *
batcher_named_type(Oid type)
{
	if (!SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(type)))
		return NULL;
	return format_type_extended(type, -1, FORMAT_TYPE_FORCE_QUALIFY);
}

/* The parts of a qualified name. */
static List *
name_parts(const char *name)
{
	return textToQualifiedNameList(cstring_to_text(name));
}

/* Say that something that a definition names is not there. */
static bool
report_missing(const BatcherQueueDef *def, const char *what, const char *name,
			   int sqlstate, int elevel)
{
	ereport(elevel,
			(errcode(sqlstate),
			 errmsg("%s %s of queue \"%s\" does not exist", what, name,
					def->name),
			 errhint("Use batch_alter_queue.")));
	return false;
}

/*
 * Find again, by their names, the target and the row type of a definition that
 * was restored.  False if there is none of that name, after a message of
 * 'elevel'.
 */
bool
batcher_named_resolve(BatcherQueueDef *def, int elevel)
{
	Oid			found;

	if (def->target_name && !OidIsValid(def->target))
	{
		RangeVar   *relation =
			makeRangeVarFromNameList(name_parts(def->target_name));

		found = RangeVarGetRelid(relation, NoLock, true);
		if (!OidIsValid(found))
			return report_missing(def, "target", def->target_name,
								  ERRCODE_UNDEFINED_TABLE, elevel);
		def->target = found;
	}
	if (def->row_type_name && !OidIsValid(def->row_type))
	{
		TypeName   *type =
			makeTypeNameFromNameList(name_parts(def->row_type_name));

		found = LookupTypeNameOid(NULL, type, true);
		if (!OidIsValid(found))
			return report_missing(def, "row type", def->row_type_name,
								  ERRCODE_UNDEFINED_OBJECT, elevel);
		def->row_type = found;
	}
	return true;
}

/*
 * The type of a queue's rows, that of its target if it has none of its own.
 * InvalidOid: it is not typed, or the type or the target is gone.
 */
Oid
batcher_named_row_type(const BatcherQueueDef *def)
{
	if (def->row_type_name)
		return def->row_type;
	if (def->target_name && OidIsValid(def->target))
		return get_rel_type_id(def->target);
	return InvalidOid;
}
