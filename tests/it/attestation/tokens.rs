//! Tokens with one fault each.

use super::*;
use crate::support::issuer::unix_seconds;
use crate::support::keys::{self, Algorithm, Key};

pub(super) struct Bad {
    pub(super) token: String,
    pub(super) attestor: &'static str,
    pub(super) reason: &'static str,
    pub(super) claim: Option<&'static str>,
    /// The condition that `attest check` names as failed; `None` if the command cannot know it.
    pub(super) explained: Option<&'static str>,
    /// Whether a key of a known issuer signed the token.
    pub(super) signed: bool,
}

/// Tokens that a known issuer signed, each with one fault.
pub(super) fn signed(fleet: &Fleet) -> Vec<Bad> {
    let now = unix_seconds();
    let case = |over: Value, reason, claim| Bad {
        token: fleet.issuer.token(good(&over)),
        attestor: "ci",
        reason,
        claim: Some(claim),
        explained: Some(claim),
        signed: true,
    };
    let mut header = fleet.issuer.key().header();
    header["typ"] = json!("at+jwt");
    let claims = fleet.issuer.claims(good(&json!({})));
    let typed = fleet
        .issuer
        .token_with(&header, &claims, &fleet.issuer.key());
    vec![
        Bad {
            // Two attestors have this issuer, and the token's audience is neither's.
            attestor: "none",
            ..case(
                json!({"aud": "https://elsewhere.example"}),
                "wrong_audience",
                "aud",
            )
        },
        case(
            json!({"aud": [CI, "https://elsewhere.example"]}),
            "wrong_audience",
            "aud",
        ),
        case(json!({"owner_id": "78"}), "required_claim", "owner_id"),
        case(json!({"owner_id": null}), "required_claim", "owner_id"),
        case(json!({"repo_id": null}), "claim_type", "repo_id"),
        case(json!({"repo_id": 5}), "claim_type", "repo_id"),
        case(json!({"iat": now - 120, "exp": now - 60}), "expired", "exp"),
        case(json!({"iat": now - 7_200}), "wrong_times", "iat"),
        case(
            json!({"iat": now + 3_600, "exp": now + 7_200}),
            "wrong_times",
            "iat",
        ),
        case(json!({"nbf": now + 3_600}), "wrong_times", "nbf"),
        case(json!({"exp": null}), "wrong_times", "exp"),
        case(json!({"jti": 7}), "claim_type", "jti"),
        case(json!({"cnf": {"kid": "k"}}), "confirmation", "cnf"),
        Bad {
            token: typed,
            ..case(json!({}), "wrong_type", "typ")
        },
    ]
}

/// Tokens that no known issuer signed.
pub(super) fn unsigned(fleet: &Fleet) -> Vec<Bad> {
    let key = fleet.issuer.key();
    let stranger = Key::generate(Algorithm::Es256);
    let claims = |over: &Value| fleet.issuer.claims(good(over));
    let mut same_kid = stranger.header();
    same_kid["kid"] = key.header()["kid"].clone();
    let case = |token: String, attestor, reason, claim, explained| Bad {
        token,
        attestor,
        reason,
        claim,
        explained: Some(explained),
        signed: false,
    };
    let by_stranger = |header: &Value, over: &Value| {
        let claims = claims(over);
        fleet.issuer.token_with(header, &claims, &stranger)
    };
    let elsewhere = json!({"iss": "https://evil.example"});
    vec![
        case(
            by_stranger(&same_kid, &json!({})),
            "ci",
            "bad_signature",
            None,
            "signature",
        ),
        case(
            by_stranger(&stranger.header(), &json!({})),
            "ci",
            "unknown_key",
            Some("kid"),
            "signature",
        ),
        case(
            by_stranger(&same_kid, &json!({"aud": "https://elsewhere.example"})),
            "none",
            "wrong_audience",
            Some("aud"),
            "aud",
        ),
        case(
            by_stranger(&stranger.header(), &elsewhere),
            "none",
            "unknown_issuer",
            Some("iss"),
            "iss",
        ),
        case(
            keys::hmac_jwt(
                &json!({"alg": "HS256", "kid": key.kid}),
                &claims(&json!({})),
                key.public_pem().as_bytes(),
            ),
            "none",
            "wrong_algorithm",
            Some("alg"),
            "token",
        ),
        case("a.b.c".to_owned(), "none", "malformed", None, "token"),
    ]
}
