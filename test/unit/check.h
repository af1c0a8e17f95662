/*
 * check.h
 *	  What the programs here tell what they have checked with.
 *
 * After <stdio.h>, and what has bool.
 */
#ifndef CHECK_H
#define CHECK_H

static int	failures = 0;

static void
check(bool holds, const char *what)
{
	printf("%s - %s\n", holds ? "ok" : "not ok", what);
	failures += !holds;
}

#endif							/* CHECK_H */
