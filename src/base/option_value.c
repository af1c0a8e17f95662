/*
 * option_value.c
 *	  Single values of options: parsed, shown, and refused.
 *
 * Parsing says no rather than raising an error, because a worker that reads a
 * stored definition must not fail over a value that another version accepted.
 * Intervals are therefore taken apart with the pieces of interval_in(), and
 * sizes as the server's settings are.  Any process.
 */
#include "postgres.h"

#include <math.h>

#include "base/options.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"

#define SECOND_MS		1000.0
#define MINUTE_MS		(60 * SECOND_MS)
#define HOUR_MS			(60 * MINUTE_MS)
#define DAY_MS			(24 * HOUR_MS)
#define MONTH_MS		(30 * DAY_MS)

/* The longest part of a user's text that an error message shows, in bytes. */
#define SHOWN_MAX		100

/*
 * A copy of the text, of 'len' bytes, cut to a length that is fit for a
 * message.
 */
char *
batcher_option_clip(const char *text, int len)
{
	if (len <= SHOWN_MAX)
		return pnstrdup(text, len);
	return psprintf("%.*s...", pg_mbcliplen(text, len, SHOWN_MAX), text);
}

/* A value as JSON, for a message. */
static char *
show_value(JsonbValue *value)
{
	Jsonb	   *jsonb = JsonbValueToJsonb(value);
	char	   *text = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));

	return batcher_option_clip(text, strlen(text));
}

/* A duration in its largest even unit, no larger than an hour. */
static char *
format_duration(double ms)
{
	static const struct
	{
		const char *name;
		double		ms;
	}			units[] = {
		{"h", HOUR_MS}, {"min", MINUTE_MS}, {"s", SECOND_MS}
	};

	for (int i = 0; i < lengthof(units); i++)
	{
		if (ms > 0 && fmod(ms, units[i].ms) == 0)
			return psprintf("%.0f %s", ms / units[i].ms, units[i].name);
	}
	return psprintf("%.15g ms", ms);
}

/* A size in its largest even unit, in a form that is also read. */
static char *
format_size(double bytes)
{
	static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
	int			unit = 0;

	if (bytes == 0)
		return pstrdup("0");
	while (unit < lengthof(units) - 1 && fmod(bytes, 1024) == 0)
	{
		bytes /= 1024;
		unit++;
	}
	return psprintf("%.0f%s", bytes, units[unit]);
}

/*
 * The name of a type, as the view batcher.option shows it.
 */
const char *
batcher_option_type_name(BatcherOptionType type)
{
	switch (type)
	{
		case BATCHER_OPTION_BOOL:
			return "boolean";
		case BATCHER_OPTION_INT:
			return "integer";
		case BATCHER_OPTION_NUMBER:
			return "number";
		case BATCHER_OPTION_DURATION:
			return "interval";
		case BATCHER_OPTION_SIZE:
			return "size";
		case BATCHER_OPTION_ENUM:
			return "enum";
		case BATCHER_OPTION_TEXT:
			return "text";
		case BATCHER_OPTION_JSON:
			return "jsonb";
	}
	elog(ERROR, "unrecognized type of option: %d", (int) type);
	return NULL;				/* keep compiler quiet */
}

/*
 * The least value that an option takes, or, if 'upper', the greatest, in the
 * option's own unit; for a text, its length.  Allocated in the caller's
 * context; NULL if the type has no limits.
 */
char *
batcher_option_limit(const BatcherOption *option, bool upper)
{
	double		limit = upper ? option->max : option->min;

	switch (option->type)
	{
		case BATCHER_OPTION_INT:
			return psprintf("%.0f", limit);
		case BATCHER_OPTION_NUMBER:
			return psprintf("%.15g", limit);
		case BATCHER_OPTION_DURATION:
			return format_duration(limit);
		case BATCHER_OPTION_SIZE:
			return format_size(limit);
		case BATCHER_OPTION_TEXT:
			return psprintf(limit == 1 ? "%.0f byte" : "%.0f bytes", limit);
		case BATCHER_OPTION_BOOL:
		case BATCHER_OPTION_ENUM:
		case BATCHER_OPTION_JSON:
			break;
	}
	return NULL;
}

/*
 * The effective value of an option in a form in which it can be given.  One
 * without a default is null where it has no value.  Allocated in the caller's
 * context.
 */
