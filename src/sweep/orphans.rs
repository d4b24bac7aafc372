//! The worker `orphaned_sessions`: finds external sessions that ended by a task's end, a cutoff or
//! the end of a session that they were derived from, and not by their own record.
//!
//! Each of these causes is an act with a leaf. So the worker reads the acts since its last round
//! (`ended_by_acts`), and searches only under the tasks and sessions that they ended (`under`). If
//! no act ended anything, a round reads the newest head and the few leaves since. All live external
//! sessions are searched (`all`) at the start, after a cutoff, when a retry superseded a session,
//! and from time to time, because a process may have died after it finished a mint and before it
//! judged the session again.
//!
//! The rule: a session that has ended is found again in each round until its end is recorded. A
//! leaf that cannot be read or was pruned causes a search of all. A failure ends the round with a
//! `BrokerError`, and the next round starts from the same leaf. `sweep` calls this worker;
//! `broker::revocation::orphans` keeps its progress, and the worker `endings` asks the back ends.

use std::collections::BTreeSet;
use std::time::Instant;

use super::BATCH_ROWS;
use super::endings::begin_ending;
use super::rounds::{Outcome, Swept};
use crate::broker::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::domain::leaf::{Effect, Leaf};
use crate::domain::session::SessionState;
use crate::domain::validity::SessionView;
use crate::ids::{SessionId, TaskId};
use crate::store::leaves::StoredLeaf;

/// With more leaves than this since the last round, all sessions are searched instead.
const MAX_LEAVES: u64 = 10_000;

/// How many acts are read at once, and how many tasks or sessions are searched at once.
const ACTS: u32 = 256;

/// The tasks and sessions that acts ended directly.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ended {
    tasks: BTreeSet<TaskId>,
    sessions: BTreeSet<SessionId>,
}

/// Begins to end the external sessions that ended by another cause than their own record.
pub(super) async fn orphaned_sessions(broker: &Broker, now: Timestamp) -> Outcome {
    let search = broker.revocation.orphan_search();
    let from = search.heed_from();
    let began = Instant::now();
    // Read first: the next round covers later acts.
    let head = broker.core.ledger().head().await?;
    let size = head.map_or(0, |head| head.size);
    let ended = match from.filter(|from| size.saturating_sub(*from) <= MAX_LEAVES) {
        Some(from) => ended_by_acts(broker, from, size).await?,
        None => None,
    };
    if let Some(ended) = ended {
        let found = under(broker, &ended, now).await?;
        search.heeded(size);
        Ok(Swept::all(found))
    } else {
        let found = all(broker, now).await?;
        search.searched_all(began, size);
        Ok(Swept::all(found))
    }
}

/// The tasks and sessions that the acts of the leaves `[from, to)` ended. `None` if an act may have
/// ended any session.
async fn ended_by_acts(broker: &Broker, from: u64, to: u64) -> Result<Option<Ended>, BrokerError> {
    let mut ended = Ended::default();
    let mut next = from;
    while next < to {
        let acts = broker.core.store().acts(next, to, ACTS).await?;
        let Some(last) = acts.last() else {
            break;
        };
        next = last.index + 1;
        if !acts.iter().all(|act| ended.heed(act)) {
            return Ok(None);
        }
    }
    Ok(Some(ended))
}

impl Ended {
    /// Adds the task or session that an act ended. Returns false if the act may have ended any
    /// session.
    fn heed(&mut self, act: &StoredLeaf) -> bool {
        let leaf = act.body.as_deref().map(Leaf::from_bytes);
        let Some(Ok(leaf)) = leaf else {
            return false;
        };
        match leaf.event.facets().effect {
            Effect::EndsTasks(tasks, _) => self.tasks.extend(tasks),
            Effect::EndsSession(session, _) => {
                self.sessions.insert(session);
            }
            Effect::CutsOff(_) | Effect::CutsOffIssuedAfter(_) | Effect::EndsKey => return false,
            Effect::Begins(_) | Effect::Permits(_) | Effect::AddsKey(_) | Effect::Nothing => {}
        }
        true
    }
}

/// Begins to end the sessions under the given tasks and sessions.
async fn under(broker: &Broker, ended: &Ended, now: Timestamp) -> Result<u64, BrokerError> {
    let mut found = 0;
    let tasks: Vec<TaskId> = ended.tasks.iter().copied().collect();
    for tasks in tasks.chunks(ACTS as usize) {
        let views = broker.core.store().external_under(tasks, &[], now).await?;
        found += end(broker, &views, now).await?;
    }
    let sessions: Vec<SessionId> = ended.sessions.iter().copied().collect();
    for sessions in sessions.chunks(ACTS as usize) {
        let views = broker
            .core
            .store()
            .external_under(&[], sessions, now)
            .await?;
        found += end(broker, &views, now).await?;
    }
    Ok(found)
}

/// Begins to end such sessions among all live ones.
async fn all(broker: &Broker, now: Timestamp) -> Result<u64, BrokerError> {
    let mut found = 0;
    let mut after = None;
    loop {
        let views = broker
            .core
            .store()
            .active_external(now, after, BATCH_ROWS)
            .await?;
        let Some(last) = views.last() else {
            return Ok(found);
        };
        after = Some((last.session.expires_at, last.session.id));
        found += end(broker, &views, now).await?;
        if views.len() < BATCH_ROWS as usize {
            return Ok(found);
        }
    }
}

async fn end(broker: &Broker, views: &[SessionView], now: Timestamp) -> Result<u64, BrokerError> {
    let mut found = 0;
    for view in views {
        let status = view.status_at(now);
        if let (SessionState::Ending, Some(reason)) = (status.state, status.end_reason) {
            begin_ending(broker, &view.session, reason, now).await?;
            found += 1;
        }
    }
    Ok(found)
}
