//! The expressions whose evaluation can fail although the policy passed validation.
//!
//! [`super::rewrite`] refuses such an expression where it would be evaluated for some of the
//! requested values only.

use cedar_policy::pst::{BinaryOp, Expr, UnaryOp};

use crate::policy::balance;

/// Whether an evaluation that passed validation can fail at this expression: by an overflow, by an
/// extension's error, or by an entity that does not exist.
pub(super) fn can_fail(expr: &Expr) -> bool {
    let own = match expr {
        Expr::UnaryOp { op, .. } => !matches!(op, UnaryOp::Not | UnaryOp::IsEmpty),
        Expr::BinaryOp { op, .. } => !matches!(
            op,
            BinaryOp::Eq
                | BinaryOp::NotEq
                | BinaryOp::Less
                | BinaryOp::LessEq
                | BinaryOp::Greater
                | BinaryOp::GreaterEq
                | BinaryOp::And
                | BinaryOp::Or
                | BinaryOp::In
                | BinaryOp::Contains
                | BinaryOp::ContainsAll
                | BinaryOp::ContainsAny
        ),
        Expr::GetAttr { expr, .. } => !is_of_request(expr),
        Expr::Literal(_)
        | Expr::Var(_)
        | Expr::HasAttr { .. }
        | Expr::Like { .. }
        | Expr::Is { .. }
        | Expr::IfThenElse { .. }
        | Expr::Set(_)
        | Expr::Record(_) => false,
        _ => true,
    };
    own || balance::parts(expr).into_iter().any(|part| can_fail(part))
}

/// Whether it is a variable, a record, or a member of one. These always exist.
fn is_of_request(expr: &Expr) -> bool {
    match expr {
        Expr::Var(_) | Expr::Record(_) => true,
        Expr::GetAttr { expr, .. } => is_of_request(expr),
        _ => false,
    }
}
