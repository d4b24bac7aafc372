//! Answers of a broker, and their description in sentences: the refusal, its reason, and the
//! permitted alternative.
//!
//! [`Answer::check`] and [`Answer::success`] return the refusal as [`ClientError::Answered`]. An
//! answer that is no problem document of the broker counts as unavailable there. [`super::Client`]
//! makes an [`Answer`] of each response.
//!
//! Any server may send an error answer, so its description takes each member that it finds from the
//! JSON value. [`Answer::problem`] reads the whole document of a broker.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap};
use serde::Deserialize as _;
use serde_json::Value;

use super::error::{AnswerKind, ClientError, slug};
use super::reply::Reply;
use crate::clock::{Clock as _, SystemClock};
use crate::domain::decision::Observed;
use crate::domain::text::printable;
use crate::wire::open::Open;
use crate::wire::problem::ProblemBody;

/// An error mentions a difference of more than these seconds between this machine's clock and the
/// broker's.
const REPORTED_SKEW_SECONDS: u64 = 30;

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The method and the path of the request.
    pub(super) operation: String,
    pub(crate) status: StatusCode,
    /// The body as JSON; null if it is empty or not JSON.
    pub(crate) body: Value,
    /// The body as received, if it is text.
    pub(super) text: String,
    /// The pause that the answer requests before another attempt.
    pub(crate) retry_after: Option<Duration>,
    /// How many seconds this machine's clock is ahead of the server's. `None` if the answer has no
    /// date.
    pub(super) skew: Option<i64>,
}

/// How many seconds this machine's clock is ahead of the server that set the `Date` header.
pub(super) fn skew(headers: &HeaderMap) -> Option<i64> {
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    let theirs = date.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    let ours = SystemClock.now().seconds();
    Some(ours.saturating_sub(i64::try_from(theirs).ok()?))
}

impl Answer {
    /// Returns the failure that the problem document describes, unless the answer is a success.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        if self.status == StatusCode::ACCEPTED {
            return Err(ClientError::Unavailable(
                "not decided yet: a person must approve the request first".into(),
            ));
        }
        if self.status.is_success() {
            return Ok(());
        }
        Err(self.failure())
    }

    /// The body of a successful answer, or the failure that the problem document describes.
    pub(crate) fn success<T>(self) -> Result<Reply<T>, ClientError> {
        self.check()?;
        Ok(Reply::new(self.body, self.operation))
    }

    /// Checks that the broker did the act of a request that it answers with 204. Another success is
    /// the answer of a server in between, which did nothing.
    pub(crate) fn done(&self) -> Result<(), ClientError> {
        self.check()?;
        if self.status == StatusCode::NO_CONTENT {
            return Ok(());
        }
        Err(self.failure())
    }

    /// The problem document of the broker; `None` for any other body.
    pub(crate) fn problem(&self) -> Option<ProblemBody> {
        let problem = ProblemBody::deserialize(&self.body).ok()?;
        problem.slug().is_some().then_some(problem)
    }

    /// The kind of problem of a problem document; empty for any other body.
    pub(crate) fn slug(&self) -> &str {
        slug(&self.body)
    }

    /// The failure that the answer describes, as sentences with a class. A wrong clock of this
    /// machine is mentioned, because it can explain why its evidence was refused. Only a problem
    /// document of the broker counts as a refusal: an answer of another server does not show the
    /// broker's decision.
    pub(crate) fn failure(&self) -> ClientError {
        let mut text = describe(self.status, &self.body);
        let skew = self
            .skew
            .filter(|skew| skew.unsigned_abs() > REPORTED_SKEW_SECONDS);
        if let (Some(skew), 400 | 401) = (skew, self.status.as_u16()) {
            let side = if skew > 0 { "ahead of" } else { "behind" };
            let seconds = skew.unsigned_abs();
            text = format!(
                "{text}\n  this machine's clock is {seconds} s {side} the broker's: set it"
            );
        }
        let kind = match self.status.as_u16() {
            _ if self.slug().is_empty() => AnswerKind::Unavailable,
            401 | 403 | 404 | 409 | 410 => AnswerKind::Refused,
            400..=499 if self.status != StatusCode::TOO_MANY_REQUESTS => AnswerKind::Invalid,
            _ => AnswerKind::Unavailable,
        };
        ClientError::Answered {
            kind,
            text,
            problem: self.body.clone(),
        }
    }
}

