//! Public keys as JWK (RFC 7517), and the algorithms that they may verify.
//!
//! [`PublicJwk`] is a key that passed every check, and [`VerificationKey`] is one that is prepared
//! for verification. A key has one family, and one algorithm if it names one. An RSA key never
//! verifies an ES256 token, and a P-256 key never an ES384 one, regardless of the token's header.
//!
//! A key that is weak, ambiguous or not for signatures is a [`JwkError`]. So is a JWK with a
//! private member, even if only its public half would be used: its sender has disclosed a private
//! key by mistake and should learn of it. A signature that does not fit is [`BadSignature`],
//! without a reason.
//!
//! Whether an elliptic-curve point is on its curve is checked only by
//! [`PublicJwk::check_on_curve`], which the registration of keys calls. Which key belongs to an
//! issuer is decided in `attest::jwks` and `attest::key`; [`super::jwt`] verifies tokens.

mod algorithm;
mod verification_key;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::curve::{is_on_p256, is_on_p384};
use super::digest::sha256;
use super::small_order::is_small_order;

pub use algorithm::{Algorithm, UnknownAlgorithm};
pub use verification_key::{BadSignature, VerificationKey};

/// The smallest RSA modulus (NIST SP 800-131A).
pub const MIN_RSA_BITS: usize = 2_048;

/// The largest RSA modulus. Verification time grows with the square of its length, and unknown
/// parties choose the key.
pub const MAX_RSA_BITS: usize = 4_096;

/// The longest `kid`. It is compared and logged, never used as a path or in an SQL statement.
pub const MAX_KID_BYTES: usize = 256;

/// The reason why a JWK is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// It is not JSON, a member has the wrong type, or a member occurs twice.
    #[error("the key is not a well-formed JWK")]
    Malformed,
    /// It contains private or symmetric key material.
    #[error("the key has the private member `{0}`: give a public key only")]
    Private(&'static str),
    /// Its `kty` or `crv` is not supported.
    #[error("the key is neither RSA, P-256, P-384 nor Ed25519")]
    UnsupportedType,
    /// A member that its type requires is missing.
    #[error("the key lacks its member `{0}`")]
    Missing(&'static str),
    /// It has a member that belongs to another type.
    #[error("the key has the member `{0}`, which belongs to another key type")]
    Foreign(&'static str),
    /// A coordinate is not base64url without padding, or has the wrong length.
    #[error("the key's member `{0}` is not base64url of the right length")]
    BadNumber(&'static str),
    /// The RSA modulus is too short or too long.
    #[error("an RSA key must have 2048 to 4096 bits")]
    RsaSize,
    /// The RSA modulus comes from a generator whose private keys can be computed.
    #[error(
        "the RSA key was made by a generator whose private keys can be computed (CVE-2017-15361): \
         make another one with a different generator"
    )]
    RsaGenerator,
    /// The point is not on the key's curve.
    #[error("the key is not a point of its curve: it verifies no signature")]
    NotOnCurve,
    /// The RSA exponent is even, too small or too large.
    #[error("an RSA key's public exponent must be odd, from 65537 to 33 bits")]
    RsaExponent,
    /// An Ed25519 point of small order, for which any party can write valid signatures.
    #[error("the key is a point of small order: any party can sign for it")]
    SmallOrder,
    /// `use` or `key_ops` exclude signatures.
    #[error("the key is not meant for verifying signatures")]
    NotForSignatures,
    /// `alg` does not fit the key or is not supported.
    #[error("the key's `alg` is not supported or does not fit its type")]
    WrongAlgorithm,
    /// `kid` is empty, too long, or has control characters.
    #[error("the key's `kid` is empty, longer than 256 bytes, or not plain text")]
    BadKid,
}

/// The members of a JWK that the broker reads. It ignores others, as RFC 7517 requires.
#[derive(Deserialize)]
struct Members {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    d: Option<IgnoredAny>,
    p: Option<IgnoredAny>,
    q: Option<IgnoredAny>,
    dp: Option<IgnoredAny>,
    dq: Option<IgnoredAny>,
    qi: Option<IgnoredAny>,
    oth: Option<IgnoredAny>,
    k: Option<IgnoredAny>,
}

#[derive(Clone, PartialEq, Eq)]
enum Point {
    P256 { x: [u8; 32], y: [u8; 32] },
    P384 { x: [u8; 48], y: [u8; 48] },
    Ed25519 { x: [u8; 32] },
    Rsa { n: Vec<u8>, e: Vec<u8> },
}

/// A public key that passed every check of this module. Serialises as a JWK with `use: "sig"`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Members")]
pub struct PublicJwk {
    point: Point,
    algorithm: Option<Algorithm>,
    kid: Option<String>,
}

impl fmt::Debug for PublicJwk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicJwk")
            .field("kid", &self.kid)
            .field("thumbprint", &self.thumbprint())
            .finish_non_exhaustive()
    }
}

fn decode(name: &'static str, text: Option<&str>) -> Result<Vec<u8>, JwkError> {
    let text = text.ok_or(JwkError::Missing(name))?;
    // A modulus of 4096 bits has 683 characters. Do not decode longer ones.
    if text.len() > 1_024 {
        return Err(JwkError::BadNumber(name));
    }
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| JwkError::BadNumber(name))
}

