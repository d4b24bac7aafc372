//! The demonstration, with real requests. An agent is refused an action that policy does not allow,
//! and learns which ones it may request. It gets a credential for its task, uses it, completes the
//! task, and is refused with the same credential. Then the receipt is verified with the log's key
//! only.
//!
//! Each step checks its answer. An unexpected answer is reported as a failure.
//!
//! `super::run` plays it after the broker serves; `super::shop` is the server that the agent calls.

use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::json;
use url::Url;

use super::super::CliError;
use super::super::output::{self, Form};
use super::Running;
use super::issuer::attest;
use super::shop::Shop;
use crate::audit::verify;
use crate::client::{Answer, Client, Nothing, Reply};
use crate::domain::grant::AuthorizationDetail;
use crate::domain::task::TaskState;
use crate::merkle::{Trust, VerifierKey};
use crate::wire::credentials::{CredentialBody, IssuedBody, RequestBody, TaskBody};
use crate::wire::ledger::VkeysBody;
use crate::wire::oauth::JwkSetBody;
use crate::wire::open::Open;
use crate::wire::problem::ProblemBody;
use crate::wire::tasks::TaskSessionsBody;

/// Prints the steps.
struct Teller {
    quietly: bool,
}

impl Teller {
    fn say(&self, text: impl AsRef<str>) -> Result<(), CliError> {
        if self.quietly {
            output::note(text);
            return Ok(());
        }
        output::line(text)
    }

    fn step(&self, number: u8, text: &str) -> Result<(), CliError> {
        self.say(format!("\n{number}. {text}"))
    }

    fn result(&self, text: impl AsRef<str>) -> Result<(), CliError> {
        self.say(format!("   -> {}", text.as_ref()))
    }
}

/// Plays the demonstration. With [`Form::Json`] it is printed on standard error.
pub(super) async fn play(running: &Running, form: Form) -> Result<(), CliError> {
    let story = Story {
        teller: Teller {
            quietly: form.is_json(),
        },
        broker: address(&running.url)?,
        issuer: address(&running.issuer)?,
        admin: &running.admin,
    };
    let shop = Shop::bind(&story.broker, &story.issuer).await?;
    let shop_url = shop.url()?;
    tokio::select! {
        ended = shop.serve() => ended,
        told = story.tell(&shop_url) => told,
    }
}

fn address(url: &str) -> Result<Url, CliError> {
    Url::parse(url).map_err(CliError::unavailable)
}

struct Story<'a> {
    teller: Teller,
    broker: Url,
    issuer: Url,
    admin: &'a SecretString,
}

