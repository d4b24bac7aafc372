//! The result: a table for people, and JSON for programs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::decisions::Decisions;
use super::judge::{Class, Reason};
use super::tally::{Counts, Example, GroupBy, Tally, shortened};
use crate::cli::{Failure, output};
use crate::clock::Timestamp;

/// The most groups in the table, and in JSON.
const SHOWN_GROUPS: usize = 20;
const LISTED_GROUPS: usize = 1_000;

/// The name of all groups that are not listed.
pub(super) const OTHERS: &str = "(all others)";

/// An input that could not be read to its end.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) input: String,
    /// The number of records that were read from it.
    pub(super) records: u64,
    pub(super) why: String,
}

/// The tolerated share of actions, in percent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed {
    pub(super) unproven: f64,
    pub(super) unjudged: f64,
}

/// The conclusion of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conclusion {
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

    /// The exit code of the conclusion; the report itself was already printed.
    pub(super) fn exit(self) -> Result<(), Failure> {
        match self {
            Self::Covered => Ok(()),
            Self::NotCovered => Err(Failure::Told),
            Self::NotEstablished => Err(Failure::Ended(3)),
        }
    }
}

/// All data of the report.
pub(super) struct Report<'a> {
    pub(super) decisions: &'a Decisions,
    pub(super) until: Option<Timestamp>,
    pub(super) as_of: Option<Timestamp>,
    pub(super) skew_seconds: u64,
    pub(super) tally: &'a Tally,
    pub(super) problems: Vec<Problem>,
    pub(super) allowed: Allowed,
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
pub(super) fn percent(part: u64, of: u64) -> String {
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
    pub(super) fn verdict(&self) -> Conclusion {
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
    pub(super) fn sentence(&self) -> String {
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
    pub(super) fn notes(&self) -> Vec<String> {
        let (tally, decisions) = (self.tally, self.decisions);
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
    pub(super) fn to_json(&self) -> Value {
        let (tally, decisions) = (self.tally, self.decisions);
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
            "by": name_of(tally.by),
            "groups": groups.collect::<Vec<_>>(),
            "other_groups": counts_json(&others),
            "problems": self.problems.iter().map(|problem| json!({
                "input": problem.input, "records": problem.records, "why": problem.why
            })).collect::<Vec<_>>(),
            "notes": self.notes(),
        })
    }

    /// Prints the result for people.
    pub(super) fn print(&self) -> Result<(), Failure> {
        let (tally, decisions) = (self.tally, self.decisions);
        let last = decisions
            .last_at()
            .map_or("-".to_owned(), |at| at.to_string());
        output::line(format!(
            "log: {}, {} entries, {} permits, the last at {last}",
            shortened(decisions.origin()),
            decisions.size(),
            decisions.permits()
        ))?;
        output::line(format!(
            "records: {} read, {} repeated, {} refused by the service",
            tally.records, tally.duplicates, tally.refused
        ))?;
        for (why, count) in &tally.set_aside {
            output::line(format!("set aside: {count}, {why}"))?;
        }
        output::line("")?;
        let heading = ["class", "actions", "share"].map(str::to_owned).to_vec();
        let rows = Class::ALL.into_iter().map(|class| {
            let count = tally.counts.of(class);
            let share = match class {
                Class::Unjudged => "-".to_owned(),
                _ => percent(count, tally.counts.judged()),
            };
            vec![class.title().to_owned(), count.to_string(), share]
        });
        output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>())?;
        self.print_groups()?;
        self.print_examples()?;
        output::line("")?;
        for note in self.notes() {
            output::line(format!("note: {note}"))?;
        }
        for problem in &self.problems {
            output::line(format!(
                "FAILED: {} after {} records: {}",
                problem.input, problem.records, problem.why
            ))?;
        }
        output::line(self.sentence())
    }

    fn print_groups(&self) -> Result<(), Failure> {
        let tally = self.tally;
        let groups = tally.worst(SHOWN_GROUPS);
        if groups.is_empty() {
            return Ok(());
        }
        output::line("")?;
        let mut rows = vec![vec![name_of(tally.by).to_owned()]];
        rows[0].extend(Class::ALL.map(|class| class.title().to_owned()));
        let row = |name: &str, counts: &Counts| {
            let numbers = Class::ALL.map(|class| counts.of(class).to_string());
            [vec![name.to_owned()], numbers.to_vec()].concat()
        };
        rows.extend(groups.iter().map(|(name, counts)| row(name, counts)));
        let others = tally.besides(&groups);
        if others.all() > 0 {
            rows.push(row(OTHERS, &others));
        }
        output::table(&rows)?;
        if others.all() > 0 {
            output::line("--json lists more groups")?;
        }
        Ok(())
    }

    fn print_examples(&self) -> Result<(), Failure> {
        let order = [
            Class::Unproven,
            Class::AfterEnd,
            Class::OutsideGrant,
            Class::Unjudged,
        ];
        for class in order {
            let examples = self.tally.examples.get(&class);
            let Some(examples) = examples.filter(|examples| !examples.is_empty()) else {
                continue;
            };
            output::line("")?;
            output::line(format!("{}, for example:", class.title()))?;
            let heading = ["time", "principal", "action", "resource", "record", "why"];
            let mut rows = vec![heading.map(str::to_owned).to_vec()];
            rows.extend(examples.iter().map(|example| {
                let place = format!("{}:{}", example.place.0, example.place.1);
                vec![
                    example.at.clone().unwrap_or_else(|| "-".to_owned()),
                    example.principal.clone(),
                    example.action.clone(),
                    example.resource.clone(),
                    example.id.clone().unwrap_or(place),
                    example.verdict.told.clone(),
                ]
            }));
            output::table(&rows)?;
        }
        Ok(())
    }
}

pub(super) fn name_of(by: GroupBy) -> &'static str {
    match by {
        GroupBy::Principal => "principal",
        GroupBy::Resource => "resource",
        GroupBy::Action => "action",
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
        "input": example.place.0, "record": example.place.1, "id": example.id,
        "at": example.at, "principal": example.principal, "action": example.action,
        "resource": example.resource, "leaf": verdict.leaf,
        "workload": verdict.of.as_ref().map(|(workload, _)| workload),
        "granted_on": verdict.of.as_ref().map(|(_, resource)| resource),
    })
}
