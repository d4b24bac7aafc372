//! `/v1/revocations`.
//!
//! A request with an unknown member is refused when `http::json` parses it. `http::revocations`
//! serves these shapes.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use super::open::Open;
use super::query::{is_marker, maybe_number};
use super::sessions::SessionBody;
use crate::clock::Timestamp;
use crate::domain::cutoff::{Cutoff, Selector};
use crate::ids::CutoffId;

/// A revocation to make.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({
    "selector": {"workload": "ci:repo-1"},
    "block_seconds": 3600,
    "reason": "the repository's token was leaked"
})))]
pub struct RevocationAsk {
    /// An object with one member: `workload`, `task`, `resource`, `attestor`, `generation`,
    /// `policy`, `signing_key`, or `{"all": true}`.
    #[schema(value_type = Object)]
    pub selector: Selector,
    /// Seconds for which nothing new is granted, `"until_lifted"`, or 0 for no block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub block_seconds: Option<BlockBody>,
    /// Only with a resource of kind `aws` whose role no other resource has: AWS then refuses every
    /// earlier session of the broker on the role, regardless of their number.
    #[serde(default)]
    pub deny_all_earlier_sessions: bool,
    /// The reason, for people.
    pub reason: String,
    /// Whether to revoke if nothing has the selector's name and no recorded session matches it.
    /// Otherwise the answer is 404.
    #[serde(default)]
    pub allow_unknown: bool,
    /// Whether to only report the sessions that would end.
    #[serde(default)]
    pub dry_run: bool,
}

/// The length of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum BlockBody {
    /// A number of seconds; 0 for no block.
    Seconds(u64),
    /// The block stays until an admin lifts it.
    Until(UntilLifted),
}

/// The word `until_lifted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum UntilLifted {
    /// Until an admin lifts it, not until a time.
    #[serde(rename = "until_lifted")]
    UntilLifted,
}

/// A recorded revocation.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
#[schema(examples(example_lifted))]
pub struct CutoffBody {
    #[schema(value_type = String, format = Uuid)]
    pub id: CutoffId,
    /// The index of its leaf: every match with an earlier leaf has ended.
    pub index: u64,
    /// The selector: an object with one member, as in the request.
    #[serde(deserialize_with = "recorded_selector")]
    #[schema(value_type = Object)]
    pub selector: Open<Selector>,
    /// Until when nothing new is granted: a time, or `until_lifted`; absent without a block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_until: Option<String>,
    /// Whether the block is in effect now.
    pub block_active: bool,
    /// The role whose earlier sessions AWS refuses; absent if it refuses none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny_policy_target: Option<String>,
    /// The reason in the admin's words.
    pub reason: String,
    /// The admin who revoked.
    pub by: String,
    #[schema(value_type = String, format = DateTime)]
    pub requested_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub committed_at: Timestamp,
    pub lifted: bool,
    /// The index of the leaf that lifted the block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifted_index: Option<u64>,
}

impl CutoffBody {
    /// The body of a cutoff, with the state of its block at `now`.
    #[must_use]
    pub fn new(cutoff: &Cutoff, now: Timestamp) -> Self {
        Self {
            id: cutoff.id,
            index: cutoff.index,
            selector: cutoff.selector.clone().into(),
            blocked_until: cutoff.block.to_text(),
            block_active: cutoff.blocks(now),
            deny_policy_target: cutoff.deny_policy_target.clone(),
            reason: cutoff.reason.clone(),
            by: cutoff.by.clone(),
            requested_at: cutoff.requested_at,
            committed_at: cutoff.committed_at,
            lifted: cutoff.lifted_index.is_some(),
            lifted_index: cutoff.lifted_index,
        }
    }
}

/// A selector of an answer: one that callers can request, the one of an accepted time, or one that
/// this version does not know.
#[derive(Deserialize)]
#[serde(untagged)]
enum RecordedSelector {
    Requestable(Selector),
    AcceptedTime { issued_after: Timestamp },
    Unknown(Map<String, Value>),
}

/// Reads a selector of an answer. A request cannot have the selector `issued_after`.
fn recorded_selector<'de, D>(deserializer: D) -> Result<Open<Selector>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(match RecordedSelector::deserialize(deserializer)? {
        RecordedSelector::Requestable(selector) => Open::Known(selector),
        RecordedSelector::AcceptedTime { issued_after } => {
            Open::Known(Selector::IssuedAfter(issued_after))
        }
        RecordedSelector::Unknown(members) => Open::Unknown(Value::Object(members)),
    })
}

/// A mass revocation, made or only checked, with the sessions that it ends.
#[derive(Debug, Serialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
#[schema(examples(json!({
    "id": "01890a5d-ac96-774b-bcce-b302099a805a",
    "index": 42,
    "selector": {"workload": "ci:repo-1"},
    "blocked_until": "2026-01-01T01:02:00Z",
    "block_active": true,
    "reason": "the repository's token was leaked",
    "by": "ci:repo-2",
    "requested_at": "2026-01-01T00:02:00Z",
    "committed_at": "2026-01-01T00:02:00Z",
    "lifted": false,
    "matched": 1,
    "sessions": [super::sessions::example_ended()],
    "ended": 1,
    "ending": 0
})))]
pub struct RevocationBody {
    /// The revocation; absent in a dry run.
    #[serde(flatten)]
    pub cutoff: Option<CutoffBody>,
    /// The number of sessions that it ends. This and the other numbers and sessions are absent if
    /// they could not be counted in time, or if the revocation was made but the count failed; read
    /// the revocation again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matched: Option<u64>,
    /// Whether counting stopped there: it ends more than `matched` sessions. `ended` and `ending`
    /// then divide the counted ones. Also true in a dry run without `matched`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_more: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<Vec<SessionBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ending: Option<u64>,
}

