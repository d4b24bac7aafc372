//! After its verification, evidence is used up even if the call fails or the caller does not
//! wait for its result.

use std::future::{poll_fn, ready};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use taskpass::attest::Evidence;
use taskpass::broker::BrokerError;
use taskpass::broker::issuance::Issued;
use taskpass::broker::tasks::TaskAuthority;
use taskpass::clock::Timestamp;
use taskpass::domain::catalog::Resource;
use taskpass::domain::cutoff::Selector;
use taskpass::domain::generation::Generation;
use taskpass::domain::grant::Grant;
use taskpass::domain::kind::MinterKind;
use taskpass::domain::limits::MAX_LEDGER_KEYS;
use taskpass::domain::permit::Permit;
use taskpass::domain::request::{CredentialRequest, TaskSelector};
use taskpass::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use taskpass::domain::session::Session;
use taskpass::domain::task::TaskEnd;
use taskpass::ids::{SessionId, TaskId};
use taskpass::mint::{Credential, EndOutcome, MintError, MintMode, Minter};
use taskpass::store::sessions::SessionFilter;
use tokio::sync::Semaphore;

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, Client, assert_oauth_error, assert_problem, send};
use crate::support::keys::{Algorithm, Key, sign_jwt};
use crate::support::rig::{
    ADMIN, Kind, POLICIES, Rig, ask, ask_joining, bearer, handle, job, refusal, with_key,
};

/// Lists the variants of an error once, for the match that the compiler checks and for the tests. A
/// new variant does not compile until it is listed here, and then fails the test until it has a
/// case.
macro_rules! variants {
    ($($name:ident: $pattern:pat),+ $(,)?) => {
        const VARIANTS: &[&str] = &[$(stringify!($name)),+];

        fn variant(error: &BrokerError) -> &'static str {
            match error {
                $($pattern => stringify!($name)),+
            }
        }
    };
}

variants! {
    Attestation: BrokerError::Attestation(_),
    AttestationUnavailable: BrokerError::AttestationUnavailable(_),
    Replayed: BrokerError::Replayed,
    UsedUp: BrokerError::UsedUp { .. },
    Forbidden: BrokerError::Forbidden(_),
    Blocked: BrokerError::Blocked(_),
    Superseded: BrokerError::Superseded,
    LastAdmin: BrokerError::LastAdmin,
    OwnBinding: BrokerError::OwnBinding,
    NoGeneration: BrokerError::NoGeneration,
    NotFound: BrokerError::NotFound(_),
    UnknownSelector: BrokerError::UnknownSelector(_),
    Denied: BrokerError::Denied(_),
    TaskEnded: BrokerError::TaskEnded,
    OwnerWithdrawn: BrokerError::OwnerWithdrawn,
    AlreadyIssued: BrokerError::AlreadyIssued(..),
    InProgress: BrokerError::InProgress,
    RetryMismatch: BrokerError::RetryMismatch,
    Invalid: BrokerError::Invalid { .. },
    RateLimited: BrokerError::RateLimited(_),
    TooManyKeys: BrokerError::TooManyKeys { .. },
    Unfit: BrokerError::Unfit(_),
    Overloaded: BrokerError::Overloaded,
    FailClosed: BrokerError::FailClosed(_),
}

/// Errors before the verification of evidence, which leave it usable.
const UNVERIFIED: &[&str] = &["AttestationUnavailable"];

const UNKNOWN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// A back end that fails as a test tells it.
struct BackEnd {
    fault: Mutex<Fault>,
    waiting: Semaphore,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    NoKey,
    Panics,
    Throttles,
    Hangs,
}

impl BackEnd {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            fault: Mutex::new(Fault::None),
            waiting: Semaphore::new(0),
        })
    }

    fn fail(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }
}

impl Minter for BackEnd {
    fn kind(&self) -> MinterKind {
        MinterKind::Aws
    }

    fn mode(&self) -> MintMode {
        MintMode::External { lease_seconds: 600 }
    }

    fn revocability(&self, _: &Resource) -> Revocability {
        Revocability {
            class: RevocationClass::ExpiryOnly,
            open_sessions: OpenSessions::None,
            expires_by: ExpiresBy::BackEnd,
        }
    }

    fn fits(&self, _: &Resource, _: &Grant) -> Result<(), String> {
        assert!(self.fault() != Fault::Panics, "the test asked for a panic");
        Ok(())
    }

