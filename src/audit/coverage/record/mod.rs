//! One record of an external action, independent of its format.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Number, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::domain::grant::{ActionName, Location};
use crate::domain::kind::aws::{RoleArn, is_region};
use crate::domain::limits::MAX_PLACE_BYTES;
use crate::ids::SessionId;
use crate::merkle::Hash;

/// The longest credential that is parsed, in bytes.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// One record of an external action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The id in the record's own format; `None` if it has none.
    pub(super) id: Option<String>,
    /// The time of the action, or the reason why it is unknown.
    pub(super) at: Result<Timestamp, &'static str>,
    /// The principal, as the record names it.
    pub(super) principal: String,
    /// The action, for display.
    pub(super) action: String,
    /// The object of the action, for display.
    pub(super) resource: String,
    pub(super) region: Region,
    /// The parts of a broker's credential that it carries.
    pub(super) credential: Credential,
    /// The deed to compare with the grant.
    pub(super) deed: Deed,
    pub(super) outcome: Outcome,
}

/// The parts of a broker's credential in a record. A member with a foreign value is distinguished
/// from a missing one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a separate fact about the evidence"
)]
pub(super) struct Credential {
    /// The id of the session; `None` if the record has none.
    pub(super) session: Option<SessionId>,
    /// The hash of the decision's leaf.
    pub(super) hash: Option<Hash>,
    /// The credential's own expiry, if it is known.
    pub(super) expires_at: Option<Timestamp>,
    /// Whether two members of the record contradict each other.
    pub(super) contradictory: bool,
    /// Whether a member holds a foreign value where the broker's would be.
    pub(super) foreign: bool,
    /// Whether the session has the form of the broker's session names at AWS.
    pub(super) named: bool,
    /// Whether others could have chosen the name or the hash, so that one of them alone proves
    /// nothing.
    pub(super) needs_both: bool,
    /// The AWS roles that the record names for the session, with repetitions.
    pub(super) roles: Vec<RoleSeen>,
}

/// An AWS role, as a record names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RoleSeen {
    /// The role's own ARN.
    Arn(String),
    /// The ARN of a session, which omits the role's path.
    Session {
        /// One of `aws`, `aws-cn` and `aws-us-gov`.
        partition: String,
        account: String,
        name: String,
    },
    /// Only the number of the role's account.
    Account(String),
}

impl RoleSeen {
    /// Whether it may be the role with this ARN.
    pub(super) fn is(&self, role_arn: &str) -> bool {
        let Some(role) = RoleArn::parse(role_arn) else {
            return false;
        };
        match self {
            Self::Arn(arn) => arn == role_arn,
            Self::Session {
                partition,
                account,
                name,
            } => (role.partition, role.account, role.name) == (partition, account, name),
            Self::Account(account) => role.account == account,
        }
    }

    /// Whether it names a role, not only an account.
    pub(super) fn names_a_role(&self) -> bool {
        !matches!(self, Self::Account(_))
    }
}

impl fmt::Display for RoleSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arn(arn) => f.write_str(arn),
            Self::Session { account, name, .. } => write!(f, "role {name} of account {account}"),
            Self::Account(account) => write!(f, "account {account}"),
        }
    }
}

/// The cloud region of an action.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Region {
    /// The record names no region.
    #[default]
    Unnamed,
    /// The record names this region.
    Named(String),
    /// The record names a value that cannot be a region.
    Unclear,
}

impl Region {
    pub(super) fn of(text: Option<&str>) -> Self {
        match text {
            None | Some("") => Self::Unnamed,
            Some(text) if is_region(text) => Self::Named(text.to_owned()),
            Some(_) => Self::Unclear,
        }
    }

    /// The name of the region if it is known.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Named(name) => Some(name),
            Self::Unnamed | Self::Unclear => None,
        }
    }

    /// Whether it may be within a grant that is confined to `own`; `None` for no confinement.
    pub(super) fn can_be_within(&self, own: Option<&str>) -> bool {
        own.is_none() || *self == Self::Unclear || own == self.name()
    }
}

