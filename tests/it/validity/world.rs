//! Random worlds of tasks, sessions and cutoffs, and their verdicts by the domain.

use serde_json::json;
use taskpass::domain::cutoff::True;
use taskpass::domain::revocability::{ExpiresBy, OpenSessions, Revocability};
use taskpass::domain::task::Task;
use taskpass::store::append::MintLease;

use super::*;

fn any_task() -> impl Strategy<Value = TaskSpec> {
    let end = proptest::option::weighted(0.4, (0..3_usize, 0..SPAN));
    let parent = proptest::option::weighted(0.6, any::<usize>());
    let silence = proptest::option::weighted(0.4, 1..12_u64);
    (parent, 0..10_i64, 1..25_i64, silence, 0..20_i64, end).prop_map(
        |(parent, opened, life, silence, heard, end)| TaskSpec {
            parent,
            opened,
            life,
            silence,
            heard,
            end,
        },
    )
}

fn any_session() -> impl Strategy<Value = SessionSpec> {
    let parent = proptest::option::weighted(0.7, any::<usize>());
    let what = any::<[usize; 7]>();
    let lease = proptest::option::weighted(0.2, 0..SPAN);
    let end = proptest::option::weighted(0.4, (any::<bool>(), 0..5_usize, 0..SPAN));
    (
        any::<usize>(),
        parent,
        what,
        0..10_i64,
        1..25_i64,
        0..20_u64,
        lease,
        end,
    )
        .prop_map(
            |(task, parent, what, issued, life, leaf, lease, end)| SessionSpec {
                task,
                parent,
                what,
                issued,
                life,
                leaf,
                lease,
                end,
            },
        )
}

fn any_cutoff() -> impl Strategy<Value = CutSpec> {
    let block = prop_oneof![
        Just(Block::No),
        Just(Block::UntilLifted),
        (0..SPAN).prop_map(|until| Block::Until(at(until))),
    ];
    (
        0..Selector::KINDS.len(),
        any::<usize>(),
        block,
        0..3_u64,
        0..SPAN,
        any::<bool>(),
    )
        .prop_map(|(kind, pick, block, gap, committed, lifted)| CutSpec {
            kind,
            pick,
            block,
            gap,
            committed,
            lifted,
        })
}

pub(super) fn any_world() -> impl Strategy<Value = World> {
    let count = (
        0..Selector::KINDS.len(),
        any::<usize>(),
        0..22_u64,
        0..SPAN,
        0..SPAN,
    );
    (
        proptest::collection::vec(any_task(), 1..7),
        proptest::collection::vec(any_session(), 1..14),
        proptest::collection::vec(any_cutoff(), 0..6),
        proptest::collection::vec(0..SPAN, 3),
        proptest::collection::vec(count, 12),
    )
        .prop_map(|(tasks, sessions, cutoffs, times, counts)| World {
            tasks,
            sessions,
            cutoffs,
            times,
            counts,
        })
}

impl World {
    pub(super) fn parent_of(&self, task: usize) -> Option<usize> {
        let pick = self.tasks[task].parent.filter(|_| task > 0)?;
        Some(pick % task)
    }

    pub(super) fn depth(&self, task: usize) -> u8 {
        self.parent_of(task)
            .map_or(1, |parent| self.depth(parent) + 1)
    }

    pub(super) fn task_of(&self, session: usize) -> usize {
        self.sessions[session].task % self.tasks.len()
    }

    /// The session that this one is derived from: one of the parent task, as the broker makes them.
    pub(super) fn derived_from(&self, session: usize) -> Option<usize> {
        let pick = self.sessions[session].parent?;
        let above = self.parent_of(self.task_of(session))?;
        let covering: Vec<usize> = (0..session)
            .filter(|other| self.task_of(*other) == above)
            .collect();
        (!covering.is_empty()).then(|| one(&covering, pick))
    }

