
# batch_enqueue_trigger() where logical replication applies changes: rows are
# enqueued with the transaction that is applied, by the owner of the table.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = PostgreSQL::Test::Cluster->new('publisher');
$publisher->init(allows_streaming => 'logical');
$publisher->start;
$publisher->safe_psql(
	'postgres', q(
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE PUBLICATION p FOR TABLE t;
));

my $node = new_node('subscriber', "batcher.flush_interval = '10ms'");
my $connstr = $publisher->connstr('postgres');
sql(
	$node, qq(
CREATE ROLE table_owner;
CREATE TABLE t (id int PRIMARY KEY, v text);
ALTER TABLE t OWNER TO table_owner;
CREATE TABLE seen (op text, "table" text, new jsonb, old jsonb);
SELECT batch_create_queue('q', target => 'seen');
SELECT batch_grant('q', 'table_owner', 'enqueue');
CREATE TRIGGER queued AFTER INSERT OR UPDATE OR DELETE ON t
	FOR EACH ROW EXECUTE FUNCTION batch_enqueue_trigger('q', 'id');
ALTER TABLE t ENABLE ALWAYS TRIGGER queued;
CREATE SUBSCRIPTION s CONNECTION \$\$$connstr\$\$ PUBLICATION p;
));
$node->wait_for_subscription_sync($publisher, 's');
$publisher->safe_psql(
	'postgres', q(
INSERT INTO t VALUES (1, 'a'), (2, 'b');
BEGIN;
INSERT INTO t VALUES (3, 'c');
ROLLBACK;
UPDATE t SET v = 'c' WHERE id = 1;
DELETE FROM t WHERE id = 2;
));
$publisher->wait_for_catchup('s');
wait_sql($node, 'SELECT count(*) = 4 FROM seen');
is( sql($node, q(SELECT op, new->>'v' FROM seen
	ORDER BY COALESCE(new, old)->'id', op)),
	"INSERT|a\nUPDATE|c\nDELETE|\nINSERT|b", 'changes that were applied');

# Without the right the subscription cannot apply, and goes on when it is given.
sql($node, q(SELECT batch_revoke('q', 'table_owner', 'enqueue')));
my $position = log_position($node);
$publisher->safe_psql('postgres', q(INSERT INTO t VALUES (4, 'd')));
$node->wait_for_log(qr/permission denied for queue "q"/, $position);
sql($node, q(SELECT batch_grant('q', 'table_owner', 'enqueue')));
wait_sql($node, q(SELECT count(*) = 1 FROM seen WHERE new->>'id' = '4'));
pass('applied when the owner may');

done_testing();
