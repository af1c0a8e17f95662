/*
 * group.c
 *	  Making one event of rows that say the same of several things.
 *
 * Rows whose payloads have an equal scalar in one field are a group.  A group
 * of more than one row is one event, which has each field of them: as it is if
 * all have it and it is equal in all, else as an array of the values in the
 * order of the rows.  A group that is too large for a message is halved until
 * its pieces fit.  Rows and fields are brought together by sorting.  The
 * worker.
 */
#include "postgres.h"

#include "base/json.h"
#include "batch/message.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

/* The field that says how many rows an event is made of. */
#define COUNT_FIELD		"batch_count"

/*
 * What begins the text of a container is at least an eighth of its size: see
 * TEXT_TRIED_MAX in parts.c.
 */
#define TEXT_SHARE		8

/* A row, and the text by which it is grouped. */
typedef struct GroupedRow
{
	const BatcherItem *row;
	int			index;			/* in the order of the rows */
	enum jbvType type;			/* of the scalar; jbvNull: it stands alone */
	const char *name;			/* the text of it */
	int			len;
	int			group;			/* index of the first row of its group */
} GroupedRow;

/* A field of a row. */
typedef struct Field
{
	const char *name;
	int			len;
	int			row;			/* its place in the group */
	JsonbValue	value;
} Field;

/* An event in the making. */
typedef struct Event
{
	const BatcherOptions *options;
	int			nrows;
	Field	   *fields;			/* sorted by name, then by row */
	int			nfields;
	List	   *arrays;			/* names of arrays, as char * */
} Event;

static int
compare_names(const char *a, int a_len, const char *b, int b_len)
{
	return a_len != b_len ? a_len - b_len : memcmp(a, b, a_len);
}

static int
compare_by_name(const void *a, const void *b)
{
	const GroupedRow *x = a;
	const GroupedRow *y = b;
	int			cmp = (int) x->type - (int) y->type;

	if (cmp == 0 && x->type != jbvNull)
		cmp = compare_names(x->name, x->len, y->name, y->len);
	return cmp != 0 ? cmp : x->index - y->index;
}

static int
compare_by_group(const void *a, const void *b)
{
	const GroupedRow *x = a;
	const GroupedRow *y = b;

	return x->group != y->group ? x->group - y->group : x->index - y->index;
}

static int
compare_fields(const void *a, const void *b)
{
	const Field *x = a;
	const Field *y = b;
	int			cmp = compare_names(x->name, x->len, y->name, y->len);

	return cmp != 0 ? cmp : x->row - y->row;
}

/* By what is this row grouped? */
static void
find_name(const BatcherOptions *options, GroupedRow *r)
{
	Jsonb	   *json = r->row->json;
	JsonbValue	v;

	r->type = jbvNull;
	if (!JB_ROOT_IS_OBJECT(json) ||
		getKeyJsonValueFromContainer(&json->root, options->notify_group_by,
									 strlen(options->notify_group_by),
									 &v) == NULL)
		return;
	switch (v.type)
	{
		case jbvString:
			r->name = v.val.string.val;
			r->len = v.val.string.len;
			break;
		case jbvNumeric:
			r->name = DatumGetCString(DirectFunctionCall1(numeric_out,
														  NumericGetDatum(v.val.numeric)));
			r->len = strlen(r->name);
			break;
		case jbvBool:
			r->name = v.val.boolean ? "true" : "false";
			r->len = strlen(r->name);
			break;
		default:
			return;
	}
	r->type = v.type;
}

/* Sort rows by group, the groups in the order of their first rows. */
static GroupedRow *
sort_by_group(const BatcherOptions *options, const BatcherItem *rows,
			  int nrows)
{
	GroupedRow *grouped = MemoryContextAllocHuge(CurrentMemoryContext,
												 sizeof(GroupedRow) * nrows);
	int			i;

	for (i = 0; i < nrows; i++)
	{
		grouped[i].row = &rows[i];
		grouped[i].index = i;
		find_name(options, &grouped[i]);
	}
	qsort(grouped, nrows, sizeof(GroupedRow), compare_by_name);
	for (i = 0; i < nrows; i++)
	{
		GroupedRow *r = &grouped[i];
		GroupedRow *before = i > 0 ? r - 1 : NULL;

		if (before && r->type != jbvNull && r->type == before->type &&
			compare_names(r->name, r->len, before->name, before->len) == 0)
			r->group = before->group;
		else
			r->group = r->index;
	}
	qsort(grouped, nrows, sizeof(GroupedRow), compare_by_group);
	return grouped;
}

