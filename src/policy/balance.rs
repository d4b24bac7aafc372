//! Rewrites conditions into equivalent ones of the smallest depth.
//!
//! Cedar reads `a || b || c || d` as `((a || b) || c) || d`. A chain of a thousand terms becomes a
//! tree of a thousand levels, and each level takes stack in every later pass over the policy. `&&`
//! and `||` are associative in their value, in the order of evaluation, in where evaluation stops
//! and in which terms fail. Therefore [`balanced`] rebuilds chains as `(a || b) || (c || d)`, whose
//! depth is the number of binary digits of the number of terms.
//!
//! A balanced policy has the same value and the same errors as the written one. A policy that Cedar
//! cannot convert returns Cedar's error. This file limits nothing: it returns the depth, and
//! `super::bundle` refuses a policy that is too deep. `super::asked` uses [`terms`], [`chain`] and
//! [`levels`] to rewrite balanced policies.

use std::sync::Arc;

use cedar_policy::Policy;
use cedar_policy::pst::{self, BinaryOp, Clause, Expr, UnaryOp};

/// Balances every chain of the policy. Also returns the depth of its conditions in levels.
pub(super) fn balanced(policy: &Policy) -> Result<(Policy, usize), pst::PstConstructionError> {
    let written = policy.to_pst()?;
    let clauses = written.body().clauses().iter();
    let mut clauses: Vec<Clause> = clauses
        .map(|clause| match clause {
            Clause::When(condition) => Clause::When(balance(condition)),
            Clause::Unless(condition) => Clause::Unless(balance(condition)),
        })
        .collect();
    // Cedar nests the conditions of a policy one in another.
    if clauses.len() > MAX_CLAUSES {
        let conditions = clauses.into_iter().map(|clause| match clause {
            Clause::When(condition) => condition,
            Clause::Unless(expr) => Arc::new(Expr::UnaryOp {
                op: UnaryOp::Not,
                expr,
            }),
        });
        let all = chain(BinaryOp::And, conditions.collect());
        clauses = all.into_iter().map(Clause::When).collect();
    }
    let depth = clauses.iter().map(|clause| {
        let (Clause::When(condition) | Clause::Unless(condition)) = clause;
        levels(condition)
    });
    let depth = depth.max().unwrap_or(0) + clauses.len();
    Ok((with_clauses(written.body(), clauses)?, depth))
}

/// A policy with at most this many conditions keeps them. More are joined into one.
const MAX_CLAUSES: usize = 8;

/// The policy with other conditions.
pub(super) fn with_clauses(
    body: &pst::Template,
    clauses: Vec<Clause>,
) -> Result<Policy, pst::PstConstructionError> {
    let template = body.clone().try_with_clauses(clauses)?;
    Policy::from_pst(pst::Policy::Static(pst::StaticPolicy::try_from(template)?))
}

/// The terms of a chain of `op` from left to right. An expression that is no such chain is its only
/// term.
pub(super) fn terms(chain: &Arc<Expr>, op: BinaryOp) -> Vec<&Arc<Expr>> {
    let mut found = Vec::new();
    let mut to_see = vec![chain];
    while let Some(expr) = to_see.pop() {
        match expr.as_ref() {
            Expr::BinaryOp {
                op: own,
                left,
                right,
            } if *own == op => to_see.extend([right, left]),
            _ => found.push(expr),
        }
    }
    found
}

/// A chain of `op` with these terms in their order; `None` without terms.
pub(super) fn chain(op: BinaryOp, mut terms: Vec<Arc<Expr>>) -> Option<Arc<Expr>> {
    while terms.len() > 1 {
        let mut pairs = Vec::with_capacity(terms.len().div_ceil(2));
        let mut left = terms.into_iter();
        while let Some(one) = left.next() {
            pairs.push(match left.next() {
                Some(other) => Arc::new(Expr::BinaryOp {
                    op,
                    left: one,
                    right: other,
                }),
                None => one,
            });
        }
        terms = pairs;
    }
    terms.pop()
}

fn balance(expr: &Arc<Expr>) -> Arc<Expr> {
    match expr.as_ref() {
        Expr::BinaryOp {
            op: op @ (BinaryOp::And | BinaryOp::Or),
            ..
        } => {
            let terms = terms(expr, *op).into_iter().map(balance).collect();
            chain(*op, terms).unwrap_or_else(|| Arc::clone(expr))
        }
        _ => map(expr, balance),
    }
}

