//! Records in JSON, of which a small table says where is what: access logs, and OCSF with the table
//! that its classes imply.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::cloudtrail::session_of;
use super::names::{Call, is_aws, is_refusal};
use super::record::{Credential, Deed, Outcome, Record, TimeFormat, arn, hash, session, time, url};
use crate::cli::Failure;
use crate::domain::grant::{ActionName, Location};

/// The longest mapping that is read.
const MAX_BYTES: u64 = 64 * 1024;

/// Parts of an action that are put together.
const MAX_PARTS: usize = 4;

/// A JSON pointer (RFC 6901).
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Pointer(String);

impl TryFrom<String> for Pointer {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.starts_with('/') {
            return Ok(Self(text));
        }
        Err("a JSON pointer begins with /")
    }
}

impl Pointer {
    fn of<'a>(&self, record: &'a Value) -> &'a Value {
        record.pointer(&self.0).unwrap_or(&Value::Null)
    }

    /// The text there; numbers count as theirs.
    fn text(&self, record: &Value) -> Option<String> {
        match self.of(record) {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

/// One pointer, or several whose texts are put together with blanks.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Pointers {
    One(Pointer),
    Several(Vec<Pointer>),
}

/// Where a record says what.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mapping {
    time: Option<Pointer>,
    time_format: Option<TimeFormat>,
    id: Option<Pointer>,
    principal: Option<Pointer>,
    action: Option<Pointers>,
    location: Option<Pointer>,
    /// What stands before every location, where records hold paths alone.
    location_prefix: Option<String>,
    region: Option<Pointer>,
    #[serde(default)]
    credential: CredentialMapping,
    /// What the grant calls what the record calls otherwise. With it, other actions are unclear.
    #[serde(default)]
    actions: BTreeMap<String, String>,
    refused: Option<Refused>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialMapping {
    /// The `jti` of a credential, or its session's id.
    session: Option<Pointer>,
    /// The `dec` of a credential.
    hash: Option<Pointer>,
    /// The credential itself, or the header that held it.
    jwt: Option<Pointer>,
}

/// How a record says that nothing was done.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refused {
    pointer: Pointer,
    values: Vec<Value>,
}

impl Mapping {
    /// Reads one from its file.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let bytes = crate::cli::client::read_file(path, MAX_BYTES)?;
        let wrong = |why: &str| Failure::Usage(format!("{}: {why}", path.display()));
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong("it is not text"))?;
        toml::from_str(text).map_err(|error| wrong(error.message()))
    }

    /// Whether records in JSON lines can be read with it.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let several = match &self.action {
            Some(Pointers::Several(parts)) => parts.len(),
            _ => 1,
        };
        let why = if self.time.is_none() || self.action.is_none() {
            "the mapping has to say where `time` and `action` are"
        } else if self.credential.is_empty() {
            "the mapping has to say where a record's credential is: `session`, `hash` or `jwt`"
        } else if !(1..=MAX_PARTS).contains(&several) {
            "an action is put together of one to four parts"
        } else {
            return Ok(());
        };
        Err(Failure::Usage(why.into()))
    }

    fn action(&self, record: &Value) -> Option<String> {
        match self.action.as_ref()? {
            Pointers::One(pointer) => pointer.text(record),
            Pointers::Several(pointers) => {
                let parts = pointers.iter().map(|pointer| pointer.text(record));
                parts.collect::<Option<Vec<_>>>().map(|all| all.join(" "))
            }
        }
    }

    fn credential(&self, record: &Value, into: &mut Credential) {
        let text = |pointer: &Option<Pointer>| pointer.as_ref()?.text(record);
        if let Some(session) = text(&self.credential.session).and_then(|text| session(&text)) {
            into.add_session(session);
        }
        if let Some(hash) = text(&self.credential.hash).and_then(|text| hash(&text)) {
            into.add_hash(hash);
        }
        if let Some(token) = text(&self.credential.jwt) {
            into.add_token(&token);
        }
    }

    fn is_refused(&self, record: &Value) -> bool {
        self.refused
            .as_ref()
            .is_some_and(|refused| refused.values.contains(refused.pointer.of(record)))
    }

    fn place(&self, text: &str) -> Option<Location> {
        match &self.location_prefix {
            // What is no path could make another host of the prefix.
            Some(_) if !text.is_empty() && !text.starts_with('/') => None,
            Some(prefix) => url(&format!("{prefix}{text}")),
            None if text.starts_with("arn:") => arn(text),
            None => url(text),
        }
    }

    /// What was done, by the grant's own names.
    fn deed(&self, action: Option<&str>, place: Option<&str>) -> Deed {
        let named = match action {
            Some(action) if self.actions.is_empty() => Some(action),
            Some(action) => self.actions.get(action).map(String::as_str),
            None => return Deed::Unclear("it does not say what was done"),
        };
        let Some(named) = named else {
            return Deed::Unclear("the mapping has no name for its action");
        };
        let action = ActionName::try_from(named.to_owned()).ok();
        let Some(action) = action.filter(|action| !action.has_wildcards()) else {
            return Deed::Unclear("its action has no name that a grant could have");
        };
        // A prefix without a location is where everything happened.
        let everywhere = self.location.is_none() && self.location_prefix.is_some();
        let Some(place) = place.or(everywhere.then_some("")) else {
            return Deed::Rights {
                action,
                places: Vec::new(),
                named: false,
            };
        };
        match self.place(place) {
            Some(place) => Deed::Rights {
                action,
                places: vec![place],
                named: true,
            },
            None => {
                Deed::Unclear("its location is none that a grant could name, or has two readings")
            }
        }
    }
}

