# An advisory lock that the statement of a flush takes for its transaction is
# held until the effects of the flush can be seen.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('advisory', '');

sql(
	$node, q(
CREATE TABLE done (n int);
SELECT batch_create_queue('q', 'WITH l AS MATERIALIZED (
		SELECT pg_advisory_xact_lock(1), pg_advisory_lock(2))
	INSERT INTO done SELECT payload::int FROM batch, l',
	options => '{"flush_interval": "10 ms"}');));
wait_worker($node);
arm($node, 'settle=wait');
sql($node, q(SELECT batch_enqueue('q', '1')));
wait_point($node, 'settle');
is( sql(
		$node, q(
SELECT pg_try_advisory_lock(1), pg_try_advisory_lock(2), count(*) FROM done)),
	'f|t|0',
	'locks of the transaction stay until the commit, those of the session go');
disarm($node);
release_point($node, 'settle');
wait_sql($node, q(SELECT count(*) = 1 FROM done));
wait_sql($node, q(SELECT pg_try_advisory_lock(1)));

$node->stop;
done_testing();
