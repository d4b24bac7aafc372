//! Checks that a credential belongs to a leaf. The credential carries the leaf's hash: policy
//! decided exactly this credential, before it was signed.
//!
//! A text that is not a JWT is an error with its reason. Each difference from the leaf is reported
//! to the [`Verification`] as a contradiction. `super::input_file` and `super::whole_log` call this
//! file; `crypto::jwt` verifies the signature.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Request;
use super::verification::{Claim, Verification};
use crate::clock::Timestamp;
use crate::crypto::jwt::ACCESS_TOKEN_TYPE;
use crate::crypto::{self, UnverifiedJwt, VerificationKey};
use crate::domain::leaf::{DecisionLeaf, Effect, Leaf};
use crate::domain::status_list::StatusListIndex;
use crate::domain::workload::subject_and_actor;
use crate::merkle::Hash;

/// Every claim that an access token can have (`mint/jwt.rs`).
const CLAIMS: [&str; 15] = [
    "iss",
    "sub",
    "aud",
    "client_id",
    "iat",
    "exp",
    "jti",
    "scope",
    "authorization_details",
    "act",
    "cnf",
    "status",
    "task",
    "sid",
    "dec",
];

/// The source of the keys that sign credentials.
pub(super) enum Signers<'a> {
    /// A JWK set that the auditor gave.
    Set(&'a [u8]),
    /// A leaf of the log that only the broker can have written.
    Leaf(Logged<'a>),
    /// A leaf of the log that others could have written, because its heads were not always
    /// authenticated.
    UnauthenticatedLeaf(u64),
    /// None. `unchecked` says whether the user accepts unverified claims, which any holder of the
    /// leaf could have written.
    Missing { unchecked: bool },
}

/// A key that a leaf of the log names.
#[derive(Clone, Copy)]
pub(super) struct Logged<'a> {
    /// The index of that leaf.
    pub(super) index: u64,
    /// The key as a JWK.
    pub(super) jwk: &'a str,
    /// Whether the log guarantees that the broker wrote every leaf.
    pub(super) is_brokers: bool,
}

impl<'a> Signers<'a> {
    /// Chooses the source. The auditor's keys take precedence over the log's.
    pub(super) fn of(request: &Request<'a>, logged: Option<Logged<'a>>) -> Self {
        match (request.jwks, logged) {
            (Some(jwks), _) => Self::Set(jwks),
            (None, Some(logged)) if logged.is_brokers => Self::Leaf(logged),
            (None, Some(logged)) if !request.unchecked_signature => {
                Self::UnauthenticatedLeaf(logged.index)
            }
            (None, _) => Self::Missing {
                unchecked: request.unchecked_signature,
            },
        }
    }
}

/// A credential with unverified claims.
pub(super) struct Credential {
    jwt: UnverifiedJwt,
    claims: Map<String, Value>,
}

impl Credential {
    /// Parses a credential. [`UnverifiedJwt`] refuses text that is not strictly a JWT.
    pub(super) fn parse(token: &str) -> Result<Self, String> {
        let unreadable = |why: String| format!("the credential cannot be read: {why}");
        let jwt = UnverifiedJwt::parse(token).map_err(|error| unreadable(error.to_string()))?;
        let payload = token.split('.').nth(1).unwrap_or_default();
        let bytes = URL_SAFE_NO_PAD
            .decode(payload)
            .map_err(|_| unreadable("its payload is not base64url".into()))?;
        let claims =
            serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        Ok(Self { jwt, claims })
    }

    /// The hash of the leaf that the credential names as its decision.
    pub(super) fn leaf_hash(&self) -> Option<Hash> {
        let text = self.claims.get("dec")?.as_str()?;
        Hash::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
    }

    /// The id of the key that the credential names as its signing key.
    pub(super) fn kid(&self) -> Option<&str> {
        self.jwt.unverified_kid()
    }

