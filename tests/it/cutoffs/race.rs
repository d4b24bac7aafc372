//! A cutoff and an entry of a caller that it blocks, in one batch, in both orders: an entry before
//! the cutoff is recorded, an entry after it is refused.

use futures_util::FutureExt;
use serde_json::json;
use sqlx::{Connection, Executor, SqliteConnection};
use taskpass::broker::issuance::Issued;
use taskpass::broker::revocation::BlockRequest;
use taskpass::clock::Timestamp;
use taskpass::domain::cutoff::{Block, Cutoff, Selector, True};
use taskpass::domain::decision::RefusalCode;
use taskpass::domain::generation_digest::GenerationDigest;
use taskpass::domain::leaf::{Commitment, Opening};
use taskpass::domain::session::{EndReason, SessionState};
use taskpass::domain::task::{Task, TaskEnd, TaskState};
use taskpass::domain::workload::OneTime;
use taskpass::ids::{CutoffId, DecisionId, SessionId, TaskId};
use taskpass::ledger::Appended;
use taskpass::ledger::entry::{
    Activate, AdminBindingChange, Decide, Decided, Delegate, EndSession, EndTask, Entry, KeyChange,
    Lift, NewCutoff, OneTimeUse, OpenPlan, PermitPlan, Request, RequestCaller, Resealed,
    TaskPermit, WorkloadKeyChange,
};
use taskpass::store::Store;
use taskpass::store::keys::{SigningKeyRow, keys_basis};
use uuid::Uuid;

use super::{WORKLOAD, block, identity, policies, revocation, selectors};
use crate::support::rig::{Kind, Rig, ask};
use crate::support::{SOON, random_bytes, until};

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).policies(&policies()).start().await
}

fn uuid() -> Uuid {
    Uuid::from_slice(&random_bytes(16)).unwrap()
}

fn opening() -> (Commitment, Opening) {
    let opening = Opening {
        salt: [0; 16],
        bytes: b"{}".to_vec(),
    };
    taskpass::broker::core::commit(opening.salt, opening.bytes)
}

/// The kinds of entry that a caller causes, by name.
const KINDS: &[&str] = &[
    "decide",
    "end_task",
    "delegate",
    "end_session",
    "cutoff",
    "lift",
    "activate",
    "change_keys",
    "resealed",
    "workload_key",
    "admin_binding",
    "consume",
];

/// The name of an entry's kind; `None` for kinds that no caller causes. A new kind does not compile
/// until it is added here.
fn kind_of(entry: &Entry) -> Option<&'static str> {
    Some(match entry {
        Entry::Decide(_) => "decide",
        Entry::EndTask(_) => "end_task",
        Entry::Delegate(_) => "delegate",
        Entry::EndSession(_) => "end_session",
        Entry::Cutoff(_) => "cutoff",
        Entry::Lift(_) => "lift",
        Entry::Activate(_) => "activate",
        Entry::ChangeKeys(_) => "change_keys",
        Entry::Resealed(_) => "resealed",
        Entry::WorkloadKey(_) => "workload_key",
        Entry::AdminBinding(_) => "admin_binding",
        Entry::Consume => "consume",
        // While the clock is in doubt, no cutoff can be recorded; otherwise, no time is accepted.
        Entry::AcceptTime(_)
        | Entry::ConfirmEnd(_)
        | Entry::EndTasks(_)
        | Entry::DenialsOmitted(_)
        | Entry::Genesis(_) => return None,
    })
}

async fn decides(store: &Store) -> GenerationDigest {
    let active = store.active_generation().await.unwrap().unwrap();
    active.sealed.claimed()
}

