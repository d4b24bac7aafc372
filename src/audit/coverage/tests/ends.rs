//! Tests of everything that can end a permit, and of logs that cannot be judged by.

use super::*;

/// Everything that can end the permit, 60 s after noon.
fn ends() -> Vec<(Value, Reason)> {
    let cut = |selector: Value| {
        leaf(
            60,
            json!({
                "event": "cutoff", "id": OTHER, "selector": selector, "reason": "c".repeat(64), "by": "x"
            }),
        )
    };
    let session_ended = |reason: &str| {
        leaf(
            60,
            json!({"event": "session_ended", "session": SESSION, "reason": reason, "by": "x"}),
        )
    };
    let task_ended = |end: &str| {
        leaf(
            60,
            json!({"event": "task_ended", "task": TASK, "state": end, "by": "x"}),
        )
    };
    let another = with(with(permit(), "session", OTHER), "supersedes", SESSION);
    vec![
        (session_ended("completed"), Reason::Completed),
        (session_ended("revoked"), Reason::Revoked),
        (session_ended("failed"), Reason::Failed),
        (task_ended("completed"), Reason::TaskOver),
        (task_ended("aborted"), Reason::TaskOver),
        (task_ended("expired"), Reason::TaskOver),
        (
            leaf(
                60,
                json!({"event": "tasks_ended", "tasks": [OTHER, TASK], "state": "expired", "by": "x"}),
            ),
            Reason::TaskOver,
        ),
        (with(another, "at", json!(at(60))), Reason::Superseded),
        (cut(json!({"all": true})), Reason::CutOff),
        (
            cut(json!({"workload": "dev:agent%3Areports"})),
            Reason::CutOff,
        ),
        (cut(json!({"task": TASK})), Reason::CutOff),
        (cut(json!({"resource": "orders-api"})), Reason::CutOff),
        (cut(json!({"attestor": "dev"})), Reason::CutOff),
        (cut(json!({"generation": generation()})), Reason::CutOff),
        (cut(json!({"policy": "reports-read"})), Reason::CutOff),
        (cut(json!({"signing_key": "k1"})), Reason::CutOff),
    ]
}

#[test]
fn whatever_ends_a_permit_in_the_log_ends_it_for_the_records_too() {
    for (end, reason) in ends() {
        let log = log(&[permit(), end.clone()]);
        assert_eq!(judged(&log, &action(65)), PROVEN, "{end}");
        assert_eq!(
            judged(&log, &action(66)),
            (Class::AfterEnd, reason),
            "{end}"
        );
    }
}

#[test]
fn what_ends_another_or_came_before_ends_nothing() {
    let cut = |seconds: u64, selector: Value| {
        leaf(
            seconds,
            json!({
                "event": "cutoff", "id": OTHER, "selector": selector, "reason": "c".repeat(64), "by": "x"
            }),
        )
    };
    for end in [
        leaf(
            60,
            json!({"event": "session_ended", "session": OTHER, "reason": "revoked", "by": "x"}),
        ),
        leaf(
            60,
            json!({"event": "task_ended", "task": OTHER, "state": "aborted", "by": "x"}),
        ),
        cut(60, json!({"workload": "dev:agent%3Aothers"})),
        cut(60, json!({"task": OTHER})),
        cut(60, json!({"policy": "reports-write"})),
        leaf(
            60,
            json!({"event": "end_confirmed", "session": SESSION, "confirmed": true}),
        ),
    ] {
        assert_eq!(
            judged(&log(&[permit(), end.clone()]), &action(100)),
            PROVEN,
            "{end}"
        );
    }
    let before = cut(0, json!({"all": true}));
    assert_eq!(judged(&log(&[before, permit()]), &action(100)), PROVEN);
}

