//! Splits a policy into the parts that must hold for it to apply: principal, action, resource, and
//! each conjunct of its conditions. An explanation can then name the parts that do not hold.
//!
//! [`Dissected`] is a policy with its [`Part`]s, and [`EvaluationContext`] is the request that they
//! are evaluated for. Each part is evaluated by Cedar as a permit with no other part.
//!
//! Nothing here returns an error, and nothing here affects a decision. A part that cannot be
//! evaluated by itself counts as not holding; a policy that Cedar cannot convert to JSON has no
//! parts. `super::explain` is the only caller.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{Authorizer, Context, Decision, Effect, Entities, Policy, PolicySet, Request};
use serde_json::{Value, json};

use super::asked::Extent;
use super::asked::question::Questions;
use super::asked::rewrite::{self, Rule};
use super::bundle::NamedPolicy;
use super::mapping::{Model, Scene, Unmappable};
use super::stack::with_evaluation_stack;
use crate::domain::limits::MAX_REQUEST_STEPS;
use crate::domain::pattern::Budget;

/// A part that must hold for a policy to apply.
pub(super) struct Part {
    /// Whether it is a part of the scope, not of a condition.
    pub(super) is_scope: bool,
    /// Whether it is the principal of the scope.
    pub(super) is_principal: bool,
    /// The part in Cedar syntax.
    pub(super) text: String,
    /// A permit with this part alone, and its questions. `None` if there is no such policy.
    alone: Option<(Rule, Questions)>,
    /// The part in Cedar's JSON format.
    body: Value,
}

impl Part {
    fn new(text: Option<String>, policy: &Value, body: Value) -> Option<Self> {
        let policy = Policy::from_json(None, policy.clone()).ok()?;
        let text = match text {
            Some(text) => text,
            None => condition(&policy.to_cedar()?)?,
        };
        Some(Self {
            is_scope: false,
            is_principal: false,
            text,
            alone: {
                let mut questions = Questions::default();
                let rule = rewrite::rewrite(&policy, false, &mut questions).ok();
                rule.map(|rule| (rule, questions))
            },
            body,
        })
    }

    /// Whether it holds in `context`. A part that cannot be evaluated by itself does not hold.
    pub(super) fn holds(&self, context: &EvaluationContext<'_>) -> bool {
        let evaluated = || {
            let (rule, questions) = self.alone.as_ref()?;
            let budget = Budget::new(MAX_REQUEST_STEPS);
            let holding = questions.holding(&rule.questions, &context.extent, &budget);
            let request = context.request(&holding).ok()?;
            let entities = context.entities(rule).ok()?;
            let set = PolicySet::from_policies([rule.policy.clone()]).ok()?;
            let answer = with_evaluation_stack(rule.depth, || {
                Authorizer::new().is_authorized(&request, &set, &entities)
            });
            Some(answer.decision() == Decision::Allow)
        };
        evaluated().unwrap_or(false)
    }

    /// Adds the facts that it reads, each with the literals that it is compared with.
    pub(super) fn compared(&self, found: &mut BTreeMap<String, BTreeSet<Literal>>) {
        let (mut paths, mut literals) = (BTreeSet::new(), BTreeSet::new());
        walk(&self.body, &mut paths, &mut literals);
        for path in paths {
            found
                .entry(path)
                .or_default()
                .extend(literals.iter().cloned());
        }
    }
}

/// The request that parts are evaluated for.
pub(super) struct EvaluationContext<'a> {
    pub(super) model: &'a Model,
    pub(super) scene: &'a Scene,
    pub(super) asked: &'a Request,
    pub(super) extent: Extent<'a>,
    /// Builds the context in which the given questions hold.
    pub(super) cedar_context: &'a dyn Fn(&[u32]) -> Result<Context, Unmappable>,
}

