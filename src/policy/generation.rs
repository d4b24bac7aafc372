//! From configuration and files to a generation, and from a generation to something that decides.
//!
//! There is one way to load what is to decide: [`CompiledGeneration::compile`], for files that are
//! checked, for an admin's new generation and for the one that the store says is active. So nothing
//! can be activated that would not load, and nothing loads that was not checked in full.
//!
//! What decided long ago is loaded by [`CompiledGeneration::compile_recorded`], which checks less:
//! rules that came later do not undo a decision. Whether it decides as it did is told by the bytes
//! of what comes out, and by nothing else.

use std::collections::{BTreeSet, HashMap};

use cedar_policy::ffi::DetailedError;
use cedar_policy::{
    ActionConstraint, Effect, EntityUid, Policy, PolicySet, ResourceConstraint, Schema,
    ValidationMode, Validator,
};
use ring::digest::{SHA256, digest};

use super::AdminAction;
use super::asked::question::Questions;
use super::asked::rewrite::{self, Rule};
use super::bundle::{self, NamedPolicy, Obligations, Parsed};
use super::lint;
use super::mapping::Model;
use super::notes::Notes;
use super::problem::PolicyProblem;
use super::schema;
use super::slice::Index;
use super::stack;
use crate::clock::Timestamp;
use crate::domain::catalog::{Catalog, Resource, TaskType};
use crate::domain::generation::{
    DecisionLimits, Generation, GenerationDigest, PolicyFile, Retention,
};
use crate::domain::limits::{MAX_LOAD_STEPS, MAX_OBSERVED, MAX_OBSERVED_DAYS, MAX_PROBLEMS};
use crate::domain::pattern::Budget;
use crate::domain::trust::AttestorSpec;

/// What a generation is made of, before its schema is written.
#[derive(Clone, Debug, Default)]
pub struct GenerationParts {
    /// Policies, by file.
    pub policies: Vec<PolicyFile>,
    /// Which evidence is believed.
    pub attestors: Vec<AttestorSpec>,
    /// What credentials can be for.
    pub resources: Vec<Resource>,
    /// Which kinds of task there are.
    pub task_types: Vec<TaskType>,
    /// Limits that decide.
    pub limits: DecisionLimits,
    /// How long what is over is kept.
    pub retention: Retention,
}

const DAY_SECONDS: u64 = 86_400;

/// How this build reads policies; counted up where the same text comes to mean something else. In the
/// first, a rule was asked about each text that a request names; since the second, about everything
/// that is asked for.
const READING: u32 = 2;

/// The policy engine of this build: part of what decides.
#[must_use]
pub fn engine() -> String {
    format!(
        "cedar-policy {} (language {}), reading {READING}",
        cedar_policy::get_sdk_version(),
        cedar_policy::get_lang_version()
    )
}

/// A generation's digest.
pub fn digest_of(generation: &Generation) -> Result<GenerationDigest, serde_json::Error> {
    let hash = digest(&SHA256, &generation.to_bytes()?);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash.as_ref());
    Ok(GenerationDigest::new(bytes))
}

/// Writes the schema for `parts` and makes a generation of them.
pub fn write(
    parts: GenerationParts,
    own_audiences: &[String],
) -> Result<Generation, Vec<PolicyProblem>> {
    let catalog = catalog_of(&parts.resources, &parts.task_types, own_audiences)?;
    Ok(Generation {
        format: Generation::FORMAT,
        engine: engine(),
        policies: parts.policies,
        schema: schema::text(&parts.attestors, &catalog)?,
        attestors: parts.attestors,
        resources: parts.resources,
        task_types: parts.task_types,
        limits: parts.limits,
        retention: parts.retention,
    })
}

/// The same, compiled at once.
pub fn build(
    parts: GenerationParts,
    own_audiences: &[String],
) -> Result<(Generation, CompiledGeneration), Vec<PolicyProblem>> {
    let generation = write(parts, own_audiences)?;
    let compiled = CompiledGeneration::compile(&generation, own_audiences)?;
    Ok((generation, compiled))
}

/// A generation, checked and ready to decide. It never changes; a new one replaces it whole.
#[derive(Debug)]
pub struct CompiledGeneration {
    digest: GenerationDigest,
    catalog: Catalog,
    attestors: Vec<AttestorSpec>,
    limits: DecisionLimits,
    retention: Retention,
    pub(super) model: Model,
    pub(super) index: Index,
    pub(super) obligations: HashMap<String, Obligations>,
    policies: Vec<NamedPolicy>,
    asks_for_roles: bool,
    roles: BTreeSet<String>,
    notes: Notes,
}