/// The deed, as far as a grant can be compared with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// An action at places; each place must be permitted.
    Rights {
        action: ActionName,
        places: Vec<Location>,
        /// Whether each place is exact. Otherwise it is a pattern that stands for any matching
        /// place.
        named: bool,
        /// Why the list of places is incomplete; `None` if it is complete.
        unclear: Option<&'static str>,
    },
    /// The creation of an AWS session, as permitted by a decision for such a session.
    Mint,
    /// A deed that no grant can be compared with.
    Unclear {
        why: &'static str,
        /// If none of these was granted, the deed was certainly not granted.
        needs: Vec<ActionName>,
    },
}

/// The outcome of the action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was performed, as far as the record shows.
    Done,
    /// It was refused where it was requested, so nothing happened.
    Refused,
    /// It is not an action of a caller; the text gives the reason.
    Nobodys(&'static str),
}

impl Credential {
    /// Whether the record carries no part of a credential.
    pub(super) fn is_empty(&self) -> bool {
        self.session.is_none() && self.hash.is_none() && !self.contradictory
    }

    pub(super) fn add_session(&mut self, session: SessionId) {
        self.contradictory |= self.session.is_some_and(|known| known != session);
        self.session = Some(session);
    }

    pub(super) fn add_hash(&mut self, hash: Hash) {
        self.contradictory |= self.hash.is_some_and(|known| known != hash);
        self.hash = Some(hash);
    }

    /// Adds a text from a member that names the broker's session.
    pub(super) fn add_session_text(&mut self, text: &str) {
        match session(text) {
            Some(session) => {
                self.named |= is_name(text);
                self.add_session(session);
            }
            None => self.add_stranger(text),
        }
    }

    /// Adds a text from a member that names the broker's decision.
    pub(super) fn add_hash_text(&mut self, text: &str) {
        match hash(text) {
            Some(hash) => self.add_hash(hash),
            None => self.add_stranger(text),
        }
    }

    /// Adds the principal at AWS if it is a session of a role, with the broker's name or a foreign
    /// one. Returns whether it is such a session.
    pub(super) fn add_session_of_aws(&mut self, text: &str) -> bool {
        let Some((role, name)) = name_at_aws(text) else {
            return false;
        };
        self.roles.extend(role);
        match session(name).filter(|_| is_name(name)) {
            Some(session) => {
                self.named = true;
                self.add_session(session);
            }
            None => self.foreign = true,
        }
        true
    }

    /// Adds a value that is not the broker's. Logs write a dash for a missing value.
    pub(super) fn add_stranger(&mut self, text: &str) {
        self.foreign |= !matches!(text.trim(), "" | "-");
    }

    /// Adds the claims of an access token. They are not verified here: the server that wrote the
    /// record accepted the token. All of the broker's tokens have both claims, so a token without
    /// them is foreign.
    pub(super) fn add_token(&mut self, text: &str) {
        let claims = claims(text);
        let named = |name: &str| claims.as_ref()?.get(name)?.as_str();
        let ours = (named("jti").and_then(session), named("dec").and_then(hash));
        let (Some(session), Some(hash)) = ours else {
            return self.add_stranger(text);
        };
        self.add_session(session);
        self.add_hash(hash);
        let expires = claims.and_then(|claims| claims.get("exp")?.as_i64());
        if let Some(expires) = expires.map(Timestamp::from_seconds) {
            self.expires_at = Some(self.expires_at.map_or(expires, |at| at.min(expires)));
        }
    }
}

/// The claims of a token, or of the header that holds it.
fn claims(text: &str) -> Option<serde_json::Map<String, Value>> {
    let token = text.trim();
    let token = token
        .split_once(' ')
        .map_or(token, |(_, token)| token.trim_start());
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    if payload.len() > MAX_TOKEN_BYTES {
        return None;
    }
    let claims = URL_SAFE_NO_PAD.decode(payload).ok()?;
    crate::crypto::strict_json::object(&claims).ok()
}

