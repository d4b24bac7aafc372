//! Whether a credential is the one that a leaf pins: that policy decided *this*, and decided it
//! first, for the credential carries the leaf's hash.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Asked;
use super::verdict::{Claim, Verdict};
use crate::clock::Timestamp;
use crate::crypto::jwt::ACCESS_TOKEN_TYPE;
use crate::crypto::{self, UnverifiedJwt, VerificationKey};
use crate::domain::leaf::{DecisionLeaf, Effect, Leaf};
use crate::domain::status_list::StatusPlace;
use crate::merkle::Hash;
use crate::mint::jwt::subject_and_actor;

/// Every claim that a credential of ours can have (`mint/jwt.rs`).
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

/// Who says which keys sign credentials.
pub(super) enum Signers<'a> {
    /// The auditor, by a JWK set.
    Set(&'a [u8]),
    /// The log, in a leaf that the broker wrote.
    Leaf(Logged<'a>),
    /// The log, in a leaf that others could have written: its heads were not always the broker's own.
    AnyonesLeaf(u64),
    /// Nobody. Whether the caller puts up with claims alone, which whoever has the leaf could have
    /// written.
    Nobody { unchecked: bool },
}

/// A key that a log names.
#[derive(Clone, Copy)]
pub(super) struct Logged<'a> {
    /// The leaf that names it.
    pub(super) index: u64,
    /// The key.
    pub(super) jwk: &'a str,
    /// Whether the log was always one in which each leaf is the broker's.
    pub(super) is_brokers: bool,
}

impl<'a> Signers<'a> {
    /// What the auditor says comes before what a log says of itself.
    pub(super) fn of(asked: &Asked<'a>, logged: Option<Logged<'a>>) -> Self {
        match (asked.jwks, logged) {
            (Some(jwks), _) => Self::Set(jwks),
            (None, Some(logged)) if logged.is_brokers => Self::Leaf(logged),
            (None, Some(logged)) if !asked.unchecked_signature => Self::AnyonesLeaf(logged.index),
            (None, _) => Self::Nobody {
                unchecked: asked.unchecked_signature,
            },
        }
    }
}

/// A credential whose claims nobody has verified yet.
pub(super) struct Credential {
    jwt: UnverifiedJwt,
    claims: Map<String, Value>,
}

impl Credential {
    /// Reads one. [`UnverifiedJwt`] refuses what is not strictly a JWT first.
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

    /// The hash of the leaf that it says it was decided by.
    pub(super) fn leaf_hash(&self) -> Option<Hash> {
        let text = self.claims.get("dec")?.as_str()?;
        Hash::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
    }

    /// The key that it says it was signed with.
    pub(super) fn kid(&self) -> Option<&str> {
        self.jwt.unverified_kid()
    }

    /// Checks it against the leaf of this hash, and its signature.
    pub(super) fn check(
        &self,
        verdict: &mut Verdict,
        leaf_hash: &Hash,
        (index, leaf): (u64, &Leaf),
        signers: &Signers<'_>,
    ) {
        let Effect::Permits(decision) = leaf.event.facets().effect else {
            return verdict.fail(
                Claim::Decided,
                "the leaf permits nothing, so the credential was not decided by it",
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

    fn check_signature(&self, verdict: &mut Verdict, signers: &Signers<'_>) {
        let checked = match signers {
            Signers::Set(jwks) => self.verify_by_set(jwks),
            Signers::Leaf(Logged { index, jwk, .. }) => self.verify_by_key(jwk).inspect(|()| {
                verdict.notes.push(format!(
                    "the credential's signature was checked with the key that leaf {index} of the \
                     log names"
                ));
            }),
            Signers::Nobody { unchecked: true } => {
                let note = "the credential's own signature was not checked, as you said: whoever \
                            has the leaf could have written its claims";
                verdict.notes.push(note.into());
                return;
            }
            Signers::AnyonesLeaf(index) => {
                return verdict.lack(
                    Claim::Decided,
                    &format!(
                        "the credential's own signature was not checked: leaf {index} names its key, \
                         and the log does not say that each of its heads is the broker's own, so \
                         somebody else could have written that leaf; give the issuer's keys with --jwks"
                    ),
                );
            }
            Signers::Nobody { unchecked: false } => {
                return verdict.lack(
                    Claim::Decided,
                    "the credential's own signature was not checked; give the issuer's keys with \
                     --jwks",
                );
            }
        };
        if let Err(why) = checked {
            verdict.fail(Claim::Decided, why);
        }
    }

    fn check_claims(&self, verdict: &mut Verdict, leaf_hash: &Hash, decision: &DecisionLeaf) {
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
                format!("the credential says `{unknown}`, of which a leaf knows nothing"),
            );
        }
        let key = json(serde_json::to_value(&decision.cnf));
        if *claim("cnf") != key {
            verdict.fail(
                Claim::Decided,
                "the credential is bound to another key than the leaf says",
            );
        }
        if self.kid() != decision.kid.as_deref() {
            verdict.fail(
                Claim::Decided,
                "the credential names another signing key than the leaf says",
            );
        }
    }

    /// The list and the bit that say whether it was revoked follow from the leaf's place.
    fn check_status(&self, verdict: &mut Verdict, index: u64, decision: &DecisionLeaf) {
        let said = self.claims.get("status").unwrap_or(&Value::Null);
        let issuer = decision.issuer.as_deref().unwrap_or_default();
        let leaf = decision.first_status_list.map_or(Value::Null, |first| {
            StatusPlace::of(index, first).claim(issuer)
        });
        if *said != leaf {
            verdict.fail(
                Claim::Decided,
                format!("the credential's status is {said}, by the leaf it is {leaf}"),
            );
        }
    }

    fn check_dates(&self, verdict: &mut Verdict, decided_at: Timestamp, decision: &DecisionLeaf) {
        let date = |name: &str| self.claims.get(name).and_then(Value::as_i64);
        if date("iat").is_none_or(|iat| iat < decided_at.seconds()) {
            verdict.fail(
                Claim::Decided,
                format!(
                    "the credential's iat is missing, or before it was decided at {decided_at}"
                ),
            );
        }
        match (date("exp"), decision.expires_at) {
            (Some(exp), Some(latest)) if exp <= latest.seconds() => {}
            (Some(exp), Some(latest)) => verdict.fail(
                Claim::Decided,
                format!(
                    "the credential's exp is {exp}, the leaf allows {} at the latest",
                    latest.seconds()
                ),
            ),
            _ => verdict.fail(
                Claim::Decided,
                "the credential's exp or the leaf's is missing",
            ),
        }
    }

    /// Whether it was good when it was used, by what it says itself.
    pub(super) fn check_use(&self, verdict: &mut Verdict, used: Timestamp) {
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

/// Holds what was said of a decision against what its leaf says.
pub(super) fn equal(verdict: &mut Verdict, what: &str, said: &Value, leaf: &Value) {
    if said != leaf || said.is_null() {
        verdict.fail(
            Claim::Decided,
            format!("{what} is {said}, the leaf says {leaf}"),
        );
    }
}
