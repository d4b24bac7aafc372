//! A blocked caller changes nothing and learns nothing: in every operation, under every selector
//! that matches it, and in a race within one batch. Also the right to lift a cutoff.

mod doors;
mod lifting;
mod race;

use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::domain::cutoff::{Selector, True};
use taskpass::domain::workload::{Identity, encode_value};
use taskpass::ids::CutoffId;
use taskpass::policy::AdminAction;

use crate::support::rig::{POLICIES, Rig};

/// The workload that is blocked. Policy gives it every right of an admin.
const WORKLOAD: &str = "agent:reports";

/// The rig's policies, plus policies that permit [`WORKLOAD`] and the workloads that it may bind
/// every action of admins.
fn policies() -> String {
    let actions: Vec<String> = AdminAction::ALL
        .iter()
        .map(|action| format!("Action::\"{}\"", action.as_str()))
        .collect();
    let actions = actions.join(", ");
    format!(
        "{POLICIES}\n@id(\"admin-by-name\") @description(\"an admin by its name\")\n\
         permit (principal == Workload::dev::\"dev:agent%3Areports\", action in [{actions}], \
         resource == Broker::\"taskpass\");\n\
         @id(\"admins\") @description(\"admins by their role\")\n\
         permit (principal in Role::\"admin\", action in [{actions}], \
         resource == Broker::\"taskpass\");\n\
         @id(\"bootstrap\") @description(\"the operator\")\n\
         permit (principal == Bootstrap::\"token\", action in [Action::\"liftCutoff\", \
         Action::\"revokeMany\"], resource == Broker::\"taskpass\");"
    )
}

fn identity(sub: &str) -> Identity {
    format!("dev:{}", encode_value(sub)).try_into().unwrap()
}

/// The selectors that match a caller with this `sub`.
fn selectors(sub: &str) -> [Selector; 3] {
    [
        Selector::Workload(identity(sub)),
        Selector::Attestor("dev".into()),
        Selector::All(True),
    ]
}

fn revocation(selector: Selector, block: BlockRequest) -> RevokeRequest {
    RevokeRequest {
        selector,
        block,
        deny_all_earlier_sessions: false,
        reason: "test".into(),
        // The matching callers hold no sessions yet.
        allow_unknown: true,
        dry_run: false,
    }
}

/// Commits a cutoff that blocks until it is lifted.
async fn block(rig: &Rig, selector: Selector) -> CutoffId {
    let asked = revocation(selector, BlockRequest::UntilLifted);
    let revoked = rig.broker.revocation.revoke_many(&rig.admin(), asked).await;
    revoked.unwrap().cutoff.unwrap().id
}
