//! One request, one decision.
//!
//! A request for a credential is taken apart into single actions at single locations; each is
//! evaluated by itself, and it is permitted only if all are, and opening the task too where it is
//! opened. Then the obligations of all satisfied permits are joined to the strictest.
//!
//! Everything that an evaluation may depend on is first written down as its *input*, and the
//! evaluation reads nothing else. So the recorded input and the generation give the same decision
//! again ([`CompiledGeneration::redecide`]).
//!
//! Policies that merely observe count from their date on, by the instant of the input. Before it
//! they are asked apart ([`Observed`]), so that none can make a verdict weaker or wider.

use std::collections::{BTreeMap, BTreeSet};

use super::admin::{AdminAction, AdminPrincipal};
use super::asked::Extent;
use super::generation::CompiledGeneration;
use super::input::{CredentialInput, Input};
use super::inquiry::Inquiry;
use super::mapping::{self, PrincipalInput, TaskFacts, Unmappable};
use super::schema;
use super::slice::Answer;
use crate::clock::Timestamp;
use crate::domain::catalog::{Resource, too_many_steps};
use crate::domain::decision::{
    Decision, Observed, ObservedEffect, ObservedPolicy, Outcome, Permitted, Refusal, RefusalCode,
};
use crate::domain::grant::{ActionName, AuthorizationDetail, Location};
use crate::domain::limits::{MAX_EVALUATIONS, MAX_REQUEST_STEPS};
use crate::domain::pattern::Budget;
use crate::domain::request::{ResolvedRequest, check_resource_fits, ttl_too_long};
use crate::domain::revocability::Revocability;
use crate::domain::workload::Workload;

/// What policy is asked about a credential.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Who asks.
    pub workload: &'a Workload,
    /// The roles that admins bound to its identity; none where they were not read, which is enough
    /// where no policy asks for any.
    pub roles: Option<&'a BTreeSet<String>>,
    /// What it asks.
    pub ask: &'a ResolvedRequest,
    /// Of the credential that would be made, as its minter states it.
    pub revocability: Revocability,
    /// What is known of the task.
    pub task: TaskFacts,
    /// What bounds the credential beside policy; nothing where it is only policy that is asked.
    pub bounds: Option<Bounds>,
    /// When.
    pub now: Timestamp,
}

/// What the task, a parent's credential or a retried one leave of a life that policy permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// No credential may live longer than this.
    pub not_after: Timestamp,
    /// Whether it replaces one that was lost on its way: that is then cut short, not refused.
    pub retried: bool,
}

/// Policy could not say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// These policies failed to evaluate.
    #[error("policies that could not be evaluated: {}", .0.join(", "))]
    Evaluation(Vec<String>),
    /// The values do not fit the schema.
    #[error("what is asked does not fit the schema: {0}")]
    Unmappable(String),
    /// Recorded bytes that are no input of an evaluation.
    #[error("not the input of an evaluation: {0}")]
    Input(String),
}

impl From<Unmappable> for PolicyError {
    fn from(error: Unmappable) -> Self {
        Self::Unmappable(error.0)
    }
}

/// A verdict with the policies that determined it.
pub(super) struct Verdict {
    pub(super) verdict: Result<Permitted, Refusal>,
    policies: BTreeSet<String>,
}

impl Verdict {
    fn refused(refusal: Refusal, policies: BTreeSet<String>) -> Self {
        Self {
            verdict: Err(refusal),
            policies,
        }
    }

    /// The caller learns no more than that it could not be established.
    fn indeterminate(policies: BTreeSet<String>) -> Self {
        let refusal = Refusal::new(
            RefusalCode::PolicyError,
            "policy could not be evaluated for this request",
        );
        Self::refused(refusal, policies)
    }
}

/// The joined terms of satisfied permits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms {
    pub(super) max_ttl_seconds: Option<u64>,
    pub(super) approval: bool,
}

