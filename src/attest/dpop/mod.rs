//! DPoP (RFC 9449): the caller proves for one request that it holds a private key.
//!
//! [`of_request`] verifies the proof of a request, and [`Proof`] has its key and its one-time id.
//! The checks are those of §4.3. The nonce is checked last, for a proof that is otherwise valid.
//! The URL in a proof is compared with the configured one, so a forged `Host` header has no effect.
//!
//! A request without a proof is `None`, unless its scheme needs one. A proof that fails a check is
//! [`AttestError::BadProof`] with the reason: the caller made the proof, so it may learn it. A
//! proof without a valid nonce is [`AttestError::NonceWanted`], and the caller retries with the
//! nonce of the response. Single use is left to the ledger. Which key a token needs is decided in
//! [`super::confirmation`]; [`super::Attestors`] and `broker::access` call this file.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use url::Url;

use secrecy::ExposeSecret;

use super::{AttestError, Evidence, TokenScheme, one_time, one_time_key};
use crate::clock::Timestamp;
use crate::crypto::digest::sha256;
use crate::crypto::jwk::{Algorithm, VerificationKey};
use crate::crypto::jwt::{self, UnverifiedJwt, VerifiedClaims, check_issued_at};
use crate::domain::workload::{KeyBinding, OneTime};

/// The signature algorithms of proofs.
pub const ALGORITHMS: [Algorithm; 9] = Algorithm::ALL;

/// The greatest age of a proof.
const MAX_AGE_SECONDS: u64 = 60;

/// How far a caller's clock may be ahead of the broker's.
const MAX_AHEAD_SECONDS: u64 = 5;

/// The longest id of a proof. A UUID has 36 bytes.
const MAX_ID_BYTES: usize = 256;

/// A verified proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The key that the caller holds.
    pub key: KeyBinding,
    /// The proof's own one-time id.
    pub one_time: OneTime,
}

/// Verifies the proof of a request; `None` if it has none and needs none. With
/// `Authorization: DPoP` the proof must name the token (RFC 9449 §7.1). With another scheme it may
/// name it, and then it must be that token.
pub fn of_request(evidence: &Evidence, now: Timestamp) -> Result<Option<Proof>, AttestError> {
    let named = evidence.scheme == TokenScheme::Dpop;
    if evidence.dpop.is_empty() {
        if named {
            return Err(AttestError::BadProof("the DPoP scheme needs one"));
        }
        return Ok(None);
    }
    let token = evidence.bearer.as_ref();
    let token = token.map(ExposeSecret::expose_secret);
    let hash = match (token, named) {
        (Some(token), true) => TokenHash::Demanded(token),
        (Some(token), false) => TokenHash::Allowed(token),
        (None, _) => TokenHash::None,
    };
    verify(evidence, hash, now).map(Some)
}

/// The key of a proof that was refused with [`AttestError::NonceWanted`], which means that
/// everything else was verified.
pub(super) fn shown_key(evidence: &Evidence) -> Option<KeyBinding> {
    let [header] = evidence.dpop.as_slice() else {
        return None;
    };
    let token = UnverifiedJwt::parse_proof(header).ok()?;
    let key = VerificationKey::from(token.unverified_key()?.clone());
    Some(KeyBinding::Jkt(key.thumbprint().to_owned()))
}

/// The one-time id of a request's proof, unverified; `None` if there is no readable proof.
pub(crate) fn shown_id(evidence: &Evidence) -> Option<[u8; 32]> {
    let [header] = evidence.dpop.as_slice() else {
        return None;
    };
    let token = UnverifiedJwt::parse_proof(header).ok()?;
    let id = token.unverified_claims().token_id().ok()??;
    let key = VerificationKey::from(token.unverified_key()?.clone());
    Some(one_time_key(
        "dpop",
        &[key.thumbprint().as_bytes(), id.as_bytes()],
    ))
}

