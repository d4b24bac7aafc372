//! The use cases of the broker, each from the evidence of a call to its answer.
//!
//! Each use case is a method of a small service. All services share one [`core::Core`]:
//!
//! - [`issuance`] decides on requests and makes credentials, and [`tasks`] opens and ends tasks;
//! - [`verification`] reports whether a credential is valid now, and [`revocation`] ends it;
//! - [`administration`] and [`signing_keys`] hold the acts of admins, and [`health`] decides
//!   readiness;
//! - [`access`] authenticates callers and authorizes their acts: every call goes through it. Below
//!   it are [`generations`] and [`keys`], which know no callers.
//!
//! A service uses another one only as the table in `scripts/check-imports` allows. [`Broker`]
//! bundles the services for the interfaces, such as the HTTP server. Interfaces call only these
//! services. This module contains no HTTP and no SQL.
//!
//! Every service returns a [`BrokerError`]. If store, ledger, policy or keys cannot be relied on,
//! it is `FailClosed`, and nothing is released. `app` builds the broker from [`BrokerParts`].

pub mod access;
pub mod active;
pub mod administration;
pub mod check;
pub mod core;
pub mod error;
pub mod fail_closed;
pub mod generations;
pub mod health;
mod horizon;
pub mod issuance;
pub mod keys;
mod minters;
pub mod revocation;
pub mod signing_keys;
pub mod tasks;
pub mod verification;

use std::sync::Arc;

use self::access::Access;
use self::access::rate::IdentityLimiter;
use self::access::tokens::AdminTokens;
use self::administration::Administration;
use self::administration::succession::LogSuccession;
use self::core::{Core, CoreParts};
pub use self::error::{BrokerError, Denied, Exceeded};
use self::generations::{AttestationTrust, Generations};
use self::health::Health;
use self::issuance::Issuance;
use self::keys::{KeyPolicy, Keys, KeysParts};
use self::revocation::Revocation;
use self::revocation::deny_lists::DenyLists;
use self::revocation::orphans::OrphanSearch;
use self::signing_keys::SigningKeys;
use self::tasks::Tasks;
use self::verification::{StatementKeys, Verification};
use crate::attest::nonce::DpopNonces;
use crate::clock::SharedClock;
use crate::crypto::digest::Mac;
use crate::crypto::loaded::LoadedKeys;
use crate::crypto::sealer::Sealer;
use crate::ledger::Ledger;
use crate::ledger::entry::ANY_REQUEST;
use crate::metrics::Metrics;
use crate::mint::Minters;
use crate::policy::AdminAction;
use crate::shutdown::Shutdown;
use crate::store::Store;

/// The parts of a broker.
#[expect(missing_docs, reason = "the other names say it all")]
pub struct BrokerParts {
    /// The broker's base URL, as its clients know it.
    pub issuer: String,
    /// The name of this process in leases.
    pub replica: String,
    pub store: Store,
    pub ledger: Ledger,
    pub clock: SharedClock,
    pub metrics: Arc<Metrics>,
    pub minters: Minters,
    /// The keys of access tokens, shared with their minter.
    pub access_keys: LoadedKeys,
    /// The keys with which the broker attests to AWS, shared with their minter.
    pub federation_keys: LoadedKeys,
    /// The algorithm and the rotation schedule of the broker's keys.
    pub key_policy: KeyPolicy,
    /// Seals the broker's own keys.
    pub sealer: Arc<dyn Sealer>,
    /// Authenticates the broker's rows in the store.
    pub mac: Mac,
    /// The inputs of attestors that their specification does not hold.
    pub trust: AttestationTrust,
    /// The admins' tokens that are configured, not issued.
    pub admin_tokens: AdminTokens,
    /// Limits the requests of each identity.
    pub identities: IdentityLimiter,
    /// Tracks work that a shutdown waits for.
    pub shutdown: Shutdown,
}