    fn signing_key(&self, _: &Resource, _: Timestamp) -> Option<String> {
        (self.fault() != Fault::NoKey).then(|| "elsewhere".to_owned())
    }

    fn mint<'a>(&'a self, _: &'a Permit) -> BoxFuture<'a, Result<Credential, MintError>> {
        async move {
            if self.fault() == Fault::Hangs {
                self.waiting.add_permits(1);
                std::future::pending::<()>().await;
            }
            Err(MintError::Throttled("later".into()))
        }
        .boxed()
    }

    fn end<'a>(&'a self, _: &'a Session, _: Timestamp) -> BoxFuture<'a, EndOutcome> {
        ready(EndOutcome::Confirmed).boxed()
    }
}

const POLICY: &str = r#"
@id("role") @description("reports reads") @max_ttl("120")
permit (principal == Workload::dev::"dev:agent%3Areports", action == Action::"s3:GetObject", resource);

@id("binds") @description("binds admins")
permit (principal in Role::"binder", action == Action::"manageAdmins", resource == Broker::"taskpass");

@id("activates") @description("activates")
permit (principal in Role::"activator", action == Action::"activateGeneration", resource == Broker::"taskpass");

@id("keys") @description("rotates keys")
permit (principal in Role::"keys", action == Action::"manageKeys", resource == Broker::"taskpass");

@id("revokes") @description("revokes")
permit (principal in Role::"keys", action == Action::"revokeMany", resource == Broker::"taskpass");
"#;

struct World {
    rig: Rig,
    back_end: Arc<BackEnd>,
    /// A credential of `agent:reports` whose task is open.
    open: Issued,
    /// A credential of `agent:reports` whose task has ended.
    over: Issued,
}

async fn begin(kind: Kind) -> World {
    let back_end = BackEnd::new();
    let role = json!({
        "name": "role", "kind": "aws", "owner": "data", "actions": ["s3:GetObject"],
        "locations": ["arn:aws:s3:::reports/*"],
        "aws": {
            "role_arn": "arn:aws:iam::123456789012:role/reports", "mode": "assume_role",
            "region": "eu-central-1"
        }
    });
    let minter: Arc<dyn Minter> = Arc::clone(&back_end) as _;
    let policies = format!("{POLICIES}{POLICY}");
    let rig = Rig::with(kind, &policies, vec![minter], vec![role]).await;
    let open = rig.issue("agent:reports", ask(&["orders:read"])).await;
    let over = rig.issue("agent:reports", ask(&["orders:read"])).await;
    let over = over.unwrap();
    rig.end(&over, TaskEnd::Complete).await.unwrap();
    World {
        rig,
        back_end,
        open: open.unwrap(),
        over,
    }
}

fn on_role() -> CredentialRequest {
    let grant = json!([{"type": "aws", "actions": ["s3:GetObject"]}]);
    CredentialRequest {
        task: TaskSelector::Open(job()),
        resource: "role".into(),
        grant: serde_json::from_value(grant).unwrap(),
        ttl_seconds: None,
        retry: None,
    }
}

impl World {
    fn token(&self) -> String {
        self.rig.token("agent:reports", json!({}))
    }

    /// Every tested exit: the variant of the error, and the call that returns it.
    const EXITS: &[(&'static str, &'static str)] = &[
        ("Attestation", "issue"),
        ("AttestationUnavailable", "issue"),
        ("Replayed", "issue"),
        ("Forbidden", "bind_admin"),
        ("Forbidden", "activate"),
        ("Forbidden", "revoke_many"),
        ("Forbidden", "list_keys"),
        ("Forbidden", "add_workload_key"),
        ("Blocked", "session"),
        ("Blocked", "revoke_session"),
        ("Blocked", "bind_admin"),
        ("Blocked", "check_ledger_reader"),
        ("LastAdmin", "bind_admin"),
        ("OwnBinding", "bind_admin"),
        ("NotFound", "join"),
        ("NotFound", "session"),
        ("NotFound", "revoke_session"),
        ("NotFound", "task"),
        ("NotFound", "end_task"),
        ("NotFound", "heartbeat"),
        ("NotFound", "decision"),
        ("NotFound", "ledger_entry"),
        ("NotFound", "check_ledger_reader"),
        ("NotFound", "parent"),
        ("UnknownSelector", "revoke_many"),
        ("Denied", "issue"),
        ("Denied", "open_task"),
        ("TaskEnded", "heartbeat"),
        ("TaskEnded", "delegate"),
        ("AlreadyIssued", "issue"),
        ("InProgress", "issue"),
        ("RetryMismatch", "issue"),
        ("Invalid", "delegate"),
        ("RateLimited", "issue"),
        ("RateLimited", "open_task"),
        ("TooManyKeys", "rotate_ledger_key"),
        ("Unfit", "activate"),
        ("Overloaded", "issue"),
        ("FailClosed", "issue"),
        // These change the generation, so they come last.
        ("UsedUp", "issue"),
        ("OwnerWithdrawn", "heartbeat"),
    ];

