//! The life of a signing key, as dates. Pure: no secret, no clock, no store.
//!
//! [`SigningKeyRecord`] is a key without its secret, and [`KeySchedule`] the timing of the keys of
//! one purpose.
//!
//! ```text
//! made, published      signs                  published only              gone
//! |------ lead -------|------- period -------|-- longest token + margin --|
//! published_at        active_from            retire_at                    remove_at
//! ```
//!
//! A verifier may hold a key set that is as old as its cache permits. So a key is published for the
//! *lead*, which is at least that cache life, before it signs. It stays published until the last
//! token that it signed has expired. The next key is due one lead and one *slack* before the
//! present one retires, and becomes active when the present one retires. The slack is the time by
//! which the worker that creates keys may be late without a gap.
//!
//! Access-token keys can be revoked at any moment, so one **successor** of the signing key is
//! always published. Their next key is due one lead and one slack before only one key would be
//! left.
//!
//! There are two special cases. The **first** keys of a purpose sign at once, because no verifier
//! can hold an older key set of the issuer; they are recognised by `active_from == published_at`.
//! After the **revocation** of the active key, its successor becomes active early if it has been
//! published for a lead. Otherwise there is no signer ([`signer_at`] answers `None`) until it has,
//! and nothing is signed.
//!
//! A party that can write to the table must not be able to revive a key. So a tag of the [`Mac`]
//! covers a row's dates, see [`SigningKeyRecord::tag`]; a row that was changed fails
//! [`SigningKeyRecord::verify_tag`]. A schedule with a gap between keys is [`BadSchedule`].
//! `broker::keys` creates and loads keys by these rules, and the minters ask which one signs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::limits::MAX_CLOCK_STEP_SECONDS;

use super::digest::{Mac, MacError, sha256};
use super::jwk::Algorithm;
use super::sealer::SealContext;

/// The use of a signing key. A key keeps its purpose for its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPurpose {
    /// Signs credentials that are JWTs.
    AccessToken,
    /// Signs checkpoints of the ledger.
    Ledger,
    /// Signs tokens with which the broker authenticates itself to a cloud.
    Federation,
}

impl KeyPurpose {
    /// Every purpose.
    pub const ALL: [Self; 3] = [Self::AccessToken, Self::Ledger, Self::Federation];

    /// Number of keys that are kept for signing now or later. Access-token keys can be revoked, and
    /// verifiers must then already know another one.
    const fn kept(self) -> usize {
        match self {
            Self::AccessToken => 2,
            Self::Ledger | Self::Federation => 1,
        }
    }

    /// The name in the store and in an envelope's context.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessToken => "access_token",
            Self::Ledger => "ledger",
            Self::Federation => "federation",
        }
    }
}

impl fmt::Display for KeyPurpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name of no purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a purpose of a signing key")]
pub struct UnknownPurpose;

impl FromStr for KeyPurpose {
    type Err = UnknownPurpose;

    fn from_str(name: &str) -> Result<Self, UnknownPurpose> {
        Self::ALL
            .into_iter()
            .find(|purpose| purpose.as_str() == name)
            .ok_or(UnknownPurpose)
    }
}

/// The record of a signing key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct SigningKeyRecord {
    /// Its id: the thumbprint of its public key.
    pub kid: String,
    pub purpose: KeyPurpose,
    pub algorithm: Algorithm,
    pub created_at: Timestamp,
    /// The time at which the key set first contains it.
    pub published_at: Timestamp,
    /// The time from which it may sign.
    pub active_from: Timestamp,
    /// The time at which it stops signing.
    pub retire_at: Timestamp,
    /// The time at which it leaves the key set.
    pub remove_at: Timestamp,
    /// The time of its revocation; `None` if it was not revoked. A revoked key neither signs nor is
    /// published, at any instant.
    pub revoked_at: Option<Timestamp>,
    /// Whether its private half was erased. An erased key neither signs nor is published, at any
    /// instant.
    pub erased: bool,
}

