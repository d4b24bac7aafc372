use uuid::Uuid;

use super::super::entry::{
    Decide, Decided, EndTasks, Entry, Lift, NewCutoff, OpenPlan, PermitPlan, SweepCause, TaskPermit,
};
use super::*;
use crate::crypto::SealingKeys;
use crate::crypto::random::SystemRandom;
use crate::domain::cutoff::{Block, Cutoff, Selector, True};
use crate::domain::decision::RefusalCode;
use crate::domain::leaf::{Commitment, Event, Leaf, Opening, RecordedDecision};
use crate::domain::limits::MAX_TTL_SECONDS;
use crate::domain::task::{Task, TaskLife, TaskState};
use crate::ids::{CutoffId, DecisionId, TaskId};
use crate::merkle::leaf_hash;
use crate::store::append::LockedTaskFacts;
use crate::store::endings::{EndingSubject, EndingsChain};

fn mac() -> Mac {
    let key = SealingKeys::generate(&SystemRandom::new()).unwrap();
    SealingKeys::parse(&[key]).unwrap().mac("o")
}

fn opening() -> (Commitment, Opening) {
    let opening = Opening {
        salt: [0; 16],
        bytes: Vec::new(),
    };
    (Commitment(String::new()), opening)
}

fn right() -> Reading {
    Reading {
        now: Timestamp::EPOCH,
        doubt: None,
    }
}

fn prepared(entry: Entry) -> Prepared {
    Prepared {
        request: Request {
            entry,
            one_time: OneTimeUse::default(),
            at: Timestamp::EPOCH,
        },
        leaf: Some((Arc::from([]), leaf_hash(&[]))),
    }
}

/// The permit of a root task without a credential.
fn permit(generation: GenerationDigest) -> Prepared {
    let task = Task {
        id: TaskId::from(Uuid::from_u128(3)),
        task_type: "report".into(),
        attestor: "a".into(),
        attestor_digest: [0; 32],
        owner: "a:b".to_owned().try_into().unwrap(),
        owner_instance: None,
        parent: None,
        depth: 1,
        state: TaskState::Open,
        opened_at: Timestamp::EPOCH,
        deadline: Timestamp::EPOCH.plus_seconds(60),
        heartbeat_seconds: None,
        heard_at: Timestamp::EPOCH,
        ended_at: None,
        handle_digest: [0; 32],
        handle_key: None,
        sessions_left: 1,
        leaf_index: 0,
    };
    let permit = TaskPermit {
        open: OpenPlan {
            task: Box::new(task),
            parents: Vec::new(),
            max_open: 10,
            parent: None,
        },
        policies: Vec::new(),
    };
    prepared(Entry::Decide(Box::new(Decide {
        id: DecisionId::from(Uuid::from_u128(1)),
        basis: 10,
        identity: "a:b".to_owned().try_into().unwrap(),
        instance: None,
        attestor: "a".into(),
        generation,
        observed: None,
        input: opening(),
        purpose: None,
        decided: Decided::Permit(PermitPlan::Task(Box::new(permit))),
    })))
}

fn cutoff(block: Block) -> Cutoff {
    Cutoff {
        id: CutoffId::from(Uuid::from_u128(2)),
        index: 0,
        selector: Selector::All(True),
        block,
        reason: String::new(),
        by: String::new(),
        deny_policy_target: None,
        requested_at: Timestamp::EPOCH,
        committed_at: Timestamp::EPOCH,
        lifted_index: None,
    }
}

fn cut(block: Block) -> Prepared {
    prepared(Entry::Cutoff(Box::new(NewCutoff {
        cutoff: cutoff(block),
        reason: opening(),
    })))
}

fn lift(cutoff: &Cutoff) -> Prepared {
    prepared(Entry::Lift(Box::new(Lift {
        cutoff: cutoff.clone(),
        by: String::new(),
    })))
}