impl CompiledGeneration {
    /// Checks everything and builds the index. `own_audiences` as for [`Catalog::new`].
    ///
    /// It takes milliseconds to seconds of CPU: call it off the async threads.
    pub fn compile(
        generation: &Generation,
        own_audiences: &[String],
    ) -> Result<Self, Vec<PolicyProblem>> {
        loading(|| Self::compile_here(generation, own_audiences))
    }

    fn compile_here(
        generation: &Generation,
        own_audiences: &[String],
    ) -> Result<Self, Vec<PolicyProblem>> {
        check_frame(generation)?;
        let catalog = catalog_of(&generation.resources, &generation.task_types, own_audiences)?;
        let written = schema::text(&generation.attestors, &catalog)?;
        if written != generation.schema {
            return Err(one(
                "schema",
                "it is not the one that attestors, resources and task types give",
                "build the generation again with this version",
            ));
        }
        let (schema, warnings) = Schema::from_cedarschema_str(&written)
            .map_err(|error| one("schema", error.to_string(), "correct the configuration"))?;
        // Cedar warns where one name hides another, as an attestor's name could.
        if let Some(warning) = warnings.into_iter().next() {
            return Err(one("schema", warning.to_string(), "choose another name"));
        }
        let model = model_of(schema, &generation.attestors, &catalog)?;
        let parsed = bundle::parse(&generation.policies)?;
        check_policies(generation, &parsed, &model, &catalog)?;
        let digest = digest_of(generation).map_err(|e| one("generation", e.to_string(), ""))?;
        Self::assemble(digest, catalog, generation, model, parsed.named)
    }

    /// A generation that decided, to make its decisions again and for nothing else: by the schema that
    /// it has, whatever engine it was written for, and without the rules of this version's `lint`.
    /// `digest` is that of the bytes that `generation` was read from.
    pub fn compile_recorded(
        generation: &Generation,
        digest: GenerationDigest,
    ) -> Result<Self, Vec<PolicyProblem>> {
        loading(|| Self::compile_unchecked(generation, digest))
    }

    fn compile_unchecked(
        generation: &Generation,
        digest: GenerationDigest,
    ) -> Result<Self, Vec<PolicyProblem>> {
        check_format(generation)?;
        // Our own audiences only say which configurations are refused, never what is decided.
        let catalog = catalog_of(&generation.resources, &generation.task_types, &[])?;
        let (schema, _) = Schema::from_cedarschema_str(&generation.schema)
            .map_err(|error| one("schema", error.to_string(), ""))?;
        let model = model_of(schema, &generation.attestors, &catalog)?;
        let parsed = bundle::parse(&generation.policies)?;
        Self::assemble(digest, catalog, generation, model, parsed.named)
    }

    /// Whether every policy that merely observes at `now` is enforced within the time that is
    /// allowed for it: else it would observe for good. This is asked of what is to be activated, and
    /// not of what once was: `compile` knows no time. `files` are this generation's.
    pub fn check_dates(
        &self,
        files: &[PolicyFile],
        now: Timestamp,
    ) -> Result<(), Vec<PolicyProblem>> {
        let latest = now.plus_seconds((MAX_OBSERVED_DAYS + 1) * DAY_SECONDS);
        let late = self.policies.iter().filter_map(|named| {
            named.observed_until.filter(|until| *until > latest)?;
            let file = files.get(named.file)?;
            let message = format!(
                "policy `{}` would merely observe for more than {MAX_OBSERVED_DAYS} days",
                named.id
            );
            let remedy =
                "name an earlier day in @enforce_after: it can be moved by another activation";
            Some(PolicyProblem::at(file, named.offset, message, remedy))
        });
        let late: Vec<PolicyProblem> = late.collect();
        if late.is_empty() { Ok(()) } else { Err(late) }
    }

    /// Puts checked parts together.
    fn assemble(
        digest: GenerationDigest,
        catalog: Catalog,
        generation: &Generation,
        model: Model,
        named: Vec<NamedPolicy>,
    ) -> Result<Self, Vec<PolicyProblem>> {
        let failed = |error: String| one("policies", error, "");
        let actions = model.schema.action_entities();
        let actions = actions.map_err(|error| failed(error.to_string()))?;
        let mut questions = Questions::default();
        let rules = rules_of(generation, &named, &model, &mut questions)?;
        let deepest = rules.iter().map(|rule| rule.depth).max().unwrap_or(0);
        if !stack::evaluates_at(deepest) {
            return Err(failed(format!(
                "conditions of {deepest} levels cannot be evaluated by this build"
            )));
        }
        let notes = Notes::of(named.iter().zip(&rules), &questions, &catalog);
        let dated = rules.iter().zip(&named);
        let dated = dated.map(|(rule, named)| (rule, named.observed_until));
        let index = Index::new(dated, questions, &actions).map_err(failed)?;
        let obligations = named
            .iter()
            .map(|named| (named.id.clone(), named.obligations.clone()))
            .collect();
        let mut role_names = BTreeSet::new();
        for policy in &named {
            // A policy is written as JSON or it did not load.
            let json = policy.policy.to_json();
            collect_roles(
                &json.map_err(|error| failed(error.to_string()))?,
                &mut role_names,
            );
        }
        let asks_for_roles = named.iter().any(|named| may_ask_for_roles(&named.policy));
        Ok(Self {
            digest,
            catalog,
            attestors: generation.attestors.clone(),
            limits: generation.limits,
            retention: generation.retention,
            model,
            index,
            obligations,
            policies: named,
            asks_for_roles,
            roles: role_names,
            notes,
        })
    }

