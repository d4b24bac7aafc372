//! What a receipt shows, and what it does not.
//!
//! Three things could be asked of a credential: that it was *decided*, that the decision was
//! *logged*, and that it was logged *before it was used*. The first is shown by the leaf, whose
//! hash the credential carries: the decision's bytes existed before the signature did. The second
//! by the inclusion proof under a checkpoint that the log signed. The third is shown by neither: a
//! receipt does not say when the log got its leaf. A checkpoint that was published or witnessed
//! before the use would show it, and no receipt holds such a thing, so the answer here is always
//! "not shown".
//!
//! Nothing is fetched. Whatever does not hold is told, each for itself, and any of it makes the
//! whole not hold.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::crypto::{self, UnverifiedJwt, VerificationKey};
use crate::domain::decision::Outcome;
use crate::domain::leaf::{DecisionLeaf, Event, Leaf};
use crate::merkle::{Receipt, TlogProof, VerifiedReceipt, VerifierKey};

/// The `typ` of our credentials (RFC 9068).
const ACCESS_TOKEN_TYPE: &str = "at+jwt";

/// What a file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// A receipt.
    Receipt,
    /// The body of a 201, with its receipt.
    Issued,
    /// The body of a refusal, with its receipt.
    Refused,
    /// A C2SP tlog-proof that carries its leaf.
    TlogProof,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Verdict {
    /// What the file is; nothing when it is none of what we know.
    pub(super) kind: Option<Kind>,
    /// What the leaf decided, or that it shows nothing.
    pub(super) decided: String,
    /// Where the log has it, or that it shows nothing.
    pub(super) logged: String,
    /// Whether it was logged before it was used: what no receipt shows.
    pub(super) logged_before_use: String,
    /// What was not looked at.
    pub(super) notes: Vec<String>,
    /// What does not hold.
    pub(super) problems: Vec<String>,
}

const NOT_SHOWN: &str = "not shown";