#[test]
fn a_permit_behind_a_cutoff_in_one_batch_is_stopped_by_it() {
    let generation = GenerationDigest::new([1; 32]);
    for (block, refused) in [(Block::No, false), (Block::UntilLifted, true)] {
        let cutoffs = Cutoffs::default();
        let (mac, at) = (mac(), (10, Some(generation)));
        let mut batch = Batch::new("o", right(), at, View::default(), &cutoffs, &mac);
        let before = batch.settle(&permit(generation)).unwrap();
        assert!(matches!(before, Outcome::Recorded(_)));
        batch.settle(&cut(block)).unwrap();
        let behind = batch.settle(&permit(generation)).unwrap();
        if refused {
            assert!(matches!(behind, Outcome::Refused(..)), "{behind:?}");
        } else {
            assert!(matches!(behind, Outcome::Stale), "{behind:?}");
        }
    }
}

#[test]
fn a_permit_behind_a_lift_in_one_batch_is_let_in_by_it() {
    let generation = GenerationDigest::new([1; 32]);
    // The cutoff has the index 0, so a permit with the basis 10 was decided after it.
    let standing = cutoff(Block::UntilLifted);
    let mut known = Cutoffs::default();
    known.add(standing.clone());
    let (mac, at) = (mac(), (10, Some(generation)));
    let mut batch = Batch::new("o", right(), at, View::default(), &known, &mac);
    let before = batch.settle(&permit(generation)).unwrap();
    assert!(matches!(before, Outcome::Refused(..)), "{before:?}");
    batch.settle(&lift(&standing)).unwrap();
    let behind = batch.settle(&permit(generation)).unwrap();
    assert!(matches!(behind, Outcome::Recorded(_)), "{behind:?}");
}

#[test]
fn a_permit_that_is_overtaken_leaves_a_refusal_that_names_its_task() {
    let generation = GenerationDigest::new([1; 32]);
    let mut known = Cutoffs::default();
    known.add(cutoff(Block::UntilLifted));
    let (mac, at) = (mac(), (10, Some(generation)));
    let mut batch = Batch::new("o", right(), at, View::default(), &known, &mac);
    let Outcome::Refused(leaf, refusal) = batch.settle(&permit(generation)).unwrap() else {
        panic!("the permit must be recorded as a refusal");
    };
    assert_eq!(refusal.code, RefusalCode::Blocked);
    let leaf: Leaf = serde_json::from_slice(&leaf.body).unwrap();
    let Some(RecordedDecision::Request(decision)) = leaf.event.facets().decision else {
        panic!("{leaf:?}");
    };
    assert_eq!(decision.refusal, Some(RefusalCode::Blocked));
    assert_eq!(decision.task, Some(TaskId::from(Uuid::from_u128(3))));
    assert_eq!(decision.session, None);
    let (writes, _) = batch.into_parts();
    assert!(
        writes.tasks.is_empty(),
        "a refused permit must not open its task"
    );
}

#[test]
fn endings_of_a_batch_are_chained_and_numbered_within_their_leaf() {
    let generation = GenerationDigest::new([1; 32]);
    let cutoffs = Cutoffs::default();
    let (mac, at) = (mac(), (10, Some(generation)));
    let mut batch = Batch::new("o", right(), at, View::default(), &cutoffs, &mac);
    batch.settle(&permit(generation)).unwrap();
    let standing = cutoff(Block::UntilLifted);
    batch.settle(&cut(Block::UntilLifted)).unwrap();
    batch.settle(&lift(&standing)).unwrap();
    let (writes, _) = batch.into_parts();
    let positions: Vec<_> = writes
        .endings
        .iter()
        .map(|ending| (ending.record.position.index, ending.record.position.n))
        .collect();
    assert_eq!(positions, [(11, 0), (12, 0)], "a permit ends nothing");
    let subjects: Vec<_> = writes
        .endings
        .iter()
        .map(|ending| ending.record.subject.clone())
        .collect();
    let all = Selector::All(True);
    assert_eq!(
        subjects,
        [EndingSubject::Cutoff(all.clone()), EndingSubject::Lift(all)]
    );
    assert_eq!(writes.endings[0].before, EndingsChain::EMPTY);
    assert_eq!(writes.endings[1].before, writes.endings[0].after());
}

