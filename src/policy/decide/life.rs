//! The life of a permitted credential: the terms of the permits, the task's deadline and the other
//! bounds.
//!
//! [`Terms`] are the strictest obligations of all satisfied permits. A life that the caller named
//! is refused if it is too long, with the longest permitted one; a life that it did not name, or
//! that of a retried credential, is shortened. A permit that requires an approval is a refusal.

use super::super::generation::CompiledGeneration;
use super::super::input::{CredentialInput, Input};
use super::super::mapping::TaskFacts;
use super::{EvaluationOptions, PolicyResult};
use crate::domain::decision::{Permitted, Refusal, RefusalCode};
use crate::domain::request::ttl_too_long;

/// The terms of all satisfied permits, the strictest of each.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::policy) struct Terms {
    pub(in crate::policy) max_ttl_seconds: Option<u64>,
    pub(in crate::policy) approval: bool,
}

impl CompiledGeneration {
    /// Applies the terms of the permits: life and approval.
    pub(super) fn apply(
        &self,
        input: &Input,
        terms: Terms,
        options: EvaluationOptions<'_>,
    ) -> Result<Permitted, Refusal> {
        let approval = || {
            Refusal::new(
                RefusalCode::ApprovalRequired,
                "policy requires that a person approves this request",
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
            // Policies may depend on the life itself; offer only a life that policy permits.
            let holds = !options.with_offer
                || terms.approval
                || self.would_permit(input, asked, Some(max), options);
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

    /// The life that policies read in `context.ttl_seconds`: the requested one, else the resource's
    /// default, limited by the task's deadline.
    pub(in crate::policy) fn asked_ttl(&self, asked: &CredentialInput, task: &TaskFacts) -> u64 {
        // Cedar's integers limit the value. A longer life is refused in any case.
        let longest = i64::MAX.unsigned_abs();
        let ttl_seconds = asked.ttl_seconds.map(|ttl| ttl.min(longest));
        ttl_seconds.unwrap_or_else(|| {
            let resource = self.catalog().resource(&asked.resource);
            let default = resource.map_or(0, |resource| resource.default_ttl_seconds);
            default.min(task.deadline_seconds_left)
        })
    }

    /// The longest life that can be granted, by the resource, the policies, the task's deadline and
    /// the parent's credential. A retried credential is not limited here; its life is shortened
    /// later.
    pub(in crate::policy) fn max_ttl(
        &self,
        asked: &CredentialInput,
        task: &TaskFacts,
        terms: Terms,
    ) -> u64 {
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

    pub(in crate::policy) fn terms<'p>(
        &self,
        permits: impl IntoIterator<Item = &'p String>,
    ) -> Terms {
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

/// Applies the bounds other than policy to the verdict.
pub(super) fn bounded(result: PolicyResult, input: &Input) -> PolicyResult {
    let (Ok(permitted), Some(asked)) = (&result.verdict, &input.credential) else {
        return result;
    };
    let Some(left) = asked.left_seconds else {
        return result;
    };
    let asked_for_more = asked.ttl_seconds.is_some_and(|ttl| ttl > left);
    let verdict = if left == 0 {
        Err(Refusal::new(
            RefusalCode::TaskEnded,
            "less than a second is left until the task or the parent credential ends",
        ))
    } else if asked_for_more && !asked.retried {
        Err(ttl_too_long(permitted.ttl_seconds, left))
    } else {
        Ok(Permitted {
            ttl_seconds: permitted.ttl_seconds.min(left),
        })
    };
    PolicyResult { verdict, ..result }
}