impl CredentialMapping {
    fn is_empty(&self) -> bool {
        self.session.is_none() && self.hash.is_none() && self.jwt.is_none()
    }
}

fn object(bytes: &[u8]) -> Result<Value, &'static str> {
    crate::crypto::strict_json::object(bytes)
        .map(Value::Object)
        .map_err(|_| "it is not an object in JSON, every member once")
}

/// Reads one record of an access log.
pub(super) fn read(mapping: &Mapping, bytes: &[u8]) -> Result<Record, &'static str> {
    let record = object(bytes)?;
    let text = |pointer: &Option<Pointer>| pointer.as_ref()?.text(&record);
    let (action, place) = (mapping.action(&record), text(&mapping.location));
    let mut credential = Credential::default();
    mapping.credential(&record, &mut credential);
    let at = mapping
        .time
        .as_ref()
        .map_or(&Value::Null, |pointer| pointer.of(&record));
    Ok(Record {
        id: text(&mapping.id),
        at: time(at, mapping.time_format.unwrap_or_default()),
        principal: text(&mapping.principal).unwrap_or_else(|| "nobody named".to_owned()),
        deed: mapping.deed(action.as_deref(), place.as_deref()),
        action: action.unwrap_or_else(|| "-".to_owned()),
        resource: place.unwrap_or_else(|| "-".to_owned()),
        region: text(&mapping.region),
        credential,
        outcome: if mapping.is_refused(&record) {
            Outcome::Refused
        } else {
            Outcome::Done
        },
    })
}

/// Reads one event of OCSF. What `mapping` says stands in place of what is usual.
pub(super) fn read_ocsf(mapping: &Mapping, bytes: &[u8]) -> Result<Record, &'static str> {
    /// API Activity.
    const API_ACTIVITY: u64 = 6003;
    let record = object(bytes)?;
    let at = |path: &str| record.pointer(path).unwrap_or(&Value::Null);
    let usual = |pointer: &Option<Pointer>, paths: &[&str]| match pointer {
        Some(pointer) => pointer.text(&record),
        None => paths
            .iter()
            .find_map(|path| at(path).as_str().map(str::to_owned)),
    };
    let Some(class) = at("/class_uid").as_u64() else {
        return Err("it has no class_uid, so it is no event of OCSF");
    };
    let operation = mapping
        .action(&record)
        .or_else(|| at("/api/operation").as_str().map(str::to_owned));
    let mut credential = Credential::default();
    mapping.credential(&record, &mut credential);
    if mapping.credential.session.is_none() {
        let own = at("/actor/session/uid").as_str().and_then(session);
        let named = [
            "/actor/user/uid",
            "/actor/user/uid_alt",
            "/actor/session/uid",
        ];
        let named = named
            .iter()
            .filter_map(|path| session_of(at(path).as_str()?));
        for session in own.into_iter().chain(named) {
            credential.add_session(session);
        }
    }
    if mapping.credential.hash.is_none() {
        let paths = [
            "/unmapped/userIdentity.sessionContext.sourceIdentity",
            "/unmapped/userIdentity/sessionContext/sourceIdentity",
            "/unmapped/dec",
        ];
        for hash in paths.iter().filter_map(|path| hash(at(path).as_str()?)) {
            credential.add_hash(hash);
        }
    }
    let service = at("/api/service/name").as_str().unwrap_or_default();
    // As with CloudTrail; a mapping that says where the session is vouches for the place.
    let found = credential.session.is_some() && mapping.credential.session.is_none();
    credential.by_name_alone = found && is_aws(service) && credential.hash.is_none();
    let place = usual(
        &mapping.location,
        &[
            "/http_request/url/url_string",
            "/resources/0/uid",
            "/resources/0/name",
        ],
    );
    let (deed, shown, shown_place) = if is_aws(service) && mapping.action.is_none() {
        let call = aws_call(&record, service, operation.as_deref().unwrap_or_default());
        (call.deed(), call.shown(), call.shown_place())
    } else {
        let deed = mapping.deed(operation.as_deref(), place.as_deref());
        let shown = operation.clone().unwrap_or_else(|| "-".to_owned());
        (deed, shown, place.unwrap_or_else(|| "-".to_owned()))
    };
    let code = at("/api/response/error").as_str().unwrap_or_default();
    let status = at("/http_response/code").as_u64();
    let refused = is_refusal(code)
        || matches!(status, Some(401 | 403)) && mapping.refused.is_none()
        || mapping.is_refused(&record);
    let outcome = if class != API_ACTIVITY && operation.is_none() && credential.is_empty() {
        Outcome::Nobodys("an event of another class than API Activity")
    } else if refused {
        Outcome::Refused
    } else {
        Outcome::Done
    };
    let (when, format) = match &mapping.time {
        Some(pointer) => (pointer.of(&record), mapping.time_format.unwrap_or_default()),
        None => (
            at("/time"),
            mapping.time_format.unwrap_or(TimeFormat::EpochMs),
        ),
    };
    Ok(Record {
        id: usual(&mapping.id, &["/metadata/uid"]),
        at: time(when, format),
        principal: usual(&mapping.principal, &["/actor/user/uid", "/actor/user/name"])
            .unwrap_or_else(|| "nobody named".to_owned()),
        action: shown,
        resource: shown_place,
        region: usual(&mapping.region, &["/cloud/region"]),
        credential,
        deed,
        outcome,
    })
}