fn decode_exact<const N: usize>(
    name: &'static str,
    text: Option<&str>,
) -> Result<[u8; N], JwkError> {
    decode(name, text)?
        .try_into()
        .map_err(|_| JwkError::BadNumber(name))
}

fn absent<T>(name: &'static str, member: Option<&T>) -> Result<(), JwkError> {
    member.map_or(Ok(()), |_| Err(JwkError::Foreign(name)))
}

fn rsa(n: Vec<u8>, e: Vec<u8>) -> Result<Point, JwkError> {
    // Base64urlUInt is minimal: with a leading zero the thumbprint would have two values.
    let (Some(&top), Some(&low)) = (n.first(), n.last()) else {
        return Err(JwkError::BadNumber("n"));
    };
    if top == 0 || low & 1 == 0 {
        return Err(JwkError::BadNumber("n"));
    }
    let bits = n.len() * 8 - top.leading_zeros() as usize;
    if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
        return Err(JwkError::RsaSize);
    }
    if super::roca::has_fingerprint(&n) {
        return Err(JwkError::RsaGenerator);
    }
    if e.len() > 5 || e.first().is_none_or(|top| *top == 0) {
        return Err(JwkError::RsaExponent);
    }
    let exponent = e
        .iter()
        .fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    if exponent < 65_537 || exponent & 1 == 0 || exponent >= 1 << 33 {
        return Err(JwkError::RsaExponent);
    }
    Ok(Point::Rsa { n, e })
}

impl TryFrom<Members> for PublicJwk {
    type Error = JwkError;

    fn try_from(members: Members) -> Result<Self, JwkError> {
        for (name, member) in [
            ("d", &members.d),
            ("p", &members.p),
            ("q", &members.q),
            ("dp", &members.dp),
            ("dq", &members.dq),
            ("qi", &members.qi),
            ("oth", &members.oth),
            ("k", &members.k),
        ] {
            if member.is_some() {
                return Err(JwkError::Private(name));
            }
        }
        let (x, y) = (members.x.as_deref(), members.y.as_deref());
        let point = match (members.kty.as_str(), members.crv.as_deref()) {
            ("EC" | "OKP", None) => return Err(JwkError::Missing("crv")),
            ("EC", Some("P-256")) => Point::P256 {
                x: decode_exact("x", x)?,
                y: decode_exact("y", y)?,
            },
            ("EC", Some("P-384")) => Point::P384 {
                x: decode_exact("x", x)?,
                y: decode_exact("y", y)?,
            },
            ("OKP", Some("Ed25519")) => {
                absent("y", y.as_ref())?;
                let x = decode_exact("x", x)?;
                if is_small_order(&x) {
                    return Err(JwkError::SmallOrder);
                }
                Point::Ed25519 { x }
            }
            ("RSA", None) => {
                absent("x", x.as_ref())?;
                absent("y", y.as_ref())?;
                rsa(
                    decode("n", members.n.as_deref())?,
                    decode("e", members.e.as_deref())?,
                )?
            }
            ("RSA", Some(_)) => return Err(JwkError::Foreign("crv")),
            _ => return Err(JwkError::UnsupportedType),
        };
        if !matches!(point, Point::Rsa { .. }) {
            absent("n", members.n.as_ref())?;
            absent("e", members.e.as_ref())?;
        }
        if members.usage.is_some_and(|usage| usage != "sig")
            || members
                .key_ops
                .is_some_and(|operations| !operations.iter().any(|name| name == "verify"))
        {
            return Err(JwkError::NotForSignatures);
        }
        let algorithm = match members.alg {
            None => None,
            Some(name) => {
                let algorithm = name
                    .parse::<Algorithm>()
                    .map_err(|_| JwkError::WrongAlgorithm)?;
                if !point.algorithms().contains(&algorithm) {
                    return Err(JwkError::WrongAlgorithm);
                }
                Some(algorithm)
            }
        };
        if members.kid.as_deref().is_some_and(|kid| !plain_kid(kid)) {
            return Err(JwkError::BadKid);
        }
        Ok(Self {
            point,
            algorithm,
            kid: members.kid,
        })
    }
}

/// Whether `kid` is nonempty, of limited length and without control characters.
pub(super) fn plain_kid(kid: &str) -> bool {
    !kid.is_empty() && kid.len() <= MAX_KID_BYTES && !kid.chars().any(char::is_control)
}

