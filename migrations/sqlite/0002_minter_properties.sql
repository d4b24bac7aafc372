-- is_local: whether the broker itself minted the credential. Its end then needs no confirmation by a
-- back end. in_status_lists: whether the resource's server learns from status lists whether the
-- credential is valid. SQLite needs the defaults for existing rows; each insert sets
-- both columns.
ALTER TABLE session ADD COLUMN is_local INTEGER NOT NULL DEFAULT 1 CHECK (is_local IN (0, 1));
ALTER TABLE session ADD COLUMN in_status_lists INTEGER NOT NULL DEFAULT 0
    CHECK (in_status_lists IN (0, 1));
UPDATE session SET is_local = 0 WHERE minter <> 'jwt';
UPDATE session SET in_status_lists = 1 WHERE minter = 'jwt' AND class = 'bounded';

DROP INDEX session_external;
CREATE INDEX session_external ON session (expires_at, id)
    WHERE state = 'active' AND class = 'bounded' AND NOT is_local;
DROP INDEX session_listed;
CREATE INDEX session_listed ON session (leaf_idx) WHERE in_status_lists;

-- Older binaries insert sessions without the new columns.
UPDATE schema_support SET oldest_binary = 2;
