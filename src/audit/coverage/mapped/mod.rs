//! Reads JSON records with a mapping that gives the locations of their fields: access logs, and
//! OCSF with the mapping that its classes imply.
//!
//! A mapping that cannot be used is [`AuditError::Input`]. A record that is not an object or lacks
//! a required field is unreadable: the error says why, and [`super::Run`] counts the record and
//! goes on. [`super::cloudtrail`] shares the recognition of the broker's own calls.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::cloudtrail::{AskedFor, OF_ITS_OWN_ACCORD, mints};
use super::names::{Call, is_aws, is_refusal};
use super::record::{
    Credential, Outcome, Record, RecordedAction, Region, RoleSeen, TimeFormat, arn, session, time,
    url,
};
use crate::audit::AuditError;
use crate::domain::action::ActionName;
use crate::domain::location::Location;

/// The longest mapping that is read, in bytes.
pub(crate) const MAX_BYTES: u64 = 64 * 1024;

/// The most parts of which an action is composed.
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
        Err("a JSON pointer must begin with /")
    }
}

impl Pointer {
    fn of<'a>(&self, record: &'a Value) -> &'a Value {
        record.pointer(&self.0).unwrap_or(&Value::Null)
    }

    /// The text at the pointer; a number is converted to text.
    fn text(&self, record: &Value) -> Option<String> {
        match self.of(record) {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// The value at the pointer as text, from any JSON type; `None` if it is missing or null.
    fn as_text(&self, record: &Value) -> Option<String> {
        match self.of(record) {
            Value::Null => None,
            other => self.text(record).or_else(|| Some(other.to_string())),
        }
    }
}

/// The locations that a record names. `None` for a value that cannot be a location.
type RecordedLocations = Vec<Option<String>>;

/// One pointer, or several whose texts are joined with spaces.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Pointers {
    One(Pointer),
    Several(Vec<Pointer>),
}

/// The locations of a record's fields, as JSON pointers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mapping {
    time: Option<Pointer>,
    time_format: Option<TimeFormat>,
    id: Option<Pointer>,
    principal: Option<Pointer>,
    action: Option<Pointers>,
    location: Option<Pointer>,
    /// The prefix of every location, for records that hold only paths.
    location_prefix: Option<String>,
    region: Option<Pointer>,
    #[serde(default)]
    credential: CredentialMapping,
    /// The grant's name for each of the record's actions. If given, all other actions are unclear.
    #[serde(default)]
    actions: BTreeMap<String, String>,
    refused: Option<Refused>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialMapping {
    /// The location of a credential's `jti`, or of its session's id.
    session: Option<Pointer>,
    /// The location of a credential's `dec` claim.
    hash: Option<Pointer>,
    /// The location of the credential itself, or of the header that held it.
    jwt: Option<Pointer>,
}

/// How a record shows that nothing was done.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refused {
    pointer: Pointer,
    values: Vec<Value>,
}

impl Mapping {
    /// Parses the content of the file `name`.
    pub(crate) fn parse(name: &str, content: &[u8]) -> Result<Self, AuditError> {
        let wrong = |why: &str| AuditError::Input(format!("{name}: {why}"));
        let text = std::str::from_utf8(content).map_err(|_| wrong("the file is not UTF-8"))?;
        toml::from_str(text).map_err(|error| wrong(error.message()))
    }