impl Point {
    fn algorithms(&self) -> &'static [Algorithm] {
        match self {
            Self::P256 { .. } => &[Algorithm::Es256],
            Self::P384 { .. } => &[Algorithm::Es384],
            Self::Ed25519 { .. } => &[Algorithm::EdDsa],
            Self::Rsa { .. } => &Algorithm::RSA,
        }
    }

    /// The members that RFC 7638 hashes, in its order. Also the body of the JWK.
    fn members(&self) -> Vec<(&'static str, String)> {
        let base64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let curve = |name: &str, x: &[u8], y: &[u8]| {
            vec![
                ("crv", name.to_owned()),
                ("kty", "EC".to_owned()),
                ("x", base64(x)),
                ("y", base64(y)),
            ]
        };
        match self {
            Self::P256 { x, y } => curve("P-256", x, y),
            Self::P384 { x, y } => curve("P-384", x, y),
            Self::Ed25519 { x } => vec![
                ("crv", "Ed25519".to_owned()),
                ("kty", "OKP".to_owned()),
                ("x", base64(x)),
            ],
            Self::Rsa { n, e } => vec![
                ("e", base64(e)),
                ("kty", "RSA".to_owned()),
                ("n", base64(n)),
            ],
        }
    }
}

impl Serialize for PublicJwk {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fixed = [
            ("use", Some("sig".to_owned())),
            ("alg", self.algorithm.map(|a| a.as_str().to_owned())),
            ("kid", self.kid.clone()),
        ];
        serializer.collect_map(
            self.point.members().into_iter().chain(
                fixed
                    .into_iter()
                    .filter_map(|(name, value)| Some((name, value?))),
            ),
        )
    }
}

impl PublicJwk {
    /// Parses a JWK. Refuses duplicate members, private members and weak keys.
    pub fn parse(json: &[u8]) -> Result<Self, JwkError> {
        let members = super::strict_json::object(json).map_err(|_| JwkError::Malformed)?;
        Self::from_members(members)
    }

    /// Creates a key from the members of a parsed JWK, for example an entry of a JWKS.
    pub fn from_members(
        members: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, JwkError> {
        // `"d": null` is a private member too, which an `Option` would not detect.
        for name in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
            if members.contains_key(name) {
                return Err(JwkError::Private(name));
            }
        }
        Members::deserialize(serde_json::Value::Object(members))
            .map_err(|_| JwkError::Malformed)?
            .try_into()
    }

    /// Creates an Ed25519 key from its 32 bytes.
    #[must_use]
    pub fn from_ed25519(x: [u8; 32]) -> Self {
        Self::of_ours(Point::Ed25519 { x }, Algorithm::EdDsa)
    }

    /// Creates a P-256 key from its uncompressed point.
    pub(super) fn from_p256(point: &[u8]) -> Result<Self, JwkError> {
        let Some((&[4], rest)) = point.split_first_chunk::<1>() else {
            return Err(JwkError::BadNumber("x"));
        };
        let Some((x, y)) = rest.split_first_chunk::<32>() else {
            return Err(JwkError::BadNumber("x"));
        };
        let y = y.try_into().map_err(|_| JwkError::BadNumber("y"))?;
        Ok(Self::of_ours(Point::P256 { x: *x, y }, Algorithm::Es256))
    }

    /// Creates an RS256 key from its modulus and exponent.
    pub(super) fn from_rsa(n: Vec<u8>, e: Vec<u8>) -> Result<Self, JwkError> {
        Ok(Self::of_ours(rsa(n, e)?, Algorithm::Rs256))
    }

    /// Creates a key of the broker, which pins its algorithm and has its thumbprint as its `kid`.
    fn of_ours(point: Point, algorithm: Algorithm) -> Self {
        let mut key = Self {
            point,
            algorithm: Some(algorithm),
            kid: None,
        };
        key.kid = Some(key.thumbprint());
        key
    }

    /// Refuses a key whose point is not on its curve. The check costs about as much as a signature,
    /// so it is only for keys at registration. In verification it is not needed: such a key
    /// verifies no signature.
    pub fn check_on_curve(&self) -> Result<(), JwkError> {
        let on_curve = match &self.point {
            Point::P256 { x, y } => is_on_p256(&[&[4], x.as_slice(), y].concat()),
            Point::P384 { x, y } => is_on_p384(&[&[4], x.as_slice(), y].concat()),
            Point::Ed25519 { .. } | Point::Rsa { .. } => true,
        };
        on_curve.then_some(()).ok_or(JwkError::NotOnCurve)
    }

    /// The thumbprint (RFC 7638, RFC 8037), base64url of SHA-256.
    #[must_use]
    pub fn thumbprint(&self) -> String {
        // Names and base64url need no escaping, so this is the canonical JSON.
        let members: Vec<String> = self
            .point
            .members()
            .iter()
            .map(|(name, value)| format!("\"{name}\":\"{value}\""))
            .collect();
        URL_SAFE_NO_PAD.encode(sha256(format!("{{{}}}", members.join(",")).as_bytes()))
    }

    /// Its `kid`; `None` if it has none.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The algorithms that it may verify: its own `alg` if it has one, else those of its family.
    #[must_use]
    pub fn algorithms(&self) -> Vec<Algorithm> {
        match self.algorithm {
            Some(algorithm) => vec![algorithm],
            None => self.point.algorithms().to_vec(),
        }
    }

    /// The raw key; `None` if it is not an Ed25519 key. The verifier key of a signed note contains
    /// it.
    #[must_use]
    pub fn ed25519_bytes(&self) -> Option<[u8; 32]> {
        match &self.point {
            Point::Ed25519 { x } => Some(*x),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