/// Describes a problem (RFC 9457) or an OAuth error (RFC 6749) in sentences.
fn describe(status: StatusCode, body: &Value) -> String {
    let text = |name: &str| body.get(name).and_then(Value::as_str).map(printable);
    let slug = printable(slug(body));
    let is_oauth = text("error").is_some();
    let mut lines = Vec::new();
    let first = text("detail")
        .or_else(|| text("error_description"))
        .or_else(|| text("title"))
        .or_else(|| text("error"));
    lines.push(match (slug.as_str(), first) {
        ("", Some(first)) if is_oauth => format!("{status}: {first}"),
        ("", Some(first)) => format!("{status}: {first} (not the broker's answer)"),
        ("", None) => format!("{status} (not the broker's answer)"),
        (slug, Some(first)) => format!("{slug}: {first}"),
        (slug, None) => format!("{slug}: the broker answered {status}"),
    });
    if let Some(code) = text("code").or_else(|| text("reason")) {
        lines.push(format!("  reason: {code}"));
    }
    let list = body.get("errors").and_then(Value::as_array);
    for error in list.into_iter().flatten() {
        lines.push(format!("  {}", printable(&one_line(error))));
    }
    if let Some(pointer) = text("pointer") {
        lines.push(format!("  at: {pointer}"));
    }
    if let Some(allowed) = body.get("allowed").filter(|allowed| !allowed.is_null()) {
        lines.extend(would_be_allowed(allowed));
    }
    let id = body.get("decision").and_then(|own| own.get("id"));
    if let Some(id) = id.and_then(Value::as_str) {
        lines.push(format!("  decision: {}", printable(id)));
    }
    let findings = body.get("decision").and_then(|own| own.get("observed"));
    let findings = findings.and_then(|own| Open::deserialize(own).ok());
    lines.extend(observed(findings.as_ref()).map(|text| format!("  {text}")));
    if let Some(session) = text("session_id").or_else(|| text("session")) {
        lines.push(format!("  session: {session}"));
    }
    lines.join("\n")
}

/// Describes the findings of policies that only observe; `None` if there are none.
pub(crate) fn observed(findings: Option<&Open<Box<Observed>>>) -> Option<String> {
    let text = match findings? {
        Open::Known(observed) => observed.to_string(),
        Open::Unknown(value) => value.to_string(),
    };
    Some(printable(&format!("observed, not enforced: {text}")))
}

fn one_line(value: &Value) -> String {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    match (text("pointer"), text("detail")) {
        (Some(pointer), Some(detail)) => format!("{pointer}: {detail}"),
        _ => value.to_string(),
    }
}