/// One action at one location, answered.
pub(super) struct Atom<'a> {
    pub(super) action: &'a ActionName,
    pub(super) location: &'a Location,
    pub(super) answer: Answer,
}

/// How a judgement is made.
#[derive(Clone, Copy)]
pub(super) struct Manner<'a> {
    /// Whether what would be permitted instead is looked for.
    pub(super) with_offer: bool,
    /// The policies that count are those of this instant.
    pub(super) at: Timestamp,
    /// What comparisons and evaluations take their steps out of.
    pub(super) budget: &'a Budget,
}

impl<'a> Manner<'a> {
    pub(super) fn plain(at: Timestamp, budget: &'a Budget) -> Self {
        Self {
            with_offer: false,
            at,
            budget,
        }
    }
}

/// The answers to each action at each location.
fn atoms<'a>(inquiry: &Inquiry<'_, 'a>, answers: &[Answer]) -> Vec<Atom<'a>> {
    let singles = inquiry.singles.iter();
    singles
        .map(|single| {
            let own = single
                .asked
                .keys()
                .filter_map(|number| answers.get(*number));
            Atom {
                action: single.action,
                location: single.location,
                answer: Answer::to_all(own),
            }
        })
        .collect()
}

impl CompiledGeneration {
    /// Decides about a credential. Pure: no clock, no network, no lock.
    #[must_use]
    pub fn decide(&self, question: &Question<'_>) -> Decision {
        let input = Input {
            format: Input::FORMAT,
            now: question.now,
            principal: principal_input(question.workload, question.roles),
            task: question.task.clone(),
            credential: Some(CredentialInput {
                resource: question.ask.resource.name.clone(),
                authorization_details: question.ask.grant.details().to_vec(),
                revocability: question.revocability,
                ttl_seconds: question.ask.ttl_seconds,
                left_seconds: question.bounds.map(|bounds| {
                    let now = question.now.floor_to_second();
                    now.seconds_until(bounds.not_after)
                }),
                retried: question.bounds.is_some_and(|bounds| bounds.retried),
            }),
        };
        self.record(&input)
    }

    /// Decides about opening a task without a credential. A permit's `ttl_seconds` is 0: there is
    /// nothing that could live.
    #[must_use]
    pub fn decide_open_task(
        &self,
        workload: &Workload,
        roles: Option<&BTreeSet<String>>,
        task: TaskFacts,
        now: Timestamp,
    ) -> Decision {
        let input = Input {
            format: Input::FORMAT,
            now,
            principal: principal_input(workload, roles),
            task: TaskFacts {
                opens: true,
                ..task
            },
            credential: None,
        };
        self.record(&input)
    }

    /// Decides again from a recorded input.
    pub fn redecide(&self, input: &[u8]) -> Result<Decision, PolicyError> {
        let read = Input::read(input)?;
        Ok(Decision {
            input: input.to_vec(),
            ..self.record(&read)
        })
    }

    /// The life that policy permits at `at`, whatever else bounds it; none where it does not permit.
    pub(super) fn permitted_ttl(&self, input: &Input, at: Timestamp) -> Option<u64> {
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let verdict = self.judge(input, Manner::plain(at, &budget)).verdict;
        verdict.ok().map(|terms| terms.ttl_seconds)
    }

    /// What would come of an input by the policies that are enforced at `at`:
    /// [`Timestamp::MAX`] enforces whatever merely observes.
    pub(super) fn decide_at(&self, input: &Input, at: Timestamp) -> Decision {
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let verdict = bounded(self.judge(input, Manner::plain(at, &budget)), input);
        Decision {
            verdict: verdict.verdict,
            policies: verdict.policies.into_iter().collect(),
            generation: self.digest(),
            input: Vec::new(),
            observed: None,
        }
    }

    /// Whether `who` may act on the broker in this way.
    pub fn may(&self, who: AdminPrincipal<'_>, action: AdminAction) -> Result<bool, PolicyError> {
        Ok(!self.may_by(who, action)?.is_empty())
    }

