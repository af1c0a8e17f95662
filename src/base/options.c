/*
 * options.c
 *	  The options of a queue: what is done with those that are given.
 *
 * What a user gave is kept as jsonb, as it was given; the effective values
 * are computed from it whenever a definition is read, so that a change of a
 * server setting reaches each queue that leaves the choice to the server.
 * Hence there are two ways in.  batcher_options_merge() checks what is given
 * and raises errors; it runs in the client that makes or alters a queue.
 * batcher_options_resolve() runs wherever a definition is read, also in
 * workers, which must not fail over a value that another version accepted:
 * it takes what counts without it instead.  Both parse with option_value.c,
 * which says no rather than raising an error.
 *
 * An effective value is the option that was given, else the preset's, else
 * the server setting, else the default.  Where two values do not go together,
 * the weaker of them gives way; only what was given is refused.
 */
#include "postgres.h"

#include "base/json.h"
#include "base/options.h"
#include "base/settings.h"
#include "utils/formatting.h"
#include "utils/guc.h"
#include "utils/varlena.h"

/*
 * Get the value of an option from what is stored; false if it is not there,
 * or no longer a value that the option takes.
 */
static bool
get_stored(Jsonb *stored, const BatcherOption *option,
		   BatcherOptionValue *result)
{
	JsonbValue	value;
	char	   *why;

	if (stored == NULL || !JB_ROOT_IS_OBJECT(stored))
		return false;
	if (getKeyJsonValueFromContainer(&stored->root, option->name,
									 strlen(option->name), &value) == NULL)
		return false;
	return batcher_option_parse_json(option, &value, result, &why);
}

/* As get_stored(), by the name of an option that is in the table. */
static bool
get_stored_by_name(Jsonb *stored, const char *name, BatcherOptionValue *result)
{
	const BatcherOption *option = batcher_option_find(name, strlen(name));

	Assert(option != NULL);
	return get_stored(stored, option, result);
}

/*
 * Raise the error for a name that no option has.  There is always a nearest
 * one to suggest, whatever the case of the letters.
 */
static void
report_unknown_name(const char *name, int len)
{
	const char *nearest = NULL;
	char	   *shown = batcher_option_clip(name, len);
	char	   *folded = asc_tolower(shown, strlen(shown));
	int			best = -1;		/* no bound yet */

	for (int i = 0; i < batcher_num_options; i++)
	{
		const char *known = batcher_options[i].name;
		int			distance;

		distance = varstr_levenshtein_less_equal(folded, strlen(folded),
												 known, strlen(known),
												 1, 1, 1, best, true);
		if (nearest == NULL || distance < best)
		{
			nearest = known;
			best = distance;
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("option \"%s\" does not exist", shown),
			 errhint("Perhaps you meant the option \"%s\".", nearest)));
}

/* Refuse a number of rows that is greater than another one. */
static void
check_not_greater(Jsonb *merged, const char *first, const char *second)
{
	BatcherOptionValue a;
	BatcherOptionValue b;

	if (get_stored_by_name(merged, first, &a) &&
		get_stored_by_name(merged, second, &b) && a.number > b.number)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" (%.0f) must not be greater than option \"%s\" (%.0f)",
						first, a.number, second, b.number)));
}

/* Refuse values that cannot hold together; defaults give way instead. */
static void
check_contradictions(Jsonb *merged)
{
	BatcherOptionValue when_full;
	BatcherOptionValue durable;
	BatcherOptionValue retry_delay;
	BatcherOptionValue retry_max_delay;
	BatcherOptionValue debounce;
	BatcherOptionValue max_wait;

	check_not_greater(merged, "flush_size", "max_batch_size");
	check_not_greater(merged, "min_batch_size", "flush_size");
	check_not_greater(merged, "min_batch_size", "max_batch_size");
	if (get_stored_by_name(merged, "when_full", &when_full) &&
		get_stored_by_name(merged, "durable", &durable) &&
		when_full.number == BATCHER_FULL_SPILL && !durable.number)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"when_full\" cannot be \"spill\" when option \"durable\" is false"),
				 errhint("Rows that are not durable can \"wait\", or be refused with \"error\".")));
	if (get_stored_by_name(merged, "retry_delay", &retry_delay) &&
		get_stored_by_name(merged, "retry_max_delay", &retry_max_delay) &&
		retry_delay.number > retry_max_delay.number)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"retry_delay\" (%g ms) must not be greater than option \"retry_max_delay\" (%g ms)",
						retry_delay.number, retry_max_delay.number)));
	if (get_stored_by_name(merged, "debounce", &debounce))
	{
		BatcherOptions options;

		batcher_options_resolve(merged, &options);
		if (options.key_policy == BATCHER_KEYS_ALL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"debounce\" needs a \"key_policy\" other than \"all\""),
					 errhint("Use \"last\", \"first\" or \"merge\".")));
		if (get_stored_by_name(merged, "max_wait", &max_wait) &&
			debounce.number > max_wait.number)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"debounce\" (%g ms) must not be greater than option \"max_wait\" (%g ms)",
							debounce.number, max_wait.number)));
	}
}

