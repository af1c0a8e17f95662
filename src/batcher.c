/*
 * batcher.c
 *	  Loads the extension: settings, shared memory, callbacks, launcher.
 *
 * Without shared_preload_libraries there is no shared memory and no worker;
 * then only what needs neither works, and CREATE EXTENSION does.  Nothing runs
 * during a binary upgrade.
 */
#include "postgres.h"

#include "base/debug.h"
#include "base/settings.h"
#include "catalog/catalog.h"
#include "enqueue/enqueue.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "worker/worker.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	batcher_settings_define();
	batcher_debug_define();

	/* what is registered later is called first: see staging.c */
	batcher_change_install();
	batcher_staging_install();

	if (!process_shared_preload_libraries_in_progress)
		return;
	MarkGUCPrefixReserved("batcher");
	batcher_shmem_install();
	batcher_savefile_install();
	if (IsBinaryUpgrade)
		return;
	batcher_aside_install();
	batcher_launcher_register();
}
