//! Attestation (being built).
#![allow(dead_code, unreachable_pub)]
pub mod checks;
mod jwks;
pub mod template;

#[cfg(test)]
mod testing;
