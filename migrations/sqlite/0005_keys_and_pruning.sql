-- Keys of used evidence and of Idempotency-Keys begin with a time, so that new rows are added to the
-- end of their index. Evidence: the second of issue that it states, 4 bytes, then its digest.
-- Idempotency-Keys: the day on which their use expires, 4 bytes, then the digest. The times of
-- existing rows are not recorded, so these begin with zeros; the broker looks for both.
ALTER TABLE one_time RENAME TO earlier_one_time;
DROP INDEX one_time_expiry;
CREATE TABLE one_time (
    key        BLOB PRIMARY KEY,
    binding    BLOB,
    expires_at INTEGER NOT NULL,
    CHECK (length(key) = 36)
) STRICT;
INSERT INTO one_time (key, binding, expires_at)
SELECT unhex('00000000' || hex(key)), binding, expires_at FROM earlier_one_time;
DROP TABLE earlier_one_time;
CREATE INDEX one_time_expiry ON one_time (expires_at);

ALTER TABLE retry RENAME TO earlier_retry;
DROP INDEX retry_expiry;
CREATE TABLE retry (
    key         BLOB PRIMARY KEY,
    fingerprint BLOB NOT NULL,
    session_id  BLOB NOT NULL,
    task_id     BLOB NOT NULL,
    supersedes  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    CHECK (length(key) = 36)
) STRICT;
INSERT INTO retry (key, fingerprint, session_id, task_id, supersedes, expires_at)
SELECT unhex('00000000' || hex(key)), fingerprint, session_id, task_id, supersedes, expires_at
FROM earlier_retry;
DROP TABLE earlier_retry;
CREATE INDEX retry_expiry ON retry (expires_at);

-- The tasks of an owner, newest first.
CREATE INDEX task_by_owner ON task (owner, id);

-- Older binaries write and look up the earlier keys.
UPDATE schema_support SET oldest_binary = 5;
