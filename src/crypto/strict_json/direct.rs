//! Reads a type from the text of JSON, without a [`serde_json::Value`] in between.
//!
//! [`read`] accepts the same texts as [`super::object_or_path`] and [`super::typed`] together, and
//! gives the same value. The rule: this module has the checks of [`Strict`] (a duplicate member,
//! U+0000) and the forms of `ByName` (an object for a struct), at every depth, in members that the
//! type ignores too. The content of an enum is read as a value first, because only its own
//! deserializer knows its forms.
//!
//! An error here has no path, and says only that the text has to be read in the other way, which
//! decides. Only [`super::read`] calls this module.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::{Strict, text};

/// Reads a type from the text of one JSON object.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(de::Error::custom("not an object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = T::deserialize(Direct(&mut deserializer))?;
    deserializer.end()?;
    Ok(value)
}

/// A deserializer with the checks of this module, around the one of `serde_json`.
struct Direct<D>(D);

impl<'de, D: de::Deserializer<'de>> de::Deserializer<'de> for Direct<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(Checked(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_option(Checked(visitor))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Checked(visitor))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        Strict
            .deserialize(self.0)?
            .deserialize_enum(name, variants, visitor)
            .map_err(de::Error::custom)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct identifier ignored_any
    }
}

/// A visitor whose texts, items and members are checked before it sees them.
struct Checked<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for Checked<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_some<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Direct(deserializer))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<V::Value, E> {
        self.0.visit_bool(value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<V::Value, E> {
        self.0.visit_u64(value)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<V::Value, E> {
        self.0.visit_i64(value)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<V::Value, E> {
        self.0.visit_f64(value)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<V::Value, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<V::Value, E> {
        self.0.visit_string(text(value)?)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Items(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Members {
            members,
            seen: BTreeSet::new(),
        })
    }
}

/// Reads a value with the checks of this module.
struct Seed<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Seed<S> {
    type Value = S::Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Direct(deserializer))
    }
}

/// The items of an array.
struct Items<A>(A);

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Items<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Seed(seed))
    }
}

