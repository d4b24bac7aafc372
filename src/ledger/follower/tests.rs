use uuid::Uuid;

use super::*;
use crate::clock::Timestamp;
use crate::merkle::Hash;
use crate::store::endings::EndingRecord;

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
