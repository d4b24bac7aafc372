//! The stacks on which policies are read and evaluated.
//!
//! Cedar works on policies by recursion. Where its parser runs out of stack the process aborts; where
//! its evaluator is about to, the policy *fails*; and where its validator is about to, it stops
//! without a finding, so that a mistake passes. Whether any of that happens would depend on the thread
//! that a policy happens to meet. So none of it is done on a stack of unknown size:
//!
//! - What reads policy texts runs on a thread of its own ([`with_load_stack`]), whose stack is made
//!   for the largest policy that [`super::shape`] lets through.
//! - An evaluation has as much stack as the deepest policy of its generation needs
//!   ([`with_evaluation_stack`]). Where the thread has less left, a new stack is mapped for the
//!   evaluation; the runtime's threads have enough for all but very deep policies.
//! - [`evaluates_at`] tries the depth once, while a generation is loaded.

use std::io;
use std::sync::LazyLock;

use cedar_policy::pst;
use cedar_policy::{
    Authorizer, Context, Decision, Entities, Policy, PolicyId, PolicySet, Request, Schema,
};

use crate::domain::limits::MAX_EVALUATION_DEPTH;

/// The stack of the thread that reads policies. The conversions between Cedar's formats take up to
/// 34 KiB for each term of a chain in an unoptimised build, and 62 KiB for each nested bracket. Pages
/// that are not touched cost nothing.
const LOAD_STACK_BYTES: usize = 256 << 20;

/// What an evaluation takes for one level of a condition: 62 KiB in an unoptimised build.
const LEVEL_BYTES: usize = 72 << 10;

/// What an evaluation takes whatever its depth: what Cedar wants to be left at its deepest point,
/// the scope of a policy, and what is called around it.
const BASE_BYTES: usize = 640 << 10;

/// The stack that is mapped where a thread has too little left.
const EVALUATION_STACK_BYTES: usize = BASE_BYTES + (MAX_EVALUATION_DEPTH + 1) * LEVEL_BYTES;

/// What looking at loaded policies takes, whose chains are balanced: conversions, typing, printing.
const BALANCED_STACK_BYTES: usize = 24 << 20;

/// The stack of the runtime's threads: enough for conditions of about a hundred levels without another
/// one.
pub const RUNTIME_STACK_BYTES: usize = 8 << 20;

/// Runs `work` on a thread whose stack is made for the largest policies.
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

/// Runs `work` with the stack that looking at loaded policies takes.
pub(super) fn with_balanced_stack<T>(work: impl FnOnce() -> T) -> T {
    stacker::maybe_grow(BALANCED_STACK_BYTES, BALANCED_STACK_BYTES, work)
}

/// Runs `evaluation` with the stack that conditions of `depth` levels need.
pub(super) fn with_evaluation_stack<T>(depth: usize, evaluation: impl FnOnce() -> T) -> T {
    let needed = BASE_BYTES + depth.min(MAX_EVALUATION_DEPTH) * LEVEL_BYTES;
    stacker::maybe_grow(needed, EVALUATION_STACK_BYTES, evaluation)
}

/// Whether conditions of `depth` levels of every sort can be evaluated on the stack that they get.
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

/// The sorts of nesting, each of which keeps what is true true.
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

/// A permit whose condition has so many levels and is true.
fn nested(id: &PolicyId, depth: usize, nest: Nest) -> Result<Policy, pst::PstConstructionError> {
    // A negation is undone by another.
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
