/* empty--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION empty" to load this file. \quit

CREATE FUNCTION empty_enqueue(
    queue text,
    payload jsonb,
    key text DEFAULT NULL,
    topic text DEFAULT NULL,
    priority integer DEFAULT 0,
    immediate boolean DEFAULT false)
RETURNS bigint
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'empty_enqueue';
