//! CloudTrail's records.
//!
//! What ties one to a decision is the name of its session, `tp-` and our session's id, and the
//! source identity, which is the hash of the decision's leaf. Both are ours by construction
//! (`mint/aws`), and both have to be there: whoever may assume some role chooses the one, and the
//! other outlives the session when its holder goes on into another role. Only what is looked at is
//! read; a field that is not of its type is as if it were not there, and one that stands twice makes
//! the record unreadable.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::names::{Call, is_refusal};
use super::record::{
    Credential, Deed, Outcome, Record, Region, RoleSeen, TimeFormat, session, time,
};

/// What `CloudTrail` itself noticed, which is no call of anybody's.
const INSIGHT: &str = "AwsCloudTrailInsight";

/// A text; anything else is none.
#[derive(Default)]
struct Text {
    text: Option<String>,
    /// Whether something else stands there.
    odd: bool,
}

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
    resources: Option<Vec<Maybe<Resource>>>,
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
    account_id: Text,
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
    #[serde(default)]
    session_issuer: Maybe<SessionIssuer>,
}

#[derive(Default, Deserialize)]
struct SessionIssuer {
    #[serde(default)]
    arn: Text,
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
    #[serde(default)]
    assumed_role_user: Maybe<AssumedRoleUser>,
}

#[derive(Default, Deserialize)]
struct AssumedRoleUser {
    #[serde(default)]
    arn: Text,
}

#[derive(Default, Deserialize)]
struct Resource {
    #[serde(default, rename = "ARN")]
    arn: Text,
    #[serde(default, rename = "type")]
    kind: Text,
}

impl UserIdentity {
    /// The most that it says of itself.
    fn shown(self) -> Option<String> {
        let texts = [
            self.arn,
            self.user_name,
            self.principal_id,
            self.invoked_by,
            self.kind,
        ];
        let mut texts = texts.into_iter().filter_map(|text| text.text);
        texts.find(|text| !text.is_empty())
    }
}

/// An object, whose members have names; anything else is none.
struct Maybe<T>(Option<T>);

impl<T> Default for Maybe<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Maybe<T> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MaybeVisitor(PhantomData))
    }
}

