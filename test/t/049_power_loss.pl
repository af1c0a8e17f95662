
# The power fails: of the WAL there is what was synced and nothing else, of the
# tables what a checkpoint has synced, or in part newer pages too.  What a
# client was told to be committed is there and is flushed once.
#
# Failure table: "power loss".
#
# No power is cut here; what would be left of it is put together.  After a
# checkpoint with fsync the data directory is copied: that much is on the disk
# for certain.  Under load the position up to which the WAL is synced is asked
# for, and the server is started from the copy and the WAL up to there, with
# zeros beyond.  A copy that is taken under load, before that position is asked
# for, stands for pages that happened to be written: those of which the WAL is
# synced may be on the disk, torn ones too.  What this believes is that the
# server syncs what it says; what it tests is that batcher needs no more.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'running', q(
fsync = on
batcher.flush_interval = '10ms'
batcher.shared_memory_size = '8MB'
checkpoint_timeout = '1h'
max_wal_size = '4GB'
wal_keep_size = '1GB'
bgwriter_lru_maxpages = 1000
bgwriter_delay = '10ms'
shared_buffers = '1MB'
));
my $collect = collect_statement();

create_checker($node);
sql(
	$node, qq(
CREATE SEQUENCE serial;
SELECT batch_create_queue('fast', \$\$$collect\$\$,
	options => '{"max_batch_size": 40}');
SELECT batch_create_queue('slow', \$\$$collect\$\$,
	options => '{"flush_interval": "1 h", "max_batch_size": 1000000}');
SELECT batch_create_queue('lazy', \$\$$collect\$\$);
SELECT batch_create_queue('volatile', 'SELECT FROM batch',
	options => '{"durable": false, "flush_interval": "1 h"}');
SELECT batch_enqueue('volatile', '{}');
));

# The data directory as it is, without the WAL and what says that it runs.
sub copy_data
{
	my ($name) = @_;

	mkdir $node->backup_dir;
	PostgreSQL::Test::RecursiveCopy::copypath(
		$node->data_dir,
		$node->backup_dir . "/$name",
		filterfn => sub {
			$_[0] !~ m{^(postmaster\.(pid|opts)|pg_wal/.+)$};
		});
	mkdir $node->backup_dir . "/$name/pg_wal/archive_status";
	return;
}

# Where the WAL is synced up to: file and position in it.
sub synced_wal
{
	my ($file, $position) = split /\|/,
	  sql($node,
		'SELECT * FROM pg_walfile_name_offset(pg_current_wal_flush_lsn())');

	return { file => $file, position => $position };
}

# Put the WAL up to there into a copy.
sub copy_wal
{
	my ($name, $end) = @_;
	my $from = $node->data_dir . '/pg_wal';
	my $to = $node->backup_dir . "/$name/pg_wal";

	foreach my $file (grep { /^[0-9A-F]{24}$/ } slurp_dir($from))
	{
		my $content;

		next if $file gt $end->{file};
		$content = slurp_file("$from/$file");
		substr($content, $end->{position}) =
		  "\0" x (length($content) - $end->{position})
		  if $file eq $end->{file} && $end->{position} > 0;
		append_to_file("$to/$file", $content);
	}
	return;
}

sql($node, 'CHECKPOINT');
copy_data('synced_tables');

# Some clients wait for the disk, one does not: it may lose whole transactions.
my @clients = map {
	start_client($node, "c$_",
		"SELECT produce('fast', 5, 'c$_', :n), produce('slow', 3, 'c$_', :n)")
} 1 .. 3;
my $lazy = start_client($node, 'c4',
	"SET synchronous_commit = off; SELECT produce('lazy', 5, 'c4', :n)");

# First what clients know, then what is synced.
my (%acks, %end);

wait_sql($node, q(SELECT count(*) > 400 FROM collected WHERE queue = 'fast'));
@{ $acks{synced_tables} } = map { client_acks($_) } @clients;
$end{synced_tables} = synced_wal();

wait_sql($node, q(SELECT count(*) > 1200 FROM collected WHERE queue = 'fast'));
copy_data('written_tables');
@{ $acks{written_tables} } = map { client_acks($_) } @clients;
$end{written_tables} = synced_wal();
copy_wal($_, $end{$_}) foreach keys %end;

$node->stop('immediate');
$_->{run}->finish foreach (@clients, $lazy);

foreach my $what ('synced_tables', 'written_tables')
{
	my $left = PostgreSQL::Test::Cluster->new($what);
	my $acks = join ',', @{ $acks{$what} };

	$left->init_from_backup($node, $what);
	$left->append_conf('postgresql.conf', 'fsync = off');
	$left->start;
	cmp_ok(scalar(@{ $acks{$what} }), '>', 50,
		"$what: clients know of " . scalar(@{ $acks{$what} }) . ' transactions');
	is( sql(
			$left, qq(
SELECT count(*) FROM unnest('{$acks}'::bigint[]) a
WHERE NOT EXISTS (SELECT FROM acknowledged WHERE n / 1000 = a AND queue = 'fast')
	OR NOT EXISTS (SELECT FROM acknowledged WHERE n / 1000 = a AND queue = 'slow'))),
		'0',
		"$what: none is lost");
	sql($left, 'SELECT batch_flush()');
	wait_drained($left, 'fast', 'slow', 'lazy', 'volatile');
	check_rows($left, "$what: each row that was committed is flushed once");
	check_order($left, "$what: rows of one key in order");
	is(sql($left, 'SELECT count(*) FROM batcher.spool'),
		'0', "$what: the spool is empty");

	sql($left, q(SELECT produce('fast', 100, 'new', nextval('serial'))));
	wait_drained($left, 'fast');
	check_rows($left, "$what: and it goes on");
	$left->stop;
}
done_testing();
