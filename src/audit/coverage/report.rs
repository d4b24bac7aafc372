//! The result of a run as data: its conclusion, sentences, and JSON for programs.
//!
//! [`Report::verdict`] is `NotEstablished` if the counts or the inputs do not suffice for a
//! conclusion. [`super::Run`] makes the report; `cli::coverage` prints it, and [`super::picture`]
//! draws it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::decisions::Decisions;
use super::judge::{Class, Reason};
use super::tally::{Counts, Example, Tally, shortened};
use crate::clock::Timestamp;

/// The most groups in JSON.
const LISTED_GROUPS: usize = 1_000;

/// The name of all groups that are not listed.
pub(crate) const OTHERS: &str = "(all others)";

/// An input that could not be read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) input: String,
    /// The number of records that were read from it.
    pub(crate) records: u64,
    pub(crate) why: String,
}

/// The tolerated share of actions, in percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    pub(crate) unproven: f64,
    pub(crate) unjudged: f64,
}

/// The conclusion of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conclusion {
    Covered,
    NotCovered,
    NotEstablished,
}

impl Conclusion {
    fn name(self) -> &'static str {
        match self {
            Self::Covered => "covered",
            Self::NotCovered => "not_covered",
            Self::NotEstablished => "not_established",
        }
    }
}

/// All data of the report.
pub(crate) struct Report<'a> {
    pub(crate) decisions: &'a Decisions,
    pub(crate) until: Option<Timestamp>,
    pub(crate) as_of: Option<Timestamp>,
    pub(crate) skew_seconds: u64,
    pub(crate) tally: Tally,
    pub(crate) problems: Vec<Problem>,
    pub(crate) allowed: Allowed,
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a percentage does not need more precision than a float has"
)]
fn percentage(part: u64, of: u64) -> f64 {
    if of == 0 {
        return 0.0;
    }
    part as f64 * 100.0 / of as f64
}

/// A percentage for people. It shows 0 % only for none and 100 % only for all.
pub(crate) fn percent(part: u64, of: u64) -> String {
    let percent = percentage(part, of);
    if part > 0 && percent < 0.1 {
        "<0.1%".into()
    } else if part < of && percent > 99.9 {
        ">99.9%".into()
    } else {
        format!("{percent:.1}%")
    }
}