/* All fields of the rows of an event. */
static void
collect_fields(Event *event, const GroupedRow *rows)
{
	Size		room = 64;
	int			i;

	event->fields = palloc(sizeof(Field) * room);
	for (i = 0; i < event->nrows; i++)
	{
		JsonbIterator *it = JsonbIteratorInit(&rows[i].row->json->root);
		JsonbIteratorToken token;
		JsonbValue	v;

		while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
		{
			Field	   *field = &event->fields[event->nfields];

			if (token == WJB_KEY)
			{
				field->name = v.val.string.val;
				field->len = v.val.string.len;
				field->row = i;
			}
			if (token != WJB_VALUE)
				continue;
			field->value = v;
			if (++event->nfields == room)
			{
				room *= 2;
				event->fields = repalloc_huge(event->fields,
											  sizeof(Field) * room);
			}
		}
	}
	qsort(event->fields, event->nfields, sizeof(Field), compare_fields);
}

static bool
values_equal(const JsonbValue *a, const JsonbValue *b)
{
	if (a->type != b->type)
		return false;
	switch (a->type)
	{
		case jbvNull:
			return true;
		case jbvBool:
			return a->val.boolean == b->val.boolean;
		case jbvString:
			return compare_names(a->val.string.val, a->val.string.len,
								 b->val.string.val, b->val.string.len) == 0;
		case jbvNumeric:
			return DatumGetBool(DirectFunctionCall2(numeric_eq,
													NumericGetDatum(a->val.numeric),
													NumericGetDatum(b->val.numeric)));
		case jbvBinary:
			return compareJsonbContainers(a->val.binary.data,
										  b->val.binary.data) == 0;
		default:
			elog(ERROR, "unexpected type of JSON value: %d", (int) a->type);
	}
	return false;				/* keep compiler quiet */
}

/* The text of a value is at least so long. */
static Size
least_length(const JsonbValue *v)
{
	switch (v->type)
	{
		case jbvString:
			return v->val.string.len + 2;
		case jbvBinary:
			return v->val.binary.len / TEXT_SHARE;
		default:
			return 1;
	}
}

