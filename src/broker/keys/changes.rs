//! Changes of signing keys, by the schedule, by admins and at a start.
//!
//! `Keys::change` takes a `KeyRequest`, plans the change from the keys of the store, and has a
//! `Recorder` append it. `change_own` does so without a caller. The rule: the ledger records a
//! change as a whole, and only if the keys are unchanged under its lock; otherwise the change is
//! planned again. So two concurrent changes cannot both replace the same key.
//!
//! Failures: `Ok(None)` means that the keys need no change. `TooManyKeys` says when the next
//! rotation is possible; an unknown key is `NotFound`; a key that cannot be made or opened, or
//! `TRIES` concurrent changes, are `FailClosed`. `broker::keys` calls this module for the schedule
//! and `broker::signing_keys` for admins. `stored` makes and seals keys, `crypto::keyring` holds
//! the rules of the schedule, and the ledger writes the rows with the leaf. Authorizing the caller
//! is left to `access`.

use tracing::{info, warn};

use super::Keys;
use super::stored::{MadeKey, ledger_key_dates, make_key, row_of};
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::crypto::jwk::Algorithm;
use crate::crypto::keyring::{KeyPurpose, NewKey, SigningKeyRecord, ledger_order};
use crate::domain::limits::{MAX_LEDGER_KEYS, MAX_PUBLISHED_KEYS};
use crate::ledger::entry::{Entry, KeyChange};
use crate::ledger::{Appended, Ledger};
use crate::store::keys::{SigningKeyRow, keys_basis};

/// For how long the previous ledger key also signs after a rotation.
const LEDGER_OVERLAP_SECONDS: u64 = 30 * 86_400;

/// How often a change is planned before the call fails, because other changes are recorded
/// meanwhile.
const TRIES: u32 = 16;

/// The actor that the ledger records for the broker's own changes.
const SCHEDULE: &str = "schedule";

/// A request to change the signing keys.
pub(in crate::broker) enum KeyRequest<'a> {
    /// Add the next key of a purpose if one is due.
    Scheduled(KeyPurpose),
    /// Add the next access-token key now.
    Rotate,
    /// Replace the current ledger key.
    RotateLedger,
    /// Restore that exactly one ledger key does not expire. An earlier version may have left none
    /// or several.
    RestoreLedger,
    /// Revoke an access-token key.
    Revoke(&'a str),
}

/// The keys from which a change is planned.
struct Basis {
    rows: Vec<SigningKeyRow>,
    records: Vec<SigningKeyRecord>,
}

/// A planned change, without the keys from which it was planned.
struct Planned {
    row: SigningKeyRow,
    retired: Vec<SigningKeyRow>,
    change: &'static str,
    public: Option<String>,
}

/// Appends the entry of a change. The ledger appends the broker's own changes, and an actor those
/// of an admin.
pub(in crate::broker) trait Recorder: Sync {
    fn append(
        &self,
        entry: Entry,
        at: Timestamp,
    ) -> impl Future<Output = Result<Appended, BrokerError>> + Send;
}

impl Recorder for Ledger {
    async fn append(&self, entry: Entry, at: Timestamp) -> Result<Appended, BrokerError> {
        Ok(self.append_own(entry, at).await?)
    }
}

impl Keys {
    /// Plans and records a change of keys. `None` if the keys need no change.
    pub(in crate::broker) async fn change(
        &self,
        recorder: &impl Recorder,
        request: KeyRequest<'_>,
        by: &str,
    ) -> Result<Option<KeyChange>, BrokerError> {
        for _ in 0..TRIES {
            let now = self.core.now();
            let verified = self.core.store().verified_signing_keys().await?;
            let (rows, records) = verified.into_iter().unzip();
            let keys = Basis { rows, records };
            let Some(planned) = self.plan(&request, &keys, now).await? else {
                return Ok(None);
            };
            let change = KeyChange {
                basis: keys_basis(&keys.rows, &planned.row.purpose),
                row: planned.row,
                retired: planned.retired,
                change: planned.change,
                public: planned.public,
                by: by.to_owned(),
            };
            let entry = Entry::ChangeKeys(Box::new(change.clone()));
            let appended = recorder.append(entry, now).await?;
            match appended {
                Appended::Recorded(_) => {
                    info!(
                        kid = change.row.kid,
                        purpose = change.row.purpose,
                        change = change.change,
                        by,
                        "the signing keys changed"
                    );
                    return Ok(Some(change));
                }
                Appended::Stale => {}
                Appended::Replayed(_) => return Err(BrokerError::Replayed),
                _ => {
                    return Err(BrokerError::ledger("the change of keys was not recorded"));
                }
            }
        }
        Err(BrokerError::keys(format!(
            "the signing keys were changed {TRIES} times during this change; try again"
        )))
    }