const TAG_PURPOSE: &str = "signing_key";

impl SigningKeyRecord {
    /// Whether it is in the key set at `now`.
    #[must_use]
    pub fn is_published(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none()
            && !self.erased
            && self.published_at <= now
            && now < self.remove_at
    }

    /// Whether it is an unrevoked key of this purpose without an end.
    #[must_use]
    pub fn is_endless(&self, purpose: KeyPurpose) -> bool {
        self.purpose == purpose && self.revoked_at.is_none() && self.remove_at == Timestamp::MAX
    }

    /// Whether its private half is no longer needed: it was revoked, or everything that it signed
    /// has expired.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.revoked_at.is_some() || self.remove_at <= now
    }

    /// Whether it may sign at `now`, judged by this key alone.
    #[must_use]
    pub fn may_sign(&self, schedule: &KeySchedule, now: Timestamp) -> bool {
        self.could_sign(schedule, now) && self.active_from <= now
    }

    /// Whether verifiers know it and it has not retired, whether or not it is active yet.
    fn could_sign(&self, schedule: &KeySchedule, now: Timestamp) -> bool {
        let known_to_verifiers = self.active_from == self.published_at
            || self
                .published_at
                .plus_seconds(schedule.publish_lead_seconds)
                <= now;
        self.is_published(now) && known_to_verifiers && now < self.retire_at
    }

    /// The context of its envelope.
    #[must_use]
    pub fn seal_context(&self) -> SealContext<'_> {
        SealContext {
            purpose: self.purpose.as_str(),
            kid: &self.kid,
            algorithm: self.algorithm.as_str(),
            not_before: self.published_at,
            not_after: self.remove_at,
        }
    }

    /// The tag over every field and the envelope.
    #[must_use]
    pub fn tag(&self, mac: &Mac, envelope: &[u8]) -> Vec<u8> {
        self.with_fields(envelope, |fields| mac.tag(TAG_PURPOSE, fields))
    }

    /// Verifies a tag over every field and the envelope.
    pub fn verify_tag(&self, mac: &Mac, envelope: &[u8], tag: &[u8]) -> Result<(), MacError> {
        self.with_fields(envelope, |fields| mac.verify(TAG_PURPOSE, fields, tag))
    }

    fn with_fields<T>(&self, envelope: &[u8], then: impl FnOnce(&[&[u8]]) -> T) -> T {
        let dates = [
            self.created_at,
            self.published_at,
            self.active_from,
            self.retire_at,
            self.remove_at,
        ]
        .map(|date| date.micros().to_be_bytes());
        // Empty if not revoked, which no date is.
        let revoked = self
            .revoked_at
            .map(|date| date.micros().to_be_bytes().to_vec())
            .unwrap_or_default();
        let envelope = sha256(envelope);
        let mut fields: Vec<&[u8]> = vec![
            self.kid.as_bytes(),
            self.purpose.as_str().as_bytes(),
            self.algorithm.as_str().as_bytes(),
        ];
        fields.extend(dates.iter().map(<[u8; 8]>::as_slice));
        fields.push(&revoked);
        fields.push(&envelope);
        then(&fields)
    }
}

/// The timing of the keys of one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct KeySchedule {
    /// How long a key is published before it signs: at least as long as the key set may be cached.
    pub publish_lead_seconds: u64,
    pub period_seconds: u64,
    /// The time by which a rotation may be late without a gap.
    pub slack_seconds: u64,
    /// The longest life of the tokens or checkpoints that it signs.
    pub max_ttl_seconds: u64,
    /// Margin for verifiers whose clocks differ.
    pub margin_seconds: u64,
}

/// A schedule with a gap between consecutive keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key must sign for longer than its publication lead plus the slack of its rotation")]
pub struct BadSchedule;

