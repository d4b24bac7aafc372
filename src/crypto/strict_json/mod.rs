//! Strict parsing of JSON from untrusted parties: a duplicate member at any depth, and U+0000 in
//! any text, are errors.
//!
//! [`object`] and [`value`] parse bytes, [`typed`] reads a parsed value as a type, and [`read`]
//! does both at once. A duplicate member is an error because two parsers of `{"sub":"a","sub":"b"}`
//! can read different values. U+0000 is one because the store cannot hold it. [`typed`] accepts no
//! array for a struct, except inside an enum, whose content serde reads by itself.
//!
//! Every failure is a `serde_json` error. [`read`] and [`typed`] also report its path: that of the
//! faulty member, that of the object for U+0000 in a member's name, and `?` if the text breaks off.
//! `serde_json` limits the nesting; the caller limits the length. Tokens and keys (`crypto`), HTTP
//! bodies (`http`) and files for the CLI are parsed here.

mod direct;

use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Number, Value};
use serde_path_to_error::{Path, Track};

/// Parses `bytes` as one JSON object.
pub(crate) fn object(bytes: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    object_or_path(bytes).map_err(|(_, error)| error)
}

/// Reads a type from the text of one JSON object. An error comes with its path.
///
/// A text that is in order is read in one pass. Any other is read again, member by member, in the
/// way that knows the path of the error. Only this second way decides that a text is refused.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, (Path, serde_json::Error)> {
    if let Ok(value) = direct::read(bytes) {
        return Ok(value);
    }
    typed(Value::Object(object_or_path(bytes)?))
}

/// Parses `bytes` as one JSON object. An error comes with its path.
fn object_or_path(bytes: &[u8]) -> Result<Map<String, Value>, (Path, serde_json::Error)> {
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

/// Parses `bytes` as one JSON value.
pub(crate) fn value(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Deserializes a value into a type. An error comes with its path. Accepts only an object for a
/// struct, while serde by default also accepts an array in the order of the fields. This does not
/// hold for a struct inside an enum: such a type has to refuse arrays itself.
pub(crate) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, (Path, serde_json::Error)> {
    serde_path_to_error::deserialize(ByName(value)).map_err(|error| {
        let path = error.path().clone();
        (path, error.into_inner())
    })
}

/// A value whose members are matched by name only.
struct ByName(Value);

impl<'de> de::Deserializer<'de> for ByName {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(ByName));
                let read = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(read)
            }
            Value::Object(members) => {
                let members = members
                    .into_iter()
                    .map(|(name, value)| (name, ByName(value)));
                let mut members = MapDeserializer::new(members);
                let read = visitor.visit_map(&mut members)?;
                members.end()?;
                Ok(read)
            }
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Object(_) => self.deserialize_any(visitor),
            // This always fails, with an error that names the expected and the found type.
            other => other.deserialize_map(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct identifier ignored_any
    }
}

impl IntoDeserializer<'_, serde_json::Error> for ByName {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Reads any JSON value, and refuses duplicate members and U+0000.
struct Strict;

/// The value of a duplicate member: always an error at its path.
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

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Named {
        own: String,
        #[serde(default)]
        inner: Option<Vec<Inner>>,
        #[serde(default)]
        more: std::collections::BTreeMap<String, Inner>,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        count: u64,
    }

    #[test]
    fn an_array_is_refused_where_a_struct_needs_an_object() {
        let read = |text: &str| typed::<Named>(value(text.as_bytes()).unwrap());
        for good in [
            r#"{"own":"a"}"#,
            r#"{"own":"a","inner":null}"#,
            r#"{"own":"a","inner":[{"count":1},{"count":2}],"more":{"x":{"count":3}}}"#,
        ] {
            assert_eq!(read(good).unwrap(), serde_json::from_str(good).unwrap());
        }
        for (bad, expected) in [
            (r#"["a"]"#, "."),
            (r#"["a",[{"count":1}]]"#, "."),
            (r#"{"own":"a","inner":[[1]]}"#, "inner[0]"),
            (r#"{"own":"a","inner":[{"count":1},[2]]}"#, "inner[1]"),
            (r#"{"own":"a","more":{"x":[1]}}"#, "more.x"),
            (r#"{"own":"a","inner":[{"count":"1"}]}"#, "inner[0].count"),
            (
                r#"{"own":"a","inner":[{"count":1,"more":1}]}"#,
                "inner[0].more",
            ),
        ] {
            let (path, _) = read(bad).unwrap_err();
            assert_eq!(path.to_string(), expected, "{bad}");
        }
    }

    #[test]
    fn a_value_is_read_as_strictly_as_an_object() {
        assert_eq!(value(b"[1]").unwrap(), serde_json::json!([1]));
        for bad in [r#"[{"a":1,"a":1}]"#, "[1] 2", "[\"\\u0000\"]", "", "["] {
            assert!(value(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_arises_at_its_place() {
        for (text, expected) in [
            (r#"{"a":1,"a":2}"#, "a"),
            (r#"{"a":{"b":[{"c":1,"c":[]}]}}"#, "a.b[0].c"),
            (r#"{"a":["x","\u0000"]}"#, "a[1]"),
            (r#"{"a":{"\u0000":1}}"#, "a"),
            (r#"{"a":1,"#, "?"),
        ] {
            let (path, _) = object_or_path(text.as_bytes()).unwrap_err();
            assert_eq!(path.to_string(), expected, "{text}");
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
