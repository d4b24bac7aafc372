//! The caller's TLS client certificate (RFC 8705 §3). The handshake proved that the caller holds
//! its key.
//!
//! It does not identify the caller. Tokens and handles are only bound to it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Evidence;
use crate::crypto::digest::sha256;
use crate::domain::workload::KeyBinding;

/// The binding to the connection's certificate; `None` without a certificate. Only the first
/// certificate of a chain counts: its key signed the handshake, and the others only help to find
/// the issuer.
#[must_use]
pub fn key(evidence: &Evidence) -> Option<KeyBinding> {
    let leaf = evidence.client_certificates.first()?;
    Some(KeyBinding::X5t(URL_SAFE_NO_PAD.encode(sha256(leaf))))
}
