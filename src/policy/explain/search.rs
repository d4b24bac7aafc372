//! Searches for changes of one fact that change the outcome of a decision.
//!
//! [`Search`] decides again with each candidate and keeps those that change the outcome. The
//! candidates are the values that policies compare a fact with, and their neighbours. The facts of
//! the request come first, so that they are found before the search stops at its limit
//! (`cut_short`). A candidate that does not fit the schema is one that changes nothing.
//!
//! The search returns no error. `super` calls it.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::PrincipalConstraint;

use super::super::generation::CompiledGeneration;
use super::super::input::{CredentialInput, Input};
use super::super::parts::Literal;
use super::super::schema;
use super::{Change, Explainer};
use crate::domain::decision::{Decision, Outcome};
use crate::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use crate::domain::trust::{AttestorSpec, ClaimType};
use crate::domain::workload::ClaimValue;

/// Maximum number of decisions in one search, to bound its CPU time. The search then stops.
const MAX_TRIES: usize = 2_000;
/// Maximum number of reported changes: more would not help a reader. The search tries the request's
/// own facts first and then stops.
const MAX_CHANGES: usize = 8;

/// The facts that policies read, with the literals that each is compared with.
type Compared = BTreeMap<String, BTreeSet<Literal>>;

impl Explainer<'_> {
    pub(super) fn search(&self, input: &Input, decision: &Decision, search: &mut Search<'_>) {
        let mut compared = BTreeMap::new();
        for part in self.dissected.iter().flat_map(|own| &own.parts) {
            part.compared(&mut compared);
        }
        if let Some(asked) = &input.credential {
            self.change_request(input, asked, decision, &compared, search);
            change_revocability(input, asked, &compared, search);
        }
        self.change_claims(input, &compared, search);
        self.change_task(input, &compared, search);
        self.change_caller(input, search);
    }

    fn change_request(
        &self,
        input: &Input,
        asked: &CredentialInput,
        decision: &Decision,
        compared: &Compared,
        search: &mut Search<'_>,
    ) {
        let with = |asked: CredentialInput| Input {
            credential: Some(asked),
            ..input.clone()
        };
        let refusal = decision.verdict.as_ref().err();
        let offered = refusal.and_then(|refusal| refusal.allowed.as_ref());
        let mut lives = numbers(compared, "context.ttl_seconds");
        lives.extend(offered.and_then(|allowed| allowed.max_ttl_seconds));
        lives.extend(asked.left_seconds);
        if refusal.is_none() {
            // One second above the longest permitted life turns a permit into a refusal.
            let resource = self.generation.catalog().resource(&asked.resource);
            let longest = resource.map(|resource| resource.max_ttl_seconds);
            let terms = decision.policies.iter();
            let terms = terms.filter_map(|id| self.generation.obligations.get(id)?.max_ttl_seconds);
            lives.extend(terms.chain(longest).map(|most| most.saturating_add(1)));
        }
        let from = asked
            .ttl_seconds
            .map_or_else(|| "none asked".to_owned(), |ttl| ttl.to_string());
        for ttl in lives.into_iter().filter(|ttl| *ttl > 0) {
            let changed = with(CredentialInput {
                ttl_seconds: Some(ttl),
                ..asked.clone()
            });
            search.attempt(
                "ttl_seconds",
                from.clone(),
                ttl.to_string(),
                input,
                &changed,
            );
        }
        // A smaller or other request can change a refusal, but not a permit.
        if refusal.is_none() {
            return;
        }
        for (at, detail) in asked.authorization_details.iter().enumerate() {
            let (actions, locations) = (detail.actions(), detail.locations());
            let mut smaller = Vec::new();
            for action in actions {
                let mut rest = actions.clone();
                rest.remove(action);
                smaller.push(("action", action.to_string(), rest, locations.clone()));
            }
            for location in locations {
                let mut rest = locations.clone();
                rest.remove(location);
                smaller.push(("location", location.to_string(), actions.clone(), rest));
            }
            for (fact, from, actions, locations) in smaller {
                if actions.is_empty() || locations.is_empty() {
                    continue;
                }
                let mut asked = asked.clone();
                if let Some(changed) = asked.authorization_details.get_mut(at) {
                    *changed = detail.with_rights(actions, locations);
                }
                search.attempt(fact, from, "not asked for".to_owned(), input, &with(asked));
            }
        }
        let resource = search.generation.catalog().resource(&asked.resource);
        if let ([detail], Some(resource)) = (asked.authorization_details.as_slice(), resource)
            && detail.actions().len() == 1
        {
            for action in &resource.actions {
                let actions = BTreeSet::from([action.clone()]);
                let from = detail.actions().first().map(ToString::to_string);
                let mut asked = asked.clone();
                asked.authorization_details =
                    vec![detail.with_rights(actions, detail.locations().clone())];
                let from = from.unwrap_or_default();
                search.attempt("action", from, action.to_string(), input, &with(asked));
            }
        }
    }

    fn change_claims(&self, input: &Input, compared: &Compared, search: &mut Search<'_>) {
        let attestors = self.generation.attestors();
        let spec = attestors
            .iter()
            .find(|spec| spec.name() == input.principal.attestor);
        for (name, claim) in spec.into_iter().flat_map(AttestorSpec::visible_claims) {
            let fact = format!("principal.claims.{name}");
            let has = input.principal.claims.get(name);
            let Some(literals) = compared.get(&fact) else {
                continue;
            };
            let mut values: Vec<Option<ClaimValue>> = Vec::new();
            values.extend(
                claim_values(claim.kind, has, literals)
                    .into_iter()
                    .map(Some),
            );
            if claim.optional {
                values.push(None);
            }
            for value in values {
                let mut changed = input.clone();
                match &value {
                    Some(value) => drop(
                        changed
                            .principal
                            .claims
                            .insert(name.to_owned(), value.clone()),
                    ),
                    None => drop(changed.principal.claims.remove(name)),
                }
                search.attempt(&fact, shown(has), shown(value.as_ref()), input, &changed);
            }
        }
    }

    fn change_task(&self, input: &Input, compared: &Compared, search: &mut Search<'_>) {
        for task_type in self.generation.catalog().task_types() {
            let mut changed = input.clone();
            changed.task.task_type.clone_from(&task_type.name);
            let (from, to) = (&input.task.task_type, &task_type.name);
            search.attempt(
                "context.task.type",
                from.clone(),
                to.clone(),
                input,
                &changed,
            );
        }
        for depth in numbers(compared, "context.task.depth") {
            let Ok(depth) = u8::try_from(depth) else {
                continue;
            };
            let mut changed = input.clone();
            changed.task.depth = depth;
            let from = input.task.depth.to_string();
            search.attempt(
                "context.task.depth",
                from,
                depth.to_string(),
                input,
                &changed,
            );
        }
        for seconds in numbers(compared, "context.task.deadline_seconds") {
            let mut changed = input.clone();
            changed.task.deadline_seconds_left = seconds;
            let from = input.task.deadline_seconds_left.to_string();
            let fact = "context.task.deadline_seconds";
            search.attempt(fact, from, seconds.to_string(), input, &changed);
        }
        if compared.contains_key("context.task.has_parent") {
            let mut changed = input.clone();
            changed.task.has_parent = !input.task.has_parent;
            let (from, to) = (input.task.has_parent, changed.task.has_parent);
            let fact = "context.task.has_parent";
            search.attempt(fact, from.to_string(), to.to_string(), input, &changed);
        }
    }

    /// Changes the roles and the identity of the caller to those that policies name.
    fn change_caller(&self, input: &Input, search: &mut Search<'_>) {
        let mut roles = input.principal.roles.clone().unwrap_or_default();
        let mut identities = BTreeSet::new();
        for dissected in &self.dissected {
            let (PrincipalConstraint::Eq(entity)
            | PrincipalConstraint::In(entity)
            | PrincipalConstraint::IsIn(_, entity)) = dissected.named.policy.principal_constraint()
            else {
                continue;
            };
            let id = entity.id().unescaped().to_owned();
            if entity.type_name().to_string() == schema::ROLE {
                roles.insert(id);
            } else if self.generation.model.attestor_of(entity.type_name())
                == Some(input.principal.attestor.as_str())
            {
                identities.insert(id);
            }
        }
        for role in roles {
            let mut changed = input.clone();
            let own = changed.principal.roles.get_or_insert_default();
            let had = own.remove(&role);
            if !had {
                own.insert(role.clone());
            }
            let word = |has: bool| if has { "bound" } else { "not bound" }.to_owned();
            let fact = format!("Role::\"{role}\"");
            search.attempt(&fact, word(had), word(!had), input, &changed);
        }
        for identity in identities {
            let Ok(identity) = identity.try_into() else {
                continue;
            };
            let mut changed = input.clone();
            changed.principal.identity = identity;
            let from = input.principal.identity.to_string();
            let to = changed.principal.identity.to_string();
            search.attempt("principal", from, to, input, &changed);
        }
    }
}

