//! JSON objects from strangers: a member named twice, at any depth, and U+0000 in any text are
//! errors.
//!
//! Two parsers that meet `{"sub":"a","sub":"b"}` may each believe another half of it; the store
//! cannot hold U+0000. Nesting is bounded by `serde_json`. Each error arises at the member that is
//! wrong, so that a door can point at it.

use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_path_to_error::{Path, Track};

/// Parses `bytes` as one JSON object.
pub(crate) fn object(bytes: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    object_or_path(bytes).map_err(|(_, error)| error)
}

/// Parses `bytes` as one JSON object; an error comes with its place.
pub(crate) fn object_or_path(
    bytes: &[u8],
) -> Result<Map<String, Value>, (Path, serde_json::Error)> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut track = Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    let parsed = Strict.deserialize(tracked);
    let path = track.path();
    let value = parsed
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| (path.clone(), error))?;
    match value {
        Value::Object(members) => Ok(members),
        _ => Err((path, de::Error::custom("not an object"))),
    }
}

struct Strict;

/// The value of a member that was there before: an error in its place, whatever it is.
struct Repeated;

impl<'de> DeserializeSeed<'de> for Repeated {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, _: D) -> Result<Value, D::Error> {
        Err(de::Error::custom("a member is named twice"))
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

fn text<E: de::Error>(text: String) -> Result<String, E> {
    if text.contains('\0') {
        return Err(E::custom("U+0000 in a text"));
    }
    Ok(text)
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        text(value.to_owned()).map(Value::String)
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        text(value).map(Value::String)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(Strict)? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let name = text(name)?;
            let value = if out.contains_key(&name) {
                members.next_value_seed(Repeated)?
            } else {
                members.next_value_seed(Strict)?
            };
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_json_is_what_serde_json_says() {
        let text = r#"{"a":[1,-2,3.5,true,null,{"b":"c"}],"d":18446744073709551615}"#;
        let ours = object(text.as_bytes()).unwrap();
        assert_eq!(
            Value::Object(ours),
            serde_json::from_str::<Value>(text).unwrap()
        );
    }

    #[test]
    fn an_error_arises_at_its_place() {
        for (text, place) in [
            (r#"{"a":1,"a":2}"#, "a"),
            (r#"{"a":{"b":[{"c":1,"c":[]}]}}"#, "a.b[0].c"),
            (r#"{"a":["x","\u0000"]}"#, "a[1]"),
            (r#"{"a":{"\u0000":1}}"#, "a"),
            (r#"{"a":1,"#, "?"),
        ] {
            let (path, _) = object_or_path(text.as_bytes()).unwrap_err();
            assert_eq!(path.to_string(), place, "{text}");
        }
    }

    #[test]
    fn ambiguous_or_unstorable_json_is_refused() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"{"a":[{"b":1,"b":2}]}"#,
            r#"{"a":"\u0000"}"#,
            r#"{"\u0000":1}"#,
            r#"{"a":1} {}"#,
            r#"{"a":1e999}"#,
            r#"{"a":NaN}"#,
            "[]",
            "null",
            "",
            "{",
        ] {
            assert!(object(text.as_bytes()).is_err(), "{text}");
        }
        assert!(object("[".repeat(100_000).as_bytes()).is_err());
        assert!(object(b"{\"a\":\"\xff\"}").is_err());
    }
}