/// Describes the request that policy would permit instead, one line for each limit.
fn would_be_allowed(allowed: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let details = allowed.get("authorization_details");
    for detail in details.and_then(Value::as_array).into_iter().flatten() {
        let words = |name: &str| {
            let list = detail.get(name).and_then(Value::as_array);
            let words: Vec<String> = list
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(printable)
                .collect();
            words.join(", ")
        };
        let (actions, locations) = (words("actions"), words("locations"));
        let at = if locations.is_empty() {
            String::new()
        } else {
            format!(" at {locations}")
        };
        lines.push(format!("  would be allowed: {actions}{at}"));
    }
    for (name, limit) in [
        ("max_ttl_seconds", "a life"),
        ("max_deadline_seconds", "a deadline"),
        ("max_heartbeat_seconds", "a heartbeat interval"),
    ] {
        if let Some(seconds) = allowed.get(name).and_then(Value::as_u64) {
            lines.push(format!(
                "  would be allowed: {limit} of {seconds} s at most"
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;
    use serde_json::json;

    use super::*;

    fn answer(status: u16, body: Value) -> Answer {
        Answer {
            operation: "GET /".to_owned(),
            status: StatusCode::from_u16(status).unwrap(),
            text: body.to_string(),
            body,
            retry_after: None,
            skew: None,
        }
    }

    fn kind(error: &ClientError) -> AnswerKind {
        match error {
            ClientError::Answered { kind, .. } => *kind,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_refusal_says_what_why_and_what_would_do() {
        let problem = json!({
            "type": "urn:taskpass:problem:denied", "status": 403, "title": "Denied",
            "detail": "orders:write is not permitted", "code": "not-permitted",
            "allowed": {
                "authorization_details": [{"type": "api", "actions": ["orders:read"]}],
                "max_ttl_seconds": 600
            },
            "decision": {"id": "d-1"}
        });
        let refused = answer(403, problem).failure();
        assert_eq!(kind(&refused), AnswerKind::Refused);
        assert_eq!(
            refused.to_string(),
            "denied: orders:write is not permitted\n  reason: not-permitted\n  \
             would be allowed: orders:read\n  would be allowed: a life of 600 s at most\n  \
             decision: d-1"
        );
    }

    #[test]
    fn only_a_problem_document_of_the_broker_is_a_refusal() {
        for status in [400, 401, 403, 404, 409, 410] {
            for body in [
                Value::Null,
                json!({"message": "no"}),
                json!({"type": "about:blank", "detail": "no"}),
            ] {
                let refused = answer(status, body).failure();
                assert_eq!(kind(&refused), AnswerKind::Unavailable, "{status}");
                let text = refused.to_string();
                assert!(text.contains("not the broker's answer"), "{text}");
            }
        }
    }

    #[test]
    fn each_status_has_its_class() {
        let problem = json!({"type": "urn:taskpass:problem:not-found", "detail": "why"});
        for (class, statuses) in [
            (AnswerKind::Refused, &[401, 403, 404, 409][..]),
            (AnswerKind::Invalid, &[400, 413, 422]),
            (AnswerKind::Unavailable, &[302, 429, 500, 503]),
        ] {
            for status in statuses {
                let refused = answer(*status, problem.clone()).failure();
                assert_eq!(kind(&refused), class, "{status}");
            }
        }
        assert!(answer(204, Value::Null).done().is_ok());
        let page = answer(200, Value::Null).done().unwrap_err();
        assert_eq!(kind(&page), AnswerKind::Unavailable, "a page of a proxy");
        assert!(answer(202, json!({})).check().is_err());
        assert!(answer(200, json!({})).check().is_ok());
    }

    #[test]
    fn findings_of_a_later_broker_are_shown_as_they_are() {
        let problem = json!({
            "type": "urn:taskpass:problem:denied", "detail": "d",
            "decision": {"id": "d-1", "observed": {"outcome_if_enforced": "postponed"}}
        });
        let text = answer(403, problem).failure().to_string();
        let shown = r#"observed, not enforced: {"outcome_if_enforced":"postponed"}"#;
        assert!(text.contains(shown), "{text}");
    }

    #[test]
    fn a_wrong_clock_is_named_where_evidence_is_refused() {
        let told = |status: u16, skew: Option<i64>| {
            let answer = Answer {
                skew,
                ..answer(status, Value::Null)
            };
            answer.failure().to_string()
        };
        assert!(told(401, Some(120)).ends_with("clock is 120 s ahead of the broker's: set it"));
        assert!(told(400, Some(-31)).ends_with("clock is 31 s behind the broker's: set it"));
        for (status, skew) in [
            (401, Some(30)),
            (401, None),
            (403, Some(120)),
            (503, Some(120)),
        ] {
            assert!(!told(status, skew).contains("clock"), "{status} {skew:?}");
        }
    }

    #[test]
    fn the_difference_of_two_clocks_is_read_from_a_date() {
        let dated = |text: &str| {
            let value = HeaderValue::from_str(text).unwrap();
            skew(&HeaderMap::from_iter([(DATE, value)]))
        };
        let seconds = u64::try_from(SystemClock.now().seconds()).unwrap();
        let now = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
        let now = httpdate::fmt_http_date(now);
        assert!(dated(&now).unwrap().abs() < 30);
        assert!(dated("Sun, 06 Nov 1994 08:49:37 GMT").unwrap() > 900_000_000);
        assert_eq!(dated("yesterday"), None);
        assert_eq!(skew(&HeaderMap::new()), None);
    }
}
