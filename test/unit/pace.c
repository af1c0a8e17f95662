/*
 * pace.c
 *	  Runs the functions of src/batch/pace.c in simulated time.
 *
 * A worker is simulated as it behaves: it looks when it has ended a flush, when
 * a batch is complete, and when a window is over.  Rows come by a Poisson
 * process whose rate changes with the scenario; a flush takes a time that
 * depends on its rows.  What must hold is checked, and told as "ok" or "not
 * ok"; the exit status is 1 if anything did not hold.  Figures are lines
 * name=value.  Random numbers are the same in each run.
 *
 * M1.12 (intervals by a forecast of the arrivals), M5.3 (the size of batches by
 * errors, latency and throughput)
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batch/pace.h"
#include "check.h"

#define MAX_ROWS	4000000
#define MAX_FLUSHES	400000
#define SECOND		1000000

/* A size that moves by no more than this is settled. */
#define SETTLED		1.8

/* Only an assertion of the server's headers needs this. */
void		ExceptionalCondition(const char *a, const char *b, const char *c,
								 int d);
void
ExceptionalCondition(const char *a, const char *b, const char *c, int d)
{
	abort();
}

static uint64_t seed = 1;

/* From 0 to 1, neither of them. */
static double
uniform(void)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return ((seed >> 11) + 0.5) / 9007199254740992.0;
}

typedef enum
{
	WINDOW_PACE,				/* batcher's */
	WINDOW_FIXED,
	WINDOW_GAPS					/* widened and narrowed by the gaps between
								 * rows, as ClickHouse does */
} WindowRule;

/* A scenario: functions of the time in seconds. */
typedef struct
{
	double		seconds;
	double		(*rate) (double t); /* rows a second */
	double		(*flush_ms) (double t, int nrows);
	double		(*failing) (double t);	/* share of rows; NULL: none */
	WindowRule	rule;
	BatcherPaceBounds bounds;
} Scenario;

static int64_t row_at[MAX_ROWS];
static int64_t flush_at[MAX_FLUSHES];
static int	flush_size[MAX_FLUSHES];	/* the size after it */
static double wait_ms[MAX_ROWS];
static int	nflushes;
static int	nflushed;
static bool in_bounds;
static double longest_window;

static double
constant_ms(double t, int nrows)
{
	return 2.0 + nrows * 0.02;
}

/* Make the rows; returns how many. */
static int
make_rows(const Scenario *s, double most)
{
	double		t = 0;
	int			n = 0;

	for (;;)
	{
		t += -log(uniform()) / most;
		if (t >= s->seconds || n == MAX_ROWS)
			return n;
		if (uniform() * most < s->rate(t))
			row_at[n++] = (int64_t) (t * SECOND) + 1;
	}
}

/* The window by the gaps between rows. */
static double gap_window;
static int	gap_seen;
static int64_t gap_flushes[2];

static void
gaps_arrived(const Scenario *s, int arrived)
{
	double		least = s->bounds.window / 20;

	for (; gap_seen < arrived; gap_seen++)
	{
		double		gap = gap_seen == 0 ? 1e9 :
			(row_at[gap_seen] - row_at[gap_seen - 1]) / 1000.0;
		double		narrow = fmin(gap_window / 1.2, gap_window - 1);

		if (gap < least)
			gap_window = fmin(s->bounds.window,
							  fmax(gap_window * 1.2, gap_window + 1));
		else if (gap > narrow &&
				 (gap_flushes[1] - gap_flushes[0]) / 1000.0 > narrow)
			gap_window = fmax(least, narrow);
	}
}

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return x < y ? -1 : x > y;
}

