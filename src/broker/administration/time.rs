//! The act by which an admin accepts the present time, after the clock has come into doubt.
//!
//! `accept_time` checks the request (`check_acceptable`), appends the act, and returns the cutoff
//! (`Accepted`) that ends all sessions with a later date. The rule: this is the only act that is
//! accepted while the clock is in doubt. It is accepted only for a doubt that an acceptance can
//! end, and only if the admin's clock and the broker's differ by at most `ACCEPTED_WITHIN_SECONDS`.
//!
//! Failures: `Invalid` if the clock is not in doubt or the two clocks differ; `FailClosed` for
//! another doubt, or if other leaves were appended during each of `TRIES` attempts. `http::ledger`
//! calls this module. `ledger::clock_watch` judges the clock; the append, under the ledger's lock,
//! checks that no leaf came in between and ends the doubt.

use std::time::Duration;

use tracing::{instrument, warn};

use super::Administration;
use crate::attest::Evidence;
use crate::broker::access::Unverified;
use crate::broker::core::in_doubt;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::ids::CutoffId;
use crate::ledger::Appended;
use crate::ledger::entry::{AcceptTime, Entry};
use crate::policy::AdminAction;

/// The maximum difference, in seconds, between the admin's clock and the broker's.
const ACCEPTED_WITHIN_SECONDS: u64 = 60;

/// How often an acceptance is tried, because another leaf may be appended in between.
const TRIES: u32 = 3;

/// A request to accept the present time.
#[derive(Clone, Debug)]
pub struct AcceptTimeRequest {
    /// The present time by the admin's clock.
    pub time: Timestamp,
    /// The reason, for people.
    pub reason: String,
}

/// A time that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The cutoff that ends the sessions with a later date.
    pub id: CutoffId,
    /// The index of the leaf of the acceptance.
    pub index: u64,
    /// The time in the newest leaf before it.
    pub recorded: Timestamp,
    /// The present time, by the broker's clock.
    pub accepted: Timestamp,
}

impl Administration {
    /// Accepts the present time of the broker's clock, although the ledger or this process has seen
    /// another time. Ends all sessions that were issued with a later date.
    ///
    /// This is the only act that is accepted while the clock is in doubt, so its evidence is
    /// verified by that clock. Evidence that was used before is refused nevertheless, and so is
    /// evidence whose use may have been deleted.
    #[instrument(skip_all)]
    pub async fn accept_time(
        &self,
        evidence: &Evidence,
        ask: AcceptTimeRequest,
    ) -> Result<Accepted, BrokerError> {
        let call = self.access.call_by_any_clock(evidence);
        call.run(|unverified| self.accept_time_by(unverified, &ask))
            .await
    }

    async fn accept_time_by(
        &self,
        unverified: Unverified<'_>,
        ask: &AcceptTimeRequest,
    ) -> Result<Accepted, BrokerError> {
        let admin = unverified.act_as(AdminAction::AcceptTime).await?;
        self.check_acceptable(ask)?;
        let reason = self.core.commitment(ask.reason.clone().into_bytes())?;
        for _ in 0..TRIES {
            let now = self.core.now();
            let recorded = self.core.ledger().clock().newest().unwrap_or(now);
            let accept = AcceptTime {
                id: CutoffId::new(now, self.core.random())?,
                recorded,
                accepted: now,
                text: ask.reason.clone(),
                reason: reason.clone(),
                by: admin.name(),
            };
            let id = accept.id;
            match admin
                .append(Entry::AcceptTime(Box::new(accept)), now)
                .await?
            {
                Appended::Recorded(done) => {
                    let by = admin.name();
                    warn!(%recorded, accepted = %now, by, "the clock's time was accepted");
                    self.core.wake_sweeper();
                    return Ok(Accepted {
                        id,
                        index: done.index,
                        recorded,
                        accepted: now,
                    });
                }
                Appended::Replayed(_) => return Err(BrokerError::Replayed),
                Appended::Unchanged => return Err(nothing_to_accept()),
                Appended::Stale => {}
                _ => break,
            }
        }
        Err(BrokerError::ledger(
            "the time was not accepted, because other leaves were appended meanwhile; try again",
        ))
    }

    /// Fails unless the clock is in a doubt that an acceptance can end, and the requested time is
    /// that of the broker's clock.
    fn check_acceptable(&self, ask: &AcceptTimeRequest) -> Result<(), BrokerError> {
        let reading = self.core.ledger().clock().judge();
        let doubt = reading.doubt.ok_or_else(nothing_to_accept)?;
        if !doubt.can_be_accepted() {
            return Err(in_doubt(&doubt));
        }
        if ask.time.distance(reading.now) > Duration::from_secs(ACCEPTED_WITHIN_SECONDS) {
            return Err(BrokerError::Invalid {
                pointer: "/time",
                detail: format!(
                    "the broker's clock shows {}, which differs from the given time by more than \
                     {ACCEPTED_WITHIN_SECONDS} s; first correct the wrong clock",
                    reading.now
                ),
            });
        }
        Ok(())
    }
}

fn nothing_to_accept() -> BrokerError {
    BrokerError::Invalid {
        pointer: "",
        detail: "the clock is not in doubt, so there is no time to accept".into(),
    }
}
