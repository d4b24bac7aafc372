//! CloudTrail's records.
//!
//! What ties one to a decision is the name of its session, `tp-` and our session's id, and the
//! source identity, which is the hash of the decision's leaf. Both are ours by construction
//! (`mint/aws`), and both have to fit where both are there. Only what is looked at is read; a field
//! that is not of its type is as if it were not there, and one that stands twice makes the record
//! unreadable.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::names::{Call, is_refusal};
use super::record::{Credential, Deed, Outcome, Record, TimeFormat, hash, session, time};

/// A text; anything else is none.
#[derive(Default)]
struct Text(Option<String>);

#[derive(Deserialize)]
struct Event {
    #[serde(default, rename = "userIdentity")]
    who: Maybe<UserIdentity>,
    #[serde(default, rename = "eventTime")]
    time: Text,
    #[serde(default, rename = "eventSource")]
    source: Text,
    #[serde(default, rename = "eventName")]
    name: Text,
    #[serde(default, rename = "awsRegion")]
    region: Text,
    #[serde(default, rename = "errorCode")]
    error_code: Text,
    #[serde(default, rename = "requestParameters")]
    asked: Maybe<Parameters>,
    #[serde(default, rename = "responseElements")]
    answered: Maybe<Elements>,
    #[serde(default)]
    resources: Option<Vec<Resource>>,
    #[serde(default, rename = "eventID")]
    id: Text,
    #[serde(default, rename = "eventType")]
    kind: Text,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UserIdentity {
    #[serde(default, rename = "type")]
    kind: Text,
    #[serde(default)]
    principal_id: Text,
    #[serde(default)]
    arn: Text,
    #[serde(default)]
    user_name: Text,
    #[serde(default)]
    invoked_by: Text,
    #[serde(default)]
    session_context: Maybe<SessionContext>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SessionContext {
    #[serde(default)]
    source_identity: Text,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Parameters {
    #[serde(default)]
    bucket_name: Text,
    #[serde(default)]
    key: Text,
    #[serde(default)]
    version_id: Text,
    #[serde(default)]
    role_arn: Text,
    #[serde(default)]
    role_session_name: Text,
    #[serde(default)]
    source_identity: Text,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Elements {
    #[serde(default)]
    source_identity: Text,
}

#[derive(Deserialize)]
struct Resource {
    #[serde(default, rename = "ARN")]
    arn: Text,
    #[serde(default, rename = "type")]
    kind: Text,
}

/// An object; null is an empty one.
struct Maybe<T>(T);

impl<T: Default> Default for Maybe<T> {
    fn default() -> Self {
        Self(T::default())
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Maybe<T> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<T>::deserialize(deserializer).map(|found| Self(found.unwrap_or_default()))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text(Some(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Text, A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Text(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Text, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text(None))
    }
}

/// Reads one record.
pub(super) fn read(bytes: &[u8]) -> Result<Record, &'static str> {
    let event: Event = serde_json::from_slice(bytes)
        .map_err(|_| "it is not an event of CloudTrail in JSON, every member once")?;
    let (Some(source), Some(name)) = (event.source.0, event.name.0) else {
        return Err("it names no call: neither eventSource nor eventName may be missing");
    };
    let (who, asked) = (event.who.0, event.asked.0);
    let call = Call {
        source,
        name,
        region: event.region.0.clone(),
        resources: event
            .resources
            .unwrap_or_default()
            .into_iter()
            .filter_map(|resource| Some((resource.arn.0?, resource.kind.0)))
            .collect(),
        bucket: asked.bucket_name.0,
        key: asked.key.0,
        version: asked.version_id.0,
    };
    let mut credential = Credential::default();
    for text in [&who.arn.0, &who.principal_id.0].into_iter().flatten() {
        if let Some(session) = session_of(text) {
            credential.add_session(session);
        }
    }
    let identity = who.session_context.0.source_identity.0.as_deref();
    if let Some(hash) = identity.and_then(hash) {
        credential.add_hash(hash);
    }
    let mut deed = call.deed();
    let mut place = call.shown_place();
    // The broker's own call: what it names is the session that is to be.
    if credential.is_empty() && call.makes_a_session() {
        let named = asked.role_session_name.0.as_deref().and_then(session);
        if let Some(named) = named.filter(|_| is_tp(asked.role_session_name.0.as_deref())) {
            credential.add_session(named);
            let sources = [asked.source_identity.0, event.answered.0.source_identity.0];
            for hash in sources.iter().flatten().filter_map(|text| hash(text)) {
                credential.add_hash(hash);
            }
            deed = Deed::Mint;
            place = asked.role_arn.0.unwrap_or(place);
        }
    }
    // Whoever may assume some role chooses the session's name. Ours always have the other, too.
    credential.by_name_alone = credential.session.is_some() && credential.hash.is_none();
    let by_aws = who.kind.0.as_deref() == Some("AWSService")
        || event.kind.0.as_deref() == Some("AwsServiceEvent");
    let outcome = match &event.error_code.0 {
        _ if by_aws && credential.is_empty() => {
            Outcome::Nobodys("a service of AWS did it of its own accord")
        }
        Some(code) if is_refusal(code) => Outcome::Refused,
        _ => Outcome::Done,
    };
    let principal = [
        who.arn.0,
        who.user_name.0,
        who.principal_id.0,
        who.invoked_by.0,
        who.kind.0,
    ]
    .into_iter()
    .flatten()
    .find(|text| !text.is_empty());
    Ok(Record {
        id: event.id.0,
        at: time(
            &event.time.0.map_or(Value::Null, Value::String),
            TimeFormat::Rfc3339,
        ),
        principal: principal.unwrap_or_else(|| "nobody named".to_owned()),
        action: call.shown(),
        resource: place,
        region: event.region.0,
        credential,
        deed,
        outcome,
    })
}

fn is_tp(name: Option<&str>) -> bool {
    name.is_some_and(|name| name.starts_with("tp-"))
}

/// The session in `arn:aws:sts::1:assumed-role/reports/tp-…` or `AROA…:tp-…`.
pub(super) fn session_of(text: &str) -> Option<crate::ids::SessionId> {
    let name = text.rsplit(['/', ':']).next()?;
    if !is_tp(Some(name)) {
        return None;
    }
    session(name)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::*;

    const NAME: &str = "tp-0198b2a00000700080000000000000ab";

    fn event() -> Value {
        json!({
            "eventVersion": "1.11",
            "userIdentity": {
                "type": "AssumedRole", "principalId": format!("AROAEXAMPLE:{NAME}"),
                "arn": format!("arn:aws:sts::123456789012:assumed-role/reports/{NAME}"),
                "accountId": "123456789012", "accessKeyId": "ASIAEXAMPLE",
                "sessionContext": {
                    "sessionIssuer": {"type": "Role", "arn": "arn:aws:iam::123456789012:role/reports"},
                    "attributes": {"creationDate": "2026-11-23T12:00:00Z", "mfaAuthenticated": "false"},
                    "sourceIdentity": URL_SAFE_NO_PAD.encode([9; 32])
                }
            },
            "eventTime": "2026-11-23T12:01:00Z", "eventSource": "s3.amazonaws.com",
            "eventName": "GetObject", "awsRegion": "eu-central-1",
            "requestParameters": {"bucketName": "reports", "key": "team/a"},
            "responseElements": null, "eventID": "e-1", "readOnly": true,
            "resources": [
                {"type": "AWS::S3::Object", "ARN": "arn:aws:s3:::reports/team/a"},
                {"type": "AWS::S3::Bucket", "ARN": "arn:aws:s3:::reports", "accountId": "1"}
            ],
            "eventType": "AwsApiCall"
        })
    }

    fn of(event: &Value) -> Record {
        read(event.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_event_of_ours_leads_to_its_session_and_its_decision() {
        let record = of(&event());
        assert_eq!(record.id.as_deref(), Some("e-1"));
        assert_eq!(record.at.unwrap().to_string(), "2026-11-23T12:01:00Z");
        assert_eq!(record.action, "s3:GetObject");
        assert_eq!(record.resource, "arn:aws:s3:::reports/team/a");
        assert_eq!(record.region.as_deref(), Some("eu-central-1"));
        assert_eq!(record.credential.session, session(NAME));
        assert_eq!(record.credential.hash.unwrap().as_bytes(), &[9; 32]);
        assert!(!record.credential.contradictory);
        assert_eq!(record.outcome, Outcome::Done);
    }

    #[test]
    fn somebody_elses_event_carries_nothing_of_ours() {
        for arn in [
            "arn:aws:iam::123456789012:user/eve",
            "arn:aws:sts::123456789012:assumed-role/reports/botocore-session-1",
            "arn:aws:sts::123456789012:assumed-role/tp-0198b2a00000700080000000000000ab/x",
            "arn:aws:sts::123456789012:assumed-role/reports/tp-7",
            "",
        ] {
            let mut event = event();
            event["userIdentity"] = json!({"type": "IAMUser", "arn": arn});
            let record = of(&event);
            assert!(record.credential.is_empty(), "{arn}");
        }
        let mut service = event();
        service["userIdentity"] = json!({"type": "AWSService", "invokedBy": "ec2.amazonaws.com"});
        let record = of(&service);
        assert!(matches!(record.outcome, Outcome::Nobodys(_)));
        assert_eq!(record.principal, "ec2.amazonaws.com");
    }

    #[test]
    fn the_brokers_own_call_makes_the_session_that_it_names() {
        for (name, more) in [
            ("AssumeRoleWithWebIdentity", "responseElements"),
            ("AssumeRole", "requestParameters"),
        ] {
            let mut event = event();
            event["userIdentity"] =
                json!({"type": "WebIdentityUser", "userName": "resource:reports"});
            event["eventSource"] = "sts.amazonaws.com".into();
            event["eventName"] = name.into();
            event["requestParameters"] = json!({
                "roleArn": "arn:aws:iam::123456789012:role/reports", "roleSessionName": NAME
            });
            event["responseElements"] = json!({"credentials": {"accessKeyId": "ASIA"}});
            event[more]["sourceIdentity"] = URL_SAFE_NO_PAD.encode([9; 32]).into();
            let record = of(&event);
            assert_eq!(record.deed, Deed::Mint);
            assert_eq!(record.credential.session, session(NAME));
            assert!(record.credential.hash.is_some());
            // By another name it is anybody's.
            event["requestParameters"]["roleSessionName"] =
                "0198b2a0-0000-7000-8000-0000000000ab".into();
            let record = of(&event);
            assert!(record.credential.is_empty());
            assert_ne!(record.deed, Deed::Mint);
        }
        // A session of ours that makes another is judged by what it was granted itself.
        let mut own = event();
        own["eventSource"] = "sts.amazonaws.com".into();
        own["eventName"] = "AssumeRole".into();
        own["requestParameters"]["roleSessionName"] = NAME.into();
        assert_ne!(of(&own).deed, Deed::Mint);
    }

    #[test]
    fn a_session_by_name_alone_is_told() {
        let mut event = event();
        assert!(!of(&event).credential.by_name_alone);
        event["userIdentity"]["sessionContext"]["sourceIdentity"] = Value::Null;
        assert!(of(&event).credential.by_name_alone);
        event["userIdentity"] = json!({"type": "IAMUser", "arn": "arn:aws:iam::1:user/eve"});
        assert!(!of(&event).credential.by_name_alone, "it names none");
        // Somebody makes a session by our name.
        event["eventSource"] = "sts.amazonaws.com".into();
        event["eventName"] = "AssumeRole".into();
        event["requestParameters"] = json!({"roleSessionName": NAME});
        assert!(of(&event).credential.by_name_alone);
    }

    #[test]
    fn names_that_contradict_one_another_are_told() {
        let mut event = event();
        event["userIdentity"]["principalId"] =
            "AROAEXAMPLE:tp-0198b2a00000700080000000000000ac".into();
        assert!(of(&event).credential.contradictory);
    }

    #[test]
    fn a_refusal_is_told_from_another_failure() {
        for (code, expected) in [
            ("AccessDenied", Outcome::Refused),
            ("Client.UnauthorizedOperation", Outcome::Refused),
            ("NoSuchKey", Outcome::Done),
            ("ThrottlingException", Outcome::Done),
        ] {
            let mut event = event();
            event["errorCode"] = code.into();
            assert_eq!(of(&event).outcome, expected, "{code}");
        }
    }

    #[test]
    fn what_is_not_of_its_type_is_as_if_it_were_not_there() {
        let mut event = event();
        event["requestParameters"] = json!({"key": {"id": {"S": "7"}}, "bucketName": [1]});
        event["resources"] = Value::Null;
        event["eventID"] = 7.into();
        event["eventTime"] = json!({"when": "now"});
        let record = of(&event);
        assert_eq!(record.id, None);
        assert_eq!(record.at, Err("it has no time"));
        assert_eq!(record.resource, "-");
    }

    #[test]
    fn what_is_no_event_or_says_something_twice_is_unreadable() {
        let own = event().to_string();
        let twice = own.replacen("\"eventName\"", "\"eventName\":\"Other\",\"eventName\"", 1);
        let deep = format!("{{\"requestParameters\":{}", "[".repeat(200_000));
        let nested = format!(
            "{{\"eventSource\":\"s\",\"eventName\":{}{}}}",
            "[".repeat(5_000),
            "]".repeat(5_000)
        );
        for bad in [
            "{}",
            "[]",
            "null",
            "7",
            "\"x\"",
            "{",
            &twice,
            &own[..own.len() - 2],
            &deep,
            &nested,
        ] {
            assert!(
                read(bad.as_bytes()).is_err(),
                "{}",
                &bad[..bad.len().min(60)]
            );
        }
        assert!(read(&[0xff]).is_err());
    }
}
