//! The nouns of Taskpass: what they are, how they change, and which is within which.
//!
//! Nothing here knows of HTTP, SQL, Cedar or keys. A reader who knows these files knows what the
//! broker is about; everything else is how.
//!
//! - [`workload`]: who asks, as an attestor verified it.
//! - [`catalog`]: what credentials can be for, and which kinds of task there are.
//! - [`kind`]: the kinds of resources, one file each.
//! - [`grant`]: what is asked and given, and when one is within another.
//! - [`request`]: what a caller asks, and what that means once names are resolved.
//! - [`task`], [`session`], [`cutoff`]: records of what lives and dies.
//! - [`validity`]: whether a session or a task is good at an instant.
//! - [`pattern`]: wildcards, and when one is within another.
//! - [`status_list`]: where servers that poll find whether a credential is good.
//! - [`succession`]: a log that takes the place of another.
//! - [`decision`]: the outcome of policy, and why a refusal is one.
//! - [`permit`]: a decision whose leaf is durable.
//! - [`revocability`]: what a revocation of a credential achieves.
//! - [`generation`]: everything that decides, as one document with one digest.
//! - [`lasting`]: actions of AWS that leave access behind.
//! - [`leaf`]: the bytes that are hashed into the ledger.
//! - [`endpoint`]: network places by name, which each replica's own configuration explains.
//! - [`trust`], [`presets`]: which evidence is believed, and what is known of each provider's.
//! - [`limits`]: every maximum, with its reason.

pub mod catalog;
pub mod cutoff;
pub mod decision;
pub mod deny_list;
pub mod endpoint;
pub mod generation;
pub mod grant;
pub mod kind;
pub mod lasting;
pub mod leaf;
pub mod limits;
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
