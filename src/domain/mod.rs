//! The types of Taskpass, their transitions, and the order between rights.
//!
//! Nothing here depends on HTTP, SQL, Cedar or keys. These files define the concepts of the broker;
//! the other modules implement them.
//!
//! - [`workload`]: the caller, as an attestor verified it.
//! - [`catalog`]: the registered resources and task types.
//! - [`kind`]: the kinds of resources, one file each.
//! - [`action`], [`location`]: the values of which rights consist.
//! - [`grant`]: requested and granted rights, and the order between them.
//! - [`request`]: a request, and its form after names are resolved.
//! - [`task`], [`session`], [`cutoff`]: records of tasks, credentials and revocations.
//! - [`validity`]: whether a session or a task is valid at an instant.
//! - [`pattern`]: wildcards, and the order between patterns.
//! - [`status_list`]: the position of a credential in the lists that servers poll.
//! - [`deny_list`]: back ends that end single sessions by a list.
//! - [`succession`]: a log that replaces another.
//! - [`decision`]: the outcome of policy, and the reasons for refusals.
//! - [`permit`]: a decision whose leaf is durable.
//! - [`revocability`]: the effect of revoking a credential.
//! - [`generation`], [`generation_digest`]: every input of decisions other than the request, as one
//!   document with one digest.
//! - [`lasting`]: AWS actions that leave access behind.
//! - [`leaf`]: the bytes that are hashed into the ledger.
//! - [`record`]: a decision's leaf with its opening.
//! - [`endpoint`]: names of servers, whose addresses each replica's configuration defines.
//! - [`trust`], [`presets`]: the accepted evidence, and the known facts about each provider.
//! - [`text`]: checks of text that callers write for people.
//! - [`name`]: the rule for names that operators choose.
//! - [`limits`]: every maximum, with its reason.

pub mod action;
pub mod catalog;
pub mod cutoff;
pub mod decision;
pub mod deny_list;
pub mod endpoint;
pub mod generation;
pub mod generation_digest;
pub mod grant;
pub mod kind;
pub mod lasting;
pub mod leaf;
pub mod limits;
pub mod location;
pub mod name;
pub mod pattern;
pub mod permit;
pub mod presets;
pub mod record;
pub mod request;
pub mod revocability;
pub mod session;
pub mod status_list;
pub mod succession;
pub mod task;
pub mod text;
pub mod trust;
pub mod validity;
pub mod workload;
