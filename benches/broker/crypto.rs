//! The cost of the signatures and verifications of a request, timed by the CPU clock of this thread.

use std::hint::black_box;

use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair, UnparsedPublicKey,
};
use rustix::time::{ClockId, clock_gettime};

/// About the length of a token's header and claims.
const MESSAGE: [u8; 600] = [b'x'; 600];

/// Microseconds of one operation.
#[derive(Clone, Copy)]
pub struct Costs {
    pub verify_es256: f64,
    pub sign_es256: f64,
    pub sign_ed25519: f64,
}

impl Costs {
    /// Times so many of each operation.
    pub fn time(times: u32) -> Self {
        let random = SystemRandom::new();
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random)
                .unwrap();
        let signature = pair.sign(&random, &MESSAGE).unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref());
        let document = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let edwards = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        Self {
            verify_es256: timed(times, || {
                public
                    .verify(black_box(&MESSAGE), signature.as_ref())
                    .unwrap();
            }),
            sign_es256: timed(times, || {
                black_box(pair.sign(&random, black_box(&MESSAGE)).unwrap());
            }),
            sign_ed25519: timed(times, || {
                black_box(edwards.sign(black_box(&MESSAGE)));
            }),
        }
    }

    /// The cost of a signature by the algorithm that a token's header names.
    pub fn sign(self, algorithm: &str) -> f64 {
        match algorithm {
            "ES256" => self.sign_es256,
            "EdDSA" => self.sign_ed25519,
            other => panic!("the benchmark does not time signatures by {other}"),
        }
    }
}

fn timed(times: u32, operation: impl Fn()) -> f64 {
    let began = thread_us();
    for _ in 0..times {
        operation();
    }
    (thread_us() - began) / f64::from(times)
}

fn thread_us() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
