//! Prints the report of `ledger coverage` as a table for people.
//!
//! It fails only if the output cannot be written. [`super`] chooses between this table and JSON.

use crate::audit::coverage::{Class, Counts, OTHERS, Report, percent, shortened};
use crate::cli::{CliError, output};

/// The most groups in the table.
const SHOWN_GROUPS: usize = 20;

/// Prints the result for people.
pub(super) fn print(report: &Report<'_>) -> Result<(), CliError> {
    let (tally, decisions) = (&report.tally, report.decisions);
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
    print_groups(report)?;
    print_examples(report)?;
    output::line("")?;
    for note in report.notes() {
        output::line(format!("note: {note}"))?;
    }
    for problem in &report.problems {
        output::line(format!(
            "FAILED: {} after {} records: {}",
            problem.input, problem.records, problem.why
        ))?;
    }
    output::line(report.sentence())
}

fn print_groups(report: &Report<'_>) -> Result<(), CliError> {
    let tally = &report.tally;
    let groups = tally.worst(SHOWN_GROUPS);
    if groups.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let mut rows = vec![vec![tally.by.name().to_owned()]];
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

fn print_examples(report: &Report<'_>) -> Result<(), CliError> {
    let order = [
        Class::Unproven,
        Class::AfterEnd,
        Class::OutsideGrant,
        Class::Unjudged,
    ];
    for class in order {
        let examples = report.tally.examples.get(&class);
        let Some(examples) = examples.filter(|examples| !examples.is_empty()) else {
            continue;
        };
        output::line("")?;
        output::line(format!("{}, for example:", class.title()))?;
        let heading = ["time", "principal", "action", "resource", "record", "why"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(examples.iter().map(|example| {
            let position = format!("{}:{}", example.position.0, example.position.1);
            vec![
                example.at.clone().unwrap_or_else(|| "-".to_owned()),
                example.principal.clone(),
                example.action.clone(),
                example.resource.clone(),
                example.id.clone().unwrap_or(position),
                example.verdict.told.clone(),
            ]
        }));
        output::table(&rows)?;
    }
    Ok(())
}
