-- What ended or changed, in the order of the log: ended tasks and sessions, cutoffs and lifts, revoked
-- keys, activations, changed roles, removed workload keys. Each replica follows this table, so that it
-- knows every end up to a leaf without a question for each session.
--
-- Rows are inserted in the transaction of their leaf, and deleted only by ledger_prune_endings.
-- chain_before is the digest of all rows before this one. The newest head has the digest of all rows,
-- under its MAC. So a forged, changed or missing row is found.
CREATE TABLE ending (
    -- The leaf that records it.
    idx           bigint NOT NULL CHECK (idx >= 0),
    -- Its position among the rows of that leaf.
    n             bigint NOT NULL CHECK (n >= 0),
    kind          text NOT NULL,
    subject       text NOT NULL,
    -- After this time nothing that it ended can be valid.
    matters_until timestamptz NOT NULL,
    chain_before  bytea NOT NULL CHECK (length(chain_before) = 32),
    PRIMARY KEY (idx, n)
);

-- Heads that older binaries wrote have none. The constraint refuses new heads of older binaries: they
-- record no endings.
ALTER TABLE ledger_head ADD COLUMN endings bytea CHECK (length(endings) = 32);
ALTER TABLE ledger_head ADD CONSTRAINT ledger_head_has_endings CHECK (endings IS NOT NULL) NOT VALID;

-- Older binaries record no endings.
UPDATE schema_support SET oldest_binary = 4;

-- Functions, made as in the first migration.
DO $migration$
DECLARE
    statement text;
BEGIN
    FOREACH statement IN ARRAY ARRAY[
-- Deletes endings, the oldest first, and none behind a younger one: the rest is always the end of the
-- table. An ending of the last hour stays, whatever the caller asks for: followers still read it.
$function$
CREATE FUNCTION @schema@.ledger_prune_endings(before timestamptz, most bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    pruned bigint;
    bound timestamptz;
BEGIN
    bound := least(before, clock_timestamp() - interval '1 hour');
    WITH oldest AS MATERIALIZED (
        SELECT o.idx, o.n, l.at
        FROM (SELECT e.idx, e.n FROM @schema@.ending e ORDER BY e.idx, e.n LIMIT most) o
        JOIN @schema@.leaf l ON l.idx = o.idx
    )
    DELETE FROM @schema@.ending d USING oldest
    WHERE d.idx = oldest.idx AND d.n = oldest.n AND d.idx < coalesce(
        (SELECT min(y.idx) FROM oldest y WHERE y.at >= bound), 9223372036854775807);
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END $$
$function$,
-- The rights of the serving role. Leaves, tiles, heads and endings can be added and read, never changed.
$function$
CREATE OR REPLACE FUNCTION @schema@.taskpass_grant_serving(serving text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA @schema@ TO %I', serving);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA @schema@ TO %I', serving);
    EXECUTE format('GRANT INSERT ON @schema@.ledger_head, @schema@.leaf, @schema@.leaf_body, '
        '@schema@.tile, @schema@.cosigned, @schema@.activation, @schema@.generation, '
        '@schema@.ending TO %I', serving);
    EXECUTE format('GRANT INSERT, UPDATE, DELETE ON @schema@.leaf_opening, @schema@.retry, '
        '@schema@.delegation, @schema@.deny_place, @schema@.deny_entry, @schema@.export_cursor, '
        '@schema@.replica TO %I',
        serving);
    EXECUTE format('GRANT INSERT, UPDATE ON @schema@.store_meta, @schema@.succession TO %I', serving);
    EXECUTE format('GRANT INSERT, DELETE ON @schema@.one_time TO %I', serving);
    -- What a session, a task or a cutoff is about is written once; how it ends, and what is kept of
    -- its mint, its heartbeats and its budget, changes.
    EXECUTE format('GRANT INSERT, DELETE, UPDATE (state, end_reason, ended_at, confirmed_at, '
        'lease_until, lease_holder, attempts, retry_at) ON @schema@.session TO %I', serving);
    EXECUTE format('GRANT INSERT, DELETE, UPDATE (state, heard_at, check_at, ended_at, end_idx, '
        'handle_digest, sessions_left) ON @schema@.task TO %I', serving);
    EXECUTE format('GRANT INSERT, DELETE, UPDATE (lifted_idx, reason, mac) '
        'ON @schema@.cutoff TO %I', serving);
    EXECUTE format('GRANT INSERT, UPDATE (sealed, retire_at, remove_at, revoked_at, mac) '
        'ON @schema@.signing_key TO %I', serving);
    EXECUTE format('GRANT INSERT, UPDATE (mac) ON @schema@.workload_key, @schema@.admin_binding '
        'TO %I', serving);
    -- A digest that was seen is neither forgotten nor seen anew.
    EXECUTE format('GRANT INSERT, UPDATE (ended) ON @schema@.bootstrap_token TO %I', serving);
    -- Only to renew its MAC when a sealing key is replaced.
    EXECUTE format('GRANT UPDATE (mac) ON @schema@.activation TO %I', serving);
    -- Locking a row needs the right to update it; the row has nothing that could be changed.
    EXECUTE format('GRANT UPDATE ON @schema@.ledger_lock TO %I', serving);
    EXECUTE format('GRANT EXECUTE ON FUNCTION '
        '@schema@.ledger_ensure_partitions(bigint, bigint), '
        '@schema@.ledger_prune_heads(bigint, bigint), '
        '@schema@.ledger_prune_endings(timestamptz, bigint), '
        '@schema@.ledger_prune_bodies(timestamptz) TO %I', serving);
END $$
$function$,
'REVOKE EXECUTE ON FUNCTION @schema@.ledger_prune_endings(timestamptz, bigint) FROM PUBLIC'
    ] LOOP
        EXECUTE replace(statement, '@schema@', quote_ident(current_schema()));
    END LOOP;
END $migration$;
