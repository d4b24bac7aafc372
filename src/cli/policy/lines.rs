//! Lines of recorded decisions, and the check that they are complete.
//!
//! `policy decisions` writes one record a line in the order of the log, and a last line with the
//! number of records and the first and last index. A file without that line may be truncated. A
//! file whose indices do not increase, or that does not match its last line, was changed.
//!
//! Such a file, and a line that is not a record, is [`CliError::Usage`]. `super::replay` and
//! `super::unused` read with [`read`].

use serde::{Deserialize, Serialize};

use super::super::CliError;
use crate::clock::Timestamp;
use crate::domain::record::Record;

/// The problem of a line that is not a record.
const NO_RECORD: &str = "a line is not the record of a decision";

/// The number of records and their range of indices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Range {
    records: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<u64>,
    /// The start of the requested period; `None` if it begins with the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
}

/// The line after the last record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LastLine {
    end: Range,
}

impl LastLine {
    /// The last line for the lines in `whole`.
    pub(super) fn new(whole: &Whole, since: Option<Timestamp>) -> Self {
        let end = Range {
            since,
            ..whole.found.clone()
        };
        Self { end }
    }
}

impl Range {
    /// Appends `next`. Fails if `next` does not begin after this range.
    fn extend(&mut self, next: &Self) -> Result<(), CliError> {
        if let (Some(last), Some(first)) = (self.last, next.first)
            && first <= last
        {
            return Err(CliError::Usage(format!(
                "index {first} follows index {last}: each index must occur once, in increasing order"
            )));
        }
        self.records += next.records;
        self.first = self.first.or(next.first);
        self.last = next.last.or(self.last);
        Ok(())
    }

    fn one(index: u64) -> Self {
        Self {
            records: 1,
            first: Some(index),
            last: Some(index),
            since: None,
        }
    }
}

/// The result of reading some of the lines.
#[derive(Debug, Default)]
pub(super) struct Span {
    /// The batch's number, for the order.
    batch: u64,
    found: Range,
    end: Option<Range>,
}

/// Reads lines, and passes each record to `each`.
pub(super) fn read(
    batch: u64,
    lines: &str,
    mut each: impl FnMut(&Record) -> Result<(), CliError>,
) -> Result<Span, CliError> {
    let mut span = Span {
        batch,
        ..Span::default()
    };
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        if span.end.is_some() {
            return Err(more_than_all());
        }
        match serde_json::from_str::<Record>(line) {
            Ok(record) => {
                span.found.extend(&Range::one(record.index))?;
                each(&record)?;
            }
            Err(error) => {
                let last = serde_json::from_str::<LastLine>(line);
                let last = last.map_err(|_| CliError::Usage(format!("{NO_RECORD}: {error}")))?;
                span.end = Some(last.end);
            }
        }
    }
    Ok(span)
}

/// The result of reading all lines.
#[derive(Debug, Default)]
pub(super) struct Whole {
    found: Range,
    end: Option<Range>,
}

impl Whole {
    /// Joins the results of all batches, given in any order.
    pub(super) fn of(mut spans: Vec<Span>) -> Result<Self, CliError> {
        spans.sort_by_key(|span| span.batch);
        let mut whole = Self::default();
        for span in spans {
            if whole.end.is_some() && (span.found.records > 0 || span.end.is_some()) {
                return Err(more_than_all());
            }
            whole.found.extend(&span.found)?;
            whole.end = whole.end.or(span.end);
        }
        if let Some(end) = &whole.end {
            let found = Range {
                since: end.since,
                ..whole.found.clone()
            };
            if found != *end {
                return Err(CliError::Usage(format!(
                    "the file holds {} decisions, but its last line says {}: it was changed",
                    found.records, end.records
                )));
            }
        }
        Ok(whole)
    }

    /// Why the file may hold less than was requested; `None` if it holds all.
    pub(super) fn cut_short(&self, since: Option<Timestamp>) -> Option<String> {
        let Some(end) = &self.end else {
            return Some(
                "the file does not end with the line that `policy decisions` writes last, so it \
                 may be truncated; write the file again"
                    .to_owned(),
            );
        };
        let begins = end.since?;
        let asked = since.is_some_and(|since| since < begins);
        asked.then(|| format!("the file begins at {begins} only"))
    }
}

fn more_than_all() -> CliError {
    CliError::Usage("the file of decisions has lines after its last line".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: u64) -> String {
        format!("{{\"index\":{index},\"leaf_hash\":\"\"}}\n")
    }

    fn whole(batches: &[&str]) -> Result<Whole, String> {
        let mut spans = Vec::new();
        for (batch, lines) in batches.iter().enumerate().rev() {
            let span = read(batch as u64, lines, |_| Ok(())).map_err(|e| e.to_string())?;
            spans.push(span);
        }
        Whole::of(spans).map_err(|error| error.to_string())
    }

    fn last(records: u64, first: u64, last: u64) -> String {
        format!("{{\"end\":{{\"records\":{records},\"first\":{first},\"last\":{last}}}}}\n")
    }

    #[test]
    fn what_was_written_whole_is_known_to_be() {
        let (one, two) = ([record(3), record(5)].concat(), record(9));
        let good = whole(&[&one, &two, &last(3, 3, 9)]).unwrap();
        assert_eq!(good.cut_short(None), None);
        let text = serde_json::to_string(&LastLine::new(&good, None)).unwrap();
        assert_eq!(format!("{text}\n"), last(3, 3, 9));
        let nothing = whole(&["{\"end\":{\"records\":0}}"]).unwrap();
        assert_eq!(nothing.cut_short(None), None);
    }

    #[test]
    fn a_file_that_may_have_been_cut_says_so() {
        let cut = whole(&[&record(3), &record(5)]).unwrap();
        assert!(cut.cut_short(None).unwrap().contains("truncated"));
        let since = "{\"end\":{\"records\":0,\"since\":\"2026-11-20T00:00:00Z\"}}";
        let later = whole(&[since]).unwrap();
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        assert_eq!(later.cut_short(at("2026-11-21T00:00:00Z")), None);
        assert!(later.cut_short(at("2026-11-19T00:00:00Z")).is_some());
    }

    #[test]
    fn twice_the_same_another_order_and_what_is_missing_are_refused() {
        let (three, five, nine) = (record(3), record(5), record(9));
        let all = last(3, 3, 9);
        for (batches, says) in [
            (vec![&three[..], &three], "follows index 3"),
            (vec![&five[..], &three], "follows index 5"),
            (
                vec![&[&three[..], &nine, &five].concat()[..]],
                "follows index 9",
            ),
            (vec![&three[..], &nine, &all], "holds 2 decisions"),
            (vec![&three[..], &five, &last(2, 3, 9)], "it was changed"),
            (
                vec![&three[..], &last(1, 3, 3), &five],
                "after its last line",
            ),
            (
                vec![&[&last(0, 0, 0)[..], &three].concat()[..]],
                "after its last line",
            ),
            (vec!["{\"end\":{}}"], "not the record of a decision"),
            (
                vec!["{\"end\":{\"records\":0,\"x\":1}}"],
                "not the record of a decision",
            ),
        ] {
            let refused = whole(&batches).unwrap_err();
            assert!(refused.contains(says), "{says}: {refused}");
        }
    }
}
