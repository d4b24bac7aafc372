//! Calls every operation of the HTTP description as a workload that may do everything: first
//! unblocked, to show that each call would succeed, then while a cutoff blocks the workload.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Method, RequestBuilder};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use taskpass::broker::issuance::Issued;
use taskpass::broker::revocation::BlockRequest;
use taskpass::broker::tasks::TaskAuthority;
use taskpass::domain::cutoff::Selector;
use taskpass::domain::task::TaskEnd;
use taskpass::policy::AdminAction;

use super::{WORKLOAD, block, policies, revocation, selectors};
use crate::support::http::{Answer, Client, assert_oauth_error, assert_problem, send};
use crate::support::keys::{Algorithm, Key};
use crate::support::random_hex;
use crate::support::rig::{Kind, Rig, access_token, ask, handle};
use crate::support::server::Server;

/// Operations that authenticate no caller.
const WITHOUT_A_CALLER: &[(&str, &str)] = &[
    ("get", "/livez"),
    ("get", "/readyz"),
    ("get", "/openapi.json"),
    ("get", "/status/{list}"),
    ("get", "/.well-known/oauth-authorization-server"),
    ("get", "/.well-known/openid-configuration"),
    ("get", "/.well-known/jwks.json"),
    ("get", "/federation/aws/.well-known/openid-configuration"),
    ("get", "/federation/aws/.well-known/jwks.json"),
];

/// Actions of admins that no operation needs yet.
const WITHOUT_A_DOOR: &[AdminAction] = &[AdminAction::Authorize, AdminAction::Approve];

/// Tables that record decisions about refused requests.
const LOG: &[&str] = &["leaf", "leaf_body", "leaf_opening", "tile", "ledger_head"];

/// The form of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Problem,
    Decision,
    /// An OAuth error, with this status.
    OAuth(u16),
}

/// One call of an operation.
struct Call {
    request: RequestBuilder,
    action: Option<AdminAction>,
    told: Told,
    /// Whether the call names an object that may not exist.
    names: bool,
}

/// The objects that the calls name. They belong to the workload, or exist for its rights as an
/// admin.
struct Things {
    task: String,
    handle: String,
    session: String,
    token: String,
    decision: String,
    leaf: u64,
    revocation: String,
    kid: String,
    digest: String,
    issued: Option<Issued>,
}

impl Things {
    /// Objects that exist.
    async fn real(world: &World, key: bool) -> Self {
        let issued = world
            .rig
            .issue(WORKLOAD, ask(&["orders:read"]))
            .await
            .unwrap();
        let resource = Selector::Resource("archive-api".into());
        let asked = revocation(resource, BlockRequest::Seconds(0));
        let broker = &world.rig.broker;
        let revoked = broker
            .revocation
            .revoke_many(&world.rig.admin(), asked)
            .await
            .unwrap();
        Self {
            task: issued.task.id.to_string(),
            handle: handle(&issued).expose_secret().to_owned(),
            session: issued.session.id.to_string(),
            token: access_token(&issued).expose_secret().to_owned(),
            decision: issued.decision.id.to_string(),
            leaf: issued.receipt.index,
            revocation: revoked.cutoff.unwrap().id.to_string(),
            kid: if key {
                broker
                    .signing_keys
                    .rotate_keys(&world.rig.admin())
                    .await
                    .unwrap()
            } else {
                String::new()
            },
            digest: issued.decision.generation.to_string(),
            issued: Some(issued),
        }
    }

    /// Identifiers of objects that do not exist.
    fn unreal() -> Self {
        let id = "01890a5d-ac96-774b-bcce-b302099a8057".to_owned();
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","typ":"at+jwt","kid":"x"}"#);
        Self {
            task: id.clone(),
            handle: "tph_unknown".into(),
            session: id.clone(),
            token: format!("{header}.e30.AAAA"),
            decision: id.clone(),
            leaf: 1_000_000,
            revocation: id,
            kid: "unknown".into(),
            digest: format!("sha256:{}", "ab".repeat(32)),
            issued: None,
        }
    }
}

struct World {
    rig: Rig,
    client: Client,
    _server: Server,
    generation: Value,
}

