//! Mints at a back end that is slow, fails, does not answer, or answers too late, and the state of
//! the credential.
//!
//! A test double implements the minter's interface. Like a cloud, it remembers the credentials it
//! made and whether each is valid. Every test checks that the back end has no valid credential that
//! the broker does not record as valid.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use secrecy::SecretString;
use serde_json::json;
use taskpass::broker::BrokerError;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest, Revoked};
use taskpass::clock::Timestamp;
use taskpass::domain::catalog::Resource;
use taskpass::domain::cutoff::{Selector, True};
use taskpass::domain::kind::MinterKind;
use taskpass::domain::permit::Permit;
use taskpass::domain::request::{CredentialRequest, TaskSelector};
use taskpass::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use taskpass::domain::session::{EndReason, Session, SessionState};
use taskpass::domain::task::TaskEnd;
use taskpass::domain::validity::SessionView;
use taskpass::ids::SessionId;
use taskpass::mint::{Credential, EndOutcome, MintError, MintMode, Minter};
use taskpass::sweep;
use tokio::sync::Semaphore;

use crate::support::SOON;
use crate::support::rig::{Kind, POLICIES, Rig, ask, job};

const LEASE_SECONDS: u64 = 20;

/// The back end's behaviour for one mint.
#[derive(Clone, Copy, Debug)]
enum Mint {
    Make,
    Refuse,
    /// Makes the credential, but its answer is lost.
    MakeUnheard,
    /// Waits for the test's signal, then makes the credential.
    Late,
}

struct BackEnd {
    mints: Mutex<VecDeque<Mint>>,
    ends: Mutex<VecDeque<EndOutcome>>,
    /// The credentials it made, and whether each is still valid.
    made: Mutex<BTreeMap<SessionId, bool>>,
    asked_to_end: Mutex<Vec<SessionId>>,
    started: Semaphore,
    gate: Semaphore,
}

impl BackEnd {
    fn new(
        mints: impl IntoIterator<Item = Mint>,
        ends: impl IntoIterator<Item = EndOutcome>,
    ) -> Arc<Self> {
        Arc::new(Self {
            mints: Mutex::new(mints.into_iter().collect()),
            ends: Mutex::new(ends.into_iter().collect()),
            made: Mutex::default(),
            asked_to_end: Mutex::default(),
            started: Semaphore::new(0),
            gate: Semaphore::new(0),
        })
    }

    fn alive(&self) -> usize {
        let made = self.made.lock().unwrap();
        made.values().filter(|alive| **alive).count()
    }

    fn made(&self) -> usize {
        self.made.lock().unwrap().len()
    }

    fn asked_to_end(&self) -> usize {
        self.asked_to_end.lock().unwrap().len()
    }

    /// Waits until a mint has begun.
    async fn begun(&self) {
        let begun = tokio::time::timeout(SOON, self.started.acquire()).await;
        begun.unwrap().unwrap().forget();
    }
}

impl Minter for BackEnd {
    fn kind(&self) -> MinterKind {
        MinterKind::Aws
    }

    fn mode(&self) -> MintMode {
        MintMode::External {
            lease_seconds: LEASE_SECONDS,
        }
    }

    fn revocability(&self, _: &Resource) -> Revocability {
        Revocability {
            class: RevocationClass::Bounded { bound_seconds: 60 },
            open_sessions: OpenSessions::Ended,
            expires_by: ExpiresBy::Broker,
        }
    }

    fn signing_key(&self, _: &Resource, _: Timestamp) -> Option<String> {
        Some("elsewhere".into())
    }

