//! Rewrites policies into the form that Cedar evaluates: the number of a question replaces every
//! part of a condition that depends on the requested values alone.
//!
//! [`rewrite`] returns a [`Rule`]: the policy by the reading that [`super`] explains (every value
//! for a permit, some value for a forbid), and for a permit with terms a second policy that applies
//! if the first would for some value. The rule permits no value that the written policy would
//! refuse.
//!
//! A policy that cannot be evaluated for many values at once is [`Unaskable`], with the remedy: it
//! uses `context` or a requested fact other than in a comparison with texts, could fail for some of
//! the values only, or becomes too large or too deep. The generation then does not load.
//!
//! `policy::generation` calls this file for each balanced policy, and validates the result by a
//! schema without the requested facts. `policy::slice` evaluates it.

mod failures;

use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy::pst::{BinaryOp, Clause, Effect, Expr, Literal, PatternElem, UnaryOp, Var};
use cedar_policy::{Policy, pst};

use self::failures::can_fail;
use super::patterns::PatternSet;
use super::question::{ExtentQuestion, Questions, Relation};
use super::{ASKED, Fact};
use crate::domain::limits::{
    MAX_ADDED_EXPRESSIONS, MAX_EVALUATION_DEPTH, MAX_LOCATION_BYTES, MAX_POLICY_EXPRESSIONS,
    MAX_WILDCARDS,
};
use crate::domain::pattern::Token;
use crate::policy::balance;
use crate::policy::schema::ACTION;

/// A policy in the form that Cedar evaluates.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Rule {
    /// The policy, with questions instead of comparisons with requested values.
    pub(in crate::policy) policy: Policy,
    /// A permit that applies if the policy applies to at least one requested value. Its terms then
    /// bind the whole request. `None` if it would apply exactly when `policy` does, or if the
    /// policy has no terms.
    pub(in crate::policy) terms: Option<Policy>,
    /// The numbers of the questions of both policies, sorted.
    pub(in crate::policy) questions: Vec<u32>,
    /// Depth of the deeper condition, in levels.
    pub(in crate::policy) depth: usize,
    /// The actions, by name, that the conditions name on the left side of `in`. Their evaluation
    /// reads the ancestors of these actions and of the requested one.
    pub(in crate::policy) looked_up: BTreeSet<String>,
}

/// The reason why a policy cannot be evaluated for many values at once, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) struct Unaskable {
    pub(in crate::policy) message: String,
    pub(in crate::policy) remedy: &'static str,
}

/// Rewrites a policy whose chains are balanced. `has_terms`: whether it is a permit with terms.
pub(in crate::policy) fn rewrite(
    policy: &Policy,
    has_terms: bool,
    questions: &mut Questions,
) -> Result<Rule, Unaskable> {
    let written = policy.to_pst().map_err(|error| not_readable(&error))?;
    let body = written.body();
    let clauses: Vec<(&Arc<Expr>, bool)> = body
        .clauses()
        .iter()
        .map(|clause| match clause {
            Clause::When(condition) => (condition, false),
            Clause::Unless(condition) => (condition, true),
        })
        .collect();
    let mut looked_up = BTreeSet::new();
    for (condition, _) in &clauses {
        add_looked_up(condition, false, &mut looked_up);
    }
    if !clauses
        .iter()
        .any(|(condition, _)| speaks_of_asked(condition))
    {
        let levels = clauses.iter().map(|(own, _)| balance::levels(own)).max();
        return Ok(Rule {
            policy: policy.clone(),
            terms: None,
            questions: Vec::new(),
            depth: levels.unwrap_or(0) + clauses.len(),
            looked_up,
        });
    }
    let mut rewriter = Rewriter {
        questions,
        used: BTreeSet::new(),
        expressions: 0,
        depth: 0,
    };
    let reading = match body.effect {
        Effect::Permit => Reading::Every,
        Effect::Forbid => Reading::Some,
    };
    let rule = rewriter.policy(body, &clauses, reading)?;
    let terms = if has_terms {
        Some(rewriter.policy(body, &clauses, Reading::Some)?)
    } else {
        None
    };
    // Each reading counts once.
    let written = 2 * clauses.iter().map(|(own, _)| count(own)).sum::<usize>();
    let added = rewriter.expressions.saturating_sub(written);
    if !rewriter.questions.count_added(added) {
        return Err(Unaskable {
            message: format!(
                "has an `if` in the condition of an `if`; expanding such conditions adds more \
                 than {MAX_ADDED_EXPRESSIONS} expressions to the policies of this generation"
            ),
            remedy: "write `if` as && and ||",
        });
    }
    if clauses.iter().any(|(condition, _)| can_fail(condition)) {
        return Err(Unaskable {
            message: "combines a condition on the requested location, action or region with a \
                computation"
                .into(),
            remedy: "the computation could fail for some requested values only: move it \
                (arithmetic, extension functions, attributes of a named entity) into a policy of \
                its own, for example forbid … unless { … }",
        });
    }
    Ok(Rule {
        policy: rule,
        terms,
        questions: rewriter.used.into_iter().collect(),
        depth: rewriter.depth,
        looked_up,
    })
}

