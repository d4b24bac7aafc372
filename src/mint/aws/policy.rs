//! The policies that the broker writes: the session policy, made from the grant, and the deny
//! policy of a role.
//!
//! [`session_policy`] and [`deny_document`] make a [`Document`], and [`denied_by`] reads one. A
//! session has the rights that the role's own policies *and* its session policy allow. So the
//! session policy allows exactly the granted rights. An explicit deny overrides every allow. Denies
//! end the session at its expiry, because AWS has a minimum of 900 s; they restrict the session to
//! the registered regions and networks; and they deny the actions by which its holder could create
//! credentials that outlive it.
//!
//! The document is a typed structure. A caller's text enters it only as a JSON string that was
//! checked to be an action, an ARN or a region.
//!
//! A session policy above AWS's limit is [`PolicyTooLarge`]. A deny policy that the broker could
//! not have written, member order and white space apart, is `None`. [`super::AwsMinter`] sends the
//! session policy to STS, and [`super::deny`] reads and writes the other.

use std::collections::BTreeMap;
use std::iter;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::session_name;
use super::sts::SESSION_TAG;
use crate::clock::Timestamp;
use crate::domain::deny_list::DeniedSessions;
use crate::domain::grant::Grant;
use crate::domain::kind::aws::AwsRole;
use crate::ids::SessionId;

/// The longest session policy that STS accepts, including the ARNs of managed policies, in
/// characters.
pub const MAX_POLICY_CHARS: usize = 2_048;

/// Actions by which a session could create access that outlives it, or undo its own end.
const WAYS_OUT: [&str; 14] = [
    "sts:Assume*",
    "sts:Get*Token",
    "iam:*AccessKey",
    "iam:*LoginProfile",
    "iam:*ServiceSpecificCredential",
    "iam:Upload*",
    // A role, a provider or a delegation that admits another party.
    "iam:CreateRole",
    "iam:*Provider*",
    "iam:*Delegation*",
    "iam:PassRole",
    "iam:PutRolePolicy",
    "iam:DeleteRolePolicy",
    "iam:UpdateAssumeRolePolicy",
    "rolesanywhere:*",
];

/// A policy that is longer than STS accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the session policy would have {chars} characters, AWS accepts {MAX_POLICY_CHARS}: request \
    fewer or wider actions and resources"
)]
pub struct PolicyTooLarge {
    /// Length of the policy in characters.
    pub chars: usize,
}

/// An IAM policy document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Document {
    version: &'static str,
    statement: Vec<Statement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    effect: Effect,
    action: Vec<String>,
    resource: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    condition: Condition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Effect {
    Allow,
    Deny,
}

/// Operator, key, values. All operators and keys must hold, and one of the values.
type Condition = BTreeMap<&'static str, BTreeMap<String, Vec<String>>>;

fn when<const N: usize>(parts: [(&'static str, &'static str, Vec<String>); N]) -> Condition {
    let mut condition = Condition::new();
    for (operator, key, values) in parts {
        condition
            .entry(operator)
            .or_default()
            .insert(key.to_owned(), values);
    }
    condition
}

fn everything() -> Vec<String> {
    vec!["*".to_owned()]
}

impl Document {
    fn of(statement: Vec<Statement>) -> Self {
        Self {
            version: "2012-10-17",
            statement,
        }
    }