impl World {
    async fn new(kind: Kind) -> Self {
        let mut rig = Rig::on(kind).policies(&policies()).start().await;
        let keys = json!({"kind": "key", "name": "keys"});
        let generation = serde_json::to_value(rig.add_attestor(keys).await).unwrap();
        // A second admin, so that no binding is the last one.
        let admin = rig.admin();
        let child = super::identity("agent:child");
        let bound = rig
            .broker
            .administration
            .bind_admin(&admin, child, "admin".into(), true);
        bound.await.unwrap();
        let (server, client) = rig.serve();
        Self {
            rig,
            client,
            _server: server,
            generation,
        }
    }

    fn token(&self) -> String {
        self.rig.token(WORKLOAD, json!({}))
    }

    fn to(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, path).bearer_auth(self.token())
    }

    fn by_handle(&self, path: &str, things: &Things) -> RequestBuilder {
        let authorization = format!("Handle {}", things.handle);
        self.client
            .request(Method::POST, path)
            .header("authorization", authorization)
    }

    /// The calls of an operation; `None` if this test does not know the operation.
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn calls(&self, method: &str, path: &str, things: &Things) -> Option<Vec<Call>> {
        let admin = |request: RequestBuilder, action: AdminAction| Call {
            request,
            action: Some(action),
            told: Told::Problem,
            names: true,
        };
        let plain = |request: RequestBuilder| Call {
            request,
            action: None,
            told: Told::Problem,
            names: true,
        };
        // A handle reveals something only if it is the right one.
        let handled = |request: RequestBuilder| Call {
            names: false,
            ..plain(request)
        };
        let decided = |request: RequestBuilder| Call {
            told: Told::Decision,
            ..plain(request)
        };
        let oauth = |request: RequestBuilder, action: AdminAction| Call {
            told: Told::OAuth(403),
            ..admin(request, action)
        };
        let get = |path: &str| self.to(Method::GET, path);
        let post = |path: &str, body: Value| self.to(Method::POST, path).json(&body);
        let details = json!([{"type": "api", "actions": ["orders:read"]}]);
        let body = |task: Value| json!({"task": task, "resource": "orders-api", "authorization_details": details});
        let Things {
            task,
            session,
            decision,
            leaf,
            revocation,
            kid,
            digest,
            ..
        } = things;
        let lent = json!({"workload": "dev:agent%3Achild"});
        let whom = json!({"workload": "dev:agent%3Aorders", "role": "admin"});
        Some(match (method, path) {
            ("post", "/v1/credentials") => vec![
                decided(post(path, body(json!({"type": "job"})))),
                decided(post(
                    path,
                    body(json!({"id": task, "handle": things.handle})),
                )),
            ],
            ("post", "/v1/tasks") => vec![decided(post(path, json!({"type": "job"})))],
            ("get", "/v1/tasks") => vec![admin(get(path), AdminAction::ListTasks)],
            ("get", "/v1/tasks/{id}") => vec![plain(get(&format!("/v1/tasks/{task}")))],
            ("post", "/v1/tasks/{id}/heartbeat") => {
                let path = format!("/v1/tasks/{task}/heartbeat");
                vec![
                    plain(post(&path, json!({}))),
                    handled(self.by_handle(&path, things)),
                ]
            }
            ("post", "/v1/tasks/{id}/delegations") => {
                let path = format!("/v1/tasks/{task}/delegations");
                vec![
                    plain(post(&path, lent.clone())),
                    handled(self.by_handle(&path, things).json(&lent)),
                ]
            }
            ("post", "/v1/tasks/{id}/complete") => {
                let path = format!("/v1/tasks/{task}/complete");
                vec![
                    admin(post(&path, json!({})), AdminAction::EndTask),
                    handled(self.by_handle(&path, things)),
                ]
            }
            ("post", "/v1/tasks/{id}/abort") => {
                let path = format!("/v1/tasks/{task}/abort");
                vec![
                    admin(post(&path, json!({})), AdminAction::EndTask),
                    handled(self.by_handle(&path, things)),
                ]
            }
            ("get", "/v1/sessions") => vec![admin(get(path), AdminAction::ListSessions)],
            ("get", "/v1/sessions/{id}") => vec![plain(get(&format!("/v1/sessions/{session}")))],
            ("post", "/v1/sessions/{id}/revoke") => {
                let path = format!("/v1/sessions/{session}/revoke");
                vec![admin(post(&path, json!({})), AdminAction::RevokeSession)]
            }
            ("post", "/v1/revocations") => {
                let asked = |dry_run: bool| {
                    json!({"selector": {"resource": "archive-api"}, "block_seconds": 0,
                        "reason": "test", "dry_run": dry_run})
                };
                vec![
                    admin(post(path, asked(true)), AdminAction::RevokeMany),
                    admin(post(path, asked(false)), AdminAction::RevokeMany),
                ]
            }
            ("get", "/v1/revocations") => vec![admin(get(path), AdminAction::ReadRevocations)],
            ("get", "/v1/revocations/{id}") => {
                let path = format!("/v1/revocations/{revocation}");
                vec![admin(get(&path), AdminAction::ReadRevocations)]
            }
            ("post", "/v1/revocations/{id}/lift") => {
                let path = format!("/v1/revocations/{revocation}/lift");
                vec![admin(post(&path, json!({})), AdminAction::LiftCutoff)]
            }
            ("get", "/v1/decisions") => vec![admin(get(path), AdminAction::ReadLedger)],
            ("get", "/v1/decisions/{id}") => {
                vec![plain(get(&format!("/v1/decisions/{decision}")))]
            }
            ("get", "/v1/decisions/{id}/record") => {
                let path = format!("/v1/decisions/{decision}/record");
                vec![admin(get(&path), AdminAction::ReadLedger)]
            }
            ("delete", "/v1/decisions/{id}/purpose") => {
                let path = format!("/v1/decisions/{decision}/purpose");
                vec![admin(
                    self.to(Method::DELETE, &path),
                    AdminAction::ActivateGeneration,
                )]
            }
            ("get", "/v1/ledger/keys" | "/v1/ledger/checkpoint" | "/v1/ledger/export") => {
                vec![admin(get(path), AdminAction::ReadLedger)]
            }
            ("get", "/v1/ledger/entries/{index}") => {
                vec![admin(
                    get(&format!("/v1/ledger/entries/{leaf}")),
                    AdminAction::ReadLedger,
                )]
            }
            ("get", "/v1/ledger/entries/{index}/proof") => {
                let path = format!("/v1/ledger/entries/{leaf}/proof");
                vec![admin(get(&path), AdminAction::ReadLedger)]
            }
            ("get", "/v1/ledger/consistency") => {
                vec![admin(
                    get(&format!("{path}?from=1")),
                    AdminAction::ReadLedger,
                )]
            }
            ("get", "/ledger/{path}") => ["checkpoint", "tile/0/000.p/1", "tile/entries/000.p/1"]
                .map(|path| admin(get(&format!("/ledger/{path}")), AdminAction::ReadLedger))
                .into(),
            ("post", "/oauth2/token") => {
                let token = self.token();
                let form = [
                    (
                        "grant_type",
                        "urn:ietf:params:oauth:grant-type:token-exchange",
                    ),
                    ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
                    ("subject_token", &token),
                    ("audience", "orders-api"),
                    ("scope", "orders:read"),
                    ("task_type", "job"),
                ];
                let request = self.client.request(Method::POST, path).form(&form);
                vec![Call {
                    told: Told::OAuth(400),
                    ..plain(request)
                }]
            }
            ("post", "/oauth2/introspect") => {
                let form = [("token", &things.token)];
                let request = self.to(Method::POST, path).form(&form);
                vec![oauth(request, AdminAction::Introspect)]
            }
            ("post", "/oauth2/revoke") => {
                let form = [("token", &things.token)];
                let request = self.to(Method::POST, path).form(&form);
                vec![oauth(request, AdminAction::RevokeSession)]
            }
            ("get", "/v1/admins") => vec![admin(get(path), AdminAction::ManageAdmins)],
            ("post", "/v1/admins") => vec![admin(post(path, whom), AdminAction::ManageAdmins)],
            ("delete", "/v1/admins") => {
                let request = self.to(Method::DELETE, path).json(&whom);
                vec![admin(request, AdminAction::ManageAdmins)]
            }
            ("get", "/v1/workloads") => vec![admin(get(path), AdminAction::ManageWorkloads)],
            ("post", "/v1/workloads") => {
                let jwk = Key::generate(Algorithm::Es256).jwk();
                let body = json!({"attestor": "keys", "workload": "batch", "jwk": jwk});
                vec![admin(post(path, body), AdminAction::ManageWorkloads)]
            }
            ("delete", "/v1/workloads") => {
                let body = json!({"attestor": "keys", "workload": "batch", "thumbprint": "x"});
                let request = self.to(Method::DELETE, path).json(&body);
                vec![admin(request, AdminAction::ManageWorkloads)]
            }
            ("post", "/v1/ledger/accept-time") => {
                let body = json!({"time": "2026-11-29T12:00:00Z", "reason": "drift"});
                vec![admin(post(path, body), AdminAction::AcceptTime)]
            }
            ("get", "/v1/keys") => vec![admin(get(path), AdminAction::ManageKeys)],
            ("post", "/v1/keys/rotate" | "/v1/keys/rotate-ledger" | "/v1/keys/reseal") => {
                vec![admin(post(path, json!({})), AdminAction::ManageKeys)]
            }
            ("post", "/v1/keys/{kid}/revoke") => {
                let path = format!("/v1/keys/{kid}/revoke");
                vec![admin(post(&path, json!({})), AdminAction::ManageKeys)]
            }
            ("get", "/v1/generations/active") => {
                vec![admin(get(path), AdminAction::ReadGeneration)]
            }
            ("get", "/v1/generations/{digest}") => {
                let path = format!("/v1/generations/{digest}");
                vec![admin(get(&path), AdminAction::ReadGeneration)]
            }
            ("post", "/v1/generations") => {
                let mut other = self.generation.clone();
                // A generation that was not stored before.
                let limit = u64::from(u16::from_str_radix(&random_hex(2), 16).unwrap());
                other["limits"]["denials_per_identity"] = json!(1_000 + limit);
                vec![admin(post(path, other), AdminAction::ActivateGeneration)]
            }
            ("post", "/v1/generations/check") => {
                let request = post(path, self.generation.clone());
                vec![admin(request, AdminAction::ReadGeneration)]
            }
            ("get", "/metrics") => vec![admin(get(path), AdminAction::ReadMetrics)],
            _ => return None,
        })
    }

    /// Every operation of the description that authenticates its caller.
    fn doors() -> Vec<(String, String)> {
        let document = serde_json::to_value(taskpass::http::openapi()).unwrap();
        let mut doors = Vec::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for method in operations.as_object().unwrap().keys() {
                if !WITHOUT_A_CALLER.contains(&(method.as_str(), path.as_str())) {
                    doors.push((method.clone(), path.clone()));
                }
            }
        }
        doors
    }

    /// The answers of an operation to the workload's calls.
    async fn answers(&self, method: &str, path: &str, things: &Things) -> Vec<(Call, Answer)> {
        let calls = self.calls(method, path, things);
        let calls = calls.unwrap_or_else(|| {
            panic!("{method} {path} is a new door: give it a case here, or list it as one without a caller")
        });
        let mut answers = Vec::new();
        for mut call in calls {
            let request = std::mem::replace(
                &mut call.request,
                self.client.request(Method::GET, "/livez"),
            );
            answers.push((call, send(request).await));
        }
        answers
    }
}

