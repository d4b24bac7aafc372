//! Policy: who may have what, decided by Cedar in process, before a credential exists.
//!
//! # The model
//! - A **principal** is a workload: `Workload::<attestor>::"<identity>"`, with `identity` and the
//!   record `claims` that its attestor declares, and `in` the roles that admins bound to it.
//! - A **resource** is what credentials are for: `Api::"orders-api"`, with `owner`, `audience` and
//!   `risk`. Opening a task is about `TaskType::"nightly-report"`, acts on the broker about
//!   `Broker::"taskpass"`.
//! - An **action** is one that the resource registers, `Action::"orders:read"`, all of them
//!   together `Action::"any"`; or `Action::"openTask"`; or an [`admin`] act.
//! - The **context** holds typed facts: `context.task.type`, `.depth`, `.deadline_seconds`,
//!   `.has_parent`, `context.location`, `context.ttl_seconds`, and for a credential
//!   `context.revocability.class`, `.bound_seconds`, `.open_sessions` and `.expires_by`. Free text is
//!   evidence for people and never gets here.
//!
//! The `schema` is generated, so that a claim, resource kind or action that is not
//! configured cannot be written into a policy.
//!
//! # Closed when in doubt
//! Cedar has two ways to permit by accident, and each has its answer here. A policy whose evaluation
//! fails is skipped, so that a broken `forbid` permits: any error makes the decision
//! *indeterminate*, which is a refusal. Entities built without the schema have no action hierarchy,
//! so that `action in Action::"any"` matches nothing: nothing is built without it. Further, what is
//! misspelt does not load: unknown annotations, entities that do not exist, conditions that can
//! never hold. And a `permit` must say who, by something that a caller cannot choose; the exact
//! rule is in `lint`.
//!
//! # Reading order
//! [`bundle`] reads files, `shape` and `balance` keep them shallow, `schema` writes what they are
//! checked against, `lint` checks what Cedar does not, `asked` makes rules about parts hold for the
//! whole, [`generation`] puts it together; `mapping` makes entities and context, `slice` finds the
//! policies that matter, `inquiry` asks them, on the stacks of `stack`, and [`decide`] joins the
//! answers; [`suite`] runs the tests that lie beside policies.

pub mod admin;
mod asked;
mod balance;
pub mod bundle;
pub mod decide;
pub mod explain;
pub mod generation;
mod input;
mod inquiry;
mod lint;
mod mapping;
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
pub use decide::{Bounds, PolicyError, Question};
pub use generation::{CompiledGeneration, GenerationParts, build, write};
pub use lint::is_role;
pub use mapping::TaskFacts;
pub use notes::{Lasting, NamedPlaces, Notes};
pub use problem::PolicyProblem;
pub use stack::RUNTIME_STACK_BYTES;
