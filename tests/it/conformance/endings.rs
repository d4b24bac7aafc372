//! The table of endings: written with its leaves, read with the head, pruned from the beginning.

use super::*;

cases! {
    endings_are_read_in_pages_with_the_head: "write_endings" "endings_after";
    endings_go_the_oldest_first: "prune_endings";
}

fn record(index: u64, n: u64, subject: EndingSubject) -> EndingRecord {
    EndingRecord {
        position: EndingPosition { index, n },
        subject,
        matters_until: at(50),
    }
}

/// Rows that continue those with the digest `before`.
fn chained(records: Vec<EndingRecord>, mut before: EndingsChain) -> Vec<ChainedEnding> {
    let mut rows = Vec::new();
    for record in records {
        let row = ChainedEnding { record, before };
        before = row.after();
        rows.push(row);
    }
    rows
}

fn after(rows: &[ChainedEnding]) -> EndingsChain {
    rows.last()
        .map_or(EndingsChain::EMPTY, ChainedEnding::after)
}

/// A batch of leaves with these endings.
fn batch_of(leaves: std::ops::Range<u64>, endings: &[ChainedEnding]) -> Writes {
    let size = leaves.end;
    Writes {
        // Long ago by every clock.
        leaves: leaves
            .map(|index| LeafRow {
                at: Timestamp::from_seconds(i64::try_from(index).unwrap()),
                ..leaf(index)
            })
            .collect(),
        head: Some(head_seal().seal(head(size), batch(u128::from(size)), after(endings))),
        endings: endings.to_vec(),
        ..Writes::default()
    }
}

async fn endings_are_read_in_pages_with_the_head(store: &Store) {
    let mut reader = store.endings_reader();
    let empty = reader.read(None, 9).await.unwrap();
    assert!(empty.head.is_none() && empty.rows.is_empty() && !empty.is_full);
    let subjects = [
        EndingSubject::Task(task_id(1)),
        EndingSubject::Session(session_id(1)),
        EndingSubject::Cutoff(Selector::All(True)),
        EndingSubject::Cutoff(Selector::IssuedAfter(at(7))),
        EndingSubject::Lift(Selector::Policy("a=b".into())),
        EndingSubject::SigningKey("k1".into()),
        EndingSubject::Activation(GenerationDigest::new([7; 32])),
        EndingSubject::Roles("dev:a".into()),
        EndingSubject::WorkloadKey("thumbprint".into()),
    ];
    // Two rows for each leaf.
    let records = (0..).zip(subjects).map(|(n, subject)| {
        let (index, n) = (n / 2, n % 2);
        record(index, n, subject)
    });
    let first = chained(records.collect(), EndingsChain::EMPTY);
    seed(store, batch_of(0..5, &first)).await;
    let all = reader.read(None, 10).await.unwrap();
    assert_eq!(all.rows, first);
    assert!(!all.is_full);
    let sealed = all.head.unwrap();
    assert_eq!(head_seal().open(&sealed), Ok(head(5)));
    assert_eq!(sealed.endings(), after(&first));
    let view = seen(store, Needs::default()).await;
    assert_eq!(view.head.unwrap().endings(), after(&first));

    let page = reader
        .read(Some(first[2].record.position), 3)
        .await
        .unwrap();
    assert_eq!(page.rows, first[3..6]);
    assert!(page.is_full);
    let none = reader
        .read(Some(first[8].record.position), 3)
        .await
        .unwrap();
    assert!(none.rows.is_empty() && !none.is_full);
    assert_eq!(none.head.as_ref(), Some(&sealed));
    let head_only = reader.read(None, 0).await.unwrap();
    assert!(head_only.rows.is_empty());
    assert_eq!(head_only.head.as_ref(), Some(&sealed));
    let last = EndingPosition {
        index: 3,
        n: u64::MAX,
    };
    let rest = reader.read(Some(last), 3).await.unwrap();
    assert_eq!(rest.rows, first[8..]);

    let next = chained(
        vec![record(5, 0, EndingSubject::Task(task_id(2)))],
        after(&first),
    );
    seed(store, batch_of(5..6, &next)).await;
    let page = reader
        .read(Some(first[8].record.position), 3)
        .await
        .unwrap();
    assert_eq!(page.rows, next);
    assert_eq!(page.head.unwrap().endings(), after(&next));
}

async fn endings_go_the_oldest_first(store: &Store) {
    let records = (0..6).map(|n| record(n / 2, n % 2, EndingSubject::Task(task_id(1))));
    let rows = chained(records.collect(), EndingsChain::EMPTY);
    let mut writes = batch_of(0..3, &rows);
    // The leaf in the middle is younger than the last.
    writes.leaves[1].at = Timestamp::from_seconds(9);
    seed(store, writes).await;
    let kept = async || {
        let page = store.endings_reader().read(None, 9).await.unwrap();
        page.rows.len()
    };
    let now = Timestamp::from_seconds(5);
    assert_eq!(store.prune_endings(now, 1).await.unwrap(), 1);
    assert_eq!(store.prune_endings(now, 9).await.unwrap(), 1);
    assert_eq!(store.prune_endings(now, 9).await.unwrap(), 0);
    assert_eq!(kept().await, 4, "none is deleted behind a younger one");
    let later = Timestamp::from_seconds(10);
    assert_eq!(store.prune_endings(later, 9).await.unwrap(), 4);
    assert_eq!(kept().await, 0);
}