/// Adds the actions that `expr` names on the left side of an `in`. `is_left`: whether `expr` is
/// within such a side itself. An action that is named there counts even if its value is not used.
fn add_looked_up(expr: &Expr, is_left: bool, found: &mut BTreeSet<String>) {
    match expr {
        Expr::Literal(Literal::EntityUID(uid)) if is_left && is_action(uid) => {
            found.insert(uid.eid.to_string());
        }
        Expr::BinaryOp {
            op: BinaryOp::In,
            left,
            right,
        } => {
            add_looked_up(left, true, found);
            add_looked_up(right, is_left, found);
        }
        Expr::Is {
            expr,
            in_expr: Some(group),
            ..
        } => {
            add_looked_up(expr, true, found);
            add_looked_up(group, is_left, found);
        }
        other => {
            for part in balance::parts(other) {
                add_looked_up(part, is_left, found);
            }
        }
    }
}

/// Whether it is of the type of the schema's actions, which has no namespace.
fn is_action(uid: &pst::EntityUID) -> bool {
    uid.ty.0.namespace.is_empty() && uid.ty.0.id.as_str() == ACTION
}

/// Number of nodes of an expression, its root included.
fn count(expr: &Expr) -> usize {
    let parts = balance::parts(expr).into_iter();
    1 + parts.map(|part| count(part)).sum::<usize>()
}

fn not_readable(error: &pst::PstConstructionError) -> Unaskable {
    Unaskable {
        message: format!("cannot be converted into the form that is evaluated: {error}"),
        remedy: "",
    }
}

/// The reading of a comparison with the requested values; see [`super`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// It holds if it holds for every requested value.
    Every,
    /// It holds if it holds for some requested value.
    Some,
}

impl Reading {
    fn flipped(self) -> Self {
        match self {
            Self::Every => Self::Some,
            Self::Some => Self::Every,
        }
    }
}

enum Form {
    /// It depends on the requested values alone.
    Asked(ExtentQuestion),
    /// It also depends on other facts.
    Other(Arc<Expr>),
}

struct Rewriter<'a> {
    questions: &'a mut Questions,
    used: BTreeSet<u32>,
    expressions: usize,
    depth: usize,
}