/// The dates of a key to create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are those of `SigningKeyRecord`")]
pub struct NewKey {
    pub published_at: Timestamp,
    pub active_from: Timestamp,
    pub retire_at: Timestamp,
    pub remove_at: Timestamp,
}

impl KeySchedule {
    /// Checks that consecutive keys have no gap.
    pub fn check(&self) -> Result<(), BadSchedule> {
        let ahead = self.publish_lead_seconds.checked_add(self.slack_seconds);
        if ahead.is_none_or(|ahead| ahead >= self.period_seconds) {
            return Err(BadSchedule);
        }
        Ok(())
    }

    /// The dates of a key that is created now and signs after a lead.
    #[must_use]
    pub fn next_key(&self, now: Timestamp) -> NewKey {
        self.new_key(now, now.plus_seconds(self.publish_lead_seconds))
    }

    fn new_key(&self, now: Timestamp, active_from: Timestamp) -> NewKey {
        let retire_at = active_from.plus_seconds(self.period_seconds);
        NewKey {
            published_at: now,
            active_from,
            retire_at,
            remove_at: retire_at
                .plus_seconds(self.max_ttl_seconds)
                .plus_seconds(self.margin_seconds),
        }
    }
}

impl NewKey {
    /// The record of the key that was created with these dates.
    #[must_use]
    pub fn record(
        self,
        kid: String,
        purpose: KeyPurpose,
        algorithm: Algorithm,
    ) -> SigningKeyRecord {
        SigningKeyRecord {
            kid,
            purpose,
            algorithm,
            created_at: self.published_at,
            published_at: self.published_at,
            active_from: self.active_from,
            retire_at: self.retire_at,
            remove_at: self.remove_at,
            revoked_at: None,
            erased: false,
        }
    }
}

/// The key that signs at `now`: among those that may, the one with the latest `active_from`. If
/// none may because the active key was revoked, the next one that verifiers know signs early. Every
/// replica chooses the same key, ties included. `None` if no key may sign.
#[must_use]
pub fn signer_at<'a>(
    keys: impl IntoIterator<Item = &'a SigningKeyRecord, IntoIter: Clone>,
    purpose: KeyPurpose,
    schedule: &KeySchedule,
    now: Timestamp,
) -> Option<&'a SigningKeyRecord> {
    let keys = keys.into_iter();
    let of_purpose = || keys.clone().filter(|key| key.purpose == purpose);
    let turn = |key: &&'a SigningKeyRecord| (key.active_from, key.created_at, &key.kid);
    of_purpose()
        .filter(|key| key.may_sign(schedule, now))
        .max_by_key(turn)
        .or_else(|| {
            of_purpose()
                .filter(|key| key.could_sign(schedule, now))
                .min_by_key(turn)
        })
}

/// The key that signs at `now`: among the keys of the configured algorithm that may sign, the one
/// with the latest `active_from`; if there is none, the key that [`signer_at`] chooses. So a change
/// of algorithm takes effect while older keys are alive, both when the change is reverted and when
/// a successor with the former algorithm was already published.
#[must_use]
pub fn signer_preferring<'a>(
    keys: impl IntoIterator<Item = &'a SigningKeyRecord, IntoIter: Clone>,
    purpose: KeyPurpose,
    algorithm: Algorithm,
    schedule: &KeySchedule,
    now: Timestamp,
) -> Option<&'a SigningKeyRecord> {
    let keys = keys.into_iter();
    keys.clone()
        .filter(|key| key.purpose == purpose && key.algorithm == algorithm)
        .filter(|key| key.may_sign(schedule, now))
        .max_by_key(|key| (key.active_from, key.created_at, &key.kid))
        .or_else(|| signer_at(keys, purpose, schedule, now))
}

/// The order of a log's ledger keys; the greatest is the current one. A key without an end is the
/// greatest, regardless of the clock that dated it.
#[must_use]
pub fn ledger_order(key: &SigningKeyRecord) -> (Timestamp, Timestamp, &str) {
    (key.remove_at, key.created_at, &key.kid)
}

