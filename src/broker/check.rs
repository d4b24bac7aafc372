//! Checks whether a generation can decide on a replica. `serve --check`, `serve`, `policy check`
//! and activation all use this check.
//!
//! `check_generation` does the check and returns a `UsableGeneration`: the compiled policies and
//! the attestors. `Unfit` says why a generation cannot decide. The checks, in order: endpoints and
//! roles of this replica, attestors, policies, dates of observing policies, verifiers of resources,
//! and resources that give the same token. The first check that fails ends the whole.
//!
//! Failures: an `Unfit` with a stable `kind` and a JSON pointer to the faulty part. Policy problems
//! come as a list, all others one at a time. `Unfit::LockOut` and `Unfit::Unchecked` are not made
//! here, but by `access::successors` and `broker::generations`. It reads no store and knows no
//! callers. `broker::generations` and `app` call it; it calls `endpoints`, `attest` and
//! `policy`. It takes much CPU time: callers run it on a blocking thread.

use std::collections::HashMap;
use std::sync::Arc;

use crate::attest::{AttestContext, AttestorConfigError, Attestors};
use crate::clock::Timestamp;
use crate::domain::action::ActionName;
use crate::domain::catalog::Resource;
use crate::domain::generation::Generation;
use crate::domain::kind::api::Verification;
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::Identity;
use crate::endpoints::UnfitEndpoint;
use crate::policy::{AdminAction, CompiledGeneration, PolicyProblem};

macro_rules! kinds {
    ($type:ident { $($pattern:pat => $name:literal),+ $(,)? }) => {
        impl $type {
            /// All values of [`Self::kind`].
            pub const KINDS: &'static [&'static str] = &[$($name),+];

            /// A stable name of the kind of fault.
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self {
                    $($pattern => $name,)+
                }
            }
        }
    };
}

/// Why a generation cannot decide.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// A policy, resource or task type is invalid.
    #[error("{}", lines(.0))]
    Policy(Vec<PolicyProblem>),
    /// A policy would only observe for longer than is allowed.
    #[error("{}", lines(.0))]
    Late(Vec<PolicyProblem>),
    /// An attestor is invalid.
    #[error("{0}")]
    Attestor(AttestorConfigError),
    /// The generation names an endpoint that this replica does not have or has for another use, or
    /// a role that this replica does not assume with the AWS credentials of its host.
    #[error("`{pointer}`: {unfit}")]
    Endpoint {
        /// A JSON pointer to the name in the generation.
        pointer: String,
        /// Why it cannot be used.
        unfit: UnfitEndpoint,
    },
    /// Two resources of kind `jwt` give tokens for the same action at the same location.
    #[error(
        "resource `{resource}`: `{other}` has the same audience and also gives tokens for the \
         action `{action}` at {location}: a workload that policy refuses one resource could request \
         the other; give each its own audience, or actions and locations that do not overlap"
    )]
    #[expect(missing_docs, reason = "the other names say it all")]
    Overlap {
        resource: String,
        /// The name of the other resource.
        other: String,
        /// An action of both.
        action: String,
        /// A location of both.
        location: String,
    },
    /// A resource names a verifier whose identity no attestor can give.
    #[error(
        "resource `{resource}`: no attestor gives the identity `{verifier}` in `verifiers`; write \
         ATTESTOR:NAME, with one of the attestors ({attestors}) and a name that its `identity` can \
         give"
    )]
    #[expect(missing_docs, reason = "the other names say it all")]
    Verifier {
        resource: String,
        verifier: Identity,
        /// The names of the attestors, separated by commas.
        attestors: String,
    },
    /// A resource's tokens are verified by introspection, and no identity may introspect them.
    #[error(
        "resource `{resource}`: verification is `introspection`, but no identity may introspect \
         its tokens; name the identity of its server in `verifiers`, or permit \
         Action::\"introspect\" in a policy"
    )]
    #[expect(missing_docs, reason = "the names say it all")]
    NoVerifier { resource: String },
    /// Under this generation no bound identity could activate the next one.
    #[error(
        "none of the {bound} bound identities could activate the next generation by its roles \
         alone, without any claim; permit Action::\"activateGeneration\" to one of their roles, as \
         policies/admin.cedar does, keep the attestor of one of them, or first bind another \
         identity"
    )]
    LockOut {
        /// The number of identities that are bound to any role.
        bound: usize,
    },
    /// The check itself ended early.
    #[error("the generation could not be checked: {0}; try again")]
    Unchecked(String),
}

kinds!(Unfit {
    Self::Policy(_) => "policy",
    Self::Late(_) => "late",
    Self::Attestor(_) => "attestor",
    Self::Endpoint { .. } => "endpoint",
    Self::Overlap { .. } => "overlap",
    Self::Verifier { .. } => "verifier",
    Self::NoVerifier { .. } => "no_verifier",
    Self::LockOut { .. } => "lock_out",
    Self::Unchecked(_) => "unchecked",
});

