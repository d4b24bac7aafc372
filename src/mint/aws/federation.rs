//! The broker as an OpenID provider to AWS: tokens with which it assumes roles, and nothing else.
//!
//! Issuer, keys and audience are the federation's own and on no other token, so that no credential
//! that we release is good at STS, and none of these anywhere else. They live for a minute, are
//! sent to STS by us, and never leave the broker otherwise.

use secrecy::SecretString;
use serde::Serialize;
use serde_json::{Value, json};

use super::sts::Asked;
use crate::clock::Timestamp;
use crate::crypto::jwk::Algorithm;
use crate::crypto::keyring::{KeyPurpose, KeySchedule, SigningKeyRecord, signer_preferring};
use crate::crypto::loaded::LoadedKeys;
use crate::crypto::random::SystemRandom;
use crate::crypto::signer::sign_jwt;
use crate::domain::session::Session;
use crate::ids::SessionId;
use crate::mint::MintError;

/// What they sign with. AWS takes RS256 and ES256 and their like, and no `EdDSA`.
pub const FEDERATION_ALGORITHM: Algorithm = Algorithm::Es256;

/// How long a token is good.
const LIFE_SECONDS: u64 = 60;

/// Who the broker is when it writes what roles deny. No resource's subject begins so.
pub const REVOKER_SUBJECT: &str = "revoker";

/// The federation's issuer, for a broker of this issuer.
#[must_use]
pub fn issuer(broker: &str) -> String {
    format!("{}/federation/aws", broker.trim_end_matches('/'))
}

/// Makes tokens for STS.
pub(super) struct Federation {
    issuer: String,
    keys: LoadedKeys,
    schedule: KeySchedule,
}

/// The claims. The tags come under the names that AWS gave them.
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
        let records: Vec<SigningKeyRecord> = keys.iter().map(|key| key.record.clone()).collect();
        let signer = signer_preferring(
            &records,
            KeyPurpose::Federation,
            FEDERATION_ALGORITHM,
            &self.schedule,
            now,
        );
        signer.map(|record| record.kid.clone())
    }

    /// The token of one session's mint.
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

    /// A token with which the broker itself becomes the role that writes what roles deny.
    pub(super) async fn revoker_token(
        &self,
        writer: &str,
        now: Timestamp,
    ) -> Result<SecretString, MintError> {
        let kid = self.signing_key(now);
        let kid = kid.ok_or_else(|| MintError::Refused("no key may sign now".into()))?;
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
            .ok_or_else(|| MintError::Refused("the federation's key was withdrawn".into()))?;
        sign_jwt("JWT", claims, key.signer.as_ref())
            .await
            .map_err(|error| MintError::Refused(error.to_string()))
    }
}

/// The audience that the role's partition asks for.
pub(super) fn audience(role_arn: &str) -> &'static str {
    let [elsewhere, china] = crate::domain::kind::aws::FEDERATION_AUDIENCES;
    if role_arn.starts_with("arn:aws-cn:") {
        china
    } else {
        elsewhere
    }
}