#[test]
fn an_end_above_is_an_end_below() {
    let parent = with(
        with(with(permit(), "session", PARENT), "task", ABOVE),
        "workload",
        "dev:agent%3Aparent",
    );
    let child = with(
        with(permit(), "parent_session", PARENT),
        "task_parents",
        json!([ABOVE]),
    );
    let cut = |selector: Value| {
        json!({
            "event": "cutoff", "id": OTHER, "selector": selector, "reason": "c".repeat(64), "by": "x"
        })
    };
    for end in [
        json!({"event": "session_ended", "session": PARENT, "reason": "revoked", "by": "x"}),
        json!({"event": "task_ended", "task": ABOVE, "state": "aborted", "by": "x"}),
        cut(json!({"task": ABOVE})),
        cut(json!({"workload": "dev:agent%3Aparent"})),
    ] {
        let log = log(&[parent.clone(), child.clone(), leaf(60, end.clone())]);
        assert_eq!(judged(&log, &action(65)), PROVEN, "{end}");
        let verdict = Judge::new(&log, 5, None).judge(&action(66));
        assert_eq!(verdict.class, Class::AfterEnd, "{end}");
        assert!(verdict.told.contains("was derived"), "{}", verdict.told);
    }
    let shorter = with(parent, "expires_at", json!(at(60)));
    assert_eq!(
        judged(&log(&[shorter, child.clone()]), &action(66)),
        (Class::AfterEnd, Reason::Expired)
    );
    // A child whose parent was never recorded cannot be judged.
    assert_eq!(
        judged(&log(&[child]), &action(10)),
        (Class::Unjudged, Reason::Pruned)
    );
}

#[test]
fn what_a_pruned_or_unknown_leaf_may_hide_is_not_judged() {
    let later = leaf(
        3_600,
        json!({"event": "admin", "change": "x", "subject": "x", "by": "x"}),
    );
    let new_kind = leaf(30, json!({"event": "abolished", "what": "everything"}));
    let other_version = with(later.clone(), "v", Leaf::VERSION + 1);
    for hidden in [None, Some(new_kind), Some(other_version)] {
        // Before the permit the unread leaf could be the requested permit, but not an end of this
        // one.
        let log = read(&file(&[
            hidden.clone(),
            Some(permit()),
            Some(later.clone()),
        ]))
        .unwrap();
        assert_eq!(judged(&log, &action(10)), PROVEN);
        let mut unknown = action(10);
        unknown.credential.session = session(OTHER);
        assert_eq!(judged(&log, &unknown), (Class::Unjudged, Reason::Pruned));
        // A hash shows with certainty whether its leaf is in the log.
        unknown.credential.session = None;
        unknown.credential.hash = Some(leaf_hash(b"mine"));
        assert_eq!(
            judged(&log, &unknown),
            (Class::Unproven, Reason::UnknownDecision)
        );
        let own = hidden
            .as_ref()
            .map_or_else(|| leaf_hash(&pruned(0)), hash_of);
        unknown.credential.hash = Some(own);
        assert_eq!(judged(&log, &unknown), (Class::Unjudged, Reason::Pruned));
        // After the permit the unread leaf could be its end. An action outside the grant is outside
        // in any case.
        let log = read(&file(&[Some(permit()), hidden, Some(later.clone())])).unwrap();
        assert_eq!(judged(&log, &action(10)), (Class::Unjudged, Reason::Pruned));
        let mut outside = action(10);
        outside.recorded_action = rights("orders:write", "https://orders.example/v1");
        assert_eq!(
            judged(&log, &outside),
            (Class::OutsideGrant, Reason::Action)
        );
    }
}

#[test]
fn a_log_of_an_earlier_format_is_refused_by_its_version() {
    let log = file(&[Some(permit()), Some(with(permit(), "v", 1))]);
    match read(&log) {
        Err(AuditError::Disproven(told)) => {
            assert!(told.starts_with("leaf 1: format version 1 "), "{told}");
        }
        other => panic!("{:?}", other.is_ok()),
    }
}

#[test]
fn what_is_later_than_the_log_is_judged_only_when_somebody_says_how_far_it_reaches() {
    let log = read(&file(&[Some(permit())])).unwrap();
    assert_eq!(judged(&log, &action(0)), PROVEN);
    // The allowance for clock differences does not extend the known end of the log.
    for (seconds, skew) in [(1, 5), (5, 5), (290, 300)] {
        let verdict = Judge::new(&log, skew, None).judge(&action(seconds));
        assert_eq!(
            (verdict.class, verdict.reason),
            (Class::Unjudged, Reason::AfterLog)
        );
    }
    let mut unknown = action(6);
    unknown.credential.session = session(OTHER);
    assert_eq!(judged(&log, &unknown), (Class::Unjudged, Reason::AfterLog));
    let mut judge = Judge::new(&log, 5, Some(at(200)));
    assert_eq!(judge.judge(&action(200)).class, Class::Proven);
    assert_eq!(judge.judge(&action(201)).reason, Reason::AfterLog);
    assert_eq!(judge.judge(&unknown).reason, Reason::UnknownSession);
    // An earlier --as-of does not shorten the log.
    let mut earlier = Judge::new(&log, 5, Some(noon().minus_seconds(50)));
    assert_eq!(earlier.judge(&action(0)).class, Class::Proven);
}