/*
 * Do options that were just given have SQL, or reset it?  That is the owner's
 * to change.
 */
bool
batcher_options_give_sql(Jsonb *given)
{
	JsonbValue	ignored;

	return JB_ROOT_IS_OBJECT(given) &&
		getKeyJsonValueFromContainer(&given->root, "notify_sql",
									 strlen("notify_sql"), &ignored) != NULL;
}

/*
 * Apply the options that were just given to those that are stored.
 *
 * 'stored' may be NULL.  A null in 'given' resets its option.  Returns what
 * is to be stored, in the caller's context: each value as it was given.
 * Stored entries that 'given' does not name are kept as they are, known or
 * not.  Errors, all 22023: 'given' is no object; an unknown name; a value
 * that its option does not take; values that contradict each other.
 */
Jsonb *
batcher_options_merge(Jsonb *stored, Jsonb *given)
{
	JsonbParseState *state = NULL;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;
	Jsonb	   *merged;

	if (!JB_ROOT_IS_OBJECT(given))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options must be a JSON object"),
				 errhint("Give names and values, such as '{\"flush_size\": 100}'.")));

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	if (stored != NULL && JB_ROOT_IS_OBJECT(stored))
	{
		it = JsonbIteratorInit(&stored->root);
		while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
		{
			JsonbValue	ignored;

			if (token != WJB_KEY)
				continue;
			(void) JsonbIteratorNext(&it, &value, true);
			if (getKeyJsonValueFromContainer(&given->root,
											 key.val.string.val,
											 key.val.string.len,
											 &ignored) != NULL)
				continue;
			pushJsonbValue(&state, WJB_KEY, &key);
			pushJsonbValue(&state, WJB_VALUE, &value);
		}
	}

	it = JsonbIteratorInit(&given->root);
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		const BatcherOption *option;
		BatcherOptionValue parsed;
		char	   *why = NULL;

		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &value, true);
		option = batcher_option_find(key.val.string.val, key.val.string.len);
		if (option == NULL)
			report_unknown_name(key.val.string.val, key.val.string.len);
		if (value.type == jbvNull)
			continue;
		if (!batcher_option_parse_json(option, &value, &parsed, &why))
			batcher_option_refuse(option, &value, why);
		if (option->offset == offsetof(BatcherOptions, flush_timeout) &&
			parsed.number > batcher_max_flush_timeout)
			batcher_option_refuse(option, &value,
								  psprintf("It is limited by \"%s\", which is %s.",
										   "batcher.max_flush_timeout",
										   GetConfigOptionByName("batcher.max_flush_timeout",
																 NULL, false)));
		pushJsonbValue(&state, WJB_KEY, &key);
		pushJsonbValue(&state, WJB_VALUE, &value);
	}
	merged = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));

	check_contradictions(merged);
	return merged;
}

/* Put a value into its member. */
static void
set_member(BatcherOptions *options, const BatcherOption *option,
		   const BatcherOptionValue *value)
{
	char	   *member = (char *) options + option->offset;

	StaticAssertStmt(sizeof(BatcherWhenFull) == sizeof(int) &&
					 sizeof(BatcherOnConflict) == sizeof(int) &&
					 sizeof(BatcherNotifyFormat) == sizeof(int) &&
					 sizeof(BatcherNotifyEncoding) == sizeof(int),
					 "enums are set as integers");
	switch (option->type)
	{
		case BATCHER_OPTION_BOOL:
			*(bool *) member = (value->number != 0);
			break;
		case BATCHER_OPTION_INT:
		case BATCHER_OPTION_ENUM:
			*(int *) member = (int) value->number;
			break;
		case BATCHER_OPTION_NUMBER:
		case BATCHER_OPTION_DURATION:
			*(double *) member = value->number;
			break;
		case BATCHER_OPTION_SIZE:
			*(int64 *) member = (int64) value->number;
			break;
		case BATCHER_OPTION_TEXT:
			*(char **) member = value->text;
			break;
		case BATCHER_OPTION_JSON:
			*(Jsonb **) member = value->json;
			break;
	}
}

/* Where the effective value of an option is from. */
static BatcherOptionSource *
source_of(BatcherOptionSource *sources, const char *name)
{
	const BatcherOption *option = batcher_option_find(name, strlen(name));

	Assert(option != NULL);
	return &sources[option - batcher_options];
}

/*
 * Two values do not go together: does the first give way?  The weaker one
 * does, and of equals the first: both are given only where another version
 * has stored them.  What gives way has its value from where the other has it.
 */
static bool
gives_way(BatcherOptionSource *sources, const char *first, const char *second)
{
	BatcherOptionSource *a = source_of(sources, first);
	BatcherOptionSource *b = source_of(sources, second);

	if (*a <= *b)
	{
		*a = *b;
		return true;
	}
	*b = *a;
	return false;
}

/* Have the first number not be greater than the second one. */
static void
bring_together(BatcherOptionSource *sources, const char *first, int *a,
			   const char *second, int *b)
{
	if (*a <= *b)
		return;
	if (gives_way(sources, first, second))
		*a = *b;
	else
		*b = *a;
}

