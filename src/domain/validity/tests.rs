use proptest::prelude::*;
use uuid::Uuid;

use super::super::cutoff::{Block, True};
use super::super::generation_digest::GenerationDigest;
use super::super::kind::MinterKind;
use super::super::revocability::{ExpiresBy, OpenSessions, Revocability};
use super::*;
use crate::domain::cutoff::{Cutoff, Selector};
use crate::domain::revocability::RevocationClass;
use crate::domain::session::Session;
use crate::domain::task::{TaskLife, TaskState};
use crate::ids::{CutoffId, SessionId, TaskId};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(seconds)
}

fn task(n: u128, state: TaskState, deadline: i64, heartbeat: Option<u64>) -> TaskLife {
    TaskLife {
        id: TaskId::from(Uuid::from_u128(n)),
        state,
        opened_at: Timestamp::EPOCH,
        deadline: at(deadline),
        heartbeat_seconds: heartbeat,
        heard_at: at(100),
        ended_at: None,
    }
}

fn session() -> Session {
    let grant = serde_json::json!([{"type": "api", "actions": ["r"], "locations": ["https://o.example/v1"]}]);
    Session {
        id: SessionId::from(Uuid::from_u128(11)),
        task_id: TaskId::from(Uuid::from_u128(1)),
        parent: None,
        decision_id: Uuid::from_u128(12).into(),
        leaf_index: 5,
        attestor: "dev".into(),
        workload: "dev:a".to_owned().try_into().unwrap(),
        instance: None,
        resource: "orders".into(),
        grant: serde_json::from_value(grant).unwrap(),
        audience: "https://o.example".into(),
        minter: MinterKind::Jwt,
        key: None,
        kid: "k1".into(),
        generation: GenerationDigest::new([7; 32]),
        policies: vec!["p1".into()],
        revocability: Revocability {
            class: RevocationClass::Immediate { bound_seconds: 0 },
            open_sessions: OpenSessions::None,
            expires_by: ExpiresBy::Itself,
        },
        issued_at: at(10),
        expires_at: at(500),
        state: SessionState::Active,
        end_reason: None,
        ended_at: None,
        confirmed_at: None,
    }
}

#[test]
fn a_selector_matches_a_session_where_the_session_lists_it() {
    let session = session();
    let tasks = TaskChain(vec![task(1, TaskState::Open, 1_000, None)]);
    let listed = session.selector_subject().selectors();
    let both = [
        Selector::All(True),
        Selector::Workload("dev:a".to_owned().try_into().unwrap()),
        Selector::Workload("dev:b".to_owned().try_into().unwrap()),
        Selector::Resource("orders".into()),
        Selector::Resource("other".into()),
        Selector::Attestor("dev".into()),
        Selector::Attestor("other".into()),
        Selector::Generation(GenerationDigest::new([7; 32])),
        Selector::Generation(GenerationDigest::new([8; 32])),
        Selector::Policy("p1".into()),
        Selector::Policy("p2".into()),
        Selector::SigningKey("k1".into()),
        Selector::SigningKey("k2".into()),
    ];
    let matching = both.iter().filter(|one| one.matches(&session, &tasks));
    assert_eq!(matching.count(), 7);
    for selector in both {
        let matches = selector.matches(&session, &tasks);
        assert_eq!(listed.contains(&selector), matches, "{selector}");
    }
}

fn view(session: Session) -> SessionView {
    SessionView {
        session,
        tasks: TaskChain(vec![task(1, TaskState::Open, 1_000, None)]),
        ancestors: Vec::new(),
        cut_off_at: None,
        is_orphaned: false,
    }
}

fn ancestor(state: SessionState, expires_at: i64) -> Ancestor {
    Ancestor {
        id: SessionId::from(Uuid::from_u128(10)),
        workload: "dev:b".to_owned().try_into().unwrap(),
        life: SessionLife {
            state,
            expires_at: at(expires_at),
            ..session().life()
        },
    }
}