    /// Checks that the mapping suffices for records in JSON lines.
    pub(crate) fn check(&self) -> Result<(), AuditError> {
        let several = match &self.action {
            Some(Pointers::Several(parts)) => parts.len(),
            _ => 1,
        };
        let why = if self.time.is_none() || self.action.is_none() {
            "the mapping must give the locations of `time` and `action`"
        } else if self.credential.is_empty() {
            "the mapping must give the location of the credential: `session`, `hash` or `jwt`"
        } else if !(1..=MAX_PARTS).contains(&several) {
            "an action must have one to four parts"
        } else {
            return Ok(());
        };
        Err(AuditError::Input(why.into()))
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

    /// Reads the broker's credential from the mapped locations. Every one of them must hold a value
    /// of the broker's.
    fn credential(&self, record: &Value, into: &mut Credential) {
        let text = |pointer: &Option<Pointer>| pointer.as_ref()?.as_text(record);
        if let Some(text) = text(&self.credential.session) {
            into.add_session_text(&text);
        }
        if let Some(text) = text(&self.credential.hash) {
            into.add_hash_text(&text);
        }
        if let Some(text) = text(&self.credential.jwt) {
            into.add_token(&text);
        }
    }

    /// The text at the mapped pointer.
    fn recorded_locations(&self, record: &Value) -> RecordedLocations {
        let Some(pointer) = &self.location else {
            return RecordedLocations::new();
        };
        match pointer.of(record) {
            Value::Null => RecordedLocations::new(),
            _ => vec![pointer.text(record)],
        }
    }

    fn is_refused(&self, record: &Value) -> bool {
        self.refused
            .as_ref()
            .is_some_and(|refused| refused.values.contains(refused.pointer.of(record)))
    }

    fn parse_location(&self, text: &str) -> Option<Location> {
        match &self.location_prefix {
            // A text that is not a path could change the host of the prefix.
            Some(_) if !text.is_empty() && !text.starts_with('/') => None,
            Some(prefix) => url(&format!("{prefix}{text}")),
            None if text.starts_with("arn:") => arn(text),
            None => url(text),
        }
    }

    /// The action by the grant's names. Known parts are kept even if others are unknown.
    fn recorded_action(&self, action: Option<&str>, said: &[Option<String>]) -> RecordedAction {
        let unclear = |why| RecordedAction::Unclear {
            why,
            needs: Vec::new(),
        };
        let named = match action {
            Some(action) if self.actions.is_empty() => Some(action),
            Some(action) => self.actions.get(action).map(String::as_str),
            None => return unclear("it does not name its action"),
        };
        let Some(named) = named else {
            return unclear("the mapping has no name for its action");
        };
        let action = ActionName::try_from(named.to_owned()).ok();
        let Some(action) = action.filter(|action| !action.has_wildcards()) else {
            return unclear("its action has no name that a grant can contain");
        };
        // With a prefix but no location, the prefix is the location of every action.
        let everywhere = self.location.is_none() && self.location_prefix.is_some();
        let here = [Some(String::new())];
        let said = match said {
            [] if everywhere => &here,
            said => said,
        };
        let locations = said
            .iter()
            .map(|text| self.parse_location(text.as_deref()?));
        let locations: Vec<Option<Location>> = locations.collect();
        let odd = "its location is one that no grant can name, or is ambiguous";
        RecordedAction::Rights {
            action,
            named: !locations.is_empty(),
            unclear: locations.contains(&None).then_some(odd),
            locations: locations.into_iter().flatten().collect(),
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
        .map_err(|_| "it is not a JSON object in which every member occurs once")
}

/// Reads one record of an access log.
pub(crate) fn read(mapping: &Mapping, bytes: &[u8]) -> Result<Record, &'static str> {
    let record = object(bytes)?;
    let text = |pointer: &Option<Pointer>| pointer.as_ref()?.text(&record);
    let (action, said) = (mapping.action(&record), mapping.recorded_locations(&record));
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
        recorded_action: mapping.recorded_action(action.as_deref(), &said),
        action: action.unwrap_or_else(|| "-".to_owned()),
        resource: shown(&said),
        region: region(mapping.region.as_ref(), &record),
        credential,
        outcome: if mapping.is_refused(&record) {
            Outcome::Refused
        } else {
            Outcome::Done
        },
    })
}

/// The first location that is a text, for display.
fn shown(said: &[Option<String>]) -> String {
    let first = said.iter().flatten().next();
    first.map_or_else(|| "-".to_owned(), Clone::clone)
}

fn region(pointer: Option<&Pointer>, record: &Value) -> Region {
    let found = pointer.and_then(|pointer| pointer.as_text(record));
    Region::of(found.as_deref())
}

/// An event of OCSF. `mapping` replaces the usual locations.
struct Ocsf<'a> {
    mapping: &'a Mapping,
    record: &'a Value,
}

