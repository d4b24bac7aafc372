//! JWTs in three separate steps: parse, verify, check the times.
//!
//! 1. [`UnverifiedJwt::parse`] splits the compact form within fixed limits. The names of its
//!    accessors contain *unverified*; callers need them to choose the issuer and the key. It
//!    refuses header parameters that contain or reference a key, change the signed bytes, or
//!    require an extension.
//! 2. [`verify`] checks the signature with the caller's key and list of algorithms and returns
//!    [`VerifiedClaims`].
//! 3. [`check_times`] checks the dates at an instant that is a parameter. It is pure.
//!
//! A token that fails a step is a [`JwtError`] or a [`TimeError`]. They name the header parameter
//! or the claim and quote no value. They are for the broker's records: `attest::error` decides
//! which part a caller learns. The caller checks issuer, audience, `typ` and all other claims, and
//! whether the token was used before.
//!
//! # One use
//! [`UnverifiedJwt::signing_input_hash`] identifies a token without a `jti`. It covers header and
//! payload but not the signature: any party can compute a second valid ECDSA signature from the
//! first, which would make a replayed token look new.

mod times;

use std::fmt;
use std::ops::Deref;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::digest::sha256;
use super::jwk::{Algorithm, JwkError, PublicJwk, VerificationKey, plain_kid};
use super::strict_json;

pub use times::{TimeError, Times, check_expiry, check_issued_at, check_not_before, check_times};

/// The largest token. Tokens of CI systems have less than 4 KiB; one with long lists of groups may
/// need more.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// The largest header, decoded. The header of a proof contains an RSA key of 4096 bits in less than
/// 1 KiB.
pub const MAX_HEADER_BYTES: usize = 4 * 1024;

/// The `typ` of the broker's access tokens (RFC 9068 §2.1).
pub const ACCESS_TOKEN_TYPE: &str = "at+jwt";

/// The longest `typ`, which is the name of a media type.
pub const MAX_TYPE_BYTES: usize = 128;

