/*
 * compat.h
 *	  What differs between the supported majors of PostgreSQL.
 *
 * This is the only file that tests PG_VERSION_NUM.  Each difference is a
 * static inline function or a macro with the name and the meaning that the
 * newest major has, or a batcher_ name where no major has the right one.
 */
#ifndef BATCHER_COMPAT_H
#define BATCHER_COMPAT_H

#include "catalog/pg_database.h"
#include "commands/vacuum.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#if PG_VERSION_NUM < 150000
#error "batcher needs PostgreSQL 15 or newer"
#endif

/* The major of this server, for what only the same major can read. */
#define BATCHER_SERVER_MAJOR PG_MAJORVERSION_NUM

/* 16 renamed the file identity of a relation. */
#if PG_VERSION_NUM >= 160000
#define batcher_relation_filenumber(rel) ((rel)->rd_locator.relNumber)
#else
#define batcher_relation_filenumber(rel) ((rel)->rd_node.relNode)
#endif

/* 17 moved the numbers of a process and of its transaction. */
#if PG_VERSION_NUM >= 170000
#include "storage/procarray.h"
#define batcher_my_proc_number() (MyProcNumber)
#define batcher_my_lxid() (MyProc->vxid.lxid)
#define batcher_vxid_proc(vxid) ProcNumberGetProc((vxid).procNumber)
#else
#include "storage/sinvaladt.h"
#define batcher_my_proc_number() (MyProc->pgprocno)
#define batcher_my_lxid() (MyProc->lxid)
#define batcher_vxid_proc(vxid) BackendIdGetProc((vxid).backendId)
#endif

/* 16 made one function of those that ask who owns an object. */
#if PG_VERSION_NUM >= 160000
#define batcher_database_owner(dboid, roleid) \
	object_ownercheck(DatabaseRelationId, (dboid), (roleid))
#else
#define batcher_database_owner(dboid, roleid) \
	pg_database_ownercheck((dboid), (roleid))
#endif

/* 16 tells apart who has a role's rights and who can become it. */
#if PG_VERSION_NUM >= 160000
#define batcher_check_can_become(member, role) \
	check_can_set_role((member), (role))
#else
#define batcher_check_can_become(member, role) \
	check_is_member_of_role((member), (role))
#endif

/* 16 made the main table of a VACUUM an option of its own. */
#if PG_VERSION_NUM >= 160000
#define BATCHER_VACOPT_MAIN VACOPT_PROCESS_MAIN
#else
#define BATCHER_VACOPT_MAIN 0
#endif

/*
 * Vacuum one table in transactions of its own, as autovacuum does.  The
 * caller is in a transaction, which vacuum() ends and begins anew.
 */
static inline void
batcher_vacuum_relation(List *relations, VacuumParams *params)
{
#if PG_VERSION_NUM >= 160000
	MemoryContext cxt = AllocSetContextCreate(PortalContext, "batcher vacuum",
											  ALLOCSET_DEFAULT_SIZES);

	vacuum(relations, params, NULL, cxt, true);
	MemoryContextDelete(cxt);
#else
	vacuum(relations, params, NULL, true);
#endif
}

/* 17 names wait events of extensions; before, they are all "Extension". */
#if PG_VERSION_NUM >= 170000
#include "utils/wait_event.h"
#define batcher_wait_event(name) WaitEventExtensionNew(name)
#else
#include "utils/wait_event.h"
#define batcher_wait_event(name) ((uint32) PG_WAIT_EXTENSION)
#endif

#endif							/* BATCHER_COMPAT_H */