/// A request of the workload for an entry of this kind.
async fn entry(rig: &Rig, kind: &str, issued: &Issued) -> Entry {
    let now = rig.now();
    let by = identity(WORKLOAD).to_string();
    let store = rig.broker.core.store();
    let made = match kind {
        "decide" => Entry::Decide(Box::new(Decide {
            id: DecisionId::from(uuid()),
            basis: rig.broker.core.ledger().basis(),
            identity: identity(WORKLOAD),
            instance: None,
            attestor: "dev".into(),
            generation: decides(store).await,
            observed: None,
            input: opening(),
            purpose: None,
            decided: Decided::Permit(PermitPlan::Task(Box::new(new_task(now)))),
        })),
        "end_task" => Entry::EndTask(EndTask {
            task: issued.task.id,
            end: TaskEnd::Complete,
            by,
            owner: identity(WORKLOAD),
        }),
        "delegate" => Entry::Delegate(Delegate {
            digest: random_bytes(32).try_into().unwrap(),
            task: issued.task.id,
            child: identity("agent:child"),
            sessions: 1,
            expires_at: now.plus_seconds(60),
            owner: identity(WORKLOAD),
        }),
        "end_session" => Entry::EndSession(EndSession {
            session: issued.session.id,
            state: SessionState::Ended,
            reason: EndReason::Revoked,
            never_made: false,
            by,
            owner: identity(WORKLOAD),
        }),
        "cutoff" => cutoff(Selector::Resource("archive-api".into()), Block::No, now),
        "lift" => {
            let cut = revocation(
                Selector::Resource("archive-api".into()),
                BlockRequest::Seconds(9),
            );
            let cut = rig
                .broker
                .revocation
                .revoke_many(&rig.admin(), cut)
                .await
                .unwrap();
            Entry::Lift(Box::new(Lift {
                cutoff: cut.cutoff.unwrap(),
                by,
            }))
        }
        "activate" => {
            let digest = GenerationDigest::new(random_bytes(32).try_into().unwrap());
            let endpoints = rig.broker.generations.endpoints_digest();
            Entry::Activate(Activate {
                digest,
                document: b"{}".as_slice().into(),
                endpoints,
                by,
            })
        }
        "change_keys" => added_key(store, by).await,
        "resealed" => Entry::Resealed(Resealed { rows: 1, by }),
        "workload_key" => Entry::WorkloadKey(WorkloadKeyChange {
            attestor: "keys".into(),
            workload: "batch".into(),
            thumbprint: uuid().to_string(),
            jwk: Some("{}".into()),
            by,
        }),
        "admin_binding" => Entry::AdminBinding(AdminBindingChange {
            identity: identity("agent:child"),
            role: "admin".into(),
            bound: true,
            by,
        }),
        "consume" => Entry::Consume,
        other => panic!("an entry of kind {other}"),
    };
    assert_eq!(kind_of(&made), Some(kind));
    made
}

/// The permit of a new task.
fn new_task(now: Timestamp) -> TaskPermit {
    let task = Task {
        id: TaskId::from(uuid()),
        task_type: "report".into(),
        attestor: "dev".into(),
        attestor_digest: [0; 32],
        owner: identity(WORKLOAD),
        owner_instance: None,
        parent: None,
        depth: 1,
        state: TaskState::Open,
        opened_at: now,
        deadline: now.plus_seconds(60),
        heartbeat_seconds: None,
        heard_at: now,
        ended_at: None,
        handle_digest: random_bytes(32).try_into().unwrap(),
        handle_key: None,
        sessions_left: 1,
        leaf_index: 0,
    };
    TaskPermit {
        open: OpenPlan {
            task: Box::new(task),
            parents: Vec::new(),
            max_open: 100,
            parent: None,
        },
        policies: vec!["reports".into()],
    }
}

/// Another signing key for credentials.
async fn added_key(store: &Store, by: String) -> Entry {
    let rows = store.signing_keys().await.unwrap();
    let row = rows.iter().find(|row| row.purpose == "access_token");
    let row = SigningKeyRow {
        kid: uuid().to_string(),
        ..row.unwrap().clone()
    };
    Entry::ChangeKeys(Box::new(KeyChange {
        basis: keys_basis(&rows, &row.purpose),
        row,
        retired: Vec::new(),
        change: "added",
        public: None,
        by,
    }))
}

fn cutoff(selector: Selector, block: Block, now: Timestamp) -> Entry {
    let cutoff = Cutoff {
        id: CutoffId::from(uuid()),
        index: 0,
        selector,
        block,
        deny_policy_target: None,
        reason: "test".into(),
        by: "test".into(),
        requested_at: now,
        committed_at: now,
        lifted_index: None,
    };
    Entry::Cutoff(Box::new(NewCutoff {
        cutoff,
        reason: opening(),
    }))
}