/// Asserts that the refusal says only that the caller is blocked.
#[track_caller]
fn assert_blocked(told: Told, answer: &Answer, liftable: Option<&str>, door: &str) {
    match told {
        Told::Problem => {
            let problem = assert_problem(answer, 403, "blocked");
            let known: BTreeSet<&str> = match liftable {
                None => ["type", "title", "status", "detail"].into(),
                Some(_) => ["type", "title", "status", "detail", "revocation"].into(),
            };
            let members: BTreeSet<&str> = problem
                .as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            assert_eq!(members, known, "{door}: {problem}");
            assert_eq!(problem["revocation"].as_str(), liftable, "{door}");
        }
        Told::Decision => {
            let problem = assert_problem(answer, 403, "denied");
            assert_eq!(problem["code"], "blocked", "{door}: {problem}");
            assert!(problem.get("allowed").is_none(), "{door}: {problem}");
            assert!(
                problem["decision"].get("observed").is_none(),
                "{door}: {problem}"
            );
        }
        Told::OAuth(status) => {
            assert_oauth_error(answer, status, "access_denied");
        }
    }
}

/// All rows except those of the log and of used evidence.
fn changeable(mut rows: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    rows.remove("one_time");
    for table in LOG {
        rows.remove(*table);
    }
    rows
}