/// Whether the text has the form of the broker's session names at AWS.
fn is_name(text: &str) -> bool {
    text.starts_with("tp-")
}

/// The role, if it is named, and the session's name in `arn:aws:sts::1:assumed-role/reports/tp-…`
/// or `AROA…:tp-…`. Texts of any other form hold no session name.
fn name_at_aws(text: &str) -> Option<(Option<RoleSeen>, &str)> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    match parts[..] {
        ["arn", partition, "sts", "", account, resource] => {
            let (role, name) = resource.strip_prefix("assumed-role/")?.split_once('/')?;
            let role = RoleSeen::Session {
                partition: partition.to_owned(),
                account: account.to_owned(),
                name: role.to_owned(),
            };
            Some((Some(role), name))
        }
        [role, name] if role.starts_with("AROA") => Some((None, name)),
        _ => None,
    }
}

/// Parses a session's id, or its name at AWS.
pub(super) fn session(text: &str) -> Option<SessionId> {
    if let Some(simple) = text.strip_prefix("tp-") {
        let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if simple.len() != 32 || !simple.bytes().all(lower) {
            return None;
        }
        return Uuid::parse_str(simple).ok().map(SessionId::from);
    }
    if text.len() != 36 {
        return None;
    }
    text.parse().ok()
}

/// Parses a leaf's hash: in base64url as in credentials, in base64, or in hex.
pub(super) fn hash(text: &str) -> Option<Hash> {
    let bytes = match text.len() {
        43 => URL_SAFE_NO_PAD.decode(text).ok()?,
        44 => STANDARD.decode(text).ok()?,
        64 => {
            let digit = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
            if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
            (0..64).step_by(2).map(digit).collect::<Option<Vec<u8>>>()?
        }
        _ => return None,
    };
    Hash::from_slice(&bytes).ok()
}

/// The format of times in records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TimeFormat {
    /// RFC 3339, with an offset.
    #[default]
    Rfc3339,
    /// Seconds since 1970, with or without decimals.
    EpochS,
    EpochMs,
    EpochUs,
    EpochNs,
}

/// Microseconds from 1970 to the end of the year 9999.
const TIMES: std::ops::Range<f64> = 0.0..253_402_300_800_000_000.0;

/// Parses a time. A text without an offset is refused, because its meaning is unknown.
pub(super) fn time(value: &Value, format: TimeFormat) -> Result<Timestamp, &'static str> {
    const OTHERWISE: &str = "its time does not have the expected format";
    let number = match value {
        Value::Null => return Err("it has no time"),
        Value::String(text) if format == TimeFormat::Rfc3339 => return rfc3339(text),
        Value::String(text) => text.parse::<Number>().map_err(|_| OTHERWISE)?,
        Value::Number(number) if format != TimeFormat::Rfc3339 => number.clone(),
        _ => return Err(OTHERWISE),
    };
    // Exact for whole numbers; a number of seconds with decimals is exact to a microsecond.
    let (multiply, divide) = match format {
        TimeFormat::Rfc3339 | TimeFormat::EpochS => (1_000_000, 1),
        TimeFormat::EpochMs => (1_000, 1),
        TimeFormat::EpochUs => (1, 1),
        TimeFormat::EpochNs => (1, 1_000),
    };
    let out_of_range = "its time is not between 1970 and 9999";
    if let Some(whole) = number.as_i64() {
        let micros = whole.checked_mul(multiply).ok_or(out_of_range)? / divide;
        if micros < 0 || micros > Timestamp::MAX.micros() {
            return Err(out_of_range);
        }
        return Ok(Timestamp::from_micros(micros));
    }
    let number = number.as_f64().ok_or(OTHERWISE)?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "one of four small powers of ten"
    )]
    let micros = number * (multiply as f64) / (divide as f64);
    if !TIMES.contains(&micros) {
        return Err(out_of_range);
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is within the range")]
    Ok(Timestamp::from_micros(micros.round() as i64))
}

