-- Whether what a credential has opened goes on after its revocation, and which party ends the
-- credential if the broker is gone.
ALTER TABLE session ADD COLUMN open_sessions TEXT NOT NULL DEFAULT 'none'
    CHECK (open_sessions IN ('ended', 'kept', 'none'));
ALTER TABLE session ADD COLUMN expires_by TEXT NOT NULL DEFAULT 'itself'
    CHECK (expires_by IN ('itself', 'back_end', 'broker'));
UPDATE session SET expires_by = 'back_end' WHERE minter = 'aws';

-- The role of which a cutoff denies every earlier session.
ALTER TABLE cutoff RENAME COLUMN widened_to TO deny_policy_target;
DROP INDEX cutoff_widened;
CREATE INDEX cutoff_by_deny_policy_target ON cutoff (deny_policy_target)
    WHERE deny_policy_target IS NOT NULL;

-- A blanket deny: the instant before which a role's document denies every session, and when that was
-- first read back.
ALTER TABLE deny_place RENAME COLUMN widened_to TO blanket_deny_before;
ALTER TABLE deny_place RENAME COLUMN widened_at TO blanket_deny_written_at;

-- Older binaries name the old columns.
UPDATE schema_support SET oldest_binary = 3;