/// Changes the revocability, if policies read it. Such a change means another registration of the
/// resource.
fn change_revocability(
    input: &Input,
    asked: &CredentialInput,
    compared: &Compared,
    search: &mut Search<'_>,
) {
    const CLASS: &str = "context.revocability.class";
    const BOUND: &str = "context.revocability.bound_seconds";
    const OPEN_SESSIONS: &str = "context.revocability.open_sessions";
    const EXPIRES_BY: &str = "context.revocability.expires_by";
    let own = asked.revocability;
    let bound = own.class.bound_seconds();
    let mut attempts = Vec::new();
    if compared.contains_key(CLASS) {
        for name in RevocationClass::NAMES {
            // A class with a bound keeps the present bound.
            let class = RevocationClass::from_parts(name, Some(bound.unwrap_or(0)))
                .or_else(|| RevocationClass::from_parts(name, None));
            let changed = class.map(|class| Revocability { class, ..own });
            attempts.extend(changed.map(|own| (CLASS, name.to_owned(), own)));
        }
    }
    for seconds in numbers(compared, BOUND) {
        let class = RevocationClass::from_parts(own.class.as_str(), Some(seconds));
        let changed = class.map(|class| Revocability { class, ..own });
        attempts.extend(changed.map(|own| (BOUND, seconds.to_string(), own)));
    }
    if compared.contains_key(OPEN_SESSIONS) {
        attempts.extend(OpenSessions::ALL.map(|open_sessions| {
            let to = open_sessions.as_str().to_owned();
            let changed = Revocability {
                open_sessions,
                ..own
            };
            (OPEN_SESSIONS, to, changed)
        }));
    }
    if compared.contains_key(EXPIRES_BY) {
        attempts.extend(ExpiresBy::ALL.map(|expires_by| {
            let to = expires_by.as_str().to_owned();
            (EXPIRES_BY, to, Revocability { expires_by, ..own })
        }));
    }
    for (fact, to, revocability) in attempts {
        let from = match fact {
            CLASS => own.class.as_str().to_owned(),
            OPEN_SESSIONS => own.open_sessions.as_str().to_owned(),
            EXPIRES_BY => own.expires_by.as_str().to_owned(),
            _ => bound.map_or_else(|| "none".to_owned(), |seconds| seconds.to_string()),
        };
        let changed = Input {
            credential: Some(CredentialInput {
                revocability,
                ..asked.clone()
            }),
            ..input.clone()
        };
        search.attempt(fact, from, to, input, &changed);
    }
}

