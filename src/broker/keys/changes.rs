//! Changes of signing keys. Each is planned upon the keys that the store holds, is recorded whole, and
//! only if the keys are the same under the ledger's lock; otherwise it is planned anew. So two changes
//! at the same time cannot both take the same key for the current one.

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

/// How long the previous ledger key signs along after a rotation.
const LEDGER_OVERLAP_SECONDS: u64 = 30 * 86_400;

/// How often a change is planned anew because another one was recorded meanwhile.
const TRIES: u32 = 16;

/// The name under which the broker records what it does on schedule.
const SCHEDULE: &str = "schedule";

/// What is wanted of the signing keys.
pub(in crate::broker) enum KeyWish<'a> {
    /// The next key of a purpose, if one is due.
    Scheduled(KeyPurpose),
    /// The next access-token key, now.
    Rotate,
    /// Another ledger key in the place of the current one.
    RotateLedger,
    /// Exactly one ledger key without an end, where an earlier version left none or several.
    RestoreLedger,
    /// The withdrawal of an access-token key.
    Revoke(&'a str),
}

/// The keys upon which a change is planned.
struct Basis {
    rows: Vec<SigningKeyRow>,
    records: Vec<SigningKeyRecord>,
}

/// A change without the keys upon which it was planned.
struct Planned {
    row: SigningKeyRow,
    retired: Vec<SigningKeyRow>,
    change: &'static str,
    public: Option<String>,
}

/// Appends the entry of a change: the ledger for the broker's own acts, an admin for an admin's.
pub(in crate::broker) trait Recorder: Sync {
    /// Appends the entry.
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
    /// Records a change of keys, planned upon the keys as they are. `None` where nothing is to be done.
    pub(in crate::broker) async fn change(
        &self,
        recorder: &impl Recorder,
        wish: KeyWish<'_>,
        by: &str,
    ) -> Result<Option<KeyChange>, BrokerError> {
        for _ in 0..TRIES {
            let now = self.core.now();
            let verified = self.core.store().verified_signing_keys().await?;
            let (rows, records) = verified.into_iter().unzip();
            let keys = Basis { rows, records };
            let Some(planned) = self.plan(&wish, &keys, now).await? else {
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
                    return Err(BrokerError::FailClosed(
                        "the change of keys was not recorded".into(),
                    ));
                }
            }
        }
        Err(BrokerError::FailClosed(format!(
            "the signing keys changed {TRIES} times while this change of them was made"
        )))
    }

    /// The same, without a caller that the ledger has to judge.
    pub(in crate::broker) async fn change_own(
        &self,
        wish: KeyWish<'_>,
        by: &str,
    ) -> Result<Option<KeyChange>, BrokerError> {
        self.change(self.core.ledger(), wish, by).await
    }

    async fn plan(
        &self,
        wish: &KeyWish<'_>,
        keys: &Basis,
        now: Timestamp,
    ) -> Result<Option<Planned>, BrokerError> {
        match wish {
            KeyWish::Scheduled(purpose) => match self.due(&keys.records, *purpose, now).await? {
                Some(dates) => self.added(*purpose, dates).await.map(Some),
                None => Ok(None),
            },
            KeyWish::Rotate => {
                check_room(
                    &keys.records,
                    KeyPurpose::AccessToken,
                    MAX_PUBLISHED_KEYS,
                    now,
                )?;
                let dates = self.policy.schedule.next_key(now);
                self.added(KeyPurpose::AccessToken, dates).await.map(Some)
            }
            KeyWish::RotateLedger => {
                check_room(&keys.records, KeyPurpose::Ledger, MAX_LEDGER_KEYS, now)?;
                let mut planned = self
                    .added(KeyPurpose::Ledger, ledger_key_dates(now))
                    .await?;
                planned.retired = self.retired(keys, None, now).await?;
                Ok(Some(planned))
            }
            KeyWish::RestoreLedger => self.restored(keys, now).await,
            KeyWish::Revoke(kid) => {
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

    /// A new key of a purpose.
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
        let closed = |why: String| BrokerError::FailClosed(why);
        let made = made.await.map_err(|problem| closed(problem.to_string()))?;
        let public = self
            .public_part(purpose, &made)
            .ok_or_else(|| closed("the key that was made cannot be named".into()))?;
        Ok(Planned {
            row: made.into_row(),
            retired: Vec::new(),
            change: "added",
            public: Some(public),
        })
    }

    /// The public part of a key, as a leaf names it.
    fn public_part(&self, purpose: KeyPurpose, made: &MadeKey) -> Option<String> {
        match purpose {
            KeyPurpose::Ledger => {
                let key = made.as_ledger_key(self.core.ledger().origin())?;
                Some(key.verifier.to_string())
            }
            KeyPurpose::AccessToken | KeyPurpose::Federation => made.public_jwk(),
        }
    }

    /// The rows of the ledger keys without an end, `but` one, with an end.
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

    /// A key's row with an end. An envelope holds its key's dates, so the key is sealed anew.
    async fn with_end(
        &self,
        row: &SigningKeyRow,
        mut record: SigningKeyRecord,
        until: Timestamp,
    ) -> Result<SigningKeyRow, BrokerError> {
        let sealer = self.sealer.as_ref();
        let closed = |why: String| BrokerError::FailClosed(why);
        let secret = sealer.open(record.seal_context(), &row.sealed).await;
        let secret = secret.map_err(|error| closed(error.to_string()))?;
        record.retire_at = until;
        record.remove_at = until;
        let envelope = sealer.seal(record.seal_context(), &secret).await;
        let envelope = envelope.map_err(|error| closed(error.to_string()))?;
        Ok(row_of(&record, envelope, &self.mac))
    }

    /// What leaves exactly one ledger key without an end; none where that is so.
    async fn restored(&self, keys: &Basis, now: Timestamp) -> Result<Option<Planned>, BrokerError> {
        let endless = |record: &&SigningKeyRecord| record.is_endless(KeyPurpose::Ledger);
        let mut endless: Vec<_> = keys.records.iter().filter(endless).collect();
        endless.sort_by(|one, other| ledger_order(other).cmp(&ledger_order(one)));
        match endless.as_slice() {
            [_] => Ok(None),
            [] => {
                warn!("no ledger key is without an end: another one is made");
                self.added(KeyPurpose::Ledger, ledger_key_dates(now))
                    .await
                    .map(Some)
            }
            [newest, ..] => {
                warn!(
                    kept = newest.kid,
                    "several ledger keys are without an end: one is kept"
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

    /// Makes the next key of a purpose, if one is due. Whether one was made.
    pub(super) async fn make_due_key(&self, purpose: KeyPurpose) -> Result<bool, BrokerError> {
        let wish = KeyWish::Scheduled(purpose);
        let made = self.change_own(wish, SCHEDULE).await?;
        Ok(made.is_some())
    }

    /// Sees to it that the log has exactly one key without an end. Whether anything was changed.
    pub(super) async fn restore_ledger_key(&self) -> Result<bool, BrokerError> {
        let changed = self.change_own(KeyWish::RestoreLedger, SCHEDULE).await?;
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

/// Whether one more key of a purpose may be published; otherwise from when on.
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
    // So many have to end before there are fewer than `most`.
    let until = ends
        .get(ends.len() - most)
        .copied()
        .unwrap_or(Timestamp::MAX);
    Err(BrokerError::TooManyKeys { most, until })
}
