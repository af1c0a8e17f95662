
# A foreign table as target, by postgres_fdw: rows go to another server; errors
# there are those of their rows, and a server that is gone is waited for.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $remote = PostgreSQL::Test::Cluster->new('remote');
$remote->init;
$remote->start;
$remote->safe_psql(
	'postgres', q(
CREATE TABLE far (id int PRIMARY KEY, v text DEFAULT 'far', CHECK (v <> 'refused'));
));

my $node = new_node('main', "batcher.flush_interval = '10ms'");
my ($host, $port) = ($remote->host, $remote->port);
sql(
	$node, qq(
CREATE EXTENSION postgres_fdw;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw
	OPTIONS (host '$host', port '$port', dbname 'postgres', batch_size '100');
CREATE USER MAPPING FOR CURRENT_USER SERVER far;
CREATE FOREIGN TABLE near (id int, v text DEFAULT 'near') SERVER far
	OPTIONS (table_name 'far');
SELECT batch_create_queue('q', target => 'near',
	options => '{"retry_delay": "50 ms", "max_attempts": 2}');
));

sql($node, q(SELECT count(batch_enqueue('q', jsonb_build_object('id', i)))
	FROM generate_series(1, 500) i));
wait_drained($node, 'q');
is($remote->safe_psql('postgres', 'SELECT count(*), min(v), max(v) FROM far'),
	'500|near|near', 'rows go to the other server');

# One that is refused there does not take the others with it.
sql($node, q(SELECT batch_enqueue('q', '{"id": 501, "v": "refused"}'),
	batch_enqueue('q', '{"id": 502, "v": "good"}'),
	batch_enqueue('q', '{"id": 1}')));
wait_sql($node, 'SELECT count(*) = 2 FROM batcher.dead_letter');
is( sql($node, 'SELECT payload, sqlstate FROM batcher.dead_letter ORDER BY ticket'),
	qq({"v": "refused", "id": 501}|23514
{"id": 1}|23505), 'dead letters');
is($remote->safe_psql('postgres', 'SELECT v FROM far WHERE id > 500'),
	'good', 'the good row is there');

# The other server is gone for a while.
$remote->stop('immediate');
sql($node, q(SELECT batch_enqueue('q', '{"id": 503}')));
wait_sql($node, q(SELECT last_error IS NOT NULL AND consecutive_failures > 0
	FROM batcher.status));
is(sql($node, 'SELECT payload FROM batcher.pending'),
	'{"id": 503}', 'the row waits');
$remote->start;
wait_drained($node, 'q');
is($remote->safe_psql('postgres', 'SELECT count(*) FROM far WHERE id = 503'),
	'1', 'and is flushed when the server is there again');

# What a foreign table cannot do on conflict, and what it can.
my ($rc, $out, $err) = try_sql($node,
	q(SELECT batch_alter_queue('q', '{"on_conflict": "update"}')));
like($err, qr/0A000/, 'on_conflict cannot be update');
sql($node, q(SELECT batch_alter_queue('q', '{"on_conflict": "nothing"}')));
sql($node, q(SELECT batch_enqueue('q', '{"id": 503, "v": "again"}'),
	batch_enqueue('q', '{"id": 504}')));
wait_drained($node, 'q');
is( $remote->safe_psql('postgres', 'SELECT id, v FROM far WHERE id > 502 ORDER BY 1'),
	"503|near\n504|near", 'on_conflict may be nothing');

done_testing();