    fn mint<'a>(&'a self, permit: &'a Permit) -> BoxFuture<'a, Result<Credential, MintError>> {
        async move {
            let mint = self.mints.lock().unwrap().pop_front().unwrap_or(Mint::Make);
            self.started.add_permits(1);
            match mint {
                Mint::Refuse => return Err(MintError::Refused("no".into())),
                Mint::Late => self.gate.acquire().await.unwrap().forget(),
                Mint::Make | Mint::MakeUnheard => {}
            }
            self.made.lock().unwrap().insert(permit.session().id, true);
            if matches!(mint, Mint::MakeUnheard) {
                return Err(MintError::Unknown("timed out".into()));
            }
            Ok(Credential::Jwt {
                access_token: SecretString::from("made elsewhere"),
                token_type: "Bearer",
                expires_in: 60,
            })
        }
        .boxed()
    }

    fn end<'a>(&'a self, session: &'a Session, _: Timestamp) -> BoxFuture<'a, EndOutcome> {
        async move {
            self.asked_to_end.lock().unwrap().push(session.id);
            let planned = self.ends.lock().unwrap().pop_front();
            let outcome = planned.unwrap_or(EndOutcome::Confirmed);
            if outcome == EndOutcome::Confirmed
                && let Some(alive) = self.made.lock().unwrap().get_mut(&session.id)
            {
                *alive = false;
            }
            outcome
        }
        .boxed()
    }
}

async fn rig(kind: Kind, back_end: &Arc<BackEnd>) -> Rig {
    let minter: Arc<dyn Minter> = Arc::clone(back_end) as _;
    let role = json!({
        "name": "role", "kind": "aws", "owner": "data", "actions": ["s3:GetObject"],
        "locations": ["arn:aws:s3:::reports/*"],
        "aws": {
            "role_arn": "arn:aws:iam::123456789012:role/reports", "mode": "assume_role",
            "region": "eu-central-1"
        }
    });
    let policies = format!("{POLICIES}{POLICY}");
    Rig::on(kind)
        .policies(&policies)
        .minter(minter)
        .resources([role])
        .start()
        .await
}

const POLICY: &str = r#"
@id("role") @description("orders reads") @max_ttl("120")
permit (principal == Workload::dev::"dev:agent%3Aorders", action == Action::"s3:GetObject", resource);
"#;

fn reading() -> CredentialRequest {
    CredentialRequest {
        task: TaskSelector::Open(job()),
        resource: "role".into(),
        grant: serde_json::from_value(json!([{"type": "aws", "actions": ["s3:GetObject"]}]))
            .unwrap(),
        ..ask(&["orders:read"])
    }
}

async fn view(rig: &Rig, id: SessionId) -> SessionView {
    let view = rig.broker.core.store().session_view(id).await.unwrap();
    view.unwrap()
}

/// The only session in the store.
async fn only_session(rig: &Rig) -> SessionView {
    let filter = taskpass::store::sessions::SessionFilter {
        limit: 10,
        ..Default::default()
    };
    let mut all = rig
        .broker
        .core
        .store()
        .list_sessions(&filter)
        .await
        .unwrap();
    assert_eq!(all.len(), 1);
    all.pop().unwrap()
}

async fn sweep(rig: &Rig) {
    sweep::sweep(&rig.broker, rig.now()).await;
}

fn begin(kind: Kind) -> std::future::Ready<Kind> {
    std::future::ready(kind)
}

on_both_stores! {
    fn an_ending_is_open_until_the_back_end_confirms_it;
    fn a_definite_refusal_leaves_nothing_to_end;
    fn a_mint_of_unknown_outcome_is_ended_under_its_name;
    fn what_was_revoked_while_it_was_made_is_never_released;
    fn a_mint_that_outlives_its_lease_is_ended_whenever_it_arrives;
    fn a_mass_revocation_counts_what_is_confirmed;
    fn what_cannot_be_ended_is_said_to_live_until_it_expires;
}

