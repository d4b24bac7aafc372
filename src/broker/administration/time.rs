//! The act of an admin that accepts the present time.

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

/// How far an administrator's clock may be from the one whose time it accepts.
const ACCEPTED_WITHIN_SECONDS: u64 = 60;

/// How often an acceptance is tried again because an entry came in between.
const TRIES: u32 = 3;

/// An acceptance, as it is asked for.
#[derive(Clone, Debug)]
pub struct AcceptAsk {
    /// What time it is, by the administrator's clock.
    pub time: Timestamp,
    /// Why, for people.
    pub reason: String,
}

/// A time that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The cutoff of what is dated later.
    pub id: CutoffId,
    /// The leaf that says so.
    pub index: u64,
    /// When the newest leaf before it was decided, as that one says itself.
    pub recorded: Timestamp,
    /// What was accepted.
    pub accepted: Timestamp,
}

impl Administration {
    /// Accepts the present time although the ledger, or this process, had seen another: an
    /// administrator's act. What was permitted under a later date is dead with it.
    ///
    /// It is the one act that goes by a clock that is in doubt, so evidence is judged by that clock
    /// here. Evidence that was used before is known even so, and evidence whose use may have been
    /// forgotten is refused.
    #[instrument(skip_all)]
    pub async fn accept_time(
        &self,
        evidence: &Evidence,
        ask: AcceptAsk,
    ) -> Result<Accepted, BrokerError> {
        let call = self.access.call_by_any_clock(evidence);
        call.run(|unverified| self.accept_time_by(unverified, &ask))
            .await
    }

    async fn accept_time_by(
        &self,
        unverified: Unverified<'_>,
        ask: &AcceptAsk,
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
                    warn!(%recorded, accepted = %now, by = admin.name(), "the clock's time was accepted");
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
        Err(BrokerError::FailClosed(
            "the time was not accepted: entries came in between".into(),
        ))
    }

    /// Whether there is a doubt that an administrator's word can end, and the word is about the time
    /// that our clock shows.
    fn check_acceptable(&self, ask: &AcceptAsk) -> Result<(), BrokerError> {
        let reading = self.core.ledger().clock().judge();
        let doubt = reading.doubt.ok_or_else(nothing_to_accept)?;
        if !doubt.can_be_accepted() {
            return Err(in_doubt(&doubt));
        }
        if ask.time.distance(reading.now) > Duration::from_secs(ACCEPTED_WITHIN_SECONDS) {
            return Err(BrokerError::Invalid {
                pointer: "/time",
                detail: format!(
                    "the broker's clock shows {}, more than {ACCEPTED_WITHIN_SECONDS} s from the time \
                     that was given; set the broker's clock right first",
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
        detail: "the clock is not in doubt: there is nothing to accept".into(),
    }
}
