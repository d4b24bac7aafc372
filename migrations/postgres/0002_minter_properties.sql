-- is_local: whether the broker itself minted the credential. Its end then needs no confirmation by a
-- back end. in_status_lists: whether the resource's server learns from status lists whether the
-- credential is valid. The defaults are only for existing rows: each insert sets
-- both columns.
ALTER TABLE session
    ADD COLUMN is_local boolean NOT NULL DEFAULT true,
    ADD COLUMN in_status_lists boolean NOT NULL DEFAULT false;
UPDATE session SET is_local = false WHERE minter <> 'jwt';
UPDATE session SET in_status_lists = true WHERE minter = 'jwt' AND class = 'bounded';
ALTER TABLE session
    ALTER COLUMN is_local DROP DEFAULT,
    ALTER COLUMN in_status_lists DROP DEFAULT;

DROP INDEX session_external;
CREATE INDEX session_external ON session (expires_at, id)
    WHERE state = 'active' AND class = 'bounded' AND NOT is_local;
DROP INDEX session_listed;
CREATE INDEX session_listed ON session (leaf_idx) WHERE in_status_lists;

-- Older binaries insert sessions without the new columns.
UPDATE schema_support SET oldest_binary = 2;
