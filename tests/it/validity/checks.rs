//! Compares each answer of the store's SQL with the domain's, in one world at one time.

use std::collections::BTreeMap;

use taskpass::domain::deny_list::DenyPolicyTarget;
use taskpass::store::cutoffs::CutoffFilter;
use taskpass::store::sessions::{MatchCount, SessionFilter};
use taskpass::store::tasks::TaskCheck;

use super::*;

impl Check<'_> {
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.facts.sessions.values()
    }

    pub(super) fn view(&self, session: &Session) -> SessionView {
        self.facts.view(session.clone())
    }

    /// Every way to read sessions returns all facts about their validity.
    pub(super) async fn reads(&self) -> Checked {
        for session in self.sessions() {
            let view = self.store.session_view(session.id).await.map_err(fail)?;
            prop_assert_eq!(view.unwrap(), self.view(session));
        }
        for n in 0..self.world.tasks.len() {
            let id = task_id(n);
            let under = self.store.sessions_under(id, ALL).await.map_err(fail)?;
            let below = |session: &&Session| {
                let chain = self.facts.chain(session.task_id);
                chain.0.iter().any(|life| life.id == id)
            };
            let expected = self.sessions().filter(below);
            let expected: BTreeMap<SessionId, SessionView> = expected
                .map(|session| (session.id, self.view(session)))
                .collect();
            prop_assert_eq!(under, expected.into_values().collect::<Vec<_>>());
        }
        Ok(())
    }

    pub(super) async fn filters(&self, now: Timestamp) -> Checked {
        let filter = SessionFilter {
            live_at: Some(now),
            limit: ALL,
            ..SessionFilter::default()
        };
        let live = self.store.list_sessions(&filter).await.map_err(fail)?;
        let expected = self.sessions().filter(|one| one.life().may_stand(now));
        prop_assert_eq!(seen(&live), ids(expected), "live");
        let valid = self
            .sessions()
            .filter(|one| self.view(one).is_valid_at(now));
        prop_assert!(ids(valid).is_subset(&seen(&live)));

        for set in 0..16_u8 {
            let [workload, task, resource, live] = [8, 4, 2, 1].map(|bit| set & bit != 0);
            let filter = SessionFilter {
                workload: workload.then(|| WORKLOADS[0].to_owned()),
                task: task.then(|| task_id(0)),
                resource: resource.then(|| RESOURCES[0].to_owned()),
                live_at: live.then_some(now),
                before: None,
                limit: ALL,
            };
            let listed = self.store.list_sessions(&filter).await.map_err(fail)?;
            let expected = self.sessions().filter(|one| {
                (!workload || one.workload.as_str() == WORKLOADS[0])
                    && (!task || one.task_id == task_id(0))
                    && (!resource || one.resource == RESOURCES[0])
                    && (!live || one.life().may_stand(now))
            });
            prop_assert_eq!(seen(&listed), ids(expected), "{:?}", filter);
        }

        let external = self.store.active_external(now, None, ALL).await;
        let external = external.map_err(fail)?;
        let at_back_end =
            |one: &&Session| one.is_active_at_back_end() && !one.life().is_expired(now);
        let expected = ids(self.sessions().filter(at_back_end));
        prop_assert_eq!(seen(&external), expected, "external");
        // The sweeper finds every session that it must end.
        let ends = self.sessions().filter(|one| {
            let status = self.view(one).status_at(now);
            one.is_active_at_back_end() && status.state == SessionState::Ending
        });
        prop_assert!(ids(ends).is_subset(&seen(&external)));

        for (from, to) in [(0, 30), (5, 11)] {
            let listed = self.store.listed_plainly(from, to, now).await;
            let mut listed = listed.map_err(fail)?;
            let views = self.store.listed_in_doubt(from, to, now, ALL).await;
            let views = views.map_err(fail)?;
            let valid = views.iter().filter(|view| view.is_valid_at(now));
            listed.extend(valid.map(|view| view.session.leaf_index));
            listed.sort_unstable();
            let polled = self.sessions().filter(|one| {
                let in_list = (from..to).contains(&one.leaf_index);
                in_list && one.is_in_status_lists() && self.view(one).is_valid_at(now)
            });
            let mut expected: Vec<u64> = polled.map(|one| one.leaf_index).collect();
            expected.sort_unstable();
            prop_assert_eq!(listed, expected, "listed");
        }

        let filter = CutoffFilter {
            blocks_at: Some(now),
            limit: ALL,
            ..CutoffFilter::default()
        };
        let blocking = self.store.list_cutoffs(&filter).await.map_err(fail)?;
        let mut expected = self.facts.cutoffs.clone();
        expected.retain(|cutoff| cutoff.blocks(now));
        expected.reverse();
        prop_assert_eq!(blocking, expected, "blocking");
        self.session_groups(now).await
    }

    pub(super) async fn session_groups(&self, now: Timestamp) -> Checked {
        let groups = self.store.external_session_groups(now).await;
        let groups: BTreeSet<(String, String, [u8; 32])> = groups
            .map_err(fail)?
            .into_iter()
            .map(|group| (group.audience, group.resource, *group.generation.as_bytes()))
            .collect();
        let others = self
            .sessions()
            .filter(|one| !one.minter.is_local() && !one.life().is_expired(now));
        let expected: BTreeSet<_> = others
            .map(|one| {
                let generation = *one.generation.as_bytes();
                (one.audience.clone(), one.resource.clone(), generation)
            })
            .collect();
        prop_assert_eq!(groups, expected, "session groups");
        for audience in AUDIENCES {
            let target = DenyPolicyTarget {
                minter: MinterKind::Aws,
                name: audience.into(),
                registration: "{}".into(),
                capacity: 4,
                propagation_seconds: 60,
            };
            let live = self.store.others_live_at(&target, RESOURCES[0], now).await;
            let expected = self.sessions().any(|one| {
                let there = one.minter == MinterKind::Aws && one.audience == audience;
                there && one.resource != RESOURCES[0] && one.life().may_stand(now)
            });
            prop_assert_eq!(live.map_err(fail)?, expected, "the sessions that are live");
        }
        Ok(())
    }

    /// The external sessions under a task and a session.
    pub(super) async fn below_acts(&self, task: usize, session: usize, now: Timestamp) -> Checked {
        let task = task_id(task % self.world.tasks.len());
        let session = session_id(session % self.world.sessions.len());
        let found = self.store.external_under(&[task], &[session], now).await;
        let mut kin = BTreeSet::from([session]);
        let under = self.sessions().filter(|one| {
            let chain = self.facts.chain(one.task_id);
            chain.0.iter().any(|life| life.id == task)
        });
        kin.extend(ids(under));
        for _ in 0..self.world.sessions.len() {
            let derived = self.sessions();
            let derived = derived.filter(|one| one.parent.is_some_and(|id| kin.contains(&id)));
            let derived = ids(derived);
            kin.extend(derived);
        }
        let expected = self.sessions().filter(|one| {
            kin.contains(&one.id) && one.is_active_at_back_end() && !one.life().is_expired(now)
        });
        prop_assert_eq!(
            seen(&found.map_err(fail)?),
            ids(expected),
            "the external sessions under a task and a session"
        );
        Ok(())
    }

    pub(super) async fn count(
        &self,
        selector: &Selector,
        index: u64,
        committed: Timestamp,
        now: Timestamp,
    ) -> Checked {
        let counted = self
            .store
            .count_matching(selector, index, committed, now, ALL);
        let listed = self.store.list_matching(selector, index, committed, ALL);
        let (counted, listed) = (counted.await.map_err(fail)?, listed.await.map_err(fail)?);
        let matched: Vec<&Session> = self
            .sessions()
            .filter(|one| self.facts.is_ended_by(one, selector, index, committed))
            .collect();
        let over = matched
            .iter()
            .filter(|one| one.life().is_cut_off_everywhere(committed, now))
            .count();
        prop_assert_eq!(seen(&listed), ids(matched.iter().copied()), "matched");
        let whole = MatchCount {
            matched: matched.len() as u64,
            cut_off: over as u64,
            has_more: false,
        };
        prop_assert_eq!(counted, whole, "counted");
        for most in 0..=2 {
            let counted = self
                .store
                .count_matching(selector, index, committed, now, most);
            let counted = counted.await.map_err(fail)?;
            prop_assert_eq!(counted.matched, whole.matched.min(u64::from(most)));
            prop_assert_eq!(counted.has_more, whole.matched > u64::from(most));
            prop_assert!(counted.cut_off <= counted.matched.min(whole.cut_off));
            let listed = self
                .store
                .list_matching(selector, index, committed, most)
                .await;
            let listed = seen(&listed.map_err(fail)?);
            prop_assert_eq!(listed.len() as u64, counted.matched);
            prop_assert!(listed.is_subset(&ids(matched.iter().copied())));
        }

        // No session that was valid and is cut off is missing in the count.
        let alone = ValidityFacts {
            cutoffs: vec![Cutoff {
                id: CutoffId::from(Uuid::from_u128(5)),
                index,
                selector: selector.clone(),
                block: Block::No,
                deny_policy_target: None,
                reason: String::new(),
                by: String::new(),
                requested_at: committed,
                committed_at: committed,
                lifted_index: None,
            }],
            ..self.facts.clone()
        };
        let killed = self.sessions().filter(|one| {
            let was_valid = self.view(one).is_valid_at(committed);
            was_valid && alone.view((*one).clone()).cut_off_at.is_some()
        });
        prop_assert!(ids(killed).is_subset(&seen(&listed)));
        Ok(())
    }

    /// The cutoffs that are read with a task show whether it is blocked.
    pub(super) async fn blocks(&self, now: Timestamp) -> Checked {
        for n in 0..self.world.tasks.len() {
            let view = self.store.task_view(task_id(n), now).await.map_err(fail)?;
            let view = view.unwrap();
            prop_assert_eq!(&view.chain, &self.facts.chain(task_id(n)));
            let blocked = self.facts.cutoffs.iter().any(|cutoff| {
                let mut tasks = std::iter::once(&view.task).chain(&view.above);
                cutoff.blocks(now) && tasks.any(|task| cutoff.selector.concerns_task(task))
            });
            prop_assert_eq!(view.is_blocked(now), blocked, "blocked");
        }
        Ok(())
    }

    /// The sweeper closes exactly the tasks whose deadline has passed, without a change of their
    /// status from then on, and claims those that were silent.
    pub(super) async fn due_tasks(&self, over_by: Timestamp) -> Checked {
        let mut before = Vec::new();
        for n in 0..self.world.tasks.len() {
            let task = self.store.task(task_id(n)).await.map_err(fail)?;
            before.push(task.unwrap());
        }
        let check = TaskCheck {
            now: at(10 * SPAN),
            over_by,
            retry_at: at(11 * SPAN),
            accepted: &[],
            limit: ALL,
        };
        let checked = self.store.check_due_tasks(&check).await.map_err(fail)?;
        let open = before.iter().filter(|task| task.state == TaskState::Open);
        let (late, left): (Vec<_>, Vec<_>) = open.partition(|task| task.deadline <= over_by);
        prop_assert_eq!(
            checked.past_deadline,
            late.len() as u64,
            "past the deadline"
        );
        let found: BTreeSet<TaskId> = checked.open.iter().map(|due| due.life.id).collect();
        let expected: BTreeSet<TaskId> = left.iter().map(|task| task.id).collect();
        prop_assert_eq!(found, expected, "open");
        for task in &before {
            let after = self.store.task(task.id).await.map_err(fail)?.unwrap();
            let (life, closed) = (task.life(), after.life());
            if late.contains(&task) {
                prop_assert_eq!(after.state, TaskState::Expired);
                prop_assert_eq!(after.ended_at, Some(life.expires_at()));
                prop_assert_eq!(closed.state_at(over_by), life.state_at(over_by));
            } else {
                prop_assert_eq!(closed, life);
            }
        }
        // Those that have expired by the clock come again after their claim, all others at their
        // expiry.
        let later = TaskCheck {
            now: at(11 * SPAN - 1),
            ..check
        };
        let checked = self.store.check_due_tasks(&later).await.map_err(fail)?;
        let again: BTreeSet<TaskId> = checked.open.iter().map(|due| due.life.id).collect();
        let due = |expiry| expiry > check.now && expiry <= later.now;
        let live = left.iter().filter(|task| due(task.life().expires_at()));
        let live: BTreeSet<TaskId> = live.map(|task| task.id).collect();
        prop_assert_eq!(again, live, "not claimed");
        Ok(())
    }

    /// Checks the statements that change rows, last.
    pub(super) async fn changes(&self, now: Timestamp) -> Checked {
        for n in 0..self.world.tasks.len() {
            let id = task_id(n);
            let held = self.store.hold_task(id, now).await.map_err(fail)?.unwrap();
            let heard = held.hear(now, None, ALL).await.map_err(fail)?;
            let open = self.facts.tasks[&id].life.state_at(now) == TaskState::Open;
            let chain = self.facts.chain(id);
            let above = chain.0.iter().all(|life| life.state == TaskState::Open);
            prop_assert_eq!(heard.is_some(), open && above, "heard");
        }
        for (n, spec) in self.world.sessions.iter().enumerate() {
            let session = &self.facts.sessions[&session_id(n)];
            let settled = self.store.activate_session(session.id, HOLDER, now).await;
            let expected = session.state == SessionState::Minting
                && spec.lease.is_some_and(|until| at(until) > now)
                && !session.life().is_expired(now);
            prop_assert_eq!(settled.map_err(fail)?, expected, "settled");
        }
        let pruned = self.store.prune_cutoffs(at(SPAN), now, ALL).await;
        let blocking = self.facts.cutoffs.iter().filter(|one| one.blocks(now));
        let idle = self.facts.cutoffs.len() - blocking.count();
        prop_assert_eq!(pruned.map_err(fail)?, idle as u64, "pruned");
        Ok(())
    }
}