    /// Makes the call so that it ends with this variant.
    #[expect(clippy::too_many_lines, reason = "a table")]
    async fn call_ending_as(
        &self,
        variant: &str,
        call: &str,
        evidence: Evidence,
    ) -> Result<(), BrokerError> {
        let broker = &self.rig.broker;
        let session: SessionId = UNKNOWN.parse().unwrap();
        let task: TaskId = UNKNOWN.parse().unwrap();
        let issue =
            async |evidence, request| broker.issuance.issue(evidence, request).await.map(drop);
        match (variant, call) {
            ("Blocked", _) => {
                let workload = json!({"workload": "dev:agent%3Areports"});
                let block = taskpass::broker::revocation::RevokeRequest {
                    selector: serde_json::from_value(workload).unwrap(),
                    block: taskpass::broker::revocation::BlockRequest::Default,
                    deny_all_earlier_sessions: false,
                    reason: "x".into(),
                    allow_unknown: false,
                    dry_run: false,
                };
                let admin = self.rig.admin();
                let blocked = broker.revocation.revoke_many(&admin, block).await.unwrap();
                let left = Box::pin(self.call_ending_as("Forbidden", call, evidence)).await;
                let id = blocked.cutoff.unwrap().id;
                broker.revocation.lift(&admin, id).await.unwrap();
                left
            }
            ("Attestation", _) => {
                let spoilt = Evidence {
                    dpop: vec!["a.b.c".into()],
                    ..evidence
                };
                issue(spoilt, ask(&["orders:read"])).await
            }
            ("AttestationUnavailable", _) => {
                // Wait longer than the pause between two fetches, so that the broker looks for the
                // new key.
                self.rig.issuer.go_down();
                self.rig.clock.advance(11);
                let asked = issue(evidence, ask(&["orders:read"])).await;
                self.rig.issuer.go_up();
                self.rig.clock.advance(11);
                asked
            }
            ("UsedUp", _) => {
                self.decide_by(|next| {
                    next["attestors"][0]["reuse"] = json!("per_task");
                })
                .await;
                issue(evidence.clone(), ask(&["orders:read"])).await?;
                issue(evidence, ask(&["orders:read"])).await
            }
            ("OwnerWithdrawn", _) => {
                let opened = self.rig.issue("agent:reports", ask(&["orders:read"])).await;
                let opened = opened.unwrap();
                self.decide_by(|next| {
                    next["attestors"][0]["identity"] = json!("sub:{sub}");
                })
                .await;
                // Only a call with a handle can fail this way, so the used evidence is its proof.
                let evidence = self.proof();
                let beat = async || {
                    let authority = TaskAuthority::Handle(handle(&opened), evidence.clone());
                    broker
                        .tasks
                        .heartbeat(opened.task.id, authority)
                        .await
                        .map(drop)
                };
                let first = beat().await;
                // For a call with a handle, the reused proof fails the attestation.
                let again = beat().await;
                assert!(
                    matches!(again, Err(BrokerError::Attestation(_))),
                    "{again:?}"
                );
                first
            }
            ("Replayed", _) => {
                issue(evidence.clone(), ask(&["orders:read"])).await?;
                issue(evidence, ask(&["orders:read"])).await
            }
            ("LastAdmin", _) => {
                self.bind("agent%3Areports", "binder", true).await;
                self.bind("agent%3Achild", "activator", true).await;
                let child = "dev:agent%3Achild".to_owned().try_into().unwrap();
                let unbound =
                    broker
                        .administration
                        .bind_admin(&evidence, child, "activator".into(), false);
                let refused = unbound.await;
                self.bind("agent%3Areports", "binder", false).await;
                self.bind("agent%3Achild", "activator", false).await;
                refused
            }
            ("OwnBinding", _) => {
                self.bind("agent%3Areports", "binder", true).await;
                let own = "dev:agent%3Areports".to_owned().try_into().unwrap();
                let unbound =
                    broker
                        .administration
                        .bind_admin(&evidence, own, "binder".into(), false);
                let refused = unbound.await;
                self.bind("agent%3Areports", "binder", false).await;
                refused
            }
            (_, "bind_admin") => {
                let who = "dev:agent%3Aorders".to_owned().try_into().unwrap();
                broker
                    .administration
                    .bind_admin(&evidence, who, "ops".into(), true)
                    .await
            }
            ("Unfit", _) => {
                self.bind("agent%3Areports", "activator", true).await;
                let (_, bytes) = broker
                    .administration
                    .generation(&self.rig.admin())
                    .await
                    .unwrap();
                let mut next: Generation = serde_json::from_slice(&bytes).unwrap();
                let anything = "permit (principal, action, resource);";
                next.policies[0].text.push_str(anything);
                let refused = broker
                    .administration
                    .activate(&evidence, ready(Some(next)))
                    .await
                    .map(drop);
                self.bind("agent%3Areports", "activator", false).await;
                refused
            }
            (_, "activate") => {
                let (_, bytes) = broker
                    .administration
                    .generation(&self.rig.admin())
                    .await
                    .unwrap();
                let read = async { serde_json::from_slice(&bytes).ok() };
                broker
                    .administration
                    .activate(&evidence, read)
                    .await
                    .map(drop)
            }
            ("UnknownSelector", _) => {
                self.bind("agent%3Areports", "keys", true).await;
                let wanted = taskpass::broker::revocation::RevokeRequest {
                    selector: Selector::Resource("no-such-api".into()),
                    block: taskpass::broker::revocation::BlockRequest::Default,
                    deny_all_earlier_sessions: false,
                    reason: "x".into(),
                    allow_unknown: false,
                    dry_run: false,
                };
                let revoked = broker
                    .revocation
                    .revoke_many(&evidence, wanted)
                    .await
                    .map(drop);
                self.bind("agent%3Areports", "keys", false).await;
                revoked
            }
            (_, "revoke_many") => {
                let everything = serde_json::from_value(json!({"all": true})).unwrap();
                let wanted = taskpass::broker::revocation::RevokeRequest {
                    selector: everything,
                    block: taskpass::broker::revocation::BlockRequest::Default,
                    deny_all_earlier_sessions: false,
                    reason: "x".into(),
                    allow_unknown: false,
                    dry_run: false,
                };
                broker
                    .revocation
                    .revoke_many(&evidence, wanted)
                    .await
                    .map(drop)
            }
            (_, "list_keys") => broker.signing_keys.list_keys(&evidence).await.map(drop),
            (_, "add_workload_key") => {
                let key = json!({});
                let added =
                    broker
                        .administration
                        .add_workload_key(&evidence, "w".into(), "x".into(), &key);
                added.await.map(drop)
            }
            (_, "join") => {
                let mut request = ask_joining(&self.open, &["orders:read"]);
                let handle = handle(&self.open);
                request.task = TaskSelector::Join { id: task, handle };
                issue(evidence, request).await
            }
            (_, "session") => broker
                .verification
                .session(session, &evidence)
                .await
                .map(drop),
            (_, "revoke_session") => broker
                .revocation
                .revoke_session(&evidence, session)
                .await
                .map(drop),
            (_, "task") => broker.tasks.task(task, &evidence).await.map(drop),
            (_, "end_task") => {
                let authority = TaskAuthority::Owner(evidence);
                let ended = broker.tasks.end_task(task, authority, TaskEnd::Abort).await;
                ended.map(drop)
            }
            (_, "heartbeat") => {
                let known = self.over.task.id;
                let id = if variant == "TaskEnded" { known } else { task };
                let authority = TaskAuthority::Owner(evidence);
                broker.tasks.heartbeat(id, authority).await.map(drop)
            }
            (_, "decision") => {
                let id = UNKNOWN.parse().unwrap();
                let under = taskpass::broker::administration::records::Under::Newest;
                broker
                    .administration
                    .decision(&evidence, id, under)
                    .await
                    .map(drop)
            }
            (_, "ledger_entry") => broker
                .administration
                .ledger_entry(&evidence, 0)
                .await
                .map(drop),
            (_, "check_ledger_reader") => broker
                .administration
                .check_ledger_reader(&evidence)
                .await
                .map(drop),
            (_, "parent") => {
                let mut child = job();
                child.parent = Some(taskpass::domain::request::ParentRef {
                    id: self.open.task.id,
                    delegation: "tpd_guessed".to_owned().into(),
                });
                broker.tasks.open_task(&evidence, child).await.map(drop)
            }
            ("Denied" | "RateLimited", "issue") => {
                let mut request = ask(&["orders:read"]);
                request.resource = "unknown".into();
                if variant == "RateLimited" {
                    self.allow_one_denial().await;
                    let first = self.rig.issue("agent:reports", request.clone()).await;
                    drop(first.unwrap_err());
                }
                issue(evidence, request).await
            }
            ("Denied" | "RateLimited", "open_task") => {
                let mut unknown = job();
                unknown.task_type = "unknown".into();
                broker.tasks.open_task(&evidence, unknown).await.map(drop)
            }
            (_, "delegate") => {
                let ended = variant == "TaskEnded";
                let parent = if ended { &self.over } else { &self.open };
                let child = "dev:agent%3Achild".to_owned().try_into().unwrap();
                let authority = TaskAuthority::Owner(evidence);
                let sessions = u32::from(ended);
                let lent = broker
                    .tasks
                    .delegate(parent.task.id, authority, child, sessions, None);
                lent.await.map(drop)
            }
            ("AlreadyIssued", _) => {
                let mut request = ask(&["orders:read"]);
                request.resource = "archive-api".into();
                let request = with_key(request, "already");
                let first = self.rig.issue("agent:reports", request.clone()).await;
                first.unwrap();
                issue(evidence, request).await
            }
            ("InProgress", _) => {
                self.back_end.fail(Fault::Hangs);
                let request = with_key(on_role(), "hangs");
                let first = self.rig.issue("agent:reports", request.clone());
                let hangs = async { self.back_end.waiting.acquire().await.unwrap().forget() };
                tokio::select! {
                    issued = first => panic!("{issued:?}"),
                    () = hangs => {}
                }
                self.back_end.fail(Fault::None);
                issue(evidence, request).await
            }
            ("RetryMismatch", _) => {
                let first = with_key(ask(&["orders:read"]), "mismatch");
                self.rig.issue("agent:reports", first).await.unwrap();
                let mut other = with_key(ask(&["orders:read"]), "mismatch");
                other.retry.as_mut().unwrap().fingerprint = [8; 32];
                issue(evidence, other).await
            }
            ("TooManyKeys", _) => {
                let admin = self.rig.admin();
                self.bind("agent%3Areports", "keys", true).await;
                for _ in 1..MAX_LEDGER_KEYS {
                    broker.signing_keys.rotate_ledger_key(&admin).await.unwrap();
                }
                let rotated = broker
                    .signing_keys
                    .rotate_ledger_key(&evidence)
                    .await
                    .map(drop);
                // The broker activates no generation unless a bound admin could activate the next
                // one.
                self.bind("agent%3Areports", "keys", false).await;
                rotated
            }
            ("Overloaded", _) => {
                self.back_end.fail(Fault::Throttles);
                issue(evidence, on_role()).await
            }
            ("FailClosed", _) => {
                self.back_end.fail(Fault::NoKey);
                issue(evidence, on_role()).await
            }
            other => panic!("{other:?} has no case"),
        }
    }

