//! Builds generations from configuration and files, and compiles them for decisions.
//!
//! [`CompiledGeneration::compile`] is the only way to load a generation that decides. It serves
//! files under `policy check`, an admin's new generation and the active generation of the store. So
//! a generation that does not load cannot be activated, and every loaded generation was checked in
//! full.
//!
//! [`CompiledGeneration::compile_recorded`] loads a generation that decided in the past. It checks
//! less, because rules that were added later do not invalidate an old decision. To establish that
//! it still decides the same, compare the bytes of the results.
//!
//! A generation that fails a check is returned as a list of [`PolicyProblem`]s with file, line and
//! remedy; nothing of it can be used. `check` checks the frame and the policies; the other parts of
//! the check are in `super::bundle` (text), `super::schema`, `super::lint` and `super::asked`. Two
//! checks are left to the caller, because they need the time or the replica:
//! [`CompiledGeneration::check_dates`], and the check of endpoints and attestors in
//! `broker::check`. `super::decide` decides by the result.

mod check;

use std::collections::{BTreeSet, HashMap};

use cedar_policy::{
    ActionConstraint, Effect, EntityUid, Policy, PolicySet, Schema, ValidationMode, Validator,
};
use ring::digest::{SHA256, digest};

use self::check::{check_format, check_frame, check_policies};
use super::AdminAction;
use super::asked::question::Questions;
use super::asked::rewrite::{self, Rule};
use super::bundle::{self, NamedPolicy, Obligations};
use super::mapping::Model;
use super::memo::Memo;
use super::notes::Notes;
use super::problem::PolicyProblem;
use super::schema;
use super::slice::Index;
use super::stack;
use crate::clock::Timestamp;
use crate::domain::catalog::{Catalog, Resource, TaskType};
use crate::domain::generation::{DecisionLimits, Generation, PolicyFile, Retention};
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::limits::{MAX_OBSERVED_DAYS, MAX_PROBLEMS};
use crate::domain::trust::AttestorSpec;

/// The parts of a generation, without its schema.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct GenerationParts {
    /// Policy files, in order.
    pub policies: Vec<PolicyFile>,
    pub attestors: Vec<AttestorSpec>,
    pub resources: Vec<Resource>,
    pub task_types: Vec<TaskType>,
    /// Limits that affect decisions.
    pub limits: DecisionLimits,
    /// Retention of ended records, in days.
    pub retention: Retention,
}

const DAY_SECONDS: u64 = 86_400;

/// Version of this build's interpretation of policies. Increase it if the meaning of an unchanged
/// text changes. Version 1 evaluated a policy for each text that a request names; version 2
/// evaluates it for all requested values together.
const READING: u32 = 2;

/// The policy engine of this build. It is part of the generation, because it affects decisions.
#[must_use]
pub fn engine() -> String {
    format!(
        "cedar-policy {} (language {}), reading {READING}",
        cedar_policy::get_sdk_version(),
        cedar_policy::get_lang_version()
    )
}

/// The digest of a generation.
pub fn digest_of(generation: &Generation) -> Result<GenerationDigest, serde_json::Error> {
    let hash = digest(&SHA256, &generation.to_bytes()?);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash.as_ref());
    Ok(GenerationDigest::new(bytes))
}

/// Writes the schema for `parts` and combines both into a generation.
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

/// Writes a generation and compiles it.
pub fn build(
    parts: GenerationParts,
    own_audiences: &[String],
) -> Result<(Generation, CompiledGeneration), Vec<PolicyProblem>> {
    let generation = write(parts, own_audiences)?;
    let compiled = CompiledGeneration::compile(&generation, own_audiences)?;
    Ok((generation, compiled))
}

/// A checked generation, ready to decide. Immutable: activation replaces it as a whole.
#[derive(Debug)]
pub struct CompiledGeneration {
    digest: GenerationDigest,
    catalog: Catalog,
    attestors: Vec<AttestorSpec>,
    limits: DecisionLimits,
    retention: Retention,
    pub(super) model: Model,
    pub(super) index: Index,
    /// The results of earlier evaluations by this generation.
    pub(super) memo: Memo,
    pub(super) obligations: HashMap<String, Obligations>,
    policies: Vec<NamedPolicy>,
    asks_for_roles: bool,
    roles: BTreeSet<String>,
    notes: Notes,
}

