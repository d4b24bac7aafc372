//! The laws of the design, each tested on both stores by attempts to break it.

mod issuance;
mod log;
mod revocation;
mod secrets;
mod tasks;

use std::sync::Arc;

use secrecy::ExposeSecret;
use serde_json::json;
use taskpass::attest::Evidence;
use taskpass::broker::BrokerError;
use taskpass::broker::revocation::{BlockRequest, RevokeRequest};
use taskpass::broker::tasks::TaskAuthority;
use taskpass::domain::cutoff::{Selector, True};
use taskpass::domain::session::{EndReason, SessionState};
use taskpass::domain::task::TaskEnd;
use taskpass::sweep;

use crate::support::rig::{
    Kind, Rig, ask, ask_in, ask_joining, bearer, child_of, claims, handle, is_good, job, refusal,
};

async fn begin(kind: Kind) -> Rig {
    Rig::on(kind).start().await
}
