//! Writes narrower policies, inserts them into the bundle, and checks the result.
//!
//! [`Narrower::write`] writes one policy with the used actions, resource and locations and the
//! longest life that was granted. [`proposed`] inserts all of them into the policy files.
//!
//! The result loads, and apart from the proposals every policy is as before: a replacement of too
//! much text could otherwise remove an adjacent forbid. A proposal for which this does not hold is
//! dropped from the report, and the others remain. `super` calls this file and decides which
//! aspects may be narrowed. Nothing here proves that the recorded decisions stay the same: `policy
//! replay` shows that.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::Policy;
use serde_json::{Value, json};

use super::{PolicyUse, Proposal, UnusedOn, Used};
use crate::domain::catalog::Resource;
use crate::domain::generation::{Generation, PolicyFile};
use crate::domain::kind::DetailType;
use crate::domain::location::Location;
use crate::policy::bundle::NamedPolicy;
use crate::policy::generation::CompiledGeneration;
use crate::policy::stack::with_balanced_stack;

/// The aspects of a permit to narrow.
pub(super) struct Narrower {
    pub(super) scope: bool,
    pub(super) max_ttl_seconds: Option<u64>,
}

impl Narrower {
    /// The policy, narrowed to the used rights; `None` if nothing would change.
    pub(super) fn write(
        &self,
        generation: &CompiledGeneration,
        named: &NamedPolicy,
        used: &Used,
        unused: &[UnusedOn],
    ) -> Option<String> {
        if !self.scope && self.max_ttl_seconds.is_none() {
            return None;
        }
        let mut policy = named.policy.to_json().ok()?;
        if let Some(seconds) = self.max_ttl_seconds {
            policy["annotations"]["max_ttl"] = json!(seconds.to_string());
        }
        let mut conditions = Vec::new();
        if self.scope {
            let actions: BTreeSet<&String> = used.rights.iter().map(|own| &own.action).collect();
            if unused.iter().any(|on| !on.actions.is_empty()) && !actions.is_empty() {
                policy["action"] = one_or_many(actions.iter().map(|name| {
                    let action = generation.model.action(name);
                    json!({"type": action.type_name().to_string(), "id": action.id().unescaped()})
                }));
            }
            let resources: BTreeSet<&String> =
                used.rights.iter().map(|own| &own.resource).collect();
            let known = |name: &&String| generation.catalog().resource(name);
            if let [only] = resources.iter().collect::<Vec<_>>()[..] {
                let uid = generation.model.resource(only)?;
                policy["resource"] = json!({"op": "==", "entity": {
                    "type": uid.type_name().to_string(), "id": uid.id().unescaped(),
                }});
                conditions.extend(known(only).and_then(|resource| places(resource, used)));
            } else if unused.iter().any(|on| on.entirely) {
                conditions.extend(one_of(generation, &resources));
            }
        }
        let text = Policy::from_json(None, policy).ok()?.to_cedar()?;
        let mut text = text.trim().trim_end_matches(';').trim_end().to_owned();
        for condition in conditions {
            text.push_str("\nwhen { ");
            text.push_str(&condition);
            text.push_str(" }");
        }
        text.push(';');
        Some(text)
    }
}

fn one_or_many(entities: impl Iterator<Item = Value>) -> Value {
    let mut all: Vec<Value> = entities.collect();
    match (all.len(), all.pop()) {
        (1, Some(only)) => json!({"op": "==", "entity": only}),
        (_, last) => {
            all.extend(last);
            json!({"op": "in", "entities": all})
        }
    }
}

/// A condition that the resource is one of these; `None` if they have several types.
fn one_of(generation: &CompiledGeneration, resources: &BTreeSet<&String>) -> Option<String> {
    let uids: Option<Vec<_>> = resources
        .iter()
        .map(|name| generation.model.resource(name))
        .collect();
    let uids = uids?;
    let kinds: BTreeSet<String> = uids.iter().map(|uid| uid.type_name().to_string()).collect();
    let all: Vec<String> = uids.iter().map(ToString::to_string).collect();
    (kinds.len() == 1).then(|| format!("[{}].contains(resource)", all.join(", ")))
}

