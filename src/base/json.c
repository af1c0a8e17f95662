/*
 * json.c
 *	  Building JSON out of pieces, with the server's own code.
 *
 * What is built is jsonb, so that escapes, numbers and the encoding are the
 * server's affair, and so is the order of the keys.  Any process.
 */
#include "postgres.h"

#include "base/json.h"
#include "utils/numeric.h"

/*
 * A text, as a key (WJB_KEY), a member's value (WJB_VALUE) or an element
 * (WJB_ELEM).
 */
void
batcher_json_push_text(JsonbParseState **state, JsonbIteratorToken token,
					   const char *text)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, text);
	v.val.string.len = strlen(text);
	(void) pushJsonbValue(state, token, &v);
}

/*
 * Begin a member of an object; its value is to follow.
 */
void
batcher_json_key(JsonbParseState **state, const char *key)
{
	batcher_json_push_text(state, WJB_KEY, key);
}

/*
 * A member of an object that is a text.
 */
void
batcher_json_string(JsonbParseState **state, const char *key,
					const char *value)
{
	batcher_json_key(state, key);
	batcher_json_push_text(state, WJB_VALUE, value);
}

/*
 * A member of an object that is an integer.
 */
void
batcher_json_integer(JsonbParseState **state, const char *key, int64 value)
{
	JsonbValue	v;

	batcher_json_key(state, key);
	v.type = jbvNumeric;
	v.val.numeric = int64_to_numeric(value);
	pushJsonbValue(state, WJB_VALUE, &v);
}

/*
 * A whole JSON value, as a member's (WJB_VALUE) or an element (WJB_ELEM).
 */
void
batcher_json_push(JsonbParseState **state, JsonbIteratorToken token,
				  Jsonb *json)
{
	JsonbValue	v;

	if (!JB_ROOT_IS_SCALAR(json))
	{
		v.type = jbvBinary;
		v.val.binary.data = &json->root;
		v.val.binary.len = VARSIZE(json) - VARHDRSZ;
	}
	else if (!JsonbExtractScalar(&json->root, &v))
		elog(ERROR, "could not read a scalar JSON value");
	pushJsonbValue(state, token, &v);
}

/*
 * All members of an object, into the object that was begun.
 */
void
batcher_json_push_members(JsonbParseState **state, Jsonb *object)
{
	JsonbIterator *it = JsonbIteratorInit(&object->root);
	JsonbIteratorToken token;
	JsonbValue	v;

	Assert(JB_ROOT_IS_OBJECT(object));
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY || token == WJB_VALUE)
			pushJsonbValue(state, token, &v);
	}
}

/*
 * End the object that was begun.
 */
Jsonb *
batcher_json_end(JsonbParseState **state)
{
	return JsonbValueToJsonb(pushJsonbValue(state, WJB_END_OBJECT, NULL));
}

/*
 * A JSON value as text, and how long that is.
 */
char *
batcher_json_text(Jsonb *json, int *len)
{
	char	   *text = JsonbToCString(NULL, &json->root, VARSIZE(json));

	if (len)
		*len = strlen(text);
	return text;
}