/// What an event of OCSF that was made of one of CloudTrail says that was called.
fn aws_call(record: &Value, service: &str, operation: &str) -> Call {
    let text = |value: &Value, path: &str| {
        let found = value.pointer(path).and_then(Value::as_str);
        found.map(str::to_owned)
    };
    let listed = record.pointer("/resources").and_then(Value::as_array);
    Call {
        source: service.to_owned(),
        name: operation.to_owned(),
        region: text(record, "/cloud/region"),
        resources: listed
            .into_iter()
            .flatten()
            .filter_map(|resource| {
                let uid = text(resource, "/uid").filter(|uid| uid.starts_with("arn:"))?;
                Some((uid, text(resource, "/type")))
            })
            .collect(),
        bucket: text(record, "/api/request/data/bucketName"),
        key: text(record, "/api/request/data/key"),
        version: text(record, "/api/request/data/versionId"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SESSION: &str = "0198b2a0-0000-7000-8000-0000000000ab";

    fn mapping(text: &str) -> Mapping {
        toml::from_str(text).unwrap()
    }

    fn access_log() -> Mapping {
        mapping(
            r#"
time = "/ts"
id = "/request/id"
principal = "/sub"
action = ["/method", "/route"]
location = "/path"
location_prefix = "https://orders.example"
credential.session = "/jti"
refused = { pointer = "/status", values = [401, 403] }
[actions]
"GET orders" = "orders:read"
"#,
        )
    }

    fn entry() -> Value {
        json!({
            "ts": "2026-11-23T13:00:00+01:00", "request": {"id": "r-1"}, "sub": "reports",
            "method": "GET", "route": "orders", "path": "/v1/42?page=2", "status": 200, "jti": SESSION
        })
    }

    fn of(mapping: &Mapping, record: &Value) -> Record {
        read(mapping, record.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_access_log_is_read_as_its_mapping_says() {
        let record = of(&access_log(), &entry());
        assert_eq!(record.id.as_deref(), Some("r-1"));
        assert_eq!(record.at.unwrap().to_string(), "2026-11-23T12:00:00Z");
        assert_eq!(record.credential.session, session(SESSION));
        assert_eq!(
            (record.action.as_str(), record.resource.as_str()),
            ("GET orders", "/v1/42?page=2")
        );
        let Deed::Rights {
            action,
            places,
            named,
        } = record.deed
        else {
            panic!("{:?}", record.deed);
        };
        assert_eq!(
            (action.as_str(), places[0].as_str(), named),
            ("orders:read", "https://orders.example/v1/42", true)
        );
        assert_eq!(record.outcome, Outcome::Done);
        let mut refused = entry();
        refused["status"] = 403.into();
        assert_eq!(of(&access_log(), &refused).outcome, Outcome::Refused);
    }

    #[test]
    fn what_the_mapping_does_not_know_is_unclear_and_not_guessed() {
        for (path, value) in [
            ("/route", json!("invoices")),
            ("/route", Value::Null),
            ("/path", json!("/v1/../admin")),
            ("/path", json!("/v1/%2e%2e/admin")),
            ("/path", json!("@evil.example/v1")),
            ("/path", json!(".evil.example/v1")),
        ] {
            let mut entry = entry();
            *entry.pointer_mut(path).unwrap() = value;
            let record = of(&access_log(), &entry);
            assert!(
                matches!(record.deed, Deed::Unclear(_)),
                "{path}: {:?}",
                record.deed
            );
        }
    }

    #[test]
    fn a_mapping_that_says_too_little_or_too_much_is_refused() {
        for bad in [
            "",
            "time = \"/t\"",
            "time = \"/t\"\naction = \"/a\"",
            "action = \"/a\"\ncredential.hash = \"/h\"",
            "time = \"/t\"\naction = []\ncredential.hash = \"/h\"",
        ] {
            assert!(mapping(bad).check().is_err(), "{bad}");
        }
        for bad in [
            "time = \"t\"",
            "when = \"/t\"",
            "time_format = \"epoch\"",
            "credential.token = \"/x\"",
        ] {
            assert!(toml::from_str::<Mapping>(bad).is_err(), "{bad}");
        }
        access_log().check().unwrap();
    }

    #[test]
    fn an_event_of_ocsf_needs_no_mapping_and_can_have_one() {
        let event = json!({
            "class_uid": 6003, "activity_id": 2, "time": 1_795_435_200_000_i64,
            "metadata": {"uid": "m-1", "version": "1.8.0"},
            "actor": {"user": {"uid": "agent"}, "session": {"uid": SESSION}},
            "api": {"operation": "orders:read", "service": {"name": "orders"}},
            "http_request": {"url": {"url_string": "https://orders.example/v1/42"}},
            "unmapped": {"dec": "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk"}
        });
        let of =
            |mapping: &Mapping, event: &Value| read_ocsf(mapping, event.to_string().as_bytes());
        let usual = of(&Mapping::default(), &event).unwrap();
        assert_eq!(usual.at.unwrap().to_string(), "2026-11-23T12:00:00Z");
        assert_eq!(
            (usual.id.as_deref(), usual.principal.as_str()),
            (Some("m-1"), "agent")
        );
        assert_eq!(usual.credential.session, session(SESSION));
        assert!(usual.credential.hash.is_some() && !usual.credential.contradictory);
        assert!(matches!(usual.deed, Deed::Rights { named: true, .. }));
        let own = mapping("id = \"/actor/user/uid\"\ncredential.session = \"/none\"");
        let own = of(&own, &event).unwrap();
        assert_eq!(
            (own.id.as_deref(), own.credential.session),
            (Some("agent"), None)
        );

        let mut finding = event.clone();
        finding["class_uid"] = 2004.into();
        finding["api"] = Value::Null;
        finding["actor"] = Value::Null;
        finding["unmapped"] = Value::Null;
        let finding = of(&Mapping::default(), &finding).unwrap();
        assert!(matches!(finding.outcome, Outcome::Nobodys(_)));
        let mut naive = event;
        naive["time"] = "2026-11-23T12:00:00".into();
        assert!(of(&Mapping::default(), &naive).unwrap().at.is_err());
        assert!(of(&Mapping::default(), &json!({})).is_err());
    }

    #[test]
    fn an_event_of_cloudtrail_in_ocsf_is_read_as_one() {
        let event = json!({
            "class_uid": 6003, "time": 1_795_435_200_000_i64, "cloud": {"region": "eu-central-1"},
            "actor": {"user": {
                "uid": "arn:aws:sts::123456789012:assumed-role/reports/tp-0198b2a00000700080000000000000ab"
            }},
            "api": {"operation": "HeadObject", "service": {"name": "s3.amazonaws.com"}},
            "resources": [{"uid": "arn:aws:s3:::reports/a", "type": "AWS::S3::Object"}, {"name": "x"}]
        });
        let record = read_ocsf(&Mapping::default(), event.to_string().as_bytes()).unwrap();
        assert_eq!(record.action, "s3:HeadObject");
        assert_eq!(record.resource, "arn:aws:s3:::reports/a");
        assert_eq!(record.credential.session, session(SESSION));
        assert!(record.credential.by_name_alone);
        let Deed::Rights { action, .. } = record.deed else {
            panic!("{:?}", record.deed);
        };
        assert_eq!(action.as_str(), "s3:GetObject");
        // The same with the source identity, or where a mapping says that this is the place.
        let mut whole = event.clone();
        whole["unmapped"] = json!({
            "userIdentity.sessionContext.sourceIdentity": "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk"
        });
        let vouched = mapping("credential.session = \"/actor/session/uid\"");
        let mut elsewhere = event;
        elsewhere["actor"]["session"] = json!({"uid": SESSION});
        for (mapping, event) in [(&Mapping::default(), whole), (&vouched, elsewhere)] {
            let record = read_ocsf(mapping, event.to_string().as_bytes()).unwrap();
            assert!(record.credential.session.is_some());
            assert!(!record.credential.by_name_alone);
        }
    }
}
