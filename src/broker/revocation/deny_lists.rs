//! Ending single sessions by a list at their back end: who is put on it, and what is certain when.
//!
//! Ending a session is a row; [`DenyLists::tend_deny_lists`] then brings the lists to what the rows say. A
//! session is confirmed when the list was read with it in it, the back end's bound has passed, and
//! the list still had it then. A list that was written over, by a slow replica or by a person, is
//! found at the next look, which comes while a session is on it.

use std::sync::Arc;

use tracing::{debug, warn};

use crate::broker::core::Core;
use crate::broker::error::BrokerError;
use crate::broker::minters::minter_of;
use crate::clock::Timestamp;
use crate::domain::catalog::Resource;
use crate::domain::deny_list::{DenyAsk, DenyPlace, DenyWish, RevocationProgress};
use crate::domain::generation::{Generation, GenerationDigest};
use crate::domain::kind::MinterKind;
use crate::domain::limits::MAX_TTL_SECONDS;
use crate::domain::session::{EndReason, Session};
use crate::ids::SessionId;
use crate::mint::{EndOutcome, MintPlace, Minter, Minters};
use crate::store::deny_entries::SKEW_SECONDS;

/// Failures in a row, some minutes of them, after which nothing new is issued where it could not be
/// ended.
const UNWRITABLE_AFTER: u32 = 6;

/// How often a list with somebody on it is looked at, and one with nobody.
pub(super) const WATCH_SECONDS: u64 = 60;
pub(super) const REST_SECONDS: u64 = 86_400;

/// How long after it is due a session that may have been made late is kept on the list: the
/// longest that a back end makes them when nobody says otherwise.
const LATE_SECONDS: u64 = 900;

/// Keeps the lists of denied sessions at back ends.
pub struct DenyLists {
    pub(super) core: Core,
    minters: Minters,
}

impl DenyLists {
    /// The lists at the back ends of these minters.
    pub(in crate::broker) fn new(core: Core, minters: Minters) -> Self {
        Self { core, minters }
    }

    /// The minter of a kind.
    pub(super) fn minter(&self, kind: MinterKind) -> Result<&Arc<dyn Minter>, BrokerError> {
        minter_of(&self.minters, kind)
    }

    /// The list on which sessions of a resource can be put. `None` if its back end denies by none.
    pub(in crate::broker) fn place_for(
        &self,
        resource: &Resource,
    ) -> Result<Option<DenyPlace>, BrokerError> {
        let list = self.minter(resource.kind.minter())?.deny_list();
        Ok(list.and_then(|list| list.deny_place(resource)))
    }

    /// Asks the back end of a session to end its credential.
    pub async fn end_external(&self, session: &Session) -> Result<EndOutcome, BrokerError> {
        let minter = self.minter(session.minter)?;
        let now = self.core.now();
        if let Some(place) = self.place_of(minter.as_ref(), session).await? {
            return self.deny(&place, minter.as_ref(), session, now).await;
        }
        Ok(minter.end(session, now).await)
    }

    /// Notes that an admin wants a session dead, so that it has a place on its list before all that
    /// is merely over. It is not denied before its end is recorded.
    pub(in crate::broker) async fn note_insistence(
        &self,
        session: &Session,
    ) -> Result<(), BrokerError> {
        let minter = self.minter(session.minter)?;
        if let Some(place) = self.place_of(minter.as_ref(), session).await? {
            let ask = deny_ask(session, DenyWish::Admin, self.core.now());
            let due = ask.at.plus_seconds(WATCH_SECONDS);
            self.core.store().know_deny_place(&place, due).await?;
            self.core.store().note_deny_wish(&place, &ask).await?;
        }
        Ok(())
    }

    /// Has a session that an admin ended denied now.
    pub(in crate::broker) async fn insist_on_end(
        &self,
        session: &Session,
    ) -> Result<(), BrokerError> {
        let minter = self.minter(session.minter)?;
        if let Some(place) = self.place_of(minter.as_ref(), session).await? {
            let now = self.core.now();
            self.ask_deny(&place, session, DenyWish::Admin, now).await?;
        }
        Ok(())
    }

