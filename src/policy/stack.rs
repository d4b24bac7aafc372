//! The stacks on which policies are read and evaluated.
//!
//! Cedar works by recursion. If its parser runs out of stack, the process aborts. If its evaluator
//! is about to, the policy *fails*. If its validator is about to, it stops without a finding, so
//! mistakes pass. Each of these would depend on the thread that runs it. So this module fixes the
//! stack for each use:
//!
//! - Code that reads policy texts runs on its own thread ([`with_load_stack`]), whose stack fits
//!   the largest policy that [`super::shape`] accepts.
//! - Code that handles loaded policies, whose chains are balanced, needs less
//!   ([`with_balanced_stack`]).
//! - An evaluation has the stack that the deepest policy of its generation needs
//!   ([`with_evaluation_stack`]). If the thread has less left, a new stack is mapped for the
//!   evaluation. The runtime's threads have enough for all but very deep policies.
//! - [`evaluates_at`] tests the depth once, while a generation is loaded.
//!
//! If the thread for reading cannot be started or panics, the caller gets the I/O error and the
//! generation does not load. The file checks no policy: [`super::shape`] and [`super::bundle`]
//! limit the depth.

use std::io;
use std::sync::LazyLock;

use cedar_policy::pst;
use cedar_policy::{
    Authorizer, Context, Decision, Entities, Policy, PolicyId, PolicySet, Request, Schema,
};

use crate::domain::limits::MAX_EVALUATION_DEPTH;

/// Stack of the thread that reads policies, in bytes. In an unoptimised build, the conversions
/// between Cedar's formats take up to 34 KiB for each term of a chain, and 62 KiB for each nested
/// bracket. Untouched pages cost nothing.
const LOAD_STACK_BYTES: usize = 256 << 20;

/// Stack that an evaluation takes for one level of a condition: 62 KiB in an unoptimised build.
const LEVEL_BYTES: usize = 72 << 10;

/// Stack that an evaluation takes regardless of its depth: Cedar's reserve at the deepest point,
/// the scope of a policy, and the surrounding calls.
const BASE_BYTES: usize = 640 << 10;

/// Stack that is mapped if a thread has too little left.
const EVALUATION_STACK_BYTES: usize = BASE_BYTES + (MAX_EVALUATION_DEPTH + 1) * LEVEL_BYTES;

/// Stack for converting, typing and printing loaded policies, whose chains are balanced.
const BALANCED_STACK_BYTES: usize = 24 << 20;

/// Stack of the runtime's threads: enough for conditions of about a hundred levels without a mapped
/// stack.
pub const RUNTIME_STACK_BYTES: usize = 8 << 20;

/// Runs `work` on a thread whose stack fits the largest policies.
pub(super) fn with_load_stack<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("policy".into())
            .stack_size(LOAD_STACK_BYTES)
            .spawn_scoped(scope, work)?;
        thread
            .join()
            .map_err(|_| io::Error::other("reading policies failed"))
    })
}

/// Runs `work` with the stack for processing loaded policies.
pub(super) fn with_balanced_stack<T>(work: impl FnOnce() -> T) -> T {
    stacker::maybe_grow(BALANCED_STACK_BYTES, BALANCED_STACK_BYTES, work)
}

/// Runs `evaluation` with the stack that conditions of `depth` levels need.
pub(super) fn with_evaluation_stack<T>(depth: usize, evaluation: impl FnOnce() -> T) -> T {
    let needed = BASE_BYTES + depth.min(MAX_EVALUATION_DEPTH) * LEVEL_BYTES;
    stacker::maybe_grow(needed, EVALUATION_STACK_BYTES, evaluation)
}

/// Whether conditions of `depth` levels, of every kind of nesting, can be evaluated on their stack.
pub(super) fn evaluates_at(depth: usize) -> bool {
    static SCHEMA: LazyLock<Option<Schema>> = LazyLock::new(|| {
        let text = "entity E; action a appliesTo { principal: E, resource: E };";
        Some(Schema::from_cedarschema_str(text).ok()?.0)
    });
    let tried = || {
        let set = PolicySet::from_policies(
            NESTS
                .iter()
                .enumerate()
                .map(|(index, nest)| {
                    let id = PolicyId::new(format!("p{index}"));
                    nested(&id, depth, *nest).ok()
                })
                .collect::<Option<Vec<Policy>>>()?,
        )
        .ok()?;
        let (principal, action) = ("E::\"e\"".parse().ok()?, "Action::\"a\"".parse().ok()?);
        let resource = "E::\"e\"".parse().ok()?;
        let schema = SCHEMA.as_ref();
        let request = Request::new(principal, action, resource, Context::empty(), schema).ok()?;
        let answer = with_evaluation_stack(depth, || {
            Authorizer::new().is_authorized(&request, &set, &Entities::empty())
        });
        let failed = answer.diagnostics().errors().next().is_some();
        let all = answer.diagnostics().reason().count() == NESTS.len();
        Some(answer.decision() == Decision::Allow && all && !failed)
    };
    tried().unwrap_or(false)
}

type Nest = fn(pst::Expr) -> pst::Expr;

/// The kinds of nesting. Each preserves the value true.
const NESTS: [Nest; 4] = [
    |inner| pst::Expr::BinaryOp {
        op: pst::BinaryOp::And,
        left: inner.into(),
        right: truth().into(),
    },
    |inner| pst::Expr::UnaryOp {
        op: pst::UnaryOp::Not,
        expr: inner.into(),
    },
    |inner| pst::Expr::IfThenElse {
        cond: inner.into(),
        then_expr: truth().into(),
        else_expr: truth().into(),
    },
    |inner| pst::Expr::BinaryOp {
        op: pst::BinaryOp::Contains,
        left: pst::Expr::Set(vec![inner.into(), truth().into()]).into(),
        right: truth().into(),
    },
];

fn truth() -> pst::Expr {
    pst::Expr::Literal(pst::Literal::Bool(true))
}

/// A permit with a true condition of `depth` levels.
fn nested(id: &PolicyId, depth: usize, nest: Nest) -> Result<Policy, pst::PstConstructionError> {
    // A second negation undoes the first.
    let mut condition = truth();
    for _ in 0..depth.saturating_sub(1) / 2 * 2 {
        condition = nest(condition);
    }
    let template = pst::Template::new(
        pst::PolicyID(id.to_string().into()),
        pst::Effect::Permit,
        pst::PrincipalConstraint::Any,
        pst::ActionConstraint::Any,
        pst::ResourceConstraint::Any,
    )
    .try_with_clauses([pst::Clause::When(condition.into())])?;
    Policy::from_pst(pst::Policy::Static(pst::StaticPolicy::try_from(template)?))
}
