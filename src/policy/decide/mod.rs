//! Decides one request.
//!
//! [`CompiledGeneration::decide`] splits a request for a credential into single actions at single
//! locations, each of which is evaluated by itself. The request is permitted only if all of them
//! are, and the opening of the task too if the request opens one. The strictest obligations of all
//! satisfied permits bind. [`CompiledGeneration::may`] decides about an act on the broker.
//!
//! The broker first writes every fact that an evaluation may depend on into its *input*, and the
//! evaluation reads only that. So the recorded input and the generation reproduce the decision
//! ([`CompiledGeneration::redecide`]). For the same reason a generation reuses the result of an
//! earlier input with the same facts (`super::memo`).
//!
//! A policy that only observes takes effect from its date on, judged by the instant of the input.
//! Before that date it is evaluated separately (`observe`), so it cannot make a verdict weaker
//! or wider.
//!
//! A decision is always returned, never an error: a policy that fails, or a fact that does not fit
//! the schema, makes it *indeterminate*, which is a refusal. Acts and recorded inputs return
//! [`PolicyError`], and the broker then fails closed. `broker::issuance` and `broker::tasks` call
//! this file for requests, `broker::access` for acts. It records nothing; the ledger does, and may
//! still refuse a request that policy permits.

mod life;
mod names;
mod observe;

use std::collections::BTreeSet;

use self::life::bounded;
use super::admin::{AdminAction, AdminPrincipal};
use super::asked::Extent;
use super::error::PolicyError;
use super::generation::CompiledGeneration;
use super::input::{self, CredentialInput, Input};
use super::inquiry::Inquiry;
use super::mapping::{self, PrincipalInput, TaskFacts, Unmappable};
use super::memo::EvaluatedInput;
use super::schema;
use super::slice::Answer;
use crate::clock::Timestamp;
use crate::domain::action::ActionName;
use crate::domain::catalog::too_many_steps;
use crate::domain::decision::{Decision, Permitted, Refusal, RefusalCode};
use crate::domain::limits::MAX_REQUEST_STEPS;
use crate::domain::location::Location;
use crate::domain::pattern::Budget;
use crate::domain::request::ResolvedRequest;
use crate::domain::revocability::Revocability;
use crate::domain::workload::Workload;

/// A question to policy about one credential.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Question<'a> {
    pub workload: &'a Workload,
    /// The roles that admins bound to the caller's identity. `None` if they were not read, which is
    /// valid only if no policy asks for roles.
    pub roles: Option<&'a BTreeSet<String>>,
    pub ask: &'a ResolvedRequest,
    /// The revocability that the minter states for the requested credential.
    pub revocability: Revocability,
    /// Facts about the task.
    pub task: TaskFacts,
    /// Bounds other than policy. `None` if only the answer of policy is wanted.
    pub bounds: Option<Bounds>,
    pub now: Timestamp,
}

/// Bounds on the life of a credential that come from its task, a parent's credential or a retried
/// credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Latest permitted expiry of the credential.
    pub not_after: Timestamp,
    /// Whether the credential replaces one that was lost in transit. Its life is then shortened to
    /// the bound; otherwise a life beyond the bound is refused.
    pub retried: bool,
}

/// The result of evaluating a request: the verdict and the policies that determined it.
pub(super) struct PolicyResult {
    pub(super) verdict: Result<Permitted, Refusal>,
    policies: BTreeSet<String>,
}

impl PolicyResult {
    fn refused(refusal: Refusal, policies: BTreeSet<String>) -> Self {
        Self {
            verdict: Err(refusal),
            policies,
        }
    }

    /// The caller learns only that policy could not be evaluated.
    fn indeterminate(policies: BTreeSet<String>) -> Self {
        let refusal = Refusal::new(
            RefusalCode::PolicyError,
            "policy could not be evaluated for this request",
        );
        Self::refused(refusal, policies)
    }
}

/// The answer for one action at one location.
pub(super) struct RightAnswer<'a> {
    pub(super) action: &'a ActionName,
    pub(super) location: &'a Location,
    pub(super) answer: Answer,
}

/// Options of one evaluation.
#[derive(Clone, Copy)]
pub(super) struct EvaluationOptions<'a> {
    /// Whether to search for a smaller request that would be permitted.
    pub(super) with_offer: bool,
    /// The instant that decides which policies are enforced.
    pub(super) at: Timestamp,
    /// The budget of steps for comparisons and evaluations.
    pub(super) budget: &'a Budget,
}

impl<'a> EvaluationOptions<'a> {
    pub(super) fn plain(at: Timestamp, budget: &'a Budget) -> Self {
        Self {
            with_offer: false,
            at,
            budget,
        }
    }
}