/// The expression with `change` applied to each of its direct parts.
fn map(expr: &Arc<Expr>, change: impl Fn(&Arc<Expr>) -> Arc<Expr>) -> Arc<Expr> {
    let changed = match expr.as_ref() {
        Expr::UnaryOp { op, expr } => Expr::UnaryOp {
            op: *op,
            expr: change(expr),
        },
        Expr::BinaryOp { op, left, right } => Expr::BinaryOp {
            op: *op,
            left: change(left),
            right: change(right),
        },
        Expr::GetAttr { expr, attr } => Expr::GetAttr {
            expr: change(expr),
            attr: attr.clone(),
        },
        Expr::HasAttr { expr, attrs } => Expr::HasAttr {
            expr: change(expr),
            attrs: attrs.clone(),
        },
        Expr::Like { expr, pattern } => Expr::Like {
            expr: change(expr),
            pattern: pattern.clone(),
        },
        Expr::Is {
            expr,
            entity_type,
            in_expr,
        } => Expr::Is {
            expr: change(expr),
            entity_type: entity_type.clone(),
            in_expr: in_expr.as_ref().map(change),
        },
        Expr::IfThenElse {
            cond,
            then_expr,
            else_expr,
        } => Expr::IfThenElse {
            cond: change(cond),
            then_expr: change(then_expr),
            else_expr: change(else_expr),
        },
        Expr::Set(items) => Expr::Set(items.iter().map(change).collect()),
        Expr::Record(members) => Expr::Record(
            members
                .iter()
                .map(|(name, value)| (name.clone(), change(value)))
                .collect(),
        ),
        _ => return Arc::clone(expr),
    };
    Arc::new(changed)
}

/// The direct parts of an expression.
pub(super) fn parts(expr: &Expr) -> Vec<&Arc<Expr>> {
    match expr {
        Expr::UnaryOp { expr, .. }
        | Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. } => vec![expr],
        Expr::BinaryOp { left, right, .. } => vec![left, right],
        Expr::Is { expr, in_expr, .. } => std::iter::once(expr).chain(in_expr).collect(),
        Expr::IfThenElse {
            cond,
            then_expr,
            else_expr,
        } => vec![cond, then_expr, else_expr],
        Expr::Set(items) => items.iter().collect(),
        Expr::Record(members) => members.values().collect(),
        _ => Vec::new(),
    }
}

/// The depth of an expression in evaluation, in levels.
pub(super) fn levels(expr: &Expr) -> usize {
    let deepest = parts(expr).into_iter().map(|part| levels(part)).max();
    let own = match expr {
        // Cedar evaluates these through other operators: `a != b` as `!(a == b)`.
        Expr::BinaryOp {
            op: BinaryOp::NotEq | BinaryOp::Greater | BinaryOp::GreaterEq,
            ..
        }
        | Expr::Is {
            in_expr: Some(_), ..
        } => 2,
        Expr::HasAttr { attrs, .. } => 2 * attrs.len() - 1,
        _ => 1,
    };
    own + deepest.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::stack::with_load_stack;

    fn shown(conditions: &str) -> (String, usize) {
        let text = format!("permit (principal, action, resource) {conditions};");
        let read = || balanced(&Policy::parse(None, text).unwrap()).unwrap();
        let (policy, depth) = with_load_stack(read).unwrap();
        let text = policy.to_cedar().unwrap();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let rest = text.split_once(')').unwrap().1;
        (rest.trim().trim_end_matches(';').trim().to_owned(), depth)
    }

    #[test]
    fn chains_keep_their_terms_in_order_and_have_few_levels() {
        let (text, _) = shown("when { 1 == 1 || 2 == 2 || 3 == 3 || 4 == 4 || 5 == 5 }");
        assert_eq!(
            text,
            "when { (1 == 1) || (2 == 2) || ((3 == 3) || (4 == 4)) || (5 == 5) }"
        );
        let (text, _) = shown("when { (1 == 2 || 3 == 4) && !(1 == 2 && 3 == 4 && 5 == 6) }");
        assert_eq!(
            text,
            "when { ((1 == 2) || (3 == 4)) && (!((1 == 2) && (3 == 4) && (5 == 6))) }"
        );
        for op in ["||", "&&"] {
            let long = vec!["principal == resource"; 1_000].join(op);
            let (_, depth) = shown(&format!("when {{ {long} }}"));
            // Ten levels of the chain, a comparison, its sides, and one condition.
            assert_eq!(depth, 13);
        }
    }

    #[test]
    fn many_conditions_become_one() {
        assert_eq!(shown("when { true } unless { false }").1, 3);
        let (_, depth) = shown(&"when { true } unless { false } ".repeat(500));
        assert_eq!(depth, 13);
    }

    #[test]
    fn what_is_within_other_expressions_is_balanced_too() {
        let long = |op: &str| vec!["true"; 64].join(op);
        for (condition, depth) in [
            (format!("[{}].contains(true)", long("||")), 10),
            (
                format!("if {} then {} else true", long("||"), long("&&")),
                9,
            ),
            (format!("{{a: {}}}.a", long("||")), 10),
            (format!("!({}) == true", long("&&")), 10),
        ] {
            assert_eq!(
                shown(&format!("when {{ {condition} }}")).1,
                depth,
                "{condition}"
            );
        }
        // Regrouping arithmetic would move overflows to other terms.
        let (_, depth) = shown(&format!("when {{ {} == 1 }}", vec!["1"; 50].join(" + ")));
        assert_eq!(depth, 52);
    }
}
