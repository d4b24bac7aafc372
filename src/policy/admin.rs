//! Who may act on the broker itself: administrative rights are policies like all others.
//!
//! Each act is an action on `Broker::"taskpass"`. A workload acts under its attested identity and
//! its bound roles; the bootstrap token as `Bootstrap::"token"`; the admin token of the
//! development mode as `Bootstrap::"dev"`. The bootstrap token may always activate a generation and
//! manage admins, whatever policies say. What it may never do is not left to policies either: the schema does not offer it credentials, tasks or approvals, so that a policy which
//! gives it one does not load.

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
            /// All of them.
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
    /// See tasks of others.
    ListTasks = "listTasks",
    /// End a task of another.
    EndTask = "endTask",
    /// See sessions of others.
    ListSessions = "listSessions",
    /// End one session of another.
    RevokeSession = "revokeSession",
    /// End whatever a selector matches, and keep it from coming back.
    RevokeMany = "revokeMany",
    /// Let in again what a cutoff keeps out.
    LiftCutoff = "liftCutoff",
    /// Follow the stream of revocations.
    ReadRevocations = "readRevocations",
    /// Read decisions and ledger entries of others.
    ReadLedger = "readLedger",
    /// Ask about any resource's tokens.
    Introspect = "introspect",
    /// Ask whether any token allows an action.
    Authorize = "authorize",
    /// Approve another's request.
    Approve = "approve",
    /// Read what decides.
    ReadGeneration = "readGeneration",
    /// Change what decides.
    ActivateGeneration = "activateGeneration",
    /// Rotate and revoke the broker's keys.
    ManageKeys = "manageKeys",
    /// Register and remove workload keys.
    ManageWorkloads = "manageWorkloads",
    /// Bind and unbind roles.
    ManageAdmins = "manageAdmins",
    /// Accept what the clock shows although it is in doubt.
    AcceptTime = "acceptTime",
    /// Read metrics.
    ReadMetrics = "readMetrics",
}

impl AdminAction {
    /// The action of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|own| own.as_str() == name)
    }

    /// Whether the bootstrap token may do this whatever policies say: with these two it leads out of
    /// a generation by which nobody may do anything.
    #[must_use]
    pub fn always_open_to_bootstrap(self) -> bool {
        matches!(self, Self::ActivateGeneration | Self::ManageAdmins)
    }

    /// Whether the bootstrap token may ever be permitted this. Policies narrow it, except for what is
    /// always open to it.
    #[must_use]
    pub fn open_to_bootstrap(self) -> bool {
        self != Self::Approve
    }
}

/// Who wants to act on the broker.
#[derive(Clone, Copy, Debug)]
pub enum AdminPrincipal<'a> {
    /// The bearer of the bootstrap token.
    Bootstrap,
    /// The bearer of the development mode's admin token. Nothing else may build this.
    Dev,
    /// An attested workload with its bound roles.
    Workload {
        /// The caller.
        workload: &'a Workload,
        /// The roles bound to its identity.
        roles: &'a BTreeSet<String>,
    },
}
