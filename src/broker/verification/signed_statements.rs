//! Statements: signed answers of the broker that are not credentials.
//!
//! They are signed with the keys of access tokens, which servers know already. The `typ` of a
//! statement names its kind, so that no server accepts it as another kind or as a token.

use std::sync::Arc;

use secrecy::SecretString;
use serde::Serialize;

use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::crypto::jwk::Algorithm;
use crate::crypto::keyring::{KeyPurpose, KeySchedule, signer_preferring};
use crate::crypto::loaded::{LoadedKey, LoadedKeys};
use crate::crypto::signer::sign_jwt;

/// The keys of access tokens, and the rule that selects the signing key.
pub(in crate::broker) struct StatementKeys {
    pub(in crate::broker) keys: LoadedKeys,
    pub(in crate::broker) algorithm: Algorithm,
    pub(in crate::broker) schedule: KeySchedule,
}

impl StatementKeys {
    /// The keys that this replica has loaded now.
    pub(super) fn load(&self) -> Arc<Vec<LoadedKey>> {
        self.keys.load_full()
    }

    /// Signs claims of this type with the key that signs now.
    pub(super) async fn sign(
        &self,
        typ: &str,
        claims: &(impl Serialize + Sync),
        now: Timestamp,
    ) -> Result<SecretString, BrokerError> {
        let closed = |why: &str| BrokerError::keys(why);
        let keys = self.load();
        let signer = signer_preferring(
            keys.iter().map(|key| &key.record),
            KeyPurpose::AccessToken,
            self.algorithm,
            &self.schedule,
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
