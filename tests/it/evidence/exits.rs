//! Every exit of the tested calls: the requests that lead to each error.

use taskpass::attest::Evidence;
use taskpass::domain::cutoff::Selector;
use taskpass::domain::generation::Generation;
use taskpass::domain::limits::MAX_LEDGER_KEYS;
use taskpass::ids::SessionId;

use super::*;
use crate::support::keys::sign_jwt;
use crate::support::rig::{ask_joining, handle, with_key};

impl World {
    pub(super) fn token(&self) -> String {
        self.rig.token("agent:reports", json!({}))
    }

    /// Every tested exit: the variant of the error, and the call that returns it.
    pub(super) const EXITS: &[(&'static str, &'static str)] = &[
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
    pub(super) async fn call_ending_as(
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
    pub(super) fn proof(&self) -> Evidence {
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

    pub(super) async fn bind(&self, name: &str, role: &str, bound: bool) {
        let identity = format!("dev:{name}").try_into().unwrap();
        let admin = self.rig.admin();
        let bound = self
            .rig
            .broker
            .administration
            .bind_admin(&admin, identity, role.into(), bound);
        bound.await.unwrap();
    }

    pub(super) async fn allow_one_denial(&self) {
        self.decide_by(|next| next["limits"]["denials_per_identity"] = json!(1))
            .await;
    }

    /// Activates a changed generation.
    pub(super) async fn decide_by(&self, change: impl FnOnce(&mut serde_json::Value)) {
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
    pub(super) fn appended(&self) -> u64 {
        let text = self.rig.broker.core.metrics().render();
        let sum = "taskpass_ledger_batch_entries_sum ";
        let line = text.lines().find_map(|line| line.strip_prefix(sum));
        line.unwrap().trim_end_matches(".0").parse().unwrap()
    }

    /// Whether the broker refuses the evidence as used.
    pub(super) async fn is_spent(&self, token: &str) -> bool {
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
