//! Logs and counts failed attestations, for operators.
//!
//! `Access::refuse_evidence` logs a failure and returns the caller's error; `note_failure` only
//! logs and counts. `FailureLines` limits the lines for each attestor and reason, so that invalid
//! requests cannot fill the log. The next line says how many were left out.
//!
//! The rule: the counter counts every failure, and a line never holds a token or the value of a
//! claim. A line names the attestor, the reason, the claim, the issuer and the request, so that an
//! operator can explain a 401 to its caller. The returned error is `AttestationUnavailable` for a
//! transient failure and `Attestation` otherwise. Nothing here fails. `super::call`,
//! `super::evidence` and `super::tokens` call this module.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tracing::{debug, warn};

use super::Access;
use crate::attest::{AttestError, AttestFailure, Evidence, NO_ATTESTOR};
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::limits::{ATTESTATION_LINE_SECONDS, ATTESTATION_LINES_AT_ONCE};

/// The number of lines that may still be written for an attestor and a reason.
#[derive(Clone, Copy)]
struct Allowance {
    lines: u64,
    since: Timestamp,
    suppressed: u64,
}

/// The limit of lines, by attestor and reason. Attestors come from the generation and reasons from
/// this crate's source, so the map stays small.
#[derive(Default)]
pub(super) struct FailureLines(Mutex<BTreeMap<(String, &'static str), Allowance>>);

impl FailureLines {
    /// The number of lines that were left out before this one. `None` if no line may be written
    /// now.
    fn allow(&self, attestor: &str, reason: &'static str, now: Timestamp) -> Option<u64> {
        let mut allowances = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (attestor.to_owned(), reason);
        let allowance = allowances.entry(key).or_insert(Allowance {
            lines: ATTESTATION_LINES_AT_ONCE,
            since: now,
            suppressed: 0,
        });
        let earned = allowance.since.seconds_until(now) / ATTESTATION_LINE_SECONDS;
        if earned > 0 {
            let lines = allowance.lines.saturating_add(earned);
            allowance.lines = lines.min(ATTESTATION_LINES_AT_ONCE);
            allowance.since = now;
        }
        if allowance.lines == 0 {
            allowance.suppressed += 1;
            return None;
        }
        allowance.lines -= 1;
        Some(std::mem::take(&mut allowance.suppressed))
    }
}

impl Access {
    /// Logs that evidence was refused, and returns the caller's error.
    pub(super) fn refuse_evidence(
        &self,
        evidence: &Evidence,
        failure: AttestFailure,
    ) -> BrokerError {
        self.note_failure(evidence, &failure);
        if failure.error.is_transient() {
            return BrokerError::AttestationUnavailable(Box::new(failure));
        }
        BrokerError::Attestation(Box::new(failure))
    }

    /// Counts a failed attestation and writes its line.
    pub(super) fn note_failure(&self, evidence: &Evidence, failure: &AttestFailure) {
        let reason = failure.error.reason();
        let attestor = failure.attestor.as_deref().unwrap_or(NO_ATTESTOR);
        self.core.metrics().attestation_failure(attestor, reason);
        let request_id = evidence.request_id.as_deref();
        match failure.error {
            AttestError::Missing => self.core.metrics().unattested(),
            // This is a step of the protocol: the answer holds the nonce for the next proof.
            AttestError::NonceWanted => {
                debug!(attestor, reason, request_id, "a DPoP proof needs a nonce");
                return;
            }
            _ => {}
        }
        let Some(suppressed) = self.failure_lines.allow(attestor, reason, self.core.now()) else {
            return;
        };
        warn!(
            attestor,
            reason,
            claim = failure.error.claim(),
            iss = failure.issuer.as_deref(),
            request_id,
            suppressed,
            why = %failure.error,
            "an attestation failed"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_limited_for_each_attestor_and_reason_and_say_how_many_are_missing() {
        let lines = FailureLines::default();
        let at = |seconds| Timestamp::from_seconds(1_800_000_000).plus_seconds(seconds);
        for _ in 0..ATTESTATION_LINES_AT_ONCE {
            assert_eq!(lines.allow("ci", "expired", at(0)), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(lines.allow("ci", "expired", at(1)), None);
        }
        assert_eq!(lines.allow("ci", "wrong_times", at(1)), Some(0));
        assert_eq!(lines.allow("other", "expired", at(1)), Some(0));
        let later = at(ATTESTATION_LINE_SECONDS);
        assert_eq!(lines.allow("ci", "expired", later), Some(5));
        assert_eq!(lines.allow("ci", "expired", later), None);
        // A clock that goes back allows no further line and causes no panic.
        assert_eq!(lines.allow("ci", "expired", at(0)), None);
    }
}
