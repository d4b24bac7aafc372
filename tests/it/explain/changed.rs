//! Records of which a part was changed are no records.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use taskpass::domain::decision::RefusalCode;
use taskpass::policy::record::RecordError;

use super::*;

/// A rig with three decisions, in this order: a refusal by policy, a permit, and a refusal before
/// policy was evaluated.
async fn three_decisions() -> Rig {
    let rig = Rig::on(Kind::Sqlite).start().await;
    drop(rig.issue("agent:reports", ask(&["orders:write"])).await);
    rig.issue("agent:reports", ask(&["orders:read"]))
        .await
        .unwrap();
    let mut unknown = ask(&["orders:read"]);
    unknown.resource = "no-such-api".into();
    drop(rig.issue("agent:reports", unknown).await);
    rig
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_with_any_part_changed_is_no_record() {
    let rig = three_decisions().await;
    let compiled = generation(&rig).await;
    let all = records(&rig).await;
    let [refused, permitted, never] = &all[..] else {
        panic!("{all:?}");
    };
    for record in [refused, permitted] {
        assert!(
            Recorded::open(record)
                .unwrap()
                .reproduce(&compiled)
                .unwrap()
                .is_some()
        );
    }
    // A refusal before policy records its reason twice: in the leaf, and in the committed input.
    let bytes = STANDARD.decode(never.leaf.as_ref().unwrap()).unwrap();
    let leaf = String::from_utf8(bytes).unwrap();
    let other = leaf.replace("unknown-resource", "unknown-action");
    assert_ne!(leaf, other);
    let other = Record {
        leaf: Some(STANDARD.encode(other)),
        ..never.clone()
    };
    assert!(matches!(
        Recorded::open(&other).unwrap_err(),
        RecordError::Malformed(_)
    ));
    assert_eq!(
        Recorded::open(never).unwrap().decided_by(),
        &DecidedBy::Never(RefusalCode::UnknownResource)
    );
    // Parts of another decision's record do not match this leaf's commitments.
    let swapped = Record {
        salt: refused.salt.clone(),
        input: refused.input.clone(),
        ..permitted.clone()
    };
    assert_eq!(
        Recorded::open(&swapped).unwrap_err(),
        RecordError::NotTheInput
    );
    for (record, what) in [
        (
            Record {
                leaf: None,
                ..permitted.clone()
            },
            "its leaf",
        ),
        (
            Record {
                input: None,
                ..permitted.clone()
            },
            "its input",
        ),
        (
            Record {
                salt: None,
                ..permitted.clone()
            },
            "its input",
        ),
    ] {
        assert_eq!(
            Recorded::open(&record).unwrap_err(),
            RecordError::Pruned(what)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_that_says_something_else_of_the_same_input_does_not_come_out_again() {
    let rig = three_decisions().await;
    let compiled = generation(&rig).await;
    let all = records(&rig).await;
    let permitted = &all[1];
    let leaf = |from: &str, to: &str| {
        let bytes = STANDARD.decode(permitted.leaf.as_ref().unwrap()).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let changed = text.replacen(from, to, 1);
        assert_ne!(text, changed, "{from}");
        Record {
            leaf: Some(STANDARD.encode(changed)),
            ..permitted.clone()
        }
    };
    for (from, to, says) in [
        ("orders:read", "orders:write", "grant"),
        ("\"reports\"", "\"report\"", "policies"),
        ("orders-api", "archive-api", "resource"),
        ("agent%3Areports", "agent%3Aorders", "workload"),
        ("\"outcome\":\"permit\"", "\"outcome\":\"deny\"", "outcome"),
        ("\"expires_at\":\"2", "\"expires_at\":\"3", "expires_at"),
        (",\"policies\"", ", \"policies\"", "its bytes differ"),
    ] {
        let recorded = Recorded::open(&leaf(from, to)).unwrap();
        let different = recorded.reproduce(&compiled).unwrap_err().to_string();
        assert!(different.contains(says), "{from}: {different}");
    }
    let other = Rig::on(Kind::Sqlite)
        .policies(&[rig::POLICIES, POLICIES].concat())
        .start()
        .await;
    let recorded = Recorded::open(permitted).unwrap();
    let different = recorded.reproduce(&generation(&other).await).unwrap_err();
    assert!(
        different.to_string().contains("which decided"),
        "{different}"
    );
}