async fn an_ending_is_open_until_the_back_end_confirms_it(kind: Kind) {
    let back_end = BackEnd::new([], [EndOutcome::Pending, EndOutcome::Pending]);
    let rig = rig(kind, &back_end).await;
    let issued = rig.issue("agent:orders", reading()).await.unwrap();
    assert_eq!(issued.session.state, SessionState::Active);
    assert_eq!(issued.session.minter, MinterKind::Aws);
    assert!(view(&rig, issued.session.id).await.is_valid_at(rig.now()));

    rig.end(&issued, TaskEnd::Complete).await.unwrap();
    let status = view(&rig, issued.session.id).await.status_at(rig.now());
    assert_eq!(
        status.state,
        SessionState::Ending,
        "ended here, and not confirmed by the back end"
    );
    assert_eq!(status.confirmed_at, None);

    for _ in 0..2 {
        sweep(&rig).await;
        let status = view(&rig, issued.session.id).await.status_at(rig.now());
        assert_eq!(
            (status.state, status.confirmed_at),
            (SessionState::Ending, None)
        );
        assert_eq!(back_end.alive(), 1);
        rig.clock.advance(10);
    }
    sweep(&rig).await;
    let session = view(&rig, issued.session.id).await.session;
    assert_eq!(session.state, SessionState::Ended);
    assert_eq!(session.end_reason, Some(EndReason::Completed));
    assert_eq!(session.confirmed_at, Some(rig.now()));
    assert_eq!((back_end.alive(), back_end.asked_to_end()), (0, 3));

    sweep(&rig).await;
    assert_eq!(
        back_end.asked_to_end(),
        3,
        "a confirmed end is not requested again"
    );
}

async fn a_definite_refusal_leaves_nothing_to_end(kind: Kind) {
    let back_end = BackEnd::new([Mint::Refuse], []);
    let rig = rig(kind, &back_end).await;
    let refused = rig.issue("agent:orders", reading()).await;
    assert!(matches!(refused, Err(BrokerError::FailClosed(_))));
    let session = only_session(&rig).await.session;
    assert_eq!(
        (session.state, session.end_reason),
        (SessionState::Ended, Some(EndReason::Failed))
    );
    sweep(&rig).await;
    assert_eq!((back_end.made(), back_end.asked_to_end()), (0, 0));
}

async fn a_mint_of_unknown_outcome_is_ended_under_its_name(kind: Kind) {
    let back_end = BackEnd::new([Mint::MakeUnheard], []);
    let rig = rig(kind, &back_end).await;
    let lost = rig.issue("agent:orders", reading()).await;
    assert!(matches!(lost, Err(BrokerError::FailClosed(_))));
    assert_eq!(
        back_end.alive(),
        1,
        "the credential exists, but no caller received it"
    );
    rig.clock.advance(LEASE_SECONDS + 1);
    sweep(&rig).await;
    let session = only_session(&rig).await.session;
    assert_eq!(
        (session.state, session.end_reason),
        (SessionState::Ended, Some(EndReason::Failed))
    );
    assert_eq!(back_end.alive(), 0);
}

async fn what_was_revoked_while_it_was_made_is_never_released(kind: Kind) {
    let back_end = BackEnd::new([Mint::Late], []);
    let rig = Arc::new(rig(kind, &back_end).await);
    let asking = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.issue("agent:orders", reading()).await }
    });
    back_end.begun().await;
    let minting = only_session(&rig).await;
    assert_eq!(minting.session.state, SessionState::Minting);
    assert!(!minting.is_valid_at(rig.now()));
    rig.revoke(minting.session.id).await;
    sweep(&rig).await;
    back_end.gate.add_permits(1);
    let lost = asking.await.unwrap();
    assert!(matches!(lost, Err(BrokerError::FailClosed(_))), "{lost:?}");
    rig.clock.advance(LEASE_SECONDS + 1);
    sweep(&rig).await;
    assert_eq!((back_end.made(), back_end.alive()), (1, 0));
    let session = only_session(&rig).await.session;
    assert_eq!(
        (session.state, session.end_reason),
        (SessionState::Ended, Some(EndReason::Revoked))
    );
}