    /// The policies by which `who` may act on the broker in this way; none where it may not.
    pub fn may_by(
        &self,
        who: AdminPrincipal<'_>,
        action: AdminAction,
    ) -> Result<BTreeSet<String>, PolicyError> {
        let scene = match who {
            AdminPrincipal::Workload { workload, roles } => self
                .model
                .workload_scene(&principal_input(workload, Some(roles)), None)?,
            AdminPrincipal::Bootstrap | AdminPrincipal::Dev if !action.open_to_bootstrap() => {
                return Ok(BTreeSet::new());
            }
            AdminPrincipal::Bootstrap => self.model.token_scene(schema::BOOTSTRAP_ID)?,
            AdminPrincipal::Dev => self.model.token_scene(schema::DEV_ID)?,
        };
        let broker = self.model.broker();
        let action = self.model.action(action.as_str());
        let slice = self
            .index
            .slice(&scene.principal, &scene.ancestors, &action, &broker);
        // An act on the broker is about no place.
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let holding = self.index.holding(&slice, &Extent::default(), &budget);
        let context = mapping::broker_context(&holding)?;
        let request = self.model.request(&scene, &action, &broker, context)?;
        // None of these observes.
        let at = Timestamp::MAX;
        match slice.evaluate(&request, &scene.entities, at) {
            Answer::Permit(permits) => Ok(permits.satisfied),
            Answer::Deny(_) => Ok(BTreeSet::new()),
            Answer::Error(ids) => Err(PolicyError::Evaluation(ids.into_iter().collect())),
        }
    }

    pub(super) fn record(&self, input: &Input) -> Decision {
        let bytes = serde_json::to_vec(input);
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let manner = Manner {
            with_offer: true,
            ..Manner::plain(input.now, &budget)
        };
        let (verdict, observed) = match &bytes {
            Ok(_) => (
                bounded(self.judge(input, manner), input),
                self.observe(input),
            ),
            // What cannot be recorded is not permitted.
            Err(_) => (Verdict::indeterminate(BTreeSet::new()), None),
        };
        Decision {
            observed: observed.map(Box::new),
            verdict: verdict.verdict,
            policies: verdict.policies.into_iter().collect(),
            generation: self.digest(),
            input: bytes.unwrap_or_default(),
        }
    }

    /// The verdict of the policies that count.
    pub(super) fn judge(&self, input: &Input, manner: Manner<'_>) -> Verdict {
        if let Err(refusal) = self.check_names(input, manner.budget) {
            return Verdict::refused(refusal, BTreeSet::new());
        }
        // A policy about a role would not hold for who has it.
        if self.asks_for_roles() && input.principal.roles.is_none() {
            return Verdict::indeterminate(BTreeSet::new());
        }
        self.evaluate(input, manner)
            .unwrap_or_else(|_| Verdict::indeterminate(BTreeSet::new()))
    }

    /// What the policies that merely observe would have made of it. It has no part in the verdict,
    /// which is found without them.
    fn observe(&self, input: &Input) -> Option<Observed> {
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let policies = self.observed_policies(input, &budget)?;
        let manner = Manner::plain(Timestamp::MAX, &budget);
        let verdict = bounded(self.judge(input, manner), input).verdict;
        let refusal = verdict.as_ref().err();
        Some(Observed {
            policies,
            outcome_if_enforced: refusal.map_or(Outcome::Permit, Refusal::outcome),
            refusal: refusal.map(|refusal| refusal.code),
            ttl_seconds: verdict.as_ref().ok().map(|terms| terms.ttl_seconds),
        })
    }