    /// The document as JSON.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

fn deny_all(condition: Condition) -> Statement {
    Statement {
        sid: None,
        effect: Effect::Deny,
        action: everything(),
        resource: everything(),
        condition,
    }
}

/// The policy of a session of `role` that was granted `grant` until `expires_at`.
pub fn session_policy(role: &AwsRole, grant: &Grant, expires_at: Timestamp) -> Document {
    let mut statements: Vec<Statement> = grant
        .details()
        .iter()
        .map(|detail| Statement {
            sid: None,
            effect: Effect::Allow,
            action: detail.actions().iter().map(ToString::to_string).collect(),
            resource: detail.locations().iter().map(ToString::to_string).collect(),
            condition: match detail.region() {
                None => Condition::new(),
                Some(region) => when([("StringEquals", REGION, vec![region.to_owned()])]),
            },
        })
        .collect();
    // Sessions end at whole seconds, which is how IAM compares dates.
    let end = vec![expires_at.floor_to_second().to_string()];
    statements.push(deny_all(when([(
        "DateGreaterThanEquals",
        "aws:CurrentTime",
        end,
    )])));
    if !role.regions.is_empty() {
        let regions = role.regions.iter().cloned().collect();
        statements.push(deny_all(when([("StringNotEquals", REGION, regions)])));
    }
    if !role.source_networks.is_empty() {
        let networks = role.source_networks.iter().cloned().collect();
        // If an AWS service acts for the session, the address is the service's.
        statements.push(deny_all(when([
            ("NotIpAddress", "aws:SourceIp", networks),
            ("Bool", "aws:ViaAWSService", vec!["false".to_owned()]),
        ])));
    }
    if !role.may_leave {
        statements.push(Statement {
            sid: None,
            effect: Effect::Deny,
            action: WAYS_OUT.iter().map(ToString::to_string).collect(),
            resource: everything(),
            condition: Condition::new(),
        });
    }
    Document::of(statements)
}

const REGION: &str = "aws:RequestedRegion";

/// The policy of the broker's own session: it may read and write the inline policies of this one
/// role.
pub fn over_role(role_arn: &str) -> Document {
    Document::of(vec![Statement {
        sid: None,
        effect: Effect::Allow,
        action: ["iam:GetRolePolicy", "iam:PutRolePolicy"]
            .map(str::to_owned)
            .to_vec(),
        resource: vec![role_arn.to_owned()],
        condition: Condition::new(),
    }])
}

/// The policy of a role that denies single sessions of it. `mark` identifies the broker that writes
/// it.
#[must_use]
pub fn deny_document(mark: &str, denied: &DeniedSessions) -> Document {
    // A user id contains the role's id and the session's name. No session has the first pattern; it
    // keeps the list nonempty, as IAM requires.
    let real = denied.sessions.iter().map(|id| session_name(*id));
    let names = iter::once("tp-".to_owned()).chain(real);
    let users = names.map(|name| format!("*:{name}")).collect();
    let mut statements = vec![Statement {
        sid: Some(format!("{mark}G{}", denied.generation)),
        ..deny_all(when([("StringLike", "aws:userid", users)]))
    }];
    if let Some(before) = denied.issued_before {
        let tagged = format!("aws:PrincipalTag/{SESSION_TAG}");
        let mut condition = when([(
            "DateLessThan",
            "aws:TokenIssueTime",
            vec![before.floor_to_second().to_string()],
        )]);
        // Only sessions with the broker's tag, regardless of other users of the role.
        condition.insert("Null", [(tagged, vec!["false".to_owned()])].into());
        statements.push(deny_all(condition));
    }
    Document::of(statements)
}

/// Higher than any number that the broker reaches by counting.
const MAX_GENERATION: u64 = 1 << 62;

/// The denied sessions of a role's policy, if [`deny_document`] could have written it.
#[must_use]
pub fn denied_by(mark: &str, text: &str) -> Option<DeniedSessions> {
    let document: Value = serde_json::from_str(text).ok()?;
    let listing = document.pointer("/Statement/0")?;
    let generation = listing.get("Sid")?.as_str()?.strip_prefix(mark)?;
    let users = listing.pointer("/Condition/StringLike/aws:userid")?;
    let ids = users.as_array()?.iter().filter_map(|user| {
        let name = user.as_str()?.strip_prefix("*:tp-")?;
        Uuid::try_parse(name).ok().map(SessionId::from)
    });
    let before = document.pointer("/Statement/1/Condition/DateLessThan/aws:TokenIssueTime/0");
    let generation: u64 = generation.strip_prefix('G')?.parse().ok()?;
    let denied = DeniedSessions {
        // The broker never reaches a higher number, so another party wrote it.
        generation: Some(generation).filter(|number| *number < MAX_GENERATION)?,
        sessions: ids.collect(),
        issued_before: before.map(Timestamp::deserialize).transpose().ok()?,
    };
    // Any other change of the document shows in this comparison.
    let rendered = serde_json::to_value(deny_document(mark, &denied)).ok()?;
    (rendered == document).then_some(denied)
}

/// The text of a session policy, if STS accepts its length.
pub fn bounded_text(policy: &Document) -> Result<String, PolicyTooLarge> {
    let text = policy.to_json().unwrap_or_default();
    let chars = text.chars().count();
    if text.is_empty() || chars > MAX_POLICY_CHARS {
        return Err(PolicyTooLarge { chars });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn role(more: &Value) -> AwsRole {
        let mut role = json!({
            "role_arn": "arn:aws:iam::123456789012:role/reports",
            "mode": "web_identity", "region": "eu-central-1"
        });
        for (key, value) in more.as_object().unwrap() {
            role[key] = value.clone();
        }
        serde_json::from_value(role).unwrap()
    }

    fn grant(details: Value) -> Grant {
        serde_json::from_value(details).unwrap()
    }

    fn reading() -> Grant {
        grant(json!([{
            "type": "aws", "actions": ["s3:GetObject"], "resources": ["arn:aws:s3:::reports/*"],
            "region": "eu-central-1"
        }]))
    }

    fn value(role: &AwsRole, grant: &Grant) -> Value {
        let end = Timestamp::from_seconds(1_792_985_600);
        serde_json::to_value(session_policy(role, grant, end)).unwrap()
    }

    #[test]
    fn a_session_has_what_was_granted_until_it_is_over_and_no_way_out() {
        let policy = value(&role(&json!({})), &reading());
        assert_eq!(policy["Version"], "2012-10-17");
        let statements = policy["Statement"].as_array().unwrap();
        assert_eq!(
            statements[0],
            json!({
                "Effect": "Allow", "Action": ["s3:GetObject"],
                "Resource": ["arn:aws:s3:::reports/*"],
                "Condition": {"StringEquals": {"aws:RequestedRegion": ["eu-central-1"]}}
            })
        );
        assert_eq!(
            statements[1],
            json!({
                "Effect": "Deny", "Action": ["*"], "Resource": ["*"], "Condition": {
                    "DateGreaterThanEquals": {"aws:CurrentTime": ["2026-10-26T03:33:20Z"]}
                }
            })
        );
        assert_eq!(statements[2]["Effect"], "Deny");
        assert!(
            statements[2]["Action"]
                .as_array()
                .unwrap()
                .contains(&json!("sts:Assume*"))
        );
        assert_eq!(statements.len(), 3);
        let may_leave = value(&role(&json!({"may_leave": true})), &reading());
        assert_eq!(may_leave["Statement"].as_array().unwrap().len(), 2);
    }

    fn denied(sessions: &[u128], issued_before: Option<i64>) -> DeniedSessions {
        DeniedSessions {
            generation: 7,
            sessions: sessions
                .iter()
                .map(|id| Uuid::from_u128(*id).into())
                .collect(),
            issued_before: issued_before.map(Timestamp::from_seconds),
        }
    }

    #[test]
    fn a_list_of_denied_sessions_reads_back_as_it_was_written() {
        for list in [
            denied(&[], None),
            denied(&[1, 2], None),
            denied(&[3], Some(1_792_985_600)),
        ] {
            let text = deny_document("TaskpassAb", &list).to_json().unwrap();
            assert_eq!(denied_by("TaskpassAb", &text), Some(list.clone()));
            assert_eq!(denied_by("TaskpassCd", &text), None, "another broker's");
            let weaker = text.replacen("Deny", "Allow", 1);
            assert_eq!(denied_by("TaskpassAb", &weaker), None);
            let narrower = text.replacen(r#""Action":["*"]"#, r#""Action":["s3:*"]"#, 1);
            assert_eq!(denied_by("TaskpassAb", &narrower), None);
        }
        let value = serde_json::to_value(deny_document("T", &denied(&[1], Some(0)))).unwrap();
        assert_eq!(
            value["Statement"][0]["Condition"]["StringLike"]["aws:userid"],
            json!(["*:tp-", "*:tp-00000000000000000000000000000001"])
        );
        assert_eq!(
            value["Statement"][1]["Condition"],
            json!({
                "DateLessThan": {"aws:TokenIssueTime": ["1970-01-01T00:00:00Z"]},
                "Null": {"aws:PrincipalTag/TaskpassSession": ["false"]}
            })
        );
    }

    #[test]
    fn the_longest_list_fits_into_a_role() {
        let most: Vec<u128> = (0..240).map(|n| u128::MAX - n).collect();
        let list = DeniedSessions {
            generation: u64::MAX,
            ..denied(&most, Some(1_792_985_600))
        };
        let text = deny_document("Taskpass01234567", &list).to_json().unwrap();
        assert!(text.len() <= 10_240, "{}", text.len());
    }

    #[test]
    fn a_role_confines_its_sessions_to_regions_and_networks() {
        let policy = value(
            &role(&json!({"regions": ["eu-west-1"], "source_networks": ["203.0.113.0/24"]})),
            &reading(),
        );
        let denies = policy["Statement"].to_string();
        assert!(denies.contains(r#""StringNotEquals":{"aws:RequestedRegion":["eu-west-1"]}"#));
        assert!(denies.contains(r#""NotIpAddress":{"aws:SourceIp":["203.0.113.0/24"]}"#));
    }

    #[test]
    fn a_policy_that_sts_would_not_take_is_told_before_it_is_asked() {
        let many: Vec<String> = (0..16)
            .map(|n| format!("arn:aws:s3:::{n}-{}/*", "b".repeat(110)))
            .collect();
        let asked = grant(json!([{"type": "aws", "actions": ["s3:GetObject"], "resources": many}]));
        let role = role(&json!({}));
        let end = Timestamp::from_seconds(1_792_985_600);
        let refused = bounded_text(&session_policy(&role, &asked, end)).unwrap_err();
        assert!(refused.chars > MAX_POLICY_CHARS);
        let text = bounded_text(&session_policy(&role, &reading(), end)).unwrap();
        assert!(text.len() < MAX_POLICY_CHARS / 2, "{}", text.len());
    }
}