/// The answer for each action at each location.
fn right_answers<'a>(inquiry: &Inquiry<'_, 'a>, answers: &[Answer]) -> Vec<RightAnswer<'a>> {
    let singles = inquiry.singles.iter();
    singles
        .map(|single| {
            let own = single
                .asked
                .keys()
                .filter_map(|number| answers.get(*number));
            RightAnswer {
                action: single.action,
                location: single.location,
                answer: Answer::to_all(own),
            }
        })
        .collect()
}

impl CompiledGeneration {
    /// Decides about a credential. Reads no clock and no network. The result depends on the
    /// question alone.
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
        self.recall_or_evaluate(&input)
    }

    /// Decides about opening a task without a credential. A permit's `ttl_seconds` is then 0.
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
        self.recall_or_evaluate(&input)
    }

    /// Decides again from a recorded input. Always evaluates it.
    pub fn redecide(&self, input: &[u8]) -> Result<Decision, PolicyError> {
        let read = Input::read(input)?;
        Ok(Decision {
            input: input.to_vec(),
            ..self.record(&read)
        })
    }

    /// The life in seconds that policy permits at `at`, ignoring other bounds; `None` if policy
    /// does not permit.
    pub(super) fn permitted_ttl(&self, input: &Input, at: Timestamp) -> Option<u64> {
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let verdict = self
            .evaluate_or_refuse(input, EvaluationOptions::plain(at, &budget))
            .verdict;
        verdict.ok().map(|terms| terms.ttl_seconds)
    }

    /// The decision about an input by the policies that are enforced at `at`. [`Timestamp::MAX`]
    /// enforces every policy, including those that only observe.
    pub(super) fn decide_at(&self, input: &Input, at: Timestamp) -> Decision {
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let result = bounded(
            self.evaluate_or_refuse(input, EvaluationOptions::plain(at, &budget)),
            input,
        );
        Decision {
            verdict: result.verdict,
            policies: result.policies.into_iter().collect(),
            generation: self.digest(),
            input: Vec::new(),
            observed: None,
            reused: false,
        }
    }

    /// Whether `who` may perform this act on the broker. An error means that policy could not be
    /// evaluated; the caller must refuse.
    pub fn may(&self, who: AdminPrincipal<'_>, action: AdminAction) -> Result<bool, PolicyError> {
        Ok(!self.may_by(who, action)?.is_empty())
    }

    /// The policies that permit this act on the broker to `who`; empty if it is not permitted.
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
        // An act on the broker has no location, action or region.
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let holding = self.index.holding(&slice, &Extent::default(), &budget);
        let context = mapping::broker_context(&holding)?;
        let request = self.model.request(&scene, &action, &broker, context)?;
        let entities = self.model.entities(&scene, slice.actions())?;
        // Policies about the broker never only observe.
        let at = Timestamp::MAX;
        match slice.evaluate(&request, &entities, at) {
            Answer::Permit(permits) => Ok(permits.satisfied),
            Answer::Deny(_) => Ok(BTreeSet::new()),
            Answer::Error(ids) => Err(PolicyError::Evaluation(ids.into_iter().collect())),
        }
    }

    /// The decision about an input, with the result of an earlier evaluation of the same facts if
    /// it is kept.
    fn recall_or_evaluate(&self, input: &Input) -> Decision {
        let Ok(bytes) = serde_json::to_vec(input) else {
            return self.unrecordable();
        };
        let key = input::key(self.dates_before(input.now), &bytes);
        if let Some(known) = self.memo.get(&key) {
            return Decision {
                reused: true,
                ..self.decision(EvaluatedInput::clone(&known), bytes)
            };
        }
        let evaluated = self.evaluated(input);
        self.memo.insert(key, &evaluated);
        self.decision(evaluated, bytes)
    }

    /// Evaluates an input, without results of earlier evaluations.
    pub(super) fn record(&self, input: &Input) -> Decision {
        match serde_json::to_vec(input) {
            Ok(bytes) => self.decision(self.evaluated(input), bytes),
            Err(_) => self.unrecordable(),
        }
    }

    fn evaluated(&self, input: &Input) -> EvaluatedInput {
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let options = EvaluationOptions {
            with_offer: true,
            ..EvaluationOptions::plain(input.now, &budget)
        };
        let result = bounded(self.evaluate_or_refuse(input, options), input);
        EvaluatedInput {
            verdict: result.verdict,
            policies: result.policies.into_iter().collect(),
            observed: self.observe(input).map(Box::new),
        }
    }

    fn decision(&self, evaluated: EvaluatedInput, input: Vec<u8>) -> Decision {
        Decision {
            verdict: evaluated.verdict,
            policies: evaluated.policies,
            generation: self.digest(),
            input,
            observed: evaluated.observed,
            reused: false,
        }
    }

    /// A request that cannot be recorded is not permitted.
    fn unrecordable(&self) -> Decision {
        let result = PolicyResult::indeterminate(BTreeSet::new());
        let evaluated = EvaluatedInput {
            verdict: result.verdict,
            policies: Vec::new(),
            observed: None,
        };
        self.decision(evaluated, Vec::new())
    }

    /// The verdict of the enforced policies.
    pub(super) fn evaluate_or_refuse(
        &self,
        input: &Input,
        options: EvaluationOptions<'_>,
    ) -> PolicyResult {
        if let Err(refusal) = self.check_names(input, options.budget) {
            return PolicyResult::refused(refusal, BTreeSet::new());
        }
        // Without the caller's roles, a forbid about one of them would not apply.
        if self.asks_for_roles() && input.principal.roles.is_none() {
            return PolicyResult::indeterminate(BTreeSet::new());
        }
        self.evaluate(input, options)
            .unwrap_or_else(|_| PolicyResult::indeterminate(BTreeSet::new()))
    }

    /// Evaluates a request. Policies may depend on the life of the credential, and a shortened life
    /// is another life. So a permitted request whose life is shortened is evaluated once more with
    /// the shorter life.
    fn evaluate(
        &self,
        input: &Input,
        options: EvaluationOptions<'_>,
    ) -> Result<PolicyResult, Unmappable> {
        let result = self.evaluate_once(input, options)?;
        let Some(cut) = self.cut_short(input, &result) else {
            return Ok(result);
        };
        let options = EvaluationOptions {
            with_offer: false,
            ..options
        };
        self.evaluate_once(&cut, options)
    }

    /// The input with the granted life. `None` if the request is not permitted, or if policy was
    /// already evaluated with that life. `@max_ttl`, the task or the parent can shorten the life.
    pub(super) fn cut_short(&self, input: &Input, result: &PolicyResult) -> Option<Input> {
        let (Ok(permitted), Some(asked)) = (&result.verdict, &input.credential) else {
            return None;
        };
        // An explicitly requested life is refused, not shortened, unless a lost credential is
        // replaced.
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
        options: EvaluationOptions<'_>,
    ) -> Result<PolicyResult, Unmappable> {
        let asked = input.credential.as_ref();
        let resource = asked.map(|asked| asked.resource.as_str());
        let inquiry = self.inquiry(input, options.budget)?;
        let all = inquiry.answers(options.at, options.budget);
        if options.budget.is_exhausted() {
            return Ok(PolicyResult::refused(too_many_steps(), BTreeSet::new()));
        }
        let opening = inquiry.opening.and_then(|number| all.get(number));
        let right_answers = right_answers(&inquiry, &all);

        let answers = || {
            opening
                .into_iter()
                .chain(right_answers.iter().map(|right| &right.answer))
        };
        let errors = union(answers().filter_map(|answer| match answer {
            Answer::Error(ids) => Some(ids),
            _ => None,
        }));
        // An error takes precedence over a denial: the failed policy could have changed the answer.
        if !errors.is_empty() {
            return Ok(PolicyResult::indeterminate(errors));
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
            return Ok(PolicyResult::refused(refusal, forbids));
        }
        let denied = |right: &&RightAnswer<'_>| matches!(right.answer, Answer::Deny(_));
        if right_answers.iter().any(|right| denied(&right)) {
            let refusal = Refusal::new(
                RefusalCode::NotPermitted,
                describe(
                    right_answers.iter().filter(denied),
                    resource.unwrap_or_default(),
                ),
            );
            let offer = if options.with_offer {
                self.offer(input, opening, &right_answers, options)
            } else {
                None
            };
            let refusal = Refusal {
                allowed: offer,
                ..refusal
            };
            return Ok(PolicyResult::refused(refusal, forbids));
        }
        let permits: BTreeSet<String> = answers()
            .filter_map(|answer| match answer {
                Answer::Permit(permits) => Some(permits.all().cloned()),
                _ => None,
            })
            .flatten()
            .collect();
        let terms = self.terms(&permits);
        let verdict = self.apply(input, terms, options);
        Ok(PolicyResult {
            verdict,
            policies: permits,
        })
    }
}

fn principal_input(workload: &Workload, roles: Option<&BTreeSet<String>>) -> PrincipalInput {
    PrincipalInput {
        attestor: workload.attestor.clone(),
        identity: workload.identity.clone(),
        roles: roles.cloned(),
        claims: workload.claims.clone(),
    }
}

fn union<'a>(sets: impl Iterator<Item = &'a BTreeSet<String>>) -> BTreeSet<String> {
    sets.flatten().cloned().collect()
}

/// Names the first few refused rights and counts the rest.
fn describe<'a>(denied: impl Iterator<Item = &'a RightAnswer<'a>>, resource: &str) -> String {
    const NAMED: usize = 4;
    let rights: BTreeSet<(&ActionName, &Location)> =
        denied.map(|right| (right.action, right.location)).collect();
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
