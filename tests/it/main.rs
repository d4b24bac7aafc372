//! Tests of Taskpass from outside: through the public functions of its library, over HTTP, as a
//! process.
//!
//! They are one binary, because each further file in `tests/` would be linked separately. Shared
//! code is in `support`.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::needless_pass_by_value,
    clippy::panic,
    clippy::similar_names,
    clippy::unused_self,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test may panic, read the clock and the environment, and exports nothing"
)]

// First, because the other modules use its macros.
#[macro_use]
mod support;

mod attestation;
mod audit;
mod aws;
mod aws_answers;
mod aws_list_rows;
mod aws_revocation;
mod behind_proxy;
mod bodies;
mod bootstrap;
mod changed_leaf;
mod check;
mod cli;
mod client_tls;
mod clocks;
mod confined;
mod conformance;
mod connections;
mod contract;
mod coverage;
mod crash;
mod credential_process;
mod cutoffs;
mod development;
mod disconnects;
mod documents;
mod endpoints;
mod evidence;
mod evidence_kept;
mod examples;
mod exec;
mod exec_broken_parts;
mod exec_kubernetes;
mod exec_renewal;
mod exec_retries;
mod exec_signals;
mod explain;
mod export;
mod failover;
mod faults;
mod figures;
mod files;
mod first_start;
mod foreign;
mod forged;
mod forgetting;
mod framing;
mod heartbeats;
mod inspection;
mod judge;
mod judged_anew;
mod key_rotation;
mod key_withdrawal;
mod kills;
mod laws;
mod limits;
mod load;
mod lock_out;
mod logs;
mod metrics_access;
mod minters;
mod mtls;
mod oauth;
mod observe;
mod orphan_search;
mod pages;
mod parts;
mod pipelines;
mod plans;
mod poolers;
mod possession;
mod proofs;
mod properties;
mod pruning;
mod readme;
mod refusals;
mod reload;
mod replay;
mod retries;
mod revocations;
mod rewind;
mod sealing;
mod secrets;
mod skew;
mod standards;
mod standby;
mod status_lists;
mod succession;
mod unused;
mod validity;
mod watch;
mod withdrawn;
mod witness;
mod workload_api;
mod write_ahead_log;