/// A task that ends after ten seconds without a heartbeat, in a log whose time is 60 s.
fn watched(n: u128, heard_at: u64) -> (TaskId, LockedTaskFacts) {
    let id = TaskId::from(Uuid::from_u128(n));
    let life = TaskLife {
        id,
        state: TaskState::Open,
        opened_at: Timestamp::EPOCH,
        deadline: Timestamp::EPOCH.plus_seconds(1_000),
        heartbeat_seconds: Some(10),
        heard_at: Timestamp::EPOCH.plus_seconds(heard_at),
        ended_at: None,
    };
    let facts = LockedTaskFacts {
        life,
        parent: None,
        depth: 1,
        sessions_left: 1,
        owner: "a:b".to_owned().try_into().unwrap(),
        attestor: "a".into(),
        leaf_index: 0,
    };
    (id, facts)
}

#[test]
fn tasks_that_were_heard_or_may_be_are_not_in_the_leaf_that_ends_the_silent_ones() {
    let (silent, heard, unheld) = (watched(1, 0), watched(2, 51), watched(3, 0));
    let tasks = vec![silent.0, heard.0, unheld.0];
    let view = View {
        held_tasks: [silent.0, heard.0].into(),
        tasks: [silent.clone(), heard, unheld].into(),
        ..View::default()
    };
    let now = Timestamp::EPOCH.plus_seconds(60);
    let clock = Reading { now, doubt: None };
    let end = |by| {
        prepared(Entry::EndTasks(EndTasks {
            tasks: tasks.clone(),
            cause: SweepCause::ExpiredBy(by),
        }))
    };
    let (cutoffs, mac) = (Cutoffs::default(), mac());
    let mut batch = Batch::new("o", clock, (10, None), view, &cutoffs, &mac);
    let early = batch
        .settle(&end(Timestamp::EPOCH.plus_seconds(9)))
        .unwrap();
    assert!(matches!(early, Outcome::Unchanged), "{early:?}");
    let Outcome::Recorded(leaf) = batch.settle(&end(now)).unwrap() else {
        panic!("a silent task must be ended");
    };
    let leaf = Leaf::from_bytes(&leaf.body).unwrap();
    let Event::TasksEnded { tasks: ended, .. } = leaf.event else {
        panic!("{leaf:?}");
    };
    assert_eq!(ended, [silent.0]);
    let again = batch.settle(&end(now)).unwrap();
    assert!(matches!(again, Outcome::Unchanged), "{again:?}");
    let (writes, _) = batch.into_parts();
    let written: Vec<_> = writes.task_changes.keys().copied().collect();
    assert_eq!(written, [silent.0]);
}

/// The time up to which the ending of a task matters, in seconds. The task is ended at 1,000 s, with
/// this deadline, in a log whose newest leaf has this time.
fn matters_until(deadline: u64, newest_at: Option<u64>) -> u64 {
    let (id, mut facts) = watched(1, 0);
    facts.life.heartbeat_seconds = None;
    facts.life.deadline = Timestamp::EPOCH.plus_seconds(deadline);
    let view = View {
        tasks: [(id, facts)].into(),
        newest_at: newest_at.map(|at| Timestamp::EPOCH.plus_seconds(at)),
        ..View::default()
    };
    let clock = Reading {
        now: Timestamp::EPOCH.plus_seconds(1_000),
        doubt: None,
    };
    let (cutoffs, mac) = (Cutoffs::default(), mac());
    let mut state = LockedState::new(clock, (10, None), view, &cutoffs, &mac);
    assert!(state.end_task(id, TaskState::Completed));
    let (writes, _) = state.into_parts();
    let [ending] = &writes.endings[..] else {
        panic!("{:?}", writes.endings);
    };
    Timestamp::EPOCH.seconds_until(ending.record.matters_until)
}

#[test]
fn the_end_of_a_task_matters_no_longer_than_its_sessions_live() {
    assert_eq!(matters_until(2_000, None), 2_000);
    let week = 604_800;
    assert_eq!(matters_until(week, None), 1_000 + MAX_TTL_SECONDS);
    assert_eq!(matters_until(week, Some(900)), 1_000 + MAX_TTL_SECONDS);
    // The clock of that leaf was ahead.
    assert_eq!(matters_until(week, Some(1_004)), 1_004 + MAX_TTL_SECONDS);
}