    /// Checks it against the leaf with this hash, and verifies its signature.
    pub(super) fn check(
        &self,
        verdict: &mut Verification,
        leaf_hash: &Hash,
        (index, leaf): (u64, &Leaf),
        signers: &Signers<'_>,
    ) {
        let Effect::Permits(decision) = leaf.event.facets().effect else {
            return verdict.fail(
                Claim::Decided,
                "the leaf does not permit a credential, so it did not decide this one",
            );
        };
        if !self.jwt.unverified_is_type(ACCESS_TOKEN_TYPE) {
            verdict.fail(
                Claim::Decided,
                format!("the credential's typ is not {ACCESS_TOKEN_TYPE}"),
            );
        }
        self.check_claims(verdict, leaf_hash, decision);
        self.check_status(verdict, index, decision);
        self.check_dates(verdict, leaf.at, decision);
        self.check_signature(verdict, signers);
    }

    fn check_signature(&self, verdict: &mut Verification, signers: &Signers<'_>) {
        let checked = match signers {
            Signers::Set(jwks) => self.verify_by_set(jwks),
            Signers::Leaf(Logged { index, jwk, .. }) => self.verify_by_key(jwk).inspect(|()| {
                verdict.notes.push(format!(
                    "the credential's signature was checked with the key that leaf {index} of the \
                     log names"
                ));
            }),
            Signers::Missing { unchecked: true } => {
                let note = "the credential's signature was not checked, as requested: any holder of \
                            the leaf could have written its claims";
                verdict.notes.push(note.into());
                return;
            }
            Signers::UnauthenticatedLeaf(index) => {
                return verdict.lack(
                    Claim::Decided,
                    &format!(
                        "the credential's signature was not checked: leaf {index} names its key, but \
                         the log does not guarantee that each of its heads is the broker's, so another \
                         party could have written that leaf; give the issuer's keys with --jwks"
                    ),
                );
            }
            Signers::Missing { unchecked: false } => {
                return verdict.lack(
                    Claim::Decided,
                    "the credential's signature was not checked; give the issuer's keys with \
                     --jwks",
                );
            }
        };
        if let Err(why) = checked {
            verdict.fail(Claim::Decided, why);
        }
    }

    fn check_claims(&self, verdict: &mut Verification, leaf_hash: &Hash, decision: &DecisionLeaf) {
        let none = Value::Null;
        let claim = |name: &str| self.claims.get(name).unwrap_or(&none);
        let json = |value: Result<Value, serde_json::Error>| value.unwrap_or_default();
        let hash = URL_SAFE_NO_PAD.encode(leaf_hash.as_bytes());
        let session = json(serde_json::to_value(decision.session));
        let scope = decision
            .grant
            .as_ref()
            .map(crate::domain::grant::Grant::scope);
        for (name, leaf) in [
            ("iss", json(serde_json::to_value(&decision.issuer))),
            ("dec", Value::from(hash)),
            ("jti", session.clone()),
            ("sid", session),
            ("aud", json(serde_json::to_value(&decision.audience))),
            ("task", json(serde_json::to_value(decision.task))),
            ("client_id", json(serde_json::to_value(&decision.workload))),
            (
                "authorization_details",
                json(serde_json::to_value(&decision.grant)),
            ),
            ("scope", Value::from(scope)),
        ] {
            equal(
                verdict,
                &format!("the credential's {name}"),
                claim(name),
                &leaf,
            );
        }
        let (sub, act) = subject_and_actor(&decision.workload, &decision.delegators);
        let sub = json(serde_json::to_value(sub));
        equal(verdict, "the credential's sub", claim("sub"), &sub);
        let act = act.unwrap_or_default();
        if *claim("act") != act {
            verdict.fail(
                Claim::Decided,
                format!(
                    "the credential's act is {}, the leaf says {act}",
                    claim("act")
                ),
            );
        }
        let mut names = self.claims.keys();
        if let Some(unknown) = names.find(|name| !CLAIMS.contains(&name.as_str())) {
            verdict.fail(
                Claim::Decided,
                format!("the credential has the claim `{unknown}`, which no leaf has"),
            );
        }
        let key = json(serde_json::to_value(&decision.cnf));
        if *claim("cnf") != key {
            verdict.fail(
                Claim::Decided,
                "the credential is bound to another key than the one in the leaf",
            );
        }
        if self.kid() != decision.kid.as_deref() {
            verdict.fail(
                Claim::Decided,
                "the credential names another signing key than the leaf",
            );
        }
    }