void
batcher_option_effective(const BatcherOption *option,
						 const BatcherOptions *options, JsonbValue *value)
{
	const char *member = (const char *) options + option->offset;
	const char *text = NULL;
	double		number = 0;

	switch (option->type)
	{
		case BATCHER_OPTION_BOOL:
			value->type = jbvBool;
			value->val.boolean = *(const bool *) member;
			return;
		case BATCHER_OPTION_INT:
			number = *(const int *) member;
			break;
		case BATCHER_OPTION_NUMBER:
			number = *(const double *) member;
			break;
		case BATCHER_OPTION_DURATION:
			number = *(const double *) member;
			text = format_duration(number);
			break;
		case BATCHER_OPTION_SIZE:
			number = (double) *(const int64 *) member;
			text = format_size(number);
			break;
		case BATCHER_OPTION_ENUM:
			number = *(const int *) member;
			for (const BatcherOptionEnum *e = option->values; e->name; e++)
			{
				if (e->value == number)
					text = e->name;
			}
			break;
		case BATCHER_OPTION_TEXT:
			text = *(char *const *) member;
			break;
		case BATCHER_OPTION_JSON:
			value->type = jbvBinary;
			value->val.binary.data = &(*(Jsonb *const *) member)->root;
			value->val.binary.len = VARSIZE(*(Jsonb *const *) member) -
				VARHDRSZ;
			return;
	}
	if (option->fallback == NULL && number == 0 &&
		(text == NULL || option->type != BATCHER_OPTION_TEXT))
		value->type = jbvNull;
	else if (text != NULL)
	{
		value->type = jbvString;
		value->val.string.val = pstrdup(text);
		value->val.string.len = strlen(text);
	}
	else
	{
		value->type = jbvNumeric;
		value->val.numeric = DatumGetNumeric(DirectFunctionCall1(float8_numeric,
																 Float8GetDatum(number)));
	}
}

/*
 * Parse any interval text into milliseconds, a month as 30 days.  False if it
 * is none.
 *
 * This is interval_in() without its errors, and without its overflows: what
 * is too large for an interval need only be too large for an option.
 */
static bool
parse_duration(const char *text, double *ms)
{
	char		workbuf[256];
	char	   *field[MAXDATEFIELDS];
	int			ftype[MAXDATEFIELDS];
	int			nfields;
	int			dtype;
	int			failure;
	struct pg_itm_in itm;

	failure = ParseDateTime(text, workbuf, sizeof(workbuf), field, ftype,
							MAXDATEFIELDS, &nfields);
	if (failure == 0)
		failure = DecodeInterval(field, ftype, nfields, INTERVAL_FULL_RANGE,
								 &dtype, &itm);
	if (failure == DTERR_BAD_FORMAT)
		failure = DecodeISO8601Interval(unconstify(char *, text),
										&dtype, &itm);

	/* 17 and later know infinite intervals, which are no DTK_DELTA. */
	if (failure != 0 || dtype != DTK_DELTA)
		return false;

	*ms = itm.tm_usec / 1000.0 + itm.tm_mday * DAY_MS +
		(itm.tm_mon + 12.0 * itm.tm_year) * MONTH_MS;
	return true;
}

/*
 * Parse the text form of a value; false if it is none of the option's, or is
 * out of its range.  If the reason needs words, '*why' is set to them, else
 * it is left alone.  Raises no error but for lack of memory.
 */
bool
batcher_option_parse_text(const BatcherOption *option, const char *text,
						  BatcherOptionValue *result, char **why)
{
	bool		flag;

	switch (option->type)
	{
		case BATCHER_OPTION_BOOL:
			if (!parse_bool(text, &flag))
				return false;
			result->number = flag;
			return true;
		case BATCHER_OPTION_INT:
			if (!parse_real(text, &result->number, 0, NULL) ||
				rint(result->number) != result->number)
				return false;
			break;
		case BATCHER_OPTION_NUMBER:
			if (!parse_real(text, &result->number, 0, NULL))
				return false;
			break;
		case BATCHER_OPTION_DURATION:
			if (!parse_duration(text, &result->number))
				return false;
			break;
		case BATCHER_OPTION_SIZE:
			if (!parse_real(text, &result->number, GUC_UNIT_BYTE, NULL))
				return false;
			result->number = rint(result->number);
			break;
		case BATCHER_OPTION_ENUM:
			for (const BatcherOptionEnum *e = option->values; e->name; e++)
			{
				if (strcmp(e->name, text) == 0)
				{
					result->number = e->value;
					return true;
				}
			}
			return false;
		case BATCHER_OPTION_TEXT:
			result->number = strlen(text);
			result->text = pstrdup(text);
			break;
		case BATCHER_OPTION_JSON:	/* a default: what is given is no text */
			result->json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
															  CStringGetDatum(text)));
			return true;
	}

	/* Written so that NaN is out of range. */
	if (!(result->number >= option->min && result->number <= option->max))
		return false;
	return option->check == NULL || option->check(text, why);
}