    /// A generation whose policies were parsed but not validated: what tests need to see that a
    /// broken policy which slipped through is still refused when it is evaluated.
    #[cfg(test)]
    pub(super) fn unvalidated(generation: &Generation) -> Self {
        Self::compile_recorded(generation, digest_of(generation).unwrap()).unwrap()
    }

    /// Its digest.
    #[must_use]
    pub fn digest(&self) -> GenerationDigest {
        self.digest
    }

    /// The registered resources and task types.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// How long what is over is kept.
    #[must_use]
    pub fn retention(&self) -> Retention {
        self.retention
    }

    /// The attestors' specifications.
    #[must_use]
    pub fn attestors(&self) -> &[AttestorSpec] {
        &self.attestors
    }

    /// The limits that decide.
    #[must_use]
    pub fn limits(&self) -> DecisionLimits {
        self.limits
    }

    /// Every policy's `@id`, in the order of the files.
    pub fn policy_ids(&self) -> impl Iterator<Item = &str> {
        self.policies.iter().map(|named| named.id.as_str())
    }

    /// How many dates on which a policy begins to count have come by `at`.
    pub(super) fn dates_before(&self, at: Timestamp) -> usize {
        self.index.dates_before(at)
    }

    /// Every policy that at `at` merely observes, with the instant from which on it is enforced.
    pub fn observing(&self, at: Timestamp) -> impl Iterator<Item = (&str, Timestamp)> {
        self.policies.iter().filter_map(move |named| {
            let until = named.observed_until.filter(|until| at < *until)?;
            Some((named.id.as_str(), until))
        })
    }

    /// Every policy, in the order of the files.
    pub(super) fn policies(&self) -> impl Iterator<Item = &NamedPolicy> {
        self.policies.iter()
    }

    /// What of the policies does not do what it seems to.
    #[must_use]
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// Whether any policy names this role.
    #[must_use]
    pub fn names_role(&self, role: &str) -> bool {
        self.roles.contains(role)
    }

    /// Every role that policies name, in order.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.iter().map(String::as_str)
    }

    /// Whether any permit is about this act on the broker.
    #[must_use]
    pub fn could_permit(&self, action: AdminAction) -> bool {
        let is_it = |uid: &EntityUid| {
            let id: &str = uid.id().unescaped();
            id == action.as_str()
        };
        self.policies.iter().any(|named| {
            named.policy.effect() == Effect::Permit
                && match named.policy.action_constraint() {
                    ActionConstraint::Any => true,
                    ActionConstraint::Eq(action) => is_it(&action),
                    ActionConstraint::In(actions) => actions.iter().any(is_it),
                }
        })
    }

    /// Whether any policy about tasks and credentials could depend on the caller's roles. Where none
    /// does, they need not be read.
    #[must_use]
    pub fn asks_for_roles(&self) -> bool {
        self.asks_for_roles
    }
}

/// Runs `load` on a stack that is made for it.
fn loading<T: Send>(
    load: impl FnOnce() -> Result<T, Vec<PolicyProblem>> + Send,
) -> Result<T, Vec<PolicyProblem>> {
    stack::with_load_stack(load).unwrap_or_else(|error| {
        Err(one(
            "policies",
            format!("a thread to read them on cannot be had: {error}"),
            "allow the process more memory or threads",
        ))
    })
}

