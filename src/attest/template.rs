//! Templates of identities: `repo:{repository_id}:env:{environment}`.
//!
//! A rendered [`Template`] must correspond to one set of values only. So values are
//! percent-encoded, and two placeholders must have a character between them that no encoded value
//! can contain: `{a}:{b}` is accepted, `{a}{b}` and `{a}-{b}` are refused when the configuration is
//! loaded.
//!
//! A template that is ambiguous, malformed or without a claim is a [`TemplateError`]. Rendering
//! without a value for a claim is [`NoValue`]; there is no default. [`Template::could_render`] may
//! answer `true` for a text that no real claims give, never `false` for one that they can.
//! [`super::checks`] decides which claims a template may use, and [`super::oidc`] renders.

use crate::domain::workload::encode_value;

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Claim(String),
}

/// A parsed template with at least one claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

/// The reason why a template is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    /// A `{` without its `}`, a `}` without its `{`, or a brace within braces.
    #[error("the braces do not match")]
    Braces,
    /// `{}`, or a name with characters that no declared claim has.
    #[error("{{{0}}} is not the name of a claim")]
    ClaimName(String),
    /// Text with characters other than printable ASCII, or with a space or a percent sign.
    #[error("the text between claims must be printable ASCII without spaces and percent signs")]
    Literal,
    /// The template has no claim, so every caller would have the same identity.
    #[error("it names no claim, so every caller would have the same identity")]
    NoClaim,
    /// No separator between two claims, so different values could give the same text.
    #[error("{{{0}}} and {{{1}}} need a `:` or `/` between them")]
    Ambiguous(String, String),
}

/// A claim that the template needs has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the claim {0} has no value")]
pub(super) struct NoValue(pub(super) String);

impl Template {
    /// Parses the text of a template.
    pub(super) fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let Some(open) = rest.find(['{', '}']) else {
                parts.push(literal(rest)?);
                break;
            };
            let (before, from_brace) = rest.split_at(open);
            if !before.is_empty() {
                parts.push(literal(before)?);
            }
            let inside = from_brace.strip_prefix('{').ok_or(TemplateError::Braces)?;
            let (name, after) = inside.split_once('}').ok_or(TemplateError::Braces)?;
            if name.contains('{') {
                return Err(TemplateError::Braces);
            }
            if !is_claim_name(name) {
                return Err(TemplateError::ClaimName(name.to_owned()));
            }
            parts.push(Part::Claim(name.to_owned()));
            rest = after;
        }
        refuse_ambiguity(&parts)?;
        Ok(Self(parts))
    }

    /// The claims that it names, in order.
    pub(super) fn claims(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Claim(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }

    /// Whether some values render to this text.
    pub(super) fn could_render(&self, text: &str) -> bool {
        fits(&self.0, text)
    }

    /// Renders the values from `value_of`. An absent or empty value is an error.
    pub(super) fn render(
        &self,
        value_of: impl Fn(&str) -> Option<String>,
    ) -> Result<String, NoValue> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Claim(name) => {
                    let value = value_of(name)
                        .filter(|value| !value.is_empty())
                        .ok_or_else(|| NoValue(name.clone()))?;
                    text.push_str(&encode_value(&value));
                }
            }
        }
        Ok(text)
    }
}

/// Whether some values render `parts` to `text`.
fn fits(parts: &[Part], text: &str) -> bool {
    match parts.split_first() {
        None => text.is_empty(),
        Some((Part::Literal(literal), rest)) => text
            .strip_prefix(literal.as_str())
            .is_some_and(|after| fits(rest, after)),
        // The character between two claims occurs in no value, so each value can end at few
        // positions.
        Some((Part::Claim(_), rest)) => {
            let value = text.chars().take_while(|c| in_values(*c)).count();
            (1..=value).rev().any(|end| {
                let after = text.get(end..);
                after.is_some_and(|after| fits(rest, after))
            })
        }
    }
}