    /// The list that a session can be put on: as its resource is registered now, or else as it was
    /// when the session was decided.
    async fn place_of(
        &self,
        minter: &dyn Minter,
        session: &Session,
    ) -> Result<Option<DenyPlace>, BrokerError> {
        let Some(list) = minter.deny_list() else {
            return Ok(None);
        };
        let same = |resource: &Resource| resource.audience() == session.audience;
        let active = self.core.active()?;
        let now = active.catalog().resource(&session.resource);
        let place = now
            .filter(|resource| same(resource))
            .and_then(|resource| list.deny_place(resource));
        if place.is_some() {
            return Ok(place);
        }
        let Some(bytes) = self.core.store().generation(session.generation).await? else {
            return Ok(None);
        };
        let genuine = GenerationDigest::new(crate::crypto::digest::sha256(&bytes));
        let decided: Option<Generation> = serde_json::from_slice(&bytes).ok();
        Ok(decided
            .filter(|_| genuine == session.generation)
            .and_then(|generation| {
                let mut resources = generation.resources.into_iter();
                let found =
                    resources.find(|resource| resource.name == session.resource && same(resource));
                list.deny_place(&found?)
            }))
    }

    /// One session: put on its place's list if there is reason and room, and how far that has come.
    async fn deny(
        &self,
        place: &DenyPlace,
        minter: &dyn Minter,
        session: &Session,
        now: Timestamp,
    ) -> Result<EndOutcome, BrokerError> {
        let bound = place.propagation_seconds;
        let standing = match self.covered_by_blanket_deny(place, minter, session).await? {
            Some(standing) => standing,
            None => match self.core.store().revocation_progress(session.id).await? {
                Some(standing) if standing.listed => standing,
                // Room may have come free, or a cutoff may match it that did not before.
                _ => {
                    let wish = self.wish_for(session).await?;
                    self.ask_deny(place, session, wish, now).await?
                }
            },
        };
        if standing.is_confirmed(bound) {
            return Ok(EndOutcome::Confirmed);
        }
        if !standing.listed {
            let again = now.plus_seconds(WATCH_SECONDS);
            return Ok(EndOutcome::NotBefore(again.min(session.expires_at)));
        }
        match standing.holds_from(bound) {
            Some(from) if now < from => Ok(EndOutcome::NotBefore(from)),
            Some(_) => {
                // Time enough has passed; what is missing is a look after it.
                self.core.store().nudge_deny_place(place, now).await?;
                Ok(EndOutcome::Pending)
            }
            None => {
                // Whoever asked may have died before the place was told.
                self.core.store().put_deny_place(place, now).await?;
                Ok(EndOutcome::Pending)
            }
        }
    }

    /// Where an admin had every earlier session of the place denied, this one among them, how far
    /// that has come. One that may have been made later is not among them.
    async fn covered_by_blanket_deny(
        &self,
        place: &DenyPlace,
        minter: &dyn Minter,
        session: &Session,
    ) -> Result<Option<RevocationProgress>, BrokerError> {
        let MintPlace::External { lease_seconds } = minter.place() else {
            return Ok(None);
        };
        let made_by = session.issued_at.plus_seconds(lease_seconds + SKEW_SECONDS);
        let Some(issued_before) = self.issued_before(place, self.core.now()).await? else {
            return Ok(None);
        };
        if made_by >= issued_before {
            return Ok(None);
        }
        let read = self.core.store().blanket_deny(place).await?;
        let read = read.filter(|read| made_by < read.issued_before);
        Ok(Some(RevocationProgress {
            requested_at: issued_before,
            listed: true,
            written_at: read.map(|read| read.written_at),
            read_at: read.and_then(|read| read.read_at),
        }))
    }