/// The members of a [`RevocationBody`] that do not belong to the cutoff.
#[derive(Deserialize)]
struct RevokedSessions {
    matched: Option<u64>,
    #[serde(default)]
    has_more: bool,
    sessions: Option<Vec<SessionBody>>,
    ended: Option<u64>,
    ending: Option<u64>,
}

/// Members that only a recorded revocation has.
const RECORDED_MEMBERS: [&str; 3] = ["id", "index", "committed_at"];

/// Reads a recorded revocation only with every member of its [`CutoffBody`]. A derived
/// implementation would read one with a malformed member as a dry run: serde turns the error of a
/// flattened `Option` into `None`.
impl<'de> Deserialize<'de> for RevocationBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let members = Map::<String, Value>::deserialize(deserializer)?;
        let is_recorded = RECORDED_MEMBERS
            .iter()
            .any(|name| members.contains_key(*name));
        let members = Value::Object(members);
        let cutoff = if is_recorded {
            Some(CutoffBody::deserialize(&members).map_err(D::Error::custom)?)
        } else {
            None
        };
        let revoked = RevokedSessions::deserialize(&members).map_err(D::Error::custom)?;
        if cutoff.is_none() && revoked.matched.is_none() && !revoked.has_more {
            return Err(D::Error::custom(
                "neither a revocation nor the count of a dry run",
            ));
        }
        Ok(Self {
            cutoff,
            matched: revoked.matched,
            has_more: revoked.has_more,
            sessions: revoked.sessions,
            ended: revoked.ended,
            ending: revoked.ending,
        })
    }
}

/// The revocations to list.
#[derive(Debug, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RevocationQuery {
    /// Whether to show only revocations whose block is in effect now.
    #[serde(default)]
    pub standing: bool,
    /// Only those with this selector: `kind=value`, or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The `next_cursor` of the previous page.
    #[serde(default, skip_serializing_if = "is_marker")]
    pub cursor: Option<String>,
    /// The largest number of rows, 1 to 500; 100 if absent.
    #[serde(
        default,
        skip_serializing_if = "is_marker",
        deserialize_with = "maybe_number"
    )]
    pub limit: Option<u32>,
}

/// A page of a listing of revocations, newest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the other names say it all")]
#[schema(examples(json!({
    "revocations": [example_lifted()],
    "next_cursor": "eyJmaWx0ZXIiOiJSQk52bzFXelo0b1JScTBXIiwiYWZ0ZXIiOiI0MiJ9"
})))]
pub struct RevocationPage {
    pub revocations: Vec<CutoffBody>,
    /// The `cursor` of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// An example: a revocation whose block was lifted.
fn example_lifted() -> Value {
    json!({
        "id": "01890a5d-ac96-774b-bcce-b302099a805a",
        "index": 42,
        "selector": {"workload": "ci:repo-1"},
        "blocked_until": "2026-01-01T01:02:00Z",
        "block_active": false,
        "reason": "the repository's token was leaked",
        "by": "ci:repo-2",
        "requested_at": "2026-01-01T00:02:00Z",
        "committed_at": "2026-01-01T00:02:00Z",
        "lifted": true,
        "lifted_index": 43
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const RECORDED: &str = r#"{"id":"01890a5d-ac96-774b-bcce-b302099a8057","index":7,"selector":{"issued_after":"2026-01-01T00:00:00Z"},"block_active":false,"reason":"r","by":"a","requested_at":"2026-01-01T00:00:00Z","committed_at":"2026-01-01T00:00:00Z","lifted":false}"#;

    #[test]
    fn a_revocation_is_read_back_even_if_it_cannot_be_requested() {
        let cutoff: CutoffBody = serde_json::from_str(RECORDED).unwrap();
        assert_eq!(serde_json::to_string(&cutoff).unwrap(), RECORDED);
        let revocation: RevocationBody = serde_json::from_str(RECORDED).unwrap();
        assert_eq!(serde_json::to_string(&revocation).unwrap(), RECORDED);
        let checked: RevocationBody =
            serde_json::from_value(json!({"matched": 1, "ended": 1, "ending": 0})).unwrap();
        assert!(checked.cutoff.is_none());
    }

    #[test]
    fn a_malformed_revocation_is_not_read_as_a_dry_run() {
        let recorded: Value = serde_json::from_str(RECORDED).unwrap();
        let read = |value: Value| serde_json::from_value::<RevocationBody>(value);
        for name in ["id", "index", "committed_at", "lifted"] {
            let mut bad = recorded.clone();
            bad[name] = json!("not this");
            assert!(read(bad).is_err(), "{name} malformed");
            let mut without = recorded.clone();
            without.as_object_mut().unwrap().remove(name);
            assert!(read(without).is_err(), "{name} missing");
        }
        let mut later = recorded;
        later["more"] = json!(1);
        later["selector"] = json!({"region": "eu"});
        let cutoff = read(later).unwrap().cutoff.unwrap();
        assert_eq!(cutoff.selector, Open::Unknown(json!({"region": "eu"})));
        assert!(read(json!({"matched": "many"})).is_err());
        assert!(read(json!({"status": "ok"})).is_err(), "another server's");
    }

    #[test]
    fn a_block_is_a_number_or_one_word() {
        for (text, block) in [
            ("60", BlockBody::Seconds(60)),
            (
                "\"until_lifted\"",
                BlockBody::Until(UntilLifted::UntilLifted),
            ),
        ] {
            assert_eq!(serde_json::from_str::<BlockBody>(text).unwrap(), block);
            assert_eq!(serde_json::to_string(&block).unwrap(), text);
        }
        assert!(serde_json::from_str::<BlockBody>("\"for ever\"").is_err());
    }
}