impl EvaluationContext<'_> {
    /// The request, in a context in which the questions `holding` hold.
    fn request(&self, holding: &[u32]) -> Result<Request, Unmappable> {
        let unknown = || Unmappable("a request without action and resource".into());
        let action = self.asked.action().ok_or_else(unknown)?;
        let resource = self.asked.resource().ok_or_else(unknown)?;
        let context = (self.cedar_context)(holding)?;
        self.model.request(self.scene, action, resource, context)
    }

    /// The entities that an evaluation of `rule` reads.
    fn entities(&self, rule: &Rule) -> Result<Entities, Unmappable> {
        let requested = self.asked.action().map(|action| action.id().unescaped());
        let named = rule.looked_up.iter().map(String::as_str);
        self.model.entities(self.scene, named.chain(requested))
    }
}

/// A literal in a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Literal {
    Bool(bool),
    Long(i64),
    Text(String),
}

/// A policy and its parts.
pub(super) struct Dissected<'a> {
    pub(super) named: &'a NamedPolicy,
    pub(super) parts: Vec<Part>,
}

impl<'a> Dissected<'a> {
    /// Splits a policy. A policy that Cedar cannot convert to JSON has no parts.
    pub(super) fn new(named: &'a NamedPolicy) -> Self {
        let parts = named.policy.to_json().ok().map(|json| parts(&json));
        Self {
            named,
            parts: parts.unwrap_or_default(),
        }
    }

    pub(super) fn is_permit(&self) -> bool {
        self.named.policy.effect() == Effect::Permit
    }
}

fn parts(policy: &Value) -> Vec<Part> {
    let all = json!({
        "effect": "permit", "principal": {"op": "All"}, "action": {"op": "All"},
        "resource": {"op": "All"}, "conditions": [],
    });
    let with = |member: &str, value: &Value| {
        let mut only = all.clone();
        only[member] = value.clone();
        only
    };
    let mut parts = Vec::new();
    for member in ["principal", "action", "resource"] {
        let scope = &policy[member];
        if scope["op"] == "All" {
            continue;
        }
        let only = with(member, scope);
        let text = Policy::from_json(None, only.clone())
            .ok()
            .and_then(|policy| policy.to_cedar())
            .and_then(|text| scope_text(&text, member));
        let part = text.and_then(|text| Part::new(Some(text), &only, scope.clone()));
        parts.extend(part.map(|part| Part {
            is_scope: true,
            is_principal: member == "principal",
            ..part
        }));
    }
    let conditions = policy["conditions"].as_array();
    for condition in conditions.into_iter().flatten() {
        let mut bodies = Vec::new();
        if condition["kind"] == "when" {
            conjuncts(&condition["body"], &mut bodies);
        } else {
            bodies.push(condition["body"].clone());
        }
        for body in bodies {
            let one = json!([{"kind": condition["kind"], "body": body}]);
            parts.extend(Part::new(None, &with("conditions", &one), body));
        }
    }
    parts
}

fn conjuncts(body: &Value, found: &mut Vec<Value>) {
    match body.get("&&") {
        Some(both) => {
            conjuncts(&both["left"], found);
            conjuncts(&both["right"], found);
        }
        None => found.push(body.clone()),
    }
}