fn rfc3339(text: &str) -> Result<Timestamp, &'static str> {
    let time = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| "its time is not RFC 3339 with an offset")?;
    if time < OffsetDateTime::UNIX_EPOCH {
        return Err("its time is not between 1970 and 9999");
    }
    Ok(time.into())
}

/// A place at AWS from a record. A character that a grant cannot contain, such as a space in an
/// object's name, or that is special in a grant, is treated as "any one character": only a wildcard
/// can match it, as at AWS.
pub(super) fn arn(text: &str) -> Option<Location> {
    let location = Location::accessed(plain(text)).ok()?;
    location.is_arn().then_some(location)
}

/// A pattern of all places that begin with `text`, for a text that exceeds the limit.
pub(super) fn arn_that_begins(text: &str) -> Option<Location> {
    let mut begin: String = plain(text).chars().take(MAX_PLACE_BYTES - 1).collect();
    begin.push('*');
    let location = Location::accessed(begin).ok()?;
    location.is_arn().then_some(location)
}

fn plain(text: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() && !"\"\\$*".contains(c);
    text.chars()
        .map(|c| if plain(c) { c } else { '?' })
        .collect()
}

/// A place of an API from a record, without query and fragment.
pub(super) fn url(text: &str) -> Option<Location> {
    let place = text.split(['?', '#']).next().unwrap_or_default();
    let location = Location::accessed(place.to_owned()).ok()?;
    (!location.is_arn()).then_some(location)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use serde_json::json;

    use super::*;
    use crate::domain::pattern::Budget;

    fn parsed(value: &Value, format: TimeFormat) -> Result<String, &'static str> {
        time(value, format).map(|at| at.to_string())
    }

    #[test]
    fn a_time_says_what_it_means_or_is_none() {
        let noon = Ok("2026-11-23T12:00:00.25Z".to_owned());
        for text in [
            "2026-11-23T12:00:00.25Z",
            "2026-11-23T14:00:00.25+02:00",
            "2026-11-23T06:30:00.250-05:30",
        ] {
            assert_eq!(parsed(&json!(text), TimeFormat::Rfc3339), noon, "{text}");
        }
        for (value, format) in [
            (json!(1_795_435_200.25), TimeFormat::EpochS),
            (json!("1795435200.25"), TimeFormat::EpochS),
            (json!(1_795_435_200_250_i64), TimeFormat::EpochMs),
            (json!("1795435200250"), TimeFormat::EpochMs),
            (json!(1_795_435_200_250_000_i64), TimeFormat::EpochUs),
            (json!(1_795_435_200_250_000_999_i64), TimeFormat::EpochNs),
        ] {
            assert_eq!(parsed(&value, format), noon, "{value}");
        }
        for bad in [
            json!("2026-11-23T12:00:00"),
            json!("2026-11-23 12:00:00"),
            json!("2026-11-23"),
            json!("1969-12-31T23:59:59Z"),
            json!(1_795_435_200),
            json!(true),
            json!({}),
            Value::Null,
        ] {
            assert!(time(&bad, TimeFormat::Rfc3339).is_err(), "{bad}");
        }
        for bad in [
            json!(-1),
            json!(1e300),
            json!(i64::MAX),
            json!("x"),
            json!([]),
            json!(u64::MAX),
        ] {
            assert!(time(&bad, TimeFormat::EpochS).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_session_is_found_by_its_id_and_by_its_name_at_aws() {
        let id: SessionId = "0198b2a0-0000-7000-8000-0000000000ab".parse().unwrap();
        assert_eq!(session("0198b2a0-0000-7000-8000-0000000000ab"), Some(id));
        assert_eq!(session("tp-0198b2a000007000800000000000"), None);
        assert_eq!(session("tp-0198b2a00000700080000000000000ab"), Some(id));
        for bad in [
            "",
            "tp-",
            "tp-0198B2A00000700080000000000000AB",
            "tp-0198b2a0-0000-7000-8000-0000000000ab",
            "0198b2a00000700080000000000000ab",
            "{0198b2a0-0000-7000-8000-0000000000ab}",
            "xtp-0198b2a00000700080000000000000ab",
        ] {
            assert_eq!(session(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_hash_is_read_in_the_three_ways_that_it_is_written() {
        let bytes: Vec<u8> = (200..232).collect();
        let own = Hash::from_slice(&bytes).unwrap();
        assert_eq!(hash(&URL_SAFE_NO_PAD.encode(&bytes)), Some(own));
        assert_eq!(hash(&STANDARD.encode(&bytes)), Some(own));
        assert_eq!(hash(&format!("{own:?}")), Some(own));
        assert_eq!(hash(&URL_SAFE_NO_PAD.encode(&bytes[1..])), None);
        assert_eq!(hash(&"é".repeat(32)), None);
    }

    #[test]
    fn a_token_tells_its_session_and_decision_and_two_that_differ_contradict() {
        let token = |claims: Value| {
            let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
            format!("e30.{payload}.c2ln")
        };
        let id = "0198b2a0-0000-7000-8000-0000000000ab";
        let dec = URL_SAFE_NO_PAD.encode([7; 32]);
        let mut credential = Credential::default();
        credential.add_token(&format!(
            "Bearer {}",
            token(json!({"jti": id, "dec": dec, "exp": 9}))
        ));
        assert_eq!(credential.session, session(id));
        assert_eq!(credential.hash, hash(&dec));
        assert_eq!(credential.expires_at, Some(Timestamp::from_seconds(9)));
        assert!(!credential.contradictory);
        credential.add_session(session("0198b2a0-0000-7000-8000-0000000000ac").unwrap());
        assert!(credential.contradictory && !credential.is_empty());
        for bad in [
            "Bearer",
            "a.b",
            "a.b.c",
            "a.b.c.d",
            "e30.e30.",
            "Basic dTpw",
            &token(json!({"jti": 7, "dec": [dec]})),
            &token(json!({"jti": id})),
            &token(json!({"jti": id, "dec": "forged"})),
            &token(json!({"jti": "mine", "dec": dec})),
        ] {
            let mut other = Credential::default();
            other.add_token(bad);
            assert!(other.is_empty() && other.foreign, "{bad}");
        }
        let mut none = Credential::default();
        none.add_token("");
        none.add_token("-");
        assert_eq!(none, Credential::default());
    }

    #[test]
    fn a_session_of_aws_is_named_by_a_role_and_by_nobody_else() {
        let name = "tp-0198b2a00000700080000000000000ab";
        let of = |text: &str| {
            let mut credential = Credential::default();
            credential.add_session_of_aws(text);
            credential
        };
        let seen = of(&format!(
            "arn:aws:sts::123456789012:assumed-role/reports/{name}"
        ))
        .roles;
        for (arn, same) in [
            ("arn:aws:iam::123456789012:role/reports", true),
            // The ARN of a session has the role's name without its path.
            ("arn:aws:iam::123456789012:role/team/reports", true),
            ("arn:aws:iam::999999999999:role/reports", false),
            ("arn:aws:iam::123456789012:role/other", false),
            ("arn:aws-cn:iam::123456789012:role/reports", false),
            ("https://orders.example", false),
        ] {
            assert_eq!(seen[0].is(arn), same, "{arn}");
        }
        for own in [
            format!("arn:aws:sts::123456789012:assumed-role/reports/{name}"),
            format!("arn:aws-cn:sts::123456789012:assumed-role/reports/{name}"),
            format!("AROAEXAMPLE:{name}"),
        ] {
            let credential = of(&own);
            assert_eq!(credential.session, session(name), "{own}");
            assert!(credential.named && !credential.foreign, "{own}");
        }
        for other in [
            name.to_owned(),
            format!("eve/{name}"),
            format!("x:{name}"),
            format!("AIDAEXAMPLE:{name}"),
            format!("arn:aws:iam::123456789012:user/{name}"),
            format!("arn:aws:sts::123456789012:federated-user/{name}"),
            format!("arn:aws:sts::123456789012:assumed-role/{name}"),
        ] {
            assert_eq!(of(&other), Credential::default(), "{other}");
        }
        for other in [
            "arn:aws:sts::123456789012:assumed-role/reports/botocore",
            "arn:aws:sts::1:assumed-role/r/x/tp-0198b2a00000700080000000000000ab",
            "arn:aws:sts::1:assumed-role/r/0198b2a0-0000-7000-8000-0000000000ab",
            "AROAEXAMPLE:tp-7",
        ] {
            let credential = of(other);
            assert!(credential.is_empty() && credential.foreign, "{other}");
        }
    }

    #[test]
    fn a_region_is_one_or_none_or_cannot_be_told() {
        let named = Region::of(Some("eu-central-1"));
        assert_eq!(named.name(), Some("eu-central-1"));
        assert!(named.can_be_within(None) && named.can_be_within(Some("eu-central-1")));
        assert!(!named.can_be_within(Some("us-east-1")));
        for none in [None, Some("")] {
            let region = Region::of(none);
            assert!(region.can_be_within(None) && !region.can_be_within(Some("us-east-1")));
        }
        let long = "r".repeat(70_000);
        for odd in ["EU", "eu central 1", long.as_str()] {
            let region = Region::of(Some(odd));
            assert_eq!(region, Region::Unclear);
            assert!(region.can_be_within(Some("us-east-1")));
        }
    }

    fn covers(grant: &str, place: &Location) -> bool {
        Location::try_from(grant.to_owned())
            .unwrap()
            .covers_within(place, &Budget::of_one_comparison())
    }

    #[test]
    fn a_place_has_one_reading_or_none() {
        let of = |text: &str| url(text).map(|place| place.as_str().to_owned());
        let plain = Some("https://orders.example/v1/42".to_owned());
        assert_eq!(of("https://orders.example/v1/42?a=1&b=../x#y"), plain);
        for bad in [
            "/v1",
            "https://orders.example/v1/../admin",
            "https://orders.example/v1/%2e%2e",
            "http://orders.example/v1",
            "arn:aws:s3:::b/x",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
        let odd = arn("arn:aws:s3:::b/a file \"é\".txt").unwrap();
        let within = |text: &str| covers(text, &odd);
        assert!(within("arn:aws:s3:::b/*") && within("arn:aws:s3:::b/a*.txt"));
        assert!(!within("arn:aws:s3:::b/b*") && !within("arn:aws:s3:::c/*"));
        assert!(arn("https://h").is_none() && arn("*").is_none());
        // A star in a name is one character, not a pattern.
        let star = arn("arn:aws:s3:::b/*").unwrap();
        assert!(covers("arn:aws:s3:::b/*", &star) && covers("arn:aws:s3:::b/?", &star));
        assert!(!covers("arn:aws:s3:::b/a*", &star));
    }

    #[test]
    fn a_place_may_be_longer_than_a_grant_and_has_its_end() {
        let key = "k".repeat(1_024);
        let long = arn(&format!("arn:aws:s3:::{}/{key}", "b".repeat(63))).unwrap();
        assert!(long.as_str().len() > crate::domain::limits::MAX_GRANT_TEXT_BYTES);
        let base = "https://orders.example/";
        let path = "p".repeat(MAX_PLACE_BYTES - base.len());
        assert!(url(&format!("{base}{path}")).is_some());
        assert!(url(&format!("{base}{path}p")).is_none());
        let begin = arn_that_begins(&format!("arn:aws:s3:::b/{}", "k".repeat(5_000))).unwrap();
        assert!(covers("arn:aws:s3:::b/*", &begin) && !covers("arn:aws:s3:::b/*x", &begin));
    }
}