/// The members of an object, with the names of those that were read.
struct Members<A> {
    members: A,
    seen: BTreeSet<String>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Members<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let Some(name) = self.members.next_key::<String>()? else {
            return Ok(None);
        };
        let name = text(name)?;
        let read = seed.deserialize(name.as_str().into_deserializer())?;
        if !self.seen.insert(name) {
            return Err(de::Error::custom("a member is named twice"));
        }
        Ok(Some(read))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.members.next_value_seed(Seed(seed))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    /// A type with every form that a body of a request uses.
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Whole {
        a: Option<Leaf>,
        #[serde(default)]
        b: Vec<Leaf>,
        #[serde(default)]
        c: BTreeMap<String, Value>,
        d: Option<Named>,
        #[serde(default)]
        e: Option<Either>,
        f: Option<Wrapped>,
        g: Option<(u64, String)>,
        h: Option<Open>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Leaf {
        a: u64,
        b: Option<String>,
    }

    /// Ignores members that it does not know.
    #[derive(Debug, PartialEq, Deserialize)]
    struct Open {
        a: Option<f64>,
        #[serde(flatten)]
        inner: BTreeMap<String, Value>,
    }

    /// Ignores members that it does not know, and keeps none of them.
    #[derive(Debug, PartialEq, Deserialize)]
    struct Wrapped(Ignoring);

    #[derive(Debug, PartialEq, Deserialize)]
    struct Ignoring {
        a: Option<bool>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Named {
        A,
        B(Leaf),
        C { a: i64 },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Leaf(Leaf),
        Many(Vec<Either>),
    }

    fn in_two_passes<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
        let members = super::super::object_or_path(bytes).ok()?;
        super::super::typed(Value::Object(members)).ok()
    }

    #[track_caller]
    fn agree(text: &[u8]) -> bool {
        let shown = String::from_utf8_lossy(text);
        let direct = read::<Whole>(text).ok();
        assert_eq!(direct, in_two_passes(text), "{shown}");
        let open = read::<Open>(text).ok();
        assert_eq!(open, in_two_passes(text), "{shown}");
        let ignoring = read::<Ignoring>(text).ok();
        assert_eq!(ignoring, in_two_passes(text), "{shown}");
        let any = read::<Value>(text).ok();
        assert_eq!(any, in_two_passes(text), "{shown}");
        direct.is_some()
    }

    #[test]
    fn both_ways_accept_the_same_texts() {
        for (text, accepted) in [
            (r#"{"a":{"a":1,"b":"x"},"b":[{"a":2}],"c":{"x":[1]}}"#, true),
            (
                r#" {"a":null,"d":"a","e":"x","f":{"z":[]},"g":[1,"y"]} "#,
                true,
            ),
            (
                r#"{"d":{"b":{"a":1}},"e":[{"a":1},["x"]],"h":{"q":{}}}"#,
                true,
            ),
            (r#"{"d":{"c":{"a":-1}},"h":{"a":1}}"#, true),
            // A struct inside an enum accepts an array in both ways.
            (r#"{"d":{"b":[1,"x"]}}"#, true),
            (r#"{"d":{"c":[1]}}"#, false),
            (r#"{"a":[1,"x"]}"#, false),
            (r#"{"b":[[1,"x"]]}"#, false),
            (r#"{"f":[true]}"#, false),
            (r#"{"a":{"a":1,"a":1}}"#, false),
            (r#"{"a":{"a":1},"\u0061":{"a":1}}"#, false),
            (r#"{"c":{"x":1,"x":1}}"#, false),
            (r#"{"c":{"x":{"y":1,"y":2}}}"#, false),
            (r#"{"f":{"z":1,"z":1}}"#, false),
            (r#"{"f":{"z":{"y":[{"x":1,"x":1}]}}}"#, false),
            (r#"{"e":{"a":1,"a":1}}"#, false),
            (r#"{"f":{"z":"\u0000"}}"#, false),
            (r#"{"f":{"\u0000":1}}"#, false),
            (r#"{"c":{"x":"\u0000"}}"#, false),
            (r#"{"c":{"x":1e999}}"#, false),
            (r#"{"f":{"z":1e999}}"#, false),
            (r#"{"f":{"z":"\ud800"}}"#, false),
            (r#"{"g":[1,"y",2]}"#, false),
            (r#"{"g":[1]}"#, false),
            (r#"{"a":{"a":1.0}}"#, false),
            (r#"{"a":{"a":-0}}"#, false),
            (r#"{"a":{"a":18446744073709551616}}"#, false),
            (r#"{"h":{"a":18446744073709551616}}"#, true),
            (r#"{"z":1}"#, false),
            (r"{} {}", false),
            (r"[]", false),
            (r"null", false),
            (r#""a""#, false),
            (r"{", false),
            ("", false),
            ("\u{c}{}", false),
        ] {
            assert_eq!(agree(text.as_bytes()), accepted, "{text}");
        }
        agree(b"{\"f\":{\"z\":\"\xff\"}}");
    }

    #[test]
    fn both_ways_have_the_same_limit_of_nesting() {
        for member in ["c", "f", "h"] {
            for depth in 100..140 {
                let (open, close) = ("[".repeat(depth), "]".repeat(depth));
                agree(format!("{{\"{member}\":{{\"z\":{open}{close}}}}}").as_bytes());
                let (open, close) = ("{\"a\":".repeat(depth), "}".repeat(depth));
                agree(format!("{{\"{member}\":{open}1{close}}}").as_bytes());
            }
        }
    }

    /// Names of members: few, so that some are named twice, and in several spellings.
    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            20 => "[a-hz]",
            1 => Just(r"\u0061".to_owned()),
            1 => Just(r"\u0000".to_owned()),
        ]
    }

    fn scalar() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => (0_u8..4).prop_map(|n| n.to_string()),
            3 => "[abc]".prop_map(|text| format!("\"{text}\"")),
            1 => prop_oneof![
                Just("null"), Just("true"), Just("-1"), Just("-0"), Just("1.5"), Just("1e2"),
                Just("18446744073709551616"), Just("1e999"), Just(r#""\u0000""#), Just(r#""\n""#),
            ].prop_map(str::to_owned),
        ]
    }

    fn object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        prop::collection::vec((name(), value), 0..4).prop_map(|members| {
            let members = members
                .iter()
                .map(|(name, value)| format!("\"{name}\":{value}"));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        })
    }

    fn json() -> impl Strategy<Value = String> {
        scalar().prop_recursive(4, 24, 4, |inner| {
            let items = prop::collection::vec(inner.clone(), 0..3);
            prop_oneof![
                object(inner),
                items.prop_map(|items| format!("[{}]", items.join(","))),
            ]
        })
    }

    /// An object of the type, most of whose members fit it.
    fn whole() -> impl Strategy<Value = String> {
        let leaf = || {
            prop_oneof![
                Just(r#"{"a":1}"#.to_owned()),
                Just(r#"{"a":1,"b":"x"}"#.to_owned()),
                Just(r#"[1,"x"]"#.to_owned()),
                json(),
            ]
        };
        let named = leaf().prop_map(|leaf| format!("{{\"b\":{leaf}}}"));
        (
            leaf(),
            prop::collection::vec(leaf(), 0..3),
            object(json()),
            named,
            leaf(),
            object(json()),
        )
            .prop_map(|(a, b, c, d, e, f)| {
                let b = b.join(",");
                format!(
                    "{{\"a\":{a},\"b\":[{b}],\"c\":{c},\"d\":{d},\"e\":{e},\"f\":{f},\"h\":{f}}}"
                )
            })
    }

    proptest! {
        #[test]
        fn both_ways_agree_on_any_object(text in object(json())) {
            agree(text.as_bytes());
        }

        #[test]
        fn both_ways_agree_on_objects_of_the_type(text in whole()) {
            agree(text.as_bytes());
        }

        #[test]
        fn both_ways_agree_on_a_broken_text(
            text in whole(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            agree(&bytes);
            bytes.truncate(at);
            agree(&bytes);
        }
    }
}
