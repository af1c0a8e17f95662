
# A dump is restored into a database that has queues of its own: rows, dead
# letters and grants are those of the queues that they were of, never of one
# that was there, and tickets go on above all that were given in either.
#
# Failure table: "dump and restore".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('beside', "batcher.flush_interval = '10ms'");
my $dump = $node->basedir . '/beside.dump';

# What the queues of a database have flushed, and which of their rows are dead.
my $create_target = q(
CREATE TABLE target (queue text, id int, ticket bigint));
my $statement = q(
INSERT INTO target SELECT '%s', 12 / (12 / (payload->>'id')::int),
	batch_ticket FROM batch);
my $flushed = q(
SELECT string_agg(queue || ' ' || id, ',' ORDER BY queue, id) FROM target);
my $dead = q(
SELECT string_agg(queue || ' ' || key, ',' ORDER BY queue, key)
FROM batcher.dead_letter);
my $grants = q(
SELECT string_agg(queue || ' ' || role, ',' ORDER BY queue, role)
FROM batcher.queue, jsonb_array_elements_text(grants->'enqueue') AS role);

# Make queues, each with a dead letter, rows that wait, and a grant.
sub create_queues
{
	my ($db, $who, @queues) = @_;

	$node->safe_psql($db, $create_target);
	foreach my $queue (@queues)
	{
		my $sql = sprintf($statement, $queue);

		$node->safe_psql(
			$db, qq(
SELECT batch_create_queue('$queue', \$\$$sql\$\$,
	options => '{"flush_interval": "1 h", "max_attempts": 1}');
SELECT batch_grant('$queue', '$who', 'enqueue');
SELECT batch_enqueue('$queue', '{"id": 0}', key => '$who'),
	batch_enqueue('$queue', '{"id": 1}');
SELECT batch_flush('$queue');
SELECT batch_enqueue('$queue', '{"id": 2}'), batch_enqueue('$queue', '{"id": 3}')));
	}
	return;
}

# What pg_restore says.
sub restore
{
	my ($db, @options) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run(
		[ 'pg_restore', @options, '-d', $node->connstr($db), $dump ],
		'<', \undef, '>', \$out, '2>', \$err);
	return $err;
}

sub query
{
	my ($db, $sql) = @_;

	return $node->safe_psql($db, $sql);
}

$node->safe_psql('postgres', 'CREATE ROLE there; CREATE ROLE here');
foreach my $db ('source', 'beside', 'same')
{
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	query($db, 'CREATE EXTENSION batcher');
}

# The source has given numbers far above those of the others, and of its rows.
create_queues('source', 'there', 'a', 'b');
query('source', q(SELECT nextval('batcher.number') FROM generate_series(1, 10)));
my $bound = query('source', 'SELECT last_value FROM batcher.number');
command_ok(
	[
		'pg_dump', '-Fc', '--exclude-table-data', 'target', '-f', $dump,
		'-d', $node->connstr('source')
	],
	'pg_dump');

# --- other names ---

create_queues('beside', 'here', 'c', 'd');
like(restore('beside'), qr/errors ignored on restore: 1$/,
	'only the table of the target is there already');
query('beside', 'SELECT batch_resume(); SELECT batch_flush()');
is(query('beside', $grants), 'a there,b there,c here,d here',
	'each has its grants');
is(query('beside', $flushed),
	'a 2,a 3,b 2,b 3,c 1,c 2,c 3,d 1,d 2,d 3',
	'rows are flushed by the statements of their queues');
is(query('beside', $dead), 'a there,b there,c here,d here',
	'dead letters are those of their queues');
cmp_ok(query('beside', q(SELECT batch_enqueue('c', '{"id": 4}'))),
	'>', $bound, 'tickets go on above all that were given');

# --- the same names ---

create_queues('same', 'here', 'b', 'e');
my $low = query('same', 'SELECT last_value FROM batcher.number');
cmp_ok($low, '<', $bound, 'no number was given in this database that is as high');
like(restore('same'), qr/Key \(name\)=\(b\) already exists/,
	'definitions do not come when there is one of the name');
query('same', 'SELECT batch_resume(); SELECT batch_flush()');
is(query('same', $grants), 'b here,e here', 'grants go to no other queue');
is(query('same', $flushed), 'b 1,b 2,b 3,e 1,e 2,e 3',
	'rows go to no other queue');
is(query('same', $dead), 'b here,e here', 'dead letters go to no other queue');
is(query('same', 'SELECT count(*) FROM batcher.pending'),
	'0', 'nobody is shown what belongs to no queue');

# They wait for their queues, also when the server has crashed.
$node->stop('immediate');
$node->start;
cmp_ok(query('same', q(SELECT batch_enqueue('e', '{"id": 4}'))),
	'>', $bound, 'tickets are above all that were given, after a crash too');
query('same', q(SELECT batch_drop_queue('b')));
is(restore('same', '--data-only', '-n', 'batcher', '-t', 'queue_definition'),
	'', 'the definitions are restored alone');
query('same', 'SELECT batch_resume(); SELECT batch_flush()');
is(query('same', $flushed),
	'a 2,a 3,b 1,b 2,b 2,b 3,b 3,e 1,e 2,e 3,e 4',
	'then the rows are flushed, once');
is(query('same', $dead), 'a there,b there,e here',
	'the dead letters have their queues');
is(query('same', $grants), 'a there,b there,e here', 'the grants have theirs');
is(query('same', 'SELECT count(*) FROM batcher.spool'), '0', 'nothing is left');

# Without the library a dump can be restored too, as by psql in a server that
# is yet to be set up.
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
$node->safe_psql('postgres', 'CREATE DATABASE cold');
is(restore('cold', '--exit-on-error'), '', 'restored where the library is not preloaded');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'batcher'");
$node->restart;
query('cold', 'SELECT batch_resume(); SELECT batch_flush()');
is(query('cold', $flushed),
	'a 2,a 3,b 2,b 3', 'flushed when it is');
cmp_ok(query('cold', q(SELECT batch_enqueue('a', '{"id": 4}'))),
	'>', $bound, 'tickets are above all that were given');

$node->stop;
done_testing();
