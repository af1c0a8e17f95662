/*
 * settings.c
 *	  The server settings of batcher.
 *
 * Each maximum is chosen so that what is computed from the setting fits: a
 * day in milliseconds fits an int with room to add to it, and a memory size
 * in megabytes, times 1024 * 1024, fits Size on any platform.  Defining a
 * setting can fail only if memory runs out.  Runs in each process that loads
 * the library, once, from _PG_init.
 */
#include "postgres.h"

#include <limits.h>

#include "base/settings.h"
#include "miscadmin.h"
#include "utils/guc.h"

#define HOUR_MS		(60 * 60 * 1000)
#define DAY_MS		(24 * HOUR_MS)

/* Each takes about a kilobyte of shared memory, used or not. */
#define MAX_QUEUES	100000

/*
 * The initial values hold where a setting is not defined; they are the same
 * as the defaults.
 */
bool		batcher_enabled = true;
int			batcher_enqueue_timeout = 10000;
int			batcher_max_batch_size = 1000;
int			batcher_flush_interval = 100;
int			batcher_max_flush_timeout = HOUR_MS;
int			batcher_shutdown_timeout = 5000;
int			batcher_log_min_duration = -1;
int			batcher_max_workers = 4;
int			batcher_shared_memory_size = 64;
int			batcher_max_queues = 1024;

/* The settings that may be changed while the server runs. */
static void
define_changeable(void)
{
	DefineCustomBoolVariable("batcher.enabled",
							 "Gathers the rows that a session enqueues.",
							 "If off, each is flushed by itself when its transaction commits.",
							 &batcher_enabled,
							 true,
							 PGC_USERSET, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("batcher.enqueue_timeout",
							"How long an enqueue waits for room in a queue.",
							"After that it fails; 0 means that it does not wait.",
							&batcher_enqueue_timeout,
							10000, 0, DAY_MS,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("batcher.max_batch_size",
							"The most rows that one flush takes.",
							"The option \"max_batch_size\" of a queue overrides it.",
							&batcher_max_batch_size,
							1000, 1, 1000000,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("batcher.flush_interval",
							"The longest that a committed row waits before its flush is due.",
							"The option \"flush_interval\" of a queue overrides it.",
							&batcher_flush_interval,
							100, 1, HOUR_MS,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("batcher.max_flush_timeout",
							"The longest statement timeout of a flush.",
							"The option \"flush_timeout\" of a queue counts up to this.",
							&batcher_max_flush_timeout,
							HOUR_MS, 1, DAY_MS,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("batcher.shutdown_timeout",
							"How long a stopping server goes on flushing rows that wait.",
							NULL,
							&batcher_shutdown_timeout,
							5000, 0, HOUR_MS,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("batcher.log_min_duration",
							"Logs each flush that takes at least this long.",
							"0 logs all flushes, -1 none.",
							&batcher_log_min_duration,
							-1, -1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("batcher.max_workers",
							"The most workers that flush at a time, in all databases together.",
							NULL,
							&batcher_max_workers,
							4, 1, BATCHER_MAX_WORKERS,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
}

/* The settings that decide the layout of shared memory. */
static void
define_fixed(void)
{
	DefineCustomIntVariable("batcher.shared_memory_size",
							"Shared memory for rows that wait.",
							NULL,
							&batcher_shared_memory_size,
							64, 8, MAX_KILOBYTES / 1024,
							PGC_POSTMASTER, GUC_UNIT_MB,
							NULL, NULL, NULL);
	DefineCustomIntVariable("batcher.max_queues",
							"The most queues that have a place in shared memory, in all databases together.",
							NULL,
							&batcher_max_queues,
							1024, 1, MAX_QUEUES,
							PGC_POSTMASTER, 0,
							NULL, NULL, NULL);
}

/*
 * Define the settings.
 *
 * PostgreSQL ends the process with a FATAL when a setting that is fixed at
 * the start is defined at any other time than while the libraries of
 * shared_preload_libraries are loaded (init_custom_variable in guc.c).  A
 * session that loads the library later has no shared memory of ours either,
 * so it does without these two.  Where backends are not forked they load the
 * preloaded libraries anew, with that flag set, so they have them all.
 *
 * Reserving the prefix is left to the caller, who may define more; it should
 * do so only under the same condition, else a value of the two in
 * postgresql.conf draws a warning from every session that loads the library.
 */
void
batcher_settings_define(void)
{
	define_changeable();
	if (process_shared_preload_libraries_in_progress)
		define_fixed();
}

/*
 * What a setting of the file, a database or a role must not change in our
 * processes, which have no user: nothing ends a flush but flush_timeout, and it
 * sees the same wherever it runs.  Once, after the process has connected.
 */
void
batcher_settings_override(void)
{
	static const char *const settings[][2] = {
		{"search_path", ""},
		{"statement_timeout", "0"},
		{"transaction_timeout", "0"},	/* from 17 on */
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"session_replication_role", "origin"},
		{"row_security", "on"},
		{"zero_damaged_pages", "off"},
		{"exit_on_error", "off"},
		{"vacuum_cost_delay", "0"}, /* of the spool, while others wait */
		{"xmloption", "content"},	/* what was enqueued under either */
		{"max_parallel_workers_per_gather", "0"},
	};
	int			i;

	for (i = 0; i < lengthof(settings); i++)
	{
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET,
							PGC_S_OVERRIDE);
	}
}