/* Run a scenario.  'most' is the highest rate that it has. */
static void
run(const Scenario *s, double most)
{
	int			nrows = make_rows(s, most);
	int			arrived = 0;
	int			taken = 0;
	int			counted = 0;
	int64_t		now = 0;
	BatcherPace pace;

	batcher_pace_start(&pace, &s->bounds, 0);
	nflushes = nflushed = 0;
	in_bounds = true;
	longest_window = 0;
	gap_window = s->bounds.window / 20;
	gap_seen = 0;
	gap_flushes[0] = gap_flushes[1] = 0;
	while (taken < nrows)
	{
		double		window;
		int64_t		due;
		int64_t		full = INT64_MAX;
		BatcherPaceFlush flush;

		while (arrived < nrows && row_at[arrived] <= now)
			arrived++;
		batcher_pace_arrived(&pace, now, arrived - counted);
		counted = arrived;
		gaps_arrived(s, arrived);
		window = s->rule == WINDOW_PACE ? pace.window :
			s->rule == WINDOW_FIXED ? s->bounds.window : gap_window;
		longest_window = fmax(longest_window, window);
		if (!(window >= 0 && window <= s->bounds.window) ||
			pace.size < s->bounds.min_size || pace.size > s->bounds.max_size)
			in_bounds = false;
		if (arrived == taken)
		{
			now = row_at[arrived];
			continue;
		}
		due = row_at[taken] + (int64_t) (window * 1000);
		if (due > now && arrived - taken < pace.size)
		{
			if (taken + pace.size <= nrows)
				full = row_at[taken + pace.size - 1];
			now = due < full ? due : full;
			continue;
		}
		flush.nrows = arrived - taken;
		if (flush.nrows > pace.size)
			flush.nrows = pace.size;
		for (int i = 0; i < flush.nrows; i++)
			wait_ms[nflushed++] = (now - row_at[taken + i]) / 1000.0;
		flush.ms = s->flush_ms(now / 1e6, flush.nrows) *
			(0.8 + 0.4 * uniform());
		flush.nfailed = 0;
		if (s->failing)
			for (int i = 0; i < flush.nrows; i++)
				flush.nfailed += uniform() < s->failing(now / 1e6);
		now += (int64_t) (flush.ms * 1000) + 1;
		taken += flush.nrows;
		while (arrived < nrows && row_at[arrived] <= now)
			arrived++;
		flush.waiting = arrived - taken;
		(void) batcher_pace_flushed(&pace, &flush);
		gap_flushes[0] = gap_flushes[1];
		gap_flushes[1] = now;
		if (nflushes < MAX_FLUSHES)
		{
			flush_at[nflushes] = now;
			flush_size[nflushes++] = pace.size;
		}
	}
	qsort(wait_ms, nflushed, sizeof(double), compare);
}

/* The least, or the largest, size between two times in seconds. */
static int
extreme_size(double from, double to, bool largest)
{
	int			found = -1;

	for (int i = 0; i < nflushes; i++)
	{
		if (flush_at[i] < from * SECOND || flush_at[i] > to * SECOND)
			continue;
		if (found < 0 || (largest ? flush_size[i] > found :
						  flush_size[i] < found))
			found = flush_size[i];
	}
	return found;
}

static double
wait_percentile(double fraction)
{
	return wait_ms[(int) (fraction * (nflushed - 1))];
}

/* Has it settled: is the largest size hardly larger than the least? */
static bool
settled(double from, double to)
{
	int			least = extreme_size(from, to, false);
	int			largest = extreme_size(from, to, true);

	printf("# sizes from %.0f to %.0f s: %d to %d\n", from, to, least, largest);
	return least > 0 && largest <= least * SETTLED;
}

static const BatcherPaceBounds default_bounds = {
	.min_size = 50,.max_size = 1000,.start_size = 100,.factor = 0.2,
	.latency = 100,.errors = 0.01,.window = 20
};

/* -- the scenarios */

static double
step_rate(double t)
{
	return t < 10 ? 500 : 25000;
}

/* 10 ms a flush and 0.02 ms a row: 1,000 rows in 30 ms, so all sizes will do. */
static double
fixed_cost_ms(double t, int nrows)
{
	return 10.0 + nrows * 0.02;
}

static void
test_step(void)
{
	Scenario	s = {30, step_rate, fixed_cost_ms, NULL, WINDOW_PACE,
	default_bounds};

	run(&s, 25000);
	check(in_bounds, "step load: size and window keep to their bounds");
	check(extreme_size(0, 10, true) == 100, "step load: no change without backlog");
	check(settled(20, 30), "step load: the size settles");
	check(extreme_size(20, 30, false) >= 300, "step load: it has grown enough");
	check(wait_percentile(1.0) < 3000, "step load: the backlog was worked off");
}

static double
ramp_rate(double t)
{
	return 100 + t * 700;
}

