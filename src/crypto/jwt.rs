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

use std::fmt;
use std::ops::Deref;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::clock::Timestamp;

use super::digest::sha256;
use super::jwk::{Algorithm, JwkError, PublicJwk, VerificationKey, plain_kid};
use super::strict_json;

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

/// The reason why a token's dates were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// A required date is missing.
    #[error("the token has no `{0}`")]
    Missing(&'static str),
    /// A date is not a number of seconds from 1970 to 9999.
    #[error("the token's `{0}` is not a date between 1970 and 9999")]
    NotADate(&'static str),
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is in the future.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `iat` is in the future.
    #[error("the token was issued in the future")]
    IssuedInTheFuture,
    /// `iat` is too long ago.
    #[error("the token was issued too long ago")]
    TooOld,
    /// `exp` is not after `iat`.
    #[error("the token expires before it was issued")]
    Backwards,
}

impl TimeError {
    /// The name of the claim that was refused.
    #[must_use]
    pub fn claim(self) -> &'static str {
        match self {
            Self::Missing(name) | Self::NotADate(name) => name,
            Self::Expired | Self::Backwards => "exp",
            Self::NotYetValid => "nbf",
            Self::IssuedInTheFuture | Self::TooOld => "iat",
        }
    }
}

/// The dates of a token, each rounded down to a whole second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct Times {
    pub issued_at: Timestamp,
    pub not_before: Option<Timestamp>,
    pub expires_at: Timestamp,
}

/// Checks a token's dates at `now`. `exp` and `iat` are required, `nbf` is optional. The leeway
/// allows for clock differences in each comparison with `now`, and in no other.
pub fn check_times(
    claims: &Claims,
    now: Timestamp,
    leeway_seconds: u64,
    max_age_seconds: u64,
) -> Result<Times, TimeError> {
    let issued_at = check_issued_at(claims, now, leeway_seconds, max_age_seconds)?;
    Ok(Times {
        issued_at,
        expires_at: check_expiry(claims, now, leeway_seconds)?,
        not_before: check_not_before(claims, now, leeway_seconds)?,
    })
}

/// Checks `exp`, and that it is later than `iat` if present.
pub fn check_expiry(
    claims: &Claims,
    now: Timestamp,
    leeway_seconds: u64,
) -> Result<Timestamp, TimeError> {
    let expires_at = date(&claims.claims, "exp")?.ok_or(TimeError::Missing("exp"))?;
    let issued_at = date(&claims.claims, "iat").unwrap_or_default();
    if issued_at.is_some_and(|issued_at| expires_at <= issued_at) {
        return Err(TimeError::Backwards);
    }
    if now >= expires_at.plus_seconds(leeway_seconds) {
        return Err(TimeError::Expired);
    }
    Ok(expires_at)
}

/// Checks only `nbf`. `None` if the token has none, which is valid.
pub fn check_not_before(
    claims: &Claims,
    now: Timestamp,
    leeway_seconds: u64,
) -> Result<Option<Timestamp>, TimeError> {
    let not_before = date(&claims.claims, "nbf")?;
    if not_before.is_some_and(|from| from > now.plus_seconds(leeway_seconds)) {
        return Err(TimeError::NotYetValid);
    }
    Ok(not_before)
}

/// Checks only `iat`, for proofs, which have no `exp`.
pub fn check_issued_at(
    claims: &Claims,
    now: Timestamp,
    leeway_seconds: u64,
    max_age_seconds: u64,
) -> Result<Timestamp, TimeError> {
    let issued_at = date(&claims.claims, "iat")?.ok_or(TimeError::Missing("iat"))?;
    if issued_at > now.plus_seconds(leeway_seconds) {
        return Err(TimeError::IssuedInTheFuture);
    }
    let oldest = now
        .minus_seconds(max_age_seconds)
        .minus_seconds(leeway_seconds);
    // The date was rounded down to a second, so compare it with a rounded bound.
    if issued_at < oldest.floor_to_second() {
        return Err(TimeError::TooOld);
    }
    Ok(issued_at)
}

