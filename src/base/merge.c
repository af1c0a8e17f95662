/*
 * merge.c
 *	  Merging JSON values: the newer one goes into the older one.
 *
 * Objects are merged member by member, at all depths.  Anything else, null and
 * arrays too, is overwritten.  May raise an error if the result is too large
 * or too deep.  Any process.
 */
#include "postgres.h"

#include "base/merge.h"
#include "miscadmin.h"

static void push_merged(JsonbParseState **state, JsonbValue *key,
						JsonbContainer *older, JsonbContainer *newer);

/* Push a member whose value is in memory of a container. */
static void
push_member(JsonbParseState **state, JsonbValue *key, JsonbValue *value)
{
	(void) pushJsonbValue(state, WJB_KEY, key);
	(void) pushJsonbValue(state, WJB_VALUE, value);
}

static bool
is_object(const JsonbValue *value)
{
	return value->type == jbvBinary &&
		JsonContainerIsObject(value->val.binary.data);
}

/*
 * Push the members of 'container'.  Where 'other' has the same key: with
 * 'merge', both values are merged, else it is left out.
 */
static void
push_members(JsonbParseState **state, JsonbContainer *container,
			 JsonbContainer *other, bool merge)
{
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbValue	key;
	JsonbValue	value;
	JsonbIteratorToken token;

	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		JsonbValue	theirs;

		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &value, true);
		if (getKeyJsonValueFromContainer(other, key.val.string.val,
										 key.val.string.len, &theirs) == NULL)
			push_member(state, &key, &value);
		else if (!merge)
			continue;
		else if (is_object(&value) && is_object(&theirs))
		{
			push_merged(state, &key, value.val.binary.data,
						theirs.val.binary.data);
			(void) pushJsonbValue(state, WJB_END_OBJECT, NULL);
		}
		else
			push_member(state, &key, &theirs);
	}
}

/* Push the object that two objects make; 'key' is NULL at the top. */
static void
push_merged(JsonbParseState **state, JsonbValue *key, JsonbContainer *older,
			JsonbContainer *newer)
{
	check_stack_depth();
	CHECK_FOR_INTERRUPTS();
	if (key)
		(void) pushJsonbValue(state, WJB_KEY, key);
	(void) pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
	push_members(state, older, newer, true);
	push_members(state, newer, older, false);
}

/*
 * Merge 'newer' into 'older'; the result is in the current context, or one of
 * the two.
 */
Jsonb *
batcher_merge_jsonb(Jsonb *older, Jsonb *newer)
{
	JsonbParseState *state = NULL;

	if (!JB_ROOT_IS_OBJECT(older) || !JB_ROOT_IS_OBJECT(newer))
		return newer;
	push_merged(&state, NULL, &older->root, &newer->root);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}
