//! Policy: Cedar decides in process, before a credential exists, which workload may have it.
//!
//! # The model
//! - A **principal** is a workload: `Workload::<attestor>::"<identity>"`, with `identity` and the
//!   record `claims` that its attestor declares, and `in` the roles that admins bound to it.
//! - A **resource** is the target of credentials: `Api::"orders-api"`, with `owner`, `audience` and
//!   `risk`. Opening a task is about `TaskType::"nightly-report"`, acts on the broker about
//!   `Broker::"taskpass"`.
//! - An **action** is one that the resource registers, such as `Action::"orders:read"`;
//!   `Action::"any"` is the parent of all of these. Other actions are `Action::"openTask"` and the
//!   [`admin`] acts.
//! - The **context** holds typed facts: `context.task.type`, `.depth`, `.deadline_seconds`,
//!   `.has_parent`, `context.location`, `context.ttl_seconds`, and for a credential
//!   `context.revocability.class`, `.bound_seconds`, `.open_sessions` and `.expires_by`. It never
//!   holds free text, which is evidence for people.
//!
//! The `schema` is generated, so a policy cannot name a claim, resource kind or action that is not
//! configured.
//!
//! # Closed when in doubt
//! Cedar has two ways to permit by accident, and this module prevents both:
//! - Cedar skips a policy whose evaluation fails, so a broken `forbid` would permit. Here any error
//!   makes the decision *indeterminate*, which is a refusal.
//! - Without the ancestors of an action, `action in Action::"any"` would match nothing. Here entities
//!   reach an evaluation only with every action that it looks up, and the ancestors of each
//!   (`mapping`).
//!
//! Misspelt policies do not load: unknown annotations, entities that do not exist, conditions that
//! can never hold. Every `permit` must pin its principal to a value that the caller cannot choose;
//! `lint` has the exact rule.
//!
//! # Reading order
//! [`bundle`] reads files; `shape` and `balance` keep policies shallow; `schema` writes the schema;
//! `lint` adds rules that Cedar does not check; `asked` evaluates policies about single values for
//! requests with many; [`generation`] combines these. `mapping` builds entities and context;
//! `slice` finds the candidate policies; `inquiry` evaluates them on the stacks of `stack`;
//! [`decide`] joins the answers, and `memo` keeps them for the next request with the same facts.
//! [`suite`] runs the tests of policies.

pub mod admin;
mod asked;
mod balance;
pub mod bundle;
pub mod decide;
mod error;
pub mod explain;
pub mod generation;
mod input;
mod inquiry;
mod lint;
mod mapping;
mod memo;
mod notes;
mod offer;
mod parts;
mod problem;
pub mod record;
pub mod replay;
mod roles;
mod schema;
mod shape;
mod slice;
mod stack;
pub mod suite;
#[cfg(test)]
mod tests;
pub mod unused;

pub use admin::{AdminAction, AdminPrincipal};
pub use bundle::{read_directory, read_tests};
pub use decide::{Bounds, Question};
pub use error::PolicyError;
pub use generation::{CompiledGeneration, GenerationParts, build, write};
pub use lint::is_role;
pub use mapping::TaskFacts;
pub use notes::{Lasting, NamedLocations, Notes};
pub use problem::PolicyProblem;
pub use stack::RUNTIME_STACK_BYTES;
