//! The rows of rare acts (cutoffs, lifts, activations, keys, roles, delegations, an accepted time),
//! and the statements that write them.
//!
//! [`ActWrite`] is the row of an act; `postgres` and `sqlite` write it by the same statements.
//!
//! The rule: an act's row is written in the transaction of its leaf. Rows are added, except that a
//! lift and a change of a key update theirs, and an accepted time corrects the times that a fast
//! clock dated ahead. Failures: a statement that fails is returned as a `StoreError`, and the whole
//! batch rolls back. A lift of a cutoff that is lifted already changes nothing. Nothing is checked
//! here: the ledger's entries judge the act under the lock and make its MAC. Only `store::append`
//! calls this module.

use std::sync::Arc;

use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;

use crate::clock::Timestamp;
use crate::ids::TaskId;
use crate::store::StoreError;
use crate::store::admins::AdminBinding;
use crate::store::codec::signed;
use crate::store::cutoffs::SealedCutoff;
use crate::store::endings::EndingSubject;
use crate::store::generations::SealedActivation;
use crate::store::keys::SigningKeyRow;
use crate::store::workload_keys::WorkloadKeyRow;

/// The row of a rare act.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum ActWrite {
    /// A delegation token, stored by its digest.
    Delegation {
        /// SHA-256 of the token.
        digest: [u8; 32],
        /// The task that becomes the parent.
        task: TaskId,
        /// The identity that may use the token.
        child: String,
        /// The number of credentials that the child task may get.
        sessions: u32,
        expires_at: Timestamp,
    },
    Cutoff(Box<SealedCutoff>),
    /// A lifted cutoff: its row with the new state.
    Lift(Box<SealedCutoff>),
    /// An accepted time: the cutoff of everything dated later, and the corrections of rows that a
    /// fast clock dated ahead.
    TimeAccepted {
        cutoff: Box<SealedCutoff>,
        /// The time that the admin accepted.
        accepted: Timestamp,
    },
    /// A generation that decides from this leaf on.
    Activation {
        /// The leaf, the generation's digest and the MAC.
        sealed: SealedActivation,
        /// The generation's document; inserted only if it is not stored yet.
        document: Arc<[u8]>,
        /// The admin who activated it, or the name of the start that did.
        by: String,
        at: Timestamp,
    },
    /// A new signing key, or a key with new dates.
    SigningKey(Box<SigningKeyRow>),
    /// A workload key that was registered or removed.
    WorkloadKey(Box<WorkloadKeyRow>),
    /// A role that was given to or removed from an identity.
    AdminBinding(Box<AdminBinding>),
}

impl ActWrite {
    /// The row of the act in the table of endings. `None` for an act that takes nothing away.
    #[must_use]
    pub fn ends(&self) -> Option<EndingSubject> {
        match self {
            Self::Cutoff(sealed) | Self::TimeAccepted { cutoff: sealed, .. } => {
                Some(EndingSubject::Cutoff(sealed.claimed().selector.clone()))
            }
            Self::Lift(sealed) => Some(EndingSubject::Lift(sealed.claimed().selector.clone())),
            Self::Activation { sealed, .. } => Some(EndingSubject::Activation(sealed.claimed())),
            Self::SigningKey(key) => key
                .revoked_at
                .map(|_| EndingSubject::SigningKey(key.kid.clone())),
            Self::WorkloadKey(key) => match &key.jwk {
                None => Some(EndingSubject::WorkloadKey(key.thumbprint.clone())),
                Some(_) => None,
            },
            Self::AdminBinding(binding) => Some(EndingSubject::Roles(binding.identity.clone())),
            Self::Delegation { .. } => None,
        }
    }
}

