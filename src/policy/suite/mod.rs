//! Policy tests: files in the `tests` directory of a policy directory that state the expected
//! decisions.
//!
//! ```toml
//! [[credential]]
//! name = "reports may not write"
//! attestor = "dev"
//! identity = "dev:agent%3Areports"
//! claims = { sub = "agent:reports" }
//! resource = "orders-api"
//! actions = ["orders:read", "orders:write"]
//! task_type = "nightly-report"
//! expect = "deny"
//! code = "not-permitted"
//! allowed_actions = ["orders:read"]
//! ```
//!
//! `[[task]]` requests a task without a credential, `[[admin]]` an act on the broker. [`run`]
//! decides every case by the real policies and returns a [`Report`]; it never stops at a failure.
//!
//! A case with an unknown name is an error, not a denial: otherwise a test for a misspelt resource
//! would always pass. A suite without a refusal fails, because it would also pass with a policy
//! that permits everything. A file that cannot be parsed is a problem of the suite. The cases run
//! without attestation, admission, store and ledger, so limits that those enforce are not tested.
//! The command `policy test` calls this file.

mod cases;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use self::cases::{AdminCase, CredentialCase, Expected, TaskCase, TestFile, TokenPrincipal};
pub use self::report::{CaseReport, Report};
use super::admin::{AdminAction, AdminPrincipal};
use super::decide::Question;
use super::generation::CompiledGeneration;
use super::lint::is_role;
use super::mapping::TaskFacts;
use super::problem::PolicyProblem;
use crate::clock::Timestamp;
use crate::domain::action::ActionName;
use crate::domain::catalog::TaskType;
use crate::domain::decision::{Decision, Outcome};
use crate::domain::generation::PolicyFile;
use crate::domain::grant::AuthorizationDetail;
use crate::domain::kind::DetailType;
use crate::domain::request::{CredentialRequest, NewTask, TaskSelector};
use crate::domain::revocability::DEFAULT_READ_LEASE_SECONDS;
use crate::domain::trust::{AttestorSpec, ClaimType};
use crate::domain::workload::{ClaimValue, Identity, OneTime, Reuse, Workload};

/// The workload of a case.
struct CaseWorkload<'a> {
    attestor: &'a str,
    identity: &'a Identity,
    claims: &'a BTreeMap<String, ClaimValue>,
    roles: &'a BTreeSet<String>,
}

/// Runs the cases of all files. `now` is the instant of their decisions.
#[must_use]
pub fn run(generation: &CompiledGeneration, files: &[PolicyFile], now: Timestamp) -> Report {
    let mut run = Run {
        generation,
        now,
        report: Report::default(),
        determining: BTreeSet::new(),
        refusals: 0,
    };
    for file in files {
        match toml::from_str::<TestFile>(&file.text) {
            Ok(cases) => run.file(&file.name, &cases),
            Err(error) => {
                let offset = error.span().map_or(0, |span| span.start);
                let problem = PolicyProblem::at(file, offset, error.message(), "");
                run.report.problems.push(problem);
            }
        }
    }
    run.finish()
}

struct Run<'a> {
    generation: &'a CompiledGeneration,
    now: Timestamp,
    report: Report,
    determining: BTreeSet<String>,
    refusals: usize,
}

