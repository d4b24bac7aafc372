//! Who may do what to the broker.
//!
//! An administrator is an attested identity with a role that was bound to it; what the role may do
//! is Cedar policy like everything else. Beside that there are two tokens: the bootstrap token,
//! whose hash alone is configured and which is over a day after it was first seen or as soon as
//! another one is seen, and the development mode's, which exists in no other mode and lives as long
//! as its process.

use std::collections::{BTreeMap, BTreeSet};

use tracing::instrument;

use super::access::Unverified;
use super::decisions::DecisionContext;
use super::generations::Gone;
use super::{Broker, BrokerError};
use crate::attest::{AttestError, AttestFailure, Evidence, TokenScheme};
use crate::clock::Timestamp;
use crate::crypto::digest::digests_equal;
use crate::crypto::random::token_digest;
use crate::domain::limits::MAX_CLOCK_STEP_SECONDS;
use crate::domain::workload::{Identity, Instance, Workload};
use crate::ledger::clock_watch::ClockWatch;
use crate::ledger::entry::{AdminBindingChange, Entry};
use crate::policy::{AdminAction, AdminPrincipal};
use crate::store::meta::BootstrapToken;
use crate::store::{Store, StoreError};

/// The prefix of administrators' tokens.
pub const ADMIN_PREFIX: &str = "tpa_";

/// How long a bootstrap token is good after it was first seen.
pub const BOOTSTRAP_SECONDS: u64 = 86_400;

/// The tokens that are configured, by their digests.
#[derive(Clone, Debug, Default)]
pub struct AdminTokens {
    /// The bootstrap token's digest.
    pub bootstrap: Option<[u8; 32]>,
    /// The development token's digest.
    pub dev: Option<[u8; 32]>,
}

/// Why a bootstrap token is good no more by a clock that shows `now`, if it is not. `latest` is the
/// latest time that is known: of the clock, the newest entry and the horizon. There is no way back: a
/// token that is over stays over, whatever is configured afterwards.
#[must_use]
pub fn bootstrap_fault(
    seen: &BootstrapToken,
    now: Timestamp,
    latest: Timestamp,
) -> Option<&'static str> {
    let day = BOOTSTRAP_SECONDS;
    if seen.ended {
        Some(
            "it was ended: its day was over, or an admin accepted an earlier time; configure a new one",
        )
    } else if seen.replaced {
        Some(
            "another bootstrap token was configured after it, here or on another replica; configure \
             one new token on every replica",
        )
    } else if seen.first_seen > now.plus_seconds(MAX_CLOCK_STEP_SECONDS) {
        Some("it was first seen at a time that is ahead of our clock; configure a new one")
    } else if now >= seen.first_seen.plus_seconds(day) || latest >= seen.log_time.plus_seconds(day)
    {
        Some("its day is over; bind an admin, or configure a new one")
    } else {
        None
    }
}

/// The latest time that is known: of the clock, the newest entry and the horizon.
pub async fn latest_time(
    store: &Store,
    clock: &ClockWatch,
    now: Timestamp,
) -> Result<Timestamp, StoreError> {
    let horizon = store.horizon().await?;
    let known = [clock.newest(), horizon].into_iter().flatten();
    Ok(known.fold(now, Timestamp::max))
}

/// Why the bootstrap token with this digest is good no more, if it is not. One whose day has passed
/// by a clock that can be relied on is ended in the store.
pub async fn judge_bootstrap(
    store: &Store,
    clock: &ClockWatch,
    digest: &[u8; 32],
    now: Timestamp,
) -> Result<Option<&'static str>, StoreError> {
    // The store knows since when it is configured, and whether another replica was given another one
    // meanwhile.
    let Some(seen) = store.bootstrap_token(digest).await? else {
        return Ok(Some("the store does not know it"));
    };
    let latest = latest_time(store, clock, now).await?;
    let fault = bootstrap_fault(&seen, now, latest);
    if fault.is_some() && !seen.ended && !seen.replaced && clock.doubt().is_none() {
        let ahead = now.plus_seconds(MAX_CLOCK_STEP_SECONDS);
        store
            .end_bootstrap_tokens(now.minus_seconds(BOOTSTRAP_SECONDS), ahead)
            .await?;
    }
    Ok(fault)
}

/// A caller that was verified.
#[derive(Debug)]
pub struct Caller {
    who: Who,
}

#[derive(Debug)]
enum Who {
    Bootstrap,
    Dev,
    Handle,
    Workload {
        workload: Box<Workload>,
        roles: BTreeSet<String>,
    },
}

