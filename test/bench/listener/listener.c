/*
 * listener.c
 *	  Sessions that listen, for the benchmarks of messages.
 *
 *	listener count CHANNEL SESSIONS MARK
 *		Sessions listen on CHANNEL until each has heard of the channel "end".
 *		Prints how often the one that has heard least has seen the text MARK, and
 *		the seconds from its first message to its last.
 *
 *	listener wait CHANNEL SAMPLES STATEMENT
 *		One session executes STATEMENT, another waits for a message on CHANNEL;
 *		again and again, with pauses.  Prints the median and the 99th percentile
 *		of the milliseconds from the end of the statement to the message.
 *
 * Both print "ready" first.  Connects by libpq's environment.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#define MAX_SESSIONS	100

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void
die(PGconn *conn)
{
	fprintf(stderr, "listener: %s", PQerrorMessage(conn));
	exit(1);
}

static void
execute(PGconn *conn, const char *statement)
{
	PGresult   *result = PQexec(conn, statement);

	if (PQresultStatus(result) != PGRES_COMMAND_OK &&
		PQresultStatus(result) != PGRES_TUPLES_OK)
		die(conn);
	PQclear(result);
}

static PGconn *
connect_and_listen(const char *channel)
{
	PGconn	   *conn = PQconnectdb("");
	char		statement[100];

	if (PQstatus(conn) != CONNECTION_OK)
		die(conn);
	if (channel)
	{
		snprintf(statement, sizeof(statement), "LISTEN %s", channel);
		execute(conn, statement);
	}
	return conn;
}

static void
ready(void)
{
	puts("ready");
	fflush(stdout);
}

static int
count(const char *channel, int n, const char *mark)
{
	PGconn	   *conns[MAX_SESSIONS];
	struct pollfd fds[MAX_SESSIONS];
	long		seen[MAX_SESSIONS] = {0};
	double		first[MAX_SESSIONS];
	double		last[MAX_SESSIONS];
	int			listening = n;
	int			least = 0;

	for (int i = 0; i < n; i++)
	{
		conns[i] = connect_and_listen(channel);
		execute(conns[i], "LISTEN \"end\"");
		fds[i].fd = PQsocket(conns[i]);
		fds[i].events = POLLIN;
	}
	ready();
	while (listening > 0)
	{
		poll(fds, n, -1);
		for (int i = 0; i < n; i++)
		{
			PGnotify   *notify;

			if (fds[i].fd < 0 || fds[i].revents == 0)
				continue;
			if (!PQconsumeInput(conns[i]))
				die(conns[i]);
			while ((notify = PQnotifies(conns[i])) != NULL)
			{
				const char *p = notify->extra;

				if (strcmp(notify->relname, "end") == 0)
				{
					fds[i].fd = -1;
					listening--;
				}
				else
				{
					last[i] = now();
					if (seen[i] == 0)
						first[i] = last[i];
					for (; (p = strstr(p, mark)) != NULL; p += strlen(mark))
						seen[i]++;
				}
				PQfreemem(notify);
			}
		}
	}
	for (int i = 1; i < n; i++)
		least = seen[i] < seen[least] ? i : least;
	printf("%ld %.3f\n", seen[least],
		   seen[least] > 0 ? last[least] - first[least] : 0);
	return 0;
}

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return x < y ? -1 : x > y;
}

static int
wait_each(const char *channel, int n, const char *statement)
{
	PGconn	   *sender = connect_and_listen(NULL);
	PGconn	   *listener = connect_and_listen(channel);
	double	   *ms = malloc(n * sizeof(double));

	ready();
	for (int i = 0; i < n; i++)
	{
		PGnotify   *notify = NULL;
		double		done;

		usleep(random() % 20000);
		execute(sender, statement);
		done = now();
		while (notify == NULL)
		{
			struct pollfd fd = {.fd = PQsocket(listener),.events = POLLIN};

			poll(&fd, 1, -1);
			if (!PQconsumeInput(listener))
				die(listener);
			notify = PQnotifies(listener);
		}
		ms[i] = (now() - done) * 1000;
		PQfreemem(notify);
	}
	qsort(ms, n, sizeof(double), compare);
	printf("%.3f %.3f\n", ms[n / 2], ms[n * 99 / 100]);
	return 0;
}

int
main(int argc, char **argv)
{
	if (argc == 5 && strcmp(argv[1], "count") == 0 &&
		atoi(argv[3]) <= MAX_SESSIONS)
		return count(argv[2], atoi(argv[3]), argv[4]);
	if (argc == 5 && strcmp(argv[1], "wait") == 0 && atoi(argv[3]) > 0)
		return wait_each(argv[2], atoi(argv[3]), argv[4]);
	fprintf(stderr, "listener: see the head of listener.c\n");
	return 2;
}
