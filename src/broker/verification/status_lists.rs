//! Status lists. Servers poll them instead of introspecting a credential at each use.
//!
//! `status_list` answers with a list that is kept, or has it built (`Build`). Status lists are
//! public. To limit the load, a list is served for ten seconds after it was built, regardless
//! of the number of requests, and lists are built one at a time (`super::list_builds`).
//! SQL alone shows most sessions to be valid; the others are read and judged a page at once, so a
//! build needs little memory. A list whose last leaf is older than any credential can be is built
//! without reading sessions.
//!
//! The rule: the date of a list is before the store is read for it, and the list is valid for
//! [`STATUS_LIST_SECONDS`] from then. So a server that observes these times accepts no revoked
//! credential for longer. A position whose session is unknown is invalid. Failures: a list beyond
//! the log's end is `NotFound`. While the clock is in doubt, the store cannot be read, no key may
//! sign, or the build takes too long, the answer is `FailClosed` and no list. A list of the log that
//! this log succeeds reports all credentials as invalid. `http::status_lists` calls this module;
//! `super::signed_statements` signs.

use std::io::Write;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use secrecy::ExposeSecret;
use serde::Serialize;
use tracing::instrument;

pub use super::list_builds::StatusList;
use super::list_builds::{BUILT_FOR_SECONDS, Lane, TOO_SLOW};
use super::{StatementKeys, Verification};
use crate::broker::core::Core;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::limits::MAX_TTL_SECONDS;
use crate::domain::status_list::{
    STATUS_LIST_SECONDS, STATUS_LIST_SIZE, StatusBits, StatusListIndex, list_uri,
};

/// The `typ` of a status list token.
pub const STATUS_LIST_TYPE: &str = "statuslist+jwt";

/// The age of a list's last leaf, in seconds, from which on every credential of the list has
/// expired. The hour is for earlier leaves that a fast clock dated.
const OVER_AFTER_SECONDS: u64 = MAX_TTL_SECONDS + 3_600;

/// The number of sessions that are read and judged at once.
const JUDGED_AT_ONCE: u32 = 500;

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: String,
    iat: i64,
    exp: i64,
    ttl: u64,
    status_list: Bits,
}

#[derive(Serialize)]
struct Bits {
    bits: u8,
    lst: String,
}

/// The content of a list.
#[derive(Clone, Copy, Debug)]
enum Content {
    /// The sessions with leaves from this index on.
    From(u64),
    /// No credential is valid.
    Over,
}

/// The build of one list.
struct Build {
    core: Core,
    keys: Arc<StatementKeys>,
    list: u64,
    content: Content,
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
        if let Some(kept) = self.status_lists.kept(list, now) {
            return Ok(kept);
        }
        let is_over = match first {
            Some(first) => self.is_over(first, now).await,
            None => true,
        };
        let (content, lane) = match first {
            Some(first) if !is_over => (Content::From(first), Lane::Rows),
            Some(_) | None => (Content::Over, Lane::Over),
        };
        let build = Build {
            core: self.core.clone(),
            keys: Arc::clone(&self.keys),
            list,
            content,
        };
        let building = Box::pin(async move { build.run().await });
        let shutdown = self.core.shutdown();
        self.status_lists
            .get((list, now), lane, shutdown, building)
            .await
    }

    /// Whether all credentials have expired that can be in the list that begins with the leaf at
    /// `first`.
    async fn is_over(&self, first: u64, now: Timestamp) -> bool {
        let last = first.saturating_add(STATUS_LIST_SIZE - 1);
        if last >= self.core.ledger().basis() {
            return false;
        }
        // If it cannot be read, the build fails or shows the list as it is.
        let leaf = self.core.store().leaf(last).await.ok().flatten();
        leaf.is_some_and(|leaf| leaf.at.plus_seconds(OVER_AFTER_SECONDS) < now)
    }
}

impl Build {
    /// The bits of the list that begins with the leaf at `first`. A position that has a leaf is
    /// invalid unless a row shows that its session is valid at `now`. Without a row, because it was
    /// pruned or is missing, the position is invalid.
    ///
    /// Positions beyond the log's end belong to no credential yet. They are valid, because a server
    /// may use this list for a credential that is issued later. If such a credential is revoked,
    /// the list expires within the bound.
    async fn bits(&self, first: u64, now: Timestamp) -> Result<StatusBits, BrokerError> {
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

    async fn run(&self) -> Result<StatusList, BrokerError> {
        // Read after the wait for the turn: the list is valid from here on.
        let now = self.core.now();
        // The rows may be as old as the read lease, so the list is dated back by that age.
        let age = self.core.store().read_lease_age();
        let bits = match self.content {
            Content::Over => StatusBits::invalid_first(STATUS_LIST_SIZE),
            Content::From(first) => self.bits(first, now).await?,
        };
        let issued_at = now.minus(age).floor_to_second();
        let expires_at = issued_at.plus_seconds(STATUS_LIST_SECONDS);
        let claims = Claims {
            iss: self.core.issuer(),
            sub: list_uri(self.core.issuer(), self.list),
            iat: issued_at.seconds(),
            exp: expires_at.seconds(),
            ttl: BUILT_FOR_SECONDS,
            status_list: Bits {
                bits: 1,
                lst: compressed(bits.as_bytes())?,
            },
        };
        let token = self.keys.sign(STATUS_LIST_TYPE, &claims, now).await?;
        let done = self.core.now();
        if done >= expires_at {
            return Err(BrokerError::store(TOO_SLOW));
        }
        Ok(StatusList {
            token: token.expose_secret().to_owned(),
            expires_at,
            served_until: done.plus_seconds(BUILT_FOR_SECONDS).min(expires_at),
        })
    }
}

fn compressed(bits: &[u8]) -> Result<String, BrokerError> {
    let closed = |error: std::io::Error| BrokerError::bug(error.to_string());
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bits).map_err(closed)?;
    Ok(URL_SAFE_NO_PAD.encode(encoder.finish().map_err(closed)?))
}
