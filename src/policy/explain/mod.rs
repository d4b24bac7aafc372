//! Explains a decision, and finds small changes that would have changed its outcome.
//!
//! An [`Explanation`] has three parts. First, the policies that determined the decision, with file
//! and line. Second, for each refused right, the forbids that apply, or the nearest permits and
//! their conditions that do not hold. Third, changes of one single fact that change the outcome:
//! each candidate is tried by deciding again, and only candidates that change the outcome are
//! reported. The facts are those of the request (life, actions, locations), of the credential's
//! revocability, of the caller's claims and roles, of its task, and finally its identity. The
//! values tried are those that policies name, and their neighbours. So the search misses changes
//! that need two facts or a value that no policy names; an empty result is no proof that no change
//! exists.
//!
//! Bytes that are not the input of an evaluation are a [`PolicyError`]. A search that reaches its
//! limit stops and says so (`cut_short`). An explanation shows policies and is for operators, not
//! for the caller of the broker: the command `policy explain` is the only caller. `super::parts`
//! splits the policies, and `search` finds the changes.

mod search;

use std::collections::BTreeSet;

use serde::Serialize;

use self::search::Search;
use super::asked::Extent;
use super::decide::EvaluationOptions;
use super::error::PolicyError;
use super::generation::CompiledGeneration;
use super::input::Input;
use super::inquiry::Inquiry;
use super::mapping::{self, Unmappable};
use super::parts::{Dissected, EvaluationContext};
use super::schema;
use super::slice::Answer;
use super::stack::with_balanced_stack;
use crate::clock::Timestamp;
use crate::domain::decision::{Decision, Outcome};
use crate::domain::generation::PolicyFile;
use crate::domain::limits::MAX_REQUEST_STEPS;
use crate::domain::pattern::Budget;

/// Maximum number of nearest permits that are reported for one refused right.
const MAX_NEAREST: usize = 3;

/// A policy and its source location.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct SourceLocation {
    /// The `@id` of the policy.
    pub policy: String,
    pub file: String,
    /// Line number in the file, from 1; 0 if the file is unknown.
    pub line: usize,
    /// Either `permit` or `forbid`.
    pub effect: &'static str,
    /// The `@description` of the policy.
    pub description: String,
}

/// A permit that did not apply, with its parts that do not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Nearest {
    #[serde(flatten)]
    pub source: SourceLocation,
    /// The parts that do not hold, in Cedar syntax.
    pub does_not_hold: Vec<String>,
}

/// A right that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedRight {
    /// An action, or `openTask`.
    pub action: String,
    /// A location, or the name of the task's type.
    pub location: String,
    /// The forbids that apply to it.
    pub forbidden_by: Vec<SourceLocation>,
    /// If no forbid applies: the permits with the fewest parts that do not hold.
    pub nearest: Vec<Nearest>,
}

/// A change of one fact that changes the outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The changed fact, for example `context.ttl_seconds`.
    pub fact: String,
    /// Its value in the decision.
    pub from: String,
    /// The value that changes the outcome.
    pub to: String,
    /// The outcome with that value.
    pub outcome: Outcome,
}

/// The explanation of a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The policies that determined the decision.
    pub policies: Vec<SourceLocation>,
    /// Every right that was refused.
    pub refused: Vec<RefusedRight>,
    /// The policies that apply but only observe. They had no effect on the decision.
    pub observed: Vec<SourceLocation>,
    /// Changes of a single fact that change the outcome.
    pub changes: Vec<Change>,
    /// Number of changes that were tried.
    pub tried: usize,
    /// Whether the search stopped at its limit before it tried all candidates.
    pub cut_short: bool,
}

impl CompiledGeneration {
    /// Explains a decision from its recorded input. `files` are the files of this generation.
    pub fn explain(
        &self,
        input: &[u8],
        decision: &Decision,
        files: &[PolicyFile],
    ) -> Result<Explanation, PolicyError> {
        let input = Input::read(input)?;
        Ok(with_balanced_stack(|| {
            self.explain_here(&input, decision, files)
        }))
    }

    fn explain_here(
        &self,
        input: &Input,
        decision: &Decision,
        files: &[PolicyFile],
    ) -> Explanation {
        let dissected: Vec<Dissected<'_>> = self.policies().map(Dissected::new).collect();
        let explainer = Explainer {
            generation: self,
            files,
            dissected,
        };
        let policies = decision.policies.iter();
        let policies = policies.filter_map(|id| explainer.locate(id)).collect();
        let refused = match &decision.verdict {
            Ok(_) => Vec::new(),
            // A decision that failed before policy was evaluated has no refused rights.
            Err(_) => explainer.refused(input).unwrap_or_default(),
        };
        let mut search = Search::new(self, decision.outcome());
        explainer.search(input, decision, &mut search);
        let observed = decision.observed.iter().flat_map(|own| &own.policies);
        let observed = observed.filter_map(|own| explainer.locate(&own.policy));
        Explanation {
            policies,
            refused,
            observed: observed.collect(),
            changes: search.found,
            tried: search.tried,
            cut_short: search.cut_short,
        }
    }
}

struct Explainer<'a> {
    generation: &'a CompiledGeneration,
    files: &'a [PolicyFile],
    dissected: Vec<Dissected<'a>>,
}

