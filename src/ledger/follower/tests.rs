use uuid::Uuid;

use super::walk::{Continuity, continuity};
use super::*;
use crate::clock::Timestamp;
use crate::domain::cutoff::{Selector, True};
use crate::domain::generation_digest::GenerationDigest;
use crate::merkle::Hash;
use crate::store::endings::{ChainedEnding, EndingRecord};

fn record(index: u64, n: u64) -> EndingRecord {
    EndingRecord {
        position: EndingPosition { index, n },
        subject: EndingSubject::Task(Uuid::from_u128(u128::from(index * 10 + n)).into()),
        matters_until: Timestamp::from_seconds(9),
    }
}

/// Rows that continue the empty table.
fn rows(positions: &[(u64, u64)]) -> Vec<ChainedEnding> {
    let mut before = EndingsChain::EMPTY;
    let chained = positions.iter().map(|(index, n)| {
        let ending = ChainedEnding {
            record: record(*index, *n),
            before,
        };
        before = ending.after();
        ending
    });
    chained.collect()
}

fn page(rows: &[ChainedEnding], is_full: bool) -> EndingsPage {
    EndingsPage {
        head: None,
        rows: rows.to_vec(),
        is_full,
    }
}

fn head(size: u64) -> Head {
    Head {
        size,
        root: Hash::from([0; 32]),
    }
}

/// The result for a page after rows with this digest, in a log of ten leaves.
fn judged(
    known: EndingsChain,
    page: &EndingsPage,
    newest: EndingsChain,
) -> Result<Continuity, String> {
    continuity(known, page, head(10), newest).map_err(|why| why.to_string())
}

#[test]
fn pages_continue_each_other_up_to_the_head() {
    let all = rows(&[(1, 0), (1, 1), (4, 0), (9, 0)]);
    let newest = all[3].after();
    let first = page(&all[..2], true);
    let after = all[1].after();
    assert_eq!(
        judged(EndingsChain::EMPTY, &first, newest),
        Ok(Continuity::Continues(after))
    );
    assert_eq!(
        judged(after, &page(&all[2..], false), newest),
        Ok(Continuity::Continues(newest))
    );
    assert_eq!(
        judged(newest, &page(&[], false), newest),
        Ok(Continuity::Continues(newest))
    );
}

#[test]
fn a_row_that_is_missing_at_the_beginning_breaks_the_chain_and_nothing_more() {
    let all = rows(&[(1, 0), (4, 0), (9, 0)]);
    let newest = all[2].after();
    for (known, rest) in [
        (EndingsChain::EMPTY, &all[1..]),
        (EndingsChain::EMPTY, &all[3..]),
        (all[2].before, &all[1..]),
    ] {
        let judged = judged(known, &page(rest, false), newest);
        assert_eq!(judged, Ok(Continuity::Broken));
    }
}

#[test]
fn a_row_that_no_broker_wrote_is_found_wherever_it_is() {
    let all = rows(&[(1, 0), (4, 0), (9, 0)]);
    let newest = all[2].after();
    let forge = |at: (u64, u64), before| ChainedEnding {
        record: record(at.0, at.1),
        before,
    };
    for at in [(0, 0), (1, 5), (5, 0), (9, 1), (10, 0), (99, 0)] {
        let place = all.partition_point(|row| {
            let EndingPosition { index, n } = row.record.position;
            (index, n) < at
        });
        let digests = [EndingsChain::EMPTY, all[0].after(), all[1].after(), newest];
        for before in digests {
            let mut forged = all.clone();
            forged.insert(place, forge(at, before));
            let told = judged(EndingsChain::EMPTY, &page(&forged, false), newest).unwrap_err();
            assert!(told.contains("was not written by a broker"), "{told}");
        }
    }
    let mut changed = all.clone();
    changed[1].record.matters_until = Timestamp::from_seconds(8);
    judged(EndingsChain::EMPTY, &page(&changed, false), newest).unwrap_err();
    let mut gap = all;
    gap.remove(1);
    judged(EndingsChain::EMPTY, &page(&gap, false), newest).unwrap_err();
}