/// The condition of a policy that has no other part. An `unless` gives its negation.
fn condition(policy: &str) -> Option<String> {
    let (_, rest) = policy.split_once(')')?;
    let rest = rest.trim().trim_end_matches(';').trim();
    let inner = rest.strip_prefix("when").map(|body| {
        let body = body.trim();
        let body = body
            .strip_prefix('{')
            .and_then(|body| body.strip_suffix('}'));
        body.unwrap_or_default().trim()
    });
    let text = inner.unwrap_or(rest);
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The part of a scope that begins with `member`.
fn scope_text(policy: &str, member: &str) -> Option<String> {
    let policy = policy.split_whitespace().collect::<Vec<_>>().join(" ");
    let head = policy.split_once('(')?.1.rsplit_once(')')?.0.trim();
    let text = head.get(head.find(member)?..)?;
    // The other members follow, unconstrained.
    let end = match member {
        "principal" => text.rfind(", action"),
        "action" => text.rfind(", resource"),
        _ => None,
    };
    let text = text.get(..end.unwrap_or(text.len()))?;
    Some(text.trim_end_matches([' ', ',']).to_owned())
}

/// Collects the paths and literals of an expression: `principal.claims.env`, `"prod"`.
fn walk(body: &Value, paths: &mut BTreeSet<String>, literals: &mut BTreeSet<Literal>) {
    if let Some(path) = path(body) {
        paths.insert(path);
        return;
    }
    match body {
        Value::Object(members) => {
            for (name, value) in members {
                match name.as_str() {
                    "Value" => literal(value, literals),
                    "has" => {
                        let attr = value["attr"].as_str().unwrap_or_default();
                        if let Some(left) = path_of(&value["left"]) {
                            paths.insert(format!("{left}.{attr}"));
                        }
                    }
                    "pattern" => pattern(value, literals),
                    _ => walk(value, paths, literals),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, paths, literals)),
        _ => {}
    }
}

fn path(body: &Value) -> Option<String> {
    body.get(".").and_then(|_| path_of(body))
}

fn path_of(body: &Value) -> Option<String> {
    if let Some(var) = body.get("Var").and_then(Value::as_str) {
        return Some(var.to_owned());
    }
    let access = body.get(".")?;
    Some(format!(
        "{}.{}",
        path_of(&access["left"])?,
        access["attr"].as_str()?
    ))
}

fn literal(value: &Value, literals: &mut BTreeSet<Literal>) {
    match value {
        Value::Bool(value) => drop(literals.insert(Literal::Bool(*value))),
        Value::String(text) => drop(literals.insert(Literal::Text(text.clone()))),
        Value::Number(number) => literals.extend(number.as_i64().map(Literal::Long)),
        Value::Array(items) => items.iter().for_each(|item| literal(item, literals)),
        _ => {}
    }
}

/// Adds the shortest text that a `like` pattern matches.
fn pattern(value: &Value, literals: &mut BTreeSet<Literal>) {
    let parts = value.as_array().into_iter().flatten();
    let text: String = parts
        .filter_map(|part| part.get("Literal").and_then(Value::as_str))
        .collect();
    literals.insert(Literal::Text(text));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::generation::PolicyFile;

    fn texts(policy: &str) -> Vec<String> {
        let text = format!("@id(\"p\") @description(\"d\") {policy}");
        let file = PolicyFile {
            name: "a.cedar".into(),
            text,
        };
        let named = super::super::bundle::parse(&[file]).unwrap().named;
        let dissected = Dissected::new(&named[0]);
        dissected
            .parts
            .iter()
            .map(|part| part.text.clone())
            .collect()
    }

    #[test]
    fn a_policy_is_taken_apart_into_what_must_hold() {
        assert_eq!(
            texts(
                "permit (principal == Workload::dev::\"a, action\", action in [Action::\"x\", Action::\"y\"], resource == Api::\"o\") \
                 when { principal.claims.env == \"prod\" && (context.ttl_seconds <= 60 || context.task.depth == 1) } \
                 unless { principal.claims has branch && principal.claims.branch like \"tmp/*\" };"
            ),
            [
                "principal == Workload::dev::\"a, action\"",
                "action in [Action::\"x\",Action::\"y\"]",
                "resource == Api::\"o\"",
                "principal.claims.env == \"prod\"",
                "(context.ttl_seconds <= 60) || (context.task.depth == 1)",
                "!((principal.claims has branch) && (principal.claims.branch like \"tmp/*\"))",
            ]
        );
        assert!(texts("forbid (principal, action, resource);").is_empty());
    }

    #[test]
    fn the_values_that_a_condition_compares_are_found_with_their_facts() {
        let text = "@id(\"p\") @description(\"d\") permit (principal, action, resource) when { \
                    [\"prod\", \"stage\"].contains(principal.claims.env) && context.ttl_seconds < 61 };";
        let file = PolicyFile {
            name: "a.cedar".into(),
            text: text.into(),
        };
        let named = super::super::bundle::parse(&[file]).unwrap().named;
        let mut found = BTreeMap::new();
        for part in Dissected::new(&named[0]).parts {
            part.compared(&mut found);
        }
        let text = |text: &str| Literal::Text(text.into());
        assert_eq!(
            found,
            BTreeMap::from([
                (
                    "principal.claims.env".to_owned(),
                    BTreeSet::from([text("prod"), text("stage")])
                ),
                (
                    "context.ttl_seconds".to_owned(),
                    BTreeSet::from([Literal::Long(61)])
                ),
            ])
        );
    }
}
