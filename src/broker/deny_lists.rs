//! Ending single sessions by a list at their back end: who is put on it, when it is written, and
//! what is certain when.
//!
//! Ending a session is a row; the lists are then brought to what the rows say, each by whoever has
//! its lease: read, compare, write whole with the next number, read back. A session is confirmed
//! when the list was read with it in it, the back end's bound has passed, and the list still had it
//! then. Somebody who writes over it, a replica that was slow or a person, is found at the next
//! look, which comes while anybody is on it.

use tracing::{debug, error, info, warn};

use super::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::domain::catalog::Resource;
use crate::domain::deny_list::{Denied, DenyAsk, DenyPlace, DenyStanding};
use crate::domain::generation::{Generation, GenerationDigest};
use crate::domain::limits::MAX_TTL_SECONDS;
use crate::domain::session::{EndReason, Session};
use crate::ids::Random;
use crate::mint::{DenyList, EndOutcome, MintError, MintPlace, Minter};
use crate::store::deny_lists::ClaimedPlace;

/// How long a place is one replica's: longer than its calls can take.
const LEASE_SECONDS: u64 = 90;

/// Places that are looked at in one round.
const BITE: u32 = 20;

/// What must be left of a lease before a document is written: longer than writing can take.
const WRITE_SECONDS: u64 = 30;

/// Failures in a row, some minutes of them, after which nothing new is issued where it could not be
/// ended.
const UNWRITABLE_AFTER: u32 = 6;

/// How often a list with somebody on it is looked at, and one with nobody.
const WATCH_SECONDS: u64 = 60;
const REST_SECONDS: u64 = 86_400;

/// The longest pause after a failure.
const MAX_PAUSE_SECONDS: u64 = 120;

/// How long after it is due a session that may have been made late is kept on the list: the
/// longest that a back end makes them when nobody says otherwise.
const LATE_SECONDS: u64 = 900;

/// How far the clocks of a back end and of ours may be apart.
const SKEW_SECONDS: u64 = 5;

impl Broker {
    /// Asks the back end of a session to end its credential.
    pub async fn end_external(&self, session: &Session) -> Result<EndOutcome, BrokerError> {
        let minter = self.minter(&session.minter)?;
        let now = self.now();
        if let Some(place) = self.place_of(minter.as_ref(), session).await? {
            return self.deny(&place, minter.as_ref(), session, now).await;
        }
        Ok(minter.end(session, now).await)
    }

