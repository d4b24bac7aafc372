//! Brings lists of denied sessions at back ends to what our records say: each by the replica that has
//! its lease, by reading it, writing it whole with the next number, and reading it back.
//!
//! A back end may have less room than is registered. It says so when a list is too large for it. Then
//! the list names as many as it takes, nothing is issued at its place, and from time to time a list of
//! the registered size is tried.

use std::collections::BTreeSet;

use tracing::{error, info};
use uuid::Uuid;

use super::deny_lists::{DenyLists, REST_SECONDS, WATCH_SECONDS};
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::deny_list::{Denied, DenyPlace};
use crate::domain::limits::MAX_TTL_SECONDS;
use crate::ids::{Random, SessionId};
use crate::mint::{DenyList, DenyWriteError, MintError};
use crate::store::deny_lists::ClaimedPlace;

/// How long a place is one replica's: longer than its calls can take.
const LEASE_SECONDS: u64 = 90;

/// Places that are looked at in one round.
const BITE: u32 = 20;

/// What must be left of a lease before a document is written: longer than writing can take.
const WRITE_SECONDS: u64 = 30;

/// The longest pause after a failure.
const MAX_PAUSE_SECONDS: u64 = 120;

/// How long after a back end refused a list for its size it is tried again whether it has the room
/// that is registered.
const PROBE_SECONDS: u64 = 900;

/// Names that are no session's, to try the size of a list.
const FILLERS: u128 = 1_024;

fn fillers() -> impl Iterator<Item = SessionId> {
    (0..FILLERS).map(|n| SessionId::from(Uuid::from_u128(u128::MAX - n)))
}

fn is_filler(id: SessionId) -> bool {
    u128::MAX - id.uuid().as_u128() < FILLERS
}

impl DenyLists {
    /// Brings the lists that are due to what our records say.
    pub async fn tend_deny_lists(&self) -> Result<u64, BrokerError> {
        let mut written = 0;
        let mut ours = Ok(());
        for _ in 0..BITE {
            // One at a time, each by the time that it is then: a lease does not run while another
            // place is waited for.
            let now = self.core.now();
            let lease_until = now.plus_seconds(LEASE_SECONDS);
            let store = self.core.store();
            let claimed = store
                .claim_deny_places(self.core.replica(), now, lease_until, 1)
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
            self.core.metrics().deny_list_failed();
            let due_at = self.core.now().plus_seconds(self.pause_seconds(claimed));
            store
                .deny_place_failed(place, self.core.replica(), due_at)
                .await?;
        }
        let short = self.core.store().short_deny_places().await?;
        self.core.metrics().short_deny_lists(short);
        ours.map(|()| written)
    }