    /// Those that hold for any part of what is asked, or fail on it; none where none does.
    fn observed_policies(&self, input: &Input, budget: &Budget) -> Option<Vec<ObservedPolicy>> {
        let asked = input.credential.as_ref()?;
        let resource = self.model.resource(&asked.resource)?;
        self.index.observing(&resource, input.now).next()?;
        // What was refused by its names has no parts to hold for.
        self.check_names(input, budget).ok()?;
        let inquiry = self.inquiry(input, budget).ok()?;
        if budget.is_exhausted() {
            return None;
        }
        let mut found = BTreeMap::new();
        for own in self.index.observing(&resource, input.now) {
            let effects = inquiry
                .credential_requests()
                .filter_map(|request| own.would(request, &inquiry.scene.entities));
            // A failure is worth more than what it does elsewhere.
            let effect = effects.reduce(|one, other| match other {
                ObservedEffect::Error => other,
                _ => one,
            });
            let Some(effect) = effect else {
                continue;
            };
            let policy = ObservedPolicy {
                policy: own.id.clone(),
                effect,
                enforced_from: own.until,
            };
            found.insert(own.id.as_str(), policy);
        }
        let found: Vec<ObservedPolicy> = found.into_values().collect();
        (!found.is_empty()).then_some(found)
    }

    /// What must hold before policy is asked. The request was resolved before; this holds it even
    /// where it was resolved by another generation, or is read from a record.
    fn check_names(&self, input: &Input, budget: &Budget) -> Result<(), Refusal> {
        let task = &input.task;
        let task_type = self.catalog().task_type(&task.task_type).ok_or_else(|| {
            Refusal::new(
                RefusalCode::UnknownTaskType,
                format!("there is no task type `{}`", task.task_type),
            )
        })?;
        if task.deadline_seconds_left == 0 {
            return Err(Refusal::new(
                RefusalCode::TaskEnded,
                "the task, or one that it is part of, is over",
            ));
        }
        let Some(asked) = &input.credential else {
            return Ok(());
        };
        let resource = self.catalog().resource(&asked.resource).ok_or_else(|| {
            Refusal::new(
                RefusalCode::UnknownResource,
                format!("there is no resource `{}`", asked.resource),
            )
        })?;
        check_resource_fits(task_type, resource)?;
        check_rights(resource, &asked.authorization_details, budget)
    }

    /// A policy may ask about the life itself, and a life that is cut short is another one. So what is
    /// permitted is asked about once more at the life that it would get.
    fn evaluate(&self, input: &Input, manner: Manner<'_>) -> Result<Verdict, Unmappable> {
        let verdict = self.evaluate_once(input, manner)?;
        let Some(cut) = self.cut_short(input, &verdict) else {
            return Ok(verdict);
        };
        let manner = Manner {
            with_offer: false,
            ..manner
        };
        self.evaluate_once(&cut, manner)
    }

    /// The input with the life that is given, where it is permitted and that is another one than policy
    /// was asked about: by `@max_ttl`, or by what the task or the parent leaves.
    pub(super) fn cut_short(&self, input: &Input, verdict: &Verdict) -> Option<Input> {
        let (Ok(permitted), Some(asked)) = (&verdict.verdict, &input.credential) else {
            return None;
        };
        // A life that was asked for is refused, not cut, except where a lost credential is replaced.
        if asked.ttl_seconds.is_some() && !asked.retried {
            return None;
        }
        let left = asked.left_seconds.unwrap_or(u64::MAX);
        let given = permitted.ttl_seconds.min(left);
        if given == 0 || given == self.asked_ttl(asked, &input.task) {
            return None;
        }
        Some(Input {
            credential: Some(CredentialInput {
                ttl_seconds: Some(given),
                ..asked.clone()
            }),
            ..input.clone()
        })
    }