impl Rewriter<'_> {
    fn policy(
        &mut self,
        body: &pst::Template,
        clauses: &[(&Arc<Expr>, bool)],
        reading: Reading,
    ) -> Result<Policy, Unaskable> {
        let mut forms = Vec::new();
        for (condition, negated) in clauses {
            forms.push(self.signed(condition, *negated, reading)?);
        }
        let joined = self.join(BinaryOp::And, forms);
        let condition = self.expression(joined);
        let depth = balance::levels(&condition);
        if depth > MAX_EVALUATION_DEPTH {
            return Err(too_large());
        }
        self.depth = self.depth.max(depth + 1);
        balance::with_clauses(body, vec![Clause::When(condition)])
            .map_err(|error| not_readable(&error))
    }

    /// Rewrites a condition or its negation.
    fn signed(
        &mut self,
        condition: &Arc<Expr>,
        negated: bool,
        reading: Reading,
    ) -> Result<Form, Unaskable> {
        if !negated {
            return self.form(condition, reading);
        }
        Ok(match self.form(condition, reading.flipped())? {
            Form::Asked(question) => Form::Asked(question.negated()),
            Form::Other(expr) => Form::Other(Arc::new(Expr::UnaryOp {
                op: UnaryOp::Not,
                expr,
            })),
        })
    }

    fn form(&mut self, condition: &Arc<Expr>, reading: Reading) -> Result<Form, Unaskable> {
        self.expressions += 1;
        if self.expressions > MAX_POLICY_EXPRESSIONS {
            return Err(too_large());
        }
        if let Some(question) = comparison(condition, reading)? {
            return Ok(Form::Asked(question));
        }
        match condition.as_ref() {
            Expr::BinaryOp {
                op: op @ (BinaryOp::And | BinaryOp::Or),
                ..
            } => {
                let mut forms = Vec::new();
                for term in balance::terms(condition, *op) {
                    forms.push(self.form(term, reading)?);
                }
                Ok(self.join(*op, forms))
            }
            Expr::UnaryOp {
                op: UnaryOp::Not,
                expr,
            } => self.signed(expr, true, reading),
            Expr::IfThenElse {
                cond,
                then_expr,
                else_expr,
            } => self.conditional(cond, then_expr, else_expr, reading),
            other if speaks_of_asked(other) => Err(used_otherwise(other)),
            _ => Ok(Form::Other(Arc::clone(condition))),
        }
    }

    fn conditional(
        &mut self,
        cond: &Arc<Expr>,
        then_expr: &Arc<Expr>,
        else_expr: &Arc<Expr>,
        reading: Reading,
    ) -> Result<Form, Unaskable> {
        if speaks_of_asked(cond) {
            let mut branches = Vec::new();
            for (negated, branch) in [(false, then_expr), (true, else_expr)] {
                let both = vec![
                    self.signed(cond, negated, reading)?,
                    self.form(branch, reading)?,
                ];
                branches.push(self.join(BinaryOp::And, both));
            }
            return Ok(self.join(BinaryOp::Or, branches));
        }
        let then_form = self.form(then_expr, reading)?;
        let else_form = self.form(else_expr, reading)?;
        Ok(Form::Other(Arc::new(Expr::IfThenElse {
            cond: Arc::clone(cond),
            then_expr: self.expression(then_form),
            else_expr: self.expression(else_form),
        })))
    }

    /// Builds a chain: one question for all terms that are questions, followed by the other terms
    /// in their order. A question cannot fail and narrows no type, so moving it to the front is
    /// safe.
    fn join(&mut self, op: BinaryOp, forms: Vec<Form>) -> Form {
        let (mut asked, mut others) = (Vec::new(), Vec::new());
        for form in forms {
            match form {
                Form::Asked(question) => asked.push(question),
                Form::Other(expr) => others.push(expr),
            }
        }
        let question = (!asked.is_empty()).then(|| match op {
            BinaryOp::And => ExtentQuestion::all(asked),
            _ => ExtentQuestion::any(asked),
        });
        match (question, others.is_empty()) {
            (Some(question), true) => Form::Asked(question),
            (question, _) => {
                let first = question.map(|question| self.expression(Form::Asked(question)));
                let terms: Vec<Arc<Expr>> = first.into_iter().chain(others).collect();
                // An empty chain is true. No policy has one.
                let truth = || Arc::new(Expr::Literal(Literal::Bool(true)));
                Form::Other(balance::chain(op, terms).unwrap_or_else(truth))
            }
        }
    }

    fn expression(&mut self, form: Form) -> Arc<Expr> {
        let question = match form {
            Form::Other(expr) => return expr,
            Form::Asked(question) => question,
        };
        let number = self.questions.number(question);
        self.used.insert(number);
        Arc::new(Expr::BinaryOp {
            op: BinaryOp::Contains,
            left: Arc::new(Expr::GetAttr {
                expr: Arc::new(Expr::Var(Var::Context)),
                attr: ASKED.into(),
            }),
            right: Arc::new(Expr::Literal(Literal::Long(i64::from(number)))),
        })
    }
}

fn too_large() -> Unaskable {
    Unaskable {
        message: "its condition becomes too large or too deep".into(),
        remedy: "write `if` as && and ||, or split the policy into several",
    }
}

/// The question for a comparison with the requested values; `None` if `expr` is no such comparison.
fn comparison(expr: &Expr, reading: Reading) -> Result<Option<ExtentQuestion>, Unaskable> {
    let text = |fact, patterns: PatternSet, reading| {
        let relation = match reading {
            Reading::Every => Relation::Covered,
            Reading::Some => Relation::Met,
        };
        ExtentQuestion::Text {
            fact,
            patterns,
            relation,
        }
    };
    let exact = |fact: Fact, texts: Vec<&str>| {
        PatternSet::new(texts.into_iter().map(|text| {
            let chars = text.chars().map(|c| Token::Char(folded(fact, c)));
            chars.collect::<Vec<_>>()
        }))
    };
    Ok(match expr {
        Expr::HasAttr { expr, attrs } if is_context(expr) && attrs.tail.is_empty() => {
            let fact = Fact::of(&attrs.head);
            fact.map(|fact| ExtentQuestion::Has {
                fact,
                expected: true,
            })
        }
        Expr::BinaryOp {
            op: op @ (BinaryOp::Eq | BinaryOp::NotEq),
            left,
            right,
        } => {
            let compared = [(left, right), (right, left)]
                .into_iter()
                .find_map(|(one, other)| Some((fact_of(one)?, text_of(other)?)));
            let Some((fact, value)) = compared else {
                return Ok(None);
            };
            check_length(fact, value.len())?;
            let set = exact(fact, vec![value]);
            Some(match op {
                BinaryOp::Eq => text(fact, set, reading),
                _ => text(fact, set, reading.flipped()).negated(),
            })
        }
        Expr::BinaryOp {
            op: BinaryOp::Contains,
            left,
            right,
        } => match (left.as_ref(), fact_of(right)) {
            (Expr::Set(items), Some(fact)) => {
                let texts: Option<Vec<&str>> = items.iter().map(text_of).collect();
                let longest = texts.iter().flatten().map(|text| text.len()).max();
                check_length(fact, longest.unwrap_or(0))?;
                texts.map(|texts| text(fact, exact(fact, texts), reading))
            }
            _ => None,
        },
        Expr::Like { expr, pattern } => match fact_of(expr) {
            None => None,
            Some(fact) => {
                let wildcards = pattern.iter().filter(|own| **own == PatternElem::Wildcard);
                if wildcards.count() > MAX_WILDCARDS {
                    return Err(Unaskable {
                        message: format!(
                            "a pattern for context.{} has more than {MAX_WILDCARDS} wildcards",
                            fact.name()
                        ),
                        remedy: "write a shorter pattern, or several",
                    });
                }
                let bytes = pattern.iter().map(|own| match own {
                    PatternElem::Char(c) => c.len_utf8(),
                    PatternElem::Wildcard => 1,
                });
                check_length(fact, bytes.sum())?;
                let tokens = pattern.iter().map(|own| match own {
                    PatternElem::Char(c) => Token::Char(folded(fact, *c)),
                    PatternElem::Wildcard => Token::Many,
                });
                Some(text(fact, PatternSet::new([tokens]), reading))
            }
        },
        _ => None,
    })
}

