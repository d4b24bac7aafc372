//! Signing keys that were opened, as the parts of a running broker share them.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::jwk::VerificationKey;
use super::keyring::SigningKeyRecord;
use super::signer::Signer;

/// A signing key that is loaded.
#[derive(Clone)]
pub struct LoadedKey {
    /// Its dates and purpose.
    pub record: SigningKeyRecord,
    /// Signs with the private key.
    pub signer: Arc<dyn Signer>,
    /// The public key, which verifies the signatures of `signer`.
    pub verifier: VerificationKey,
}

/// The loaded keys of one purpose, swapped whole when one is made or withdrawn.
pub type LoadedKeys = Arc<ArcSwap<Vec<LoadedKey>>>;