/// Inserts the row of a cutoff, on either database.
macro_rules! insert_cutoff {
    ($connection:expr, $sealed:expr) => {{
        let sealed = $sealed;
        let (blocked_until, until_lifted) = sealed.block_columns();
        let cutoff = sealed.claimed();
        sqlx::query(
            "/* write_cutoff */ INSERT INTO cutoff (id, idx, kind, value, blocked_until, \
             until_lifted, reason, actor, requested_at, committed_at, \
             deny_policy_target, mac) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .bind(cutoff.id)
        .bind(signed(cutoff.index))
        .bind(cutoff.selector.kind())
        .bind(cutoff.selector.value())
        .bind(blocked_until)
        .bind(until_lifted)
        .bind(&cutoff.reason)
        .bind(&cutoff.by)
        .bind(cutoff.requested_at)
        .bind(cutoff.committed_at)
        .bind(&cutoff.deny_policy_target)
        .bind(sealed.mac().to_vec())
        .execute(&mut *$connection)
        .await?;
    }};
}

/// Corrects rows that a fast clock dated ahead, after an admin accepted the time `$1`.
const TIME_ACCEPTED: [&str; 5] = [
    "/* accept_time */ UPDATE store_meta SET horizon = $1 WHERE horizon > $1",
    // From here on the bound counts for evidence that was issued before the accepted time.
    "/* accept_time */ UPDATE store_meta SET forgotten = NULL, \
     forgotten_accepted = CASE WHEN forgotten_accepted > forgotten THEN forgotten_accepted \
     ELSE forgotten END WHERE forgotten > $1",
    "/* accept_time */ UPDATE bootstrap_token SET ended = true WHERE first_seen > $1",
    // The sweeper ends the tasks that were opened later, and puts off the others.
    "/* accept_time */ UPDATE task SET check_at = $1, \
     heard_at = CASE WHEN heard_at > $1 THEN $1 ELSE heard_at END \
     WHERE state = 'open' AND (opened_at > $1 OR heard_at > $1 OR check_at > deadline)",
    "/* accept_time */ UPDATE deny_place SET due_at = $1 WHERE due_at > $1",
];

/// Corrects leases, pauses and delegations that a fast clock dated ahead. By the accepted time `$1`
/// none can end later than `$2`; a later end is from the fast clock, so it is set to `$1`.
const LEASES_ACCEPTED: [&str; 4] = [
    "/* accept_time */ UPDATE session SET retry_at = $1 WHERE state = 'ending' AND retry_at > $2",
    "/* accept_time */ UPDATE session SET lease_until = $1 \
     WHERE state IN ('minting', 'ending') AND lease_until > $2",
    "/* accept_time */ UPDATE deny_place SET lease_until = $1 WHERE lease_until > $2",
    "/* accept_time */ UPDATE delegation SET expires_at = $1 WHERE expires_at > $2",
];

/// From `$1` to `$2`, in seconds: longer than any lease, any pause between two tries, and the life
/// of a delegation.
const LEASES_SECONDS: u64 = 600;

/// Writes the row of one rare act, on either database.
macro_rules! write_act {
    ($connection:expr, $act:expr) => {
        match $act {
            ActWrite::Delegation { digest, task, child, sessions, expires_at } => {
                sqlx::query(
                    "/* write_delegation */ INSERT INTO delegation \
                     (digest, task_id, child, sessions, expires_at) VALUES ($1, $2, $3, $4, $5)",
                )
                .bind(digest.as_slice())
                .bind(task)
                .bind(child)
                .bind(i32::try_from(*sessions).unwrap_or(i32::MAX))
                .bind(expires_at)
                .execute(&mut *$connection)
                .await?;
            }
            ActWrite::Cutoff(sealed) => insert_cutoff!($connection, sealed),
            ActWrite::TimeAccepted { cutoff, accepted } => {
                insert_cutoff!(&mut *$connection, cutoff);
                for statement in TIME_ACCEPTED {
                    sqlx::query(statement)
                        .bind(accepted)
                        .execute(&mut *$connection)
                        .await?;
                }
                for statement in LEASES_ACCEPTED {
                    sqlx::query(statement)
                        .bind(accepted)
                        .bind(accepted.plus_seconds(LEASES_SECONDS))
                        .execute(&mut *$connection)
                        .await?;
                }
            }
            ActWrite::Lift(sealed) => {
                sqlx::query(
                    "/* write_lift */ UPDATE cutoff SET lifted_idx = $2, mac = $3 \
                     WHERE id = $1 AND lifted_idx IS NULL",
                )
                .bind(sealed.claimed().id)
                .bind(sealed.claimed().lifted_index.map(signed))
                .bind(sealed.mac().to_vec())
                .execute(&mut *$connection)
                .await?;
            }
            ActWrite::Activation { sealed, document, by, at } => {
                sqlx::query(
                    "/* write_generation */ INSERT INTO generation (digest, body, stored_at) \
                     VALUES ($1, $2, $3) ON CONFLICT (digest) DO NOTHING",
                )
                .bind(sealed.claimed().as_bytes().to_vec())
                .bind(document.to_vec())
                .bind(at)
                .execute(&mut *$connection)
                .await?;
                sqlx::query(
                    "/* write_activation */ INSERT INTO activation (idx, digest, actor, at, mac) \
                     VALUES ($1, $2, $3, $4, $5)",
                )
                .bind(signed(sealed.index()))
                .bind(sealed.claimed().as_bytes().to_vec())
                .bind(by)
                .bind(at)
                .bind(sealed.mac().to_vec())
                .execute(&mut *$connection)
                .await?;
            }
            ActWrite::SigningKey(key) => {
                sqlx::query(
                    "/* write_signing_key */ INSERT INTO signing_key (kid, purpose, algorithm, \
                     sealed, created_at, published_at, active_from, retire_at, remove_at, \
                     revoked_at, mac) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
                     ON CONFLICT (kid) DO UPDATE SET sealed = excluded.sealed, \
                     retire_at = excluded.retire_at, remove_at = excluded.remove_at, \
                     revoked_at = excluded.revoked_at, mac = excluded.mac",
                )
                .bind(&key.kid)
                .bind(&key.purpose)
                .bind(&key.algorithm)
                .bind(&key.sealed)
                .bind(key.created_at)
                .bind(key.published_at)
                .bind(key.active_from)
                .bind(key.retire_at)
                .bind(key.remove_at)
                .bind(key.revoked_at)
                .bind(&key.mac)
                .execute(&mut *$connection)
                .await?;
            }
            ActWrite::WorkloadKey(key) => {
                sqlx::query(
                    "/* write_workload_key */ INSERT INTO workload_key \
                     (attestor, workload, thumbprint, jwk, idx, mac) \
                     VALUES ($1, $2, $3, $4, $5, $6)",
                )
                .bind(&key.attestor)
                .bind(&key.workload)
                .bind(&key.thumbprint)
                .bind(&key.jwk)
                .bind(signed(key.index))
                .bind(&key.mac)
                .execute(&mut *$connection)
                .await?;
            }
            ActWrite::AdminBinding(binding) => {
                sqlx::query(
                    "/* write_admin_binding */ INSERT INTO admin_binding \
                     (identity, role, bound, idx, mac) VALUES ($1, $2, $3, $4, $5)",
                )
                .bind(&binding.identity)
                .bind(&binding.role)
                .bind(binding.bound)
                .bind(signed(binding.index))
                .bind(&binding.mac)
                .execute(&mut *$connection)
                .await?;
            }
        }
    };
}

pub(super) async fn postgres(
    connection: &mut PgConnection,
    act: &ActWrite,
) -> Result<(), StoreError> {
    write_act!(connection, act);
    Ok(())
}

pub(super) async fn sqlite(
    connection: &mut SqliteConnection,
    act: &ActWrite,
) -> Result<(), StoreError> {
    write_act!(connection, act);
    Ok(())
}