/* Has the event a field of this name already, or any of its rows? */
static bool
name_taken(const Event *event, const char *name, int len)
{
	Field		wanted = {.name = name,.len = len};
	ListCell   *lc;
	int			low = 0;
	int			high = event->nfields;

	if (strcmp(name, COUNT_FIELD) == 0)
		return true;
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (compare_fields(&event->fields[middle], &wanted) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low < event->nfields &&
		compare_names(event->fields[low].name, event->fields[low].len,
					  name, len) == 0)
		return true;
	foreach(lc, event->arrays)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

static bool
ends_with(const StringInfoData *s, const char *ending)
{
	int			len = strlen(ending);

	return s->len >= len && memcmp(s->data + s->len - len, ending, len) == 0;
}

/* The name of an array of values of a field. */
static char *
array_name(Event *event, const char *name, int len)
{
	StringInfoData s;

	initStringInfo(&s);
	appendBinaryStringInfo(&s, name, len);
	if (ends_with(&s, "s") || ends_with(&s, "x") || ends_with(&s, "z") ||
		ends_with(&s, "ch") || ends_with(&s, "sh"))
		appendStringInfoString(&s, "es");
	else if (ends_with(&s, "y") && s.len > 1 &&
			 strchr("bcdfghjklmnpqrstvwxz", s.data[s.len - 2]) != NULL)
	{
		s.data[--s.len] = '\0';
		appendStringInfoString(&s, "ies");
	}
	else
		appendStringInfoChar(&s, 's');
	if (name_taken(event, s.data, s.len))
	{
		resetStringInfo(&s);
		appendBinaryStringInfo(&s, name, len);
		do
			appendStringInfoString(&s, "_list");
		while (name_taken(event, s.data, s.len));
	}
	event->arrays = lappend(event->arrays, s.data);
	return s.data;
}

/* The values of a field, one for each row. */
static void
push_array(JsonbParseState **state, const Event *event, Field *field, int n)
{
	JsonbValue	none = {.type = jbvNull};
	int			i;

	pushJsonbValue(state, WJB_BEGIN_ARRAY, NULL);
	for (i = 0; i < event->nrows; i++)
	{
		if (n > 0 && field->row == i)
		{
			pushJsonbValue(state, WJB_ELEM, &field->value);
			field++;
			n--;
		}
		else
			pushJsonbValue(state, WJB_ELEM, &none);
	}
	pushJsonbValue(state, WJB_END_ARRAY, NULL);
}

/* The name of an event of several rows. */
static void
push_name(JsonbParseState **state, const Event *event, const GroupedRow *row)
{
	const BatcherOptions *options = event->options;
	JsonbValue	v;

	if (getKeyJsonValueFromContainer(&options->notify_names->root, row->name,
									 row->len, &v) == NULL)
	{
		v.type = jbvString;
		v.val.string.val = psprintf("%.*s_BATCH", row->len, row->name);
		v.val.string.len = strlen(v.val.string.val);
	}
	batcher_json_key(state, options->notify_group_by);
	pushJsonbValue(state, WJB_VALUE, &v);
}

/*
 * One event of several rows, which are of one group; NULL if its text would be
 * longer than 'room'.
 */
static Jsonb *
make_event(const BatcherOptions *options, const GroupedRow *rows, int nrows,
		   Size room)
{
	Event		event = {.options = options,.nrows = nrows};
	JsonbParseState *state = NULL;
	Size		least = 0;
	Field	   *field;
	Field	   *end;
	Jsonb	   *json;
	int			len;

	collect_fields(&event, rows);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_name(&state, &event, rows);
	batcher_json_integer(&state, COUNT_FIELD, nrows);
	for (field = event.fields; field < event.fields + event.nfields;
		 field = end)
	{
		bool		equal = true;
		JsonbValue	key;

		for (end = field; end < event.fields + event.nfields &&
			 compare_names(end->name, end->len, field->name, field->len) == 0;
			 end++)
			equal = equal && values_equal(&end->value, &field->value);
		if (compare_names(field->name, field->len, options->notify_group_by,
						  strlen(options->notify_group_by)) == 0)
			continue;
		key.type = jbvString;
		if (equal && end - field == nrows &&
			compare_names(field->name, field->len, COUNT_FIELD,
						  strlen(COUNT_FIELD)) != 0)
		{
			key.val.string.val = unconstify(char *, field->name);
			key.val.string.len = field->len;
			pushJsonbValue(&state, WJB_KEY, &key);
			pushJsonbValue(&state, WJB_VALUE, &field->value);
			continue;
		}
		for (Field *f = field; f < end; f++)
			least += least_length(&f->value);
		least += 2 * nrows;
		if (least > room)
			return NULL;
		batcher_json_key(&state, array_name(&event, field->name, field->len));
		push_array(&state, &event, field, end - field);
	}
	json = batcher_json_end(&state);
	(void) batcher_json_text(json, &len);
	return len > room ? NULL : json;
}

/* The events of a group, or of a part of one; returns their number. */
static int
add_events(const BatcherOptions *options, const GroupedRow *rows, int nrows,
		   int room, BatcherItem *events)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext cxt;
	Jsonb	   *json;
	int			n;

	check_stack_depth();
	CHECK_FOR_INTERRUPTS();
	if (nrows == 1)
	{
		*events = *rows->row;
		return 1;
	}
	cxt = AllocSetContextCreate(caller, "event", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(cxt);
	json = make_event(options, rows, nrows, room);
	MemoryContextSwitchTo(caller);
	if (json)
	{
		events->json = palloc(VARSIZE(json));
		memcpy(events->json, json, VARSIZE(json));
		events->ticket = rows->row->ticket;
	}
	MemoryContextDelete(cxt);
	if (json)
		return 1;
	n = add_events(options, rows, nrows / 2, room, events);
	return n + add_events(options, rows + nrows / 2, nrows - nrows / 2, room,
						  events + n);
}

/*
 * Make events of rows, in 'events', which has room for as many; returns how
 * many they are.  No event of several rows has a text longer than 'room'.
 */
int
batcher_group_rows(const BatcherOptions *options, const BatcherItem *rows,
				   int nrows, int room, BatcherItem *events)
{
	GroupedRow *grouped = sort_by_group(options, rows, nrows);
	int			nevents = 0;
	int			first;
	int			end;

	for (first = 0; first < nrows; first = end)
	{
		for (end = first + 1; end < nrows &&
			 grouped[end].group == grouped[first].group; end++)
			;
		nevents += add_events(options, &grouped[first], end - first, room,
							  &events[nevents]);
	}
	return nevents;
}