static void
test_ramp(void)
{
	Scenario	s = {40, ramp_rate, fixed_cost_ms, NULL, WINDOW_PACE,
	default_bounds};
	bool		rising = true;

	run(&s, 30000);
	for (int i = 1; i < nflushes; i++)
		rising = rising && flush_size[i] >= flush_size[i - 1];
	check(in_bounds, "ramp: size and window keep to their bounds");
	check(rising, "ramp: the size only grows");
	check(wait_percentile(0.99) < 120, "ramp: rows do not wait for it");
}

/* Steady, but for each second a flush that a lock holds up for long. */
static double
steady_rate(double t)
{
	return 15000;
}

static double
spike_ms(double t, int nrows)
{
	static double last = -1;
	bool		spike = t > 5 && floor(t / 2) != floor(last / 2) && last >= 0;

	last = t;
	return spike ? 1500 : fixed_cost_ms(t, nrows);
}

static void
test_spikes(void)
{
	Scenario	s = {30, steady_rate, spike_ms, NULL, WINDOW_PACE,
	default_bounds};
	int			before;

	run(&s, 15000);
	before = extreme_size(4, 5, true);
	check(in_bounds, "spikes: size and window keep to their bounds");
	check(extreme_size(5, 30, false) >= before,
		  "spikes: a flush that takes long by chance does not count");
}

/* From the 10th to the 20th second each row takes ten times as long. */
static double
slow_ms(double t, int nrows)
{
	return t > 10 && t < 20 ? 10 + nrows * 0.3 : 10 + nrows * 0.03;
}

static double
moderate_rate(double t)
{
	return t > 10 && t < 20 ? 6000 : 18000;
}

static void
test_slow(void)
{
	Scenario	s = {40, moderate_rate, slow_ms, NULL, WINDOW_PACE,
	default_bounds};
	int			least;

	s.bounds.start_size = 1000;
	run(&s, 18000);
	least = extreme_size(15, 20, false);
	check(in_bounds, "slow statement: size and window keep to their bounds");
	check(settled(14, 20), "slow statement: the size settles");
	check(least >= 150 && extreme_size(14, 20, true) <= 360,
		  "slow statement: where flushes take about as long as they may");
	check(extreme_size(35, 40, false) > 400 && settled(35, 40),
		  "slow statement: it grows again afterwards");
}

static double
burst_failing(double t)
{
	return t > 5 && t < 10 ? 0.05 : 0.0005;
}

static void
test_errors(void)
{
	Scenario	s = {30, steady_rate, fixed_cost_ms, burst_failing, WINDOW_PACE,
	default_bounds};

	run(&s, 15000);
	check(in_bounds, "error burst: size and window keep to their bounds");
	check(extreme_size(6, 10, false) == 50, "error burst: down to the least size");
	check(extreme_size(25, 30, false) >= 150 && settled(25, 30),
		  "error burst: up again, and settled");
}

/* Beyond 400 rows each row costs more than the last. */
static double
convex_ms(double t, int nrows)
{
	return 5.0 + nrows * 0.05 + (nrows > 400 ? (nrows - 400) * 0.2 : 0);
}

static void
test_throughput(void)
{
	Scenario	s = {60, steady_rate, convex_ms, NULL, WINDOW_PACE,
	default_bounds};

	s.bounds.throughput = 20000;
	s.bounds.latency = 1000;
	run(&s, 15000);
	check(in_bounds, "throughput: size and window keep to their bounds");
	check(settled(30, 60), "throughput: the size settles");
	check(extreme_size(30, 60, true) <= 600,
		  "throughput: not where larger batches bring less");
}

/* -- windows */

static double window_rate;

static double
poisson_rate(double t)
{
	return window_rate;
}

static double
on_off_rate(double t)
{
	return fmod(t, 2) < 1 ? window_rate : 0;
}