    /// Evidence that consists of a DPoP proof only.
    fn proof(&self) -> Evidence {
        let url = "https://broker.example/v1/tasks/x/heartbeat";
        let key = Key::generate(Algorithm::Es256);
        let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": key.jwk()});
        let claims = json!({
            "jti": "proof", "htm": "POST", "htu": url, "iat": self.rig.now().seconds(),
        });
        Evidence {
            dpop: vec![sign_jwt(&header, &claims, &key)],
            method: "POST".into(),
            url: url.into(),
            ..Evidence::default()
        }
    }

    async fn bind(&self, name: &str, role: &str, bound: bool) {
        let identity = format!("dev:{name}").try_into().unwrap();
        let admin = self.rig.admin();
        let bound = self
            .rig
            .broker
            .administration
            .bind_admin(&admin, identity, role.into(), bound);
        bound.await.unwrap();
    }

    async fn allow_one_denial(&self) {
        self.decide_by(|next| next["limits"]["denials_per_identity"] = json!(1))
            .await;
    }

    /// Activates a changed generation.
    async fn decide_by(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let admin = self.rig.admin();
        let (_, bytes) = self
            .rig
            .broker
            .administration
            .generation(&admin)
            .await
            .unwrap();
        let mut next: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        change(&mut next);
        let next = serde_json::from_value(next).unwrap();
        let activated = self
            .rig
            .broker
            .administration
            .activate(&admin, ready(Some(next)))
            .await;
        activated.unwrap().unwrap();
    }