impl Explainer<'_> {
    fn locate(&self, id: &str) -> Option<SourceLocation> {
        let found = self.dissected.iter().find(|own| own.named.id == id)?;
        Some(self.location_of(found))
    }

    fn location_of(&self, found: &Dissected<'_>) -> SourceLocation {
        let named = found.named;
        let file = self.files.get(named.file);
        let before = file.and_then(|file| file.text.get(..named.offset));
        SourceLocation {
            policy: named.id.clone(),
            file: file.map(|file| file.name.clone()).unwrap_or_default(),
            line: before.map_or(0, |text| text.matches('\n').count() + 1),
            effect: if found.is_permit() {
                "permit"
            } else {
                "forbid"
            },
            description: named
                .policy
                .annotation("description")
                .unwrap_or_default()
                .to_owned(),
        }
    }

    fn refused(&self, input: &Input) -> Result<Vec<RefusedRight>, Unmappable> {
        let generation = self.generation;
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let asked =
            generation.evaluate_once(input, EvaluationOptions::plain(input.now, &budget))?;
        let cut = generation.cut_short(input, &asked);
        let input = cut.as_ref().unwrap_or(input);
        let budget = Budget::new(MAX_REQUEST_STEPS);
        let inquiry = generation.inquiry(input, &budget)?;
        let answers = inquiry.answers(input.now, &budget);
        let mut refused = Vec::new();
        if let Some(opening) = inquiry.opening
            && let Some(Answer::Deny(forbids)) = answers.get(opening)
        {
            let right = RefusedRight {
                action: schema::OPEN_TASK.to_owned(),
                location: input.task.task_type.clone(),
                forbidden_by: self.locate_all(forbids),
                nearest: self.nearest_to(&inquiry, opening, Extent::default(), forbids, input),
            };
            refused.push(right);
        }
        for single in &inquiry.singles {
            // The first refused part of the right.
            let denied =
                single
                    .asked
                    .iter()
                    .find_map(|(number, extent)| match answers.get(*number) {
                        Some(Answer::Deny(forbids)) => Some((*number, *extent, forbids)),
                        _ => None,
                    });
            let Some((number, extent, forbids)) = denied else {
                continue;
            };
            let extent = inquiry.extent(extent);
            // Policy can refuse the locations below a URL although it permits the URL itself.
            let below = extent
                .location
                .filter(|_| single.asked.len() > 1 && !single.location.is_arn());
            refused.push(RefusedRight {
                action: single.action.to_string(),
                location: below.map_or_else(|| single.location.to_string(), ToString::to_string),
                forbidden_by: self.locate_all(forbids),
                nearest: self.nearest_to(&inquiry, number, extent, forbids, input),
            });
        }
        refused.dedup();
        Ok(refused)
    }

    fn locate_all(&self, policies: &BTreeSet<String>) -> Vec<SourceLocation> {
        policies.iter().filter_map(|id| self.locate(id)).collect()
    }

    /// If no forbid applies: the permits that are nearest to `extent`.
    fn nearest_to(
        &self,
        inquiry: &Inquiry<'_, '_>,
        number: usize,
        extent: Extent<'_>,
        forbids: &BTreeSet<String>,
        input: &Input,
    ) -> Vec<Nearest> {
        let Some(asked) = inquiry.request(number).filter(|_| forbids.is_empty()) else {
            return Vec::new();
        };
        let is_opening = inquiry.opening == Some(number);
        let cedar_context = |holding: &[u32]| match &input.credential {
            Some(asked) if !is_opening => {
                let ttl_seconds = self.generation.asked_ttl(asked, &input.task);
                mapping::credential_context(&input.task, holding, ttl_seconds, asked.revocability)
            }
            _ => mapping::task_context(&input.task, holding),
        };
        let context = EvaluationContext {
            model: &self.generation.model,
            scene: &inquiry.scene,
            asked,
            extent,
            cedar_context: &cedar_context,
        };
        self.nearest(&context, input.now)
    }

    /// The permits with the fewest parts that do not hold. Permits about this caller come first,
    /// then those about this action and resource.
    fn nearest(&self, context: &EvaluationContext<'_>, at: Timestamp) -> Vec<Nearest> {
        let mut near: Vec<((bool, usize, usize), Nearest)> = Vec::new();
        let counts = |own: &&Dissected<'_>| {
            own.is_permit() && own.named.observed_until.is_none_or(|until| until <= at)
        };
        for dissected in self.dissected.iter().filter(counts) {
            let failing: Vec<_> = dissected
                .parts
                .iter()
                .filter(|part| !part.holds(context))
                .collect();
            // A permit of which no part holds is not near.
            if failing.is_empty() || failing.len() == dissected.parts.len() {
                continue;
            }
            let about_others = failing.iter().any(|part| part.is_principal);
            let found = Nearest {
                source: self.location_of(dissected),
                does_not_hold: failing.iter().map(|part| part.text.clone()).collect(),
            };
            let scope = failing.iter().filter(|part| part.is_scope).count();
            near.push(((about_others, scope, failing.len()), found));
        }
        near.sort_by_key(|(distance, _)| *distance);
        let first = near.first().map(|(distance, _)| *distance);
        near.retain(|(distance, _)| Some(*distance) == first);
        near.truncate(MAX_NEAREST);
        near.into_iter().map(|(_, found)| found).collect()
    }
}