    /// Checks the list and the index of the credential's status, which follow from the leaf's
    /// index.
    fn check_status(&self, verdict: &mut Verification, index: u64, decision: &DecisionLeaf) {
        let said = self.claims.get("status").unwrap_or(&Value::Null);
        let issuer = decision.issuer.as_deref().unwrap_or_default();
        let leaf = decision.first_status_list.map_or(Value::Null, |first| {
            StatusListIndex::of(index, first).claim(issuer)
        });
        if *said != leaf {
            verdict.fail(
                Claim::Decided,
                format!("the credential's status is {said}, but by the leaf it must be {leaf}"),
            );
        }
    }

    fn check_dates(
        &self,
        verdict: &mut Verification,
        decided_at: Timestamp,
        decision: &DecisionLeaf,
    ) {
        let date = |name: &str| self.claims.get(name).and_then(Value::as_i64);
        if date("iat").is_none_or(|iat| iat < decided_at.seconds()) {
            verdict.fail(
                Claim::Decided,
                format!("the credential's iat is missing, or before its decision at {decided_at}"),
            );
        }
        match (date("exp"), decision.expires_at) {
            (Some(exp), Some(latest)) if exp <= latest.seconds() => {}
            (Some(exp), Some(latest)) => verdict.fail(
                Claim::Decided,
                format!(
                    "the credential's exp is {exp}, but the leaf permits {} at the latest",
                    latest.seconds()
                ),
            ),
            _ => verdict.fail(
                Claim::Decided,
                "the credential's exp or the leaf's is missing",
            ),
        }
    }

    /// Checks that the credential was valid when it was used, by its own claims.
    pub(super) fn check_use(&self, verdict: &mut Verification, used: Timestamp) {
        let date = |name: &str| self.claims.get(name).and_then(Value::as_i64);
        let claim = Claim::LoggedBeforeUse;
        if let Some(iat) = date("iat").map(Timestamp::from_seconds)
            && used < iat
        {
            let why = format!("it was used at {used}, before the credential's iat, {iat}");
            verdict.fail(claim, why);
        }
        if let Some(exp) = date("exp").map(Timestamp::from_seconds)
            && used >= exp
        {
            let why = format!("it was used at {used}, and the credential's exp is {exp}");
            verdict.fail(claim, why);
        }
    }

    fn verify_by_set(&self, jwks: &[u8]) -> Result<(), String> {
        #[derive(Deserialize)]
        struct KeySet {
            keys: Vec<Value>,
        }
        let set: KeySet = serde_json::from_slice(jwks)
            .map_err(|error| format!("the JWK set cannot be read: {error}"))?;
        let wanted = self.kid();
        let found = set
            .keys
            .iter()
            .find(|key| wanted.is_some() && key.get("kid").and_then(Value::as_str) == wanted);
        let Some(found) = found else {
            return Err("the JWK set does not hold the key that the credential names".into());
        };
        self.verify_by_key(&found.to_string())
    }

    fn verify_by_key(&self, jwk: &str) -> Result<(), String> {
        let key = VerificationKey::parse(jwk.as_bytes())
            .map_err(|error| format!("the key of the credential cannot be used: {error}"))?;
        crypto::verify(&self.jwt, &key, &[self.jwt.unverified_algorithm()])
            .map(drop)
            .map_err(|error| format!("the credential's signature does not hold: {error}"))
    }
}

/// Compares a value in an answer or credential with the leaf's.
pub(super) fn equal(verdict: &mut Verification, name: &str, said: &Value, leaf: &Value) {
    if said != leaf || said.is_null() {
        verdict.fail(
            Claim::Decided,
            format!("{name} is {said}, but the leaf has {leaf}"),
        );
    }
}
