//! The words of answers that the server writes and that clients and the offline verifier read.

use crate::domain::decision::{Outcome, RefusalCode};

/// The prefix of every problem's `type` (RFC 9457). The slug of the problem follows it.
pub const PROBLEM_URN: &str = "urn:taskpass:problem:";

/// The token type of an access token (RFC 8693 §3).
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// The same token's type for a client that requested a JWT.
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// The slug of the problem for a recorded refusal, and its title.
#[must_use]
pub fn problem_of_refusal(outcome: Outcome, code: RefusalCode) -> (&'static str, &'static str) {
    match (outcome, code) {
        (_, RefusalCode::ApprovalRequired) => (
            "approval-required",
            "The request needs the approval of a person",
        ),
        (Outcome::Indeterminate, _) => ("indeterminate", "The decision could not be established"),
        _ => ("denied", "Policy does not permit this"),
    }
}