/// Refuses a text that is longer than any value of the fact.
fn check_length(fact: Fact, bytes: usize) -> Result<(), Unaskable> {
    if bytes <= MAX_LOCATION_BYTES {
        return Ok(());
    }
    Err(Unaskable {
        message: format!(
            "compares context.{} with a text of {bytes} bytes; none has more than {MAX_LOCATION_BYTES}",
            fact.name()
        ),
        remedy: "write a shorter text",
    })
}

/// Converts AWS actions to lower case: AWS ignores the case of their letters.
fn folded(fact: Fact, c: char) -> char {
    match fact {
        Fact::Action => c.to_ascii_lowercase(),
        Fact::Location | Fact::Region => c,
    }
}

fn is_context(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Context))
}

fn fact_of(expr: &Arc<Expr>) -> Option<Fact> {
    match expr.as_ref() {
        Expr::GetAttr { expr, attr } if is_context(expr) => Fact::of(attr),
        _ => None,
    }
}

fn text_of(expr: &Arc<Expr>) -> Option<&str> {
    match expr.as_ref() {
        Expr::Literal(Literal::String(text)) => Some(text),
        _ => None,
    }
}

/// A mention of a requested fact in an expression. `context` as a whole mentions all of them.
enum Mention {
    Fact(Fact),
    /// The record that replaces the facts in evaluated policies. Policies must not name it.
    Asked,
    Whole,
}

impl Mention {
    fn of(member: &str) -> Option<Self> {
        match member {
            ASKED => Some(Self::Asked),
            _ => Fact::of(member).map(Self::Fact),
        }
    }
}

fn mention(expr: &Expr) -> Option<Mention> {
    match expr {
        Expr::GetAttr { expr, attr } if is_context(expr) => Mention::of(attr),
        Expr::HasAttr { expr, attrs } if is_context(expr) => Mention::of(&attrs.head),
        Expr::Var(Var::Context) => Some(Mention::Whole),
        _ => {
            let mut parts = balance::parts(expr).into_iter();
            parts.find_map(|part| mention(part))
        }
    }
}

fn speaks_of_asked(expr: &Expr) -> bool {
    mention(expr).is_some()
}

fn used_otherwise(expr: &Expr) -> Unaskable {
    match mention(expr) {
        Some(Mention::Fact(fact)) => Unaskable {
            message: format!(
                "uses context.{} in a form that cannot be evaluated for several requested values \
                    at once",
                fact.name()
            ),
            remedy: match fact {
                Fact::Location => {
                    "compare it with a text: context.location == \"…\", != or like \"…*\", or \
                     [\"…\", \"…\"].contains(context.location); join comparisons by &&, ||, ! and if"
                }
                Fact::Action => {
                    "compare it with a text: context.action == \"…\", != or like \"…*\", or \
                     [\"…\", \"…\"].contains(context.action); join comparisons by &&, ||, ! and if"
                }
                Fact::Region => {
                    "compare it with a text: context.region == \"…\", != or like \"…*\", or \
                     [\"…\", \"…\"].contains(context.region); join comparisons by &&, ||, ! and if"
                }
            },
        },
        Some(Mention::Asked) => Unaskable {
            message: format!("names context.{ASKED}, which no request has"),
            remedy: "take it out: name the facts themselves, such as context.location",
        },
        Some(Mention::Whole) | None => Unaskable {
            message: "uses `context` as a whole".into(),
            remedy: "name its members: context.task.type, context.ttl_seconds, context.location",
        },
    }
}

#[cfg(test)]
mod tests;
