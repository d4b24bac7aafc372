//! Taskpass: one credential, for one task, decided before it exists, provable afterwards, dead
//! when the task ends.
//!
//! The map, in reading order; each module's own page says more.
//!
//! - [`clock`], [`ids`]: time and identifiers, as parameters.
//! - [`files`], [`outgoing`]: what is written to disk and asked of others, done with care once.
//! - [`process`]: what other processes of the machine can see of this one.
//! - `domain`: the nouns, their transitions and the subset rules; no HTTP, no SQL.
//! - `endpoints`: the replica's own table of servers to ask, and which addresses are public.
//! - [`merkle`]: the tree, its proofs and text formats; all that offline verification needs.
//! - `attest`, `policy`, `mint`, `crypto`: the plug-in seams.
//! - `store`: PostgreSQL and SQLite behind one type.
//! - `ledger`: the only writer of what makes leaves.
//! - `broker`: the use cases, as services over a core; start with `broker::issuance`.
//! - `sweep`: the workers that finish what is over.
//! - `export`: what the ledger says, told to sinks outside.
//! - `http`, `cli`: the doors.

pub mod app;
pub mod attest;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crypto;
pub mod domain;
pub mod endpoints;
pub mod export;
pub mod files;
#[cfg(test)]
mod golden;
pub mod http;
pub mod ids;
pub mod ledger;
pub mod merkle;
pub mod metrics;
pub mod mint;
pub mod outgoing;
pub mod policy;
pub mod process;
pub mod shutdown;
pub mod store;
pub mod sweep;
pub mod telemetry;
