-- Times are microseconds since 1970, ids are 16 bytes.

-- Which binaries can serve this schema: those that know at least this migration. A migration that
-- takes away what older binaries use raises it; one that only adds leaves it alone.
CREATE TABLE schema_support (
    only_row      INTEGER PRIMARY KEY DEFAULT 1 CHECK (only_row),
    oldest_binary INTEGER NOT NULL
) STRICT;
INSERT INTO schema_support (oldest_binary) VALUES (1);

-- What this store is. One row, made at birth.
CREATE TABLE store_meta (
    only_row             INTEGER PRIMARY KEY DEFAULT 1 CHECK (only_row),
    mode                 TEXT NOT NULL CHECK (mode IN ('dev', 'production')),
    origin               TEXT NOT NULL,
    created_at           INTEGER NOT NULL,
    -- What deletes for good takes this for the present. It moves on slowly, and never past the
    -- clock.
    horizon              INTEGER NOT NULL,
    -- One-time ids that ran out up to this instant may have been deleted.
    forgotten            INTEGER,
    -- The same by a clock that was ahead, before a time was accepted: it counts for evidence that was
    -- issued before that.
    forgotten_accepted   INTEGER,
    -- Where the replicas last kept a checkpoint together. A place of that name which holds nothing
    -- has lost it.
    shared_place         TEXT
) STRICT;

-- Every bootstrap token that was ever configured, by its SHA-256, in the order in which they were
-- first seen. Rows are kept for good: a token that is over, or that another one replaced, must not
-- begin a new day. `ended` says that an administrator's act ended it.
CREATE TABLE bootstrap_token (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    digest     BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    first_seen INTEGER NOT NULL,
    log_time   INTEGER NOT NULL,
    ended      INTEGER NOT NULL DEFAULT 0
) STRICT;

-- The log that this one takes the place of, if it does: written before the first leaf.
CREATE TABLE succession (
    only_row INTEGER PRIMARY KEY DEFAULT 1 CHECK (only_row),
    document TEXT NOT NULL,
    mac      BLOB NOT NULL
) STRICT;

-- The ledger; BEGIN IMMEDIATE is its lock. Heads are only inserted; the newest is the one with
-- the greatest size.
CREATE TABLE ledger_head (
    size     INTEGER PRIMARY KEY CHECK (size > 0),
    root     BLOB NOT NULL CHECK (length(root) = 32),
    batch_id BLOB NOT NULL UNIQUE,
    -- Over the log's name and the rest of the row: no replica follows or signs a head without it.
    mac      BLOB NOT NULL
) STRICT;