/// The reason why a token was refused. For the broker's records; it is not sent to callers as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// The token has more than [`MAX_TOKEN_BYTES`].
    #[error("the token is longer than 16 KiB")]
    TooLong,
    /// The token does not have three nonempty parts of base64url.
    #[error("the token is not three parts of base64url without padding")]
    NotCompact,
    /// The header is too long, is not a JSON object, or has a duplicate member.
    #[error("the token's header is not an unambiguous JSON object of at most 4 KiB")]
    BadHeader,
    /// The header has a parameter that is never accepted.
    #[error("the token's header has the parameter `{0}`, which is not accepted")]
    RefusedParameter(&'static str),
    /// `alg` is missing, `none`, an HMAC, or unknown.
    #[error("the token's `alg` is not a supported signature algorithm")]
    UnsupportedAlgorithm,
    /// `kid` is not a short plain text.
    #[error("the token's `kid` is not a plain text of 1 to 256 bytes")]
    BadKid,
    /// `typ` is not a short plain text.
    #[error("the token's `typ` is not a plain text of 1 to 128 bytes")]
    BadType,
    /// The embedded key is missing or unusable.
    #[error("the proof's key is missing or unusable")]
    BadEmbeddedKey(#[source] Option<JwkError>),
    /// The payload is not a JSON object or has a duplicate member.
    #[error("the token's payload is not an unambiguous JSON object")]
    BadPayload,
    /// The algorithm is not in the caller's list.
    #[error("the token is signed with {0}, which is not allowed here")]
    AlgorithmNotAllowed(Algorithm),
    /// The key does not permit this algorithm.
    #[error("the token is signed with {0}, for which the key is not meant")]
    AlgorithmNotOfKey(Algorithm),
    /// The signature is invalid.
    #[error("the token's signature does not verify")]
    BadSignature,
    /// A required claim is missing.
    #[error("the token has no claim `{0}`")]
    MissingClaim(&'static str),
    /// A claim has the wrong form.
    #[error("the token's claim `{0}` has the wrong form")]
    MalformedClaim(&'static str),
}

/// A token whose signature was not checked. Its `Debug` shows only the header.
#[derive(Clone)]
pub struct UnverifiedJwt {
    claims: Claims,
    signing_input: Zeroizing<String>,
    signature: Zeroizing<Vec<u8>>,
    embedded_key: Option<PublicJwk>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    algorithm: Algorithm,
    typ: Option<String>,
    kid: Option<String>,
    /// The names of all members, known or not.
    names: Vec<String>,
}

impl Header {
    /// RFC 7515 §4.1.9: compared without case; `application/` may be omitted.
    fn is_type(&self, expected: &str) -> bool {
        self.typ.as_deref().is_some_and(|typ| {
            let bare = match typ.split_at_checked("application/".len()) {
                Some((prefix, rest)) if prefix.eq_ignore_ascii_case("application/") => rest,
                _ => typ,
            };
            bare.eq_ignore_ascii_case(expected)
        })
    }
}

impl fmt::Debug for UnverifiedJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnverifiedJwt")
            .field("header", &self.claims.header)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum EmbeddedKey {
    Refused,
    Required,
}

impl UnverifiedJwt {
    /// Parses a token in compact form. Refuses a header that contains a key.
    pub fn parse(token: &str) -> Result<Self, JwtError> {
        Self::parse_as(token, EmbeddedKey::Refused)
    }

    /// Parses a proof of possession (RFC 9449), whose header must contain its public key.
    pub fn parse_proof(token: &str) -> Result<Self, JwtError> {
        Self::parse_as(token, EmbeddedKey::Required)
    }

    fn parse_as(token: &str, embedded: EmbeddedKey) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwtError::TooLong);
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JwtError::NotCompact);
        };
        if header.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(JwtError::NotCompact);
        }
        let decode = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| JwtError::NotCompact)
        };
        let header = decode(header)?;
        let claims = decode(payload)?;
        let signature = Zeroizing::new(decode(signature)?);

        let (header, embedded_key) = parse_header(&header, embedded)?;
        let claims = strict_json::object(&claims).map_err(|_| JwtError::BadPayload)?;
        let (signing_input, _) = token.rsplit_once('.').ok_or(JwtError::NotCompact)?;
        Ok(Self {
            claims: Claims { header, claims },
            signing_input: Zeroizing::new(signing_input.to_owned()),
            signature,
            embedded_key,
        })
    }

    /// The header and payload of the token. Unverified: use them only to choose a key and to
    /// explain a token to its holder.
    #[must_use]
    pub fn unverified_claims(&self) -> &Claims {
        &self.claims
    }

    /// The token's unverified issuer, to choose the key set. `None` if it is missing or no text.
    #[must_use]
    pub fn unverified_issuer(&self) -> Option<&str> {
        text(&self.claims.claims, "iss")
    }

    /// The token's unverified subject; `None` if it is missing or no text.
    #[must_use]
    pub fn unverified_subject(&self) -> Option<&str> {
        text(&self.claims.claims, "sub")
    }

    /// The token's unverified audiences; empty if the claim is missing or malformed.
    #[must_use]
    pub fn unverified_audiences(&self) -> Vec<&str> {
        self.claims.audiences().unwrap_or_default()
    }

    /// The token's unverified algorithm.
    #[must_use]
    pub fn unverified_algorithm(&self) -> Algorithm {
        self.claims.header.algorithm
    }

    /// The token's unverified key id; `None` if it has none. Use it only to look up a key.
    #[must_use]
    pub fn unverified_kid(&self) -> Option<&str> {
        self.claims.header.kid.as_deref()
    }

    /// Whether the token's unverified type is `expected` (`at+jwt`, `dpop+jwt`).
    #[must_use]
    pub fn unverified_is_type(&self, expected: &str) -> bool {
        self.claims.header.is_type(expected)
    }

    /// The key in a proof's header; `None` for a token that is no proof. The proof shows possession
    /// of it once its signature verifies; it does not show the key's owner.
    #[must_use]
    pub fn unverified_key(&self) -> Option<&PublicJwk> {
        self.embedded_key.as_ref()
    }

    /// SHA-256 of the signed header and payload. Identifies a token without a `jti`.
    #[must_use]
    pub fn signing_input_hash(&self) -> [u8; 32] {
        sha256(self.signing_input.as_bytes())
    }
}

fn parse_header(
    bytes: &[u8],
    embedded: EmbeddedKey,
) -> Result<(Header, Option<PublicJwk>), JwtError> {
    if bytes.len() > MAX_HEADER_BYTES {
        return Err(JwtError::BadHeader);
    }
    let mut members = strict_json::object(bytes).map_err(|_| JwtError::BadHeader)?;
    let names = members.keys().cloned().collect();
    for name in ["jku", "x5u", "x5c", "crit", "b64", "zip", "enc"] {
        if members.contains_key(name) {
            return Err(JwtError::RefusedParameter(name));
        }
    }
    let embedded_key = match (members.swap_remove("jwk"), embedded) {
        (None, EmbeddedKey::Refused) => None,
        (Some(_), EmbeddedKey::Refused) => return Err(JwtError::RefusedParameter("jwk")),
        (Some(Value::Object(key)), EmbeddedKey::Required) => Some(
            PublicJwk::from_members(key).map_err(|error| JwtError::BadEmbeddedKey(Some(error)))?,
        ),
        (_, EmbeddedKey::Required) => return Err(JwtError::BadEmbeddedKey(None)),
    };
    let algorithm = match members.get("alg") {
        Some(Value::String(name)) => name.parse().map_err(|_| JwtError::UnsupportedAlgorithm)?,
        _ => return Err(JwtError::UnsupportedAlgorithm),
    };
    let kid = match members.swap_remove("kid") {
        None => None,
        Some(Value::String(kid)) if plain_kid(&kid) => Some(kid),
        Some(_) => return Err(JwtError::BadKid),
    };
    let typ = match members.swap_remove("typ") {
        None => None,
        Some(Value::String(typ))
            if (1..=MAX_TYPE_BYTES).contains(&typ.len())
                && typ.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Some(typ)
        }
        Some(_) => return Err(JwtError::BadType),
    };
    let header = Header {
        algorithm,
        typ,
        kid,
        names,
    };
    Ok((header, embedded_key))
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    claims.get(name).and_then(Value::as_str)
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<&str>, JwtError> {
    match claims.get("aud") {
        None => Err(JwtError::MissingClaim("aud")),
        Some(Value::String(one)) => Ok(vec![one]),
        Some(Value::Array(many)) if !many.is_empty() => many
            .iter()
            .map(|item| item.as_str().ok_or(JwtError::MalformedClaim("aud")))
            .collect(),
        Some(_) => Err(JwtError::MalformedClaim("aud")),
    }
}