fn date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<Timestamp>, TimeError> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let Value::Number(number) = value else {
        return Err(TimeError::NotADate(name));
    };
    let seconds = match (number.as_i64(), number.as_f64()) {
        (Some(seconds), _) => seconds,
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the range is checked first"
        )]
        (None, Some(seconds)) if (0.0..1e12).contains(&seconds) => seconds.floor() as i64,
        _ => return Err(TimeError::NotADate(name)),
    };
    if !(0..=Timestamp::MAX.seconds()).contains(&seconds) {
        return Err(TimeError::NotADate(name));
    }
    Ok(Some(Timestamp::from_seconds(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::test_keys;
    use crate::crypto::{LocalSigner, PrivateKey, Signer};
    use proptest::prelude::*;
    use ring::hmac;
    use ring::rand::SystemRandom;
    use ring::signature::{self, EcdsaKeyPair, KeyPair as _, RsaKeyPair};
    use serde_json::json;

    const ALL: &[Algorithm] = &Algorithm::ALL;

    fn encode(part: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(part)
    }

    fn token(header: &str, payload: &str) -> String {
        format!(
            "{}.{}.{}",
            encode(header.as_bytes()),
            encode(payload.as_bytes()),
            encode(b"signature")
        )
    }

    fn parse(header: &str) -> Result<UnverifiedJwt, JwtError> {
        UnverifiedJwt::parse(&token(header, "{}"))
    }

    async fn signed(signer: &LocalSigner, header: &Value, payload: &str) -> String {
        let input = format!(
            "{}.{}",
            encode(header.to_string().as_bytes()),
            encode(payload.as_bytes())
        );
        let signature = signer.sign(input.as_bytes()).await.unwrap();
        format!("{input}.{}", encode(&signature))
    }

    fn key(signer: &LocalSigner) -> VerificationKey {
        signer.public_jwk().clone().into()
    }

    fn local(algorithm: Algorithm) -> LocalSigner {
        LocalSigner::new(&PrivateKey::generate(algorithm).unwrap()).unwrap()
    }

    fn claims(claims: &Value) -> VerifiedClaims {
        VerifiedClaims {
            claims: Claims {
                header: Header {
                    algorithm: Algorithm::Es256,
                    typ: None,
                    kid: None,
                    names: Vec::new(),
                },
                claims: claims.as_object().unwrap().clone(),
            },
            signing_input_hash: [0; 32],
            key_thumbprint: String::new(),
        }
    }

    #[test]
    fn rfc_7515_example_verifies_and_its_old_date_is_seen() {
        let token = UnverifiedJwt::parse("eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q").unwrap();
        assert_eq!(token.unverified_issuer(), Some("joe"));
        let key = VerificationKey::parse(
            br#"{"kty":"EC","crv":"P-256",
            "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
        )
        .unwrap();
        let claims = verify(&token, &key, &[Algorithm::Es256]).unwrap();
        assert_eq!(claims.issuer(), Ok("joe"));
        assert_eq!(
            check_times(&claims, Timestamp::from_seconds(1_300_000_000), 5, 60),
            Err(TimeError::Missing("iat"))
        );
    }

    #[test]
    fn only_three_non_empty_parts_of_base64url_are_a_token() {
        let good = token(r#"{"alg":"ES256"}"#, "{}");
        assert!(UnverifiedJwt::parse(&good).is_ok());
        let (header, payload) = (encode(br#"{"alg":"ES256"}"#), encode(b"{}"));
        for bad in [
            String::new(),
            ".".into(),
            "..".into(),
            "...".into(),
            format!("{header}.{payload}"),
            format!("{header}.{payload}."),
            format!("{header}..{payload}"),
            format!(".{payload}.{payload}"),
            format!("{good}.{payload}"),
            format!("{good}.{payload}.{payload}"),
            format!("{good}="),
            format!("{good}\n"),
            format!(" {good}"),
            format!("{header}.{payload}.A"),
            format!("{header}.{payload}.AB"),
            format!("{header}.{payload}.+/+/"),
            r#"{"payload":"","signatures":[]}"#.into(),
        ] {
            assert_eq!(
                UnverifiedJwt::parse(&bad).unwrap_err(),
                JwtError::NotCompact,
                "{bad}"
            );
        }
    }

    #[test]
    fn limits_hold_at_the_limit_and_one_past_it() {
        let frame = token(r#"{"alg":"ES256"}"#, "{}").len();
        let mut long = token(r#"{"alg":"ES256"}"#, "{}");
        long.push_str(&"A".repeat(MAX_TOKEN_BYTES - frame));
        assert_eq!(long.len(), MAX_TOKEN_BYTES);
        assert!(UnverifiedJwt::parse(&long).is_ok());
        long.push('A');
        assert_eq!(UnverifiedJwt::parse(&long).unwrap_err(), JwtError::TooLong);

        let header = |bytes: usize| {
            let frame = r#"{"alg":"ES256","x":""}"#.len();
            format!(r#"{{"alg":"ES256","x":"{}"}}"#, "x".repeat(bytes - frame))
        };
        assert!(parse(&header(MAX_HEADER_BYTES)).is_ok());
        assert_eq!(
            parse(&header(MAX_HEADER_BYTES + 1)).unwrap_err(),
            JwtError::BadHeader
        );
        let kid = |bytes| format!(r#"{{"alg":"ES256","kid":"{}"}}"#, "k".repeat(bytes));
        assert!(parse(&kid(256)).is_ok());
        assert_eq!(parse(&kid(257)).unwrap_err(), JwtError::BadKid);
        let typ = |bytes| format!(r#"{{"alg":"ES256","typ":"{}"}}"#, "t".repeat(bytes));
        assert!(parse(&typ(128)).is_ok());
        assert_eq!(parse(&typ(129)).unwrap_err(), JwtError::BadType);
    }

    #[test]
    fn headers_that_bring_keys_or_change_the_rules_are_refused() {
        for name in ["jku", "x5u", "x5c", "crit", "b64", "zip", "enc", "jwk"] {
            for value in ["null", r#""https://evil.example""#, "[]", "{}", "false"] {
                let header = format!(r#"{{"alg":"ES256","{name}":{value}}}"#);
                assert_eq!(
                    parse(&header).unwrap_err(),
                    JwtError::RefusedParameter(name),
                    "{header}"
                );
            }
        }
        assert!(parse(r#"{"alg":"ES256","x5t":"abc","cty":"x"}"#).is_ok());
    }

    #[test]
    fn no_other_algorithm_exists() {
        for alg in [
            r#""none""#,
            r#""None""#,
            r#""HS256""#,
            r#""HS384""#,
            r#""HS512""#,
            r#""es256""#,
            r#""ES256K""#,
            r#""ES512""#,
            r#""RS1""#,
            r#""Ed448""#,
            r#""""#,
            "null",
            "1",
            r#"["ES256"]"#,
        ] {
            assert_eq!(
                parse(&format!(r#"{{"alg":{alg}}}"#)).unwrap_err(),
                JwtError::UnsupportedAlgorithm,
                "{alg}"
            );
        }
        assert_eq!(parse("{}").unwrap_err(), JwtError::UnsupportedAlgorithm);
        let ed = parse(r#"{"alg":"Ed25519"}"#).unwrap();
        assert_eq!(ed.unverified_algorithm(), Algorithm::EdDsa);
    }

    #[test]
    fn ambiguous_json_is_refused_in_header_and_payload() {
        for header in [
            r#"{"alg":"ES256","alg":"ES256"}"#,
            r#"{"alg":"ES256","x":{"a":1,"a":2}}"#,
            r#"{"alg":"ES256"} "#.repeat(2).as_str(),
            "[]",
            "x",
        ] {
            assert_eq!(parse(header).unwrap_err(), JwtError::BadHeader, "{header}");
        }
        for payload in [
            r#"{"sub":"a","sub":"b"}"#,
            r#"{"sub":"a\u0000"}"#,
            r#""text""#,
            "[]",
            "1",
            "{",
        ] {
            let token = token(r#"{"alg":"ES256"}"#, payload);
            assert_eq!(
                UnverifiedJwt::parse(&token).unwrap_err(),
                JwtError::BadPayload,
                "{payload}"
            );
        }
        for kid in [r#""""#, r#""a\nb""#, "1", "null", "{}"] {
            let header = format!(r#"{{"alg":"ES256","kid":{kid}}}"#);
            assert_eq!(parse(&header).unwrap_err(), JwtError::BadKid, "{header}");
        }
    }

    #[tokio::test]
    async fn what_our_signers_sign_verifies_and_any_change_does_not() {
        let rsa = PrivateKey::import_rsa_pem(test_keys::RSA_PEM.as_bytes()).unwrap();
        for signer in [
            local(Algorithm::Es256),
            local(Algorithm::EdDsa),
            LocalSigner::new(&rsa).unwrap(),
        ] {
            let header = json!({"alg": signer.algorithm().as_str(), "typ": "at+jwt"});
            let text = signed(&signer, &header, r#"{"sub":"a"}"#).await;
            let token = UnverifiedJwt::parse(&text).unwrap();
            let claims = verify(&token, &key(&signer), ALL).unwrap();
            assert_eq!(claims.subject(), Ok("a"));
            assert_eq!(claims.key_thumbprint(), signer.kid());
            assert_eq!(claims.signing_input_hash(), token.signing_input_hash());
            let other = local(Algorithm::Es256);
            assert!(verify(&token, &key(&other), ALL).is_err());

            let (input, signature) = text.rsplit_once('.').unwrap();
            let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            for index in 0..signature.len() {
                let mut bad = signature.clone();
                bad[index] ^= 1;
                let bad = UnverifiedJwt::parse(&format!("{input}.{}", encode(&bad))).unwrap();
                assert_eq!(
                    verify(&bad, &key(&signer), ALL).unwrap_err(),
                    JwtError::BadSignature
                );
            }
            let (header, _) = input.split_once('.').unwrap();
            let swapped = format!(
                "{header}.{}.{}",
                encode(br#"{"sub":"b"}"#),
                encode(&signature)
            );
            let swapped = UnverifiedJwt::parse(&swapped).unwrap();
            assert_eq!(
                verify(&swapped, &key(&signer), ALL).unwrap_err(),
                JwtError::BadSignature
            );
        }
    }

    #[tokio::test]
    async fn algorithms_are_the_callers_and_the_keys_choice() {
        let signer = local(Algorithm::Es256);
        let text = signed(&signer, &json!({"alg": "ES256"}), "{}").await;
        let token = UnverifiedJwt::parse(&text).unwrap();
        for allowed in [&[][..], &[Algorithm::Rs256, Algorithm::EdDsa]] {
            assert_eq!(
                verify(&token, &key(&signer), allowed).unwrap_err(),
                JwtError::AlgorithmNotAllowed(Algorithm::Es256)
            );
        }
        // The same bytes under the name of another algorithm.
        for name in ["ES384", "RS256", "PS256", "EdDSA"] {
            let text = signed(&signer, &json!({"alg": name}), "{}").await;
            let token = UnverifiedJwt::parse(&text).unwrap();
            assert_eq!(
                verify(&token, &key(&signer), ALL).unwrap_err(),
                JwtError::AlgorithmNotOfKey(token.unverified_algorithm())
            );
        }
    }

    #[test]
    fn a_public_key_is_never_an_hmac_secret() {
        let public = test_keys::RSA_PEM;
        let input = format!("{}.{}", encode(br#"{"alg":"HS256"}"#), encode(b"{}"));
        let secret = hmac::Key::new(hmac::HMAC_SHA256, public.as_bytes());
        let tag = hmac::sign(&secret, input.as_bytes());
        let token = format!("{input}.{}", encode(tag.as_ref()));
        assert_eq!(
            UnverifiedJwt::parse(&token).unwrap_err(),
            JwtError::UnsupportedAlgorithm
        );
    }

    #[test]
    fn every_rsa_and_es384_algorithm_verifies() {
        let random = SystemRandom::new();
        let rsa = RsaKeyPair::from_pkcs8(&test_keys::rsa_pkcs8()).unwrap();
        let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(rsa.public());
        let jwk = json!({"kty": "RSA", "n": encode(&public.n), "e": encode(&public.e)});
        let rsa_key = VerificationKey::parse(jwk.to_string().as_bytes()).unwrap();
        let paddings: [(&str, &'static dyn signature::RsaEncoding); 6] = [
            ("RS256", &signature::RSA_PKCS1_SHA256),
            ("RS384", &signature::RSA_PKCS1_SHA384),
            ("RS512", &signature::RSA_PKCS1_SHA512),
            ("PS256", &signature::RSA_PSS_SHA256),
            ("PS384", &signature::RSA_PSS_SHA384),
            ("PS512", &signature::RSA_PSS_SHA512),
        ];
        let input = |name: &str| {
            format!(
                "{}.{}",
                encode(json!({"alg": name}).to_string().as_bytes()),
                encode(b"{}")
            )
        };
        for (signed_as, padding) in paddings {
            for (named, _) in paddings {
                let input = input(named);
                let mut out = vec![0; rsa.public().modulus_len()];
                rsa.sign(padding, &random, input.as_bytes(), &mut out)
                    .unwrap();
                let token = UnverifiedJwt::parse(&format!("{input}.{}", encode(&out))).unwrap();
                let verified = verify(&token, &rsa_key, ALL);
                assert_eq!(verified.is_ok(), signed_as == named, "{signed_as} {named}");
            }
        }

        let how = &signature::ECDSA_P384_SHA384_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(how, document.as_ref(), &random).unwrap();
        let (x, y) = pair.public_key().as_ref()[1..].split_at(48);
        let jwk = json!({"kty": "EC", "crv": "P-384", "x": encode(x), "y": encode(y)});
        let key = VerificationKey::parse(jwk.to_string().as_bytes()).unwrap();
        let input = input("ES384");
        let signature = pair.sign(&random, input.as_bytes()).unwrap();
        let token = format!("{input}.{}", encode(signature.as_ref()));
        assert!(verify(&UnverifiedJwt::parse(&token).unwrap(), &key, ALL).is_ok());
    }

    #[tokio::test]
    async fn the_one_time_name_ignores_the_signature() {
        let signer = local(Algorithm::Es256);
        let header = json!({"alg": "ES256"});
        let one = signed(&signer, &header, "{}").await;
        let two = signed(&signer, &header, "{}").await;
        assert_ne!(one, two);
        let hash = |text: &str| UnverifiedJwt::parse(text).unwrap().signing_input_hash();
        assert_eq!(hash(&one), hash(&two));
        assert_ne!(hash(&one), hash(&signed(&signer, &header, "{} ").await));
    }

    #[tokio::test]
    async fn a_proof_carries_a_public_key_and_nothing_private() {
        let signer = local(Algorithm::Es256);
        let jwk = serde_json::to_value(signer.public_jwk()).unwrap();
        let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": jwk});
        let text = signed(&signer, &header, r#"{"iat":100}"#).await;
        assert_eq!(
            UnverifiedJwt::parse(&text).unwrap_err(),
            JwtError::RefusedParameter("jwk")
        );
        let proof = UnverifiedJwt::parse_proof(&text).unwrap();
        assert!(proof.unverified_is_type("dpop+jwt"));
        let key = VerificationKey::from(proof.unverified_key().unwrap().clone());
        assert_eq!(key.thumbprint(), signer.kid());
        let claims = verify(&proof, &key, &[Algorithm::Es256]).unwrap();
        let at = Timestamp::from_seconds;
        assert_eq!(check_issued_at(&claims, at(110), 5, 5), Ok(at(100)));
        assert_eq!(
            check_issued_at(&claims, at(111), 5, 5),
            Err(TimeError::TooOld)
        );

        let mut private = header.clone();
        private["jwk"]["d"] = json!("AQAB");
        let text = signed(&signer, &private, "{}").await;
        assert_eq!(
            UnverifiedJwt::parse_proof(&text).unwrap_err(),
            JwtError::BadEmbeddedKey(Some(JwkError::Private("d")))
        );
        for bad in [json!({"alg": "ES256"}), json!({"alg": "ES256", "jwk": "x"})] {
            let text = signed(&signer, &bad, "{}").await;
            assert_eq!(
                UnverifiedJwt::parse_proof(&text).unwrap_err(),
                JwtError::BadEmbeddedKey(None)
            );
        }
    }

    #[test]
    fn typ_is_compared_as_a_media_type() {
        for (typ, matches) in [
            ("at+jwt", true),
            ("AT+JWT", true),
            ("application/at+jwt", true),
            ("Application/AT+jwt", true),
            ("JWT", false),
            ("text/at+jwt", false),
            ("application/application/at+jwt", false),
            ("at+jwtx", false),
        ] {
            let token = parse(&format!(r#"{{"alg":"ES256","typ":"{typ}"}}"#)).unwrap();
            assert_eq!(token.unverified_is_type("at+jwt"), matches, "{typ}");
        }
        assert!(
            !parse(r#"{"alg":"ES256"}"#)
                .unwrap()
                .unverified_is_type("at+jwt")
        );
        for typ in [r#""""#, r#""a b""#, "1", "null"] {
            let header = format!(r#"{{"alg":"ES256","typ":{typ}}}"#);
            assert_eq!(parse(&header).unwrap_err(), JwtError::BadType);
        }
    }

    #[test]
    fn claims_of_the_wrong_form_are_not_claims_that_are_missing() {
        let good = claims(&json!({"iss": "i", "aud": ["a", "b"], "jti": "j"}));
        assert_eq!(good.audiences(), Ok(vec!["a", "b"]));
        assert_eq!(good.sole_audience(), Err(JwtError::MalformedClaim("aud")));
        assert_eq!(good.token_id(), Ok(Some("j")));
        assert_eq!(good.subject(), Err(JwtError::MissingClaim("sub")));
        let one = claims(&json!({"aud": "a"}));
        assert_eq!(
            (one.audiences(), one.sole_audience()),
            (Ok(vec!["a"]), Ok("a"))
        );
        assert_eq!(one.token_id(), Ok(None));
        let list = claims(&json!({"aud": ["a"]}));
        assert_eq!(list.sole_audience(), Ok("a"), "a list of one names one");
        for none in [json!([""]), json!("")] {
            let none = claims(&json!({"aud": none}));
            assert_eq!(none.sole_audience(), Err(JwtError::MalformedClaim("aud")));
        }
        for aud in [json!([]), json!(["a", 1]), json!({}), json!(null), json!(1)] {
            let bad = claims(&json!({"aud": aud, "jti": 1, "sub": ""}));
            assert_eq!(bad.audiences(), Err(JwtError::MalformedClaim("aud")));
            assert_eq!(bad.token_id(), Err(JwtError::MalformedClaim("jti")));
            assert_eq!(bad.subject(), Err(JwtError::MalformedClaim("sub")));
        }
        assert_eq!(
            claims(&json!({})).audiences(),
            Err(JwtError::MissingClaim("aud"))
        );
    }

    #[test]
    fn times_are_judged_to_the_second_with_leeway_on_both_sides() {
        let good = claims(&json!({"iat": 1000, "nbf": 1010, "exp": 1100}));
        let check = |seconds| check_times(&good, Timestamp::from_seconds(seconds), 5, 200);
        assert_eq!(check(994), Err(TimeError::IssuedInTheFuture));
        assert_eq!(check(995), Err(TimeError::NotYetValid));
        assert_eq!(check(1004), Err(TimeError::NotYetValid));
        assert!(check(1005).is_ok());
        assert!(check(1104).is_ok());
        assert_eq!(check(1105), Err(TimeError::Expired));
        let old = |seconds| check_times(&good, Timestamp::from_seconds(seconds), 5, 20);
        assert!(old(1025).is_ok());
        assert_eq!(old(1026), Err(TimeError::TooOld));
        assert_eq!(
            check(1020),
            Ok(Times {
                issued_at: Timestamp::from_seconds(1000),
                not_before: Some(Timestamp::from_seconds(1010)),
                expires_at: Timestamp::from_seconds(1100),
            })
        );
    }

    #[test]
    fn dates_that_are_none_are_refused() {
        let at = Timestamp::from_seconds(1_050);
        let check = |value: Value| check_times(&claims(&value), at, 5, 200);
        let late = Timestamp::MAX.seconds();
        assert!(check(json!({"iat": 1000, "exp": late})).is_ok());
        let fraction = check(json!({"iat": 1000.9, "exp": 1100.9})).unwrap();
        assert_eq!(fraction.issued_at, Timestamp::from_seconds(1000));
        assert_eq!(fraction.expires_at, Timestamp::from_seconds(1100));
        assert_eq!(check(json!({"iat": 1000})), Err(TimeError::Missing("exp")));
        assert_eq!(check(json!({"exp": 1100})), Err(TimeError::Missing("iat")));
        assert_eq!(
            check(json!({"iat": 1000, "exp": 1000})),
            Err(TimeError::Backwards)
        );
        for bad in [
            json!("1100"),
            json!(null),
            json!([1100]),
            json!(true),
            json!(-1),
            json!(-0.5),
            json!(late + 1),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(1e300),
            json!(1e12),
        ] {
            for name in ["iat", "nbf", "exp"] {
                let mut value = json!({"iat": 1000, "nbf": 1000, "exp": 1100});
                value[name] = bad.clone();
                assert_eq!(check(value), Err(TimeError::NotADate(name)), "{bad}");
            }
        }
    }

    #[tokio::test]
    async fn debug_shows_neither_token_nor_claims() {
        let signer = local(Algorithm::Es256);
        let text = signed(&signer, &json!({"alg": "ES256"}), r#"{"sub":"canary"}"#).await;
        let token = UnverifiedJwt::parse(&text).unwrap();
        let claims = verify(&token, &key(&signer), ALL).unwrap();
        let shown = format!("{token:?}{token:#?}{claims:?}{claims:#?}");
        for part in text.split('.').chain(["canary"]) {
            assert!(!shown.contains(part), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,300}") {
            drop(UnverifiedJwt::parse(&text));
            drop(UnverifiedJwt::parse_proof(&text));
        }

        #[test]
        fn no_bytes_in_the_parts_make_the_parser_panic(
            header in proptest::collection::vec(any::<u8>(), 0..100),
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let text = format!("{}.{}.AAAA", encode(&header), encode(&payload));
            drop(UnverifiedJwt::parse(&text));
            let known = format!("{}.{}.AAAA", encode(br#"{"alg":"RS256"}"#), encode(&payload));
            drop(UnverifiedJwt::parse(&known));
        }

        #[test]
        fn a_token_that_passes_is_within_every_bound(
            iat in 0_i64..3_000, exp in 0_i64..3_000, nbf in 0_i64..3_000, now in 0_i64..3_000,
            leeway in 0_u64..60, age in 0_u64..1_000,
        ) {
            let claims = claims(&json!({"iat": iat, "exp": exp, "nbf": nbf}));
            let at = Timestamp::from_seconds(now);
            let (slack, oldest) = (i64::try_from(leeway).unwrap(), i64::try_from(age).unwrap());
            let ok = exp > iat && now < exp + slack && nbf <= now + slack && iat <= now + slack
                && iat >= (now - oldest - slack).max(0);
            prop_assert_eq!(check_times(&claims, at, leeway, age).is_ok(), ok);
        }
    }
}
