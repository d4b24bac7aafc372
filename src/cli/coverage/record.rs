//! One record of something done elsewhere, whatever its format was.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Number, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::domain::grant::{ActionName, Location};
use crate::ids::SessionId;
use crate::merkle::Hash;

/// The longest credential that is looked into.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Its own id.
    pub(super) id: Option<String>,
    /// When it happened, or why that is not known.
    pub(super) at: Result<Timestamp, &'static str>,
    /// Who did it, as the record says.
    pub(super) principal: String,
    /// What was done, for people.
    pub(super) action: String,
    /// On what, for people.
    pub(super) resource: String,
    /// In which region.
    pub(super) region: Option<String>,
    /// What it carries of ours.
    pub(super) credential: Credential,
    /// What has to be within the grant.
    pub(super) deed: Deed,
    /// Whether it happened.
    pub(super) outcome: Outcome,
}

/// What a record carries of our credential. Fields that are there and are not ours are told apart
/// from fields that are not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Credential {
    /// The session.
    pub(super) session: Option<SessionId>,
    /// The hash of the decision's leaf.
    pub(super) hash: Option<Hash>,
    /// A credential's own end, where it is known.
    pub(super) expires_at: Option<Timestamp>,
    /// Whether two places of the record say different things.
    pub(super) contradictory: bool,
    /// Whether it names a session in a way that others can choose, and not the decision beside it.
    pub(super) by_name_alone: bool,
}

/// What was done, as far as a grant can say something about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// An action at places; of each it has to be permitted.
    Rights {
        action: ActionName,
        places: Vec<Location>,
        /// Whether the record said where; otherwise the place stands for any.
        named: bool,
    },
    /// The making of a session of AWS: what a permit of such a session is for.
    Mint,
    /// What no grant can be compared with, and why.
    Unclear(&'static str),
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was let through, as far as the record says.
    Done,
    /// It was refused where it was asked for: nothing happened.
    Refused,
    /// It is nobody's action.
    Nobodys(&'static str),
}

impl Credential {
    /// Whether there is anything of ours.
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

    /// What a token of ours says of itself. Nothing of it is verified here: whoever wrote the
    /// record let it through.
    pub(super) fn add_token(&mut self, token: &str) {
        let token = token.trim();
        let token = token
            .split_once(' ')
            .map_or(token, |(_, token)| token.trim_start());
        let mut parts = token.split('.');
        let (Some(_), Some(payload), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        if payload.len() > MAX_TOKEN_BYTES {
            return;
        }
        let claims = URL_SAFE_NO_PAD.decode(payload).ok();
        let claims = claims.and_then(|claims| crate::crypto::strict_json::object(&claims).ok());
        let Some(claims) = claims else {
            return;
        };
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if let Some(session) = text("jti").and_then(session) {
            self.add_session(session);
        }
        if let Some(hash) = text("dec").and_then(hash) {
            self.add_hash(hash);
        }
        if let Some(expires) = claims.get("exp").and_then(Value::as_i64) {
            let expires = Timestamp::from_seconds(expires);
            self.expires_at = Some(self.expires_at.map_or(expires, |at| at.min(expires)));
        }
    }
}

/// A session by its id, or by its name at AWS.
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

/// A leaf's hash: in base64url as credentials carry it, in base64, or in hex.
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

/// How a format writes times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TimeFormat {
    /// RFC 3339, with an offset.
    #[default]
    Rfc3339,
    /// Seconds since 1970, with or without decimals.
    EpochS,
    /// Milliseconds.
    EpochMs,
    /// Microseconds.
    EpochUs,
    /// Nanoseconds.
    EpochNs,
}

/// Microseconds from 1970 to the end of the year 9999.
const TIMES: std::ops::Range<f64> = 0.0..253_402_300_800_000_000.0;

/// A time, which has to say what it means: without an offset it is none.
pub(super) fn time(value: &Value, format: TimeFormat) -> Result<Timestamp, &'static str> {
    const OTHERWISE: &str = "its time is not written as it should be";
    let number = match value {
        Value::Null => return Err("it has no time"),
        Value::String(text) if format == TimeFormat::Rfc3339 => return rfc3339(text),
        Value::String(text) => text.parse::<Number>().map_err(|_| OTHERWISE)?,
        Value::Number(number) if format != TimeFormat::Rfc3339 => number.clone(),
        _ => return Err(OTHERWISE),
    };
    // Exact where it is whole; a number with decimals is exact to a microsecond in seconds.
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

/// A place on AWS out of a record. What a grant cannot write, a blank in the name of an object, is
/// taken for "any one character": only a wildcard can match it, as only a wildcard does at AWS.
pub(super) fn arn(text: &str) -> Option<Location> {
    let plain = |c: char| c.is_ascii_graphic() && !"\"\\$".contains(c);
    let text = text.chars().map(|c| if plain(c) { c } else { '?' });
    let location = Location::try_from(text.collect::<String>()).ok()?;
    location.is_arn().then_some(location)
}

/// A place of an API out of a record. Query and fragment do not change where it is.
pub(super) fn url(text: &str) -> Option<Location> {
    let place = text.split(['?', '#']).next().unwrap_or_default();
    let location = Location::try_from(place.to_owned()).ok()?;
    (!location.is_arn()).then_some(location)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use serde_json::json;

    use super::*;

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
        let mut other = Credential::default();
        for bad in [
            "",
            "Bearer",
            "a.b",
            "a.b.c",
            "a.b.c.d",
            "e30.e30.",
            "Basic dTpw",
        ] {
            other.add_token(bad);
        }
        other.add_token(&token(json!({"jti": 7, "dec": [dec]})));
        assert_eq!(other, Credential::default());
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
        let within = |text: &str| Location::try_from(text.to_owned()).unwrap().covers(&odd);
        assert!(within("arn:aws:s3:::b/*") && within("arn:aws:s3:::b/a*.txt"));
        assert!(!within("arn:aws:s3:::b/b*") && !within("arn:aws:s3:::c/*"));
        assert!(arn("https://h").is_none() && arn("*").is_none());
    }
}
