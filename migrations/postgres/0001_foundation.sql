-- Which binaries can serve this schema: those that know at least this migration. A migration that
-- takes away what older binaries use raises it; one that only adds leaves it alone.
CREATE TABLE schema_support (
    only_row      boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    oldest_binary bigint NOT NULL
);
INSERT INTO schema_support (oldest_binary) VALUES (1);

-- What this store is. One row, made at birth.
CREATE TABLE store_meta (
    only_row             boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    mode                 text NOT NULL CHECK (mode IN ('dev', 'production')),
    origin               text NOT NULL,
    created_at           timestamptz NOT NULL,
    -- What deletes for good takes this for the present. It moves on slowly, and never past the
    -- clock.
    horizon              timestamptz NOT NULL,
    -- One-time ids that ran out up to this instant may have been deleted.
    forgotten            timestamptz,
    -- The same by a clock that was ahead, before a time was accepted: it counts for evidence that was
    -- issued before that.
    forgotten_accepted   timestamptz,
    -- Where the replicas last kept a checkpoint together. A place of that name which holds nothing
    -- has lost it.
    shared_place         text
);

-- Every bootstrap token that was ever configured, by its SHA-256, in the order in which they were
-- first seen. Rows are kept for good: a token that is over, or that another one replaced, must not
-- begin a new day. `ended` says that an administrator's act ended it.
CREATE TABLE bootstrap_token (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest     bytea NOT NULL UNIQUE CHECK (length(digest) = 32),
    first_seen timestamptz NOT NULL,
    log_time   timestamptz NOT NULL,
    ended      boolean NOT NULL DEFAULT false
);

-- The log that this one takes the place of, if it does: written before the first leaf.
CREATE TABLE succession (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    document text NOT NULL,
    mac      bytea NOT NULL
);

-- The ledger. Every writer of leaves locks this row first. It is never updated: an updated row
-- grows a version chain under an old snapshot, a locked one does not.
CREATE TABLE ledger_lock (
    id smallint PRIMARY KEY CHECK (id = 1)
);
INSERT INTO ledger_lock VALUES (1);

-- Heads are only inserted; the newest is the one with the greatest size.
CREATE TABLE ledger_head (
    size     bigint PRIMARY KEY CHECK (size > 0),
    root     bytea NOT NULL CHECK (length(root) = 32),
    batch_id uuid NOT NULL UNIQUE,
    -- Over the log's name and the rest of the row: no replica follows or signs a head without it.
    mac      bytea NOT NULL
);

-- The newest head's size as the functions that prune saw it, by the database's clock. Only they write
-- this table: the serving role could insert a head, and must not choose by it what is deleted at once.
-- `transaction` noted the row: one that is not committed yet does not count as seen.
CREATE TABLE ledger_seen (
    at          timestamptz PRIMARY KEY,
    size        bigint NOT NULL CHECK (size > 0),
    transaction bigint NOT NULL
);

CREATE TABLE leaf (
    idx         bigint PRIMARY KEY CHECK (idx >= 0),
    hash        bytea NOT NULL CHECK (length(hash) = 32),
    decision_id uuid,
    subject     text,
    at          timestamptz NOT NULL
);
CREATE UNIQUE INDEX leaf_decision ON leaf (decision_id) WHERE decision_id IS NOT NULL;

-- Bodies apart from hashes, in ranges of 2^24 leaves, so that pruning drops tables and never
-- touches what proofs are made of.
CREATE TABLE leaf_body (
    idx   bigint PRIMARY KEY,
    body  bytea NOT NULL
) PARTITION BY RANGE (idx);

-- What commitments commit to. Each part can be deleted by itself.
CREATE TABLE leaf_opening (
    idx          bigint PRIMARY KEY,
    input_salt   bytea,
    input        bytea,
    purpose_salt bytea,
    purpose      bytea
);

-- Complete tiles. An incomplete one is read from what lies below it: leaf hashes, or the roots of
-- complete tiles.
CREATE TABLE tile (
    level  smallint NOT NULL CHECK (level BETWEEN 0 AND 7),
    idx    bigint NOT NULL CHECK (idx >= 0),
    root   bytea NOT NULL CHECK (length(root) = 32),
    hashes bytea NOT NULL CHECK (length(hashes) = 8192),
    PRIMARY KEY (level, idx)
);

