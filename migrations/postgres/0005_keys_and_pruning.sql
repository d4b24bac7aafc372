-- Keys of used evidence and of Idempotency-Keys begin with a time, so that new rows are added to the
-- end of their index. Evidence: the second of issue that it states, 4 bytes, then its digest.
-- Idempotency-Keys: the day on which their use expires, 4 bytes, then the digest. The times of
-- existing rows are not recorded, so these begin with zeros; the broker looks for both.
ALTER TABLE one_time DROP CONSTRAINT one_time_key_check;
UPDATE one_time SET key = '\x00000000'::bytea || key;
ALTER TABLE one_time ADD CONSTRAINT one_time_key_check CHECK (length(key) = 36);
UPDATE retry SET key = '\x00000000'::bytea || key;
ALTER TABLE retry ADD CONSTRAINT retry_key_check CHECK (length(key) = 36);

-- The tasks of an owner, newest first.
CREATE INDEX task_by_owner ON task (owner, id);

DO $migration$
DECLARE
    statement text;
BEGIN
    FOREACH statement IN ARRAY ARRAY[
-- Deletes cosignatures on trees that end before the oldest leaf whose body may still exist, the
-- smallest first: no leaf with a body needs them, because the witness of a leaf is the smallest
-- tree that has it. The newest cosignature of each key stays.
$function$
CREATE FUNCTION @schema@.ledger_prune_cosigned(most bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    width CONSTANT bigint := 16777216;
    oldest bigint;
    pruned bigint;
BEGIN
    SELECT min(substring(c.relname FROM '^leaf_body_([0-9]+)$')::bigint) INTO oldest
    FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = '@schema@.leaf_body'::regclass;
    IF oldest IS NULL OR oldest = 0 THEN
        RETURN 0;
    END IF;
    DELETE FROM @schema@.cosigned d USING (
        SELECT c.size, c.vkey FROM @schema@.cosigned c
        WHERE c.size <= oldest * width AND EXISTS (
            SELECT 1 FROM @schema@.cosigned n WHERE n.vkey = c.vkey AND n.size > c.size)
        ORDER BY c.size LIMIT most) AS past
    WHERE d.size = past.size AND d.vkey = past.vkey;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END $$
$function$,
-- The rights of the serving role on what this migration adds.
$function$
CREATE FUNCTION @schema@.taskpass_grant_pruning(serving text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION @schema@.ledger_prune_cosigned(bigint) TO %I', serving);
END $$
$function$,
'REVOKE EXECUTE ON FUNCTION @schema@.ledger_prune_cosigned(bigint) FROM PUBLIC',
'REVOKE EXECUTE ON FUNCTION @schema@.taskpass_grant_pruning(text) FROM PUBLIC'
    ] LOOP
        EXECUTE replace(statement, '@schema@', quote_ident(current_schema()));
    END LOOP;
END $migration$;

-- Older binaries write and look up the earlier keys.
UPDATE schema_support SET oldest_binary = 5;