/*
 * Give the computed options that are not set (0, which none of them can be
 * given as) their values, and bring together what does not go together.  A
 * flush_timeout over the limit of today is cut.
 */
static void
fill_computed(BatcherOptions *options, BatcherOptionSource *sources)
{
	if (options->max_batch_size == 0)
	{
		options->max_batch_size = batcher_max_batch_size;
		*source_of(sources, "max_batch_size") = BATCHER_SOURCE_SERVER;
	}
	if (options->flush_size == 0)
		options->flush_size = options->max_batch_size;
	bring_together(sources, "flush_size", &options->flush_size,
				   "max_batch_size", &options->max_batch_size);
	bring_together(sources, "min_batch_size", &options->min_batch_size,
				   "max_batch_size", &options->max_batch_size);
	bring_together(sources, "min_batch_size", &options->min_batch_size,
				   "flush_size", &options->flush_size);

	if (options->flush_interval == 0)
	{
		options->flush_interval = batcher_flush_interval;
		*source_of(sources, "flush_interval") = BATCHER_SOURCE_SERVER;
	}

	if (options->flush_timeout > batcher_max_flush_timeout)
	{
		options->flush_timeout = batcher_max_flush_timeout;
		*source_of(sources, "flush_timeout") = BATCHER_SOURCE_SERVER;
	}

	if (options->retry_delay > options->retry_max_delay)
	{
		if (gives_way(sources, "retry_delay", "retry_max_delay"))
			options->retry_delay = options->retry_max_delay;
		else
			options->retry_max_delay = options->retry_delay;
	}

	if (options->key_policy == BATCHER_KEYS_ALL)
		options->debounce = 0;
	if (options->debounce > options->max_wait)
	{
		if (gives_way(sources, "debounce", "max_wait"))
			options->debounce = options->max_wait;
		else
			options->max_wait = options->debounce;
	}

	if (options->when_full == BATCHER_FULL_DEFAULT)
		options->when_full = BATCHER_FULL_SPILL;
	if (options->when_full == BATCHER_FULL_SPILL && !options->durable)
		options->when_full = BATCHER_FULL_WAIT;
}

/* The effective options, and where each is from. */
static void
resolve(Jsonb *stored, BatcherOptions *options, BatcherOptionSource *sources)
{
	BatcherOptionValue preset = {0};

	memset(options, 0, sizeof(BatcherOptions));
	(void) get_stored_by_name(stored, "preset", &preset);
	for (int i = 0; i < batcher_num_options; i++)
	{
		const BatcherOption *option = &batcher_options[i];
		BatcherOptionValue value;
		const char *text;
		char	   *why;

		if (get_stored(stored, option, &value))
		{
			set_member(options, option, &value);
			sources[i] = BATCHER_SOURCE_OPTION;
			continue;
		}
		text = batcher_preset_value((int) preset.number, option->name);
		sources[i] = text ? BATCHER_SOURCE_PRESET : BATCHER_SOURCE_DEFAULT;
		if (text == NULL && !option->computed)
			text = option->fallback;
		if (text == NULL)
			continue;
		if (!batcher_option_parse_text(option, text, &value, &why))
			Assert(false);
		set_member(options, option, &value);
	}
	fill_computed(options, sources);
}

/*
 * Compute the effective options from what is stored, which may be NULL.
 *
 * Names that are unknown are passed over, and a value that the option does
 * not take counts as not given: another version may have stored it.  Texts
 * are allocated in the caller's context.  Raises no error but for lack of
 * memory.
 */
void
batcher_options_resolve(Jsonb *stored, BatcherOptions *options)
{
	BatcherOptionSource sources[BATCHER_MAX_OPTIONS];

	resolve(stored, options, sources);
}

/*
 * The same as JSON: for each option an object with its effective 'value', in
 * a form in which it can be given, and the 'source' of that.
 */
Jsonb *
batcher_options_explain(Jsonb *stored)
{
	static const char *const names[] = {
		[BATCHER_SOURCE_DEFAULT] = "default",
		[BATCHER_SOURCE_SERVER] = "server",
		[BATCHER_SOURCE_PRESET] = "preset",
		[BATCHER_SOURCE_OPTION] = "option",
	};
	BatcherOptionSource sources[BATCHER_MAX_OPTIONS];
	BatcherOptions options;
	JsonbParseState *state = NULL;

	resolve(stored, &options, sources);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < batcher_num_options; i++)
	{
		JsonbValue	value;

		batcher_json_key(&state, batcher_options[i].name);
		pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
		batcher_json_key(&state, "value");
		batcher_option_effective(&batcher_options[i], &options, &value);
		pushJsonbValue(&state, WJB_VALUE, &value);
		batcher_json_string(&state, "source", names[sources[i]]);
		pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/*
 * May rows of hot keys be given up (queue/thin.c)?  They must be in memory
 * only, and one of those of a key that wait together be enough.
 */
bool
batcher_options_thin(const BatcherOptions *options)
{
	return !options->durable && options->enabled &&
		(options->key_policy == BATCHER_KEYS_LAST ||
		 options->key_policy == BATCHER_KEYS_FIRST);
}
