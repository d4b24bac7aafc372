//! Identifiers: UUIDv7 (RFC 9562), one type for each kind of object, so that the compiler refuses a
//! task's id where a session's is expected.
//!
//! Ids order pages in listings. An id is never a secret, and never a consumer's cursor: consumers
//! use the ledger's index. Each id has one spelling only; another is [`InvalidId`]. Without
//! randomness from [`Random`] there is no id ([`NoRandomness`]), and the caller must create
//! nothing. Whether an object with an id exists, and who may see it, is decided by the broker.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use crate::clock::Timestamp;

/// A source of randomness; production code uses `crate::crypto::random`.
pub trait Random: Send + Sync + 'static {
    /// Fills `bytes` with randomness that is strong enough for keys.
    ///
    /// # Errors
    /// The system's source failed; the caller must not create anything then.
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

/// The text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is a UUID in lower case, with its hyphens")]
pub struct InvalidId;

/// Accepts an id only in its canonical spelling. Logs and files are searched for ids as text, so a
/// second spelling could hide an entry.
fn parse(text: &str) -> Result<Uuid, InvalidId> {
    let id = Hyphenated::from_str(text).map_err(|_| InvalidId)?;
    let id = id.into_uuid();
    let mut buffer = Uuid::encode_buffer();
    let spelled = id.as_hyphenated().encode_lower(&mut buffer);
    (spelled == text).then_some(id).ok_or(InvalidId)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, sqlx::Type)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id for an object created at `now`.
            ///
            /// # Errors
            /// [`NoRandomness`].
            pub fn new(now: Timestamp, random: &dyn Random) -> Result<Self, NoRandomness> {
                v7(now, random).map(Self)
            }

            /// The id as a UUID.
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
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse(text).map(Self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                parse(&text).map(Self).map_err(D::Error::custom)
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
    /// A session: the broker's record of one credential. The credential's `jti` has the same value.
    SessionId
}
id! {
    /// The outcome of policy on one request.
    DecisionId
}
id! {
    /// A cutoff: one mass revocation.
    CutoffId
}
id! {
    /// One batch of the ledger. The appender finds out by this id whether a COMMIT succeeded.
    BatchId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
        let id: TaskId = ID.parse().unwrap();
        assert_eq!(id.to_string(), ID);
        let read: TaskId = serde_json::from_value(serde_json::json!(ID)).unwrap();
        assert_eq!(read, id);
        for other in [
            ID.to_uppercase(),
            ID.replace('-', ""),
            format!("{{{ID}}}"),
            format!("urn:uuid:{ID}"),
            format!(" {ID}"),
            format!("{ID}0"),
            String::new(),
        ] {
            assert_eq!(other.parse::<TaskId>(), Err(InvalidId), "{other}");
            let read = serde_json::from_value::<TaskId>(serde_json::json!(other));
            assert!(read.is_err(), "{other}");
        }
    }
}
