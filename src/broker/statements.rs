//! What the broker signs beside credentials: what it says of them.
//!
//! The keys are those of the access tokens, which servers know already. What it is says its `typ`,
//! so that none is taken for another.

use secrecy::SecretString;
use serde::Serialize;

use super::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::crypto::keyring::{KeyPurpose, SigningKeyRecord, signer_preferring};
use crate::crypto::signer::sign_jwt;

impl Broker {
    /// Signs claims of this type with the key that signs now.
    pub(super) async fn sign_statement(
        &self,
        typ: &str,
        claims: &(impl Serialize + Sync),
        now: Timestamp,
    ) -> Result<SecretString, BrokerError> {
        let closed = |why: &str| BrokerError::FailClosed(why.to_owned());
        let policy = &self.parts.key_policy;
        let keys = self.parts.access_keys.load_full();
        let records: Vec<SigningKeyRecord> = keys.iter().map(|key| key.record.clone()).collect();
        let signer = signer_preferring(
            &records,
            KeyPurpose::AccessToken,
            policy.algorithm,
            &policy.schedule,
            now,
        );
        let key = keys
            .iter()
            .find(|key| signer.is_some_and(|signer| signer.kid == key.record.kid))
            .ok_or_else(|| closed("no key may sign now"))?;
        sign_jwt(typ, claims, key.signer.as_ref())
            .await
            .map_err(|error| closed(&error.to_string()))
    }
}
