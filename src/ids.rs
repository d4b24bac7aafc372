//! Identifiers: UUIDv7 (RFC 9562), one type a noun, so that a task's id cannot be passed where a
//! session's is meant.
//!
//! An id orders pages for people. It is never a secret and never the cursor of a consumer: that is
//! the ledger's index.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Timestamp;

/// Where randomness comes from; `crate::crypto::random` is the real one.
pub trait Random: Send + Sync + 'static {
    /// Fills `bytes` with randomness fit for keys.
    ///
    /// # Errors
    /// When the system has none to give; nothing may be made then.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness>;
}

/// The system's source of randomness failed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system gave no randomness")]
pub struct NoRandomness;

fn v7(now: Timestamp, random: &dyn Random) -> Result<Uuid, NoRandomness> {
    let mut tail = [0_u8; 10];
    random.fill(&mut tail)?;
    let millis = u64::try_from(now.micros() / 1_000).unwrap_or(0);
    Ok(uuid::Builder::from_unix_timestamp_millis(millis, &tail).into_uuid())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id for something that begins at `now`.
            ///
            /// # Errors
            /// [`NoRandomness`].
            pub fn new(now: Timestamp, random: &dyn Random) -> Result<Self, NoRandomness> {
                v7(now, random).map(Self)
            }

            /// The id as a plain UUID.
            #[must_use]
            pub fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::from_str(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A unit of work.
    TaskId
}
id! {
    /// Our record of one credential, and that credential's `jti`.
    SessionId
}
id! {
    /// The outcome of policy on one request.
    DecisionId
}
id! {
    /// A cutoff: one act of mass revocation.
    CutoffId
}
id! {
    /// One batch of the ledger, by which the fate of a COMMIT is read.
    BatchId
}
