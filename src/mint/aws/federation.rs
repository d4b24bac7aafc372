//! The broker as an OpenID provider for AWS: tokens with which it assumes roles, and nothing else.
//!
//! [`Federation`] signs them: one for each mint, and one for the session that writes deny lists.
//! The federation has its own issuer, keys and audience, which no other token has. So STS accepts
//! none of the credentials that the broker releases, and no other server accepts these tokens. They
//! live for a minute, and the broker sends them only to STS.
//!
//! If no key may sign, or the key was revoked since the decision, the result is
//! [`MintError::Refused`] and nothing is sent. `http::federation` serves the public keys,
//! [`super::trust`] writes the policy by which AWS accepts these tokens, and [`super::clients`]
//! limits their recipient.

use secrecy::SecretString;
use serde::Serialize;
use serde_json::{Value, json};

use super::sts::Asked;
use crate::clock::Timestamp;
use crate::crypto::jwk::Algorithm;
use crate::crypto::keyring::{KeyPurpose, KeySchedule, signer_preferring};
use crate::crypto::loaded::LoadedKeys;
use crate::crypto::random::SystemRandom;
use crate::crypto::signer::sign_jwt;
use crate::domain::session::Session;
use crate::ids::SessionId;
use crate::mint::MintError;

/// The signature algorithm. AWS accepts RS256, ES256 and similar ones, but not `EdDSA`.
pub const FEDERATION_ALGORITHM: Algorithm = Algorithm::Es256;

/// The life of a token.
const LIFE_SECONDS: u64 = 60;

/// The broker's subject when it writes deny lists. No resource's subject begins with it.
pub const REVOKER_SUBJECT: &str = "revoker";

/// The federation's issuer for a broker with this issuer.
#[must_use]
pub fn issuer(broker: &str) -> String {
    format!("{}/federation/aws", broker.trim_end_matches('/'))
}

/// Creates tokens for STS.
pub(super) struct Federation {
    issuer: String,
    keys: LoadedKeys,
    schedule: KeySchedule,
}

/// The claims. The names of the tags are those of AWS.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: String,
    aud: &'static str,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: &'a str,
    #[serde(
        rename = "https://aws.amazon.com/tags",
        skip_serializing_if = "Option::is_none"
    )]
    tags: Option<Value>,
    #[serde(
        rename = "https://aws.amazon.com/source_identity",
        skip_serializing_if = "Option::is_none"
    )]
    source_identity: Option<&'a str>,
}

impl Federation {
    pub(super) fn new(broker: &str, keys: LoadedKeys, schedule: KeySchedule) -> Self {
        Self {
            issuer: issuer(broker),
            keys,
            schedule,
        }
    }

    pub(super) fn signing_key(&self, now: Timestamp) -> Option<String> {
        let keys = self.keys.load();
        let signer = signer_preferring(
            keys.iter().map(|key| &key.record),
            KeyPurpose::Federation,
            FEDERATION_ALGORITHM,
            &self.schedule,
            now,
        );
        signer.map(|record| record.kid.clone())
    }

    /// The token for minting one session.
    pub(super) async fn token(
        &self,
        session: &Session,
        asked: &Asked,
    ) -> Result<SecretString, MintError> {
        let at = session.issued_at;
        let claims = Claims {
            iss: &self.issuer,
            sub: format!("resource:{}", session.resource),
            aud: audience(&session.audience),
            iat: at.seconds(),
            nbf: at.seconds(),
            exp: at.plus_seconds(LIFE_SECONDS).seconds(),
            jti: &asked.session_id,
            tags: Some(json!({
                "principal_tags": {
                    super::sts::SESSION_TAG: [asked.session_id],
                    super::sts::DECISION_TAG: [asked.source_identity],
                },
                "transitive_tag_keys": [super::sts::SESSION_TAG, super::sts::DECISION_TAG],
            })),
            source_identity: Some(&asked.source_identity),
        };
        self.sign(&session.kid, &claims).await
    }

    /// The token with which the broker assumes the role that writes deny lists.
    pub(super) async fn revoker_token(
        &self,
        writer: &str,
        now: Timestamp,
    ) -> Result<SecretString, MintError> {
        let kid = self.signing_key(now);
        let kid = kid.ok_or_else(|| MintError::Refused("no federation key may sign now".into()))?;
        let jti = SessionId::new(now, &SystemRandom::default());
        let jti = jti.map_err(|error| MintError::Refused(error.to_string()))?;
        let claims = Claims {
            iss: &self.issuer,
            sub: REVOKER_SUBJECT.to_owned(),
            aud: audience(writer),
            iat: now.seconds(),
            nbf: now.seconds(),
            exp: now.plus_seconds(LIFE_SECONDS).seconds(),
            jti: &jti.to_string(),
            tags: None,
            source_identity: None,
        };
        self.sign(&kid, &claims).await
    }

    async fn sign(&self, kid: &str, claims: &Claims<'_>) -> Result<SecretString, MintError> {
        let keys = self.keys.load_full();
        let key = keys.iter().find(|key| key.signer.kid() == kid);
        let key = key
            .filter(|key| key.record.revoked_at.is_none())
            .ok_or_else(|| MintError::Refused("the federation's signing key was revoked".into()))?;
        sign_jwt("JWT", claims, key.signer.as_ref())
            .await
            .map_err(|error| MintError::Refused(error.to_string()))
    }
}

/// The audience that the role's partition requires.
pub(super) fn audience(role_arn: &str) -> &'static str {
    let [elsewhere, china] = crate::domain::kind::aws::FEDERATION_AUDIENCES;
    if role_arn.starts_with("arn:aws-cn:") {
        china
    } else {
        elsewhere
    }
}
