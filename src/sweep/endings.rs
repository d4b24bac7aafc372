//! The workers that end sessions at back ends: `unfinished_mints` hands sessions whose mint was not
//! finished to `endings`, which asks the back ends and records their answers.
//!
//! The rule: the tries to end a session only stop when the back end confirms the end, or when the
//! credential has expired. A failed try is logged and repeated with growing pauses. Failures: a
//! statement or an append that fails ends the round; the claimed sessions are tried again after
//! [`CLAIM_SECONDS`]. `orphans` hands sessions over as well.

use std::time::{Duration, Instant};

use tracing::warn;

use super::rounds::{Outcome, Swept};
use super::{BATCH_ROWS, CLAIM_SECONDS};
use crate::broker::core::Wake;
use crate::broker::{Broker, BrokerError};
use crate::clock::Timestamp;
use crate::domain::session::{EndReason, Session, SessionState};
use crate::ledger::Appended;
use crate::ledger::entry::{ConfirmEnd, EndSession, Entry};
use crate::metrics::RevocationLag;
use crate::mint::EndOutcome;

/// The longest pause between two tries to end a credential.
const MAX_BACKOFF_SECONDS: u64 = 60;

/// How long a round begins further calls of back ends: less than [`CLAIM_SECONDS`], after which
/// another replica may claim the same sessions.
const CALLING_TIME: Duration = Duration::from_secs(20);

/// Ends sessions of unfinished mints: the credential may exist, so it is ended under the name that
/// the broker chose for it.
pub(super) async fn unfinished_mints(broker: &Broker, now: Timestamp) -> Outcome {
    let mut found = 0;
    for session in broker
        .core
        .store()
        .unfinished_mints(now, BATCH_ROWS)
        .await?
    {
        begin_ending(broker, &session, EndReason::Failed, now).await?;
        found += 1;
    }
    Ok(Swept::all(found))
}

/// Hands a session to the worker `endings`.
pub(super) async fn begin_ending(
    broker: &Broker,
    session: &Session,
    reason: EndReason,
    now: Timestamp,
) -> Result<(), BrokerError> {
    let entry = Entry::EndSession(EndSession {
        session: session.id,
        state: SessionState::Ending,
        reason,
        never_made: false,
        by: "sweeper".into(),
        owner: session.workload.clone(),
    });
    broker.core.ledger().append_own(entry, now).await?;
    broker.core.wake(Wake::Endings);
    Ok(())
}

/// Asks back ends to end sessions in the state `ending`, and records their answers.
pub(super) async fn endings(broker: &Broker, now: Timestamp) -> Outcome {
    let began = Instant::now();
    let retry_at = now.plus_seconds(CLAIM_SECONDS);
    let horizon = broker.core.horizon().await?;
    let claimed = broker
        .core
        .store()
        .claim_unconfirmed(now, retry_at, BATCH_ROWS)
        .await?;
    let more = claimed.len() == BATCH_ROWS as usize;
    let mut rows = 0;
    for (session, attempts) in claimed {
        if began.elapsed() >= CALLING_TIME {
            // The others are tried when their claim has ended.
            break;
        }
        // An expired session has ended everywhere, so no confirmation is needed. Judged by the
        // horizon, because the back end uses its own clock, and the session is not checked again.
        let outcome = if horizon >= session.expires_at {
            EndOutcome::Confirmed
        } else if now >= session.expires_at {
            EndOutcome::NotBefore(now.plus_seconds(MAX_BACKOFF_SECONDS))
        } else {
            broker
                .revocation
                .deny_lists()
                .end_external(&session)
                .await
                .unwrap_or_else(|error| {
                    warn!(session = %session.id, %error, "ending it failed; it is tried again");
                    EndOutcome::Pending
                })
        };
        match outcome {
            EndOutcome::Confirmed => {
                confirm(broker, &session, now).await?;
                rows += 1;
            }
            EndOutcome::Pending => {
                let pause = backoff_seconds(attempts);
                broker
                    .core
                    .store()
                    .put_off_ending(session.id, now.plus_seconds(pause))
                    .await?;
            }
            EndOutcome::NotBefore(at) => broker.core.store().put_off_ending(session.id, at).await?,
            EndOutcome::Impossible => {
                broker
                    .core
                    .store()
                    .put_off_ending(session.id, session.expires_at)
                    .await?;
            }
        }
    }
    Ok(Swept { rows, more })
}

async fn confirm(broker: &Broker, session: &Session, now: Timestamp) -> Result<(), BrokerError> {
    let entry = Entry::ConfirmEnd(ConfirmEnd {
        session: session.id,
        reason: session.end_reason.unwrap_or(EndReason::Expired),
        confirmed: true,
        owner: session.workload.clone(),
    });
    if let Appended::Recorded(_) = broker.core.ledger().append_own(entry, now).await? {
        let reason = session.end_reason.unwrap_or(EndReason::Expired);
        broker.core.metrics().sessions_ended(reason, 1);
        let lag = session.ended_at.unwrap_or(now).distance(now);
        broker
            .core
            .metrics()
            .revocation_lag(RevocationLag::DurableToConfirmed, lag);
    }
    Ok(())
}

/// Doubles from one second up to a minute, without end.
fn backoff_seconds(attempts: u32) -> u64 {
    1_u64
        .checked_shl(attempts.min(16))
        .unwrap_or(MAX_BACKOFF_SECONDS)
        .min(MAX_BACKOFF_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_become_rarer_and_never_stop() {
        assert_eq!(backoff_seconds(1), 2);
        assert_eq!(backoff_seconds(5), 32);
        assert_eq!(backoff_seconds(6), MAX_BACKOFF_SECONDS);
        assert_eq!(backoff_seconds(u32::MAX), MAX_BACKOFF_SECONDS);
    }
}
