//! Status lists. Servers poll them instead of introspecting a credential at each use.
//!
//! `status_list` answers from the cache or builds the list (`build_status_list`, `status_bits`).
//! Status lists are public. To limit the load, each is built at most once in [`BUILT_FOR_SECONDS`],
//! regardless of the number of requests, and one at a time. SQL alone shows most sessions to be
//! valid; the others are read and judged a page at once, so a build needs little memory.
//!
//! The rule: the date of a list is before the store is read for it, and the list is valid for
//! [`STATUS_LIST_SECONDS`] from then. So a server that observes these times accepts no revoked
//! credential for longer. A position whose session is unknown is invalid. Failures: a list beyond
//! the log's end is `NotFound`. While the clock is in doubt, the store cannot be read or no key may
//! sign, the answer is `FailClosed` and no list. A list of the log that this log succeeds reports
//! all credentials as invalid. `http::status_lists` calls this module;
//! `super::signed_statements` signs.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use moka::future::Cache;
use secrecy::ExposeSecret;
use serde::Serialize;
use tokio::sync::Semaphore;
use tracing::instrument;

use super::Verification;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::status_list::{
    STATUS_LIST_SECONDS, STATUS_LIST_SIZE, StatusBits, StatusListIndex, list_uri,
};

/// The `typ` of a status list token.
pub const STATUS_LIST_TYPE: &str = "statuslist+jwt";

/// For how many seconds a built list is served.
const BUILT_FOR_SECONDS: i64 = 10;

/// The number of cached lists, about 11 KB each: those of the last 64 million credentials.
const MAX_KEPT: u64 = 1_024;

/// The number of sessions that are read and judged at once.
const JUDGED_AT_ONCE: u32 = 500;

/// A signed status list.
#[derive(Debug)]
pub struct StatusList {
    /// The list as a signed token.
    pub token: String,
    /// The expiry in the token.
    pub expires_at: Timestamp,
}

pub(super) struct StatusLists {
    /// Built lists, by number and the time for which they were built.
    built: Cache<(u64, i64), Arc<StatusList>>,
    /// Lets one list be built at a time: clients without authentication cause this work.
    building: Semaphore,
}

impl Default for StatusLists {
    fn default() -> Self {
        let kept_for = Duration::from_secs(BUILT_FOR_SECONDS.unsigned_abs());
        Self {
            built: Cache::builder()
                .max_capacity(MAX_KEPT)
                .time_to_live(kept_for)
                .build(),
            building: Semaphore::new(1),
        }
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: String,
    iat: i64,
    exp: i64,
    ttl: i64,
    status_list: Bits,
}

#[derive(Serialize)]
struct Bits {
    bits: u8,
    lst: String,
}

impl Verification {
    /// The list of this number. Fails if the log has no leaf of its range yet.
    #[instrument(skip_all)]
    pub async fn status_list(&self, list: u64) -> Result<Arc<StatusList>, BrokerError> {
        self.core.check_clock()?;
        let known = |first: &u64| *first <= self.core.ledger().basis();
        let first = match list.checked_sub(self.core.ledger().first_status_list()) {
            Some(own) => {
                let first = own.checked_mul(STATUS_LIST_SIZE).filter(known);
                Some(first.ok_or(BrokerError::NotFound("status list"))?)
            }
            // A list of the log that this log succeeds.
            None => None,
        };
        let now = self.core.now();
        let built_for = (list, now.seconds() / BUILT_FOR_SECONDS);
        let lists = &self.status_lists;
        let built = lists.built.try_get_with(built_for, async {
            let turn = lists.building.acquire().await;
            let turn = turn.map_err(|error| error.to_string())?;
            // Read after the wait: a list is valid from here on.
            let now = self.core.now();
            let built = self.build_status_list(list, first, now).await;
            drop(turn);
            built.map(Arc::new).map_err(|error| error.to_string())
        });
        built
            .await
            .map_err(|why| BrokerError::store(why.as_ref().clone()))
    }

    /// The bits of the list that begins with the leaf at `first`. A position that has a leaf is
    /// invalid unless a row shows that its session is valid at `now`. Without a row, because it was
    /// pruned or is missing, the position is invalid.
    ///
    /// Positions beyond the log's end belong to no credential yet. They are valid, because a server
    /// may use this list for a credential that is issued later. If such a credential is revoked,
    /// the list expires within the bound.
    async fn status_bits(&self, first: u64, now: Timestamp) -> Result<StatusBits, BrokerError> {
        // Read the size before the rows. Otherwise the position of a leaf that is appended in
        // between would be invalid although its session is valid.
        let head = self.core.ledger().head().await?;
        let size = head.map_or(0, |head| head.size);
        let end = first.saturating_add(STATUS_LIST_SIZE);
        let store = self.core.store();
        let mut bits = StatusBits::invalid_first(size.saturating_sub(first));
        let mut show_valid = |leaf_index| {
            bits.set(StatusListIndex::of(leaf_index, 0).index, false);
        };
        for leaf_index in store.listed_plainly(first, end, now).await? {
            show_valid(leaf_index);
        }
        let mut next = first;
        loop {
            let views = store
                .listed_in_doubt(next, end, now, JUDGED_AT_ONCE)
                .await?;
            for view in views.iter().filter(|view| view.is_valid_at(now)) {
                show_valid(view.session.leaf_index);
            }
            match views.last() {
                Some(last) if views.len() >= JUDGED_AT_ONCE as usize => {
                    next = last.session.leaf_index.saturating_add(1);
                }
                Some(_) | None => return Ok(bits),
            }
        }
    }

    async fn build_status_list(
        &self,
        list: u64,
        first: Option<u64>,
        now: Timestamp,
    ) -> Result<StatusList, BrokerError> {
        // The rows may be as old as the read lease, so the list is dated back by that age.
        let age = self.core.store().read_lease_age();
        let bits = match first {
            None => StatusBits::invalid_first(STATUS_LIST_SIZE),
            Some(first) => self.status_bits(first, now).await?,
        };
        let issued_at = now.minus(age).floor_to_second();
        let expires_at = issued_at.plus_seconds(STATUS_LIST_SECONDS);
        let claims = Claims {
            iss: self.core.issuer(),
            sub: list_uri(self.core.issuer(), list),
            iat: issued_at.seconds(),
            exp: expires_at.seconds(),
            ttl: BUILT_FOR_SECONDS,
            status_list: Bits {
                bits: 1,
                lst: compressed(bits.as_bytes())?,
            },
        };
        let token = self.keys.sign(STATUS_LIST_TYPE, &claims, now).await?;
        Ok(StatusList {
            token: token.expose_secret().to_owned(),
            expires_at,
        })
    }
}

fn compressed(bits: &[u8]) -> Result<String, BrokerError> {
    let closed = |error: std::io::Error| BrokerError::bug(error.to_string());
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bits).map_err(closed)?;
    Ok(URL_SAFE_NO_PAD.encode(encoder.finish().map_err(closed)?))
}
