//! Ed25519 public keys that prove nothing.
//!
//! The curve has eight points of small order. Any party can write a valid signature by such a "key"
//! for any message, and *ring* accepts it: RFC 8032 leaves the check to the caller. A party that
//! registers one, or binds a token to one, would rely on a key that every party can use. So these
//! points are refused where a key is accepted.
//!
//! The list is short because the sign of x is ignored. It includes the encodings that are not
//! reduced modulo p, which *ring* accepts too.

/// The y coordinates, little-endian, without the sign bit: 0, 1, p − 1, the two of order eight,
/// and p and p + 1, which mean 0 and 1.
const SMALL_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    with_ends(0x01, 0x00, 0x00),
    with_ends(0xec, 0xff, 0x7f),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
    with_ends(0xed, 0xff, 0x7f),
    with_ends(0xee, 0xff, 0x7f),
];

const fn with_ends(first: u8, between: u8, last: u8) -> [u8; 32] {
    let mut bytes = [between; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

/// Whether these 32 bytes encode a point of small order, with either sign.
#[must_use]
pub fn is_small_order(key: &[u8; 32]) -> bool {
    let mut y = *key;
    y[31] &= 0x7f;
    SMALL_ORDER.contains(&y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

    fn signed(point: &[u8; 32]) -> [[u8; 32]; 2] {
        let mut negative = *point;
        negative[31] |= 0x80;
        [*point, negative]
    }

    /// Shows that every entry is needed and correct: for each one, a signature made of a listed
    /// point and the scalar zero verifies over some short message.
    #[test]
    fn a_signature_by_each_listed_key_can_be_made_without_any_secret() {
        let points: Vec<[u8; 32]> = SMALL_ORDER.iter().flat_map(signed).collect();
        for key in &SMALL_ORDER {
            let public = UnparsedPublicKey::new(&ED25519, key);
            let forged = (0_u8..=255).any(|message| {
                points.iter().any(|point| {
                    let signature = [*point, [0; 32]].concat();
                    public.verify(&[message], &signature).is_ok()
                })
            });
            assert!(forged, "{key:02x?}");
        }
    }

    #[test]
    fn listed_keys_are_refused_with_either_sign_and_real_keys_are_not() {
        for key in SMALL_ORDER.iter().flat_map(signed) {
            assert!(is_small_order(&key));
        }
        for seed in 0..32 {
            let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
            let key: [u8; 32] = pair.public_key().as_ref().try_into().unwrap();
            assert!(!is_small_order(&key));
        }
    }
}