static void
test_windows(void)
{
	static const double rates[] = {2, 20, 50, 200, 2000, 20000};
	static const char *const names[] = {"pace", "fixed", "gaps"};
	double		rows[3];
	double		p99[3];

	for (int i = 0; i < 2 * (int) (sizeof(rates) / sizeof(rates[0])); i++)
	{
		bool		on_off = i % 2;

		window_rate = rates[i / 2];
		for (int rule = WINDOW_PACE; rule <= WINDOW_GAPS; rule++)
		{
			Scenario	s = {0, on_off ? on_off_rate : poisson_rate,
			constant_ms, NULL, rule, default_bounds};

			s.seconds = fmin(2000, 200000 / window_rate);
			s.bounds.window = 50;
			s.bounds.start_size = s.bounds.min_size = s.bounds.max_size = 500;
			seed = 7;
			run(&s, window_rate);
			rows[rule] = (double) nflushed / nflushes;
			p99[rule] = wait_percentile(0.99);
			printf("window_%s%s_%.0f=%.2f rows a batch, wait p50 %.1f p99 %.1f ms\n",
				   names[rule], on_off ? "_onoff" : "", window_rate,
				   rows[rule], wait_percentile(0.5), p99[rule]);
			if (!in_bounds)
				check(false, "window: beyond flush_interval");
		}
		if (window_rate >= 200)
			check(rows[WINDOW_PACE] >= rows[WINDOW_FIXED] * (on_off ? 0.8 : 0.98),
				  "window: where rows come it gathers as many as the longest");
		if (window_rate <= 2)
			check(p99[WINDOW_PACE] < 30 && rows[WINDOW_FIXED] < 1.2,
				  "window: where few come it does not wait for nothing");
	}
}

static void
test_bucket(void)
{
	static const double rates[] = {0.5, 3, 1000, 123456};

	for (int i = 0; i < 4; i++)
	{
		double		rate = rates[i];
		int64_t		state = 0;
		int64_t		now = INT64_C(700000000000000);
		int64_t		start = now;
		double		rows = 0;
		bool		holds = true;

		/* as fast as it may be, in pieces of any size */
		while (now < start + 100 * (int64_t) SECOND)
		{
			double		level = batcher_bucket_level(state, now, rate);
			double		wanted = 1 + floor(uniform() * batcher_bucket_burst(rate));

			wanted = fmin(wanted, floor(batcher_bucket_burst(rate)));
			if (level >= wanted)
			{
				state = batcher_bucket_taken(state, now, rate, (int) wanted);
				rows += wanted;
			}
			else
			{
				int64_t		ready = batcher_bucket_ready(state, now, rate, wanted);

				holds = holds && ready > now &&
					batcher_bucket_level(state, ready, rate) >= wanted;
				now = ready;
			}
			holds = holds && rows <= batcher_bucket_burst(rate) +
				rate * ((now - start) / 1e6) + 1e-3;
		}
		printf("# rate %g: %g rows in %g s\n", rate, rows, (now - start) / 1e6);
		check(holds, "bucket: never more rows than may be");
		check(rows >= rate * ((now - start) / 1e6) * 0.99,
			  "bucket: hardly fewer either");
		/* a clock that is put back */
		check(batcher_bucket_ready(state, start - SECOND * (int64_t) 1000, rate, 1) <=
			  start - SECOND * (int64_t) 1000 + (int64_t) (1e6 / rate) + 1,
			  "bucket: it is not stopped by a clock that was put back");
	}
}

static void
test_retry_delay(void)
{
	bool		holds = true;
	double		shortest = 1e9;
	double		longest = 0;

	for (int failures = 1; failures <= 1000; failures++)
	{
		for (int i = 0; i < 100; i++)
		{
			double		delay = batcher_pace_retry_delay(500, 2, 60000,
														 failures, uniform());
			double		middle = fmin(500 * pow(2, failures - 1), 60000);

			holds = holds && fabs(delay - middle) <= 0.2 * middle + 1e-6;
			if (failures > 100)
			{
				shortest = fmin(shortest, delay);
				longest = fmax(longest, delay);
			}
		}
	}
	printf("# the longest delay: %g to %g ms\n", shortest, longest);
	check(holds, "retry: a delay is what it should be, give or take a fifth");
	check(longest <= 60000, "retry: no delay is longer than the longest");
	check(shortest < 50000 && longest > 59000,
		  "retry: what has failed often does not come back together either");
}

int
main(void)
{
	test_bucket();
	test_retry_delay();
	test_step();
	test_ramp();
	test_spikes();
	test_slow();
	test_errors();
	test_throughput();
	test_windows();
	return failures > 0;
}
