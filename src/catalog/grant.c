/*
 * grant.c
 *	  Who may do what with a queue: tuples of batcher.queue_grant, and the one
 *	  function that decides.
 *
 * A grant is to a role, by its OID, or to everybody, which is the name
 * "public" and no OID.  The name of the role is stored too, for a restore
 * into a server where the OID means nothing or somebody else: what arrives
 * has no OID, and gives nothing until batch_resume finds the role by name.
 * A role that is renamed keeps its grants, and those of a role that is gone
 * give nothing.
 *
 * Read as the definitions are, see definition.c; written by callers who have
 * locked the queue.  Client backends.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/catalog.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

/* Columns of batcher.queue_grant. */
enum
{
	COL_QUEUE_ID = 1,
	COL_ROLE,
	COL_ROLE_NAME,
	COL_PRIVILEGE,
	NUM_COLS = COL_PRIVILEGE
};

#define EVERYBODY	"public"

static const char *const privilege_names[] = {
	[BATCHER_LISTEN] = "listen",
	[BATCHER_ENQUEUE] = "enqueue",
	[BATCHER_MANAGE] = "manage",
};

/*
 * The name of a privilege that can be granted.
 */
const char *
batcher_privilege_name(BatcherPrivilege privilege)
{
	Assert(privilege < lengthof(privilege_names));
	return privilege_names[privilege];
}

/*
 * The privilege of that name, in whatever case; false if there is none.
 */
bool
batcher_privilege_parse(const char *name, BatcherPrivilege *privilege)
{
	int			i;

	for (i = 0; i < lengthof(privilege_names); i++)
	{
		if (pg_strcasecmp(name, privilege_names[i]) == 0)
		{
			*privilege = i;
			return true;
		}
	}
	return false;
}

/* Has this grant come by a restore, and not been given to a role yet? */
static bool
is_unresolved(const BatcherGrant *grant)
{
	return !OidIsValid(grant->role) &&
		strcmp(grant->role_name, EVERYBODY) != 0;
}