/// The current ledger key, even if it has ended: the log has no other. `None` if every ledger key
/// was revoked or none exists.
#[must_use]
pub fn newest_ledger_key(keys: &[SigningKeyRecord]) -> Option<&SigningKeyRecord> {
    keys.iter()
        .filter(|key| key.purpose == KeyPurpose::Ledger && key.revoked_at.is_none())
        .max_by_key(|key| ledger_order(key))
}

/// The keys that are published at `now`.
pub fn published_at(
    keys: &[SigningKeyRecord],
    purpose: KeyPurpose,
    now: Timestamp,
) -> impl Iterator<Item = &SigningKeyRecord> {
    keys.iter()
        .filter(move |key| key.purpose == purpose && key.is_published(now))
}

/// The times at which the unrevoked keys of this purpose and algorithm retire, latest first.
fn ends(keys: &[SigningKeyRecord], purpose: KeyPurpose, algorithm: Algorithm) -> Vec<Timestamp> {
    let mut ends: Vec<Timestamp> = keys
        .iter()
        .filter(|key| {
            key.purpose == purpose && key.algorithm == algorithm && key.revoked_at.is_none()
        })
        .map(|key| key.retire_at)
        .collect();
    ends.sort_unstable_by(|one, other| other.cmp(one));
    ends
}

/// The time at which the next key is due: a lead and a slack before fewer keys than the purpose
/// keeps would be left. At once if there are fewer already, or fewer of the configured algorithm.
#[must_use]
pub fn rotation_due(
    keys: &[SigningKeyRecord],
    purpose: KeyPurpose,
    algorithm: Algorithm,
    schedule: &KeySchedule,
) -> Timestamp {
    let ends = ends(keys, purpose, algorithm);
    let fewer = ends.get(purpose.kept() - 1);
    fewer.map_or(Timestamp::EPOCH, |end| {
        end.minus_seconds(schedule.publish_lead_seconds)
            .minus_seconds(schedule.slack_seconds)
    })
}

/// The key to create and publish at `now`; `None` if none is due. `keys` contains all records,
/// including revoked and retired ones: a purpose without a record has never signed.
#[must_use]
pub fn plan_rotation(
    keys: &[SigningKeyRecord],
    purpose: KeyPurpose,
    algorithm: Algorithm,
    schedule: &KeySchedule,
    now: Timestamp,
) -> Option<NewKey> {
    // A key with a future date was created by a wrong clock: the key that it should succeed ends
    // before it can sign. An erased key cannot sign at all.
    let until = now.plus_seconds(MAX_CLOCK_STEP_SECONDS);
    let usable: Vec<SigningKeyRecord> = keys
        .iter()
        .filter(|key| !key.erased && key.published_at <= until)
        .cloned()
        .collect();
    if now < rotation_due(&usable, purpose, algorithm, schedule) {
        return None;
    }
    // No verifier holds a key set that is older than the first key, so a key that is created
    // together with the first is known equally well. A key beyond the number that the purpose keeps
    // is a successor, even if it comes within a clock step of the first.
    let known = now.minus_seconds(MAX_CLOCK_STEP_SECONDS);
    let ends = ends(&usable, purpose, algorithm);
    let first = ends.len() < purpose.kept()
        && keys.iter().filter(|key| key.purpose == purpose).all(|key| {
            key.active_from == key.published_at
                && key.published_at >= known
                && key.algorithm == algorithm
                && key.revoked_at.is_none()
                && !key.erased
        });
    let ready = now.plus_seconds(schedule.publish_lead_seconds);
    let active_from = match ends.first() {
        _ if first => now,
        None => ready,
        Some(end) => ready.max(*end),
    };
    Some(schedule.new_key(now, active_from))
}

#[cfg(test)]
mod tests;