fn lines(problems: &[PolicyProblem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

impl Unfit {
    /// A JSON pointer to the faulty part of the generation.
    #[must_use]
    pub fn pointer(&self) -> &str {
        match self {
            Self::Attestor(_) => "/attestors",
            Self::Endpoint { pointer, .. } => pointer,
            Self::Overlap { .. } | Self::Verifier { .. } | Self::NoVerifier { .. } => "/resources",
            Self::Policy(_) | Self::Late(_) | Self::LockOut { .. } => "/policies",
            Self::Unchecked(_) => "",
        }
    }

    /// Converts the fault into problems.
    #[must_use]
    pub fn into_problems(self) -> Vec<PolicyProblem> {
        match self {
            Self::Policy(problems) | Self::Late(problems) => problems,
            Self::Endpoint { pointer, unfit } => {
                vec![PolicyProblem::of_file(
                    pointer,
                    unfit.problem(),
                    unfit.remedy(),
                )]
            }
            other => {
                let part = other.pointer().trim_start_matches('/').to_owned();
                vec![PolicyProblem::of_file(part, other.to_string(), "")]
            }
        }
    }
}

/// A generation that can decide.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct UsableGeneration {
    pub compiled: CompiledGeneration,
    pub attestors: Attestors,
}

/// Checks everything in a generation that can be checked without the broker's store. `context` is
/// the replica's: its issuer, its endpoints, and whether it is in development mode. `at` is the
/// instant of an activation, at which the dates of policies that only observe are checked. It is
/// `None` for a generation that is already active.
///
/// The check takes milliseconds to seconds of CPU time: do not call it on async threads.
pub fn check_generation(
    generation: &Generation,
    context: AttestContext,
    at: Option<Timestamp>,
) -> Result<UsableGeneration, Unfit> {
    let endpoints = &context.endpoints;
    endpoints
        .check(&generation.endpoints())
        .map_err(|(pointer, unfit)| Unfit::Endpoint { pointer, unfit })?;
    for (pointer, role) in generation.roles() {
        let allowed = endpoints.check_role(role);
        allowed.map_err(|unfit| Unfit::Endpoint { pointer, unfit })?;
    }
    let own_audiences = own_audiences(&generation.attestors, &context);
    let attestors = Attestors::new(&generation.attestors, context).map_err(Unfit::Attestor)?;
    let compiled =
        CompiledGeneration::compile(generation, &own_audiences).map_err(Unfit::Policy)?;
    if let Some(at) = at {
        let dates = compiled.check_dates(&generation.policies, at);
        dates.map_err(Unfit::Late)?;
    }
    check_verifiers(&compiled, &attestors)?;
    check_overlaps(&compiled)?;
    Ok(UsableGeneration {
        compiled,
        attestors,
    })
}

/// The audiences that name this broker: the replica's own, and those of these attestors.
fn own_audiences(attestors: &[AttestorSpec], context: &AttestContext) -> Vec<String> {
    let of_attestors = attestors.iter().filter_map(AttestorSpec::audience);
    let mut all: Vec<String> = of_attestors.map(str::to_owned).collect();
    all.push(context.own_issuer.clone());
    all.extend(context.own_issuers.iter().cloned());
    all.sort();
    all.dedup();
    all
}

fn check_verifiers(compiled: &CompiledGeneration, attestors: &Attestors) -> Result<(), Unfit> {
    let named = |verifier: &Identity| {
        let attestor = verifier.as_str().split_once(':');
        attestor.is_some_and(|(attestor, _)| attestors.could_attest(attestor, verifier))
    };
    for resource in compiled.catalog().resources() {
        let Some(api) = resource.kind.api() else {
            continue;
        };
        if let Some(verifier) = api.verifiers.iter().find(|own| !named(own)) {
            let attestors = compiled.attestors().iter().map(AttestorSpec::name);
            return Err(Unfit::Verifier {
                resource: resource.name.clone(),
                verifier: verifier.clone(),
                attestors: attestors.collect::<Vec<_>>().join(", "),
            });
        }
        if api.verification == Verification::Introspection
            && api.verifiers.is_empty()
            && !compiled.could_permit(AdminAction::Introspect)
        {
            return Err(Unfit::NoVerifier {
                resource: resource.name.clone(),
            });
        }
    }
    Ok(())
}

/// Refuses two resources that give the same token. A token carries its audience, actions and
/// locations, but not the name of its resource. A workload could therefore evade a policy for one
/// resource by a request for the other.
fn check_overlaps(compiled: &CompiledGeneration) -> Result<(), Unfit> {
    // For each audience and action: its locations, each with the name of its resource.
    let mut taken = HashMap::<(&str, &str), HashMap<&str, &str>>::new();
    let gives_tokens = |own: &&Arc<Resource>| own.kind.minter().makes_access_tokens();
    let overlap = |resource: &Resource, other: &str, action: &ActionName, location: &str| {
        Err(Unfit::Overlap {
            resource: resource.name.clone(),
            other: other.to_owned(),
            action: action.to_string(),
            location: location.to_owned(),
        })
    };
    for resource in compiled.catalog().resources().filter(gives_tokens) {
        let audience = resource.audience().trim_end_matches('/');
        for action in &resource.actions {
            let known = taken.entry((audience, action.as_str())).or_default();
            for location in &resource.locations {
                match known.insert(location.as_str(), &resource.name) {
                    Some(other) if other != resource.name => {
                        return overlap(resource, other, action, location.as_str());
                    }
                    _ => {}
                }
            }
        }
    }
    for resource in compiled.catalog().resources().filter(gives_tokens) {
        let audience = resource.audience().trim_end_matches('/');
        for action in &resource.actions {
            let Some(known) = taken.get(&(audience, action.as_str())) else {
                continue;
            };
            for location in &resource.locations {
                let mut parent = location.as_str();
                while let Some((above, _)) = parent.rsplit_once('/') {
                    parent = above;
                    match known.get(parent) {
                        Some(other) if *other != resource.name => {
                            return overlap(resource, other, action, location.as_str());
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    Ok(())
}
