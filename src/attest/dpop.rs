//! DPoP (RFC 9449): the caller holds a private key, and shows it for this one request.
//!
//! The checks are those of §4.3. A nonce is asked for last, of a proof that is good otherwise. The
//! URL that a proof must name is the configured one, so that a forged `Host` header proves nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use url::Url;

use super::{AttestError, Evidence, one_time};
use crate::clock::Timestamp;
use crate::crypto::digest::sha256;
use crate::crypto::jwk::{Algorithm, VerificationKey};
use crate::crypto::jwt::{self, UnverifiedJwt, VerifiedClaims, check_issued_at};
use crate::domain::workload::{KeyBinding, OneTime};

/// The age up to which a proof is fresh.
const MAX_AGE_SECONDS: u64 = 60;

/// How far a caller's clock may be ahead of ours.
const MAX_AHEAD_SECONDS: u64 = 5;

/// A proof's id: a UUID has 36 bytes.
const MAX_ID_BYTES: usize = 256;

/// What a proof shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The key that the caller holds.
    pub key: KeyBinding,
    /// The proof's own one-time id.
    pub one_time: OneTime,
}

/// Verifies the request's only `DPoP` header. With an `access_token`, the proof must name it too.
pub fn verify(
    evidence: &Evidence,
    access_token: Option<&str>,
    now: Timestamp,
) -> Result<Proof, AttestError> {
    let [header] = evidence.dpop.as_slice() else {
        return Err(AttestError::BadProof("not exactly one header"));
    };
    let token = UnverifiedJwt::parse_proof(header)
        .map_err(|_| AttestError::BadProof("not a JWT with a public key in its header"))?;
    if !token.unverified_is_type("dpop+jwt") {
        return Err(AttestError::BadProof("another type of token"));
    }
    let key = token.unverified_key().cloned().map(VerificationKey::from);
    let key = key.ok_or(AttestError::BadProof("no key"))?;
    let claims = jwt::verify(&token, &key, &Algorithm::ALL)
        .map_err(|_| AttestError::BadProof("the signature does not verify"))?;
    if text(&claims, "htm")? != evidence.method {
        return Err(AttestError::BadProof("another method"));
    }
    if !same_target(text(&claims, "htu")?, &evidence.url) {
        return Err(AttestError::BadProof("another URL"));
    }
    // The leeway counts at both ends, and the age includes it.
    let age = MAX_AGE_SECONDS - MAX_AHEAD_SECONDS;
    let issued_at = check_issued_at(&claims, now, MAX_AHEAD_SECONDS, age)
        .map_err(|_| AttestError::BadProof("not fresh"))?;
    let id = text(&claims, "jti")?;
    if id.len() > MAX_ID_BYTES {
        return Err(AttestError::BadProof("its id is too long"));
    }
    if let Some(access_token) = access_token {
        let hash = URL_SAFE_NO_PAD.encode(sha256(access_token.as_bytes()));
        if text(&claims, "ath")? != hash {
            return Err(AttestError::BadProof("another access token"));
        }
    }
    if let Some(nonces) = &evidence.nonces
        && !text(&claims, "nonce").is_ok_and(|nonce| nonces.is_good(nonce, now))
    {
        return Err(AttestError::NonceWanted);
    }
    let thumbprint = claims.key_thumbprint();
    // Seconds are rounded down when the age is judged; one more covers that.
    let expires_at = issued_at.plus_seconds(MAX_AGE_SECONDS + 2);
    Ok(Proof {
        one_time: one_time("dpop", &[thumbprint.as_bytes(), id.as_bytes()], expires_at),
        key: KeyBinding::Jkt(thumbprint.to_owned()),
    })
}

fn text<'a>(claims: &'a VerifiedClaims, name: &'static str) -> Result<&'a str, AttestError> {
    claims
        .text(name)
        .map_err(|_| AttestError::BadProof("a claim is missing or not a text"))
}

/// Whether two URLs name one endpoint: normalised, and without query and fragment.
fn same_target(claimed: &str, configured: &str) -> bool {
    let (Ok(mut claimed), Ok(mut configured)) = (Url::parse(claimed), Url::parse(configured))
    else {
        return false;
    };
    for url in [&mut claimed, &mut configured] {
        url.set_query(None);
        url.set_fragment(None);
    }
    claimed == configured
}

#[cfg(test)]
mod tests;
