//! Determines which external actions had a recorded decision.
//!
//! It reads records of external actions and joins each action to a decision in a verified log.
//! First it reads the whole log ([`decisions`]), then the records one at a time ([`input`], with
//! [`cloudtrail`] and [`mapped`] for their formats). Each action is judged ([`judge`]) and counted
//! ([`tally`]). Nothing is fetched. Records are trusted only to show that an action happened.
//!
//! A record or an input that cannot be read is counted or listed in the [`Report`] and stops
//! nothing. The caller, `cli::coverage`, turns the report's conclusion into an exit code.

mod cloudtrail;
mod decisions;
mod filter;
mod input;
mod judge;
mod mapped;
mod names;
mod picture;
mod record;
mod report;
mod tally;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::Value;

pub(crate) use self::decisions::Decisions;
pub(crate) use self::filter::Filter;
pub(crate) use self::input::open;
use self::input::{Piece, Shape};
pub(crate) use self::judge::Class;
use self::judge::{Judge, Judgement};
pub(crate) use self::mapped::{MAX_BYTES as MAX_MAPPING_BYTES, Mapping};
pub(crate) use self::picture::draw;
use self::record::{Outcome, Record};
use self::report::Problem;
pub(crate) use self::report::{Allowed, Conclusion, OTHERS, Report, percent};
use self::tally::Tally;
pub(crate) use self::tally::{Counts, GroupBy, shortened};
use crate::clock::Timestamp;

/// The number of records between two reports of progress.
const STRIDE: u64 = 4_096;

/// The format of the records, with the mapping of their fields.
pub(crate) enum RecordFormat {
    /// Files of AWS `CloudTrail` records.
    Cloudtrail,
    /// Events of OCSF in JSON.
    Ocsf(Mapping),
    /// JSON lines with the fields of the mapping.
    Mapped(Mapping),
}

/// The settings of a run.
pub(crate) struct Settings {
    /// The permitted difference of clocks.
    pub(crate) skew_seconds: u64,
    /// The time of the log's export; `None` if it is unknown.
    pub(crate) as_of: Option<Timestamp>,
    /// Only records that match all of these are judged.
    pub(crate) only: Vec<Filter>,
    /// Records that match one of these are set aside.
    pub(crate) except: Vec<Filter>,
    /// The key by which actions are grouped.
    pub(crate) by: GroupBy,
    /// The most examples of each class.
    pub(crate) examples: usize,
    /// The tolerated shares of actions that are unproven or not judged.
    pub(crate) allowed: Allowed,
}

/// Judges the actions in records, one input after the other.
pub(crate) struct Run<'a> {
    decisions: &'a Decisions,
    settings: &'a Settings,
    format: RecordFormat,
    judge: Judge<'a>,
    tally: Tally,
    problems: Vec<Problem>,
}

impl RecordFormat {
    fn shape(&self) -> Shape {
        match self {
            Self::Cloudtrail => Shape::Documents,
            Self::Ocsf(_) | Self::Mapped(_) => Shape::Lines,
        }
    }

    fn read(&self, bytes: &[u8]) -> Result<Record, &'static str> {
        match self {
            Self::Cloudtrail => cloudtrail::read(bytes),
            Self::Ocsf(mapping) => mapped::read_ocsf(mapping, bytes),
            Self::Mapped(mapping) => mapped::read(mapping, bytes),
        }
    }
}

impl<'a> Run<'a> {
    /// A run that has read no records yet.
    pub(crate) fn new(
        decisions: &'a Decisions,
        settings: &'a Settings,
        format: RecordFormat,
    ) -> Self {
        Self {
            decisions,
            settings,
            format,
            judge: Judge::new(decisions, settings.skew_seconds, settings.as_of),
            tally: Tally::new(settings.by, settings.examples),
            problems: Vec::new(),
        }
    }

    /// Reads and judges the records of a file, or of standard input for `-`. An input that cannot
    /// be read to its end is a problem in the report. `progress` gets the number of all records
    /// read so far.
    pub(crate) fn read(&mut self, path: &Path, mut progress: impl FnMut(u64)) {
        let name = path.display().to_string();
        let before = self.tally.records;
        let shape = self.format.shape();
        let read = input::open(path)
            .map_err(|error| error.to_string())
            .and_then(|mut input| {
                input::each(&mut *input, shape, &mut |piece| {
                    self.tally.records += 1;
                    let position = (name.as_str(), self.tally.records - before);
                    self.take(piece, position);
                    if self.tally.records.is_multiple_of(STRIDE) {
                        progress(self.tally.records);
                    }
                })
            });
        if let Err(why) = read {
            self.problems.push(Problem {
                input: shortened(&name),
                records: self.tally.records - before,
                why: shortened(&why),
            });
        }
    }

    fn take(&mut self, piece: Piece<'_>, position: (&str, u64)) {
        let record = match piece {
            Piece::Record(bytes) => self.format.read(bytes),
            Piece::TooLong => Err("it is longer than the longest permitted record"),
        };
        let record = match record {
            Ok(record) => record,
            Err(why) => return self.tally.add(Judgement::unreadable(why), None, position),
        };
        if self.tally.is_repeated(&record) {
            return;
        }
        let mut only = self.settings.only.iter();
        if !only.all(|filter| filter.matches(&record)) {
            return self.tally.set_aside("not among --only");
        }
        let mut except = self.settings.except.iter();
        if except.any(|filter| filter.matches(&record)) {
            return self.tally.set_aside("among --except");
        }
        match record.outcome {
            Outcome::Nobodys(why) => self.tally.set_aside(why),
            Outcome::Refused => self.tally.refused += 1,
            Outcome::Done => {
                let judgement = self.judge.judge(&record);
                self.tally.add(judgement, Some(&record), position);
            }
        }
    }

    /// The result of all records that were read.
    pub(crate) fn finish(self) -> Report<'a> {
        Report {
            decisions: self.decisions,
            until: self.judge.until(),
            as_of: self.settings.as_of,
            skew_seconds: self.settings.skew_seconds,
            tally: self.tally,
            problems: self.problems,
            allowed: self.settings.allowed,
        }
    }
}

/// Parses a time in RFC 3339 with an offset.
pub(crate) fn time(text: &str) -> Result<Timestamp, &'static str> {
    let text = Value::String(text.to_owned());
    record::time(&text, record::TimeFormat::Rfc3339)
}