#[test]
fn a_deadline_or_a_silence_ends_a_task_without_anybody_writing_it_down() {
    let task = |heartbeat| task(1, TaskState::Open, 1_000, heartbeat);
    assert_eq!(task(Some(30)).state_at(at(129)), TaskState::Open);
    assert_eq!(task(Some(30)).state_at(at(130)), TaskState::Expired);
    assert_eq!(task(None).state_at(at(999)), TaskState::Open);
    assert_eq!(task(None).state_at(at(1_000)), TaskState::Expired);
}

#[test]
fn a_task_whose_time_is_up_ends_as_expired_alone() {
    let open = task(1, TaskState::Open, 1_000, None);
    assert!(open.can_end_as(TaskState::Completed, at(999)));
    assert!(!open.can_end_as(TaskState::Completed, at(1_000)));
    assert!(open.can_end_as(TaskState::Expired, at(1_000)));
    assert!(!open.can_end_as(TaskState::Expired, at(999)));
    let over = task(1, TaskState::Aborted, 1_000, None);
    assert!(!over.can_end_as(TaskState::Expired, at(1_000)));
}

#[test]
fn a_dead_intermediate_is_walked_through() {
    let chain = TaskChain(vec![
        task(1, TaskState::Open, 1_000, None),
        task(2, TaskState::Aborted, 1_000, None),
        task(3, TaskState::Open, 1_000, None),
    ]);
    assert_eq!(chain.state_at(Timestamp::EPOCH), TaskState::Aborted);
    let ended = chain.ended(Timestamp::EPOCH).unwrap();
    assert_eq!(
        (ended.cause, ended.inherited),
        (EndCause::Task(TaskEnd::Abort), true)
    );
    let nothing = TaskChain(vec![]);
    assert_eq!(nothing.state_at(Timestamp::EPOCH), TaskState::Aborted);
}

#[test]
fn a_chain_with_a_missing_link_or_too_many_is_over() {
    let links = |count: u128| {
        move |id: TaskId| {
            let n = id.uuid().as_u128();
            (n <= count).then(|| TaskLink {
                life: task(n, TaskState::Open, 1_000, None),
                parent: Some(TaskId::from(Uuid::from_u128(n + 1))),
            })
        }
    };
    let first = TaskId::from(Uuid::from_u128(1));
    assert!(TaskChain::of(first, links(3)).0.is_empty(), "no root");
    assert!(TaskChain::of(first, links(u128::MAX)).0.is_empty());
    let whole = |id: TaskId| {
        let link = links(3)(id)?;
        let is_root = id.uuid().as_u128() == 3;
        Some(TaskLink {
            parent: link.parent.filter(|_| !is_root),
            ..link
        })
    };
    assert_eq!(TaskChain::of(first, whole).0.len(), 3);
}

#[test]
fn a_cutoff_counts_before_a_task_and_a_task_before_a_session_above() {
    let mut view = view(session());
    assert!(view.is_valid_at(at(499)));
    assert!(!view.is_valid_at(at(500)));
    view.ancestors = vec![ancestor(SessionState::Active, 300)];
    let status = view.status_at(at(300));
    assert_eq!(status.state, SessionState::Ended);
    assert_eq!(
        (status.end_reason, status.ended_at),
        (Some(EndReason::Expired), Some(at(300)))
    );
    view.tasks.0[0].state = TaskState::Completed;
    view.tasks.0[0].ended_at = Some(at(200));
    let status = view.status_at(at(300));
    assert_eq!(
        (status.end_reason, status.ended_at),
        (Some(EndReason::Completed), Some(at(200)))
    );
    // A replica whose clock is ahead may have committed it.
    view.cut_off_at = Some(at(400));
    let status = view.status_at(at(300));
    assert_eq!(
        (status.state, status.end_reason, status.confirmed_at),
        (SessionState::Ending, Some(EndReason::Revoked), None)
    );
    assert_eq!(view.status_at(at(400)).state, SessionState::Ended);
    let facts = StatusFacts {
        cut_off: Some(CutOff {
            at: at(400),
            inherited: false,
        }),
        ..view.facts()
    };
    assert_eq!(facts.first_end().at, at(200), "the earliest of all");
}

