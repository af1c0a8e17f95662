/*
 * preset.c
 *	  Presets: named sets of values for options.
 *
 * A preset is a list of options and values in the form of a default.  What is
 * given goes before it, and it goes before the server's settings.  Any
 * process.
 */
#include "postgres.h"

#include "base/options.h"

enum
{
	NO_PRESET,
	PRODUCTION,
	DEVELOPMENT,
	TEST,
	SMALL,
	MEDIUM,
	LARGE,
	REALTIME,
	DEBOUNCED,
	PERIODIC
};

const BatcherOptionEnum batcher_presets[] = {
	{"production", PRODUCTION},
	{"development", DEVELOPMENT},
	{"test", TEST},
	{"small", SMALL},
	{"medium", MEDIUM},
	{"large", LARGE},
	{"realtime", REALTIME},
	{"debounced", DEBOUNCED},
	{"periodic", PERIODIC},
	{NULL, NO_PRESET}
};

static const struct
{
	int			preset;
	const char *option;
	const char *value;
}			values[] = {
	{PRODUCTION, "flush_size", "100"},
	{PRODUCTION, "flush_interval", "1 s"},
	{DEVELOPMENT, "flush_size", "50"},
	{DEVELOPMENT, "flush_interval", "500 ms"},
	{TEST, "flush_size", "5"},
	{TEST, "flush_interval", "100 ms"},
	{SMALL, "flush_size", "200"},
	{SMALL, "flush_interval", "20 ms"},
	{MEDIUM, "flush_size", "500"},
	{MEDIUM, "flush_interval", "15 ms"},
	{MEDIUM, "adaptive", "true"},
	{LARGE, "flush_size", "857"},
	{LARGE, "flush_interval", "10 ms"},
	{LARGE, "adaptive", "true"},
	{REALTIME, "flush_size", "10"},
	{REALTIME, "flush_interval", "500 ms"},
	{REALTIME, "notify_format", "groups"},
	{DEBOUNCED, "max_batch_size", "100"},
	{DEBOUNCED, "key_policy", "last"},
	{DEBOUNCED, "debounce", "200 ms"},
	{DEBOUNCED, "max_wait", "5 s"},
	{PERIODIC, "flush_size", "1000"},
	{PERIODIC, "flush_interval", "15 min"},
};

/*
 * What a preset says of an option, as text; NULL if nothing.
 */
const char *
batcher_preset_value(int preset, const char *option)
{
	for (int i = 0; preset != NO_PRESET && i < lengthof(values); i++)
	{
		if (values[i].preset == preset && strcmp(values[i].option, option) == 0)
			return values[i].value;
	}
	return NULL;
}