async fn a_mint_that_outlives_its_lease_is_ended_whenever_it_arrives(kind: Kind) {
    let back_end = BackEnd::new([Mint::Late], []);
    let rig = Arc::new(rig(kind, &back_end).await);
    let asking = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.issue("agent:orders", reading()).await }
    });
    back_end.begun().await;
    sweep(&rig).await;
    assert_eq!(
        only_session(&rig).await.session.state,
        SessionState::Minting,
        "the mint's lease has not expired"
    );
    rig.clock.advance(LEASE_SECONDS + 1);
    sweep(&rig).await;
    let session = only_session(&rig).await.session;
    assert_ne!(
        session.state,
        SessionState::Minting,
        "the mint counts as failed after the lease"
    );

    back_end.gate.add_permits(1);
    let lost = asking.await.unwrap();
    assert!(matches!(lost, Err(BrokerError::FailClosed(_))), "{lost:?}");
    rig.clock.advance(60);
    sweep(&rig).await;
    assert_eq!((back_end.made(), back_end.alive()), (1, 0));
    let session = only_session(&rig).await.session;
    assert_eq!(
        (session.state, session.end_reason),
        (SessionState::Ended, Some(EndReason::Failed))
    );
}

async fn a_mass_revocation_counts_what_is_confirmed(kind: Kind) {
    let back_end = BackEnd::new([], []);
    let rig = rig(kind, &back_end).await;
    for _ in 0..3 {
        rig.issue("agent:orders", reading()).await.unwrap();
    }
    let all = || Selector::All(True);
    let count = |revocation: &Revoked| {
        revocation
            .radius
            .as_ref()
            .map(|r| (r.matched, r.ended, r.ending))
    };
    let (admin, reason) = (rig.admin(), String::from("drill"));
    let tried = rig.broker.revocation.revoke_many(
        &admin,
        RevokeRequest {
            selector: all(),
            block: BlockRequest::Default,
            deny_all_earlier_sessions: false,
            reason: reason.clone(),
            allow_unknown: false,
            dry_run: true,
        },
    );
    assert_eq!(count(&tried.await.unwrap()), Some((3, 0, 3)));
    assert_eq!(back_end.asked_to_end(), 0, "a dry run ends nothing");

    let done = rig.broker.revocation.revoke_many(
        &admin,
        RevokeRequest {
            selector: all(),
            block: BlockRequest::Default,
            deny_all_earlier_sessions: false,
            reason,
            allow_unknown: false,
            dry_run: false,
        },
    );
    let done = done.await.unwrap();
    assert_eq!(count(&done), Some((3, 0, 3)));
    rig.clock.advance(1);
    sweep(&rig).await;
    assert_eq!(back_end.alive(), 0);
    let id = done.cutoff.unwrap().id;
    let progress = rig.broker.revocation.revocation(&admin, id).await.unwrap();
    assert_eq!(
        count(&progress),
        Some((3, 3, 0)),
        "the count is of the time of the commit"
    );
}

async fn what_cannot_be_ended_is_said_to_live_until_it_expires(kind: Kind) {
    let back_end = BackEnd::new([], [EndOutcome::Impossible]);
    let rig = rig(kind, &back_end).await;
    let issued = rig.issue("agent:orders", reading()).await.unwrap();
    rig.revoke(issued.session.id).await;
    sweep(&rig).await;
    rig.clock.advance(30);
    sweep(&rig).await;
    let status = view(&rig, issued.session.id).await.status_at(rig.now());
    assert_eq!(
        (status.state, status.confirmed_at),
        (SessionState::Ending, None)
    );
    assert_eq!(
        back_end.asked_to_end(),
        1,
        "a refused end is not requested again"
    );
    rig.clock.advance(120);
    let status = view(&rig, issued.session.id).await.status_at(rig.now());
    assert_eq!(status.state, SessionState::Ended);
    assert_eq!(status.confirmed_at, Some(issued.session.expires_at));
}