/* Is this an object whose values are texts? */
static bool
is_object_of_texts(Jsonb *json)
{
	JsonbIterator *it = JsonbIteratorInit(&json->root);
	JsonbIteratorToken token;
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(json))
		return false;
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_VALUE && value.type != jbvString)
			return false;
	}
	return true;
}

/*
 * Parse a JSON value that is not null; as batcher_option_parse_text().
 *
 * Numbers stand for numbers, milliseconds and bytes, and text for what has a
 * text form with a unit or with words: a number in quotes is no integer.
 */
bool
batcher_option_parse_json(const BatcherOption *option, const JsonbValue *value,
						  BatcherOptionValue *result, char **why)
{
	double		number;

	switch (value->type)
	{
		case jbvBool:
			result->number = value->val.boolean;
			return option->type == BATCHER_OPTION_BOOL;
		case jbvNumeric:
			if (option->type != BATCHER_OPTION_INT &&
				option->type != BATCHER_OPTION_NUMBER &&
				option->type != BATCHER_OPTION_DURATION &&
				option->type != BATCHER_OPTION_SIZE)
				return false;
			/* What a double cannot hold comes back infinite. */
			number = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
														NumericGetDatum(value->val.numeric)));
			if (option->type != BATCHER_OPTION_DURATION &&
				option->type != BATCHER_OPTION_NUMBER &&
				rint(number) != number)
				return false;
			result->number = number;
			return number >= option->min && number <= option->max;
		case jbvString:
			if (option->type == BATCHER_OPTION_BOOL ||
				option->type == BATCHER_OPTION_INT ||
				option->type == BATCHER_OPTION_NUMBER ||
				option->type == BATCHER_OPTION_JSON)
				return false;
			return batcher_option_parse_text(option,
											 pnstrdup(value->val.string.val,
													  value->val.string.len),
											 result, why);
		case jbvBinary:
			if (option->type != BATCHER_OPTION_JSON)
				return false;
			result->json = JsonbValueToJsonb(unconstify(JsonbValue *, value));
			return is_object_of_texts(result->json);
		default:
			return false;
	}
}

/* What an option takes, in words that follow "must be". */
static char *
describe_values(const BatcherOption *option)
{
	StringInfoData buf;
	const char *kind = NULL;

	switch (option->type)
	{
		case BATCHER_OPTION_BOOL:
			return pstrdup("true or false");
		case BATCHER_OPTION_JSON:
			return pstrdup("an object whose values are texts");
		case BATCHER_OPTION_INT:
			kind = "an integer";
			break;
		case BATCHER_OPTION_NUMBER:
			kind = "a number";
			break;
		case BATCHER_OPTION_DURATION:
			kind = "an interval";
			break;
		case BATCHER_OPTION_SIZE:
			kind = "a size";
			break;
		case BATCHER_OPTION_TEXT:
			return psprintf("a text of %.0f to %.0f bytes",
							option->min, option->max);
		case BATCHER_OPTION_ENUM:
			initStringInfo(&buf);
			for (const BatcherOptionEnum *e = option->values; e->name; e++)
			{
				if (e > option->values)
					appendStringInfoString(&buf, e[1].name ? ", " : " or ");
				appendStringInfo(&buf, "\"%s\"", e->name);
			}
			return buf.data;
	}
	return psprintf("%s from %s to %s", kind,
					batcher_option_limit(option, false),
					batcher_option_limit(option, true));
}

/*
 * Raise the error (22023) for a value that an option does not take.  'why' is
 * what batcher_option_parse_json() said of it, or NULL.
 */
void
batcher_option_refuse(const BatcherOption *option, JsonbValue *value,
					  const char *why)
{
	if (why != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" cannot be %s",
						option->name, show_value(value)),
				 errdetail_internal("%s", why)));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("option \"%s\" must be %s, not %s",
					option->name, describe_values(option), show_value(value)),
			 option->type == BATCHER_OPTION_DURATION ?
			 errhint("Give an interval such as \"100 ms\", or a number of milliseconds.") : 0,
			 option->type == BATCHER_OPTION_SIZE ?
			 errhint("Give a size with one of the units \"B\", \"kB\", \"MB\", \"GB\" and \"TB\", such as \"16MB\", or a number of bytes.") : 0));
}
