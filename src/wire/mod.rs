//! The words and shapes of the HTTP interface, which its server and its clients share.
//!
//! Each file has the shapes of one resource: requests, queries and answers. A shape can be written
//! and read: `http` reads requests and writes answers, and `client` and `cli` write requests and
//! read answers. An absent member is omitted, and the members are written in the order in which they
//! are declared here. This module knows the nouns of [`crate::domain`] and nothing else: the
//! handlers in `http` make the shapes of answers from the results of the broker.
//!
//! A request with an unknown member is refused. In an answer, a client ignores unknown members, and
//! keeps an unknown value of an enumeration as [`open::Open`]. The offline verifier (`audit`) uses
//! only [`words`]: it reads answers strictly by its own code.
//!
//! - [`open`]: values of answers that a later broker may extend.
//! - [`problem`]: the form of every refusal outside of OAuth, and the types of problems.
//! - [`words`]: the words that also the offline verifier reads.
//! - [`secret`]: the one type whose values are secrets on the wire.

pub mod admins;
pub mod credentials;
pub mod decisions;
pub mod generations;
pub mod health;
pub mod keys;
pub mod ledger;
pub mod oauth;
pub mod open;
pub mod openapi;
pub mod problem;
pub mod query;
pub mod receipt;
pub mod revocations;
pub mod secret;
pub mod sessions;
pub mod tasks;
pub mod words;
pub mod workload_keys;