/// The policies as they are evaluated.
fn rules_of(
    generation: &Generation,
    named: &[NamedPolicy],
    model: &Model,
    questions: &mut Questions,
) -> Result<Vec<Rule>, Vec<PolicyProblem>> {
    let mut rules = Vec::new();
    let mut problems = Vec::new();
    let mut changed = Vec::new();
    for named in named {
        if questions.is_full() {
            break;
        }
        let has_terms = named.obligations != Obligations::default();
        match rewrite::rewrite(&named.policy, has_terms, questions) {
            Ok(rule) => {
                if !rule.questions.is_empty() {
                    changed.push(rule.policy.clone());
                }
                rules.push(rule);
            }
            Err(_) if problems.len() >= MAX_PROBLEMS => break,
            Err(unaskable) => {
                let message = format!("policy `{}` {}", named.id, unaskable.message);
                problems.extend(
                    generation.policies.get(named.file).map(|file| {
                        PolicyProblem::at(file, named.offset, message, unaskable.remedy)
                    }),
                );
            }
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    // What is evaluated has no other facts than those of its schema: none was overlooked.
    let set = PolicySet::from_policies(changed);
    let set = set.map_err(|error| one("policies", error.to_string(), ""))?;
    let result = Validator::new(model.schema.clone()).validate(&set, ValidationMode::Strict);
    let errors = result.validation_errors();
    let errors = errors.map(|error| PolicyProblem::of_file("policies", error.to_string(), ""));
    let errors: Vec<PolicyProblem> = errors.collect();
    if errors.is_empty() {
        Ok(rules)
    } else {
        Err(errors)
    }
}

/// In doubt it may: any mention counts, unless the policy's scope names administrative actions only.
fn may_ask_for_roles(policy: &Policy) -> bool {
    let administrative = |action: &EntityUid| {
        let id: &str = action.id().unescaped();
        AdminAction::parse(id).is_some()
    };
    let elsewhere = match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(action) => !administrative(&action),
        ActionConstraint::In(actions) => !actions.iter().all(administrative),
    };
    elsewhere && policy.to_json().map_or(true, |json| mentions_role(&json))
}

/// The ids of the roles that a policy names.
fn collect_roles(json: &serde_json::Value, roles: &mut BTreeSet<String>) {
    match json {
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect_roles(item, roles)),
        serde_json::Value::Object(members) => {
            let text = |name: &str| members.get(name).and_then(serde_json::Value::as_str);
            if let (Some(schema::ROLE), Some(id)) = (text("type"), text("id")) {
                roles.insert(id.to_owned());
            }
            members
                .values()
                .for_each(|member| collect_roles(member, roles));
        }
        _ => {}
    }
}

fn mentions_role(json: &serde_json::Value) -> bool {
    match json {
        serde_json::Value::String(text) => text == schema::ROLE,
        serde_json::Value::Array(items) => items.iter().any(mentions_role),
        serde_json::Value::Object(members) => members.values().any(mentions_role),
        _ => false,
    }
}

fn one(part: &str, message: impl Into<String>, remedy: impl Into<String>) -> Vec<PolicyProblem> {
    vec![PolicyProblem::of_file(part, message, remedy)]
}

fn check_format(generation: &Generation) -> Result<(), Vec<PolicyProblem>> {
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

fn check_frame(generation: &Generation) -> Result<(), Vec<PolicyProblem>> {
    check_format(generation)?;
    if generation.engine != engine() {
        return Err(one(
            "generation",
            format!(
                "it decides by {}, and this version by {}",
                generation.engine,
                engine()
            ),
            "the same text may mean something else to another engine: build and activate it again with this version",
        ));
    }
    Ok(())
}

/// The model of policies that are written against `written`.
fn model_of(
    written: Schema,
    attestors: &[AttestorSpec],
    catalog: &Catalog,
) -> Result<Model, Vec<PolicyProblem>> {
    let text = schema::evaluated_text(attestors, catalog)?;
    let (schema, _) = Schema::from_cedarschema_str(&text)
        .map_err(|error| one("schema", error.to_string(), "correct the configuration"))?;
    Model::new(written, schema, attestors, catalog)
        .map_err(|error| one("schema", error.0, "correct the configuration"))
}

fn catalog_of(
    resources: &[Resource],
    task_types: &[TaskType],
    own_audiences: &[String],
) -> Result<Catalog, Vec<PolicyProblem>> {
    Catalog::new(resources.to_vec(), task_types.to_vec(), own_audiences)
        .map_err(|error| one("catalogue", error.to_string(), ""))
}

/// Cedar's strict validation, in which a warning is an error too: a condition that can never hold,
/// or letters that look like others, are mistakes. Then our own rules.
///
/// What decides is the validation of the balanced policies. Of a very deep one Cedar's validator gives
/// up without a word; these are not deep. Where they have problems, the policies as they were written
/// are asked too, since those know where.
fn check_policies(
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

/// What Cedar's validation says of `policies`, whose names are those of `named`.
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
        let place = found.and_then(|n| Some((generation.policies.get(n.file)?, n.offset)));
        match place {
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
