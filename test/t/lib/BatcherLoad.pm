
=pod

=head1 NAME

BatcherLoad - queues, clients and loads whose rows the TAP tests count

=head1 DESCRIPTION

Queues that store what they were given and in which order, clients that
enqueue, and checkers of lost, duplicated, invented and reordered rows.

=cut

package BatcherLoad;

use strict;
use warnings;

use BatcherTest;
use Exporter 'import';
use File::Spec;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  create_order_queue order_faults
  create_checker collect_statement check_rows check_order
  start_load stop_load start_client client_acks);

=pod

=over

=item create_order_queue(node, queue, target, options)

Make a queue whose flush stores key, number, ticket and the order of flushing
in a table of that name, made too.  Rows of one key are to be enqueued with
growing numbers: {"n": ...}.

=item order_faults(node, target)

How many rows of that table were flushed before a row of their key with a
smaller number.

=cut

sub create_order_queue
{
	my ($node, $queue, $target, $options) = @_;

	sql(
		$node, qq(
CREATE TABLE $target (pos bigserial, key text, n bigint, ticket bigint);
SELECT batch_create_queue('$queue',
	\$\$INSERT INTO $target (key, n, ticket)
	SELECT batch_key, (payload->>'n')::bigint, batch_ticket
	FROM batch ORDER BY batch_pos\$\$, options => '$options')));
	return;
}

sub order_faults
{
	my ($node, $target) = @_;

	return sql(
		$node, qq(
SELECT count(*) FROM
	(SELECT n, lag(n) OVER (PARTITION BY key ORDER BY pos) AS before
	 FROM $target) s
WHERE n <= before));
}

=pod

=item create_checker(node)

Make the tables and the function of the checker of lost and duplicated rows.

The function produce(queue, how many, key) enqueues that many rows with
unique ids; about a third are in savepoints of which half are rolled back,
and in each case the id goes into the table acknowledged, or, from an inner
savepoint that is rolled back, nowhere.  So acknowledged holds, by the
server's own atomicity and durability, exactly the ids whose rows committed:
more than a client can know, for whom the fate of a COMMIT that was
interrupted is open.

=item check_rows(node, message)

Test that the table collected holds each acknowledged id once and no other.

=item check_order(node, message, condition)

Test that the rows of one key, of those that fulfil the condition, if given,
were collected in the order of their numbers.

=cut

sub create_checker
{
	my ($node) = @_;

	sql(
		$node, q(
CREATE TABLE acknowledged (queue text, id uuid, key text, n bigint);
CREATE TABLE collected (pos bigserial, queue text, id uuid, key text, n bigint);
CREATE FUNCTION produce(queue text, how_many int, key text, n bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	id uuid;
BEGIN
	FOR i IN 1 .. how_many LOOP
		id := gen_random_uuid();
		IF i % 3 > 0 THEN
			PERFORM batch_enqueue(queue, jsonb_build_object('q', queue,
				'id', id, 'n', n * 1000 + i), key);
			INSERT INTO acknowledged VALUES (queue, id, key, n * 1000 + i);
		ELSE
			BEGIN
				PERFORM batch_enqueue(queue, jsonb_build_object('q', queue,
					'id', id, 'n', n * 1000 + i), key);
				INSERT INTO acknowledged VALUES (queue, id, key, n * 1000 + i);
				IF i % 2 = 0 THEN
					RAISE EXCEPTION 'rolled back';
				END IF;
			EXCEPTION WHEN raise_exception THEN
				NULL;
			END;
		END IF;
	END LOOP;
END $$;
));
	return;
}

# The statement of a queue of the checker.
sub collect_statement
{
	return q(INSERT INTO collected (queue, id, key, n)
SELECT payload->>'q', (payload->>'id')::uuid, batch_key, (payload->>'n')::bigint
FROM batch ORDER BY batch_pos);
}

sub check_rows
{
	my ($node, $message, $condition) = @_;

	$condition = 'true' unless defined $condition;
	is( sql(
			$node, qq(
SELECT 'lost ' || count(*) FILTER (WHERE c.id IS NULL) ||
	', duplicated ' || count(*) FILTER (WHERE c.n > 1) ||
	', phantom ' || count(*) FILTER (WHERE a.id IS NULL)
FROM (SELECT id FROM acknowledged WHERE $condition) a
	FULL JOIN (SELECT id, count(*) AS n FROM collected WHERE $condition
		GROUP BY id) c ON c.id = a.id)
		),
		'lost 0, duplicated 0, phantom 0',
		$message);
	return;
}

sub check_order
{
	my ($node, $message, $condition) = @_;

	$condition = 'true' unless defined $condition;
	is( sql(
			$node, qq(
SELECT count(*) FROM
	(SELECT n, lag(n) OVER (PARTITION BY queue, key ORDER BY pos) AS before
	 FROM collected WHERE $condition) s
WHERE n <= before)
		),
		'0',
		$message);
	return;
}

=pod

=item start_load(node, script, clients, rate), stop_load(load)

Run pgbench in the background until stop_load, at so many transactions a second
at most, again and again when the server throws it out.  It ends when the test
has died, too.

=cut

sub start_load
{
	my ($node, $script, $clients, $rate) = @_;
	my $file = File::Spec->catfile($node->basedir, 'load.sql');
	my $stop = File::Spec->catfile($node->basedir, 'load.stop');
	my $log = File::Spec->catfile($node->basedir, 'load.log');
	my @command = (
		'bash', '-c',
		'until [ -e "$1" ] || ! kill -0 $PPID 2>&-; do '
		  . 'timeout 60 pgbench -n -T 1 -c "$2" -R "$3" -f "$4" '
		  . 'postgres >>"$5" 2>&1 || sleep 0.1; done',
		'load', $stop, $clients, $rate, $file, $log);

	unlink $stop;
	append_to_file($file, $script);
	local %ENV = $node->_get_env();
	return {
		stop => $stop,
		file => $file,
		log => $log,
		run => IPC::Run::start(\@command, '<', \undef) };
}

sub stop_load
{
	my ($load) = @_;

	append_to_file($load->{stop}, '');
	$load->{run}->finish;
	unlink $load->{file}, $load->{stop};
	note(slurp_file($load->{log}));
	return;
}

=pod

=item start_client(node, name, statements), client_acks(client)

Run psql in the background, which commits these statements again and again,
each time with another value of :n from the sequence serial, until the server
is gone.  The values whose commit the client was told of so far.

=cut

sub start_client
{
	my ($node, $name, $statements) = @_;
	my $acks = File::Spec->catfile($node->basedir, "$name.acks");
	my $file = File::Spec->catfile($node->basedir, "$name.sql");

	append_to_file(
		$file, qq(
SELECT nextval('serial') AS n \\gset
$statements;
\\echo :n
) x 20000);
	return {
		acks => $acks,
		run => IPC::Run::start(
			[
				'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d',
				$node->connstr('postgres'), '-f', $file
			],
			'<', \undef,
			'>', $acks,
			'2>', "$acks.err") };
}

sub client_acks
{
	my ($client) = @_;

	# the last line may not be complete
	return grep { /^\d+\n$/ } split /(?<=\n)/, slurp_file($client->{acks});
}

=pod

=back

=cut

1;