impl Run<'_> {
    fn file(&mut self, file: &str, cases: &TestFile) {
        for case in &cases.credential {
            let result = self.credential(case);
            self.note(file, &case.name, result);
        }
        for case in &cases.task {
            let result = self.task(case);
            self.note(file, &case.name, result);
        }
        for case in &cases.admin {
            let result = self.admin(case);
            self.note(file, &case.name, result);
        }
    }

    fn note(&mut self, file: &str, name: &str, result: Result<Vec<String>, String>) {
        self.report.cases.push(CaseReport {
            file: file.to_owned(),
            name: name.to_owned(),
            failures: result.unwrap_or_else(|error| vec![error]),
        });
    }

    fn finish(mut self) -> Report {
        let problem =
            |message: &str, remedy: &str| PolicyProblem::of_file("policy tests", message, remedy);
        if self.report.cases.is_empty() {
            let nothing = problem(
                "there is no case",
                "write cases for requests that must be refused",
            );
            self.report.problems.push(nothing);
        } else if self.refusals == 0 {
            self.report.problems.push(problem(
                "no case is refused",
                "add a case for a request that must be refused: this suite would pass with \
                everything permitted",
            ));
        }
        self.report.untested = self
            .generation
            .policy_ids()
            .filter(|id| !self.determining.contains(*id))
            .map(str::to_owned)
            .collect();
        self.report
    }

    /// The request of a case, in the form that the resource's kind uses.
    fn detail(&self, case: &CredentialCase) -> AuthorizationDetail {
        let resource = self.generation.catalog().resource(&case.resource);
        AuthorizationDetail::of_type(
            resource.map_or(DetailType::Api, |resource| resource.kind.detail_type()),
            case.actions.clone(),
            case.locations.clone(),
            case.region.clone(),
        )
    }

    fn credential(&mut self, case: &CredentialCase) -> Result<Vec<String>, String> {
        let workload = self.workload(&CaseWorkload {
            attestor: &case.attestor,
            identity: &case.identity,
            claims: &case.claims,
            roles: &case.roles,
        })?;
        let task_type = self.task_type(&case.task_type)?;
        let detail = self.detail(case);
        let request = CredentialRequest {
            task: TaskSelector::Open(NewTask {
                task_type: case.task_type.clone(),
                purpose: None,
                parent: None,
                deadline_seconds: case.deadline_seconds,
                heartbeat_seconds: task_type.max_heartbeat_seconds,
            }),
            resource: case.resource.clone().into(),
            grant: vec![detail]
                .try_into()
                .map_err(|e: crate::domain::grant::InvalidGrant| e.to_string())?,
            ttl_seconds: case.ttl_seconds,
            retry: None,
        };
        let ask = match self.generation.catalog().resolve(request) {
            Ok(ask) => ask,
            Err(refusal) if names_nothing(refusal.code) => return Err(refusal.detail),
            Err(refusal) => {
                self.refusals += 1;
                let mut failures = Vec::new();
                compare(
                    "outcome",
                    case.expect.as_str(),
                    refusal.outcome().as_str(),
                    &mut failures,
                );
                if let Some(code) = &case.code {
                    compare("code", code, refusal.code.as_str(), &mut failures);
                }
                let offered = refusal.allowed.and_then(|a| a.max_ttl_seconds);
                if case.max_ttl_seconds.is_some() {
                    compare_option(
                        "max_ttl_seconds",
                        case.max_ttl_seconds,
                        offered,
                        &mut failures,
                    );
                }
                return Ok(failures);
            }
        };
        let decision = self.generation.decide(&Question {
            workload: &workload,
            roles: Some(&case.roles),
            ask: &ask,
            revocability: case
                .revocability
                .unwrap_or_else(|| ask.resource.kind.revocability(DEFAULT_READ_LEASE_SECONDS)),
            task: facts(&task_type, case.depth, case.deadline_seconds, case.opens),
            bounds: None,
            now: self.now,
        });
        let mut failures = self.compare_decision(
            &decision,
            case.expect,
            case.code.as_deref(),
            case.policies.as_ref(),
        )?;
        if case.granted_ttl_seconds.is_some() {
            let granted = decision.verdict.as_ref().ok().map(|p| p.ttl_seconds);
            let wanted = case.granted_ttl_seconds;
            compare_option("granted_ttl_seconds", wanted, granted, &mut failures);
        }
        let allowed = decision.verdict.err().and_then(|refusal| refusal.allowed);
        if case.max_ttl_seconds.is_some() {
            let offered = allowed.as_ref().and_then(|a| a.max_ttl_seconds);
            compare_option(
                "max_ttl_seconds",
                case.max_ttl_seconds,
                offered,
                &mut failures,
            );
        }
        if let Some(wanted) = &case.allowed_actions {
            let offered: BTreeSet<ActionName> = allowed
                .and_then(|allowed| allowed.authorization_details)
                .unwrap_or_default()
                .iter()
                .flat_map(|detail| detail.actions().iter().cloned())
                .collect();
            compare(
                "allowed_actions",
                &words(wanted),
                &words(&offered),
                &mut failures,
            );
        }
        Ok(failures)
    }

    fn task(&mut self, case: &TaskCase) -> Result<Vec<String>, String> {
        let workload = self.workload(&CaseWorkload {
            attestor: &case.attestor,
            identity: &case.identity,
            claims: &case.claims,
            roles: &case.roles,
        })?;
        let task_type = self.task_type(&case.task_type)?;
        let facts = facts(&task_type, case.depth, case.deadline_seconds, true);
        let decision =
            self.generation
                .decide_open_task(&workload, Some(&case.roles), facts, self.now);
        self.compare_decision(
            &decision,
            case.expect,
            case.code.as_deref(),
            case.policies.as_ref(),
        )
    }

    fn admin(&mut self, case: &AdminCase) -> Result<Vec<String>, String> {
        let workload = match (case.token, &case.attestor, &case.identity) {
            (Some(_), None, None) => None,
            (None, Some(attestor), Some(identity)) => Some(self.workload(&CaseWorkload {
                attestor,
                identity,
                claims: &case.claims,
                roles: &case.roles,
            })?),
            _ => return Err("name either `token`, or `attestor` and `identity`".into()),
        };
        if case.actions.is_empty() {
            return Err("name at least one act in `actions`".into());
        }
        let mut failures = Vec::new();
        for name in &case.actions {
            let action = AdminAction::parse(name)
                .ok_or_else(|| format!("there is no act `{name}` on the broker"))?;
            let who = match (&workload, case.token) {
                (Some(workload), _) => AdminPrincipal::Workload {
                    workload,
                    roles: &case.roles,
                },
                (None, Some(TokenPrincipal::Dev)) => AdminPrincipal::Dev,
                (None, _) => AdminPrincipal::Bootstrap,
            };
            let permitted = self
                .generation
                .may_by(who, action)
                .map_err(|error| error.to_string())?;
            if permitted.is_empty() {
                self.refusals += 1;
            }
            if permitted.is_empty() == (case.expect == Expected::Permit) {
                let really = if permitted.is_empty() {
                    "denied"
                } else {
                    "permitted"
                };
                failures.push(format!("{name} is {really}"));
            }
            self.determining.extend(permitted);
        }
        Ok(failures)
    }

    fn compare_decision(
        &mut self,
        decision: &Decision,
        expect: Outcome,
        code: Option<&str>,
        policies: Option<&BTreeSet<String>>,
    ) -> Result<Vec<String>, String> {
        let mut failures = Vec::new();
        if decision.verdict.is_err() {
            self.refusals += 1;
        }
        compare(
            "outcome",
            expect.as_str(),
            decision.outcome().as_str(),
            &mut failures,
        );
        if let Err(refusal) = &decision.verdict {
            if names_nothing(refusal.code) {
                return Err(refusal.detail.clone());
            }
            if !failures.is_empty() {
                failures.push(format!("because: {}", refusal.detail));
            }
        }
        if let Some(code) = code {
            let really = match &decision.verdict {
                Ok(_) => "none",
                Err(refusal) => refusal.code.as_str(),
            };
            compare("code", code, really, &mut failures);
        }
        if let Some(wanted) = policies {
            if let Some(unknown) = wanted
                .iter()
                .find(|id| self.generation.policy_ids().all(|own| own != id.as_str()))
            {
                return Err(format!("there is no policy `{unknown}`"));
            }
            compare(
                "policies",
                &words(wanted),
                &words(&decision.policies),
                &mut failures,
            );
        }
        self.determining.extend(decision.policies.iter().cloned());
        Ok(failures)
    }

    fn task_type(&self, name: &str) -> Result<Arc<TaskType>, String> {
        self.generation
            .catalog()
            .task_type(name)
            .cloned()
            .ok_or_else(|| format!("there is no task type `{name}`"))
    }

    /// The workload of a case, checked against the claims that its attestor declares.
    fn workload(&self, who: &CaseWorkload<'_>) -> Result<Workload, String> {
        let spec = self
            .generation
            .attestors()
            .iter()
            .find(|spec| spec.name() == who.attestor)
            .ok_or_else(|| format!("there is no attestor `{}`", who.attestor))?;
        let prefix = format!("{}:", who.attestor);
        if !who.identity.as_str().starts_with(&prefix) {
            return Err(format!(
                "`{}` is no identity of attestor `{}`: it would begin with `{prefix}`",
                who.identity, who.attestor
            ));
        }
        if let Some(role) = who.roles.iter().find(|role| !is_role(role)) {
            return Err(format!("`{role}` cannot name a role"));
        }
        check_claims(spec, who.claims)?;
        Ok(Workload {
            attestor: who.attestor.to_owned(),
            identity: who.identity.clone(),
            instance: None,
            claims: who.claims.clone(),
            issued_at: crate::clock::Timestamp::EPOCH,
            reuse: Reuse::Once,
            evidence: OneTime {
                must_be_new: false,
                key: [0; 32],
                binding: None,
                issued_at: Timestamp::EPOCH,
                expires_at: Timestamp::MAX,
            },
            proofs: Vec::new(),
            key: None,
        })
    }
}