    /// Number of entries appended so far, including those without a leaf.
    fn appended(&self) -> u64 {
        let text = self.rig.broker.core.metrics().render();
        let sum = "taskpass_ledger_batch_entries_sum ";
        let line = text.lines().find_map(|line| line.strip_prefix(sum));
        line.unwrap().trim_end_matches(".0").parse().unwrap()
    }

    /// Whether the broker refuses the evidence as used.
    async fn is_spent(&self, token: &str) -> bool {
        let again = self
            .rig
            .broker
            .issuance
            .issue(bearer(token), ask(&["orders:read"]));
        match again.await {
            Ok(_) => false,
            Err(BrokerError::Replayed | BrokerError::UsedUp { .. }) => true,
            Err(other) => panic!("{other}"),
        }
    }
}

/// Polls `story` until it completes, or drops it after it was pending `pauses` times.
async fn drop_after<T>(pauses: usize, story: impl Future<Output = T>) -> Option<T> {
    let mut story = pin!(story);
    let mut left = pauses;
    poll_fn(|context| match story.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => {
            left -= 1;
            if left == 0 {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        }
    })
    .await
}

on_both_stores! {
    async fn evidence_is_used_up_on_every_way_out(world: World) {
        // `Superseded` is retried inside the broker, and without a generation the broker verifies
        // no evidence.
        let tried = VARIANTS.iter().filter(|own| !["Superseded", "NoGeneration"].contains(own));
        for variant in tried {
            let known = World::EXITS.iter().any(|(known, _)| known == variant);
            assert!(known, "no call is tested that ends as {variant}");
        }
        for (expected, call) in World::EXITS {
            if *expected == "AttestationUnavailable" {
                // An unknown key makes the broker fetch the issuer's keys again.
                world.rig.issuer.add_key(Algorithm::Es256);
            }
            let token = world.token();
            let left = Box::pin(world.call_ending_as(expected, call, bearer(&token))).await;
            world.back_end.fail(Fault::None);
            let error = left.expect_err(call);
            assert_eq!(variant(&error), *expected, "{call}: {error}");
            let survives = UNVERIFIED.contains(expected);
            if *expected == "OwnerWithdrawn" {
                continue;
            }
            assert_eq!(world.is_spent(&token).await, !survives, "{expected} by {call}");
        }
    }

    async fn evidence_is_used_up_by_what_succeeds_without_a_leaf(world: World) {
        let calls = ["sessions", "tasks", "end again", "revoke nothing"];
        for call in calls {
            let token = world.token();
            let evidence = bearer(&token);
            let broker = &world.rig.broker;
            match call {
                "sessions" => drop(broker.verification.list_sessions(&evidence, SessionFilter::default()).await.unwrap()),
                "tasks" => drop(broker.tasks.list_tasks(&evidence, taskpass::store::tasks::TaskFilter::default()).await.unwrap()),
                "end again" => {
                    let authority = TaskAuthority::Owner(evidence);
                    drop(broker.tasks.end_task(world.over.task.id, authority, TaskEnd::Abort).await.unwrap());
                }
                _ => broker.revocation.revoke_token(&evidence, &"a.b.c".to_owned().into()).await.unwrap(),
            }
            assert!(world.is_spent(&token).await, "{call}");
        }
    }

    async fn evidence_is_used_up_by_a_caller_that_goes_away(world: World) {
        // The broker knows the issuer's keys by now, so it verifies the evidence before the first
        // pause.
        let broker = &world.rig.broker;
        for pauses in 1..=8 {
            for call in ["revoke", "end", "delegate", "bind", "read"] {
                let token = world.token();
                let evidence = bearer(&token);
                let unknown = UNKNOWN.parse::<TaskId>().unwrap();
                let story: BoxFuture<'_, ()> = match call {
                    "revoke" => async {
                        drop(broker.revocation.revoke_session(&evidence, UNKNOWN.parse().unwrap()).await);
                    }.boxed(),
                    "end" => async {
                        let authority = TaskAuthority::Owner(evidence.clone());
                        drop(broker.tasks.end_task(unknown, authority, TaskEnd::Abort).await);
                    }.boxed(),
                    "delegate" => async {
                        let authority = TaskAuthority::Owner(evidence.clone());
                        let child = "dev:agent%3Achild".to_owned().try_into().unwrap();
                        drop(broker.tasks.delegate(world.over.task.id, authority, child, 1, None).await);
                    }.boxed(),
                    "bind" => async {
                        let who = "dev:agent%3Aorders".to_owned().try_into().unwrap();
                        drop(broker.administration.bind_admin(&evidence, who, "ops".into(), true).await);
                    }.boxed(),
                    _ => async { drop(broker.verification.session(UNKNOWN.parse().unwrap(), &evidence).await) }.boxed(),
                };
                let _ = drop_after(pauses, story).await;
                assert!(world.is_spent(&token).await, "{call}, dropped at its pause {pauses}");
            }
        }
    }

    async fn evidence_is_used_up_by_a_story_that_panics(world: World) {
        let token = world.token();
        world.back_end.fail(Fault::Panics);
        let lost = world.rig.broker.issuance.issue(bearer(&token), on_role()).await;
        assert!(matches!(lost, Err(BrokerError::FailClosed(_))), "{lost:?}");
        world.back_end.fail(Fault::None);
        assert!(world.is_spent(&token).await);
    }

    async fn a_request_that_has_a_leaf_costs_one_append(world: World) {
        let before = world.appended();
        world.rig.issue("agent:reports", ask(&["orders:read"])).await.unwrap();
        let mut request = ask(&["orders:read"]);
        request.resource = "unknown".into();
        assert_eq!(refusal(world.rig.issue("agent:reports", request).await), "unknown-resource");
        assert_eq!(world.appended(), before + 2);
    }
}