fn evidence(rig: &Rig) -> OneTime {
    OneTime {
        key: random_bytes(32).try_into().unwrap(),
        binding: None,
        must_be_new: false,
        issued_at: rig.now(),
        expires_at: rig.now().plus_seconds(60),
    }
}

/// Attributes the entry to the workload, with evidence that the entry uses up.
fn of_workload(rig: &Rig, entry: Entry, evidence: OneTime) -> Request {
    let by = RequestCaller {
        identity: identity(WORKLOAD),
        attestor: "dev".into(),
        task: None,
        act: "the act",
        may_lift: false,
    };
    Request {
        entry,
        one_time: OneTimeUse {
            ids: vec![evidence],
            by: Some(by),
            ..OneTimeUse::default()
        },
        at: rig.now(),
    }
}

fn of_nobody(rig: &Rig, entry: Entry) -> Request {
    Request {
        entry,
        one_time: OneTimeUse::default(),
        at: rig.now(),
    }
}

/// Keeps every batch from the store until it is dropped.
enum Held {
    Sqlite(SqliteConnection),
    Postgres(sqlx::PgConnection),
}

impl Held {
    async fn hold(rig: &Rig) -> Self {
        if rig.broker.core.store().kind() == "postgres" {
            let mut other = rig.database().connect().await;
            other.execute("BEGIN").await.unwrap();
            let lock = "SELECT id FROM ledger_lock WHERE id = 1 FOR UPDATE";
            other.execute(lock).await.unwrap();
            return Self::Postgres(other);
        }
        let file = rig.directory().join("data/taskpass.sqlite");
        let url = format!("sqlite://{}", file.display());
        let mut other = SqliteConnection::connect(&url).await.unwrap();
        other
            .execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE")
            .await
            .unwrap();
        Self::Sqlite(other)
    }

    async fn release(self) {
        match self {
            Self::Sqlite(mut other) => other.execute("ROLLBACK").await.map(drop).unwrap(),
            Self::Postgres(mut other) => other.execute("ROLLBACK").await.map(drop).unwrap(),
        }
    }
}

/// Appends two entries in one batch, in this order.
async fn in_one_batch(rig: &Rig, first: Request, second: Request) -> (Appended, Appended) {
    let ledger = rig.broker.core.ledger();
    let held = Held::hold(rig).await;
    // This batch waits for the store, so the next two entries share the following batch.
    let mut waits = Box::pin(ledger.append(of_nobody(rig, Entry::Consume)));
    assert!((&mut waits).now_or_never().is_none());
    until("the previous batch has left the queue", SOON, async || {
        let metrics = rig.broker.core.metrics().render();
        metrics
            .lines()
            .any(|line| line == "taskpass_ledger_queue_depth 0")
    })
    .await;
    let (mut first, mut second) = (
        Box::pin(ledger.append(first)),
        Box::pin(ledger.append(second)),
    );
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    held.release().await;
    let (before, first, second) = tokio::join!(waits, first, second);
    before.unwrap();
    (first.unwrap(), second.unwrap())
}

fn is_blocked(appended: &Appended) -> bool {
    match appended {
        Appended::Blocked(_) => true,
        Appended::Refused(_, refusal) => refusal.code == RefusalCode::Blocked,
        _ => false,
    }
}

on_both_stores! {
    fn what_is_queued_behind_a_cutoff_in_one_batch_is_refused;
    fn a_cutoff_overtakes_decisions_in_one_batch_and_no_earlier_act;
    fn of_two_admins_who_cut_each_other_off_in_one_batch_the_first_prevails;
    fn whom_a_lift_in_the_same_batch_frees_goes_on;
}

