/*
 * rights.c
 *	  Giving rights on queues, and showing who has them.
 *
 * All of it is the owner's alone to do, and transactional: at the commit the
 * generation of the definitions grows, and every session forgets what it knew
 * of rights.  Client backends.
 */
#include "postgres.h"

#include "base/compat.h"
#include "base/json.h"
#include "miscadmin.h"
#include "monitor/monitor.h"
#include "utils/acl.h"
#include "utils/jsonb.h"

/* batch_grant and batch_revoke. */
static void
change_grant(FunctionCallInfo fcinfo,
			 void (*change) (int32 queue_id, Oid role,
							 BatcherPrivilege privilege))
{
	char	   *queue = batcher_monitor_text_argument(fcinfo, 0, "queue");
	char	   *role_name = batcher_monitor_text_argument(fcinfo, 1, "role");
	char	   *name = batcher_monitor_text_argument(fcinfo, 2, "privilege");
	BatcherPrivilege privilege;
	BatcherQueueDef *def;

	def = batcher_monitor_lookup_for_change(queue, BATCHER_OWN);
	if (!batcher_privilege_parse(name, &privilege))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("privilege \"%s\" does not exist", name),
				 errhint("Privileges are \"enqueue\", \"manage\" and \"listen\".")));
	change(def->id, get_role_oid_or_public(role_name), privilege);
}

PG_FUNCTION_INFO_V1(batcher_grant);

/*
 * batch_grant(queue, role, privilege)
 */
Datum
batcher_grant(PG_FUNCTION_ARGS)
{
	change_grant(fcinfo, batcher_grant_add);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(batcher_revoke);

/*
 * batch_revoke(queue, role, privilege)
 */
Datum
batcher_revoke(PG_FUNCTION_ARGS)
{
	change_grant(fcinfo, batcher_grant_remove);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(batcher_change_owner);

/*
 * batch_change_owner(queue, new_owner): as ALTER ... OWNER TO.  The statement
 * runs with the rights of the new owner, so whoever gives it to him must be
 * able to become him.
 */
Datum
batcher_change_owner(PG_FUNCTION_ARGS)
{
	char	   *queue = batcher_monitor_text_argument(fcinfo, 0, "queue");
	char	   *name = batcher_monitor_text_argument(fcinfo, 1, "new owner");
	BatcherQueueDef *def = batcher_monitor_lookup_for_change(queue,
															 BATCHER_OWN);
	Oid			owner = get_role_oid(name, false);

	if (owner != def->owner)
	{
		batcher_check_can_become(GetUserId(), owner);
		batcher_definition_set_owner(def, owner);
		batcher_definition_update(def);
	}
	PG_RETURN_VOID();
}

/* By privilege, then by name: the order in which grants are shown. */
static int
compare_grants(const ListCell *a, const ListCell *b)
{
	const BatcherGrant *x = lfirst(a);
	const BatcherGrant *y = lfirst(b);

	if (x->privilege != y->privilege)
		return x->privilege < y->privilege ? -1 : 1;
	return strcmp(x->role_name, y->role_name);
}

/*
 * The grants on a queue as the view shows them: an object that has for each
 * privilege an array of names.
 */
Jsonb *
batcher_monitor_grants(const BatcherQueueDef *def)
{
	List	   *grants = batcher_grant_list(def->id);
	const BatcherGrant *last = NULL;
	JsonbParseState *state = NULL;
	ListCell   *lc;

	list_sort(grants, compare_grants);
	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	foreach(lc, grants)
	{
		const BatcherGrant *grant = lfirst(lc);

		if (last == NULL || last->privilege != grant->privilege)
		{
			if (last)
				(void) pushJsonbValue(&state, WJB_END_ARRAY, NULL);
			batcher_json_key(&state, batcher_privilege_name(grant->privilege));
			(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
		}
		batcher_json_push_text(&state, WJB_ELEM, grant->role_name);
		last = grant;
	}
	if (last)
		(void) pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}