    /// Plans and records a change by the broker itself, without a caller. `None` if the keys need
    /// no change.
    pub(in crate::broker) async fn change_own(
        &self,
        request: KeyRequest<'_>,
        by: &str,
    ) -> Result<Option<KeyChange>, BrokerError> {
        self.change(self.core.ledger(), request, by).await
    }

    async fn plan(
        &self,
        request: &KeyRequest<'_>,
        keys: &Basis,
        now: Timestamp,
    ) -> Result<Option<Planned>, BrokerError> {
        match request {
            KeyRequest::Scheduled(purpose) => match self.due(&keys.records, *purpose, now).await? {
                Some(dates) => self.added(*purpose, dates).await.map(Some),
                None => Ok(None),
            },
            KeyRequest::Rotate => {
                check_room(
                    &keys.records,
                    KeyPurpose::AccessToken,
                    MAX_PUBLISHED_KEYS,
                    now,
                )?;
                let dates = self.policy.schedule.next_key(now);
                self.added(KeyPurpose::AccessToken, dates).await.map(Some)
            }
            KeyRequest::RotateLedger => {
                check_room(&keys.records, KeyPurpose::Ledger, MAX_LEDGER_KEYS, now)?;
                let mut planned = self
                    .added(KeyPurpose::Ledger, ledger_key_dates(now))
                    .await?;
                planned.retired = self.retired(keys, None, now).await?;
                Ok(Some(planned))
            }
            KeyRequest::RestoreLedger => self.restored(keys, now).await,
            KeyRequest::Revoke(kid) => {
                let found = keys.rows.iter().find(|row| row.kid == *kid);
                let found = found.and_then(|row| Some((row, row.claimed()?)));
                let Some((row, mut record)) = found else {
                    return Err(BrokerError::NotFound("key"));
                };
                if record.revoked_at.is_some() {
                    return Ok(None);
                }
                record.revoked_at = Some(now);
                Ok(Some(Planned {
                    row: row_of(&record, row.sealed.clone(), &self.mac),
                    retired: Vec::new(),
                    change: "revoked",
                    public: None,
                }))
            }
        }
    }

    /// Plans to add a key of a purpose.
    async fn added(&self, purpose: KeyPurpose, dates: NewKey) -> Result<Planned, BrokerError> {
        let imported = self.policy.imported.load_full();
        let made = make_key(
            dates,
            purpose,
            self.algorithm(purpose),
            imported
                .as_deref()
                .filter(|_| purpose == KeyPurpose::AccessToken),
            self.sealer.as_ref(),
            &self.mac,
        );
        let closed = |why: String| BrokerError::keys(why);
        let made = made.await.map_err(|problem| closed(problem.to_string()))?;
        let public = self
            .public_part(purpose, &made)
            .ok_or_else(|| closed("the new key's public part cannot be written".into()))?;
        Ok(Planned {
            row: made.into_row(),
            retired: Vec::new(),
            change: "added",
            public: Some(public),
        })
    }

    /// The public part of a key, as its leaf contains it.
    fn public_part(&self, purpose: KeyPurpose, made: &MadeKey) -> Option<String> {
        match purpose {
            KeyPurpose::Ledger => {
                let key = made.as_ledger_key(self.core.ledger().origin())?;
                Some(key.verifier.to_string())
            }
            KeyPurpose::AccessToken | KeyPurpose::Federation => made.public_jwk(),
        }
    }