async fn begin(kind: Kind) -> World {
    World::new(kind).await
}

on_both_stores! {
    fn a_blocked_caller_changes_and_learns_nothing_at_any_door;
}

async fn a_blocked_caller_changes_and_learns_nothing_at_any_door(world: World) {
    let doors = World::doors();
    let mut actions: BTreeSet<&str> = WITHOUT_A_DOOR
        .iter()
        .map(|action| action.as_str())
        .collect();
    // Unblocked, each call is answered, so it is the block that refuses it later.
    for (method, path) in &doors {
        let things = Things::real(&world, path.contains("{kid}")).await;
        for (call, answer) in world.answers(method, path, &things).await {
            // This call fails, because the clock is right; only an admin learns that.
            let admitted = *path == "/v1/ledger/accept-time"
                && answer.status == 400
                && answer.text().contains("the clock is not in doubt");
            assert!(
                (200..300).contains(&answer.status) || admitted,
                "{method} {path}: {} {}",
                answer.status,
                answer.text()
            );
            actions.extend(call.action.map(AdminAction::as_str));
        }
        let issued = things.issued.as_ref().unwrap();
        world
            .rig
            .broker
            .tasks
            .end_task(
                issued.task.id,
                TaskAuthority::Owner(world.rig.admin()),
                TaskEnd::Abort,
            )
            .await
            .unwrap();
    }
    let all: BTreeSet<&str> = AdminAction::ALL
        .iter()
        .map(|action| action.as_str())
        .collect();
    assert_eq!(actions, all, "an action of admins has no case");

    for selector in selectors(WORKLOAD) {
        let (real, unreal) = (Things::real(&world, true).await, Things::unreal());
        let narrow = matches!(selector, Selector::Workload(_));
        let id = block(&world.rig, selector.clone()).await;
        let liftable = (!narrow).then(|| id.to_string());
        let before = changeable(world.rig.rows().await);
        let mut decisions = 0;
        let leaves = world.rig.broker.core.ledger().basis();
        for (method, path) in &doors {
            let door = format!("{method} {path} under {selector:?}");
            let told = world.answers(method, path, &real).await;
            let of_nothing = world.answers(method, path, &unreal).await;
            for ((call, answer), (_, other)) in told.into_iter().zip(of_nothing) {
                // A caller that shows a handle has not attested its identity, and may lift
                // nothing.
                let liftable = liftable.as_deref().filter(|_| call.names);
                assert_blocked(call.told, &answer, liftable, &door);
                if call.names {
                    assert_blocked(call.told, &other, liftable, &door);
                }
                let recorded = call.told != Told::Problem && call.told != Told::OAuth(403);
                if recorded {
                    decisions += 2;
                } else if call.names {
                    assert_eq!(
                        answer.text(),
                        other.text(),
                        "{door}: the answers for existing and unknown objects must be equal"
                    );
                }
            }
        }
        assert_eq!(
            changeable(world.rig.rows().await),
            before,
            "something changed under {selector:?}"
        );
        let recorded = world.rig.broker.core.ledger().basis() - leaves;
        assert_eq!(recorded, decisions, "only refused decisions add leaves");
        world
            .rig
            .broker
            .revocation
            .lift(&world.rig.admin(), id)
            .await
            .unwrap();
        world
            .rig
            .issue(WORKLOAD, ask(&["orders:read"]))
            .await
            .unwrap();
    }
}