    /// One place: read, and where it does not say what it should, written and read back. Whether it
    /// was written.
    async fn tend(&self, claimed: &ClaimedPlace) -> Result<bool, TendError> {
        let place = &claimed.place;
        let minter = self.minter(place.minter)?;
        let Some(list) = minter.deny_list() else {
            return Err(TendError::BackEnd(MintError::Refused(
                "the minter has no list any more".into(),
            )));
        };
        if let Err(why) = list.check(place) {
            return self.unusable(claimed, why).await;
        }
        let (standing, looked_at) = self.look(list, place).await?;
        if let Some(ahead) = standing
            .as_ref()
            .filter(|standing| standing.generation > claimed.generation)
        {
            self.adopt(place, ahead).await?;
        }
        let now = self.core.now();
        let listed = self.core.store().list_waiting(place, now).await;
        listed.map_err(BrokerError::from)?;
        let mut standing = standing;
        let refused_at = claimed.refused_at;
        if refused_at.is_some_and(|at| at.plus_seconds(PROBE_SECONDS) <= now) {
            standing = self.probe(list, claimed, standing).await?;
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
        let Some(denied) = self
            .write_what_fits(list, claimed, standing, wanted)
            .await?
        else {
            // Nothing more fits than what stands.
            return Err(TendError::BackEnd(MintError::Refused(
                "it has no room for another session".into(),
            )));
        };
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

    /// A place that this replica's configuration does not let it write. That fails while there is
    /// anything to deny; otherwise it is looked at again tomorrow.
    async fn unusable(&self, claimed: &ClaimedPlace, why: String) -> Result<bool, TendError> {
        let place = &claimed.place;
        if !self.wanted(place).await?.denies_as(&Denied::default()) {
            return Err(TendError::BackEnd(MintError::Refused(why)));
        }
        info!(
            place = place.name,
            why, "a list of denied sessions cannot be read; there is nothing to deny"
        );
        let due_at = self.core.now().plus_seconds(REST_SECONDS);
        let store = self.core.store();
        let rests = store.deny_place_failed(place, self.core.replica(), due_at);
        rests.await.map_err(BrokerError::from)?;
        Ok(false)
    }

    /// Writes a list with the next number.
    async fn write(
        &self,
        list: &dyn DenyList,
        place: &DenyPlace,
        standing: Option<&Denied>,
        wanted: &Denied,
    ) -> Result<Written, TendError> {
        let number = standing.map_or(0, |standing| standing.generation);
        let next = self
            .core
            .store()
            .next_deny_generation(
                place,
                self.core.replica(),
                number,
                self.core.now().plus_seconds(WRITE_SECONDS),
            )
            .await
            .map_err(BrokerError::from)?;
        let denied = Denied {
            generation: next.ok_or(TendError::Lost)?,
            ..wanted.clone()
        };
        match list.write(place, &denied, self.core.now()).await {
            Ok(()) => Ok(Written::Whole(denied)),
            Err(DenyWriteError::TooLarge(why)) => Ok(Written::TooLarge(why)),
            Err(DenyWriteError::Other(failed)) => Err(failed.into()),
        }
    }

    /// Writes a list, and where the back end has no room for it, one that names fewer sessions: of
    /// those that none named before, an admin's stay longest. The others are left to their expiry
    /// until room comes free, and nothing is issued at the place meanwhile. Nothing is answered
    /// where not even one more found room.
    async fn write_what_fits(
        &self,
        list: &dyn DenyList,
        claimed: &ClaimedPlace,
        standing: Option<Denied>,
        mut wanted: Denied,
    ) -> Result<Option<Denied>, TendError> {
        let place = &claimed.place;
        let names = |denied: &Denied| denied.sessions.len() as u64;
        let mut short = false;
        loop {
            let why = match self.write(list, place, standing.as_ref(), &wanted).await? {
                Written::Whole(denied) => {
                    if short {
                        let now = self.core.now();
                        let noted =
                            self.core
                                .store()
                                .deny_place_short(claimed, names(&denied), now);
                        noted.await.map_err(BrokerError::from)?;
                    }
                    return Ok(Some(denied));
                }
                Written::TooLarge(why) => why,
            };
            short = true;
            let now = self.core.now();
            error!(
                place = place.name,
                error = why,
                sessions = wanted.sessions.len(),
                "the back end has no room for the list of denied sessions; nothing is issued there \
                 until it has: remove other inline policies of the role, or register fewer entries"
            );
            let stands = standing.as_ref().map_or(0, names);
            let noted = self
                .core
                .store()
                .deny_place_short(claimed, stands, now)
                .await;
            noted.map_err(BrokerError::from)?;
            let unwritten = wanted.sessions.iter();
            let unwritten = unwritten
                .filter(|id| {
                    let standing = standing.as_ref();
                    standing.is_none_or(|standing| !standing.sessions.contains(*id))
                })
                .count();
            let left = self
                .core
                .store()
                .unlist_unwritten(place, unwritten / 2, now)
                .await
                .map_err(BrokerError::from)?;
            self.report_natural_expiry(place, &left);
            wanted = self.wanted(place).await?;
            let same = standing
                .as_ref()
                .is_some_and(|standing| standing.denies_as(&wanted));
            let nothing = standing.is_none() && wanted.denies_as(&Denied::default());
            if left.is_empty() || same || nothing {
                return Ok(None);
            }
        }
    }

    /// Finds out whether a back end that refused a list for its size has the room that is registered:
    /// by one of that size, whose further names are no session's. What stands then.
    async fn probe(
        &self,
        list: &dyn DenyList,
        claimed: &ClaimedPlace,
        standing: Option<Denied>,
    ) -> Result<Option<Denied>, TendError> {
        let place = &claimed.place;
        let mut full = self.wanted(place).await?;
        let missing = (place.capacity as usize).saturating_sub(full.sessions.len());
        full.sessions.extend(fillers().take(missing));
        match self.write(list, place, standing.as_ref(), &full).await? {
            Written::Whole(denied) => {
                let noted = self.core.store().deny_place_fits(place).await;
                noted.map_err(BrokerError::from)?;
                info!(
                    place = place.name,
                    "the back end has room for the list of denied sessions again"
                );
                let listed = self.core.store().list_waiting(place, self.core.now()).await;
                listed.map_err(BrokerError::from)?;
                Ok(Some(denied))
            }
            Written::TooLarge(why) => {
                let now = self.core.now();
                let names = standing.as_ref().map_or(0, |denied| denied.sessions.len());
                let noted = self
                    .core
                    .store()
                    .deny_place_short(claimed, names as u64, now);
                noted.await.map_err(BrokerError::from)?;
                error!(
                    place = place.name,
                    error = why,
                    entries = place.capacity,
                    "the back end has no room for a list of the registered size; nothing is issued \
                     there until it has: remove other inline policies of the role, or register \
                     fewer entries"
                );
                Ok(standing)
            }
        }
    }

    /// A list that is ahead of our records was written by a later state of them, from before a
    /// restore, or by another deployment of the same name. Nobody on it may come alive again.
    async fn adopt(&self, place: &DenyPlace, ahead: &Denied) -> Result<(), BrokerError> {
        error!(
            place = place.name,
            generation = ahead.generation,
            "a list of denied sessions is ahead of our records: was the store set back, or does another deployment write it?"
        );
        self.core.metrics().deny_list_failed();
        let now = self.core.now();
        let sessions = ahead.sessions.iter().copied();
        let all: Vec<_> = sessions.filter(|id| !is_filler(*id)).collect();
        let keep_until = now.plus_seconds(MAX_TTL_SECONDS);
        let left = self
            .core
            .store()
            .adopt_denied(place, &all, now, keep_until)
            .await?;
        self.report_natural_expiry(place, &left);
        Ok(())
    }

    /// What a place's list should say.
    async fn wanted(&self, place: &DenyPlace) -> Result<Denied, BrokerError> {
        let now = self.core.now();
        let sessions = self.core.store().denied_sessions(place, now).await?;
        let mut sessions: BTreeSet<SessionId> = sessions.into_iter().collect();
        let horizon = self.core.known_horizon();
        if horizon < now {
            // By a clock that is ahead, a session that was ended would come alive again at the back
            // end: it stays until the horizon has passed its time, as far as there is room.
            let room = usize::try_from(place.capacity).unwrap_or(usize::MAX);
            let later = self.core.store().denied_sessions(place, horizon).await?;
            let later = later.into_iter().filter(|id| !sessions.contains(id));
            let later: Vec<SessionId> = later.take(room.saturating_sub(sessions.len())).collect();
            sessions.extend(later);
        }
        Ok(Denied {
            generation: 0,
            sessions,
            issued_before: self.issued_before(place, now.min(horizon)).await?,
        })
    }

    /// Reads a list, and notes who is on it. With it, an instant from which on it certainly stood.
    async fn look(
        &self,
        list: &dyn DenyList,
        place: &DenyPlace,
    ) -> Result<(Option<Denied>, Timestamp), TendError> {
        let began = self.core.now();
        let standing = list.read(place, self.core.now()).await?;
        let present: Vec<_> = standing
            .iter()
            .flat_map(|denied| denied.sessions.iter().copied())
            .collect();
        let before = standing.as_ref().and_then(|denied| denied.issued_before);
        let store = self.core.store();
        let noted = store
            .note_denied(place, self.core.replica(), &present, self.core.now())
            .await;
        self.core
            .metrics()
            .denied(noted.map_err(BrokerError::from)?);
        let noted = store
            .note_blanket_deny(place, self.core.replica(), before)
            .await;
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
        let room = self.core.store().deny_room(place, looked_at).await?;
        let rests = nobody && !room.is_short;
        let pause = if rests { REST_SECONDS } else { WATCH_SECONDS };
        let due_at = looked_at.plus_seconds(pause);
        let store = self.core.store();
        store
            .deny_place_done(
                place,
                self.core.replica(),
                denied.issued_before,
                looked_at,
                due_at,
            )
            .await?;
        self.core
            .metrics()
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
        let drawn = self.core.random().fill(&mut chance).is_ok();
        pause + u64::from(drawn) * (pause * u64::from(chance[0]) / 512)
    }
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

/// The outcome of writing a list.
enum Written {
    /// The back end took it.
    Whole(Denied),
    /// The back end has no room for it, in its words.
    TooLarge(String),
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