fn check_claims(spec: &AttestorSpec, claims: &BTreeMap<String, ClaimValue>) -> Result<(), String> {
    let declared: BTreeMap<&str, _> = spec.visible_claims().collect();
    for (name, value) in claims {
        let claim = declared.get(name.as_str()).ok_or_else(|| {
            format!(
                "attestor `{}` declares no claim `{name}` for policies",
                spec.name()
            )
        })?;
        let fits = matches!(
            (claim.kind, value),
            (ClaimType::String, ClaimValue::String(_))
                | (ClaimType::Long, ClaimValue::Long(_))
                | (ClaimType::Bool, ClaimValue::Bool(_))
                | (ClaimType::Set, ClaimValue::Set(_))
        );
        if !fits {
            return Err(format!("the claim `{name}` has another type"));
        }
    }
    let missing = declared
        .iter()
        .find(|(name, claim)| !claim.optional && !claims.contains_key(**name));
    match missing {
        Some((name, _)) => Err(format!("the claim `{name}` is missing")),
        None => Ok(()),
    }
}

fn facts(task_type: &TaskType, depth: u8, deadline: Option<u64>, opens: bool) -> TaskFacts {
    TaskFacts {
        task_type: task_type.name.clone(),
        depth,
        deadline_seconds_left: deadline.unwrap_or(task_type.max_deadline_seconds),
        has_parent: depth > 1,
        opens,
    }
}

/// Refusals that indicate a mistake in the case, not a decision about the workload.
fn names_nothing(code: crate::domain::decision::RefusalCode) -> bool {
    use crate::domain::decision::RefusalCode as Code;
    matches!(
        code,
        Code::UnknownResource | Code::UnknownAction | Code::UnknownLocation | Code::UnknownTaskType
    )
}

fn words<'a, T: fmt::Display + 'a>(items: impl IntoIterator<Item = &'a T>) -> String {
    let items: Vec<String> = items.into_iter().map(ToString::to_string).collect();
    format!("[{}]", items.join(", "))
}

fn compare(what: &str, wanted: &str, really: &str, failures: &mut Vec<String>) {
    if wanted != really {
        failures.push(format!("{what}: expected {wanted}, got {really}"));
    }
}

fn compare_option(
    what: &str,
    wanted: Option<u64>,
    really: Option<u64>,
    failures: &mut Vec<String>,
) {
    let show = |value: Option<u64>| value.map_or("none".to_owned(), |value| value.to_string());
    compare(what, &show(wanted), &show(really), failures);
}