impl Caller {
    /// An attested workload, with the roles that admins bound to its identity.
    pub(super) fn workload(workload: Workload, roles: BTreeSet<String>) -> Self {
        let workload = Box::new(workload);
        Self {
            who: Who::Workload { workload, roles },
        }
    }

    /// The bearer of a task's handle, which has no rights beside that task.
    pub(super) fn by_handle() -> Self {
        Self { who: Who::Handle }
    }

    /// Whether it is the bearer of the bootstrap token.
    pub(super) fn is_bootstrap(&self) -> bool {
        matches!(self.who, Who::Bootstrap)
    }

    /// The identity, where there is one.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match &self.who {
            Who::Bootstrap | Who::Dev | Who::Handle => None,
            Who::Workload { workload, .. } => Some(&workload.identity),
        }
    }

    /// The name under which its acts are recorded.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.who {
            Who::Bootstrap => "bootstrap-token".into(),
            Who::Dev => "dev-admin-token".into(),
            Who::Handle => "handle".into(),
            Who::Workload { workload, .. } => workload.identity.to_string(),
        }
    }

    /// The roles that were bound to it; none for a token.
    pub(super) fn roles(&self) -> BTreeSet<String> {
        match &self.who {
            Who::Bootstrap | Who::Dev | Who::Handle => BTreeSet::new(),
            Who::Workload { roles, .. } => roles.clone(),
        }
    }

    /// Whether something of this identity and instance is the caller's own.
    #[must_use]
    pub fn owns(&self, identity: &Identity, instance: Option<&Instance>) -> bool {
        match &self.who {
            Who::Bootstrap | Who::Dev | Who::Handle => false,
            Who::Workload { workload, .. } => workload.is(identity, instance),
        }
    }
}

/// Roles that a refusal lists.
const SHOWN_ROLES: usize = 16;

impl Broker {
    /// The caller of an administrator's token.
    pub(super) async fn token_bearer(
        &self,
        token: &str,
        evidence: &Evidence,
        now: Timestamp,
    ) -> Result<Caller, BrokerError> {
        let refused = |error| self.refuse_evidence(evidence, AttestFailure::unattributed(error));
        let digest = token_digest(token);
        let tokens = &self.parts.admin_tokens;
        if tokens.dev.is_some_and(|own| digests_equal(&own, &digest)) {
            return Ok(Caller { who: Who::Dev });
        }
        let bootstrap = tokens.bootstrap.as_ref();
        if !bootstrap.is_some_and(|own| digests_equal(own, &digest)) {
            return Err(refused(AttestError::UnknownAdminToken));
        }
        match judge_bootstrap(self.store(), self.ledger().clock(), &digest, now).await? {
            None => Ok(Caller {
                who: Who::Bootstrap,
            }),
            Some(why) => Err(refused(AttestError::AdminTokenOver(why))),
        }
    }

    /// Notes that the configured bootstrap token is over once its day has passed, so that no clock
    /// that goes back gives it another.
    pub async fn end_bootstrap_token(&self, now: Timestamp) -> Result<(), BrokerError> {
        if let Some(digest) = &self.parts.admin_tokens.bootstrap {
            judge_bootstrap(self.store(), self.ledger().clock(), digest, now).await?;
        }
        Ok(())
    }

    /// Whether the caller may act on the broker in this way.
    pub fn may(&self, caller: &Caller, action: AdminAction) -> Result<bool, BrokerError> {
        let principal = match &caller.who {
            // While the clock is in doubt nobody else gets in: accepting the time depends on no policy.
            Who::Bootstrap
                if action == AdminAction::AcceptTime || action.always_open_to_bootstrap() =>
            {
                return Ok(true);
            }
            Who::Bootstrap => AdminPrincipal::Bootstrap,
            Who::Dev => AdminPrincipal::Dev,
            Who::Handle => return Ok(false),
            Who::Workload { workload, roles } => AdminPrincipal::Workload { workload, roles },
        };
        Ok(self.active()?.policy().may(principal, action)?)
    }

    /// The roles that admins bound to an identity.
    pub(super) async fn roles(&self, identity: &Identity) -> Result<BTreeSet<String>, BrokerError> {
        Ok(self.store().roles_of(identity.as_str()).await?)
    }

    /// Every bound identity with its roles.
    pub(super) async fn bound_roles(
        &self,
    ) -> Result<BTreeMap<String, BTreeSet<String>>, BrokerError> {
        let mut bound: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for binding in self.store().bound_roles().await? {
            bound
                .entry(binding.identity)
                .or_default()
                .insert(binding.role);
        }
        Ok(bound)
    }

