//! Attestation (being built).
pub mod checks;
pub mod template;