impl Story<'_> {
    async fn tell(&self, shop: &Url) -> Result<(), CliError> {
        let teller = &self.teller;
        teller.say(
            "One credential, for one task, decided before it exists, provable afterwards, dead \
             when the task ends.",
        )?;

        teller.step(
            1,
            "The reporting agent identifies itself with an OIDC token, and asks to read and write \
             orders.\n   For a nightly report, policy allows it to read, but not to write.",
        )?;
        let refused = self.ask(&["orders:read", "orders:write"]).await?;
        expect("the refusal", &refused, StatusCode::FORBIDDEN)?;
        teller.result(refused.failure().to_string().replace('\n', "\n    "))?;
        if allowed_actions(refused.problem()) != ["orders:read"] {
            return Err(otherwise("the refusal did not name the allowed actions"));
        }

        teller.step(
            2,
            "It requests the allowed action: one call, with a fresh attestation.",
        )?;
        let granted = self.ask(&["orders:read"]).await?;
        expect("the grant", &granted, StatusCode::CREATED)?;
        let granted: Reply<IssuedBody> = granted.success()?;
        let issued = granted.read()?;
        let (session, task) = (&issued.session, issued.task.id);
        let (CredentialBody::Jwt { access_token, .. }, Some(handle)) =
            (&issued.credential, &issued.task.handle)
        else {
            return Err(otherwise("the grant lacks its credential or its handle"));
        };
        let revocability = session.revocability.known();
        teller.result(format!(
            "granted: session {}, until {}, revocable: {}",
            session.id,
            session.expires_at,
            revocability.map_or("?", |own| own.class.as_str()),
        ))?;
        teller.result("its decision was logged before it was signed, and the answer proves it")?;

        teller.step(
            3,
            "It uses the credential. The orders server asks the broker before it serves.",
        )?;
        let token = access_token.clone().into_secret();
        let orders = Client::new(shop)?.with_bearer(&token)?;
        let served = orders.send(Method::GET, "/v1/42").await?;
        expect("the order", &served, StatusCode::OK)?;
        teller.result(format!("GET /v1/42: 200 {}", served.body))?;
        let order = json!({"total": "0.00"});
        let write = orders.send_json(Method::POST, "/v1/42", &order).await?;
        expect("writing", &write, StatusCode::FORBIDDEN)?;
        teller.result("POST /v1/42: 403, the credential permits reading only")?;

        teller.step(
            4,
            "The work is done: it completes the task with the task's handle.",
        )?;
        let handle = handle.clone().into_secret();
        let done: Reply<TaskSessionsBody> = Client::new(&self.broker)?
            .with_authorization("Handle", &handle)?
            .post(&format!("/v1/tasks/{task}/complete"), &Nothing {})
            .await?;
        if done.read()?.task.state != Open::Known(TaskState::Completed) {
            return Err(otherwise("the task is not completed"));
        }
        teller.result("the task is completed, and its session ended with it")?;

        teller.step(
            5,
            "It uses the same credential a moment later. The credential has not expired.",
        )?;
        let dead = orders.send(Method::GET, "/v1/42").await?;
        expect("the dead credential", &dead, StatusCode::UNAUTHORIZED)?;
        teller.result("GET /v1/42: 401, the broker answers: not active")?;

        teller.step(
            6,
            "An auditor verifies the receipt offline, with the log's key only.",
        )?;
        self.audit(&granted).await
    }

    async fn ask(&self, actions: &[&str]) -> Result<Answer, CliError> {
        let attestation = attest(&self.issuer, "agent:reports").await?;
        let rights = json!([{
            "type": "api", "actions": actions, "locations": ["https://orders.example/v1"],
        }]);
        let body = RequestBody {
            task: TaskBody {
                kind: Some("nightly-report".into()),
                purpose: Some("monthly numbers for finance".into()),
                ..TaskBody::default()
            },
            resource: "orders-api".into(),
            authorization_details: serde_json::from_value(rights).map_err(CliError::unavailable)?,
            ttl_seconds: Some(300),
        };
        let client = Client::new(&self.broker)?.with_bearer(&attestation)?;
        let path = "/v1/credentials";
        Ok(client.send_json(Method::POST, path, &body).await?)
    }

    async fn audit(&self, granted: &Reply<IssuedBody>) -> Result<(), CliError> {
        let admin = Client::new(&self.broker)?.with_bearer(self.admin)?;
        let listed: Reply<VkeysBody> = admin.get("/v1/ledger/keys").await?;
        let keys: Vec<VerifierKey> = listed
            .read()?
            .vkeys
            .iter()
            .filter_map(|key| key.parse().ok())
            .collect();
        let file = serde_json::to_vec(granted.raw()).map_err(CliError::unavailable)?;
        let jwks: Reply<JwkSetBody> = Client::new(&self.broker)?
            .get("/.well-known/jwks.json")
            .await?;
        let jwks = serde_json::to_vec(jwks.raw()).map_err(CliError::unavailable)?;
        let trust = Trust {
            keys,
            witnesses: Vec::new(),
        };
        let request = verify::Request {
            trust: &trust,
            credential: None,
            jwks: Some(&jwks),
            unchecked_signature: false,
            given: &[],
            proofs: &[],
            used_at: None,
        };
        let verdict = verify::verify(file.as_slice(), &request);
        for line in verdict.to_string().lines() {
            self.teller.result(line)?;
        }
        if verdict.holds() {
            return Ok(());
        }
        Err(otherwise("the receipt does not hold"))
    }
}

/// The actions of the first object that policy would permit.
fn allowed_actions(problem: Option<ProblemBody>) -> Vec<String> {
    let allowed = problem.and_then(|problem| problem.members.allowed);
    let allowed = allowed.as_ref().and_then(Open::known);
    let details = allowed.and_then(|allowed| allowed.authorization_details.as_ref());
    let first = details.and_then(|details| details.first());
    let actions = first.into_iter().flat_map(AuthorizationDetail::actions);
    actions.map(|action| action.as_str().to_owned()).collect()
}

fn expect(step: &str, answer: &Answer, status: StatusCode) -> Result<(), CliError> {
    if answer.status == status {
        return Ok(());
    }
    Err(otherwise(&format!(
        "{step} should be {status}: {}",
        answer.failure()
    )))
}

fn otherwise(problem: &str) -> CliError {
    CliError::Unavailable(format!(
        "the demonstration failed: {problem}\n(the state of earlier runs, such as a block, is kept: \
         start with --no-story, or with another --data-dir)"
    ))
}
