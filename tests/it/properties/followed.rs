//! A follower of the endings, compared with the store after each step.

use std::collections::BTreeSet;

use taskpass::broker::Broker;
use taskpass::domain::cutoff::Selector;
use taskpass::domain::session::{Session as SessionRecord, SessionState};
use taskpass::domain::task::TaskState;
use taskpass::domain::validity::SessionView;
use taskpass::ids::SessionId;
use taskpass::ledger::follower::{Follower, KnownEndings};

use super::*;

/// A follower, and the sessions that had ended when it began.
pub(super) struct Followed {
    follower: Follower,
    before: BTreeSet<SessionId>,
}

/// A session with its ancestors, as the store has them.
struct Facts {
    view: SessionView,
    ancestors: Vec<SessionRecord>,
}

impl Facts {
    async fn of(broker: &Broker, id: SessionId) -> Result<Self, TestCaseError> {
        let store = broker.core.store();
        let missing = || fail(&"the session has no row");
        let view = store.session_view(id).await.map_err(|error| fail(&error))?;
        let view = view.ok_or_else(missing)?;
        let mut ancestors = Vec::new();
        for ancestor in &view.ancestors {
            let session = store.session(ancestor.id).await;
            let session = session.map_err(|error| fail(&error))?;
            ancestors.push(session.ok_or_else(missing)?);
        }
        Ok(Self { view, ancestors })
    }

    /// Whether the store has an ending of the session, of its tasks or of its ancestors. Expiry,
    /// deadlines and silence are none.
    fn ended_in_store(&self) -> bool {
        let over = |state| match state {
            SessionState::Ending | SessionState::Ended => true,
            SessionState::Minting | SessionState::Active => false,
        };
        let view = &self.view;
        over(view.session.state)
            || view.cut_off_at.is_some()
            || view
                .tasks
                .0
                .iter()
                .any(|life| life.state != TaskState::Open)
            || view.ancestors.iter().any(|above| over(above.life.state))
    }

    /// The same by the endings that a follower knows.
    fn ended_in(&self, known: &KnownEndings<'_>) -> bool {
        let after = |selector: &Selector, leaf_index| {
            known
                .cutoff(selector)
                .is_some_and(|index| index > leaf_index)
        };
        let own = &self.view.session;
        let tasks = &self.view.tasks.0;
        let sessions = || std::iter::once(own).chain(&self.ancestors);
        tasks.iter().any(|life| {
            known.task(life.id).is_some() || after(&Selector::Task(life.id), own.leaf_index)
        }) || sessions().any(|session| {
            let mut selectors = session.selector_subject().selectors().into_iter();
            known.session(session.id).is_some()
                || selectors.any(|selector| after(&selector, session.leaf_index))
        })
    }
}

impl World {
    /// Follows the endings up to now, and compares them with the store for every session that has
    /// not expired.
    pub(super) async fn compare_follower(&mut self) -> Checked {
        let broker = &self.rig.broker;
        let mut all = Vec::new();
        for session in &self.model.sessions {
            let record = &session.issued.session;
            if record.expires_at > self.rig.now() {
                all.push(Facts::of(broker, record.id).await?);
            }
        }
        let ledger = broker.core.ledger();
        let followed = self.followed.get_or_insert_with(|| {
            let ended = all.iter().filter(|facts| facts.ended_in_store());
            Followed {
                follower: ledger.follower(),
                before: ended.map(|facts| facts.view.session.id).collect(),
            }
        });
        let read = followed.follower.read_on().await;
        read.map_err(|error| fail(&error))?;
        // A machine that stalls here makes the view stale; the next step compares again.
        let Some(known) = ledger.view().fresh() else {
            return Ok(());
        };
        prop_assert_eq!(known.complete_to(), ledger.basis());
        for facts in &all {
            let id = facts.view.session.id;
            let ended = followed.before.contains(&id) || facts.ended_in(&known);
            prop_assert_eq!(ended, facts.ended_in_store(), "session {}", id);
        }
        Ok(())
    }
}
