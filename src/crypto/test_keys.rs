//! Keys for tests. The RSA key is public in the repository.

use super::PrivateKey;

/// TEST ONLY: an RSA key of 2048 bits in PEM, PKCS#8.
pub(super) const RSA_PEM: &str = include_str!("../../tests/fixtures/keys/rsa2048-test-only.pem");

/// The same key in DER.
pub(super) fn rsa_pkcs8() -> Vec<u8> {
    PrivateKey::import_rsa_pem(RSA_PEM.as_bytes())
        .unwrap()
        .expose_pkcs8()
        .to_vec()
}