/// A condition that the location is within a registered location with a used right; `None` if all
/// registered locations have one.
fn places(resource: &Resource, used: &Used) -> Option<String> {
    let used: BTreeSet<&String> = used.rights.iter().flat_map(|own| &own.locations).collect();
    let registered: Vec<&str> = resource.locations.iter().map(Location::as_str).collect();
    let kept: Vec<&str> = registered
        .iter()
        .copied()
        .filter(|location| used.contains(&(*location).to_owned()))
        .collect();
    if kept.is_empty() || kept.len() == registered.len() {
        return None;
    }
    let quoted = |text: &str| text.escape_debug().to_string();
    let holds = |location: &&str| match resource.kind.detail_type() {
        DetailType::Api => {
            let below = quoted(location).replace('*', "\\*");
            format!(
                "context.location == \"{}\" || context.location like \"{below}/*\"",
                quoted(location)
            )
        }
        DetailType::Aws => {
            // Cedar's patterns have no `?`. `*` matches more, but the registered locations still
            // limit it.
            let pattern = quoted(location).replace('?', "*");
            format!("context.location like \"{pattern}\"")
        }
    };
    let all: Vec<String> = kept.iter().map(holds).collect();
    Some(all.join(" || "))
}

/// The bundle with every proposal applied. Proposals that the validator refuses are removed from
/// `uses`.
#[must_use]
pub fn proposed(
    generation: &Generation,
    compiled: &CompiledGeneration,
    uses: &mut [PolicyUse],
) -> Generation {
    with_balanced_stack(|| proposed_here(generation, compiled, uses))
}

fn proposed_here(
    generation: &Generation,
    compiled: &CompiledGeneration,
    uses: &mut [PolicyUse],
) -> Generation {
    let with = |uses: &[PolicyUse]| Generation {
        policies: rewritten(generation, compiled, uses),
        ..generation.clone()
    };
    let all = with(uses);
    if is_sound(&all, compiled, uses) {
        return all;
    }
    let mut good = generation.clone();
    for at in 0..uses.len() {
        let so_far = uses.get(..=at).unwrap_or_default();
        let candidate = with(so_far);
        if is_sound(&candidate, compiled, so_far) {
            good = candidate;
        } else if let Some(refused) = uses.get_mut(at) {
            refused.proposal = None;
        }
    }
    good
}

/// Whether the candidate loads and differs from the present bundle only by the proposals. A
/// replacement of too much text could remove an adjacent forbid.
fn is_sound(candidate: &Generation, before: &CompiledGeneration, uses: &[PolicyUse]) -> bool {
    let Ok(after) = CompiledGeneration::compile(candidate, &[]) else {
        return false;
    };
    let after: BTreeMap<&str, &Policy> = after
        .policies()
        .map(|named| (named.id.as_str(), &named.policy))
        .collect();
    let mut left = 0;
    let kept = before.policies().all(|named| {
        let now = after.get(named.id.as_str());
        left += usize::from(now.is_some());
        let of = uses.iter().find(|own| own.policy == named.id);
        match of.and_then(|own| own.proposal.as_ref()) {
            Some(Proposal::Remove) => now.is_none(),
            Some(Proposal::Narrow { .. }) => {
                now.is_some_and(|now| now.effect() == named.policy.effect())
            }
            None => now.is_some_and(|now| now.to_pst() == named.policy.to_pst()),
        }
    });
    kept && left == after.len()
}

fn rewritten(
    generation: &Generation,
    compiled: &CompiledGeneration,
    uses: &[PolicyUse],
) -> Vec<PolicyFile> {
    let mut files = generation.policies.clone();
    let policies: Vec<&NamedPolicy> = compiled.policies().collect();
    // Edit from the last to the first, so that earlier byte offsets stay valid.
    for named in policies.into_iter().rev() {
        let found = uses.iter().find(|own| own.policy == named.id);
        let Some(proposal) = found.and_then(|own| own.proposal.as_ref()) else {
            continue;
        };
        let Some(file) = files.get_mut(named.file) else {
            continue;
        };
        let end = named.offset + named.length;
        if file.text.get(named.offset..end).is_none() {
            continue;
        }
        // A comment takes all of its line.
        let end_of_line = file
            .text
            .get(end..)
            .is_some_and(|rest| rest.starts_with('\n'));
        let text = match proposal {
            Proposal::Remove => {
                let line = if end_of_line { "" } else { "\n" };
                format!("// `{}` was never used and is removed.{line}", named.id)
            }
            Proposal::Narrow { text } => text.clone(),
        };
        file.text.replace_range(named.offset..end, &text);
    }
    files
}
