
# pg_upgrade: queues and waiting rows go with the data files; the new server
# reads the rows back and flushes each once, without anything being held.
#
# Failure table: "promotion of a standby, PITR, pg_upgrade".
#
# BATCHER_OLD_PREFIX names the installation, with batcher, of the server that is
# upgraded from (its bin, lib and so on; majors.sh sets it).  Otherwise a server
# is upgraded to its own version.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $old_prefix = $ENV{BATCHER_OLD_PREFIX};
my $collect = collect_statement();

# From one major to the next the default of initdb changes.
my $init = { extra => [ '--locale', 'C', '--encoding', 'UTF8' ] };
my $checksums = `initdb --help` =~ /--no-data-checksums/;

sub upgrade
{
	my ($mode) = @_;
	my $old = new_node(
		"old_$mode", q(
batcher.flush_interval = '10ms'
batcher.shutdown_timeout = 0
),
		init => $init,
		new => { $old_prefix ? (install_path => $old_prefix) : () });

	create_checker($old);
	sql(
		$old, qq(
CREATE SEQUENCE serial;
SELECT batch_create_queue('served', \$\$$collect\$\$);
SELECT batch_create_queue('late', \$\$$collect\$\$,
	options => '{"flush_interval": "1 h"}');
SELECT batch_create_queue('paused', \$\$$collect\$\$);
SELECT batch_create_queue('volatile', 'SELECT FROM batch',
	options => '{"durable": false, "flush_interval": "1 h"}');
SELECT batch_pause('paused');
SELECT produce('served', 30, 'k', nextval('serial'));
SELECT produce('late', 300, 'k', nextval('serial'));
SELECT produce('paused', 300, 'k', nextval('serial'));
CREATE DATABASE other;
));
	$old->safe_psql(
		'other', q(
CREATE EXTENSION batcher;
CREATE TABLE target (n int);
SELECT batch_create_queue('q', 'INSERT INTO target SELECT payload::int FROM batch',
	options => '{"flush_interval": "1 h"}');
SELECT batch_enqueue_many('q', array_agg(to_jsonb(g)))
FROM generate_series(1, 100) g;
));
	wait_drained($old, 'served');

	my $pending = q(
SELECT count(*), md5(string_agg(p::text, ',' ORDER BY ticket))
FROM (SELECT queue, ticket, key, topic, priority, payload, attempts, enqueued_at,
	enqueued_by FROM batcher.pending WHERE durable) p);
	my $definitions = q(
SELECT string_agg(concat_ws(' ', queue, owner, flush_sql, search_path, options,
	paused, pause_reason), ',' ORDER BY queue) FROM batcher.queue);
	my $waiting = sql($old, $pending);
	my $defined = sql($old, $definitions);
	my $oids = q(SELECT string_agg(datname || oid, ' ' ORDER BY datname)
		FROM pg_database WHERE datname IN ('postgres', 'other'));
	my $old_oids = sql($old, $oids);
	my $last_ticket = sql($old, q(SELECT batch_enqueue('volatile', '{}')));

	like($waiting, qr/^500\|/, "$mode: what waits");

	# The stop has no time to flush it.
	$old->stop;

	my $new = PostgreSQL::Test::Cluster->new("new_$mode");
	$new->init(
		extra => [
			@{ $init->{extra} }, $checksums ? '--no-data-checksums' : ()
		]);
	$new->append_conf('postgresql.conf',
		"shared_preload_libraries = 'batcher'\nmax_worker_processes = 16\nbatcher.flush_interval = '10ms'\n"
	);
	chdir $PostgreSQL::Test::Utils::tmp_check;

	my ($said, $err) = run_command(
		[
			'pg_upgrade', '--no-sync', $mode eq 'link' ? '--link' : (),
			'-d', $old->data_dir, '-D', $new->data_dir,
			'-b', $old->config_data('--bindir'),
			'-B', $new->config_data('--bindir'),
			'-p', $old->port, '-P', $new->port,
			'-s', $new->host
		]);
	if ($said !~ /^Upgrade Complete/m)
	{
		my $log = join '', map { slurp_file($_) }
		  glob $new->data_dir . '/pg_upgrade_output.d/*/log/*.log';

		# A minor release may store what those of other majors know only from
		# the same day on.
		if ($log =~ /ERROR:  (unrecognized parameter .*)/)
		{
			diag("skipped: the new server is older than the old one: $1");
			Test::More->builder->skip("$mode: pg_upgrade");
			return;
		}
	}
	like($said, qr/^Upgrade Complete/m, "$mode: pg_upgrade") or diag($said);
	$new->start;
	is(sql($new, $oids), $old_oids, "$mode: databases keep their OIDs");
	is(sql($new, $definitions), $defined, "$mode: queues are as they were");
	is(sql($new, $pending), $waiting, "$mode: rows wait as they did");
	wait_sql($new, q(SELECT sum(pending) = 500 FROM batcher.status));
	is(sql($new, q(SELECT batch_flush())), '250', "$mode: batch_flush flushes");
	sql($new, q(SELECT batch_resume()));
	sql($new, q(SELECT produce(q, 30, 'k', nextval('serial'))
		FROM unnest('{served,late,paused}'::text[]) q));
	sql($new, q(SELECT batch_flush()));
	wait_drained($new, 'served', 'late', 'paused');
	check_rows($new, "$mode: each row is flushed once");
	check_order($new, "$mode: in order");
	cmp_ok(
		sql($new, q(SELECT batch_enqueue('volatile', '{}'))),
		'>', $last_ticket, "$mode: tickets do not repeat");
	is( $new->safe_psql(
			'other',
			'SELECT batch_flush(); SELECT count(*), count(DISTINCT n) FROM target'),
		"100\n100|100",
		"$mode: another database");
	is(sql($new, 'SELECT count(*) FROM batcher.spool'),
		'0', "$mode: the spool is empty");
	$new->stop;
	return;
}

upgrade($_) foreach ('link', $old_prefix ? 'copy' : ());
done_testing();
