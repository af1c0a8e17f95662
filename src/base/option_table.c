/*
 * option_table.c
 *	  The options of a queue: the table.
 *
 * Parsing, checking, the view batcher.option and the documentation go by it.
 *
 * To add an option: a member of BatcherOptions, a line of the table here,
 * and, where its default depends on others, a line in fill_computed() in
 * options.c.
 */
#include "postgres.h"

#include "base/options.h"
#include "base/settings.h"

#define MAX_ROWS		1000000
#define DAY_MS			(24 * 60 * 60 * 1000)
#define TERABYTE		(1024.0 * 1024.0 * 1024.0 * 1024.0)
#define MAX_CHANNEL		1024
#define MAX_FIELD		1024
#define MAX_SQL			(16 * 1024 * 1024)

/*
 * A BatcherOption.check: a channel names no unknown placeholder.  What cannot
 * be one, because no brace closes it, is refused too: it is a slip of the pen,
 * and the sender need not decide what it means.
 */
static bool
check_channel(const char *text, char **why)
{
	static const char *const known[] = {"{queue}", "{topic}", "{key}"};
	const char *begin = text;

	while ((begin = strchr(begin, '{')) != NULL)
	{
		const char *end = strchr(begin, '}');
		int			i;

		if (end == NULL)
		{
			*why = pstrdup("A \"{\" in it has no \"}\".");
			return false;
		}
		for (i = 0; i < lengthof(known); i++)
		{
			if (strncmp(begin, known[i], end - begin + 1) == 0)
				break;
		}
		if (i == lengthof(known))
		{
			*why = psprintf("The placeholder \"%s\" is unknown; the known ones are \"{queue}\", \"{topic}\" and \"{key}\".",
							pnstrdup(begin, end - begin + 1));
			return false;
		}
		begin = end + 1;
	}
	return true;
}

/* A BatcherOption.check: rows are not grouped by what counts a group. */
static bool
check_group_by(const char *text, char **why)
{
	if (strcmp(text, "batch_count") != 0)
		return true;
	*why = pstrdup("That is the field in which an event has the number of its rows.");
	return false;
}

static const BatcherOptionEnum key_policy_values[] = {
	{"all", BATCHER_KEYS_ALL},
	{"last", BATCHER_KEYS_LAST},
	{"first", BATCHER_KEYS_FIRST},
	{"merge", BATCHER_KEYS_MERGE},
	{NULL, 0}
};

static const BatcherOptionEnum when_full_values[] = {
	{"spill", BATCHER_FULL_SPILL},
	{"wait", BATCHER_FULL_WAIT},
	{"error", BATCHER_FULL_ERROR},
	{NULL, 0}
};

static const BatcherOptionEnum on_conflict_values[] = {
	{"error", BATCHER_CONFLICT_ERROR},
	{"nothing", BATCHER_CONFLICT_NOTHING},
	{"update", BATCHER_CONFLICT_UPDATE},
	{NULL, 0}
};

static const BatcherOptionEnum notify_format_values[] = {
	{"none", BATCHER_NOTIFY_NONE},
	{"summary", BATCHER_NOTIFY_SUMMARY},
	{"rows", BATCHER_NOTIFY_ROWS},
	{"groups", BATCHER_NOTIFY_GROUPS},
	{NULL, 0}
};

static const BatcherOptionEnum notify_encoding_values[] = {
	{"json", BATCHER_ENCODING_JSON},
	{"zlib", BATCHER_ENCODING_ZLIB},
	{NULL, 0}
};

#define OPTION(name, type) \
	#name, type, offsetof(BatcherOptions, name)