/* All grants on a queue as they are stored, in the current context. */
static List *
read_grants(int32 queue_id)
{
	const BatcherCatalog *cat = batcher_catalog_find(false);
	Relation	rel = batcher_catalog_open(cat->grant_table, AccessShareLock);
	List	   *list = NIL;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	batcher_catalog_check_columns(RelationGetDescr(rel), NUM_COLS);
	ScanKeyInit(&key, COL_QUEUE_ID, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(queue_id));
	scan = systable_beginscan(rel, cat->grant_index, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		values[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
		bool		nulls[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
		BatcherGrant *grant = palloc(sizeof(BatcherGrant));

		heap_deform_tuple(tuple, RelationGetDescr(rel), values + 1, nulls + 1);
		grant->role = DatumGetObjectId(values[COL_ROLE]);
		grant->role_name = TextDatumGetCString(values[COL_ROLE_NAME]);
		/* another version may have stored what we do not know */
		if (batcher_privilege_parse(TextDatumGetCString(values[COL_PRIVILEGE]),
									&grant->privilege))
			list = lappend(list, grant);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return list;
}

/*
 * The grants on a queue that are in force, with the names that the roles have
 * now, as a list of BatcherGrant in the current context.
 */
List *
batcher_grant_list(int32 queue_id)
{
	List	   *list = NIL;
	ListCell   *lc;

	foreach(lc, read_grants(queue_id))
	{
		BatcherGrant *grant = lfirst(lc);

		if (is_unresolved(grant))
			continue;
		if (OidIsValid(grant->role))
			grant->role_name = GetUserNameFromId(grant->role, true);
		if (grant->role_name)
			list = lappend(list, grant);
	}
	return list;
}

/*
 * May the current user do this with a queue of that id and owner?  Superusers
 * may, and who has the privileges of the owner; but for what is the owner's
 * alone, also who has those of a role that was granted it, or 'manage'.  An
 * owner that is gone is InvalidOid.
 */
bool
batcher_grant_allows(int32 queue_id, Oid owner, BatcherPrivilege privilege)
{
	Oid			user = GetUserId();
	ListCell   *lc;

	if (superuser_arg(user) ||
		(OidIsValid(owner) && has_privs_of_role(user, owner)))
		return true;
	if (privilege == BATCHER_OWN)
		return false;
	foreach(lc, batcher_grant_list(queue_id))
	{
		const BatcherGrant *grant = lfirst(lc);

		if ((grant->privilege == privilege ||
			 grant->privilege == BATCHER_MANAGE) &&
			(!OidIsValid(grant->role) || has_privs_of_role(user, grant->role)))
			return true;
	}
	return false;
}

/* Run a statement about one grant; it need not use all of $1 to $4. */
static void
write_grant(const char *sql, int32 queue_id, Oid role, const char *role_name,
			BatcherPrivilege privilege)
{
	Oid			types[] = {INT4OID, OIDOID, TEXTOID, TEXTOID};
	Datum		values[NUM_COLS];

	values[COL_QUEUE_ID - 1] = Int32GetDatum(queue_id);
	values[COL_ROLE - 1] = ObjectIdGetDatum(role);
	values[COL_ROLE_NAME - 1] = CStringGetTextDatum(role_name);
	values[COL_PRIVILEGE - 1] =
		CStringGetTextDatum(batcher_privilege_name(privilege));
	(void) batcher_catalog_write(sql, NUM_COLS, types, values, "    ",
								 NULL);
}

/* Remove what is to be found by its name only: of everybody, or unresolved. */
static void
remove_by_name(int32 queue_id, const char *role_name,
			   BatcherPrivilege privilege)
{
	write_grant("DELETE FROM batcher.queue_grant WHERE queue_id = $1"
				" AND role = 0 AND role_name = $3 AND privilege = $4",
				queue_id, InvalidOid, role_name, privilege);
}

static const char *
name_of_role(Oid role)
{
	return OidIsValid(role) ? GetUserNameFromId(role, false) : EVERYBODY;
}

/*
 * Grant a privilege to a role, or with InvalidOid to everybody.
 */
void
batcher_grant_add(int32 queue_id, Oid role, BatcherPrivilege privilege)
{
	const char *role_name = name_of_role(role);
	ListCell   *lc;

	foreach(lc, batcher_grant_list(queue_id))
	{
		const BatcherGrant *grant = lfirst(lc);

		if (grant->role == role && grant->privilege == privilege)
			return;
	}
	/* one that waits for a role of this name would be found a second time */
	remove_by_name(queue_id, role_name, privilege);
	write_grant("INSERT INTO batcher.queue_grant (queue_id, role, role_name,"
				" privilege) VALUES ($1, $2, $3, $4)",
				queue_id, role, role_name, privilege);
}

/*
 * Take a privilege from a role, or with InvalidOid from everybody, if it was
 * granted.
 */
void
batcher_grant_remove(int32 queue_id, Oid role, BatcherPrivilege privilege)
{
	const char *role_name = name_of_role(role);

	remove_by_name(queue_id, role_name, privilege);
	if (OidIsValid(role))
		write_grant("DELETE FROM batcher.queue_grant WHERE queue_id = $1"
					" AND role = $2 AND privilege = $4",
					queue_id, role, role_name, privilege);
}

/*
 * Remove the grants of a queue that is dropped.
 */
void
batcher_grant_remove_all(int32 queue_id)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(queue_id)};

	(void) batcher_catalog_write("DELETE FROM batcher.queue_grant"
								 " WHERE queue_id = $1",
								 1, types, values, " ", NULL);
}

/*
 * Give the grants that a restore has brought to the roles of their names.
 * Those of a role that is not there are lost, with a warning.
 */
void
batcher_grant_resolve(const BatcherQueueDef *def)
{
	ListCell   *lc;

	foreach(lc, read_grants(def->id))
	{
		const BatcherGrant *grant = lfirst(lc);
		Oid			role;

		if (!is_unresolved(grant))
			continue;
		role = get_role_oid(grant->role_name, true);
		remove_by_name(def->id, grant->role_name, grant->privilege);
		if (OidIsValid(role))
			batcher_grant_add(def->id, role, grant->privilege);
		else
			ereport(WARNING,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("role \"%s\" does not exist", grant->role_name),
					 errdetail("Its privilege \"%s\" for queue \"%s\" is not restored.",
							   batcher_privilege_name(grant->privilege),
							   def->name)));
	}
}
