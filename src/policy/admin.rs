//! Rights to act on the broker itself. Policies grant them like all other rights.
//!
//! [`AdminAction`] lists the acts, and [`AdminPrincipal`] is the party that wants to act. Each act
//! is an action on `Broker::"taskpass"`. A workload acts under its attested identity and its bound
//! roles, the bearer of the bootstrap token as `Bootstrap::"token"`, and the bearer of the
//! development mode's admin token as `Bootstrap::"dev"`.
//!
//! Policies cannot take two acts from the bootstrap token: activating a generation and managing
//! admins. Policies cannot give it credentials, tasks or approvals: the schema does not offer it
//! these actions, so a policy that grants one does not load.
//!
//! This file decides nothing and returns no errors; an unknown name is `None`. `super::decide`
//! answers whether a principal may act, and `broker::access` enforces the answer.

use std::collections::BTreeSet;

use crate::domain::workload::Workload;

macro_rules! admin_actions {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        /// An act on the broker itself.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum AdminAction {
            $($(#[$doc])* $variant,)+
        }

        impl AdminAction {
            /// Every act.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name of the action in policies.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

admin_actions! {
    /// List and read the tasks of other workloads.
    ListTasks = "listTasks",
    /// End a task of another workload.
    EndTask = "endTask",
    /// List and read the sessions of other workloads.
    ListSessions = "listSessions",
    /// End one session of another workload.
    RevokeSession = "revokeSession",
    /// End every task and session that a selector matches, and block new ones by a cutoff.
    RevokeMany = "revokeMany",
    /// Lift a cutoff, so that its selector is admitted again.
    LiftCutoff = "liftCutoff",
    /// Follow the stream of revocations.
    ReadRevocations = "readRevocations",
    /// Read decisions and ledger entries about other workloads.
    ReadLedger = "readLedger",
    /// Introspect the tokens of any resource.
    Introspect = "introspect",
    /// Ask whether any token allows an action.
    Authorize = "authorize",
    /// Approve the request of another workload.
    Approve = "approve",
    /// Read the active generation.
    ReadGeneration = "readGeneration",
    /// Activate a generation, which then decides.
    ActivateGeneration = "activateGeneration",
    /// Rotate and revoke the broker's keys.
    ManageKeys = "manageKeys",
    /// Register and remove workload keys.
    ManageWorkloads = "manageWorkloads",
    /// Bind and unbind roles.
    ManageAdmins = "manageAdmins",
    /// Accept the time that the broker's clock shows although the broker distrusts it.
    AcceptTime = "acceptTime",
    /// Read the broker's metrics.
    ReadMetrics = "readMetrics",
}

impl AdminAction {
    /// The act of this name; `None` if no act has it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|own| own.as_str() == name)
    }

    /// Whether policies cannot refuse this act to the bootstrap token. With these two acts an
    /// operator can leave a generation that permits nothing to any admin.
    #[must_use]
    pub fn always_open_to_bootstrap(self) -> bool {
        matches!(self, Self::ActivateGeneration | Self::ManageAdmins)
    }

    /// Whether policies can permit this act to the bootstrap token. Acts for which
    /// [`Self::always_open_to_bootstrap`] holds need no policy.
    #[must_use]
    pub fn open_to_bootstrap(self) -> bool {
        self != Self::Approve
    }
}

/// The principal of an act on the broker.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the other names say it all")]
pub enum AdminPrincipal<'a> {
    /// The bearer of the bootstrap token.
    Bootstrap,
    /// The bearer of the development mode's admin token. Only the development mode constructs this.
    Dev,
    /// An attested workload with its bound roles.
    Workload {
        workload: &'a Workload,
        /// The roles bound to its identity.
        roles: &'a BTreeSet<String>,
    },
}
