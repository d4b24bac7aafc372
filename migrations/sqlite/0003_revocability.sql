-- open_sessions: whether sessions that a credential opened continue after its revocation.
-- expires_by: which party ends the credential at its expiry if the broker is gone.
ALTER TABLE session ADD COLUMN open_sessions TEXT NOT NULL DEFAULT 'none'
    CHECK (open_sessions IN ('ended', 'kept', 'none'));
ALTER TABLE session ADD COLUMN expires_by TEXT NOT NULL DEFAULT 'itself'
    CHECK (expires_by IN ('itself', 'back_end', 'broker'));
UPDATE session SET expires_by = 'back_end' WHERE minter = 'aws';

-- The role whose earlier sessions a cutoff denies.
ALTER TABLE cutoff RENAME COLUMN widened_to TO deny_policy_target;
DROP INDEX cutoff_widened;
CREATE INDEX cutoff_by_deny_policy_target ON cutoff (deny_policy_target)
    WHERE deny_policy_target IS NOT NULL;

-- A blanket deny: a role's document denies every session that was issued before the instant
-- blanket_deny_before. blanket_deny_written_at is when that was first read back.
ALTER TABLE deny_place RENAME COLUMN widened_to TO blanket_deny_before;
ALTER TABLE deny_place RENAME COLUMN widened_at TO blanket_deny_written_at;

-- Older binaries use the old column names.
UPDATE schema_support SET oldest_binary = 3;