/// Walks a table after rows with this digest, three rows in each full page. Returns whether the walk
/// broke.
fn walked(
    known: EndingsChain,
    table: &[ChainedEnding],
    newest: EndingsChain,
) -> Result<bool, String> {
    let mut walk = Walk::after(ReadTo::head(head(0), known));
    loop {
        let from = walk.at().position;
        let rows: Vec<_> = table
            .iter()
            .filter(|row| Some(row.record.position) > from)
            .take(3)
            .cloned()
            .collect();
        let is_full = rows.len() == 3;
        let stepped = walk.step(&page(&rows, is_full), head(10), newest);
        stepped.map_err(|why| why.to_string())?;
        if !is_full {
            assert_eq!(walk.at(), ReadTo::head(head(10), newest));
            return Ok(walk.is_broken());
        }
    }
}

/// Rows that continue a digest.
fn continued(mut before: EndingsChain, positions: &[(u64, u64)]) -> Vec<ChainedEnding> {
    let mut all = rows(positions);
    for row in &mut all {
        row.before = before;
        before = row.after();
    }
    all
}

#[test]
fn a_walk_reaches_the_head_whatever_the_size_of_the_table() {
    for count in 0..9 {
        let positions: Vec<_> = (1..=count).map(|index| (index, 0)).collect();
        let all = rows(&positions);
        let newest = all.last().map_or(EndingsChain::EMPTY, ChainedEnding::after);
        assert_eq!(walked(EndingsChain::EMPTY, &all, newest), Ok(false));
        for missing in 1..all.len() {
            let rest = &all[missing..];
            assert_eq!(walked(EndingsChain::EMPTY, rest, newest), Ok(true));
        }
    }
}

#[test]
fn rows_that_no_broker_wrote_are_found_also_if_they_fill_whole_pages() {
    let own = rows(&[(1, 0), (1, 1), (9, 0)]);
    let newest = own[2].after();
    // They continue the rows before them, or those behind them, or none.
    for before in [EndingsChain::EMPTY, own[1].after(), newest] {
        for count in 1..8 {
            let positions: Vec<_> = (1..=count).map(|n| (2, n)).collect();
            let forged = continued(before, &positions);
            let mut alone = forged.clone();
            let mut table = own.clone();
            drop(table.splice(2..2, forged));
            for known in [EndingsChain::EMPTY, own[0].after()] {
                let told = walked(known, &table, newest).unwrap_err();
                assert!(told.contains("was not written by a broker"), "{told}");
            }
            walked(newest, &alone, newest).unwrap_err();
            alone.push(own[2].clone());
            walked(own[1].after(), &alone, newest).unwrap_err();
        }
    }
}

#[test]
fn only_acts_for_which_somebody_waits_are_passed_on() {
    let awaited = |subject: EndingSubject| {
        let mut awaited = Awaited::default();
        awaited.add(&subject);
        (awaited.cutoff, awaited.activation, awaited.key)
    };
    let all = || Selector::All(True);
    let digest = GenerationDigest::new([7; 32]);
    for (subject, expected) in [
        (EndingSubject::Cutoff(all()), (true, false, false)),
        (EndingSubject::Activation(digest), (false, true, false)),
        (EndingSubject::SigningKey("k1".into()), (false, false, true)),
        (EndingSubject::Lift(all()), (false, false, false)),
        (record(1, 0).subject, (false, false, false)),
    ] {
        assert_eq!(awaited(subject.clone()), expected, "{subject:?}");
    }
}

#[test]
fn pauses_after_failures_grow_up_to_a_second() {
    let pauses = [1, 2, 3, 5, 6, u32::MAX].map(|failures| pause_after(failures).as_millis());
    assert_eq!(pauses, [50, 100, 200, 800, 1_000, 1_000]);
}