/// The candidate values of a claim: those that policies name, their neighbours, and for text one
/// that no policy names.
fn claim_values(
    kind: ClaimType,
    has: Option<&ClaimValue>,
    literals: &BTreeSet<Literal>,
) -> Vec<ClaimValue> {
    let texts = literals.iter().filter_map(|literal| match literal {
        Literal::Text(text) => Some(text.clone()),
        _ => None,
    });
    match kind {
        ClaimType::Bool => vec![ClaimValue::Bool(true), ClaimValue::Bool(false)],
        ClaimType::Long => literals
            .iter()
            .filter_map(|literal| match literal {
                Literal::Long(value) => Some(*value),
                _ => None,
            })
            .flat_map(|value| [value, value.saturating_sub(1), value.saturating_add(1)])
            .map(ClaimValue::Long)
            .collect(),
        ClaimType::String => texts
            .chain([ANYTHING_ELSE.to_owned()])
            .map(ClaimValue::String)
            .collect(),
        ClaimType::Set => {
            let own = match has {
                Some(ClaimValue::Set(own)) => own.clone(),
                _ => BTreeSet::new(),
            };
            let fewer = own.iter().map(|gone| {
                let rest = own.iter().filter(|other| *other != gone);
                rest.cloned().collect::<BTreeSet<_>>()
            });
            let more = texts.map(|text| own.iter().cloned().chain([text]).collect());
            more.chain(fewer).map(ClaimValue::Set).collect()
        }
    }
}

/// Represents any text that no policy names. No claim can have this value.
const ANYTHING_ELSE: &str = "\u{1}anything else";

fn numbers(compared: &Compared, fact: &str) -> BTreeSet<u64> {
    let literals = compared.get(fact).into_iter().flatten();
    literals
        .filter_map(|literal| match literal {
            Literal::Long(value) => u64::try_from(*value).ok(),
            _ => None,
        })
        .flat_map(|value| [value, value.saturating_sub(1), value.saturating_add(1)])
        .collect()
}

fn shown(value: Option<&ClaimValue>) -> String {
    match value {
        None => "absent".to_owned(),
        Some(ClaimValue::String(text)) if text == ANYTHING_ELSE => "anything else".to_owned(),
        Some(value) => serde_json::to_string(value).unwrap_or_default(),
    }
}

/// The search for changes: decides again with each candidate and keeps those that change the
/// outcome.
pub(super) struct Search<'a> {
    generation: &'a CompiledGeneration,
    permitted: bool,
    pub(super) found: Vec<Change>,
    pub(super) tried: usize,
    pub(super) cut_short: bool,
}

impl<'a> Search<'a> {
    pub(super) fn new(generation: &'a CompiledGeneration, outcome: Outcome) -> Self {
        Self {
            generation,
            permitted: outcome == Outcome::Permit,
            found: Vec::new(),
            tried: 0,
            cut_short: false,
        }
    }

    fn attempt(&mut self, fact: &str, from: String, to: String, was: &Input, changed: &Input) {
        if changed == was {
            return;
        }
        if self.tried == MAX_TRIES || self.found.len() == MAX_CHANGES {
            self.cut_short = true;
            return;
        }
        self.tried += 1;
        let outcome = self.generation.record(changed).outcome();
        if (outcome == Outcome::Permit) != self.permitted {
            self.found.push(Change {
                fact: fact.to_owned(),
                from,
                to,
                outcome,
            });
        }
    }
}
