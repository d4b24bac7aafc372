//! Taskpass issues one credential for one task. Policy decides before the credential exists, the
//! ledger proves the decision afterwards, and the credential ends with its task.
//!
//! The modules in reading order; the documentation of each says more.
//!
//! - [`clock`], [`ids`]: time and identifiers, passed as parameters.
//! - [`files`], [`outgoing`]: safe writing of files and bounded requests to other servers.
//! - [`process`]: hides this process's memory and environment from other processes.
//! - `domain`: the nouns, their transitions and the subset rules; no HTTP, no SQL.
//! - `endpoints`: this replica's table of servers to ask, and which addresses are public.
//! - [`wire`]: the shapes of requests and answers, and the types of problems; no server, no client.
//! - [`merkle`]: the tree, its proofs and text formats: everything that offline verification needs.
//! - `attest`, `policy`, `mint`, `crypto`: the extension points.
//! - `store`: PostgreSQL and SQLite behind one type.
//! - `ledger`: the only code that appends leaves.
//! - `broker`: the use cases, as services over a core; start with `broker::issuance`.
//! - `sweep`: the background workers, which for example end expired tasks.
//! - `export`: sends the ledger's events to external sinks.
//! - `wire`: the words of the HTTP interface, which its server and its clients share.
//! - `http`: the server's interface.
//! - `client`: the client of a broker, for the commands: requests, retries, attestations, leases.
//! - `audit`: verifies receipts, monitors logs and judges external actions, without a broker.
//! - `cli`: the commands: their flags, their output and their exit codes.

pub mod app;
pub mod attest;
pub(crate) mod audit;
pub mod broker;
pub mod cli;
pub(crate) mod client;
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
pub mod wire;