/// The required hash of the token in a proof (`ath`).
#[derive(Clone, Copy)]
pub enum TokenHash<'a> {
    /// The proof must contain the hash of this token.
    Demanded(&'a str),
    /// If the proof contains a hash, it must be that of this token.
    Allowed(&'a str),
    /// The request has no token.
    None,
}

/// Verifies the request's only `DPoP` header.
pub fn verify(
    evidence: &Evidence,
    hash: TokenHash<'_>,
    now: Timestamp,
) -> Result<Proof, AttestError> {
    let [header] = evidence.dpop.as_slice() else {
        return Err(AttestError::BadProof(
            "the request does not have exactly one `DPoP` header",
        ));
    };
    let token = UnverifiedJwt::parse_proof(header)
        .map_err(|_| AttestError::BadProof("it is not a JWT with a public key in its header"))?;
    if !token.unverified_is_type("dpop+jwt") {
        return Err(AttestError::BadProof("it is another type of token"));
    }
    let key = token.unverified_key().cloned().map(VerificationKey::from);
    let key = key.ok_or(AttestError::BadProof("no key"))?;
    let claims = jwt::verify(&token, &key, &ALGORITHMS)
        .map_err(|_| AttestError::BadProof("the signature does not verify"))?;
    if text(&claims, "htm")? != evidence.method {
        return Err(AttestError::BadProof("another method"));
    }
    if !same_target(text(&claims, "htu")?, &evidence.url) {
        return Err(AttestError::BadProof("another URL"));
    }
    // The leeway applies at both ends, and the age includes it.
    let age = MAX_AGE_SECONDS - MAX_AHEAD_SECONDS;
    let issued_at = check_issued_at(&claims, now, MAX_AHEAD_SECONDS, age)
        .map_err(|_| AttestError::BadProof("not fresh"))?;
    let id = text(&claims, "jti")?;
    if id.len() > MAX_ID_BYTES {
        return Err(AttestError::BadProof("its id is too long"));
    }
    check_token_hash(&claims, hash)?;
    if let Some(nonces) = &evidence.nonces
        && !text(&claims, "nonce").is_ok_and(|nonce| nonces.is_good(nonce, now))
    {
        return Err(AttestError::NonceWanted);
    }
    let thumbprint = claims.key_thumbprint();
    // Seconds are rounded down when the age is checked; one more second covers that.
    let expires_at = issued_at.plus_seconds(MAX_AGE_SECONDS + 2);
    Ok(Proof {
        one_time: one_time(
            "dpop",
            &[thumbprint.as_bytes(), id.as_bytes()],
            issued_at..expires_at,
        ),
        key: KeyBinding::Jkt(thumbprint.to_owned()),
    })
}

fn check_token_hash(claims: &VerifiedClaims, wanted: TokenHash<'_>) -> Result<(), AttestError> {
    let token = match wanted {
        TokenHash::Demanded(token) => token,
        TokenHash::Allowed(token) if claims.get("ath").is_some() => token,
        TokenHash::Allowed(_) | TokenHash::None => return Ok(()),
    };
    let hash = URL_SAFE_NO_PAD.encode(sha256(token.as_bytes()));
    match claims.get("ath").and_then(Value::as_str) {
        None => Err(AttestError::BadProof("it has no `ath`")),
        Some(named) if named == hash => Ok(()),
        Some(_) => Err(AttestError::BadProof("its `ath` is of another token")),
    }
}

fn text<'a>(claims: &'a VerifiedClaims, name: &'static str) -> Result<&'a str, AttestError> {
    claims
        .text(name)
        .map_err(|_| AttestError::BadProof("a claim is missing or not a text"))
}

/// Whether two URLs name the same endpoint, ignoring query and fragment.
fn same_target(claimed: &str, configured: &str) -> bool {
    let claimed = target(claimed);
    claimed.is_some() && claimed == target(configured)
}

/// A URL without query and fragment, with syntax-based and scheme-based normalisation (RFC 3986
/// §§6.2.2, 6.2.3), as RFC 9449 §4.3 compares them. `None` if the text is not a URL.
fn target(text: &str) -> Option<Url> {
    let mut url = Url::parse(&with_plain_escapes(text)?).ok()?;
    url.set_query(None);
    url.set_fragment(None);
    Some(url)
}

/// A URI with its unreserved characters unescaped, and the hexadecimal digits of all other escapes
/// in upper case. `None` if it contains a character that no URI has: the URL parser follows
/// browsers and would read `\` as `/` and ignore a line break.
fn with_plain_escapes(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            let allowed = byte.is_ascii_graphic() && !br#""<>\^`{|}"#.contains(&byte);
            plain.push(char::from(Some(byte).filter(|_| allowed)?));
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        let escaped = u8::try_from(high * 16 + low).ok()?;
        if escaped.is_ascii_alphanumeric() || b"-._~".contains(&escaped) {
            plain.push(char::from(escaped));
        } else {
            write!(plain, "%{escaped:02X}").ok()?;
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests;
