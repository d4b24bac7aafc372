//! Whether a public key is a point of its NIST curve.

use ring::agreement::{
    Algorithm, ECDH_P256, ECDH_P384, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral,
};
use ring::rand::SystemRandom;

/// Whether an uncompressed point is on P-256.
pub(super) fn is_on_p256(point: &[u8]) -> bool {
    is_on(&ECDH_P256, point)
}

/// Whether an uncompressed point is on P-384.
pub(super) fn is_on_p384(point: &[u8]) -> bool {
    is_on(&ECDH_P384, point)
}

/// *ring* checks a peer's point at the start of a key agreement. The result of the agreement is
/// dropped.
fn is_on(curve: &'static Algorithm, point: &[u8]) -> bool {
    let own = EphemeralPrivateKey::generate(curve, &SystemRandom::new());
    own.is_ok_and(|own| {
        let peer = UnparsedPublicKey::new(curve, point);
        agree_ephemeral(own, &peer, |_| ()).is_ok()
    })
}