/// The header and claims of a token. They are signed only if they come from [`VerifiedClaims`].
#[derive(Clone)]
pub struct Claims {
    header: Header,
    claims: Map<String, Value>,
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

/// The claims of a token whose signature was verified. Only the signature was checked.
#[derive(Clone)]
pub struct VerifiedClaims {
    claims: Claims,
    signing_input_hash: [u8; 32],
    key_thumbprint: String,
}

impl fmt::Debug for VerifiedClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedClaims")
            .field("header", &self.claims.header)
            .field("key_thumbprint", &self.key_thumbprint)
            .finish_non_exhaustive()
    }
}

/// Verifies a token's signature with `key`, if both `allowed` and the key permit its algorithm.
pub fn verify(
    token: &UnverifiedJwt,
    key: &VerificationKey,
    allowed: &[Algorithm],
) -> Result<VerifiedClaims, JwtError> {
    let algorithm = token.claims.header.algorithm;
    if !allowed.contains(&algorithm) {
        return Err(JwtError::AlgorithmNotAllowed(algorithm));
    }
    if !key.algorithms().contains(&algorithm) {
        return Err(JwtError::AlgorithmNotOfKey(algorithm));
    }
    key.verify_signature(algorithm, token.signing_input.as_bytes(), &token.signature)
        .map_err(|_| JwtError::BadSignature)?;
    Ok(VerifiedClaims {
        claims: token.claims.clone(),
        signing_input_hash: token.signing_input_hash(),
        key_thumbprint: key.thumbprint().to_owned(),
    })
}

impl Deref for VerifiedClaims {
    type Target = Claims;

    fn deref(&self) -> &Claims {
        &self.claims
    }
}

impl Claims {
    /// All claims.
    #[must_use]
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// One claim; `None` if the token does not have it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.claims.get(name)
    }

    /// A claim that must be present and be a nonempty text.
    pub fn text(&self, name: &'static str) -> Result<&str, JwtError> {
        match self.claims.get(name) {
            None => Err(JwtError::MissingClaim(name)),
            Some(Value::String(text)) if !text.is_empty() => Ok(text),
            Some(_) => Err(JwtError::MalformedClaim(name)),
        }
    }

    /// The `iss` claim.
    pub fn issuer(&self) -> Result<&str, JwtError> {
        self.text("iss")
    }

    /// The `sub` claim.
    pub fn subject(&self) -> Result<&str, JwtError> {
        self.text("sub")
    }

    /// The `jti` claim, if present. A `jti` that is not a text is an error.
    pub fn token_id(&self) -> Result<Option<&str>, JwtError> {
        match self.claims.get("jti") {
            None => Ok(None),
            Some(_) => self.text("jti").map(Some),
        }
    }

    /// The audiences in `aud`, which is one text or a list.
    pub fn audiences(&self) -> Result<Vec<&str>, JwtError> {
        audiences(&self.claims)
    }

    /// The audience in `aud` if it must be the only one, as in a client assertion: one text, or a
    /// list of one.
    pub fn sole_audience(&self) -> Result<&str, JwtError> {
        match self.audiences()?.as_slice() {
            [only] if !only.is_empty() => Ok(only),
            _ => Err(JwtError::MalformedClaim("aud")),
        }
    }

    /// Whether `typ` is this type, with or without `application/`.
    #[must_use]
    pub fn is_type(&self, expected: &str) -> bool {
        self.header.is_type(expected)
    }

    /// Whether `typ` is present.
    #[must_use]
    pub fn has_type(&self) -> bool {
        self.header.typ.is_some()
    }

    /// The header's `kid`; `None` if it has none.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// The algorithm in the header.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.header.algorithm
    }

    /// Whether the header has no members other than these.
    #[must_use]
    pub fn header_has_only(&self, names: &[&str]) -> bool {
        let known = |name: &String| names.contains(&name.as_str());
        self.header.names.iter().all(known)
    }
}

impl VerifiedClaims {
    /// The thumbprint of the key that verified it.
    #[must_use]
    pub fn key_thumbprint(&self) -> &str {
        &self.key_thumbprint
    }

    /// See [`UnverifiedJwt::signing_input_hash`].
    #[must_use]
    pub fn signing_input_hash(&self) -> [u8; 32] {
        self.signing_input_hash
    }
}

#[cfg(test)]
mod tests;