impl Verdict {
    fn nothing() -> Self {
        Self {
            kind: None,
            decided: NOT_SHOWN.into(),
            logged: NOT_SHOWN.into(),
            logged_before_use: format!(
                "{NOT_SHOWN} (a receipt does not say when; a checkpoint published before the use would)"
            ),
            notes: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Whether everything that was looked at holds.
    pub(super) fn holds(&self) -> bool {
        self.problems.is_empty() && self.kind.is_some()
    }

    fn fail(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    fn equal(&mut self, what: &str, credential: &Value, leaf: &Value) {
        if credential != leaf || credential.is_null() {
            self.fail(format!("{what} is {credential}, the leaf says {leaf}"));
        }
    }
}

/// An answer of the broker with a receipt in it.
#[derive(Deserialize)]
struct Body {
    receipt: Receipt,
    #[serde(default)]
    credential: Option<Value>,
    #[serde(default)]
    session: Option<Value>,
    #[serde(default)]
    decision: Option<Value>,
}

/// What a file held.
struct Held {
    kind: Kind,
    receipt: Receipt,
    /// The answer around the receipt.
    body: Option<Body>,
}

/// Checks a file against verifier keys; with a credential, that the receipt is for it; with a JWK
/// set, that it is signed.
pub(super) fn verify(
    file: &[u8],
    keys: &[VerifierKey],
    credential: Option<&str>,
    jwks: Option<&[u8]>,
) -> Verdict {
    let mut verdict = Verdict::nothing();
    let held = match read(file) {
        Ok(held) => held,
        Err(why) => {
            verdict.fail(why);
            return verdict;
        }
    };
    verdict.kind = Some(held.kind);
    let receipt = match held.receipt.verify(keys) {
        Ok(receipt) => receipt,
        Err(error) => {
            verdict.fail(with_causes(&error));
            return verdict;
        }
    };
    verdict.logged = logged(&receipt);
    let leaf: Leaf = match serde_json::from_slice(receipt.leaf()) {
        Ok(leaf) => leaf,
        Err(error) => {
            verdict.fail(format!(
                "the leaf is not one that this version reads: {error}"
            ));
            return verdict;
        }
    };
    if leaf.v != Leaf::VERSION {
        verdict.fail(format!(
            "the leaf has format {}, this version reads {}",
            leaf.v,
            Leaf::VERSION
        ));
        return verdict;
    }
    if leaf.origin != receipt.checkpoint().origin {
        verdict.fail(format!(
            "the leaf is meant for the log {}, the checkpoint is of {}",
            leaf.origin,
            receipt.checkpoint().origin
        ));
        return verdict;
    }
    let decision = match &leaf.event {
        Event::Decision(decision) => {
            verdict.decided = decided(&leaf, decision);
            Some(decision.as_ref())
        }
        other => {
            verdict.decided = format!("{NOT_SHOWN}: the leaf records {}", name_of(other));
            None
        }
    };
    if let Some(body) = &held.body {
        check_body(&mut verdict, held.kind, body, decision);
    }
    let own = held.body.as_ref().and_then(|body| {
        let credential = body.credential.as_ref()?;
        credential.get("access_token")?.as_str()
    });
    let mut tokens: Vec<&str> = own.into_iter().collect();
    tokens.extend(credential.filter(|given| own != Some(given)));
    for token in &tokens {
        check_credential(&mut verdict, token, &receipt, decision, jwks);
    }
    if tokens.is_empty() && decision.is_some_and(|d| d.outcome == Outcome::Permit) {
        verdict.notes.push(
            "no credential was given: whether one carries this decision was not looked at".into(),
        );
    }
    verdict
}

/// Tells what a file is.
fn read(file: &[u8]) -> Result<Held, String> {
    let text = std::str::from_utf8(file).map_err(|_| "the file is not text")?;
    let begin = text.trim_start();
    if begin.starts_with("c2sp.org/tlog-proof@") {
        let proof: TlogProof = text
            .parse()
            .map_err(|error: crate::merkle::TlogProofError| error.to_string())?;
        let receipt = Receipt::from_tlog_proof(proof).map_err(|error| with_causes(&error))?;
        return Ok(Held {
            kind: Kind::TlogProof,
            receipt,
            body: None,
        });
    }
    if !begin.starts_with('{') {
        return Err(
            "the file is neither a receipt, nor an answer of the broker, nor a tlog-proof".into(),
        );
    }
    let look: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| format!("the file is not JSON: {error}"))?;
    if look.contains_key("receipt") {
        // Read again from the text: what stands twice is refused, not chosen from.
        let body: Body = serde_json::from_str(text)
            .map_err(|error| format!("the answer cannot be read: {error}"))?;
        let kind = if body.credential.is_some() {
            Kind::Issued
        } else {
            Kind::Refused
        };
        return Ok(Held {
            kind,
            receipt: body.receipt.clone(),
            body: Some(body),
        });
    }
    if look.contains_key("leaf") {
        let receipt = serde_json::from_str(text)
            .map_err(|error| format!("the receipt cannot be read: {error}"))?;
        return Ok(Held {
            kind: Kind::Receipt,
            receipt,
            body: None,
        });
    }
    Err("the JSON holds neither a receipt nor an answer with one".into())
}

fn logged(receipt: &VerifiedReceipt) -> String {
    let checkpoint = receipt.checkpoint();
    let signers: Vec<&str> = receipt.signers().iter().map(VerifierKey::name).collect();
    format!(
        "yes, as leaf {} of {} in {}, by a checkpoint signed by {}",
        receipt.index(),
        checkpoint.size,
        checkpoint.origin,
        signers.join(", ")
    )
}

fn decided(leaf: &Leaf, decision: &DecisionLeaf) -> String {
    let refusal = decision.refusal.map(|code| format!(" ({})", code.as_str()));
    let session = decision.session.map(|id| format!(", session {id}"));
    format!(
        "{}{} for {} at {}, decision {}{}, by {}",
        decision.outcome.as_str(),
        refusal.unwrap_or_default(),
        decision.workload,
        leaf.at,
        decision.decision,
        session.unwrap_or_default(),
        decision.generation
    )
}

/// The event's own word for itself.
fn name_of(event: &Event) -> String {
    let value = serde_json::to_value(event).unwrap_or_default();
    let name = value.get("event").and_then(Value::as_str);
    name.unwrap_or("an event").to_owned()
}

/// What an answer says beside its receipt must be what the leaf says.
fn check_body(verdict: &mut Verdict, kind: Kind, body: &Body, decision: Option<&DecisionLeaf>) {
    let Some(decision) = decision else {
        return verdict.fail("the answer is about a decision, its receipt is not");
    };
    let permitted = decision.outcome == Outcome::Permit;
    if permitted != (kind == Kind::Issued) {
        verdict.fail(format!(
            "the leaf's decision is `{}`, which this answer contradicts",
            decision.outcome.as_str()
        ));
    }
    let said =
        |part: &Option<Value>, name: &str| part.as_ref().and_then(|part| part.get(name)).cloned();
    let leaf = |value: Result<Value, serde_json::Error>| value.unwrap_or_default();
    let pairs = [
        (
            "the answer's decision.id",
            said(&body.decision, "id"),
            leaf(serde_json::to_value(decision.decision)),
        ),
        (
            "the answer's session.id",
            said(&body.session, "id"),
            leaf(serde_json::to_value(decision.session)),
        ),
        (
            "the answer's session.workload",
            said(&body.session, "workload"),
            leaf(serde_json::to_value(&decision.workload)),
        ),
        (
            "the answer's session.resource",
            said(&body.session, "resource"),
            leaf(serde_json::to_value(&decision.resource)),
        ),
        (
            "the answer's session.authorization_details",
            said(&body.session, "authorization_details"),
            leaf(serde_json::to_value(&decision.grant)),
        ),
    ];
    for (what, said, leaf) in pairs {
        if let Some(said) = said {
            verdict.equal(what, &said, &leaf);
        }
    }
}

/// Whether a credential is the one that the leaf pins.
fn check_credential(
    verdict: &mut Verdict,
    token: &str,
    receipt: &VerifiedReceipt,
    decision: Option<&DecisionLeaf>,
    jwks: Option<&[u8]>,
) {
    let Some(decision) = decision.filter(|decision| decision.outcome == Outcome::Permit) else {
        return verdict.fail("the leaf permits nothing, so the credential was not decided by it");
    };
    let (jwt, claims) = match parse_token(token) {
        Ok(parsed) => parsed,
        Err(why) => return verdict.fail(why),
    };
    if !jwt.unverified_is_type(ACCESS_TOKEN_TYPE) {
        verdict.fail(format!("the credential's typ is not {ACCESS_TOKEN_TYPE}"));
    }
    let none = Value::Null;
    let claim = |name: &str| claims.get(name).unwrap_or(&none);
    let json = |value: Result<Value, serde_json::Error>| value.unwrap_or_default();
    let hash = URL_SAFE_NO_PAD.encode(receipt.leaf_hash().as_bytes());
    let session = json(serde_json::to_value(decision.session));
    let scope = decision
        .grant
        .as_ref()
        .map(crate::domain::grant::Grant::scope);
    for (name, leaf) in [
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
        verdict.equal(&format!("the credential's {name}"), claim(name), &leaf);
    }
    let key = json(serde_json::to_value(&decision.cnf));
    if *claim("cnf") != key {
        verdict.fail("the credential is bound to another key than the leaf says");
    }
    if jwt.unverified_kid() != decision.kid.as_deref() {
        verdict.fail("the credential names another signing key than the leaf says");
    }
    match (claim("exp").as_i64(), decision.expires_at) {
        (Some(exp), Some(latest)) if exp <= latest.seconds() => {}
        (Some(exp), Some(latest)) => verdict.fail(format!(
            "the credential's exp is {exp}, the leaf allows {} at the latest",
            latest.seconds()
        )),
        _ => verdict.fail("the credential's exp or the leaf's is missing"),
    }
    match jwks {
        Some(jwks) => {
            if let Err(why) = check_signature(&jwt, jwks) {
                verdict.fail(why);
            }
        }
        None => verdict.notes.push(
            "the credential's own signature was not checked; give the issuer's keys with --jwks"
                .into(),
        ),
    }
}

/// The token's claims, unverified. [`UnverifiedJwt`] refuses what is not strictly a JWT first.
fn parse_token(token: &str) -> Result<(UnverifiedJwt, Map<String, Value>), String> {
    let unreadable = |why: String| format!("the credential cannot be read: {why}");
    let jwt = UnverifiedJwt::parse(token).map_err(|error| unreadable(error.to_string()))?;
    let payload = token.split('.').nth(1).unwrap_or_default();
    let bytes = URL_SAFE_NO_PAD
        .decode(payload)
        .map_err(|_| unreadable("its payload is not base64url".into()))?;
    let claims = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
    Ok((jwt, claims))
}

fn check_signature(jwt: &UnverifiedJwt, jwks: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct KeySet {
        keys: Vec<Value>,
    }
    let set: KeySet = serde_json::from_slice(jwks)
        .map_err(|error| format!("the JWK set cannot be read: {error}"))?;
    let wanted = jwt.unverified_kid();
    let found = set
        .keys
        .iter()
        .find(|key| wanted.is_some() && key.get("kid").and_then(Value::as_str) == wanted);
    let Some(found) = found else {
        return Err("the JWK set does not hold the key that the credential names".into());
    };
    let key = VerificationKey::parse(found.to_string().as_bytes())
        .map_err(|error| format!("the JWK set's key cannot be used: {error}"))?;
    crypto::verify(jwt, &key, &[jwt.unverified_algorithm()])
        .map(drop)
        .map_err(|error| format!("the credential's signature does not hold: {error}"))
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