async fn what_is_queued_behind_a_cutoff_in_one_batch_is_refused(rig: Rig) {
    for (n, kind) in KINDS.iter().enumerate() {
        let selector = selectors(WORKLOAD)[n % 3].clone();
        let issued = rig.issue(WORKLOAD, ask(&["orders:read"])).await.unwrap();
        let (wanted, used) = (entry(&rig, kind, &issued).await, evidence(&rig));
        let before = rig.rows().await;
        let cut = cutoff(
            selector,
            Block::Until(rig.now().plus_seconds(60)),
            rig.now(),
        );
        let cut = of_nobody(&rig, cut);
        let wanted = of_workload(&rig, wanted, used);
        let (cut, refused) = in_one_batch(&rig, cut, wanted.clone()).await;
        assert!(matches!(cut, Appended::Recorded(_)), "{kind}: {cut:?}");
        assert!(is_blocked(&refused), "{kind}: {refused:?}");
        let after = rig.rows().await;
        for table in [
            "task",
            "session",
            "delegation",
            "activation",
            "signing_key",
            "workload_key",
            "admin_binding",
        ] {
            assert_eq!(after[table], before[table], "{kind} changed {table}");
        }
        assert_eq!(after["cutoff"].len(), before["cutoff"].len() + 1, "{kind}");
        let again = rig.broker.core.ledger().append(wanted).await.unwrap();
        assert!(
            matches!(again, Appended::Replayed(_)),
            "{kind}: its evidence is used up: {again:?}"
        );
        rig.clock.advance(60);
    }
}

async fn a_cutoff_overtakes_decisions_in_one_batch_and_no_earlier_act(rig: Rig) {
    for kind in KINDS {
        let issued = rig.issue(WORKLOAD, ask(&["orders:read"])).await.unwrap();
        let wanted = entry(&rig, kind, &issued).await;
        let cut = cutoff(
            Selector::All(True),
            Block::Until(rig.now().plus_seconds(60)),
            rig.now(),
        );
        let wanted = of_workload(&rig, wanted, evidence(&rig));
        let (stands, cut) = in_one_batch(&rig, wanted, of_nobody(&rig, cut)).await;
        let is_act = !["consume", "decide", "delegate"].contains(kind);
        assert_eq!(
            matches!(stands, Appended::Recorded(_)),
            is_act,
            "{kind}: {stands:?}"
        );
        assert_eq!(is_blocked(&stands), !is_act, "{kind}: {stands:?}");
        assert!(matches!(cut, Appended::Recorded(_)), "{kind}: {cut:?}");
        rig.clock.advance(60);
        if *kind == "activate" {
            rig.broker
                .administration
                .activate_own("test", rig.generation())
                .await
                .unwrap();
        }
    }
}

async fn of_two_admins_who_cut_each_other_off_in_one_batch_the_first_prevails(rig: Rig) {
    let by = |rig: &Rig, sub: &str, entry: Entry| {
        let mut request = of_workload(rig, entry, evidence(rig));
        request.one_time.by.as_mut().unwrap().identity = identity(sub);
        request
    };
    let of = |sub: &str| {
        cutoff(
            Selector::Workload(identity(sub)),
            Block::UntilLifted,
            rig.now(),
        )
    };
    let first = by(&rig, WORKLOAD, of("agent:orders"));
    let second = by(&rig, "agent:orders", of(WORKLOAD));
    let (first, second) = in_one_batch(&rig, first, second).await;
    assert!(matches!(first, Appended::Recorded(_)), "{first:?}");
    assert!(is_blocked(&second), "{second:?}");
    rig.issue(WORKLOAD, ask(&["orders:read"])).await.unwrap();
}

async fn whom_a_lift_in_the_same_batch_frees_goes_on(rig: Rig) {
    let id = block(&rig, selectors(WORKLOAD)[0].clone()).await;
    let cut = rig.broker.core.store().cutoff(id).await.unwrap().unwrap();
    let lift = Entry::Lift(Box::new(Lift {
        cutoff: cut,
        by: "test".into(),
    }));
    let ended = Entry::EndSession(EndSession {
        session: SessionId::from(uuid()),
        state: SessionState::Ended,
        reason: EndReason::Revoked,
        never_made: false,
        by: "test".into(),
        owner: identity(WORKLOAD),
    });
    let wanted = of_workload(&rig, ended, evidence(&rig));
    let (lifted, freed) = in_one_batch(&rig, of_nobody(&rig, lift), wanted).await;
    assert!(matches!(lifted, Appended::Recorded(_)), "{lifted:?}");
    assert!(matches!(freed, Appended::Unchanged), "{freed:?}");
    let token = rig.token(WORKLOAD, json!({}));
    rig.broker
        .tasks
        .list_tasks(
            &crate::support::rig::bearer(&token),
            taskpass::store::tasks::TaskFilter::default(),
        )
        .await
        .unwrap();
}
