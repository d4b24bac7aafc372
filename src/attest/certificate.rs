//! The caller's TLS client certificate (RFC 8705 §3): it holds the key, as the handshake showed.
//!
//! It says who the caller is to nobody. It is only what a token or a handle is bound to.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Evidence;
use crate::crypto::digest::sha256;
use crate::domain::workload::KeyBinding;

/// What the certificate of the request's connection binds to, if it has one. Of a chain only the
/// first counts: the handshake is signed with its key, the others are hints at who signed it.
#[must_use]
pub fn key(evidence: &Evidence) -> Option<KeyBinding> {
    let leaf = evidence.client_certificates.first()?;
    Some(KeyBinding::X5t(URL_SAFE_NO_PAD.encode(sha256(leaf))))
}