CREATE TABLE leaf (
    idx         INTEGER PRIMARY KEY CHECK (idx >= 0),
    hash        BLOB NOT NULL CHECK (length(hash) = 32),
    decision_id BLOB,
    subject     TEXT,
    at          INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX leaf_decision ON leaf (decision_id) WHERE decision_id IS NOT NULL;

-- Bodies apart from hashes, so that pruning never touches what proofs are made of.
CREATE TABLE leaf_body (
    idx   INTEGER PRIMARY KEY,
    body  BLOB NOT NULL
) STRICT;

-- What commitments commit to. Each part can be deleted by itself.
CREATE TABLE leaf_opening (
    idx          INTEGER PRIMARY KEY,
    input_salt   BLOB,
    input        BLOB,
    purpose_salt BLOB,
    purpose      BLOB
) STRICT;

-- Complete tiles. An incomplete one is read from what lies below it: leaf hashes, or the roots of
-- complete tiles.
CREATE TABLE tile (
    level  INTEGER NOT NULL CHECK (level BETWEEN 0 AND 7),
    idx    INTEGER NOT NULL CHECK (idx >= 0),
    root   BLOB NOT NULL CHECK (length(root) = 32),
    hashes BLOB NOT NULL CHECK (length(hashes) = 8192),
    PRIMARY KEY (level, idx)
) STRICT;

-- Evidence that was used, until it would be refused for its age anyway.
CREATE TABLE one_time (
    key        BLOB PRIMARY KEY CHECK (length(key) = 32),
    binding    BLOB,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX one_time_expiry ON one_time (expires_at);

-- A heartbeat updates `heard_at`, which no index holds.
CREATE TABLE task (
    id                BLOB PRIMARY KEY,
    task_type         TEXT NOT NULL,
    attestor          TEXT NOT NULL,
    attestor_digest   BLOB NOT NULL CHECK (length(attestor_digest) = 32),
    owner             TEXT NOT NULL,
    owner_instance    TEXT,
    parent_id         BLOB REFERENCES task (id),
    depth             INTEGER NOT NULL CHECK (depth BETWEEN 1 AND 8),
    state             TEXT NOT NULL CHECK (state IN ('open', 'completed', 'aborted', 'expired')),
    opened_at         INTEGER NOT NULL,
    deadline          INTEGER NOT NULL CHECK (deadline > opened_at),
    heartbeat_seconds INTEGER,
    heard_at          INTEGER NOT NULL,
    check_at          INTEGER NOT NULL,
    ended_at          INTEGER,
    end_idx         INTEGER,
    handle_digest     BLOB NOT NULL,
    handle_key        TEXT,
    sessions_left     INTEGER NOT NULL CHECK (sessions_left >= 0),
    leaf_idx        INTEGER NOT NULL
) STRICT;
CREATE INDEX task_due ON task (check_at) WHERE state = 'open';
CREATE INDEX task_open_by_owner ON task (owner, task_type) WHERE state = 'open';
CREATE INDEX task_by_parent ON task (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX task_by_deadline ON task (deadline);

CREATE TABLE session (
    id              BLOB PRIMARY KEY,
    task_id         BLOB NOT NULL REFERENCES task (id),
    parent_id       BLOB REFERENCES session (id),
    decision_id     BLOB NOT NULL UNIQUE,
    leaf_idx      INTEGER NOT NULL,
    attestor        TEXT NOT NULL,
    workload        TEXT NOT NULL,
    instance        TEXT,
    resource        TEXT NOT NULL,
    details         TEXT NOT NULL,
    audience        TEXT NOT NULL,
    minter          TEXT NOT NULL,
    key_binding     TEXT,
    kid             TEXT NOT NULL,
    generation      BLOB NOT NULL,
    policies        TEXT NOT NULL,
    class           TEXT NOT NULL CHECK (class IN ('immediate', 'bounded', 'expiry_only')),
    bound_seconds   INTEGER,
    issued_at       INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL CHECK (expires_at > issued_at),
    state           TEXT NOT NULL CHECK (state IN ('minting', 'active', 'ending', 'ended')),
    end_reason      TEXT CHECK (end_reason IN ('completed', 'revoked', 'expired', 'superseded', 'failed')),
    ended_at        INTEGER,
    confirmed_at    INTEGER,
    lease_until     INTEGER,
    lease_holder    TEXT,
    attempts        INTEGER NOT NULL DEFAULT 0,
    retry_at        INTEGER,
    CHECK ((state = 'ended') = (confirmed_at IS NOT NULL)),
    CHECK (state IN ('minting', 'active') OR end_reason IS NOT NULL),
    CHECK (state <> 'minting' OR lease_until IS NOT NULL)
) STRICT;
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
    key         BLOB PRIMARY KEY,
    fingerprint BLOB NOT NULL,
    session_id  BLOB NOT NULL,
    task_id     BLOB NOT NULL,
    supersedes  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX retry_expiry ON retry (expires_at);

CREATE TABLE delegation (
    digest     BLOB PRIMARY KEY,
    task_id    BLOB NOT NULL REFERENCES task (id),
    child      TEXT NOT NULL,
    sessions   INTEGER NOT NULL CHECK (sessions > 0),
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX delegation_expiry ON delegation (expires_at);
CREATE INDEX delegation_by_task ON delegation (task_id);

CREATE TABLE cutoff (
    id            BLOB PRIMARY KEY,
    idx           INTEGER NOT NULL UNIQUE,
    kind          TEXT NOT NULL,
    value         TEXT NOT NULL,
    blocked_until INTEGER,
    until_lifted  INTEGER NOT NULL,
    reason        TEXT NOT NULL,
    actor         TEXT NOT NULL,
    requested_at  INTEGER NOT NULL,
    committed_at  INTEGER NOT NULL,
    lifted_idx  INTEGER,
    widened_to    TEXT,
    mac           BLOB NOT NULL
) STRICT;
CREATE INDEX cutoff_lifted ON cutoff (lifted_idx) WHERE lifted_idx IS NOT NULL;
CREATE INDEX cutoff_selector ON cutoff (kind, value, idx);
CREATE INDEX cutoff_widened ON cutoff (widened_to) WHERE widened_to IS NOT NULL;

-- Back ends that deny sessions by a document of their own, and what is in it. The document is a
-- projection of `deny_entry`; whoever holds the lease renders it whole.
CREATE TABLE deny_place (
    minter              TEXT NOT NULL,
    name                TEXT NOT NULL,
    registration        TEXT NOT NULL,
    capacity            INTEGER NOT NULL CHECK (capacity > 0),
    propagation_seconds INTEGER NOT NULL CHECK (propagation_seconds > 0),
    generation          INTEGER NOT NULL DEFAULT 0,
    read_at             INTEGER,
    widened_to          INTEGER,
    widened_at          INTEGER,
    due_at              INTEGER NOT NULL,
    attempts            INTEGER NOT NULL DEFAULT 0,
    -- The sessions that the last document named that the back end took, and when it refused a larger
    -- one: as long as both are there.
    fits                INTEGER,
    refused_at          INTEGER,
    lease_holder        TEXT,
    lease_until         INTEGER,
    PRIMARY KEY (minter, name),
    CHECK ((fits IS NULL) = (refused_at IS NULL))
) STRICT;
CREATE INDEX deny_place_due ON deny_place (due_at);

-- An entry outlives its session's row: what is denied does not depend on what is pruned. `wish` says
-- who wants it: 0 nobody, it is over; 1 the broker, it may exist unknown to all; 2 an admin. It is
-- raised and never lowered. An entry without `requested_at` waits for its session's end.
CREATE TABLE deny_entry (
    session_id   BLOB PRIMARY KEY,
    minter       TEXT NOT NULL,
    place        TEXT NOT NULL,
    wish         INTEGER NOT NULL CHECK (wish BETWEEN 0 AND 2),
    requested_at INTEGER,
    listed       INTEGER NOT NULL,
    written_at   INTEGER,
    keep_until   INTEGER NOT NULL,
    CHECK (requested_at IS NOT NULL OR NOT listed),
    FOREIGN KEY (minter, place) REFERENCES deny_place (minter, name)
) STRICT;
CREATE INDEX deny_entry_listed ON deny_entry (minter, place, keep_until) WHERE listed;
CREATE INDEX deny_entry_waiting ON deny_entry (minter, place) WHERE NOT listed;
CREATE INDEX deny_entry_over ON deny_entry (keep_until);

-- What each sink outside was told: every leaf before `next_idx`. It moves on after the delivery, so
-- nothing is left out and some may come twice.
CREATE TABLE export_cursor (
    name         TEXT NOT NULL,
    origin       TEXT NOT NULL,
    registration TEXT NOT NULL,
    next_idx     INTEGER NOT NULL CHECK (next_idx >= 0),
    due_at       INTEGER NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 0,
    disabled_at  INTEGER,
    lease_holder TEXT,
    lease_until  INTEGER,
    -- When a replica that knows the sink as it is registered was last there.
    seen_at      INTEGER NOT NULL,
    PRIMARY KEY (name, origin)
) STRICT;

-- What witnesses said of the log's checkpoints: `line` is their signature on `checkpoint`, the signed
-- note of the tree of `size` leaves as they were shown it.
CREATE TABLE cosigned (
    size       INTEGER NOT NULL CHECK (size > 0),
    vkey       TEXT NOT NULL,
    witness    TEXT NOT NULL,
    line       TEXT NOT NULL,
    checkpoint TEXT NOT NULL,
    PRIMARY KEY (size, vkey)
) STRICT;
CREATE INDEX cosigned_by_key ON cosigned (vkey, size);
CREATE INDEX cosigned_by_name ON cosigned (witness, size);

-- What each replica says of its own configuration: the digest of its endpoints. Written every few
-- seconds, so that replicas which would ask other servers are seen.
CREATE TABLE replica (
    name      TEXT PRIMARY KEY,
    endpoints TEXT NOT NULL,
    seen_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE generation (
    digest    BLOB PRIMARY KEY,
    body      BLOB NOT NULL,
    stored_at INTEGER NOT NULL
) STRICT;

CREATE TABLE activation (
    idx    INTEGER PRIMARY KEY,
    digest BLOB NOT NULL REFERENCES generation (digest),
    actor  TEXT NOT NULL,
    at     INTEGER NOT NULL,
    mac    BLOB NOT NULL
) STRICT;

CREATE TABLE signing_key (
    kid          TEXT PRIMARY KEY,
    purpose      TEXT NOT NULL,
    algorithm    TEXT NOT NULL,
    sealed       BLOB NOT NULL,
    created_at   INTEGER NOT NULL,
    published_at INTEGER NOT NULL,
    active_from  INTEGER NOT NULL,
    retire_at    INTEGER NOT NULL,
    remove_at    INTEGER NOT NULL,
    revoked_at   INTEGER,
    mac          BLOB NOT NULL
) STRICT;

-- Of workload keys and of role bindings rows are only added: the newest says what is so. One that was
-- taken away cannot be put back from an older row.
CREATE TABLE workload_key (
    attestor   TEXT NOT NULL,
    workload   TEXT NOT NULL,
    thumbprint TEXT NOT NULL,
    -- None where the key was removed.
    jwk        TEXT,
    idx        INTEGER NOT NULL,
    mac        BLOB NOT NULL,
    PRIMARY KEY (attestor, workload, thumbprint, idx)
) STRICT;

CREATE TABLE admin_binding (
    identity TEXT NOT NULL,
    role     TEXT NOT NULL,
    bound    INTEGER NOT NULL,
    idx      INTEGER NOT NULL,
    mac      BLOB NOT NULL,
    PRIMARY KEY (identity, role, idx)
) STRICT;
CREATE INDEX admin_binding_newest ON admin_binding (idx);
CREATE INDEX workload_key_removed ON workload_key (idx) WHERE jwk IS NULL;
