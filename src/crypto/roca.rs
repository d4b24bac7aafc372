//! Detects RSA moduli of a key generator whose private keys can be computed (CVE-2017-15361,
//! "ROCA").
//!
//! Its primes have the form `k · M + (65537^a mod M)`, where M is the product of the first primes,
//! at least those up to 167. So the modulus is also a power of 65537 modulo each of these primes.
//! This is the fingerprint of M. Nemec, M. Sys, P. Svenda, D. Klinec, V. Matyas, "The Return of
//! Coppersmith's Attack: Practical Factorization of Widely Used RSA Moduli", ACM CCS 2017, section
//! 2.3. One of about 2²⁷ other moduli has it by chance.
//!
//! The answer is a `bool` and no error: `super::jwk` refuses a key with the fingerprint.

/// The primes from 3 to 167. Modulo 2 every modulus is a power of 65537.
const PRIMES: [u16; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97,
    101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];

const GENERATOR: u32 = 65_537;

/// Whether a modulus, in big-endian order, has the fingerprint.
pub(super) fn has_fingerprint(modulus: &[u8]) -> bool {
    PRIMES
        .iter()
        .all(|prime| is_power_of_generator(modulus, u32::from(*prime)))
}

fn is_power_of_generator(modulus: &[u8], prime: u32) -> bool {
    let rest = modulus
        .iter()
        .fold(0, |rest, byte| (rest << 8 | u32::from(*byte)) % prime);
    let mut power = 1;
    // The powers repeat after at most this many steps.
    for _ in 1..prime {
        if power == rest {
            return true;
        }
        power = power * (GENERATOR % prime) % prime;
    }
    false
}

/// The product of two primes of 1,024 bits, made by the generator's rule for this test.
#[cfg(test)]
pub(super) const WEAK: &str = "4sdPwz8LBjdwaPX7oQimoaI7yXSv8igph4SrsiKqfwmcsBqNB1sPGM741hmVDLtLzdSvMrMlKdmbQlBq1-_p2709SmlvdNiOCLrm5ISTOl8O1A-sOd8XwUEPxNWvn63fLZBz36WkeDvHxUlonj_2jJAMXsI9R38HiR1sPID2n9JP9Yq7iXrw-EjeJL0bRoCjOKMxWnNNTwmtQPmRu7f7xLnGm67d_oWexYY1bXRyLWvo6AHJba9PoTInjBRyqvZvmmPib5-T3n7cv2XAZCNF-qaFyOE4ThFtSLjjDniKYLMDMBkHeJp5jZhRAN_hlrrgsBE4OFI4k3k3hmSIdT03AQ";

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    #[test]
    fn a_weak_modulus_is_told_from_others() {
        let weak = URL_SAFE_NO_PAD.decode(WEAK).unwrap();
        assert!(has_fingerprint(&weak));
        // The next odd numbers do not have the fingerprint.
        for step in [2_u8, 4, 6, 8] {
            let mut other = weak.clone();
            let last = other.last_mut().unwrap();
            *last = last.wrapping_add(step);
            assert!(!has_fingerprint(&other), "{step}");
        }
    }

    #[test]
    fn the_powers_are_those_of_the_group() {
        // Modulo 11 the powers of 65537 are 1 and 10, modulo 3 they are 1 and 2.
        for (number, prime, is_power) in [
            (1, 11, true),
            (10, 11, true),
            (3, 11, false),
            (11, 11, false),
            (2, 3, true),
            (3, 3, false),
        ] {
            assert_eq!(
                is_power_of_generator(&[number], prime),
                is_power,
                "{number} mod {prime}"
            );
        }
    }
}