    pub(super) fn task(&self, n: usize) -> Task {
        let spec = &self.tasks[n];
        Task {
            id: task_id(n),
            task_type: "job".into(),
            attestor: one(&ATTESTORS, n).into(),
            owner: one(&WORKLOADS, n).to_owned().try_into().unwrap(),
            owner_instance: None,
            parent: self.parent_of(n).map(task_id),
            depth: self.depth(n),
            state: TaskState::Open,
            opened_at: at(spec.opened),
            deadline: at(spec.opened + spec.life),
            heartbeat_seconds: spec.silence,
            heard_at: at(spec.opened),
            ended_at: None,
            handle_digest: [1; 32],
            handle_key: None,
            attestor_digest: [7; 32],
            sessions_left: 5,
            leaf_index: 0,
        }
    }

    pub(super) fn session(&self, n: usize) -> (Session, Option<MintLease>) {
        let spec = &self.sessions[n];
        let [
            workload,
            attestor,
            resource,
            key,
            generation,
            policy,
            minter,
        ] = spec.what;
        let (minter, class) = one(&MINTERS, minter);
        let session = Session {
            id: session_id(n),
            task_id: task_id(self.task_of(n)),
            parent: self.derived_from(n).map(session_id),
            decision_id: Uuid::from_u128(3_000 + n as u128).into(),
            leaf_index: spec.leaf,
            attestor: one(&ATTESTORS, attestor).into(),
            workload: one(&WORKLOADS, workload).to_owned().try_into().unwrap(),
            instance: None,
            resource: one(&RESOURCES, resource).into(),
            grant: serde_json::from_value(json!([
                {"type": "api", "actions": ["r"], "locations": ["https://o.example/v1"]}
            ]))
            .unwrap(),
            audience: one(&AUDIENCES, resource / 2).into(),
            minter,
            key: None,
            kid: one(&KEYS, key).into(),
            generation: digest(generation),
            policies: vec!["always".into(), one(&POLICIES, policy).into()],
            revocability: Revocability {
                class,
                open_sessions: OpenSessions::None,
                expires_by: ExpiresBy::Itself,
            },
            issued_at: at(spec.issued),
            expires_at: at(spec.issued + spec.life),
            state: match spec.lease {
                Some(_) => SessionState::Minting,
                None => SessionState::Active,
            },
            end_reason: None,
            ended_at: None,
            confirmed_at: None,
        };
        let lease = spec.lease.map(|until| MintLease {
            until: at(until),
            holder: HOLDER.into(),
        });
        (session, lease)
    }

    pub(super) fn selector(&self, kind: usize, pick: usize) -> Selector {
        match kind {
            0 => Selector::All(True),
            1 => Selector::Workload(one(&WORKLOADS, pick).to_owned().try_into().unwrap()),
            // The index may name a task that does not exist.
            2 => Selector::Task(task_id(pick % (self.tasks.len() + 1))),
            3 => Selector::Resource(one(&RESOURCES, pick).into()),
            4 => Selector::Attestor(one(&ATTESTORS, pick).into()),
            5 => Selector::Generation(digest(pick)),
            6 => Selector::Policy(one(&POLICIES, pick).into()),
            7 => Selector::SigningKey(one(&KEYS, pick).into()),
            _ => Selector::IssuedAfter(at(i64::try_from(pick % 12).unwrap())),
        }
    }

    pub(super) fn cutoffs(&self) -> Vec<Cutoff> {
        let mut index = 0;
        let mut all = Vec::new();
        for (n, spec) in self.cutoffs.iter().enumerate() {
            index += 1 + spec.gap;
            all.push(Cutoff {
                id: CutoffId::from(Uuid::from_u128(4_000 + n as u128)),
                index,
                selector: self.selector(spec.kind, spec.pick),
                block: spec.block,
                deny_policy_target: None,
                reason: "why".into(),
                by: "admin".into(),
                requested_at: at(spec.committed),
                committed_at: at(spec.committed),
                lifted_index: None,
            });
        }
        all
    }
}