    /// New rows for the ledger keys that do not expire, except for the key `but`. The new rows
    /// expire.
    async fn retired(
        &self,
        keys: &Basis,
        but: Option<&str>,
        now: Timestamp,
    ) -> Result<Vec<SigningKeyRow>, BrokerError> {
        let until = now.plus_seconds(LEDGER_OVERLAP_SECONDS);
        let mut retired = Vec::new();
        for row in &keys.rows {
            let endless = |record: &SigningKeyRecord| {
                record.is_endless(KeyPurpose::Ledger) && Some(record.kid.as_str()) != but
            };
            if let Some(record) = row.claimed().filter(endless) {
                retired.push(self.with_end(row, record, until).await?);
            }
        }
        Ok(retired)
    }

    /// A new row for a key that expires at `until`. The envelope is bound to the key's dates, so
    /// the key is sealed again.
    async fn with_end(
        &self,
        row: &SigningKeyRow,
        mut record: SigningKeyRecord,
        until: Timestamp,
    ) -> Result<SigningKeyRow, BrokerError> {
        let sealer = self.sealer.as_ref();
        let closed = |why: String| BrokerError::keys(why);
        let secret = sealer.open(record.seal_context(), &row.sealed).await;
        let secret = secret.map_err(|error| closed(error.to_string()))?;
        record.retire_at = until;
        record.remove_at = until;
        let envelope = sealer.seal(record.seal_context(), &secret).await;
        let envelope = envelope.map_err(|error| closed(error.to_string()))?;
        Ok(row_of(&record, envelope, &self.mac))
    }

    /// Plans a change after which exactly one ledger key does not expire. `None` if that is so
    /// already.
    async fn restored(&self, keys: &Basis, now: Timestamp) -> Result<Option<Planned>, BrokerError> {
        let endless = |record: &&SigningKeyRecord| record.is_endless(KeyPurpose::Ledger);
        let mut endless: Vec<_> = keys.records.iter().filter(endless).collect();
        endless.sort_by(|one, other| ledger_order(other).cmp(&ledger_order(one)));
        match endless.as_slice() {
            [_] => Ok(None),
            [] => {
                warn!("all ledger keys expire; a new one is created that does not");
                self.added(KeyPurpose::Ledger, ledger_key_dates(now))
                    .await
                    .map(Some)
            }
            [newest, ..] => {
                warn!(
                    kept = newest.kid,
                    "several ledger keys do not expire; an end is set for all but one"
                );
                let mut retired = self.retired(keys, Some(&newest.kid), now).await?;
                let row = retired.pop();
                Ok(row.map(|row| Planned {
                    row,
                    retired,
                    change: "retired",
                    public: None,
                }))
            }
        }
    }

    /// Creates the next key of a purpose if one is due. Returns whether it created one.
    pub(super) async fn make_due_key(&self, purpose: KeyPurpose) -> Result<bool, BrokerError> {
        let request = KeyRequest::Scheduled(purpose);
        let made = self.change_own(request, SCHEDULE).await?;
        Ok(made.is_some())
    }

    /// Restores that exactly one ledger key does not expire. Returns whether it changed the keys.
    pub(super) async fn restore_ledger_key(&self) -> Result<bool, BrokerError> {
        let changed = self.change_own(KeyRequest::RestoreLedger, SCHEDULE).await?;
        Ok(changed.is_some())
    }

    pub(super) fn algorithm(&self, purpose: KeyPurpose) -> Algorithm {
        match purpose {
            KeyPurpose::AccessToken => self.policy.algorithm,
            KeyPurpose::Federation => crate::mint::aws::federation::FEDERATION_ALGORITHM,
            KeyPurpose::Ledger => Algorithm::EdDsa,
        }
    }
}

/// Fails if no further key of a purpose may be published. The error says from when on one may be.
fn check_room(
    records: &[SigningKeyRecord],
    purpose: KeyPurpose,
    most: usize,
    now: Timestamp,
) -> Result<(), BrokerError> {
    let published = records
        .iter()
        .filter(|record| record.purpose == purpose && record.is_published(now));
    let mut ends: Vec<Timestamp> = published.map(|record| record.remove_at).collect();
    if ends.len() < most {
        return Ok(());
    }
    ends.sort_unstable();
    // The time from which on fewer than `most` of them are published.
    let until = ends
        .get(ends.len() - most)
        .copied()
        .unwrap_or(Timestamp::MAX);
    Err(BrokerError::TooManyKeys { most, until })
}