#[test]
fn a_session_above_that_is_not_active_or_not_on_record_revokes() {
    for state in [
        SessionState::Minting,
        SessionState::Ending,
        SessionState::Ended,
    ] {
        let mut view = view(session());
        view.ancestors = vec![ancestor(state, 500)];
        let end = view.inherited_end(at(50)).unwrap();
        assert_eq!((end.reason(), end.at), (EndReason::Revoked, at(50)));
        assert!(!view.is_valid_at(at(50)), "{state:?}");
    }
    let mut orphan = view(session());
    orphan.is_orphaned = true;
    assert_eq!(orphan.inherited_end(at(50)).unwrap().at, at(10));
}

#[test]
fn an_end_is_known_everywhere_at_once_within_the_bound_or_by_the_back_end() {
    let with = |class, minter| {
        let mut session = session();
        session.revocability.class = class;
        session.minter = minter;
        session
    };
    let bounded = RevocationClass::Bounded { bound_seconds: 60 };
    let immediate = RevocationClass::Immediate { bound_seconds: 0 };
    for (session, known_at) in [
        (with(immediate, MinterKind::Jwt), Some(at(100))),
        (with(bounded, MinterKind::Jwt), Some(at(160))),
        (with(bounded, MinterKind::Aws), None),
        (with(RevocationClass::ExpiryOnly, MinterKind::Aws), None),
    ] {
        let mut view = view(session);
        view.cut_off_at = Some(at(100));
        for now in [at(100), at(159), at(160), at(499)] {
            let known = known_at.filter(|known| *known <= now);
            let status = view.status_at(now);
            assert_eq!(status.confirmed_at, known);
            assert_eq!(status.state == SessionState::Ended, known.is_some());
            let everywhere = view.session.life().is_cut_off_everywhere(at(100), now);
            assert_eq!(everywhere, known.is_some());
        }
        assert_eq!(view.status_at(at(500)).state, SessionState::Ended);
    }
}

#[test]
fn the_selectors_of_a_session_match_it_and_only_a_task_and_a_time_are_missing() {
    let session = session();
    let tasks = view(session.clone()).tasks;
    let selectors = session.subject().selectors();
    assert!(selectors.iter().all(|one| one.matches(&session, &tasks)));
    let mut kinds: Vec<&str> = selectors.iter().map(Selector::kind).collect();
    for more in [
        Selector::Task(session.task_id),
        Selector::IssuedAfter(at(9)),
    ] {
        assert!(more.matches(&session, &tasks));
        kinds.push(more.kind());
    }
    kinds.sort_unstable();
    let mut all = Selector::KINDS;
    all.sort_unstable();
    assert_eq!(kinds, all);
}

#[test]
fn a_cutoff_kills_what_has_an_earlier_leaf() {
    let session = session();
    let tasks = view(session.clone()).tasks;
    let cutoff = |index| Cutoff {
        id: CutoffId::from(Uuid::from_u128(7)),
        index,
        selector: Selector::All(True),
        block: Block::No,
        reason: String::new(),
        by: String::new(),
        deny_policy_target: None,
        requested_at: Timestamp::EPOCH,
        committed_at: at(50),
        // Lifting ends the block and revives nothing.
        lifted_index: Some(9),
    };
    assert!(!cutoff(5).kills(&session, &tasks));
    assert!(cutoff(6).kills(&session, &tasks));
    let facts = ValidityFacts {
        cutoffs: vec![cutoff(5), cutoff(6)],
        ..ValidityFacts::default()
    };
    assert_eq!(facts.view(session).cut_off_at, Some(at(50)));
}

proptest! {
    #[test]
    fn once_over_a_chain_stays_over(deadlines in prop::collection::vec(1_i64..1_000, 1..8), now in 0_i64..2_000, later in 0_i64..2_000) {
        let chain = TaskChain(deadlines.iter().map(|d| task(1, TaskState::Open, *d, None)).collect());
        let over = |t| chain.state_at(at(t)) != TaskState::Open;
        if over(now) {
            prop_assert!(over(now + later));
        }
        prop_assert_eq!(over(now), now >= *deadlines.iter().min().unwrap());
    }
}