    /// Sees to it that a session that an admin wants dead has a place on its list before all that
    /// is merely over.
    pub(super) async fn insist_on_end(&self, session: &Session) -> Result<(), BrokerError> {
        let minter = self.minter(&session.minter)?;
        match self.place_of(minter.as_ref(), session).await? {
            Some(place) => {
                let now = self.now();
                self.ask_deny(&place, session, Wish::Admin, now).await?;
                Ok(())
            }
            None => Ok(()),
        }
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
        let active = self.active()?;
        let now = active.catalog().resource(&session.resource);
        let place = now
            .filter(|resource| same(resource))
            .and_then(|resource| list.deny_place(resource));
        if place.is_some() {
            return Ok(place);
        }
        let Some(bytes) = self.store().generation(session.generation).await? else {
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
        let standing = match self.covered(place, minter, session).await? {
            Some(standing) => standing,
            None => match self.store().deny_standing(session.id).await? {
                Some(standing) if standing.listed => standing,
                // Room may have come free, or somebody may want it dead who did not before.
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
                self.store().nudge_deny_place(place, now).await?;
                Ok(EndOutcome::Pending)
            }
            None => {
                // Whoever asked may have died before the place was told.
                self.store().put_deny_place(place, now).await?;
                Ok(EndOutcome::Pending)
            }
        }
    }

    /// Where an admin had every earlier session of the place denied, this one among them, how far
    /// that has come. One that may have been made later is not among them.
    async fn covered(
        &self,
        place: &DenyPlace,
        minter: &dyn Minter,
        session: &Session,
    ) -> Result<Option<DenyStanding>, BrokerError> {
        let MintPlace::External { lease_seconds } = minter.place() else {
            return Ok(None);
        };
        let made_by = session.issued_at.plus_seconds(lease_seconds + SKEW_SECONDS);
        let Some(issued_before) = self.issued_before(place, self.now()).await? else {
            return Ok(None);
        };
        if made_by >= issued_before {
            return Ok(None);
        }
        let read = self.store().widening(place).await?;
        let read = read.filter(|read| made_by < read.issued_before);
        Ok(Some(DenyStanding {
            requested_at: issued_before,
            listed: true,
            written_at: read.map(|read| read.written_at),
            read_at: read.and_then(|read| read.read_at),
        }))
    }

    /// Before when sessions of the place must have been made to be denied as a whole. What was
    /// made longer ago than any lives needs no denying.
    async fn issued_before(
        &self,
        place: &DenyPlace,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, BrokerError> {
        let since = now.minus_seconds(MAX_TTL_SECONDS);
        let at = self.store().widened_at(&place.name, since).await?;
        Ok(at.map(Timestamp::floor_to_second))
    }

    /// On whose account a session is to be denied.
    async fn wish_for(&self, session: &Session) -> Result<Wish, BrokerError> {
        let view = self.store().session_view(session.id).await?;
        if view.is_some_and(|view| view.cut_off_at.is_some()) {
            return Ok(Wish::Admin);
        }
        Ok(match session.end_reason {
            Some(EndReason::Failed) => Wish::Unknown,
            _ => Wish::Over,
        })
    }

    async fn ask_deny(
        &self,
        place: &DenyPlace,
        session: &Session,
        wish: Wish,
        now: Timestamp,
    ) -> Result<DenyStanding, BrokerError> {
        // What is over and ends by itself before the list is sure to hold everywhere needs no place
        // on it. Where somebody wants it dead, the list holds sooner than its bound as a rule.
        let over_first = session.expires_at <= now.plus_seconds(place.propagation_seconds);
        let room = match wish {
            Wish::Admin => place.capacity,
            _ if over_first => 0,
            Wish::Unknown => place.issues_below(),
            Wish::Over => place.room_for_completed(),
        };
        // One whose making nobody confirmed may have been made late, and longer than was asked.
        let life = session.issued_at.seconds_until(session.expires_at);
        let keep_until = match session.end_reason {
            Some(EndReason::Failed) => now.plus_seconds(life.max(LATE_SECONDS)),
            _ => session.expires_at,
        };
        let ask = DenyAsk {
            session: session.id,
            at: now,
            // Until the back end's clock, too, is past its expiry.
            keep_until: keep_until
                .max(session.expires_at)
                .plus_seconds(SKEW_SECONDS),
            room,
        };
        let before = self.store().deny_standing(session.id).await?;
        self.store().put_deny_place(place, now).await?;
        self.store().ask_deny(place, &ask).await?;
        let standing = self.store().deny_standing(session.id).await?;
        let standing = standing.ok_or(BrokerError::NotFound("session"))?;
        if before.is_none_or(|before| before.listed != standing.listed) {
            self.metrics().denied(standing.listed);
            if !standing.listed && room > 0 {
                warn!(session = %session.id, place = place.name, "the list of denied sessions has no room for it; it lives until some comes free, or it expires");
            }
        }
        Ok(standing)
    }

    /// Whether a place has room for the end of what is about to be issued there.
    pub(super) async fn room_to_end(
        &self,
        minter: &dyn Minter,
        resource: &Resource,
        now: Timestamp,
    ) -> Result<(), BrokerError> {
        let place = minter
            .deny_list()
            .and_then(|list| list.deny_place(resource));
        let Some(place) = place else {
            return Ok(());
        };
        let (listed, failures) = self.store().count_denied(&place, now).await?;
        // Each refusal is the caller's news; the operator has the metric.
        if listed >= u64::from(place.issues_below()) {
            debug!(
                place = place.name,
                listed, "the list of denied sessions is nearly full; nothing is issued there"
            );
            return Err(BrokerError::Overloaded);
        }
        if failures >= UNWRITABLE_AFTER {
            debug!(
                place = place.name,
                failures, "the list of denied sessions cannot be written; nothing is issued there"
            );
            return Err(BrokerError::Overloaded);
        }
        Ok(())
    }

    /// Brings the lists that are due to what our records say.
    pub async fn tend_deny_lists(&self) -> Result<u64, BrokerError> {
        let mut written = 0;
        let mut ours = Ok(());
        for _ in 0..BITE {
            // One at a time, each by the time that it is then: a lease does not run while another
            // place is waited for.
            let now = self.now();
            let lease_until = now.plus_seconds(LEASE_SECONDS);
            let store = self.store();
            let claimed = store
                .claim_deny_places(self.replica(), now, lease_until, 1)
                .await?;
            let Some(claimed) = claimed.first() else {
                break;
            };
            let place = &claimed.place;
            let failed = match self.tend(claimed).await {
                Ok(wrote) => {
                    written += u64::from(wrote);
                    continue;
                }
                Err(TendError::Lost) => {
                    info!(place = place.name, "its lease ran out, or another has it");
                    continue;
                }
                Err(TendError::BackEnd(failed)) => failed.to_string(),
                Err(TendError::Broker(error)) => {
                    let told = error.to_string();
                    ours = Err(error);
                    told
                }
            };
            error!(
                place = place.name,
                error = failed,
                attempts = claimed.attempts + 1,
                "a list of denied sessions could not be seen to; it is tried again"
            );
            self.metrics().deny_list_failed();
            let due_at = self.now().plus_seconds(self.pause_seconds(claimed));
            store
                .deny_place_failed(place, self.replica(), due_at)
                .await?;
        }
        ours.map(|()| written)
    }

    /// One place: read, and where it does not say what it should, written and read back. Whether it
    /// was written.
    async fn tend(&self, claimed: &ClaimedPlace) -> Result<bool, TendError> {
        let place = &claimed.place;
        let minter = self.minter(&place.minter)?;
        let Some(list) = minter.deny_list() else {
            return Err(TendError::BackEnd(MintError::Refused(
                "the minter has no list any more".into(),
            )));
        };
        let (standing, looked_at) = self.look(list, place).await?;
        if let Some(ahead) = standing
            .as_ref()
            .filter(|standing| standing.generation > claimed.generation)
        {
            self.adopt(place, ahead).await?;
        }
        let wanted = self.wanted(place).await?;
        if standing
            .as_ref()
            .is_some_and(|standing| standing.denies_as(&wanted))
            || standing.is_none() && wanted.denies_as(&Denied::default())
        {
            self.done(place, &wanted, looked_at).await?;
            return Ok(false);
        }
        let number = standing.map_or(0, |standing| standing.generation);
        let store = self.store();
        let next = store
            .next_deny_generation(
                place,
                self.replica(),
                number,
                self.now().plus_seconds(WRITE_SECONDS),
            )
            .await
            .map_err(BrokerError::from)?;
        let denied = Denied {
            generation: next.ok_or(TendError::Lost)?,
            ..wanted
        };
        list.write(place, &denied, self.now()).await?;
        let (back, looked_at) = self.look(list, place).await?;
        if back.as_ref() != Some(&denied) {
            // Either not everywhere yet, or somebody else wrote: the next look tells.
            return Err(TendError::BackEnd(MintError::Unknown(
                "what was written was not read back".into(),
            )));
        }
        info!(
            place = place.name,
            generation = denied.generation,
            sessions = denied.sessions.len(),
            "a list of denied sessions was written and read back"
        );
        self.done(place, &denied, looked_at).await?;
        Ok(true)
    }

    /// A list that is ahead of our records was written by a later state of them, from before a
    /// restore, or by another deployment of the same name. Nobody on it may come alive again.
    async fn adopt(&self, place: &DenyPlace, ahead: &Denied) -> Result<(), BrokerError> {
        error!(
            place = place.name,
            generation = ahead.generation,
            "a list of denied sessions is ahead of our records: was the store set back, or does another deployment write it?"
        );
        self.metrics().deny_list_failed();
        let now = self.now();
        let all: Vec<_> = ahead.sessions.iter().copied().collect();
        let keep_until = now.plus_seconds(MAX_TTL_SECONDS);
        self.store()
            .adopt_denied(place, &all, now, keep_until)
            .await?;
        Ok(())
    }

    /// What a place's list should say.
    async fn wanted(&self, place: &DenyPlace) -> Result<Denied, BrokerError> {
        let now = self.now();
        let sessions = self.store().denied_sessions(place, now).await?;
        Ok(Denied {
            generation: 0,
            sessions: sessions.into_iter().collect(),
            issued_before: self.issued_before(place, now).await?,
        })
    }

    /// Reads a list, and notes who is on it. With it, an instant from which on it certainly stood.
    async fn look(
        &self,
        list: &dyn DenyList,
        place: &DenyPlace,
    ) -> Result<(Option<Denied>, Timestamp), TendError> {
        let began = self.now();
        let standing = list.read(place, self.now()).await?;
        let present: Vec<_> = standing
            .iter()
            .flat_map(|denied| denied.sessions.iter().copied())
            .collect();
        let before = standing.as_ref().and_then(|denied| denied.issued_before);
        let store = self.store();
        let noted = store
            .note_denied(place, self.replica(), &present, self.now())
            .await;
        noted.map_err(BrokerError::from)?;
        let noted = store.note_widening(place, self.replica(), before).await;
        noted.map_err(BrokerError::from)?;
        Ok((standing, began))
    }

    async fn done(
        &self,
        place: &DenyPlace,
        denied: &Denied,
        looked_at: Timestamp,
    ) -> Result<(), BrokerError> {
        let nobody = denied.denies_as(&Denied::default());
        let pause = if nobody { REST_SECONDS } else { WATCH_SECONDS };
        let due_at = looked_at.plus_seconds(pause);
        let store = self.store();
        store
            .deny_place_done(
                place,
                self.replica(),
                denied.issued_before,
                looked_at,
                due_at,
            )
            .await?;
        self.metrics()
            .deny_list(&place.name, denied.sessions.len() as u64);
        Ok(())
    }

    /// Doubles from two seconds to two minutes, and up to half as much again by chance, so that
    /// replicas and places do not come together.
    fn pause_seconds(&self, claimed: &ClaimedPlace) -> u64 {
        let doubled = 2_u64.checked_shl(claimed.attempts.min(16));
        let pause = doubled.unwrap_or(MAX_PAUSE_SECONDS).min(MAX_PAUSE_SECONDS);
        let mut chance = [0_u8];
        // Without randomness there is no jitter, which is no reason to stop.
        let drawn = self.random.fill(&mut chance).is_ok();
        pause + u64::from(drawn) * (pause * u64::from(chance[0]) / 512)
    }
}

/// On whose account a session is to be denied, which says how much of a list's room it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// An admin's: all of it.
    Admin,
    /// Ours, because it may exist and nobody has it: what is left for issuing.
    Unknown,
    /// Nobody's in particular: it is over, by completion, silence or its own workload's word. Half,
    /// so that no workload can take what an admin needs.
    Over,
}

/// Why a place was not brought to what it should say.
enum TendError {
    /// Another replica has it.
    Lost,
    /// The back end.
    BackEnd(MintError),
    /// We.
    Broker(BrokerError),
}

impl From<MintError> for TendError {
    fn from(error: MintError) -> Self {
        Self::BackEnd(error)
    }
}

impl From<BrokerError> for TendError {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}
