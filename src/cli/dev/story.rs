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
use serde_json::{Value, json};
use url::Url;

use super::super::CliError;
use super::super::output::{self, Form};
use super::Running;
use super::issuer::attest;
use super::shop::Shop;
use crate::audit::verify;
use crate::client::{Answer, Client};
use crate::merkle::{Trust, VerifierKey};

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
        let allowed = refused
            .body
            .pointer("/allowed/authorization_details/0/actions");
        if allowed != Some(&json!(["orders:read"])) {
            return Err(otherwise("the refusal did not name the allowed actions"));
        }

        teller.step(
            2,
            "It requests the allowed action: one call, with a fresh attestation.",
        )?;
        let granted = self.ask(&["orders:read"]).await?;
        expect("the grant", &granted, StatusCode::CREATED)?;
        let text = |pointer: &str| granted.body.pointer(pointer).and_then(Value::as_str);
        let (Some(token), Some(session), Some(task), Some(handle)) = (
            text("/credential/access_token"),
            text("/session/id"),
            text("/task/id"),
            text("/task/handle"),
        ) else {
            return Err(otherwise("the grant lacks its credential, session or task"));
        };
        teller.result(format!(
            "granted: session {session}, until {}, revocable: {}",
            text("/session/expires_at").unwrap_or("?"),
            text("/session/revocability/class").unwrap_or("?"),
        ))?;
        teller.result("its decision was logged before it was signed, and the answer proves it")?;

        teller.step(
            3,
            "It uses the credential. The orders server asks the broker before it serves.",
        )?;
        let orders = Client::new(shop)?.with_bearer(&token.into())?;
        let served = orders.send(Method::GET, "/v1/42", None).await?;
        expect("the order", &served, StatusCode::OK)?;
        teller.result(format!("GET /v1/42: 200 {}", served.body))?;
        let order = json!({"total": "0.00"});
        let write = orders.send(Method::POST, "/v1/42", Some(&order)).await?;
        expect("writing", &write, StatusCode::FORBIDDEN)?;
        teller.result("POST /v1/42: 403, the credential permits reading only")?;

        teller.step(
            4,
            "The work is done: it completes the task with the task's handle.",
        )?;
        let done = Client::new(&self.broker)?
            .with_authorization("Handle", &handle.into())?
            .post(&format!("/v1/tasks/{task}/complete"), &json!({}))
            .await?;
        let state = done.pointer("/task/state").and_then(Value::as_str);
        if state != Some("completed") {
            return Err(otherwise("the task is not completed"));
        }
        teller.result("the task is completed, and its session ended with it")?;

        teller.step(
            5,
            "It uses the same credential a moment later. The credential has not expired.",
        )?;
        let dead = orders.send(Method::GET, "/v1/42", None).await?;
        expect("the dead credential", &dead, StatusCode::UNAUTHORIZED)?;
        teller.result("GET /v1/42: 401, the broker answers: not active")?;

        teller.step(
            6,
            "An auditor verifies the receipt offline, with the log's key only.",
        )?;
        self.audit(&granted.body).await
    }

    async fn ask(&self, actions: &[&str]) -> Result<Answer, CliError> {
        let attestation = attest(&self.issuer, "agent:reports").await?;
        let body = json!({
            "task": {"type": "nightly-report", "purpose": "monthly numbers for finance"},
            "resource": "orders-api",
            "authorization_details": [{
                "type": "api", "actions": actions, "locations": ["https://orders.example/v1"],
            }],
            "ttl_seconds": 300,
        });
        let client = Client::new(&self.broker)?.with_bearer(&attestation)?;
        let path = "/v1/credentials";
        Ok(client.send(Method::POST, path, Some(&body)).await?)
    }

    async fn audit(&self, granted: &Value) -> Result<(), CliError> {
        let admin = Client::new(&self.broker)?.with_bearer(self.admin)?;
        let answer = admin.get("/v1/ledger/keys").await?;
        let list = answer.get("vkeys").and_then(Value::as_array);
        let keys: Vec<VerifierKey> = list
            .into_iter()
            .flatten()
            .filter_map(|key| key.as_str()?.parse().ok())
            .collect();
        let file = serde_json::to_vec(granted).map_err(CliError::unavailable)?;
        let jwks = Client::new(&self.broker)?
            .get("/.well-known/jwks.json")
            .await?;
        let jwks = serde_json::to_vec(&jwks).map_err(CliError::unavailable)?;
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