    /// The caller's roles, where a policy that decides about tasks and credentials asks for any.
    /// Otherwise they are not read, which saves a read of each request, and that is recorded: none
    /// is not the same as no roles.
    pub(super) async fn roles_asked_for(
        &self,
        context: &DecisionContext<'_>,
    ) -> Result<Option<BTreeSet<String>>, BrokerError> {
        if context.active.policy().asks_for_roles() {
            return Ok(Some(self.roles(&context.workload.identity).await?));
        }
        Ok(None)
    }

    /// Gives a role to an identity, or takes it away.
    #[instrument(skip_all)]
    pub async fn bind_admin(
        &self,
        evidence: &Evidence,
        identity: Identity,
        role: String,
        bound: bool,
    ) -> Result<(), BrokerError> {
        let call = self.call(evidence);
        call.run(|unverified| self.bind_admin_by(unverified, identity.clone(), role.clone(), bound))
            .await
    }

    async fn bind_admin_by(
        &self,
        unverified: Unverified<'_>,
        identity: Identity,
        role: String,
        bound: bool,
    ) -> Result<(), BrokerError> {
        let admin = unverified.act_as(AdminAction::ManageAdmins).await?;
        if admin.caller().identity() == Some(&identity) {
            return Err(BrokerError::OwnBinding);
        }
        if !crate::policy::is_role(&role) {
            return Err(BrokerError::Invalid {
                pointer: "/role",
                detail: "a role is 1 to 64 of a-z, 0-9 and `-`".into(),
            });
        }
        if bound && !self.active()?.could_attest(&identity) {
            return Err(BrokerError::Invalid {
                pointer: "/workload",
                detail: format!(
                    "no attestor of the active generation gives the identity {identity}: an identity \
                     is `<attestor>:` and what the attestor's template makes of a token's claims; \
                     `taskpass attest check` shows it for a token"
                ),
            });
        }
        if bound {
            let active = self.active()?;
            if !active.policy().names_role(&role) {
                let mut named: Vec<&str> = active.policy().roles().take(SHOWN_ROLES).collect();
                if named.is_empty() {
                    named.push("none");
                }
                return Err(BrokerError::Invalid {
                    pointer: "/role",
                    detail: format!(
                        "no policy of the active generation names the role {role}, so that it would \
                         give nothing: correct it, or activate a policy that names it first; policies \
                         name: {}",
                        named.join(", ")
                    ),
                });
            }
        }
        // The bootstrap token can bind another one afterwards.
        if !bound && admin.caller().identity().is_some() {
            let (of, role) = (&identity, role.as_str());
            let gone = Gone::Role { of, role };
            self.check_successor_without(gone).await?;
        }
        let change = AdminBindingChange {
            identity,
            role,
            bound,
            by: admin.name(),
        };
        admin.record(Entry::AdminBinding(change)).await
    }

    /// The bindings, for admins.
    pub async fn admin_bindings(
        &self,
        evidence: &Evidence,
    ) -> Result<Vec<(String, String)>, BrokerError> {
        let call = self.call(evidence);
        call.run(|unverified| self.admin_bindings_by(unverified))
            .await
    }

    async fn admin_bindings_by(
        &self,
        unverified: Unverified<'_>,
    ) -> Result<Vec<(String, String)>, BrokerError> {
        unverified.read_as(AdminAction::ManageAdmins).await?;
        let bindings = self.store().bound_roles().await?;
        Ok(bindings
            .into_iter()
            .map(|binding| (binding.identity, binding.role))
            .collect())
    }

    /// Whether the caller may read metrics.
    pub async fn check_metrics_reader(&self, evidence: &Evidence) -> Result<(), BrokerError> {
        let call = self.call(evidence);
        call.run(|unverified| self.check_metrics_reader_by(unverified))
            .await
    }

    async fn check_metrics_reader_by(&self, unverified: Unverified<'_>) -> Result<(), BrokerError> {
        unverified.read_as(AdminAction::ReadMetrics).await?;
        Ok(())
    }
}

/// An administrator's token is bound to no key, so no proof can add to it: one that comes with a
/// proof was meant for something else.
pub(super) fn only_as_bearer(evidence: &Evidence) -> Result<(), AttestFailure> {
    if evidence.scheme == TokenScheme::Dpop || !evidence.dpop.is_empty() {
        let why = "an administrator's token is sent as `Bearer`, without a proof";
        return Err(AttestFailure::of_proof(AttestError::BadProof(why)));
    }
    Ok(())
}