impl Report<'_> {
    /// The conclusion that follows from the counts and the tolerated shares.
    pub(crate) fn verdict(&self) -> Conclusion {
        let counts = &self.tally.counts;
        let (judged, all) = (counts.judged(), counts.all());
        let unproven = percentage(counts.of(Class::Unproven), judged);
        let bad = counts.of(Class::OutsideGrant) + counts.of(Class::AfterEnd);
        let unjudged = percentage(counts.of(Class::Unjudged), all);
        if bad > 0 || unproven > self.allowed.unproven {
            return Conclusion::NotCovered;
        }
        if judged == 0 || unjudged > self.allowed.unjudged || !self.problems.is_empty() {
            return Conclusion::NotEstablished;
        }
        Conclusion::Covered
    }

    /// The conclusion as a sentence.
    pub(crate) fn sentence(&self) -> String {
        let counts = &self.tally.counts;
        let (judged, unjudged) = (counts.judged(), counts.of(Class::Unjudged));
        match self.verdict() {
            Conclusion::Covered if counts.bad() + unjudged == 0 => {
                format!("covered: all {judged} actions are proven")
            }
            Conclusion::Covered => format!(
                "covered within the given limits: {} of {judged} actions are proven, {unjudged} were not judged",
                counts.of(Class::Proven)
            ),
            Conclusion::NotCovered => {
                format!(
                    "not covered: {} of {judged} actions are not proven",
                    counts.bad()
                )
            }
            Conclusion::NotEstablished if judged == 0 => {
                "not established: there was no action to judge".into()
            }
            Conclusion::NotEstablished if self.problems.is_empty() => {
                format!(
                    "not established: {unjudged} of {} actions could not be judged",
                    counts.all()
                )
            }
            Conclusion::NotEstablished => {
                "not established: not all of the records could be read".into()
            }
        }
    }

    /// Remarks that are needed to interpret the numbers.
    pub(crate) fn notes(&self) -> Vec<String> {
        let (tally, decisions) = (&self.tally, self.decisions);
        let mut notes = vec![
            "proven means: the permit is in the signed log, and was decided before the action by the broker's clock and the record's".to_owned(),
        ];
        if decisions.pruned() > 0 {
            notes.push(format!(
                "the bodies of {} entries of the log are pruned",
                decisions.pruned()
            ));
        }
        if decisions.unknown() > 0 {
            notes.push(format!(
                "this version does not know the kind of {} entries of the log",
                decisions.unknown()
            ));
        }
        if tally.within_skew > 0 {
            notes.push(format!(
                "{} actions are proven only because clocks may differ by {} s",
                tally.within_skew, self.skew_seconds
            ));
        }
        if tally.made_again > 0 {
            notes.push(format!(
                "a session of AWS was created again {} times: the broker tried twice, another principal created it, or its record was repeated",
                tally.made_again
            ));
        }
        if let Some(former) = decisions.succeeds() {
            notes.push(format!(
                "the log replaces {}, which holds the earlier decisions",
                shortened(former)
            ));
        }
        if tally
            .reasons
            .contains_key(&(Class::Unjudged, Reason::AfterLog))
        {
            notes.push(
                "some records are later than the log: export it after the records, or give the time of its export with --as-of".to_owned(),
            );
        }
        notes
    }

    /// The result for programs. The member names are stable.
    pub(crate) fn to_json(&self) -> Value {
        let (tally, decisions) = (&self.tally, self.decisions);
        let judged = tally.counts.judged();
        let classes: BTreeMap<&str, Value> = Class::ALL
            .into_iter()
            .map(|class| {
                let count = tally.counts.of(class);
                let of = match class {
                    Class::Unjudged => tally.counts.all(),
                    _ => judged,
                };
                let reasons: BTreeMap<&str, u64> = tally
                    .reasons
                    .iter()
                    .filter(|((of, _), _)| *of == class)
                    .map(|((_, reason), count)| (reason.name(), *count))
                    .collect();
                let value = json!({
                    "count": count, "percent": percentage(count, of), "reasons": reasons
                });
                (class.name(), value)
            })
            .collect();
        let examples = tally.examples.iter().flat_map(|(class, examples)| {
            examples.iter().map(|example| example_json(*class, example))
        });
        let groups = tally.worst(LISTED_GROUPS);
        let others = tally.besides(&groups);
        let groups = groups.iter().map(|(name, counts)| group_json(name, counts));
        json!({
            "verdict": self.verdict().name(),
            "log": {
                "origin": shortened(decisions.origin()), "size": decisions.size(),
                "root": decisions.root(), "permits": decisions.permits(),
                "pruned": decisions.pruned(), "unknown": decisions.unknown(),
                "last_entry_at": decisions.last_at(), "as_of": self.as_of,
                "judged_until": self.until,
            },
            "records": {
                "read": tally.records, "repeated": tally.duplicates, "refused": tally.refused,
                "set_aside": tally.set_aside, "judged": judged,
                "within_skew": tally.within_skew, "made_again": tally.made_again,
            },
            "classes": classes,
            "allowed": {
                "unproven_percent": self.allowed.unproven,
                "unjudged_percent": self.allowed.unjudged,
                "skew_seconds": self.skew_seconds,
            },
            "examples": examples.collect::<Vec<_>>(),
            "by": tally.by.name(),
            "groups": groups.collect::<Vec<_>>(),
            "other_groups": counts_json(&others),
            "problems": self.problems.iter().map(|problem| json!({
                "input": problem.input, "records": problem.records, "why": problem.why
            })).collect::<Vec<_>>(),
            "notes": self.notes(),
        })
    }
}

fn counts_json(counts: &Counts) -> Value {
    let all = Class::ALL.map(|class| (class.name().to_owned(), Value::from(counts.of(class))));
    Value::Object(all.into_iter().collect())
}

fn group_json(name: &str, counts: &Counts) -> Value {
    json!({"name": name, "counts": counts_json(counts)})
}

fn example_json(class: Class, example: &Example) -> Value {
    let verdict = &example.verdict;
    json!({
        "class": class.name(), "reason": verdict.reason.name(), "why": verdict.told,
        "input": example.position.0, "record": example.position.1, "id": example.id,
        "at": example.at, "principal": example.principal, "action": example.action,
        "resource": example.resource, "leaf": verdict.leaf,
        "workload": verdict.of.as_ref().map(|(workload, _)| workload),
        "granted_on": verdict.of.as_ref().map(|(_, resource)| resource),
    })
}
