-- What ended or changed, in the order of the log: ended tasks and sessions, cutoffs and lifts, revoked
-- keys, activations, changed roles, removed workload keys. The broker follows this table, so that it
-- knows every end up to a leaf without a question for each session.
--
-- Rows are inserted in the transaction of their leaf, and deleted, the oldest first, after a day.
-- chain_before is the digest of all rows before this one. The newest head has
-- the digest of all rows, under its MAC. So a forged, changed or missing row is found.
CREATE TABLE ending (
    -- The leaf that records it.
    idx           INTEGER NOT NULL CHECK (idx >= 0),
    -- Its position among the rows of that leaf.
    n             INTEGER NOT NULL CHECK (n >= 0),
    kind          TEXT NOT NULL,
    subject       TEXT NOT NULL,
    -- After this time nothing that it ended can be valid.
    matters_until INTEGER NOT NULL,
    chain_before  BLOB NOT NULL CHECK (length(chain_before) = 32),
    PRIMARY KEY (idx, n)
) STRICT, WITHOUT ROWID;

-- Heads that older binaries wrote have none.
ALTER TABLE ledger_head ADD COLUMN endings BLOB CHECK (length(endings) = 32);

-- Older binaries record no endings.
UPDATE schema_support SET oldest_binary = 4;
