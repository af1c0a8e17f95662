/*
 * json.h
 *	  Building JSON out of pieces, with the server's own code.
 */
#ifndef BATCHER_JSON_H
#define BATCHER_JSON_H

#include "utils/jsonb.h"

extern void batcher_json_push_text(JsonbParseState **state,
								   JsonbIteratorToken token,
								   const char *text);
extern void batcher_json_key(JsonbParseState **state, const char *key);
extern void batcher_json_string(JsonbParseState **state, const char *key,
								const char *value);
extern void batcher_json_integer(JsonbParseState **state, const char *key,
								 int64 value);
extern void batcher_json_push(JsonbParseState **state,
							  JsonbIteratorToken token, Jsonb *json);
extern void batcher_json_push_members(JsonbParseState **state, Jsonb *object);
extern Jsonb *batcher_json_end(JsonbParseState **state);
extern char *batcher_json_text(Jsonb *json, int *len);

#endif							/* BATCHER_JSON_H */