const BatcherOption batcher_options[] = {
	{OPTION(preset, BATCHER_OPTION_ENUM),
		NULL, false, 0, 0, batcher_presets, NULL,
	"a named set of values for options that are not given"},
	{OPTION(durable, BATCHER_OPTION_BOOL),
		"true", false, 0, 0, NULL, NULL,
	"whether a committed row survives any crash; if not, it lives in memory only"},
	{OPTION(enabled, BATCHER_OPTION_BOOL),
		"true", false, 0, 0, NULL, NULL,
	"whether rows are gathered; if not, each is flushed by itself with its commit"},
	{OPTION(flush_size, BATCHER_OPTION_INT),
		"max_batch_size", true, 1, MAX_ROWS, NULL, NULL,
	"rows at which a flush starts before the window ends"},
	{OPTION(max_batch_size, BATCHER_OPTION_INT),
		"batcher.max_batch_size", true, 1, MAX_ROWS, NULL, NULL,
	"the most rows that one flush takes"},
	{OPTION(flush_interval, BATCHER_OPTION_DURATION),
		"batcher.flush_interval", true, 1, DAY_MS, NULL, NULL,
	"window: the longest that a committed row waits before its flush is due"},
	{OPTION(adaptive, BATCHER_OPTION_BOOL),
		"false", false, 0, 0, NULL, NULL,
	"whether the size of batches and the window follow what happens"},
	{OPTION(min_batch_size, BATCHER_OPTION_INT),
		"50", false, 1, MAX_ROWS, NULL, NULL,
	"adaptive: the least size of batches"},
	{OPTION(adjust_factor, BATCHER_OPTION_NUMBER),
		"0.2", false, 0.01, 1, NULL, NULL,
	"adaptive: the share by which the size changes"},
	{OPTION(latency_target, BATCHER_OPTION_DURATION),
		"100 ms", false, 1, DAY_MS, NULL, NULL,
	"adaptive: how long a flush should take at most"},
	{OPTION(error_target, BATCHER_OPTION_NUMBER),
		"0.01", false, 0, 1, NULL, NULL,
	"adaptive: the largest share of rows that should fail"},
	{OPTION(throughput_target, BATCHER_OPTION_NUMBER),
		NULL, false, 1, 1000000000, NULL, NULL,
	"adaptive: rows a second for which larger batches are given up that are slower"},
	{OPTION(key_policy, BATCHER_OPTION_ENUM),
		"all", false, 0, 0, key_policy_values, NULL,
	"what becomes of rows with equal key: \"all\" are kept, \"last\", \"first\", \"merge\""},
	{OPTION(debounce, BATCHER_OPTION_DURATION),
		NULL, false, 1, DAY_MS, NULL, NULL,
	"a key is flushed when nothing new came for it this long"},
	{OPTION(max_wait, BATCHER_OPTION_DURATION),
		"5 s", false, 1, DAY_MS, NULL, NULL,
	"with debounce: the longest that a key waits"},
	{OPTION(max_attempts, BATCHER_OPTION_INT),
		"3", false, 1, 1000, NULL, NULL,
	"times that a row may fail by its own fault before it is a dead letter"},
	{OPTION(retry_delay, BATCHER_OPTION_DURATION),
		"500 ms", false, 1, DAY_MS, NULL, NULL,
	"wait before the first retry, give or take a fifth"},
	{OPTION(retry_backoff, BATCHER_OPTION_NUMBER),
		"2", false, 1, 100, NULL, NULL,
	"factor by which the wait grows from one retry to the next"},
	{OPTION(retry_max_delay, BATCHER_OPTION_DURATION),
		"1 min", false, 1, DAY_MS, NULL, NULL,
	"longest wait before a retry"},
	{OPTION(flush_timeout, BATCHER_OPTION_DURATION),
		"60 s", false, 1, DAY_MS, NULL, NULL,
	"statement timeout of one flush; not more than batcher.max_flush_timeout"},
	{OPTION(breaker_threshold, BATCHER_OPTION_INT),
		"5", false, 1, MAX_ROWS, NULL, NULL,
	"failed flushes in a row that open the breaker"},
	{OPTION(breaker_recovery, BATCHER_OPTION_DURATION),
		"30 s", false, 1, DAY_MS, NULL, NULL,
	"how long an open breaker keeps the queue from flushing"},
	{OPTION(breaker_probes, BATCHER_OPTION_INT),
		"3", false, 1, 1000, NULL, NULL,
	"small batches that must succeed before the breaker closes"},
	{OPTION(memory_limit, BATCHER_OPTION_SIZE),
		"0", false, 0, TERABYTE, NULL, NULL,
	"shared memory that the queue may hold; 0: only the server's limit"},
	{OPTION(when_full, BATCHER_OPTION_ENUM),
		"spill if durable, else wait", true, 0, 0, when_full_values, NULL,
	"what an enqueue does when memory is full: \"spill\", \"wait\" or \"error\""},
	{OPTION(lanes, BATCHER_OPTION_INT),
		"1", false, 1, BATCHER_MAX_LANES, NULL, NULL,
	"rows are split by key, without key by session, over so many lanes that flush in parallel"},
	{OPTION(rate_limit, BATCHER_OPTION_NUMBER),
		NULL, false, 0.001, MAX_ROWS, NULL, NULL,
	"the most rows that are flushed in a second"},
	{OPTION(on_conflict, BATCHER_OPTION_ENUM),
		"error", false, 0, 0, on_conflict_values, NULL,
	"what an insert into the target does with a row that is there: \"error\", \"nothing\" or \"update\""},
	{OPTION(notify_channel, BATCHER_OPTION_TEXT),
		NULL, false, 1, MAX_CHANNEL, NULL, check_channel,
	"channel of the messages; \"{queue}\", \"{topic}\" and \"{key}\" in it are replaced"},
	{OPTION(notify_format, BATCHER_OPTION_ENUM),
		"summary", false, 0, 0, notify_format_values, NULL,
	"what is sent after a flush: \"none\", \"summary\", \"rows\" or \"groups\""},
	{OPTION(notify_group_by, BATCHER_OPTION_TEXT),
		"event", false, 1, MAX_FIELD, NULL, check_group_by,
	"field of the payload by which \"groups\" groups rows"},
	{OPTION(notify_names, BATCHER_OPTION_JSON),
		"{}", false, 0, 0, NULL, NULL,
	"names of the events that \"groups\" makes of several rows"},
	{OPTION(notify_sql, BATCHER_OPTION_TEXT),
		NULL, false, 1, MAX_SQL, NULL, NULL,
	"SELECT that makes the messages, instead of the format"},
	{OPTION(notify_encoding, BATCHER_OPTION_ENUM),
		"json", false, 0, 0, notify_encoding_values, NULL,
	"\"zlib\": compress rows and events where that makes fewer messages"}
};

const int	batcher_num_options = lengthof(batcher_options);

StaticAssertDecl(lengthof(batcher_options) <= BATCHER_MAX_OPTIONS,
				 "BATCHER_MAX_OPTIONS is too small");

/*
 * The option of that name, or NULL.
 */
const BatcherOption *
batcher_option_find(const char *name, int len)
{
	for (int i = 0; i < batcher_num_options; i++)
	{
		if (strlen(batcher_options[i].name) == len &&
			memcmp(batcher_options[i].name, name, len) == 0)
			return &batcher_options[i];
	}
	return NULL;
}
