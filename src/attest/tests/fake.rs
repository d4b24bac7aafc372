//! An attestor for unit tests that believes every token addressed to it, without a signature.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::testing::encode;
use crate::attest::error::Refused;
use crate::attest::explain::Conditions;
use crate::attest::{AttestError, Attestor, Attestors, Evidence, Presented, one_time};
use crate::clock::Timestamp;
use crate::crypto::digest::sha256;
use crate::crypto::jwk::Algorithm;
use crate::crypto::jwt::Claims;
use crate::domain::workload::{Identity, Instance, Reuse, Workload, encode_value};

pub(crate) const NAME: &str = "fake";

/// The lifetime of a token in seconds.
const LIFE_SECONDS: u64 = 600;

/// The issuer in each of its tokens.
const ISSUER: &str = "https://fake.example";

struct Fake;

/// Evidence of the workload `name`, run `run`. Each `serial` makes another token.
pub(crate) fn evidence(name: &str, run: &str, serial: u64, now: Timestamp) -> Evidence {
    let header = encode(&json!({"alg": "ES256"}));
    let claims = encode(&json!({
        "iss": ISSUER, "sub": name, "run": run, "jti": serial.to_string(), "iat": now.seconds(),
    }));
    Evidence {
        bearer: Some(SecretString::from(format!("{header}.{claims}.AA"))),
        ..Evidence::default()
    }
}

/// The identity that the attestor gives to the workload `name`.
pub(crate) fn identity(name: &str) -> Identity {
    let identity = format!("{NAME}:{}", encode_value(name));
    Identity::try_from(identity).unwrap()
}

impl Attestors {
    /// The fake attestor alone.
    pub(crate) fn fake() -> Self {
        Self {
            all: vec![Box::new(Fake)],
            issuers: [ISSUER.to_owned()].into(),
            not_before: None,
            foundations: BTreeMap::from([(NAME.to_owned(), sha256(NAME.as_bytes()))]),
        }
    }
}

impl Attestor for Fake {
    fn name(&self) -> &str {
        NAME
    }

    fn recognises(&self, presented: &Presented<'_>) -> bool {
        self.issued(presented)
    }

    fn issued(&self, presented: &Presented<'_>) -> bool {
        let token = presented.token();
        token.is_ok_and(|token| token.unverified_issuer() == Some(ISSUER))
    }

    fn leeway_seconds(&self) -> u64 {
        0
    }

    fn algorithms(&self) -> &[Algorithm] {
        &[Algorithm::Es256]
    }

    fn appraise<'a>(
        &'a self,
        presented: &'a Presented<'a>,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Workload, Refused>> {
        Box::pin(async move {
            let claims = presented.token()?.unverified_claims();
            let instance = Instance::try_from(claims.text("run")?.to_owned());
            let serial = claims.text("jti")?;
            let issued_at = claims.get("iat").and_then(Value::as_i64);
            let issued_at = issued_at.map_or(now, Timestamp::from_seconds);
            Ok(Workload {
                attestor: NAME.to_owned(),
                identity: identity(claims.text("sub")?),
                instance: Some(instance.map_err(|_| AttestError::Identity)?),
                claims: BTreeMap::new(),
                issued_at: now,
                reuse: Reuse::Once,
                evidence: one_time(
                    NAME,
                    &[serial.as_bytes()],
                    issued_at..now.plus_seconds(LIFE_SECONDS),
                ),
                proofs: Vec::new(),
                key: None,
            })
        })
    }

    fn conditions(&self, _claims: &Claims, _now: Timestamp) -> Conditions {
        Conditions::default()
    }

    fn expected(&self, _name: &str) -> Option<String> {
        None
    }

    fn could_name(&self, _name: &str) -> bool {
        true
    }
}