    pub(super) fn evaluate_once(
        &self,
        input: &Input,
        manner: Manner<'_>,
    ) -> Result<Verdict, Unmappable> {
        let asked = input.credential.as_ref();
        let resource = asked.map(|asked| asked.resource.as_str());
        let inquiry = self.inquiry(input, manner.budget)?;
        let all = inquiry.answers(manner.at, manner.budget);
        if manner.budget.is_exhausted() {
            return Ok(Verdict::refused(too_many_steps(), BTreeSet::new()));
        }
        let opening = inquiry.opening.and_then(|number| all.get(number));
        let atoms = atoms(&inquiry, &all);

        let answers = || {
            opening
                .into_iter()
                .chain(atoms.iter().map(|atom| &atom.answer))
        };
        let errors = union(answers().filter_map(|answer| match answer {
            Answer::Error(ids) => Some(ids),
            _ => None,
        }));
        // An error counts even beside a denial: it could not be established what holds.
        if !errors.is_empty() {
            return Ok(Verdict::indeterminate(errors));
        }
        let forbids = union(answers().filter_map(|answer| match answer {
            Answer::Deny(ids) => Some(ids),
            _ => None,
        }));
        if let Some(Answer::Deny(_)) = opening {
            let detail = format!(
                "policy does not permit to open a task of type `{}`",
                input.task.task_type
            );
            let refusal = Refusal::new(RefusalCode::NotPermitted, detail);
            return Ok(Verdict::refused(refusal, forbids));
        }
        let denied = |atom: &&Atom<'_>| matches!(atom.answer, Answer::Deny(_));
        if atoms.iter().any(|atom| denied(&atom)) {
            let refusal = Refusal::new(
                RefusalCode::NotPermitted,
                describe(atoms.iter().filter(denied), resource.unwrap_or_default()),
            );
            let offer = if manner.with_offer {
                self.offer(input, opening, &atoms, manner)
            } else {
                None
            };
            let refusal = Refusal {
                allowed: offer,
                ..refusal
            };
            return Ok(Verdict::refused(refusal, forbids));
        }
        let permits: BTreeSet<String> = answers()
            .filter_map(|answer| match answer {
                Answer::Permit(permits) => Some(permits.all().cloned()),
                _ => None,
            })
            .flatten()
            .collect();
        let terms = self.terms(&permits);
        let verdict = self.apply(input, terms, manner);
        Ok(Verdict {
            verdict,
            policies: permits,
        })
    }

    /// The terms of a yes: life and approval.
    fn apply(&self, input: &Input, terms: Terms, manner: Manner<'_>) -> Result<Permitted, Refusal> {
        let approval = || {
            Refusal::new(
                RefusalCode::ApprovalRequired,
                "policy wants a person's approval for this",
            )
        };
        let Some(asked) = &input.credential else {
            return if terms.approval {
                Err(approval())
            } else {
                Ok(Permitted { ttl_seconds: 0 })
            };
        };
        let max = self.max_ttl(asked, &input.task, terms);
        if let Some(ttl) = asked.ttl_seconds
            && ttl > max
        {
            let refusal = ttl_too_long(ttl, max);
            // A policy may ask about the life itself; offer only what it would then permit.
            let holds = !manner.with_offer
                || terms.approval
                || self.would_permit(input, asked, Some(max), manner);
            return Err(if holds {
                refusal
            } else {
                Refusal {
                    allowed: None,
                    ..refusal
                }
            });
        }
        if terms.approval {
            return Err(approval());
        }
        let ttl_seconds = self.asked_ttl(asked, &input.task).min(max);
        Ok(Permitted { ttl_seconds })
    }

    /// The life that policy reads in `context.ttl_seconds`: the asked one, else the resource's
    /// default within the task's deadline.
    pub(super) fn asked_ttl(&self, asked: &CredentialInput, task: &TaskFacts) -> u64 {
        // Policy counts in Cedar's numbers. A longer life is refused whatever policy says.
        let longest = i64::MAX.unsigned_abs();
        let ttl_seconds = asked.ttl_seconds.map(|ttl| ttl.min(longest));
        ttl_seconds.unwrap_or_else(|| {
            let resource = self.catalog().resource(&asked.resource);
            let default = resource.map_or(0, |resource| resource.default_ttl_seconds);
            default.min(task.deadline_seconds_left)
        })
    }