#[test]
fn what_has_no_time_or_no_clear_deed_is_not_judged() {
    let log = log(&[permit()]);
    let mut record = action(10);
    record.recorded_action = unclear(&[]);
    assert_eq!(judged(&log, &record), (Class::Unjudged, Reason::Unclear));
    record.at = Err("it has no time");
    assert_eq!(judged(&log, &record), (Class::Unjudged, Reason::NoTime));
    // An action that was never granted, or without a valid credential, is judged without a time.
    record.recorded_action = rights("orders:write", "https://orders.example/v1");
    assert_eq!(judged(&log, &record), (Class::OutsideGrant, Reason::Action));
    record.credential.foreign = true;
    assert_eq!(
        judged(&log, &record),
        (Class::Unproven, Reason::Contradiction)
    );
    record.credential = Credential {
        session: session(OTHER),
        ..Credential::default()
    };
    assert_eq!(judged(&log, &record), (Class::Unjudged, Reason::NoTime));
    // An action after the expiry is too late, even if it is unclear.
    let mut late = action(400);
    late.recorded_action = unclear(&[]);
    assert_eq!(judged(&log, &late), (Class::AfterEnd, Reason::Expired));
}

#[test]
fn a_log_that_does_not_hold_is_refused_whole() {
    let whole = file(&[Some(permit()), None, Some(permit())]);
    assert!(
        matches!(read(&whole), Err(AuditError::Disproven(why)) if why.contains("same session"))
    );
    let good = file(&[Some(permit()), None]);
    read(&good).unwrap();
    let lines: Vec<&[u8]> = good.split_inclusive(|byte| *byte == b'\n').collect();
    for bad in [
        lines[..2].concat(),
        [lines[0], lines[2], lines[1]].concat(),
        [lines[0], lines[1], lines[1]].concat(),
        [lines[0], lines[1], lines[2], lines[2]].concat(),
    ] {
        assert!(matches!(read(&bad), Err(AuditError::Disproven(_))));
    }
    for n in 0..good.len() {
        let mut flipped = good.clone();
        flipped[n] ^= 1;
        assert!(read(&flipped).is_err(), "byte {n}");
    }
    assert!(matches!(read(b"{}"), Err(AuditError::Input(_))));
    let strange = with(permit(), "origin", "other.test/log");
    assert!(matches!(
        read(&file(&[Some(strange)])),
        Err(AuditError::Disproven(_))
    ));
    let other = Decisions::read(&good[..], &[key(2).1], 1024, |_, _| {});
    assert!(matches!(other, Err(AuditError::Disproven(_))));
}

#[test]
fn a_log_that_needs_more_memory_than_is_allowed_says_so() {
    let leaves: Vec<Option<Value>> = (0..100)
        .map(|n| {
            let id = format!("0198b2a0-0000-7000-8000-{n:012}");
            Some(with(permit(), "session", id))
        })
        .collect();
    let file = file(&leaves);
    let read = |most: usize| Decisions::read(&file[..], &[key(1).1], most, |_, _| {});
    // Permits share their common data; each additional one takes 120 bytes.
    assert_eq!(read(16 * 1024).unwrap().permits(), 100);
    let Err(AuditError::Unavailable(why)) = read(8 * 1024) else {
        panic!("the log was read in spite of the limit");
    };
    assert!(why.contains("--index-mib"), "{why}");
}

#[test]
fn what_was_permitted_by_a_clock_that_was_ahead_ends_with_the_acceptance_of_the_time() {
    let accepted = |seconds: u64| {
        leaf(
            seconds,
            json!({
                "event": "time_accepted", "id": OTHER, "recorded_time": at(0), "accepted_time": at(seconds),
                "reason": "c".repeat(64), "by": "x"
            }),
        )
    };
    let after = |leaves: &[Value]| Judge::new(&log(leaves), 5, None).judge(&action(66)).class;
    // The accepted time is an hour before the permit's, or a minute after it.
    let early = with(accepted(0), "accepted_time", "2026-10-24T11:00:00Z");
    assert_eq!(after(&[permit(), early.clone()]), Class::AfterEnd);
    assert_eq!(judged(&log(&[permit(), accepted(60)]), &action(66)), PROVEN);
    // Permits after the accepted time have correct dates.
    assert_eq!(judged(&log(&[early, permit()]), &action(66)), PROVEN);
}
