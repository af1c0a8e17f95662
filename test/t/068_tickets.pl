
# What batch_wait says, after a restart and after a crash, of tickets that were
# given before it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('tickets', "batcher.flush_interval = '10ms'");

# Of each kind one queue whose rows are flushed and one whose rows are purged.
sql($node, 'CREATE TABLE done (id int CHECK (id > 0))');
foreach my $queue ('durable', 'volatile', 'durable purged', 'volatile purged')
{
	my $durable = $queue =~ /^durable/ ? 'true' : 'false';

	sql(
		$node, qq(
SELECT batch_create_queue('$queue',
	\$\$INSERT INTO done SELECT (payload->>'id')::int FROM batch\$\$,
	options => '{"key_policy": "last", "max_attempts": 1,
		"durable": $durable}')));
}

# Enqueue a row, and return its ticket.
sub enqueue
{
	my ($queue, $id, $key) = @_;

	$key = defined $key ? "'$key'" : 'NULL';
	return sql($node,
		qq(SELECT batch_enqueue('$queue', '{"id": $id}', $key)));
}

# What batch_wait says of tickets.
sub fates
{
	my ($timeout, $queue, @tickets) = @_;

	return join ' ', map
	{
		sql($node, qq(SELECT batch_wait('$queue', $_, '$timeout')))
	} @tickets;
}

my $id = 1;
my $newest = 0;
foreach my $how ('fast', 'immediate')
{
	my %tickets;
	my %settled;

	foreach my $kind ('durable', 'volatile')
	{
		$settled{$kind} = [ enqueue($kind, $id++), enqueue($kind, -1) ];
		is(fates('1 min', $kind, @{ $settled{$kind} }),
			'flushed dead', "$how stop, $kind: settled before");
		sql($node, qq(SELECT batch_pause('$kind'), batch_pause('$kind purged')));
		# two rows of a key, of which the second wins; one that fails
		$tickets{$kind} = [
			enqueue($kind, $id++), enqueue($kind, $id++, 'key'),
			enqueue($kind, $id++, 'key'), enqueue($kind, -1)
		];
		$tickets{"$kind purged"} = [ enqueue("$kind purged", $id++) ];
		is(fates('0', $kind, @{ $tickets{$kind} }),
			'pending pending pending pending', "$how stop, $kind: waits");
	}
	$newest = $tickets{'volatile purged'}[0];

	$node->stop($how);
	$node->start;
	foreach my $kind ('durable', 'volatile')
	{
		my $lost = $kind eq 'volatile' && $how eq 'immediate';

		is( fates('100 ms', $kind, @{ $tickets{$kind} }),
			join(' ', ($lost ? 'unknown' : 'pending') x 4),
			"$how stop, $kind: afterwards it is "
			  . ($lost ? 'lost' : 'known that they wait'));
		is(fates('100 ms', "$kind purged", @{ $tickets{"$kind purged"} }),
			$lost ? 'unknown' : 'pending',
			"$how stop, $kind: also in a queue that is not flushed");

		# one client waits from before the flush on
		my $waiter = $node->background_psql('postgres');
		my $said = $waiter->query_until(qr/waiting/,
			"\\echo waiting\nSELECT batch_wait('$kind', $tickets{$kind}[0], '1 min');\n");
		sql($node, qq(SELECT batch_purge('$kind purged'), batch_resume('$kind')));
		wait_drained($node, $kind, "$kind purged");
		# of a row that is lost he may have been told at once
		$said .= $waiter->query_until(qr/asked/, "\\echo asked\n");
		like(
			$said,
			$lost ? qr/^unknown$/m : qr/^flushed$/m,
			"$how stop, $kind: who waits is told");
		$waiter->quit;
		is( fates('1 min', $kind, @{ $tickets{$kind} }),
			$lost ? 'unknown unknown unknown unknown' :
			  'flushed superseded flushed dead',
			"$how stop, $kind: and so is everybody afterwards");
		is(fates('1 min', "$kind purged", @{ $tickets{"$kind purged"} }),
			$lost ? 'unknown' : 'purged', "$how stop, $kind: purged");

		# what was settled before is known by tables only
		is(fates('1 min', $kind, @{ $settled{$kind} }),
			'unknown dead', "$how stop, $kind: what was settled before");
	}

	# A ticket is not given again, even if its row is lost.
	cmp_ok(enqueue('volatile', $id++),
		'>', $newest, "$how stop: tickets go on growing");
	wait_drained($node, 'volatile');
	sql($node, q(SELECT batch_resume(), batch_purge_dead('durable'),
		batch_purge_dead('volatile')));
}

$node->stop;
done_testing();
