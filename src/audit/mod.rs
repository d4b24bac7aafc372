//! Audits the broker from outside: nothing here trusts the broker or needs its store.
//!
//! - [`verify`] verifies receipts, proofs and whole logs offline.
//! - [`monitor`] compares the checkpoints that a log serves with each other over time.
//! - [`coverage`] joins external actions to the decisions in a log.
//!
//! The engines return their findings as data. The commands print them and choose exit codes.

pub(crate) mod coverage;
mod error;
pub(crate) mod monitor;
pub(crate) mod verify;

pub(crate) use self::error::AuditError;