-- Evidence that was used, until it would be refused for its age anyway.
CREATE TABLE one_time (
    key        bytea PRIMARY KEY CHECK (length(key) = 32),
    binding    bytea,
    expires_at timestamptz NOT NULL
);
CREATE INDEX one_time_expiry ON one_time (expires_at);

-- fillfactor: a heartbeat updates `heard_at`, which no index holds, and stays on its page.
CREATE TABLE task (
    id                uuid PRIMARY KEY,
    task_type         text NOT NULL,
    attestor          text NOT NULL,
    attestor_digest   bytea NOT NULL CHECK (length(attestor_digest) = 32),
    owner             text NOT NULL,
    owner_instance    text,
    parent_id         uuid REFERENCES task (id),
    depth             smallint NOT NULL CHECK (depth BETWEEN 1 AND 8),
    state             text NOT NULL CHECK (state IN ('open', 'completed', 'aborted', 'expired')),
    opened_at         timestamptz NOT NULL,
    deadline          timestamptz NOT NULL CHECK (deadline > opened_at),
    heartbeat_seconds bigint,
    heard_at          timestamptz NOT NULL,
    check_at          timestamptz NOT NULL,
    ended_at          timestamptz,
    end_idx         bigint,
    handle_digest     bytea NOT NULL,
    handle_key        text,
    sessions_left     integer NOT NULL CHECK (sessions_left >= 0),
    leaf_idx        bigint NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX task_due ON task (check_at) WHERE state = 'open';
CREATE INDEX task_open_by_owner ON task (owner, task_type) WHERE state = 'open';
CREATE INDEX task_by_parent ON task (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX task_by_deadline ON task (deadline);

CREATE TABLE session (
    id              uuid PRIMARY KEY,
    task_id         uuid NOT NULL REFERENCES task (id),
    parent_id       uuid REFERENCES session (id),
    decision_id     uuid NOT NULL UNIQUE,
    leaf_idx      bigint NOT NULL,
    attestor        text NOT NULL,
    workload        text NOT NULL,
    instance        text,
    resource        text NOT NULL,
    details         text NOT NULL,
    audience        text NOT NULL,
    minter          text NOT NULL,
    key_binding     text,
    kid             text NOT NULL,
    generation      bytea NOT NULL,
    policies        text NOT NULL,
    class           text NOT NULL CHECK (class IN ('immediate', 'bounded', 'expiry_only')),
    bound_seconds   bigint,
    issued_at       timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL CHECK (expires_at > issued_at),
    state           text NOT NULL CHECK (state IN ('minting', 'active', 'ending', 'ended')),
    end_reason      text CHECK (end_reason IN ('completed', 'revoked', 'expired', 'superseded', 'failed')),
    ended_at        timestamptz,
    confirmed_at    timestamptz,
    lease_until     timestamptz,
    lease_holder    text,
    attempts        integer NOT NULL DEFAULT 0,
    retry_at        timestamptz,
    CHECK ((state = 'ended') = (confirmed_at IS NOT NULL)),
    CHECK (state IN ('minting', 'active') OR end_reason IS NOT NULL),
    CHECK (state <> 'minting' OR lease_until IS NOT NULL)
);
CREATE INDEX session_by_task ON session (task_id);
CREATE INDEX session_by_parent ON session (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX session_by_workload ON session (workload, id);
CREATE INDEX session_by_expiry ON session (expires_at);
-- Those of back ends that have to be told of their end. It is walked from the present on, so that
-- what has expired and is kept costs nothing.
CREATE INDEX session_external ON session (expires_at, id)
    WHERE state = 'active' AND class = 'bounded' AND minter <> 'jwt';
-- Those whose servers poll status lists, by their place in them.
CREATE INDEX session_listed ON session (leaf_idx) WHERE minter = 'jwt' AND class = 'bounded';
CREATE INDEX session_unfinished ON session (lease_until) WHERE state = 'minting';
CREATE INDEX session_unconfirmed ON session (retry_at) WHERE state = 'ending';

CREATE TABLE retry (
    key         bytea PRIMARY KEY,
    fingerprint bytea NOT NULL,
    session_id  uuid NOT NULL,
    task_id     uuid NOT NULL,
    supersedes  integer NOT NULL,
    expires_at  timestamptz NOT NULL
);
CREATE INDEX retry_expiry ON retry (expires_at);

CREATE TABLE delegation (
    digest     bytea PRIMARY KEY,
    task_id    uuid NOT NULL REFERENCES task (id),
    child      text NOT NULL,
    sessions   integer NOT NULL CHECK (sessions > 0),
    expires_at timestamptz NOT NULL
);
CREATE INDEX delegation_expiry ON delegation (expires_at);
CREATE INDEX delegation_by_task ON delegation (task_id);

CREATE TABLE cutoff (
    id            uuid PRIMARY KEY,
    idx           bigint NOT NULL UNIQUE,
    kind          text NOT NULL,
    value         text NOT NULL,
    blocked_until timestamptz,
    until_lifted  boolean NOT NULL,
    reason        text NOT NULL,
    actor         text NOT NULL,
    requested_at  timestamptz NOT NULL,
    committed_at  timestamptz NOT NULL,
    lifted_idx  bigint,
    widened_to    text,
    mac           bytea NOT NULL
);
CREATE INDEX cutoff_lifted ON cutoff (lifted_idx) WHERE lifted_idx IS NOT NULL;
CREATE INDEX cutoff_selector ON cutoff (kind, value, idx);
CREATE INDEX cutoff_widened ON cutoff (widened_to) WHERE widened_to IS NOT NULL;

-- Back ends that deny sessions by a document of their own, and what is in it. The document is a
-- projection of `deny_entry`; whoever holds the lease renders it whole.
CREATE TABLE deny_place (
    minter              text NOT NULL,
    name                text NOT NULL,
    registration        text NOT NULL,
    capacity            bigint NOT NULL CHECK (capacity > 0),
    propagation_seconds bigint NOT NULL CHECK (propagation_seconds > 0),
    generation          bigint NOT NULL DEFAULT 0,
    read_at             timestamptz,
    widened_to          timestamptz,
    widened_at          timestamptz,
    due_at              timestamptz NOT NULL,
    attempts            bigint NOT NULL DEFAULT 0,
    -- The sessions that the last document named that the back end took, and when it refused a larger
    -- one: as long as both are there.
    fits                bigint,
    refused_at          timestamptz,
    lease_holder        text,
    lease_until         timestamptz,
    PRIMARY KEY (minter, name),
    CHECK ((fits IS NULL) = (refused_at IS NULL))
);
CREATE INDEX deny_place_due ON deny_place (due_at);

-- An entry outlives its session's row: what is denied does not depend on what is pruned. `wish` says
-- who wants it: 0 nobody, it is over; 1 the broker, it may exist unknown to all; 2 an admin. It is
-- raised and never lowered. An entry without `requested_at` waits for its session's end.
CREATE TABLE deny_entry (
    session_id   uuid PRIMARY KEY,
    minter       text NOT NULL,
    place        text NOT NULL,
    wish         smallint NOT NULL CHECK (wish BETWEEN 0 AND 2),
    requested_at timestamptz,
    listed       boolean NOT NULL,
    written_at   timestamptz,
    keep_until   timestamptz NOT NULL,
    CHECK (requested_at IS NOT NULL OR NOT listed),
    FOREIGN KEY (minter, place) REFERENCES deny_place (minter, name)
);
CREATE INDEX deny_entry_listed ON deny_entry (minter, place, keep_until) WHERE listed;
CREATE INDEX deny_entry_waiting ON deny_entry (minter, place) WHERE NOT listed;
CREATE INDEX deny_entry_over ON deny_entry (keep_until);

-- What each sink outside was told: every leaf before `next_idx`. It moves on after the delivery, so
-- nothing is left out and some may come twice. One replica at a time delivers.
CREATE TABLE export_cursor (
    name         text NOT NULL,
    origin       text NOT NULL,
    registration text NOT NULL,
    next_idx     bigint NOT NULL CHECK (next_idx >= 0),
    due_at       timestamptz NOT NULL,
    attempts     bigint NOT NULL DEFAULT 0,
    disabled_at  timestamptz,
    lease_holder text,
    lease_until  timestamptz,
    -- When a replica that knows the sink as it is registered was last there.
    seen_at      timestamptz NOT NULL,
    PRIMARY KEY (name, origin)
);

-- What witnesses said of the log's checkpoints: `line` is their signature on `checkpoint`, the signed
-- note of the tree of `size` leaves as they were shown it.
CREATE TABLE cosigned (
    size       bigint NOT NULL CHECK (size > 0),
    vkey       text NOT NULL,
    witness    text NOT NULL,
    line       text NOT NULL,
    checkpoint text NOT NULL,
    PRIMARY KEY (size, vkey)
);
CREATE INDEX cosigned_by_key ON cosigned (vkey, size);
CREATE INDEX cosigned_by_name ON cosigned (witness, size);

-- What each replica says of its own configuration: the digest of its endpoints. Written every few
-- seconds, so that replicas which would ask other servers are seen.
CREATE TABLE replica (
    name      text PRIMARY KEY,
    endpoints text NOT NULL,
    seen_at   timestamptz NOT NULL
);

CREATE TABLE generation (
    digest    bytea PRIMARY KEY,
    body      bytea NOT NULL,
    stored_at timestamptz NOT NULL
);

CREATE TABLE activation (
    idx    bigint PRIMARY KEY,
    digest bytea NOT NULL REFERENCES generation (digest),
    actor  text NOT NULL,
    at     timestamptz NOT NULL,
    mac    bytea NOT NULL
);

CREATE TABLE signing_key (
    kid          text PRIMARY KEY,
    purpose      text NOT NULL,
    algorithm    text NOT NULL,
    sealed       bytea NOT NULL,
    created_at   timestamptz NOT NULL,
    published_at timestamptz NOT NULL,
    active_from  timestamptz NOT NULL,
    retire_at    timestamptz NOT NULL,
    remove_at    timestamptz NOT NULL,
    revoked_at   timestamptz,
    mac          bytea NOT NULL
);

-- Of workload keys and of role bindings rows are only added: the newest says what is so. One that was
-- taken away cannot be put back from an older row.
CREATE TABLE workload_key (
    attestor   text NOT NULL,
    workload   text NOT NULL,
    thumbprint text NOT NULL,
    -- None where the key was removed.
    jwk        text,
    idx        bigint NOT NULL,
    mac        bytea NOT NULL,
    PRIMARY KEY (attestor, workload, thumbprint, idx)
);

CREATE TABLE admin_binding (
    identity text NOT NULL,
    role     text NOT NULL,
    bound    boolean NOT NULL,
    idx      bigint NOT NULL,
    mac      bytea NOT NULL,
    PRIMARY KEY (identity, role, idx)
);
CREATE INDEX admin_binding_newest ON admin_binding (idx);
CREATE INDEX workload_key_removed ON workload_key (idx) WHERE jwk IS NULL;

-- Functions. Those that the owner lends to the serving role (SECURITY DEFINER) name everything with
-- its schema and look nothing up in pg_temp before the system's catalogue and this schema: a caller
-- could otherwise put its own table or function in the place of ours and have it run as the owner.
-- The schema's name is known only here, so each is made from a text in which it stands as @schema@.
DO $migration$
DECLARE
    statement text;
BEGIN
    IF current_schema() !~ '^[a-z_][a-z0-9_]*$' THEN
        RAISE EXCEPTION 'the schema % needs a name of a-z, 0-9 and _', current_schema();
    END IF;
    FOREACH statement IN ARRAY ARRAY[
-- The serving role may not create or drop tables; these do it for exactly one purpose each. A table
-- is made by itself and then attached, which waits for no reader and which no insert waits for;
-- making it as a partition at once would lock the whole table, and queue all appends behind a dump.
$function$
CREATE FUNCTION @schema@.ledger_ensure_partitions(size bigint, up_to bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, @schema@, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
    width CONSTANT bigint := 16777216;
    part bigint;
    named text;
BEGIN
    FOR part IN size / width .. up_to / width LOOP
        named := format('@schema@.leaf_body_%s', part);
        CONTINUE WHEN to_regclass(named) IS NOT NULL;
        PERFORM pg_advisory_xact_lock(7412, 1);
        -- Another replica that had the lock may have made it.
        CONTINUE WHEN to_regclass(named) IS NOT NULL;
        EXECUTE format('CREATE TABLE %s (LIKE @schema@.leaf_body INCLUDING ALL)', named);
        EXECUTE format(
            'ALTER TABLE @schema@.leaf_body ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)',
            named, part * width, (part + 1) * width);
    END LOOP;
END $$
$function$,
-- Notes the newest head's size, at most once an hour, and answers the greatest size that was noted and
-- committed at least `age` ago; 0 if there is none. A head that the serving role inserted is the newest
-- for that long, in sight of every replica, before anything is deleted by it; each replica stops at it.
-- The role cannot delete it, and once the owner has, what was noted of it goes as well.
$function$
CREATE FUNCTION @schema@.ledger_seen_before(age interval) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    newest bigint;
    seen bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(7412, 2);
    SELECT coalesce(max(h.size), 0) INTO newest FROM @schema@.ledger_head h;
    DELETE FROM @schema@.ledger_seen s WHERE s.size > newest;
    IF newest > 0 AND NOT EXISTS (
        SELECT 1 FROM @schema@.ledger_seen s WHERE s.at > clock_timestamp() - interval '1 hour'
    ) THEN
        INSERT INTO @schema@.ledger_seen VALUES (clock_timestamp(), newest, txid_current());
    END IF;
    -- Of those that are older than any bound, the youngest says all.
    DELETE FROM @schema@.ledger_seen s WHERE s.at < (SELECT max(o.at) FROM @schema@.ledger_seen o
        WHERE o.at <= clock_timestamp() - interval '7 days');
    SELECT max(s.size) INTO seen FROM @schema@.ledger_seen s
    WHERE s.at <= clock_timestamp() - age AND s.transaction <> txid_current();
    RETURN coalesce(seen, 0);
END $$
$function$,
-- Drops the oldest partition of bodies if all its leaves are older than `before`. Leaves are
-- appended in order, so the last one's time speaks for all, but for the moments by which those that
-- were decided at once may lie the other way round. Only a partition that lay wholly below the newest
-- head seven days ago goes: rows that the serving role inserts into the log must not choose it, and
-- the partition that is being written stays. Dropping needs the whole table for itself: while another
-- session reads it, appends wait behind the attempt, and no longer than it does.
$function$
CREATE FUNCTION @schema@.ledger_prune_bodies(before timestamptz) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, @schema@, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
    width CONSTANT bigint := 16777216;
    oldest bigint;
    below bigint;
BEGIN
    SELECT min(substring(c.relname FROM '^leaf_body_([0-9]+)$')::bigint) INTO oldest
    FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = '@schema@.leaf_body'::regclass;
    below := @schema@.ledger_seen_before(interval '7 days');
    IF oldest IS NULL OR (oldest + 1) * width > below OR NOT EXISTS (
        SELECT 1 FROM @schema@.leaf l WHERE l.idx = (oldest + 1) * width - 1 AND l.at < before
    ) THEN
        RETURN 0;
    END IF;
    PERFORM pg_advisory_xact_lock(7412, 1);
    EXECUTE format('DROP TABLE IF EXISTS @schema@.leaf_body_%s', oldest);
    RETURN 1;
END $$
$function$,
-- Deletes heads, the smallest first, of trees smaller than `below` and than the newest head of a day
-- ago: no row that was inserted since makes the newest genuine head go.
$function$
CREATE FUNCTION @schema@.ledger_prune_heads(below bigint, most bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    pruned bigint;
    seen bigint;
BEGIN
    seen := @schema@.ledger_seen_before(interval '1 day');
    DELETE FROM @schema@.ledger_head WHERE size IN (
        SELECT h.size FROM @schema@.ledger_head h
        WHERE h.size < least(below, seen)
        ORDER BY h.size LIMIT most);
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END $$
$function$,
-- What has ended does not begin again, whoever writes to its row.
$function$
CREATE FUNCTION @schema@.refuse_revival() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'a row of the table % has ended, and does not begin again', TG_TABLE_NAME
        USING ERRCODE = 'check_violation';
END $$
$function$,
$trigger$
CREATE TRIGGER session_ends_once BEFORE UPDATE OF state ON @schema@.session FOR EACH ROW
    WHEN (array_position(ARRAY['minting', 'active', 'ending', 'ended'], NEW.state)
        < array_position(ARRAY['minting', 'active', 'ending', 'ended'], OLD.state))
    EXECUTE FUNCTION @schema@.refuse_revival()
$trigger$,
$trigger$
CREATE TRIGGER task_ends_once BEFORE UPDATE OF state ON @schema@.task FOR EACH ROW
    WHEN (OLD.state <> 'open' AND NEW.state = 'open')
    EXECUTE FUNCTION @schema@.refuse_revival()
$trigger$,
$trigger$
CREATE TRIGGER signing_key_ends_once BEFORE UPDATE ON @schema@.signing_key FOR EACH ROW
    WHEN (NEW.retire_at > OLD.retire_at OR NEW.remove_at > OLD.remove_at
        OR (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at))
    EXECUTE FUNCTION @schema@.refuse_revival()
$trigger$,
-- Takes from the serving role, and from everybody, the right to make objects of their own here, as
-- far as the caller owns database and schema. By its temporary objects a role could stand in for ours.
$function$
CREATE FUNCTION @schema@.taskpass_confine_serving(serving text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    IF pg_has_role(current_user, (SELECT d.datdba FROM pg_catalog.pg_database d
            WHERE d.datname = current_database()), 'USAGE') THEN
        EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC, %I',
            current_database(), serving);
    END IF;
    IF pg_has_role(current_user, (SELECT n.nspowner FROM pg_catalog.pg_namespace n
            WHERE n.nspname = '@schema@'), 'USAGE') THEN
        EXECUTE format('REVOKE CREATE ON SCHEMA @schema@ FROM PUBLIC, %I', serving);
    END IF;
END $$
$function$,
-- The rights of the serving role. Leaves, tiles and heads can be added and read, never changed.
$function$
CREATE FUNCTION @schema@.taskpass_grant_serving(serving text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA @schema@ TO %I', serving);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA @schema@ TO %I', serving);
    EXECUTE format('GRANT INSERT ON @schema@.ledger_head, @schema@.leaf, @schema@.leaf_body, '
        '@schema@.tile, @schema@.cosigned, @schema@.activation, @schema@.generation TO %I', serving);
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
        '@schema@.ledger_prune_bodies(timestamptz) TO %I', serving);
END $$
$function$,
'REVOKE EXECUTE ON FUNCTION @schema@.ledger_ensure_partitions(bigint, bigint) FROM PUBLIC',
'REVOKE EXECUTE ON FUNCTION @schema@.ledger_seen_before(interval) FROM PUBLIC',
'REVOKE EXECUTE ON FUNCTION @schema@.ledger_prune_bodies(timestamptz) FROM PUBLIC',
'REVOKE EXECUTE ON FUNCTION @schema@.ledger_prune_heads(bigint, bigint) FROM PUBLIC',
'REVOKE EXECUTE ON FUNCTION @schema@.refuse_revival() FROM PUBLIC',
'REVOKE EXECUTE ON FUNCTION @schema@.taskpass_confine_serving(text) FROM PUBLIC',
'REVOKE EXECUTE ON FUNCTION @schema@.taskpass_grant_serving(text) FROM PUBLIC'
    ] LOOP
        EXECUTE replace(statement, '@schema@', quote_ident(current_schema()));
    END LOOP;
END $migration$;
SELECT ledger_ensure_partitions(0, 2097152);