    /// Before when sessions of the place must have been made to be denied as a whole. What was
    /// made longer ago than any lives needs no denying.
    pub(super) async fn issued_before(
        &self,
        place: &DenyPlace,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, BrokerError> {
        let since = now.minus_seconds(MAX_TTL_SECONDS);
        let at = self
            .core
            .store()
            .last_blanket_deny(&place.name, since)
            .await?;
        Ok(at.map(Timestamp::floor_to_second))
    }

    /// Who wants a session denied, as far as its own records say; what an admin said of it alone is
    /// in its entry.
    async fn wish_for(&self, session: &Session) -> Result<DenyWish, BrokerError> {
        let view = self.core.store().session_view(session.id).await?;
        if view.is_some_and(|view| view.cut_off_at.is_some()) {
            return Ok(DenyWish::Admin);
        }
        Ok(match session.end_reason {
            Some(EndReason::Failed) => DenyWish::Unknown,
            _ => DenyWish::Over,
        })
    }

    async fn ask_deny(
        &self,
        place: &DenyPlace,
        session: &Session,
        wish: DenyWish,
        now: Timestamp,
    ) -> Result<RevocationProgress, BrokerError> {
        let before = self.core.store().revocation_progress(session.id).await?;
        self.core.store().put_deny_place(place, now).await?;
        let ask = deny_ask(session, wish, now);
        self.core.store().ask_deny(place, &ask).await?;
        let standing = self.core.store().revocation_progress(session.id).await?;
        let standing = standing.ok_or(BrokerError::NotFound("session"))?;
        if before.is_none() && !standing.listed {
            // What is over and expires before the list is sure to hold needs no room.
            let holds_at = now.plus_seconds(place.propagation_seconds + SKEW_SECONDS);
            if wish == DenyWish::Admin || ask.keep_until > holds_at {
                self.report_natural_expiry(place, &[session.id]);
            } else {
                self.core.metrics().expires_naturally(1);
            }
        }
        Ok(standing)
    }

    /// Reports the sessions that found no room on a list, and so expire naturally.
    pub(super) fn report_natural_expiry(&self, place: &DenyPlace, sessions: &[SessionId]) {
        self.core.metrics().expires_naturally(sessions.len() as u64);
        for session in sessions {
            warn!(%session, place = place.name, "the list of denied sessions has no room for a session; it lives until some comes free, or it expires");
        }
    }

    /// Refuses to issue where a revocation of the new credential would find no room on the list.
    pub(in crate::broker) async fn ensure_revocation_capacity(
        &self,
        resource: &Resource,
        now: Timestamp,
    ) -> Result<(), BrokerError> {
        let Some(place) = self.place_for(resource)? else {
            return Ok(());
        };
        let room = self.core.store().deny_room(&place, now).await?;
        // Each refusal is the caller's news; the operator has the metrics.
        let why = if room.is_short {
            "the back end has no room for a list of the registered size"
        } else if room.listed >= u64::from(place.issues_below()) {
            "the list of denied sessions is nearly full"
        } else if room.failures >= UNWRITABLE_AFTER {
            "the list of denied sessions cannot be written"
        } else {
            return Ok(());
        };
        debug!(place = place.name, ?room, why, "nothing is issued there");
        Err(BrokerError::Overloaded)
    }
}

/// What is asked of a list for a session.
fn deny_ask(session: &Session, wish: DenyWish, now: Timestamp) -> DenyAsk {
    // One whose making nobody confirmed may have been made late, and longer than was asked.
    let life = session.issued_at.seconds_until(session.expires_at);
    let keep_until = match session.end_reason {
        Some(EndReason::Failed) => now.plus_seconds(life.max(LATE_SECONDS)),
        _ => session.expires_at,
    };
    DenyAsk {
        session: session.id,
        at: now,
        // Until the back end's clock, too, is past its expiry.
        keep_until: keep_until
            .max(session.expires_at)
            .plus_seconds(SKEW_SECONDS),
        wish,
    }
}
