//! Keys for tests. The RSA key is in the repository, and so is worth nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// TEST ONLY: an RSA key of 2048 bits in PEM, PKCS#8.
pub(super) const RSA_PEM: &str = include_str!("../../tests/fixtures/keys/rsa2048-test-only.pem");

/// The same in DER.
pub(super) fn rsa_pkcs8() -> Vec<u8> {
    let body: String = RSA_PEM
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    STANDARD.decode(body).unwrap()
}