/// The services of a broker.
#[expect(missing_docs, reason = "each field is documented at its type")]
pub struct Broker {
    pub core: Core,
    pub keys: Arc<Keys>,
    pub generations: Arc<Generations>,
    pub access: Arc<Access>,
    pub verification: Arc<Verification>,
    pub revocation: Arc<Revocation>,
    pub issuance: Arc<Issuance>,
    pub tasks: Arc<Tasks>,
    pub signing_keys: Arc<SigningKeys>,
    pub administration: Arc<Administration>,
    pub succession: LogSuccession,
    pub health: Health,
}

impl Broker {
    /// A broker without a generation. It decides nothing until [`Generations::follow`] has loaded
    /// one.
    #[must_use]
    #[expect(
        clippy::too_many_lines,
        reason = "the services of a broker, one after the other"
    )]
    pub fn new(parts: BrokerParts) -> Arc<Self> {
        let acts = AdminAction::ALL.iter().map(|action| action.as_str());
        parts.metrics.acts_begin(acts.chain([ANY_REQUEST]));
        for minter in parts.minters.kinds() {
            parts.metrics.minter_begins(minter.as_str());
        }
        let BrokerParts {
            minters,
            access_keys,
            key_policy,
            sealer,
            mac,
            ..
        } = parts;
        let core = Core::new(CoreParts {
            issuer: parts.issuer,
            replica: parts.replica,
            store: parts.store,
            ledger: parts.ledger,
            clock: parts.clock,
            metrics: parts.metrics,
            shutdown: parts.shutdown,
        });
        let statement_keys = StatementKeys {
            keys: Arc::clone(&access_keys),
            algorithm: key_policy.algorithm,
            schedule: key_policy.schedule,
        };
        let keys = Arc::new(Keys::new(
            core.clone(),
            KeysParts {
                minters: minters.clone(),
                sealer: Arc::clone(&sealer),
                mac: mac.clone(),
                policy: key_policy,
                access_tokens: access_keys,
                federation: parts.federation_keys,
            },
        ));
        let generations = Arc::new(Generations::new(
            core.clone(),
            Arc::clone(&keys),
            mac.clone(),
            parts.trust,
        ));
        let access = Arc::new(Access::new(
            core.clone(),
            Arc::clone(&generations),
            parts.admin_tokens,
            parts.identities,
            DpopNonces::new(mac.clone()),
        ));
        let verification = Arc::new(Verification::new(
            core.clone(),
            Arc::clone(&access),
            statement_keys,
        ));
        let deny_lists = Arc::new(DenyLists::new(core.clone(), minters.clone()));
        let orphan_search = Arc::new(OrphanSearch::default());
        let revocation = Arc::new(Revocation::new(
            core.clone(),
            Arc::clone(&access),
            Arc::clone(&verification),
            Arc::clone(&deny_lists),
            Arc::clone(&orphan_search),
        ));
        let issuance = Arc::new(Issuance::new(
            core.clone(),
            Arc::clone(&access),
            minters.clone(),
            deny_lists,
            orphan_search,
        ));
        let tasks = Arc::new(Tasks::new(
            core.clone(),
            Arc::clone(&access),
            Arc::clone(&issuance),
        ));
        let administration = Arc::new(Administration::new(
            core.clone(),
            Arc::clone(&access),
            Arc::clone(&generations),
        ));
        let health = Health::new(
            core.clone(),
            Arc::clone(&generations),
            Arc::clone(&keys),
            minters.clone(),
        );
        let succession = LogSuccession::new(
            core.clone(),
            Arc::clone(&administration),
            minters.clone(),
            mac.clone(),
        );
        let signing_keys = Arc::new(SigningKeys::new(
            core.clone(),
            Arc::clone(&access),
            Arc::clone(&keys),
            minters,
            sealer,
            mac,
        ));
        Arc::new(Self {
            core,
            keys,
            generations,
            access,
            verification,
            revocation,
            issuance,
            tasks,
            signing_keys,
            administration,
            succession,
            health,
        })
    }
}

#[cfg(test)]
mod tests;
