-- Whether what a credential has opened goes on after its revocation, and which party ends the
-- credential if the broker is gone.
ALTER TABLE session
    ADD COLUMN open_sessions text NOT NULL DEFAULT 'none'
        CHECK (open_sessions IN ('ended', 'kept', 'none')),
    ADD COLUMN expires_by text NOT NULL DEFAULT 'itself'
        CHECK (expires_by IN ('itself', 'back_end', 'broker'));
UPDATE session SET expires_by = 'back_end' WHERE minter = 'aws';
ALTER TABLE session
    ALTER COLUMN open_sessions DROP DEFAULT,
    ALTER COLUMN expires_by DROP DEFAULT;

-- The role of which a cutoff denies every earlier session.
ALTER TABLE cutoff RENAME COLUMN widened_to TO deny_policy_target;
ALTER INDEX cutoff_widened RENAME TO cutoff_by_deny_policy_target;

-- A blanket deny: the instant before which a role's document denies every session, and when that was
-- first read back.
ALTER TABLE deny_place RENAME COLUMN widened_to TO blanket_deny_before;
ALTER TABLE deny_place RENAME COLUMN widened_at TO blanket_deny_written_at;

-- Older binaries name the old columns.
UPDATE schema_support SET oldest_binary = 3;
