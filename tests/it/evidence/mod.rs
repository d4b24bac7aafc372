//! After its verification, evidence is used up even if the call fails or the caller does not
//! wait for its result.

mod doors;
mod exits;

use std::future::{poll_fn, ready};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use taskpass::broker::BrokerError;
use taskpass::broker::issuance::Issued;
use taskpass::broker::tasks::TaskAuthority;
use taskpass::clock::Timestamp;
use taskpass::domain::catalog::Resource;
use taskpass::domain::grant::Grant;
use taskpass::domain::kind::MinterKind;
use taskpass::domain::permit::Permit;
use taskpass::domain::request::{CredentialRequest, TaskSelector};
use taskpass::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use taskpass::domain::session::Session;
use taskpass::domain::task::TaskEnd;
use taskpass::ids::TaskId;
use taskpass::mint::{Credential, EndOutcome, MintError, MintMode, Minter};
use taskpass::store::sessions::SessionFilter;
use tokio::sync::Semaphore;

use crate::support::fleet::{Fleet, Replica};
use crate::support::http::{Answer, Client, assert_oauth_error};
use crate::support::keys::{Algorithm, Key};
use crate::support::rig::{ADMIN, Kind, POLICIES, Rig, ask, bearer, job, refusal};

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
    let rig = Rig::on(kind)
        .policies(&policies)
        .minter(minter)
        .resources([role])
        .start()
        .await;
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
    fn evidence_is_used_up_on_every_way_out;
    fn evidence_is_used_up_by_what_succeeds_without_a_leaf;
    fn evidence_is_used_up_by_a_caller_that_goes_away;
    fn evidence_is_used_up_by_a_story_that_panics;
    fn a_request_that_has_a_leaf_costs_one_append;
}

async fn evidence_is_used_up_on_every_way_out(world: World) {
    // `Superseded` is retried inside the broker, and without a generation the broker verifies
    // no evidence.
    let tried = VARIANTS
        .iter()
        .filter(|own| !["Superseded", "NoGeneration"].contains(own));
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
        assert_eq!(
            world.is_spent(&token).await,
            !survives,
            "{expected} by {call}"
        );
    }
}

async fn evidence_is_used_up_by_what_succeeds_without_a_leaf(world: World) {
    let calls = ["sessions", "tasks", "end again", "revoke nothing"];
    for call in calls {
        let token = world.token();
        let evidence = bearer(&token);
        let broker = &world.rig.broker;
        match call {
            "sessions" => drop(
                broker
                    .verification
                    .list_sessions(&evidence, SessionFilter::default())
                    .await
                    .unwrap(),
            ),
            "tasks" => drop(
                broker
                    .tasks
                    .list_tasks(&evidence, taskpass::store::tasks::TaskFilter::default())
                    .await
                    .unwrap(),
            ),
            "end again" => {
                let authority = TaskAuthority::Owner(evidence);
                drop(
                    broker
                        .tasks
                        .end_task(world.over.task.id, authority, TaskEnd::Abort)
                        .await
                        .unwrap(),
                );
            }
            _ => broker
                .revocation
                .revoke_token(&evidence, &"a.b.c".to_owned().into())
                .await
                .unwrap(),
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
                    drop(
                        broker
                            .revocation
                            .revoke_session(&evidence, UNKNOWN.parse().unwrap())
                            .await,
                    );
                }
                .boxed(),
                "end" => async {
                    let authority = TaskAuthority::Owner(evidence.clone());
                    drop(
                        broker
                            .tasks
                            .end_task(unknown, authority, TaskEnd::Abort)
                            .await,
                    );
                }
                .boxed(),
                "delegate" => async {
                    let authority = TaskAuthority::Owner(evidence.clone());
                    let child = "dev:agent%3Achild".to_owned().try_into().unwrap();
                    drop(
                        broker
                            .tasks
                            .delegate(world.over.task.id, authority, child, 1, None)
                            .await,
                    );
                }
                .boxed(),
                "bind" => async {
                    let who = "dev:agent%3Aorders".to_owned().try_into().unwrap();
                    drop(
                        broker
                            .administration
                            .bind_admin(&evidence, who, "ops".into(), true)
                            .await,
                    );
                }
                .boxed(),
                _ => async {
                    drop(
                        broker
                            .verification
                            .session(UNKNOWN.parse().unwrap(), &evidence)
                            .await,
                    );
                }
                .boxed(),
            };
            let _ = drop_after(pauses, story).await;
            assert!(
                world.is_spent(&token).await,
                "{call}, dropped at its pause {pauses}"
            );
        }
    }
}

async fn evidence_is_used_up_by_a_story_that_panics(world: World) {
    let token = world.token();
    world.back_end.fail(Fault::Panics);
    let lost = world
        .rig
        .broker
        .issuance
        .issue(bearer(&token), on_role())
        .await;
    assert!(matches!(lost, Err(BrokerError::FailClosed(_))), "{lost:?}");
    world.back_end.fail(Fault::None);
    assert!(world.is_spent(&token).await);
}

async fn a_request_that_has_a_leaf_costs_one_append(world: World) {
    let before = world.appended();
    world
        .rig
        .issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let mut request = ask(&["orders:read"]);
    request.resource = "unknown".into();
    assert_eq!(
        refusal(world.rig.issue("agent:reports", request).await),
        "unknown-resource"
    );
    assert_eq!(world.appended(), before + 2);
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
    fn a_caller_that_is_not_attested_does_not_learn_which_resources_exist;
}

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
    assert_eq!(
        malformed(&world) - before,
        faces.len() as u64,
        "each is counted"
    );
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
    client
        .post_json(ADMIN, "/v1/revocations", &cut)
        .await
        .expect(200);
    let mut faces = Vec::new();
    for target in TARGETS {
        let answer = exchange(&client, &world.token(), target).await;
        assert_oauth_error(&answer, 400, "access_denied");
        faces.push(answer.json()["error_description"].clone());
    }
    assert!(faces.iter().all(|face| *face == faces[0]), "{faces:?}");
}
