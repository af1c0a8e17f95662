/*
 * options.h
 *	  The options of a queue: one table that drives parsing, checking, the
 *	  view batcher.option and the documentation.
 */
#ifndef BATCHER_OPTIONS_H
#define BATCHER_OPTIONS_H

#include "utils/jsonb.h"

typedef enum BatcherWhenFull
{
	BATCHER_FULL_DEFAULT,		/* spill if durable, else wait */
	BATCHER_FULL_SPILL,
	BATCHER_FULL_WAIT,
	BATCHER_FULL_ERROR
} BatcherWhenFull;

typedef enum BatcherKeyPolicy
{
	BATCHER_KEYS_ALL,
	BATCHER_KEYS_LAST,
	BATCHER_KEYS_FIRST,
	BATCHER_KEYS_MERGE
} BatcherKeyPolicy;

typedef enum BatcherNotifyFormat
{
	BATCHER_NOTIFY_NONE,
	BATCHER_NOTIFY_SUMMARY,
	BATCHER_NOTIFY_ROWS,
	BATCHER_NOTIFY_GROUPS
} BatcherNotifyFormat;

/* Where an effective value is from; what is later here goes before. */
typedef enum BatcherOptionSource
{
	BATCHER_SOURCE_DEFAULT,
	BATCHER_SOURCE_SERVER,		/* a setting of the server */
	BATCHER_SOURCE_PRESET,
	BATCHER_SOURCE_OPTION		/* it was given */
} BatcherOptionSource;

typedef enum BatcherNotifyEncoding
{
	BATCHER_ENCODING_JSON,
	BATCHER_ENCODING_ZLIB
} BatcherNotifyEncoding;

typedef enum BatcherOnConflict
{
	BATCHER_CONFLICT_ERROR,
	BATCHER_CONFLICT_NOTHING,
	BATCHER_CONFLICT_UPDATE
} BatcherOnConflict;

/*
 * The effective options of one queue.  What was given is stored as jsonb with
 * the definition; this is that, checked, with values of the preset, server
 * settings and defaults put in.  String members point into memory of the caller's context.
 */
typedef struct BatcherOptions
{
	int			preset;			/* see preset.c; 0: none */
	bool		durable;
	bool		enabled;		/* rows are gathered */
	BatcherKeyPolicy key_policy;
	double		debounce;		/* ms, 0: none */
	double		max_wait;		/* ms */
	int			flush_size;		/* rows; never 0 */
	int			max_batch_size; /* rows */
	double		flush_interval; /* ms */
	bool		adaptive;
	int			min_batch_size; /* rows */
	double		adjust_factor;	/* share */
	double		latency_target; /* ms */
	double		error_target;	/* share */
	double		throughput_target;	/* rows a second, 0: none */
	int			max_attempts;	/* times */
	double		retry_delay;	/* ms */
	double		retry_backoff;	/* factor */
	double		retry_max_delay;	/* ms; never less than retry_delay */
	double		flush_timeout;	/* ms */
	int			breaker_threshold;	/* flushes */
	double		breaker_recovery;	/* ms */
	int			breaker_probes; /* batches */
	int			lanes;
	int64		memory_limit;	/* bytes, 0: only the server's */
	BatcherWhenFull when_full;	/* never BATCHER_FULL_DEFAULT */
	double		rate_limit;		/* rows a second, 0: none */
	BatcherOnConflict on_conflict;	/* of inserts into the target */
	char	   *notify_channel; /* NULL: none */
	BatcherNotifyFormat notify_format;
	char	   *notify_group_by;
	Jsonb	   *notify_names;	/* an object of texts */
	char	   *notify_sql;		/* NULL: the format says what is sent */
	BatcherNotifyEncoding notify_encoding;
} BatcherOptions;

/* Types of option values. */
typedef enum BatcherOptionType
{
	BATCHER_OPTION_BOOL,
	BATCHER_OPTION_INT,
	BATCHER_OPTION_NUMBER,		/* double */
	BATCHER_OPTION_DURATION,	/* double, ms */
	BATCHER_OPTION_SIZE,		/* int64, bytes */
	BATCHER_OPTION_ENUM,
	BATCHER_OPTION_TEXT,
	BATCHER_OPTION_JSON			/* an object of texts */
} BatcherOptionType;

typedef struct BatcherOptionEnum
{
	const char *name;
	int			value;
} BatcherOptionEnum;

/*
 * One option.  'fallback' is the default as it is shown, and, where it is not
 * NULL, as it is parsed; where the server setting or another option decides,
 * it names that in words and 'computed' is true.  'check' says whether a text
 * will do, and if not, why, in a sentence; it raises no error.
 */
typedef struct BatcherOption
{
	const char *name;
	BatcherOptionType type;
	size_t		offset;			/* in BatcherOptions */
	const char *fallback;
	bool		computed;
	double		min;			/* numbers, durations (ms), sizes (bytes),
								 * length of texts (bytes) */
	double		max;
	const BatcherOptionEnum *values;	/* BATCHER_OPTION_ENUM only; ends with
										 * a NULL name */
	bool		(*check) (const char *text, char **why);	/* or NULL */
	const char *description;
} BatcherOption;

/* A value parsed: 'text', 'json', or, for the other types, 'number'. */
typedef struct BatcherOptionValue
{
	double		number;
	char	   *text;
	Jsonb	   *json;
} BatcherOptionValue;

/* There are not more; for arrays with something of each. */
#define BATCHER_MAX_OPTIONS	64

/* option_table.c */
extern const BatcherOption batcher_options[];
extern const int batcher_num_options;
extern const BatcherOption *batcher_option_find(const char *name, int len);

/* options.c */
extern bool batcher_options_give_sql(Jsonb *given);
extern Jsonb *batcher_options_merge(Jsonb *stored, Jsonb *given);
extern void batcher_options_resolve(Jsonb *stored, BatcherOptions *options);
extern Jsonb *batcher_options_explain(Jsonb *stored);
extern bool batcher_options_thin(const BatcherOptions *options);

/* preset.c */
extern const BatcherOptionEnum batcher_presets[];
extern const char *batcher_preset_value(int preset, const char *option);

/* option_value.c */
extern bool batcher_option_parse_text(const BatcherOption *option,
									  const char *text,
									  BatcherOptionValue *result, char **why);
extern bool batcher_option_parse_json(const BatcherOption *option,
									  const JsonbValue *value,
									  BatcherOptionValue *result, char **why);
extern void batcher_option_effective(const BatcherOption *option,
									 const BatcherOptions *options,
									 JsonbValue *value);
extern void batcher_option_refuse(const BatcherOption *option,
								  JsonbValue *value,
								  const char *why);
extern char *batcher_option_clip(const char *text, int len);
extern const char *batcher_option_type_name(BatcherOptionType type);
extern char *batcher_option_limit(const BatcherOption *option, bool upper);

#endif							/* BATCHER_OPTIONS_H */