impl CompiledGeneration {
    /// Checks the whole generation and builds the index. `own_audiences` as for [`Catalog::new`].
    ///
    /// It uses milliseconds to seconds of CPU time. Do not call it on the async threads.
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
                "the schema does not match the attestors, resources and task types",
                "build the generation again with this version",
            ));
        }
        let (schema, warnings) = Schema::from_cedarschema_str(&written)
            .map_err(|error| one("schema", error.to_string(), "correct the configuration"))?;
        // Cedar warns if one name hides another, as an attestor's name could.
        if let Some(warning) = warnings.into_iter().next() {
            return Err(one("schema", warning.to_string(), "choose another name"));
        }
        let model = model_of(schema, &generation.attestors, &catalog)?;
        let parsed = bundle::parse(&generation.policies)?;
        check_policies(generation, &parsed, &model, &catalog)?;
        let digest = digest_of(generation).map_err(|e| one("generation", e.to_string(), ""))?;
        Self::assemble(digest, catalog, generation, model, parsed.named)
    }

    /// Compiles a past generation, only to reproduce its decisions: uses its stored schema, accepts
    /// any engine, and skips this version's `lint`. `digest` is the digest of the bytes of
    /// `generation`.
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
        // The broker's own audiences affect only which configurations are refused, not decisions.
        let catalog = catalog_of(&generation.resources, &generation.task_types, &[])?;
        let (schema, _) = Schema::from_cedarschema_str(&generation.schema)
            .map_err(|error| one("schema", error.to_string(), ""))?;
        let model = model_of(schema, &generation.attestors, &catalog)?;
        let parsed = bundle::parse(&generation.policies)?;
        Self::assemble(digest, catalog, generation, model, parsed.named)
    }

    /// Checks that every policy that only observes at `now` will be enforced within the permitted
    /// time; otherwise it could observe for ever. Call it before activation. `compile` cannot check
    /// this because it reads no time and must accept past generations. `files` are the files of
    /// this generation.
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
                "policy `{}` would only observe for more than {MAX_OBSERVED_DAYS} days",
                named.id
            );
            let remedy = "name an earlier day in @enforce_after; a later activation can move it";
            Some(PolicyProblem::at(file, named.offset, message, remedy))
        });
        let late: Vec<PolicyProblem> = late.collect();
        if late.is_empty() { Ok(()) } else { Err(late) }
    }

    /// Combines the checked parts.
    fn assemble(
        digest: GenerationDigest,
        catalog: Catalog,
        generation: &Generation,
        model: Model,
        named: Vec<NamedPolicy>,
    ) -> Result<Self, Vec<PolicyProblem>> {
        let failed = |error: String| one("policies", error, "");
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
        let index = Index::new(dated, questions, &model.actions).map_err(failed)?;
        let obligations = named
            .iter()
            .map(|named| (named.id.clone(), named.obligations.clone()))
            .collect();
        let mut role_names = BTreeSet::new();
        for policy in &named {
            // Every loaded policy converts to JSON.
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
            memo: Memo::default(),
            obligations,
            policies: named,
            asks_for_roles,
            roles: role_names,
            notes,
        })
    }

    /// Compiles a generation without validating its policies. Tests use it to show that an
    /// evaluation refuses a broken policy that validation missed.
    #[cfg(test)]
    pub(super) fn unvalidated(generation: &Generation) -> Self {
        Self::compile_recorded(generation, digest_of(generation).unwrap()).unwrap()
    }

    /// The generation's digest.
    #[must_use]
    pub fn digest(&self) -> GenerationDigest {
        self.digest
    }

    /// The registered resources and task types.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Retention of ended records, in days.
    #[must_use]
    pub fn retention(&self) -> Retention {
        self.retention
    }

    /// The attestors' specifications.
    #[must_use]
    pub fn attestors(&self) -> &[AttestorSpec] {
        &self.attestors
    }

    /// Limits that affect decisions.
    #[must_use]
    pub fn limits(&self) -> DecisionLimits {
        self.limits
    }

    /// Every policy's `@id`, in the order of the files.
    pub fn policy_ids(&self) -> impl Iterator<Item = &str> {
        self.policies.iter().map(|named| named.id.as_str())
    }

    /// Number of enforcement dates that are at or before `at`.
    pub(super) fn dates_before(&self, at: Timestamp) -> usize {
        self.index.dates_before(at)
    }

    /// Every policy that only observes at `at`, with its instant of enforcement.
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

    /// Notes about policies that probably do not have the intended effect.
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

    /// Whether any permit applies to this act on the broker.
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

    /// Whether any policy about tasks and credentials could depend on the caller's roles. Otherwise
    /// the roles need not be read.
    #[must_use]
    pub fn asks_for_roles(&self) -> bool {
        self.asks_for_roles
    }
}

/// Runs `load` on the stack for loading.
fn loading<T: Send>(
    load: impl FnOnce() -> Result<T, Vec<PolicyProblem>> + Send,
) -> Result<T, Vec<PolicyProblem>> {
    stack::with_load_stack(load).unwrap_or_else(|error| {
        Err(one(
            "policies",
            format!("cannot start the thread that reads policies: {error}"),
            "allow the process more memory or threads",
        ))
    })
}

/// The policies in the form that Cedar evaluates.
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
    // The evaluated form has only the facts of its own schema, so this validation proves that the
    // rewrite missed none.
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

/// Conservative: any mention of roles counts, unless the policy's scope names administrative acts
/// only.
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

/// Collects the ids of the roles that a policy names.
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

/// The model for policies that are written against the schema `written`.
fn model_of(
    written: Schema,
    attestors: &[AttestorSpec],
    catalog: &Catalog,
) -> Result<Model, Vec<PolicyProblem>> {
    let read = |text: &str| {
        Schema::from_cedarschema_str(text)
            .map(|(schema, _)| schema)
            .map_err(|error| one("schema", error.to_string(), "correct the configuration"))
    };
    let schema = read(&schema::evaluated_text(attestors, catalog)?)?;
    let entity_types = read(&schema::entity_types(attestors)?)?;
    Model::new(written, schema, entity_types, attestors, catalog)
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