    /// The longest life that can be had: by the resource, the policies, the task's deadline, and what
    /// a parent's credential leaves. A retried credential is cut to what is left instead.
    pub(super) fn max_ttl(&self, asked: &CredentialInput, task: &TaskFacts, terms: Terms) -> u64 {
        let resource = self.catalog().resource(&asked.resource);
        let left = asked
            .left_seconds
            .filter(|left| *left > 0 && !asked.retried);
        resource
            .map_or(0, |resource| resource.max_ttl_seconds)
            .min(terms.max_ttl_seconds.unwrap_or(u64::MAX))
            .min(task.deadline_seconds_left)
            .min(left.unwrap_or(u64::MAX))
    }

    pub(super) fn terms<'p>(&self, permits: impl IntoIterator<Item = &'p String>) -> Terms {
        let mut terms = Terms::default();
        for obligations in permits
            .into_iter()
            .filter_map(|id| self.obligations.get(id))
        {
            terms.approval |= obligations.approval.is_some();
            terms.max_ttl_seconds = match (terms.max_ttl_seconds, obligations.max_ttl_seconds) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        terms
    }
}

/// Policy's word, bounded by what else bounds a credential.
fn bounded(judged: Verdict, input: &Input) -> Verdict {
    let (Ok(permitted), Some(asked)) = (&judged.verdict, &input.credential) else {
        return judged;
    };
    let Some(left) = asked.left_seconds else {
        return judged;
    };
    let asked_for_more = asked.ttl_seconds.is_some_and(|ttl| ttl > left);
    let verdict = if left == 0 {
        Err(Refusal::new(
            RefusalCode::TaskEnded,
            "less than a second is left for this task",
        ))
    } else if asked_for_more && !asked.retried {
        Err(ttl_too_long(permitted.ttl_seconds, left))
    } else {
        Ok(Permitted {
            ttl_seconds: permitted.ttl_seconds.min(left),
        })
    };
    Verdict { verdict, ..judged }
}

fn principal_input(workload: &Workload, roles: Option<&BTreeSet<String>>) -> PrincipalInput {
    PrincipalInput {
        attestor: workload.attestor.clone(),
        identity: workload.identity.clone(),
        roles: roles.cloned(),
        claims: workload.claims.clone(),
    }
}

fn check_rights(
    resource: &Resource,
    details: &[AuthorizationDetail],
    budget: &Budget,
) -> Result<(), Refusal> {
    let mut evaluations = 0_usize;
    for detail in details {
        resource.check_serves(detail, budget)?;
        let product = detail.actions().len() * detail.locations().len();
        if product == 0 {
            // Of nothing, everything is permitted. It must not come to that.
            return Err(Refusal::new(
                RefusalCode::NotPermitted,
                "an object of authorization_details names no right",
            ));
        }
        evaluations = evaluations.saturating_add(product);
    }
    if evaluations == 0 {
        return Err(Refusal::new(
            RefusalCode::NotPermitted,
            "authorization_details names no right",
        ));
    }
    if evaluations > MAX_EVALUATIONS {
        return Err(Refusal::new(
            RefusalCode::TooManyRights,
            format!(
                "{evaluations} combinations of action and location; at most {MAX_EVALUATIONS} in one request"
            ),
        ));
    }
    Ok(())
}

fn union<'a>(sets: impl Iterator<Item = &'a BTreeSet<String>>) -> BTreeSet<String> {
    sets.flatten().cloned().collect()
}

/// Names the first few refused rights; the rest is a number.
fn describe<'a>(denied: impl Iterator<Item = &'a Atom<'a>>, resource: &str) -> String {
    const NAMED: usize = 4;
    let rights: BTreeSet<(&ActionName, &Location)> =
        denied.map(|atom| (atom.action, atom.location)).collect();
    let named: Vec<String> = rights
        .iter()
        .take(NAMED)
        .map(|(action, location)| format!("`{action}` at `{location}`"))
        .collect();
    let more = match rights.len().saturating_sub(NAMED) {
        0 => String::new(),
        n => format!(", and {n} more"),
    };
    format!(
        "policy does not permit {}{more} on `{resource}`",
        named.join(", ")
    )
}