/// Reads one event of OCSF. `mapping` replaces the usual locations.
pub(crate) fn read_ocsf(mapping: &Mapping, bytes: &[u8]) -> Result<Record, &'static str> {
    let record = object(bytes)?;
    let Some(class) = record.get("class_uid").and_then(Value::as_u64) else {
        return Err("it has no class_uid, so it is not an event of OCSF");
    };
    let event = Ocsf {
        mapping,
        record: &record,
    };
    let service = event.text("/api/service/name").unwrap_or_default();
    let operation = mapping.action(&record);
    let operation = operation.or_else(|| event.text("/api/operation").map(str::to_owned));
    let mut credential = event.credential(is_aws(service));
    let (recorded_action, action, resource) = if is_aws(service) && mapping.action.is_none() {
        event.call(service, operation.unwrap_or_default(), &mut credential)
    } else {
        let said = event.recorded_locations();
        let recorded_action = mapping.recorded_action(operation.as_deref(), &said);
        let action = operation.unwrap_or_else(|| "-".to_owned());
        (recorded_action, action, shown(&said))
    };
    let outcome = if is_no_action(class) {
        Outcome::Nobodys("a finding or an inventory, which is no action")
    } else if credential.is_empty() && is_aws(service) && event.is_of_its_own_accord() {
        Outcome::Nobodys(OF_ITS_OWN_ACCORD)
    } else if event.is_refused() {
        Outcome::Refused
    } else {
        Outcome::Done
    };
    let (when, format) = match &mapping.time {
        Some(pointer) => (pointer.of(&record), mapping.time_format.unwrap_or_default()),
        None => (
            event.at("/time"),
            mapping.time_format.unwrap_or(TimeFormat::EpochMs),
        ),
    };
    let principal = event.usual(
        mapping.principal.as_ref(),
        &["/actor/user/uid", "/actor/user/name"],
    );
    Ok(Record {
        id: event.usual(mapping.id.as_ref(), &["/metadata/uid"]),
        at: time(when, format),
        principal: principal.unwrap_or_else(|| "nobody named".to_owned()),
        action,
        resource,
        region: event.region(),
        credential,
        recorded_action,
        outcome,
    })
}

/// Whether a class describes findings or inventory instead of actions. Only the class decides that:
/// an action without a credential is still an action.
fn is_no_action(class: u64) -> bool {
    /// Findings and Discovery; the numbers of their classes begin with these digits.
    const CATEGORIES: [u64; 2] = [2, 5];
    CATEGORIES.contains(&(class / 1_000))
}

