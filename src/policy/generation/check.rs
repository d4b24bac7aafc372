//! Checks a generation before it is compiled: its format, its engine, and its policies.
//!
//! The policies pass Cedar's strict validation first and then the rules of `super::super::lint`.
//! Each fault is a [`PolicyProblem`] with the file and line of its policy, at most `MAX_PROBLEMS`
//! of each kind. Only generations that are to decide in future pass [`check_frame`] and
//! [`check_policies`]; a past one passes [`check_format`] alone.

use std::collections::HashMap;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{Policy, PolicySet, ResourceConstraint, ValidationMode, Validator};

use super::super::bundle::{NamedPolicy, Parsed};
use super::super::lint;
use super::super::mapping::Model;
use super::super::problem::PolicyProblem;
use super::{engine, one};
use crate::domain::catalog::Catalog;
use crate::domain::generation::Generation;
use crate::domain::limits::{MAX_LOAD_STEPS, MAX_OBSERVED, MAX_PROBLEMS};
use crate::domain::pattern::Budget;

pub(super) fn check_format(generation: &Generation) -> Result<(), Vec<PolicyProblem>> {
    if generation.format == Generation::FORMAT {
        return Ok(());
    }
    Err(one(
        "generation",
        format!(
            "format {} is not format {}, which this version reads",
            generation.format,
            Generation::FORMAT
        ),
        "activate it with the version that wrote it, or build it again",
    ))
}

pub(super) fn check_frame(generation: &Generation) -> Result<(), Vec<PolicyProblem>> {
    check_format(generation)?;
    if generation.engine != engine() {
        return Err(one(
            "generation",
            format!(
                "it was written for engine {}; this version has {}",
                generation.engine,
                engine()
            ),
            "another engine may read the same text differently: build and activate it again with \
            this version",
        ));
    }
    Ok(())
}

/// Runs Cedar's strict validation and then the broker's own rules. Warnings count as errors: a
/// condition that can never hold, and letters that look like others, are mistakes.
///
/// The validation of the balanced policies decides, because Cedar's validator silently skips very
/// deep policies. If it finds problems, the unbalanced policies are validated too, because only
/// they have source locations.
pub(super) fn check_policies(
    generation: &Generation,
    parsed: &Parsed,
    model: &Model,
    catalog: &Catalog,
) -> Result<(), Vec<PolicyProblem>> {
    let named = &parsed.named;
    let validator = Validator::new(model.written.clone());
    let balanced = named.iter().map(|named| named.policy.clone()).collect();
    let mut problems = validate(generation, named, &validator, balanced)?;
    if !problems.is_empty() {
        let placed = validate(generation, named, &validator, parsed.written.clone())?;
        if !placed.is_empty() {
            problems = placed;
        }
    }
    if problems.is_empty() {
        let budget = Budget::new(MAX_LOAD_STEPS);
        for policy in named {
            let Some(file) = generation.policies.get(policy.file) else {
                continue;
            };
            let findings = lint::check(policy, model, &generation.attestors, catalog, &budget);
            let left = MAX_PROBLEMS.saturating_sub(problems.len());
            for (message, remedy) in findings.into_iter().take(left) {
                problems.push(PolicyProblem::at(file, policy.offset, message, remedy));
            }
        }
    }
    if problems.is_empty() {
        let mut counts = HashMap::new();
        for policy in named.iter().filter(|own| own.observed_until.is_some()) {
            let ResourceConstraint::Eq(resource) = policy.policy.resource_constraint() else {
                continue;
            };
            let count: &mut usize = counts.entry(resource).or_default();
            *count += 1;
            if let (true, Some(file)) =
                (*count > MAX_OBSERVED, generation.policies.get(policy.file))
            {
                problems.push(PolicyProblem::at(
                    file,
                    policy.offset,
                    format!(
                        "policy `{}`: more than {MAX_OBSERVED} policies observe one resource",
                        policy.id
                    ),
                    "enforce some, or remove them",
                ));
            }
        }
    }
    problems.sort();
    problems.dedup();
    if problems.is_empty() {
        return Ok(());
    }
    Err(problems)
}

/// Cedar's findings about `policies`, which have the names of `named`.
fn validate(
    generation: &Generation,
    named: &[NamedPolicy],
    validator: &Validator,
    policies: Vec<Policy>,
) -> Result<Vec<PolicyProblem>, Vec<PolicyProblem>> {
    let set = PolicySet::from_policies(policies)
        .map_err(|error| one("policies", error.to_string(), ""))?;
    let result = validator.validate(&set, ValidationMode::Strict);
    let mut problems = Vec::new();
    let mut complain = |id: String, error: &DetailedError| {
        let found = named.iter().find(|named| named.id == id);
        let location = found.and_then(|n| Some((generation.policies.get(n.file)?, n.offset)));
        match location {
            Some((file, offset)) => {
                problems.extend(PolicyProblem::from_cedar(file, offset, error));
            }
            None => problems.push(PolicyProblem::of_file(
                "policies",
                error.message.clone(),
                "",
            )),
        }
    };
    for error in result.validation_errors().take(MAX_PROBLEMS) {
        complain(error.policy_id().to_string(), &DetailedError::from(error));
    }
    for warning in result.validation_warnings().take(MAX_PROBLEMS) {
        complain(
            warning.policy_id().to_string(),
            &DetailedError::from(warning),
        );
    }
    Ok(problems)
}
