//! One record of an external action, independent of its format.
//!
//! [`super::cloudtrail`] and [`super::mapped`] build a [`Record`], and [`super::judge`] reads it. A
//! text that is not the broker's marks the [`Credential`] as foreign, and two different values mark
//! it as contradictory; neither is an error here.

#[cfg(test)]
mod tests;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Number, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::domain::action::ActionName;
use crate::domain::kind::aws::{RoleArn, is_region};
use crate::domain::limits::MAX_LOCATION_BYTES;
use crate::domain::location::Location;
use crate::ids::SessionId;
use crate::merkle::Hash;

/// The longest credential that is parsed, in bytes.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// One record of an external action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The id in the record's own format; `None` if it has none.
    pub(crate) id: Option<String>,
    /// The time of the action, or the reason why it is unknown.
    pub(crate) at: Result<Timestamp, &'static str>,
    /// The principal, as the record names it.
    pub(crate) principal: String,
    /// The action, for display.
    pub(crate) action: String,
    /// The object of the action, for display.
    pub(crate) resource: String,
    pub(crate) region: Region,
    /// The parts of a broker's credential that it carries.
    pub(crate) credential: Credential,
    /// The action to compare with the grant.
    pub(crate) recorded_action: RecordedAction,
    pub(crate) outcome: Outcome,
}

/// The parts of a broker's credential in a record. A member with a foreign value is distinguished
/// from a missing one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a separate fact about the evidence"
)]
pub(crate) struct Credential {
    /// The id of the session; `None` if the record has none.
    pub(crate) session: Option<SessionId>,
    /// The hash of the decision's leaf.
    pub(crate) hash: Option<Hash>,
    /// The credential's own expiry, if it is known.
    pub(crate) expires_at: Option<Timestamp>,
    /// Whether two members of the record contradict each other.
    pub(crate) contradictory: bool,
    /// Whether a member holds a foreign value where the broker's would be.
    pub(crate) foreign: bool,
    /// Whether the session has the form of the broker's session names at AWS.
    pub(crate) named: bool,
    /// Whether others could have chosen the name or the hash, so that one of them alone proves
    /// nothing.
    pub(crate) needs_both: bool,
    /// The AWS roles that the record names for the session, with repetitions.
    pub(crate) roles: Vec<RoleSeen>,
}

/// An AWS role, as a record names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RoleSeen {
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
    pub(crate) fn is(&self, role_arn: &str) -> bool {
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
    pub(crate) fn names_a_role(&self) -> bool {
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
pub(crate) enum Region {
    /// The record names no region.
    #[default]
    Unnamed,
    /// The record names this region.
    Named(String),
    /// The record names a value that cannot be a region.
    Unclear,
}

impl Region {
    pub(crate) fn of(text: Option<&str>) -> Self {
        match text {
            None | Some("") => Self::Unnamed,
            Some(text) if is_region(text) => Self::Named(text.to_owned()),
            Some(_) => Self::Unclear,
        }
    }

    /// The name of the region if it is known.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Named(name) => Some(name),
            Self::Unnamed | Self::Unclear => None,
        }
    }

    /// Whether it may be within a grant that is confined to `own`; `None` for no confinement.
    pub(crate) fn can_be_within(&self, own: Option<&str>) -> bool {
        own.is_none() || *self == Self::Unclear || own == self.name()
    }
}

/// The action, as far as a grant can be compared with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RecordedAction {
    /// An action at locations; each location must be permitted.
    Rights {
        action: ActionName,
        locations: Vec<Location>,
        /// Whether each location is exact. Otherwise it is a pattern that stands for any matching
        /// location.
        named: bool,
        /// Why the list of locations is incomplete; `None` if it is complete.
        unclear: Option<&'static str>,
    },
    /// The creation of an AWS session, as permitted by a decision for such a session.
    Mint,
    /// An action that no grant can be compared with.
    Unclear {
        why: &'static str,
        /// If none of these was granted, the action was certainly not granted.
        needs: Vec<ActionName>,
    },
}

/// The outcome of the action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was performed, as far as the record shows.
    Done,
    /// It was refused where it was requested, so nothing happened.
    Refused,
    /// It is not an action of a caller; the text gives the reason.
    Nobodys(&'static str),
}

impl Credential {
    /// Whether the record carries no part of a credential.
    pub(crate) fn is_empty(&self) -> bool {
        self.session.is_none() && self.hash.is_none() && !self.contradictory
    }

    pub(crate) fn add_session(&mut self, session: SessionId) {
        self.contradictory |= self.session.is_some_and(|known| known != session);
        self.session = Some(session);
    }

    pub(crate) fn add_hash(&mut self, hash: Hash) {
        self.contradictory |= self.hash.is_some_and(|known| known != hash);
        self.hash = Some(hash);
    }

    /// Adds a text from a member that names the broker's session.
    pub(crate) fn add_session_text(&mut self, text: &str) {
        match session(text) {
            Some(session) => {
                self.named |= is_name(text);
                self.add_session(session);
            }
            None => self.add_stranger(text),
        }
    }

    /// Adds a text from a member that names the broker's decision.
    pub(crate) fn add_hash_text(&mut self, text: &str) {
        match hash(text) {
            Some(hash) => self.add_hash(hash),
            None => self.add_stranger(text),
        }
    }

    /// Adds the principal at AWS if it is a session of a role, with the broker's name or a foreign
    /// one. Returns whether it is such a session.
    pub(crate) fn add_session_of_aws(&mut self, text: &str) -> bool {
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
    pub(crate) fn add_stranger(&mut self, text: &str) {
        self.foreign |= !matches!(text.trim(), "" | "-");
    }

    /// Adds the claims of an access token. They are not verified here: the server that wrote the
    /// record accepted the token. All of the broker's tokens have both claims, so a token without
    /// them is foreign.
    pub(crate) fn add_token(&mut self, text: &str) {
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
pub(crate) fn session(text: &str) -> Option<SessionId> {
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
pub(crate) fn hash(text: &str) -> Option<Hash> {
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
pub(crate) enum TimeFormat {
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
pub(crate) fn time(value: &Value, format: TimeFormat) -> Result<Timestamp, &'static str> {
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

/// A location at AWS from a record. A character that a grant cannot contain, such as a space in an
/// object's name, or that is special in a grant, is treated as "any one character": only a wildcard
/// can match it, as at AWS.
pub(crate) fn arn(text: &str) -> Option<Location> {
    let location = Location::accessed(plain(text)).ok()?;
    location.is_arn().then_some(location)
}

/// A pattern of all locations that begin with `text`, for a text that exceeds the limit.
pub(crate) fn arn_that_begins(text: &str) -> Option<Location> {
    let mut begin: String = plain(text).chars().take(MAX_LOCATION_BYTES - 1).collect();
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

/// A location of an API from a record, without query and fragment.
pub(crate) fn url(text: &str) -> Option<Location> {
    let location = text.split(['?', '#']).next().unwrap_or_default();
    let location = Location::accessed(location.to_owned()).ok()?;
    (!location.is_arn()).then_some(location)
}
