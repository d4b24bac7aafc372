//! Checks the names of a request before policy is evaluated: its task type, its resource and its
//! rights.
//!
//! A request without a right is refused, because it would have no evaluation that could deny it. So
//! is one with more than `MAX_EVALUATIONS` combinations of action and location.
//!
//! The error is the [`Refusal`] that the caller gets. `super` calls `check_names` first.

use super::super::generation::CompiledGeneration;
use super::super::input::Input;
use crate::domain::catalog::Resource;
use crate::domain::decision::{Refusal, RefusalCode};
use crate::domain::grant::AuthorizationDetail;
use crate::domain::limits::MAX_EVALUATIONS;
use crate::domain::pattern::Budget;
use crate::domain::request::check_resource_fits;

impl CompiledGeneration {
    /// Checks the request's names before policy is evaluated. Resolution checked them too, but
    /// possibly against another generation, and a recorded input may be evaluated by any.
    pub(super) fn check_names(&self, input: &Input, budget: &Budget) -> Result<(), Refusal> {
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
                "the task, or one that it is part of, has ended",
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
            // Without this, a request for no rights would be permitted.
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