fn literal(text: &str) -> Result<Part, TemplateError> {
    if text.bytes().all(|b| b.is_ascii_graphic() && b != b'%') {
        Ok(Part::Literal(text.to_owned()))
    } else {
        Err(TemplateError::Literal)
    }
}

fn is_claim_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b'%')
}

/// Whether an encoded value can contain `character`.
fn in_values(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '.' | '_' | '~' | '%')
}

fn refuse_ambiguity(parts: &[Part]) -> Result<(), TemplateError> {
    let mut previous: Option<&str> = None;
    let mut separated = true;
    for part in parts {
        match part {
            Part::Literal(text) => separated |= text.chars().any(|c| !in_values(c)),
            Part::Claim(name) => {
                if let Some(previous) = previous
                    && !separated
                {
                    return Err(TemplateError::Ambiguous(previous.to_owned(), name.clone()));
                }
                previous = Some(name);
                separated = false;
            }
        }
    }
    previous.map(|_| ()).ok_or(TemplateError::NoClaim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_template_is_filled_with_encoded_values() {
        let template = Template::parse("repo:{repository_id}:env:{environment}").unwrap();
        assert_eq!(
            template.claims().collect::<Vec<_>>(),
            ["repository_id", "environment"]
        );
        let text = template
            .render(|claim| {
                Some(match claim {
                    "repository_id" => "1234".to_owned(),
                    _ => "prod:x y".to_owned(),
                })
            })
            .unwrap();
        assert_eq!(text, "repo:1234:env:prod%3Ax%20y");
    }

    #[test]
    fn an_absent_or_empty_value_refuses() {
        let template = Template::parse("{a}").unwrap();
        assert_eq!(template.render(|_| None), Err(NoValue("a".into())));
        assert_eq!(
            template.render(|_| Some(String::new())),
            Err(NoValue("a".into()))
        );
    }

    #[test]
    fn a_text_is_told_to_be_of_a_template_or_not() {
        let template = Template::parse("repo:{id}:env:x{env}").unwrap();
        for (text, could) in [
            ("repo:1234:env:xprod", true),
            ("repo:1%3A4:env:xx", true),
            ("repo:1234:env:x", false),
            ("repo::env:xprod", false),
            ("repo:1234:env:prod", false),
            ("repo:1:2:env:xprod", false),
            ("repo:1234:env:xprod:more", false),
            ("1234", false),
            ("", false),
        ] {
            assert_eq!(template.could_render(text), could, "{text}");
        }
    }

    #[test]
    fn what_would_be_ambiguous_or_broken_does_not_parse() {
        for (text, error) in [
            ("", TemplateError::NoClaim),
            ("everyone", TemplateError::NoClaim),
            ("{a", TemplateError::Braces),
            ("a}", TemplateError::Braces),
            ("{a{b}}", TemplateError::Braces),
            ("{}", TemplateError::ClaimName(String::new())),
            ("{a b}", TemplateError::ClaimName("a b".into())),
            ("x y{a}", TemplateError::Literal),
            ("%{a}", TemplateError::Literal),
            ("\u{e9}{a}", TemplateError::Literal),
            ("{a}{b}", TemplateError::Ambiguous("a".into(), "b".into())),
            ("{a}-{b}", TemplateError::Ambiguous("a".into(), "b".into())),
            (
                "{a}/{b}x{c}",
                TemplateError::Ambiguous("b".into(), "c".into()),
            ),
        ] {
            assert_eq!(Template::parse(text), Err(error), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            drop(Template::parse(&text));
        }

        #[test]
        fn different_values_render_differently(
            a in "[a:/%-]{1,4}", b in "[a:/%-]{1,4}", c in "[a:/%-]{1,4}", d in "[a:/%-]{1,4}",
        ) {
            let template = Template::parse("{x}-:{y}").unwrap();
            let render = |x: &str, y: &str| template
                .render(|claim| Some(if claim == "x" { x.to_owned() } else { y.to_owned() }))
                .unwrap();
            prop_assert_eq!(render(&a, &b) == render(&c, &d), a == c && b == d);
            prop_assert!(template.could_render(&render(&a, &b)));
        }
    }
}
