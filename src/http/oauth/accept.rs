//! The media types that a request accepts (RFC 9110 §12.5.1).
//!
//! A malformed range matches nothing and is no error. `super::introspect` chooses the form of its
//! answer by it.

use axum::http::{HeaderMap, header};

/// How well a media type is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Acceptance {
    /// The weight in thousandths; 0 is not acceptable.
    pub(super) weight: u16,
    /// The specificity of the matching range: 0 for none, 1 for `*/*`, 2 for the type, 3 for an
    /// exact match.
    pub(super) closeness: u8,
}

impl Acceptance {
    /// How well the request accepts this media type. The most specific range counts; without
    /// `Accept` every type is accepted.
    pub(super) fn of(headers: &HeaderMap, media_type: &str) -> Self {
        if !headers.contains_key(header::ACCEPT) {
            return Self {
                weight: 1_000,
                closeness: 0,
            };
        }
        let values = headers.get_all(header::ACCEPT).iter();
        let values = values.filter_map(|value| value.to_str().ok());
        let ranges = values.flat_map(|value| value.split(','));
        let found = ranges.filter_map(|range| Self::by(range, media_type));
        found
            .max_by_key(|found| found.closeness)
            .unwrap_or_default()
    }

    /// The result of one range for a media type. `None` if the range does not match or is
    /// malformed.
    fn by(range: &str, media_type: &str) -> Option<Self> {
        let mut parts = range.split(';').map(str::trim);
        let range = parts.next()?;
        let top = media_type.split_once('/').map(|(top, _)| top);
        let closeness = if range.eq_ignore_ascii_case(media_type) {
            3
        } else if range == "*/*" {
            1
        } else {
            let wide = range.strip_suffix("/*")?;
            top.filter(|top| wide.eq_ignore_ascii_case(top))
                .map(|_| 2)?
        };
        let weights = parts.filter_map(|part| part.split_once('='));
        let mut weights = weights.filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
        let weight = match weights.next() {
            None => 1_000,
            Some((_, text)) => thousandths(text.trim())?,
        };
        Some(Self { weight, closeness })
    }
}

/// A weight (RFC 9110 §12.4.2): at most 1, with at most three decimals.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let fraction: u16 = format!("{fraction:0<3}").parse().ok()?;
    match whole {
        "0" => Some(fraction),
        "1" if fraction == 0 => Some(1_000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(accept: &str, media_type: &str) -> u16 {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        Acceptance::of(&headers, media_type).weight
    }

    #[test]
    fn a_weight_of_zero_is_not_acceptable() {
        for (accept, weighs) in [
            ("text/plain", 1_000),
            ("Text/Plain; charset=utf-8", 1_000),
            ("text/plain;q=0", 0),
            ("text/plain; Q=0.000", 0),
            ("text/plain;q=0, */*", 0),
            ("*/*;q=0.5", 500),
            ("text/*;q=0.25, */*;q=0.5", 250),
            ("text/plain;q=1.000", 1_000),
            ("application/json", 0),
            ("text/plainer", 0),
            ("", 0),
            // A malformed weight: the range is ignored.
            ("text/plain;q=1.5", 0),
            ("text/plain;q=-1", 0),
            ("text/plain;q=0.0001", 0),
            ("text/plain;q=x, */*;q=0.1", 100),
        ] {
            assert_eq!(weight(accept, "text/plain"), weighs, "{accept}");
        }
        let all = Acceptance::of(&HeaderMap::new(), "text/plain");
        assert_eq!(all.weight, 1_000);
    }
}