impl<'a> Ocsf<'a> {
    fn at(&self, path: &str) -> &'a Value {
        self.record.pointer(path).unwrap_or(&Value::Null)
    }

    fn text(&self, path: &str) -> Option<&'a str> {
        self.at(path).as_str()
    }

    fn texts<const N: usize>(&self, paths: [&str; N]) -> [Option<&'a str>; N] {
        paths.map(|path| self.text(path))
    }

    fn usual(&self, pointer: Option<&Pointer>, paths: &[&str]) -> Option<String> {
        match pointer {
            Some(pointer) => pointer.text(self.record),
            None => paths
                .iter()
                .find_map(|path| self.text(path).map(str::to_owned)),
        }
    }

    fn region(&self) -> Region {
        let usual = Pointer("/cloud/region".to_owned());
        region(
            Some(self.mapping.region.as_ref().unwrap_or(&usual)),
            self.record,
        )
    }

    fn credential(&self, aws: bool) -> Credential {
        let mapped = &self.mapping.credential;
        let mut credential = Credential::default();
        self.mapping.credential(self.record, &mut credential);
        if mapped.session.is_none() {
            let users = self.texts(["/actor/user/uid", "/actor/user/uid_alt", "/actor/user/uuid"]);
            for text in users.iter().flatten() {
                credential.add_session_of_aws(text);
            }
            // Ignore other values that AWS writes there. From any other service, a value that is
            // not a session of the broker is foreign.
            if let Some(text) = self.text("/actor/session/uid")
                && !credential.add_session_of_aws(text)
                && (!aws || session(text).is_some())
            {
                credential.add_session_text(text);
            }
        }
        if mapped.hash.is_none() {
            let hashes = self.texts([
                "/unmapped/userIdentity.sessionContext.sourceIdentity",
                "/unmapped/userIdentity/sessionContext/sourceIdentity",
                "/unmapped/dec",
            ]);
            for text in hashes.iter().flatten() {
                credential.add_hash_text(text);
            }
        }
        let issuers = self.texts([
            "/actor/session/issuer",
            "/unmapped/userIdentity.sessionContext.sessionIssuer.arn",
            "/unmapped/userIdentity/sessionContext/sessionIssuer/arn",
        ]);
        // Sessions of other services have other kinds of issuers.
        let issuers = issuers.into_iter().flatten();
        let issuers = issuers.filter(|issuer| aws || issuer.starts_with("arn:"));
        let issuers = issuers.map(str::to_owned);
        credential.roles.extend(issuers.map(RoleSeen::Arn));
        let account = self.text("/actor/user/account/uid");
        let account = account.filter(|_| credential.named).map(str::to_owned);
        credential.roles.extend(account.map(RoleSeen::Account));
        // As for CloudTrail. A mapping that names the location of the session makes it trustworthy.
        credential.needs_both = (aws || credential.named) && mapped.session.is_none();
        credential
    }

    /// Every object of the action that the event names, by its URL or as a resource.
    fn recorded_locations(&self) -> RecordedLocations {
        if self.mapping.location.is_some() {
            return self.mapping.recorded_locations(self.record);
        }
        let url = self.at("/http_request/url/url_string");
        let url = (!url.is_null()).then(|| url.as_str().map(str::to_owned));
        url.into_iter().chain(self.resources()).collect()
    }

    /// The names of the resources: the id, or else the name of each.
    fn resources(&self) -> RecordedLocations {
        let named = |resource: &Value| {
            let texts = ["uid", "name"].map(|name| resource.get(name).and_then(Value::as_str));
            texts.into_iter().flatten().next().map(str::to_owned)
        };
        match self.at("/resources") {
            Value::Null => RecordedLocations::new(),
            Value::Array(all) => all.iter().map(named).collect(),
            _ => vec![None],
        }
    }

    /// The call in an event that was converted from `CloudTrail`.
    fn call(
        &self,
        service: &str,
        operation: String,
        credential: &mut Credential,
    ) -> (RecordedAction, String, String) {
        let asked = self.data("/api/request/data");
        let answered = self.data("/api/response/data");
        let text = |of: &Value, name: &str| Some(of.get(name)?.as_str()?.to_owned());
        let is_odd = |name: &str| {
            let value = asked.get(name).unwrap_or(&Value::Null);
            !(value.is_null() || value.is_string())
        };
        let kinds = match self.at("/resources") {
            Value::Array(all) => all.iter().map(|resource| text(resource, "type")).collect(),
            _ => vec![None],
        };
        let arns = self.resources();
        let arns = arns
            .into_iter()
            .map(|uid| uid.filter(|uid| uid.starts_with("arn:")));
        let call = Call {
            source: service.to_owned(),
            name: operation,
            region: self.region(),
            resources: arns.zip(kinds).collect(),
            bucket: text(&asked, "bucketName"),
            key: text(&asked, "key"),
            version: text(&asked, "versionId"),
            odd: ["bucketName", "key", "versionId"].into_iter().any(is_odd),
        };
        let flat = self.texts([
            "/unmapped/requestParameters.roleSessionName",
            "/unmapped/requestParameters.sourceIdentity",
            "/unmapped/responseElements.sourceIdentity",
            "/unmapped/requestParameters.roleArn",
        ]);
        let name = text(&asked, "roleSessionName").or_else(|| flat[0].map(str::to_owned));
        let of_data = [&asked, &answered].map(|data| text(data, "sourceIdentity"));
        let identities = [
            of_data[0].as_deref(),
            of_data[1].as_deref(),
            flat[1],
            flat[2],
        ];
        let role = text(&asked, "roleArn").or_else(|| flat[3].map(str::to_owned));
        let asked_for = AskedFor {
            name: name.as_deref(),
            role: role.as_deref(),
        };
        let recorded_action = if mints(&call, credential, asked_for, &identities) {
            let made = answered
                .pointer("/assumedRoleUser/arn")
                .and_then(Value::as_str);
            if let Some(made) = made.or(self.text("/unmapped/responseElements.assumedRoleUser.arn"))
            {
                credential.add_session_of_aws(made);
            }
            RecordedAction::Mint
        } else {
            call.recorded_action()
        };
        let role = role.filter(|_| call.makes_a_session());
        let location = role.unwrap_or_else(|| call.shown_location());
        (recorded_action, call.shown(), location)
    }

    /// The object at the path, or the object in its text.
    fn data(&self, path: &str) -> Value {
        match self.at(path) {
            Value::String(text) => object(text.as_bytes()).unwrap_or_default(),
            other => other.clone(),
        }
    }

    fn is_of_its_own_accord(&self) -> bool {
        let events = ["/metadata/event_code", "/unmapped/eventType"];
        self.text("/actor/user/type") == Some("AWSService")
            || self.texts(events).contains(&Some("AwsServiceEvent"))
    }

    fn is_refused(&self) -> bool {
        let code = self.text("/api/response/error").unwrap_or_default();
        let status = self.at("/http_response/code").as_u64();
        is_refusal(code)
            || matches!(status, Some(401 | 403)) && self.mapping.refused.is_none()
            || self.mapping.is_refused(self.record)
    }
}
