//! Runs a rig's broker through its operations, in process and over HTTP, and through the sweeper's
//! work.

use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use taskpass::broker::issuance::Issued;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::domain::cutoff::{Selector, True};
use taskpass::domain::generation::Retention;
use taskpass::domain::request::NewTask;
use taskpass::domain::task::TaskEnd;
use taskpass::sweep;

use crate::support::http::{Client, send};
use crate::support::keys::{Algorithm, Key};
use crate::support::random_hex;
use crate::support::rig::{
    ADMIN, Rig, access_token, ask, ask_in, ask_joining, child_of, job, with_key,
};

/// The caller of all operations, as an admin.
pub(super) struct Tour<'r> {
    pub(super) rig: &'r Rig,
    pub(super) client: Client,
    /// The document of the active generation.
    pub(super) generation: Value,
    /// Answers other than a success.
    pub(super) refused: Vec<String>,
}

impl Tour<'_> {
    /// One round. Returns a live credential.
    pub(super) async fn go(&mut self) -> Issued {
        let issued = Box::pin(self.issue()).await;
        Box::pin(self.read(&issued)).await;
        Box::pin(self.administer(&issued)).await;
        Box::pin(self.revoke(&issued)).await;
        Box::pin(self.sweep()).await;
        // The one above was revoked.
        let rest = self.rig.issue("agent:reports", ask(&["orders:read"]));
        rest.await.unwrap()
    }

    async fn issue(&self) -> Issued {
        let rig = self.rig;
        let read = || ask(&["orders:read"]);
        let key = random_hex(8);
        let first = rig.issue("agent:reports", with_key(read(), &key)).await;
        first.unwrap();
        let again = rig.issue("agent:reports", with_key(read(), &key)).await;
        again.unwrap();
        let issued = rig.issue("agent:reports", read()).await.unwrap();
        let joining = ask_joining(&issued, &["orders:read"]);
        rig.issue("agent:reports", joining).await.unwrap();

        let lent = rig.delegate(&issued, "agent:child").await.unwrap();
        let child = ask_in(child_of(issued.task.id, &lent), &["orders:read"]);
        let child = rig.issue("agent:child", child).await.unwrap();
        assert!(rig.is_good(&issued).await && rig.is_good(&child).await);
        rig.heartbeat(&child).await.unwrap();
        rig.end(&child, TaskEnd::Complete).await.unwrap();

        let watched = NewTask {
            task_type: "watched".into(),
            heartbeat_seconds: Some(30),
            ..job()
        };
        let watched = ask_in(watched, &["orders:read"]);
        let watched = rig.issue("agent:reports", watched).await.unwrap();
        rig.heartbeat(&watched).await.unwrap();
        rig.end(&watched, TaskEnd::Abort).await.unwrap();

        let mut offline = read();
        offline.resource = "archive-api".into();
        rig.issue("agent:orders", offline).await.unwrap();
        assert!(rig.issue("agent:nobody", read()).await.is_err());
        issued
    }

    /// Sends a request as the admin, and notes an answer that is no success.
    async fn call(&mut self, method: Method, path: &str, body: Option<Value>) {
        let told = format!("{method} {path}");
        let request = self.client.request(method, path).bearer_auth(ADMIN);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = send(request).await;
        if !(200..300).contains(&answer.status) {
            let text = answer.text();
            self.refused
                .push(format!("{told}: {} {text}", answer.status));
        }
    }

    /// The operations that an admin can call only once in a while.
    pub(super) async fn rotate_the_ledgers_key(&mut self) {
        let path = "/v1/keys/rotate-ledger";
        self.call(Method::POST, path, Some(json!({}))).await;
    }

    async fn read(&mut self, issued: &Issued) {
        let task = issued.task.id.to_string();
        let session = issued.session.id.to_string();
        let decision = issued.decision.id.to_string();
        let digest = issued.decision.generation.to_string();
        let leaf = issued.receipt.index;
        for path in [
            "/livez".to_owned(),
            "/.well-known/jwks.json".to_owned(),
            "/status/0".to_owned(),
            "/v1/tasks".to_owned(),
            "/v1/tasks?limit=10&state=open".to_owned(),
            "/v1/tasks?limit=10&owner=dev:7".to_owned(),
            "/v1/tasks?limit=10&owner=dev:7&state=open".to_owned(),
            format!("/v1/tasks/{task}"),
            "/v1/sessions".to_owned(),
            "/v1/sessions?limit=10&state=active".to_owned(),
            "/v1/sessions?limit=10&workload=dev:7".to_owned(),
            "/v1/sessions?limit=10&resource=orders-api".to_owned(),
            format!("/v1/sessions?limit=10&task={task}"),
            format!("/v1/sessions/{session}"),
            "/v1/revocations".to_owned(),
            "/v1/revocations?standing=true".to_owned(),
            "/v1/revocations?selector=resource%3Darchive-api".to_owned(),
            "/v1/decisions".to_owned(),
            format!("/v1/decisions/{decision}"),
            format!("/v1/decisions/{decision}/record"),
            "/v1/ledger/keys".to_owned(),
            "/v1/ledger/checkpoint".to_owned(),
            "/v1/ledger/export".to_owned(),
            "/v1/ledger/consistency?from=1".to_owned(),
            format!("/v1/ledger/entries/{leaf}"),
            format!("/v1/ledger/entries/{leaf}/proof"),
            "/ledger/checkpoint".to_owned(),
            "/ledger/tile/0/000.p/1".to_owned(),
            "/ledger/tile/entries/000.p/1".to_owned(),
            "/v1/admins".to_owned(),
            "/v1/workloads".to_owned(),
            "/v1/keys".to_owned(),
            "/v1/generations/active".to_owned(),
            format!("/v1/generations/{digest}"),
        ] {
            self.call(Method::GET, &path, None).await;
        }
    }

    async fn administer(&mut self, issued: &Issued) {
        let role = json!({"workload": "dev:agent%3Aorders", "role": "nobody"});
        let jwk = Key::generate(Algorithm::Es256).jwk();
        let key = json!({"attestor": "keys", "workload": "batch", "jwk": jwk});
        let gone = json!({"attestor": "keys", "workload": "batch", "thumbprint": "x"});
        let mut changed = self.generation.clone();
        let limit = u16::from_str_radix(&random_hex(2), 16).unwrap();
        changed["limits"]["denials_per_identity"] = json!(1_000 + u32::from(limit));
        let purpose = format!("/v1/decisions/{}/purpose", issued.decision.id);
        for (method, path, body) in [
            (Method::POST, "/v1/admins", Some(role.clone())),
            (Method::DELETE, "/v1/admins", Some(role)),
            (Method::POST, "/v1/workloads", Some(key)),
            (Method::DELETE, "/v1/workloads", Some(gone)),
            (Method::DELETE, purpose.as_str(), None),
            (
                Method::POST,
                "/v1/generations/check",
                Some(self.generation.clone()),
            ),
            (Method::POST, "/v1/generations", Some(changed)),
            (Method::POST, "/v1/keys/reseal", Some(json!({}))),
        ] {
            self.call(method, path, body).await;
        }
        let broker = &self.rig.broker;
        broker.generations.follow().await.unwrap();
        let rotated = broker.signing_keys.rotate_keys(&self.rig.admin()).await;
        let path = format!("/v1/keys/{}/revoke", rotated.unwrap());
        for dry_run in [true, false] {
            let body = json!({"dry_run": dry_run});
            self.call(Method::POST, &path, Some(body)).await;
        }
    }

    async fn revoke(&mut self, issued: &Issued) {
        let workload = |name: &str| Selector::Workload(name.to_owned().try_into().unwrap());
        let held = workload("dev:agent%3Anobody");
        for (selector, block, dry_run) in [
            (Selector::All(True), BlockRequest::Default, true),
            (
                Selector::Resource("archive-api".into()),
                BlockRequest::Default,
                true,
            ),
            (
                Selector::Attestor("dev".into()),
                BlockRequest::Default,
                true,
            ),
            (
                Selector::SigningKey(issued.session.kid.clone()),
                BlockRequest::Default,
                true,
            ),
            (
                Selector::Generation(issued.decision.generation),
                BlockRequest::Default,
                true,
            ),
            (
                Selector::Policy("reports".into()),
                BlockRequest::Default,
                true,
            ),
            (
                Selector::Task(issued.task.id),
                BlockRequest::Seconds(0),
                false,
            ),
            (workload("dev:7"), BlockRequest::Default, true),
            (
                workload("dev:agent%3Achild"),
                BlockRequest::Seconds(0),
                false,
            ),
            (held, BlockRequest::UntilLifted, false),
        ] {
            let request = RevokeRequest {
                selector,
                block,
                deny_all_earlier_sessions: false,
                reason: "test".into(),
                allow_unknown: true,
                dry_run,
            };
            let admin = self.rig.admin();
            let revoked = self.rig.broker.revocation.revoke_many(&admin, request);
            if let Some(cutoff) = revoked.await.unwrap().cutoff {
                let path = format!("/v1/revocations/{}", cutoff.id);
                self.call(Method::GET, &path, None).await;
                if cutoff.selector == workload("dev:agent%3Anobody") {
                    let path = format!("{path}/lift");
                    self.call(Method::POST, &path, Some(json!({}))).await;
                }
            }
        }
        let more = self.rig.issue("agent:orders", ask(&["orders:read"]));
        let more = more.await.unwrap();
        let token = access_token(&more);
        for path in ["/oauth2/introspect", "/oauth2/revoke"] {
            let request = self.client.request(Method::POST, path).bearer_auth(ADMIN);
            let answer = send(request.form(&[("token", token.expose_secret())])).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        }
        let more = self.rig.issue("agent:orders", ask(&["orders:read"]));
        let more = more.await.unwrap();
        self.rig.revoke(more.session.id).await;
    }

    /// The work of the sweeper, with a task that is due.
    async fn sweep(&self) {
        let rig = self.rig;
        let silent = NewTask {
            task_type: "watched".into(),
            heartbeat_seconds: Some(30),
            ..job()
        };
        let silent = ask_in(silent, &["orders:read"]);
        rig.issue("agent:reports", silent).await.unwrap();
        rig.clock.advance(40);
        sweep::sweep(&rig.broker, rig.now()).await;
        drop(self.client.get("/readyz").await);
        rig.broker.health.compare_replicas(rig.now()).await.unwrap();
        let pruned = sweep::prune::prune(&rig.broker, Retention::default(), rig.now());
        pruned.await.unwrap();
    }
}