struct MaybeVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for MaybeVisitor<T> {
    type Value = Maybe<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Maybe<T>, A::Error> {
        let object = T::deserialize(MapAccessDeserializer::new(members))?;
        Ok(Maybe(Some(object)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Maybe<T>, A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Maybe(None))
    }

    fn visit_unit<E>(self) -> Result<Maybe<T>, E> {
        Ok(Maybe(None))
    }

    fn visit_str<E>(self, _: &str) -> Result<Maybe<T>, E> {
        Ok(Maybe(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Maybe<T>, E> {
        Ok(Maybe(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Maybe<T>, E> {
        Ok(Maybe(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Maybe<T>, E> {
        Ok(Maybe(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Maybe<T>, E> {
        Ok(Maybe(None))
    }
}

impl Text {
    const NONE: Self = Self {
        text: None,
        odd: false,
    };
    const ODD: Self = Self {
        text: None,
        odd: true,
    };
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
        Ok(Text {
            text: Some(text.to_owned()),
            odd: false,
        })
    }

    fn visit_unit<E>(self) -> Result<Text, E> {
        Ok(Text::NONE)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
        Ok(Text::ODD)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
        Ok(Text::ODD)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
        Ok(Text::ODD)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
        Ok(Text::ODD)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Text, A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Text::ODD)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Text, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text::ODD)
    }
}

/// Reads one record.
pub(super) fn read(bytes: &[u8]) -> Result<Record, &'static str> {
    let event: Maybe<Event> = serde_json::from_slice(bytes)
        .map_err(|_| "it is not an event of CloudTrail in JSON, every member once")?;
    let event = event.0.ok_or("it is no object")?;
    let kind = event.kind.text.as_deref().unwrap_or_default();
    let (source, name) = match (event.source.text, event.name.text) {
        (Some(source), Some(name)) => (source, name),
        (None, None) if kind == INSIGHT => (String::new(), String::new()),
        _ => return Err("it names no call: neither eventSource nor eventName may be missing"),
    };
    let who = event.who.0.unwrap_or_default();
    let asked = event.asked.0.unwrap_or_default();
    let region = if event.region.odd {
        Region::Unclear
    } else {
        Region::of(event.region.text.as_deref())
    };
    let call = Call {
        source,
        name,
        region: region.clone(),
        resources: event
            .resources
            .unwrap_or_default()
            .into_iter()
            .map(|resource| resource.0.unwrap_or_default())
            .map(|resource| (resource.arn.text, resource.kind.text))
            .collect(),
        odd: asked.bucket_name.odd || asked.key.odd || asked.version_id.odd,
        bucket: asked.bucket_name.text,
        key: asked.key.text,
        version: asked.version_id.text,
    };
    let mut credential = Credential {
        needs_both: true,
        ..Credential::default()
    };
    for text in [&who.arn.text, &who.principal_id.text]
        .into_iter()
        .flatten()
    {
        credential.add_session_of_aws(text);
    }
    let context = who.session_context.0.as_ref();
    let issuer = context.and_then(|context| context.session_issuer.0.as_ref());
    let issuer = issuer.and_then(|issuer| issuer.arn.text.clone());
    credential.roles.extend(issuer.map(RoleSeen::Arn));
    let account = who.account_id.text.clone().filter(|_| credential.named);
    credential.roles.extend(account.map(RoleSeen::Account));
    let identity = context.and_then(|context| context.source_identity.text.as_deref());
    if let Some(identity) = identity {
        credential.add_hash_text(identity);
    }
    let answered = event.answered.0.unwrap_or_default();
    let identities = [&asked.source_identity, &answered.source_identity];
    let identities = identities.map(|text| text.text.as_deref());
    let asked_for = AskedFor {
        name: asked.role_session_name.text.as_deref(),
        role: asked.role_arn.text.as_deref(),
    };
    let deed = if mints(&call, &mut credential, asked_for, &identities) {
        // The answer names what was made, which is the session that was asked for.
        let made = answered.assumed_role_user.0.unwrap_or_default();
        if let Some(made) = made.arn.text {
            credential.add_session_of_aws(&made);
        }
        Deed::Mint
    } else {
        call.deed()
    };
    let role = asked.role_arn.text.filter(|_| call.makes_a_session());
    let place = role.unwrap_or_else(|| call.shown_place());
    let by_aws = who.kind.text.as_deref() == Some("AWSService") || kind == "AwsServiceEvent";
    let outcome = match &event.error_code.text {
        _ if kind == INSIGHT => Outcome::Nobodys("an insight of CloudTrail's own"),
        _ if by_aws && credential.is_empty() => Outcome::Nobodys(OF_ITS_OWN_ACCORD),
        Some(code) if is_refusal(code) => Outcome::Refused,
        _ => Outcome::Done,
    };
    let time_of_it = event.time.text.map_or(Value::Null, Value::String);
    Ok(Record {
        id: event.id.text,
        at: time(&time_of_it, TimeFormat::Rfc3339),
        principal: who.shown().unwrap_or_else(|| "nobody named".to_owned()),
        action: call.shown(),
        resource: place,
        region,
        credential,
        deed,
        outcome,
    })
}

/// Why what AWS does without being asked is set aside.
pub(super) const OF_ITS_OWN_ACCORD: &str = "a service of AWS did it of its own accord";

/// Which session a call asks for.
#[derive(Clone, Copy)]
pub(super) struct AskedFor<'a> {
    /// By which name.
    pub(super) name: Option<&'a str>,
    /// Of which role, by its ARN.
    pub(super) role: Option<&'a str>,
}

/// Whether it is the broker's own call, and then what that names: the session that is to be, its
/// role and its decision. Who calls with a session of ours is judged by what that was granted.
pub(super) fn mints(
    call: &Call,
    credential: &mut Credential,
    asked: AskedFor<'_>,
    identities: &[Option<&str>],
) -> bool {
    let name = asked
        .name
        .filter(|name| name.starts_with("tp-") && session(name).is_some());
    let Some(name) = name.filter(|_| credential.is_empty() && call.makes_a_session()) else {
        return false;
    };
    // The broker may have a session of its own, which is nobody's of ours.
    *credential = Credential {
        needs_both: true,
        ..Credential::default()
    };
    credential.add_session_text(name);
    let role = asked.role.map(str::to_owned);
    credential.roles.extend(role.map(RoleSeen::Arn));
    for identity in identities.iter().flatten() {
        credential.add_hash_text(identity);
    }
    true
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
        assert_eq!(record.region.name(), Some("eu-central-1"));
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
    fn a_name_without_its_decision_is_told_and_so_is_a_decision_without_its_name() {
        let facts = |event: &Value| {
            let credential = of(event).credential;
            let (session, hash) = (credential.session.is_some(), credential.hash.is_some());
            (credential.needs_both, session, hash)
        };
        let mut named = event();
        assert_eq!(facts(&named), (true, true, true));
        named["userIdentity"]["sessionContext"]["sourceIdentity"] = Value::Null;
        assert_eq!(facts(&named), (true, true, false));
        named["userIdentity"] = json!({"type": "IAMUser", "arn": "arn:aws:iam::1:user/eve"});
        assert_eq!(facts(&named), (true, false, false));
        // Somebody makes a session by our name.
        named["eventSource"] = "sts.amazonaws.com".into();
        named["eventName"] = "AssumeRole".into();
        named["requestParameters"] = json!({"roleSessionName": NAME});
        assert_eq!(facts(&named), (true, true, false));
        // Source identity goes along into another role, where the name is free to choose.
        let mut chained = event();
        let identity = &mut chained["userIdentity"];
        identity["arn"] = "arn:aws:sts::999999999999:assumed-role/Admin/x".into();
        identity["principalId"] = "AROAOTHER:x".into();
        assert_eq!(facts(&chained), (true, false, true));
    }

    #[test]
    fn names_that_contradict_one_another_are_told() {
        let mut event = event();
        event["userIdentity"]["principalId"] =
            "AROAEXAMPLE:tp-0198b2a00000700080000000000000ac".into();
        assert!(of(&event).credential.contradictory);
        event["userIdentity"]["principalId"] = "AROAEXAMPLE:botocore".into();
        assert!(of(&event).credential.foreign);
    }

    #[test]
    fn a_broker_that_has_a_session_of_its_own_may_make_ours() {
        let mut event = event();
        event["eventSource"] = "sts.amazonaws.com".into();
        event["eventName"] = "AssumeRole".into();
        event["userIdentity"] = json!({
            "type": "AssumedRole", "principalId": "AROABROKER:i-0123456789",
            "arn": "arn:aws:sts::123456789012:assumed-role/broker/i-0123456789"
        });
        event["requestParameters"] = json!({
            "roleSessionName": NAME, "sourceIdentity": URL_SAFE_NO_PAD.encode([9; 32])
        });
        let record = of(&event);
        assert_eq!(record.deed, Deed::Mint);
        assert!(!record.credential.foreign);
        // Two identities of which one is not ours are no proof of either.
        event["responseElements"] = json!({"sourceIdentity": "eve"});
        assert!(of(&event).credential.foreign);
    }

    #[test]
    fn an_insight_is_nobodys_action() {
        let insight = json!({
            "eventTime": "2026-11-23T12:01:00Z", "awsRegion": "eu-central-1",
            "eventType": "AwsCloudTrailInsight", "eventID": "i-1",
            "insightDetails": {"eventSource": "s3.amazonaws.com", "eventName": "GetObject"}
        });
        assert!(matches!(of(&insight).outcome, Outcome::Nobodys(_)));
        let mut other = insight;
        other["eventType"] = "AwsApiCall".into();
        assert!(read(other.to_string().as_bytes()).is_err());
    }

    #[test]
    fn a_refusal_is_told_from_another_failure() {
        for (code, expected) in [
            ("AccessDenied", Outcome::Refused),
            ("Client.UnauthorizedOperation", Outcome::Refused),
            ("VpceAccessDenied", Outcome::Refused),
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
        // Texts and arrays in place of objects say nothing, not even by the order of what they hold.
        for odd in [json!("reports"), json!(["reports", "team/a"]), json!(7)] {
            let mut odd_one = self::event();
            odd_one["requestParameters"] = odd.clone();
            odd_one["responseElements"] = odd.clone();
            odd_one["resources"] = Value::Null;
            let record = of(&odd_one);
            assert_eq!(record.resource, "-", "{odd}");
            assert!(matches!(record.deed, Deed::Rights { named: false, .. }));
            odd_one["userIdentity"] = odd;
            assert!(of(&odd_one).credential.is_empty());
        }
        let mut listed = self::event();
        listed["resources"] = json!([["arn:aws:s3:::reports/team/a", "AWS::S3::Object"]]);
        let Deed::Rights { unclear, .. } = of(&listed).deed else {
            panic!()
        };
        assert!(unclear.is_some());
        let mut region = self::event();
        region["awsRegion"] = json!(["eu-central-1"]);
        assert_eq!(of(&region).region, Region::Unclear);
        region["awsRegion"] = "r".repeat(70_000).into();
        assert_eq!(of(&region).region, Region::Unclear);
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
            r#"[{},"2026-11-23T12:01:00Z","s3.amazonaws.com","GetObject"]"#,
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