/// Over HTTP, where the broker reads the body between two checks of the evidence.
async fn activation(kind: Kind) {
    let (fleet, replica): (Fleet, Replica) = Fleet::on(kind).await;
    let token = fleet.token();
    let client = &replica.client;
    let refused = client
        .post_json(&token, "/v1/generations", &json!({}))
        .await;
    assert_problem(&refused, 403, "forbidden");
    let again = client.post_json(&token, "/v1/credentials", &body()).await;
    assert_problem(&again, 401, "attestation-failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_is_used_up_by_a_refused_activation_on_sqlite() {
    activation(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_is_used_up_by_a_refused_activation_on_postgresql() {
    activation(Kind::Postgres).await;
}

/// Operations that take no evidence, or none in a header.
const OPEN: &[&str] = &[
    "/livez",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/oauth2/token",
    "/status/",
    "/.well-known/",
    "/federation/",
];

/// Calls every operation of the HTTP description, so that a new operation is tested too.
async fn every_door(kind: Kind) {
    let (fleet, replica): (Fleet, Replica) = Fleet::on(kind).await;
    let client = &replica.client;
    let described = client.get("/openapi.json").await.expect(200);
    let mut tried = 0;
    for (path, methods) in described["paths"].as_object().unwrap() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let filled = path
            .replace("{id}", UNKNOWN)
            .replace("{index}", "0")
            .replace("{kid}", "x")
            .replace("{digest}", &digest)
            .replace("{list}", "0")
            .replace("{path}", "tile/0/000.p/1");
        let filled = match path.as_str() {
            "/v1/ledger/consistency" => format!("{filled}?from=0&to=0"),
            _ => filled,
        };
        if OPEN.iter().any(|open| path.starts_with(open)) {
            continue;
        }
        for method in methods.as_object().unwrap().keys() {
            let method: reqwest::Method = method.to_uppercase().parse().unwrap();
            let token = fleet.token();
            let request = client.request(method.clone(), &filled).bearer_auth(&token);
            let request = match (path.as_str(), method.as_str()) {
                (_, "GET") => request,
                ("/oauth2/introspect" | "/oauth2/revoke", _) => request.form(&[("token", "x")]),
                (path, _) => request.json(&body_for(path, &method)),
            };
            let answer = send(request).await;
            // The broker verifies no evidence before a request is well-formed.
            assert_ne!(answer.status, 400, "{method} {path}: {}", answer.text());
            assert_ne!(answer.status, 401, "{method} {path}: {}", answer.text());
            let again = client.post_json(&token, "/v1/credentials", &body()).await;
            assert_eq!(
                again.status, 401,
                "{method} {path} answered {}",
                answer.status
            );
            tried += 1;
        }
    }
    assert!(tried > 30, "{tried}");
}

/// A well-formed body for an operation that takes one.
fn body_for(path: &str, method: &reqwest::Method) -> serde_json::Value {
    let key = Key::generate(Algorithm::Es256);
    match (path, method.as_str()) {
        ("/v1/credentials", _) => body(),
        ("/v1/tasks", _) => json!({"type": "job"}),
        ("/v1/tasks/{id}/delegations", _) => json!({"workload": "dev:x"}),
        ("/v1/revocations", _) => json!({"selector": {"all": true}, "reason": "x"}),
        ("/v1/admins", _) => json!({"workload": "dev:x", "role": "ops"}),
        ("/v1/ledger/accept-time", _) => json!({"time": "2026-11-29T12:00:00Z", "reason": "x"}),
        ("/v1/workloads", "POST") => {
            json!({"attestor": "w", "workload": "x", "jwk": key.jwk()})
        }
        ("/v1/workloads", _) => {
            json!({"attestor": "w", "workload": "x", "thumbprint": "t"})
        }
        _ => json!({}),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_is_used_up_at_every_door_on_sqlite() {
    every_door(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_is_used_up_at_every_door_on_postgresql() {
    every_door(Kind::Postgres).await;
}

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// One existing target, one in AWS, and unknown ones, in the forms of OAuth.
const TARGETS: [(&str, &str); 6] = [
    ("audience", "orders-api"),
    ("audience", "role"),
    ("audience", "nope"),
    ("resource", "https://orders.example"),
    ("resource", "https://nope.example"),
    ("resource", "arn:aws:iam::123456789012:role/reports"),
];

async fn exchange(client: &Client, token: &str, (name, target): (&str, &str)) -> Answer {
    let form = [
        ("grant_type", EXCHANGE),
        ("subject_token", token),
        ("subject_token_type", JWT),
        (name, target),
        ("scope", "orders:read"),
        ("task_type", "job"),
    ];
    client.post_form("/oauth2/token", &form).await
}

on_both_stores! {
    async fn a_caller_that_is_not_attested_does_not_learn_which_resources_exist(mut world: World) {
        let (_server, client) = world.rig.serve();
        let counter = "taskpass_attestation_failures_total{attestor=\"none\",reason=\"malformed\"}";
        let malformed = |world: &World| {
            let text = world.rig.broker.core.metrics().render();
            let line = text.lines().find(|line| line.starts_with(counter)).unwrap();
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let before = malformed(&world);
        let mut faces = Vec::new();
        for target in TARGETS {
            for junk in ["junk", ""] {
                let answer = exchange(&client, junk, target).await;
                assert_oauth_error(&answer, 400, "invalid_request");
                faces.push(answer.text());
            }
        }
        assert!(faces.iter().all(|face| *face == faces[0]), "{faces:?}");
        assert_eq!(malformed(&world) - before, faces.len() as u64, "each is counted");
        // An attested caller learns the reason, and its attestation is used up.
        for target in TARGETS {
            let token = world.token();
            let answer = exchange(&client, &token, target).await;
            if ["orders-api", "https://orders.example"].contains(&target.1) {
                answer.expect(200);
            } else {
                assert_oauth_error(&answer, 400, "invalid_target");
                let again = exchange(&client, &token, target).await;
                assert_oauth_error(&again, 400, "invalid_request");
            }
        }
        // A blocked caller learns only that it is blocked.
        let cut = json!({"selector": {"workload": "dev:agent%3Areports"}, "reason": "x", "block_seconds": "until_lifted"});
        client.post_json(ADMIN, "/v1/revocations", &cut).await.expect(200);
        let mut faces = Vec::new();
        for target in TARGETS {
            let answer = exchange(&client, &world.token(), target).await;
            assert_oauth_error(&answer, 400, "access_denied");
            faces.push(answer.json()["error_description"].clone());
        }
        assert!(faces.iter().all(|face| *face == faces[0]), "{faces:?}");
    }
}
