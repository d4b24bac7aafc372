//! OCSF 1.5.0.
//!
//! | entry | class | activity |
//! |---|---|---|
//! | decision | 3003 Authorize Session, profile `security_control` | 1 Assign Privileges |
//! | denials without an entry of their own | the same, with `count` | 1 |
//! | session ended; a back end's answer about that | 3002 Authentication | 2 Logoff |
//! | task opened, delegated; one or several ended | 3004 Entity Management | 1 Create, 3 Update, 11 Deactivate |
//! | cutoff, lifted | 3004 | 1 Create, 11 Deactivate |
//! | generation of policies activated | 3004 | 10 Activate |
//! | signing key added, revoked; given an end (`retired`) | 3004 | 1 Create, 9 Disable; 99 Other |
//! | role given, removed | 3005 User Access Management | 1 Assign Privileges, 2 Revoke Privileges |
//! | workload key added, removed; keys resealed | 3004 | 6 Enroll, 7 Unenroll; 3 Update |
//! | a time accepted | 3004 | 3 Update |
//! | the log begins | 3004 | 1 Create |
//! | one that this build cannot read; one whose bytes were pruned | 0 Base Event | 99 Other |
//!
//! `event` writes the common attributes, and `class` those of the class. OCSF has no class for a
//! decision that precedes its effect. The proof is the leaf: `raw_data` has it byte for byte, and
//! `unmapped.leaf_hash` is its hash in the log. No event is left out, and nothing here fails: a
//! missing time is 0, and a missing identity is `unknown`. Only `super::event` calls this module.

use serde_json::{Map, Value, json};

use super::reading::Reading;
use crate::clock::Timestamp;
use crate::domain::decision::Outcome;
use crate::domain::grant::Grant;
use crate::domain::leaf::{DecisionLeaf, Event};
use crate::domain::session::EndReason;
use crate::domain::task::TaskEnd;
use crate::ids::{SessionId, TaskId};

/// The version of the OCSF schema.
pub(super) const VERSION: &str = "1.5.0";

/// The media type of one event.
pub(super) const CONTENT_TYPE: &str = "application/json";

const INFORMATIONAL: u8 = 1;
const LOW: u8 = 2;
const MEDIUM: u8 = 3;
const HIGH: u8 = 4;

const UNKNOWN: u8 = 0;
const SUCCESS: u8 = 1;
const FAILURE: u8 = 2;

/// The class of an event and the attributes of that class.
struct Class {
    uid: u32,
    activity: u32,
    severity: u8,
    status: u8,
    /// The attributes beyond those that all events have.
    attributes: Value,
}

impl Class {
    fn new(uid: u32, activity: u32, severity: u8, attributes: Value) -> Self {
        Self {
            uid,
            activity,
            severity,
            status: SUCCESS,
            attributes,
        }
    }

    fn entity(activity: u32, severity: u8, kind: &str, uid: &str, attributes: Value) -> Self {
        let mut all = json!({"entity": {"type": kind, "uid": uid}});
        merge(&mut all, attributes);
        Self::new(3004, activity, severity, all)
    }
}

pub(super) fn event(reading: &Reading<'_>) -> Value {
    let recorded = &reading.recorded;
    let class = class(reading);
    let mut event = json!({
        "class_uid": class.uid,
        "category_uid": class.uid / 1_000,
        "activity_id": class.activity,
        "type_uid": class.uid * 100 + class.activity,
        "severity_id": class.severity,
        "status_id": class.status,
        "time": recorded.at.map_or(0, millis),
        "message": reading.name,
        "metadata": {
            "version": VERSION,
            "uid": reading.id,
            "sequence": recorded.index,
            "event_code": reading.name,
            "log_name": recorded.origin,
            "log_provider": recorded.issuer,
            "product": {
                "name": "Taskpass",
                "vendor_name": "Taskpass",
                "version": env!("CARGO_PKG_VERSION"),
            },
        },
        "unmapped": {
            "index": recorded.index,
            "leaf_hash": recorded.hash.to_string(),
        },
    });
    merge(&mut event, class.attributes);
    if let Some(text) = reading.text {
        merge(&mut event, json!({"raw_data": text}));
    }
    if recorded.body.is_none() {
        merge(&mut event, json!({"unmapped": {"pruned": true}}));
    }
    if let Some(text) = recorded.free_text {
        merge(&mut event, json!({"unmapped": {"free_text": text}}));
        if class.uid == 3004 {
            merge(&mut event, json!({"comment": text}));
        }
    }
    event
}

fn class(reading: &Reading<'_>) -> Class {
    let by = actor;
    let issuer = reading.recorded.issuer;
    let Some(leaf) = &reading.leaf else {
        return other();
    };
    match &leaf.event {
        Event::Decision(decision) => authorize(decision, leaf.at, issuer),
        Event::DenialsOmitted {
            subject,
            count,
            since,
        } => omitted(subject, *count, *since, leaf.at),
        Event::SessionEnded {
            session,
            reason,
            by,
        } => session_ended(session, *reason, by, reading),
        Event::EndConfirmed { session, confirmed } => end_confirmed(session, *confirmed, reading),
        Event::TaskOpened(task) => {
            let mut all = by(task.workload.as_str());
            merge(&mut all, json!({"entity": {"name": task.task_type}}));
            Class::entity(1, INFORMATIONAL, "Task", &task.task.to_string(), all)
        }
        Event::Delegated { task, child, .. } => {
            let all = json!({"entity_result": {"type": "Workload", "uid": child}});
            Class::entity(3, INFORMATIONAL, "Task", &task.to_string(), all)
        }
        Event::TaskEnded { task, end, by: who } => {
            tasks_ended(std::slice::from_ref(task), *end, who)
        }
        Event::TasksEnded {
            tasks,
            end,
            by: who,
        } => tasks_ended(tasks, *end, who),
        Event::Cutoff {
            id,
            selector,
            by: who,
            ..
        } => {
            let mut all = by(who);
            let name = format!("{}:{}", selector.kind(), selector.value());
            merge(&mut all, json!({"entity": {"name": name}}));
            Class::entity(1, HIGH, "Cutoff", &id.to_string(), all)
        }
        Event::CutoffLifted { id, by: who } => {
            Class::entity(11, MEDIUM, "Cutoff", &id.to_string(), by(who))
        }
        Event::TimeAccepted {
            id,
            recorded_time,
            accepted_time,
            by: who,
            ..
        } => {
            let mut all = by(who);
            let change = format!("{recorded_time} to {accepted_time}");
            merge(
                &mut all,
                json!({"entity": {"name": "clock"}, "status_detail": change}),
            );
            Class::entity(3, HIGH, "Clock", &id.to_string(), all)
        }
        Event::Activated {
            generation,
            by: who,
            ..
        } => Class::entity(10, MEDIUM, "Policy", &generation.to_string(), by(who)),
        Event::Key {
            purpose,
            kid,
            change,
            by: who,
            ..
        } => key(purpose, kid, change, by(who)),
        Event::Admin {
            change,
            subject,
            value,
            by: who,
        } => admin(change, subject, value.as_deref(), by(who)),
        Event::Genesis {
            vkey, predecessor, ..
        } => genesis(vkey, predecessor.is_some(), &leaf.origin),
    }
}

fn omitted(of: &str, count: u64, since: Timestamp, at: Timestamp) -> Class {
    Class {
        status: FAILURE,
        ..Class::new(
            3003,
            1,
            MEDIUM,
            json!({
                "count": count,
                "start_time": millis(since),
                "end_time": millis(at),
                "user": user(of),
                "privileges": [],
                "metadata": {"profiles": ["security_control"]},
                "action_id": 2,
                "disposition_id": 2,
            }),
        )
    }
}

/// The end of one task, or of several, whose ids are then joined by commas.
fn tasks_ended(tasks: &[TaskId], end: TaskEnd, by: &str) -> Class {
    let mut all = actor(by);
    let word = match end {
        TaskEnd::Complete => "completed",
        TaskEnd::Abort => "aborted",
        TaskEnd::Expire => "expired",
    };
    merge(&mut all, json!({"status_detail": word}));
    let ids: Vec<String> = tasks.iter().map(ToString::to_string).collect();
    Class::entity(11, INFORMATIONAL, "Task", &ids.join(","), all)
}

fn session_ended(session: &SessionId, reason: EndReason, by: &str, reading: &Reading<'_>) -> Class {
    let mut all = logoff(&session.to_string(), by, reading);
    merge(&mut all, json!({"status_detail": reason.as_str()}));
    merge(
        &mut all,
        json!({"session": {"expiration_reason": reason.as_str()}}),
    );
    Class::new(3002, 2, LOW, all)
}

fn end_confirmed(session: &SessionId, confirmed: bool, reading: &Reading<'_>) -> Class {
    let mut all = logoff(&session.to_string(), "back-end", reading);
    let (status, word, severity) = if confirmed {
        (SUCCESS, "confirmed", INFORMATIONAL)
    } else {
        (FAILURE, "unconfirmed", MEDIUM)
    };
    merge(&mut all, json!({"status_detail": word}));
    Class {
        status,
        ..Class::new(3002, 2, severity, all)
    }
}

fn key(purpose: &str, kid: &str, change: &str, mut all: Value) -> Class {
    merge(&mut all, json!({"entity": {"name": purpose}}));
    let (activity, severity) = match change {
        "added" => (1, LOW),
        "revoked" => (9, HIGH),
        "removed" => (4, LOW),
        _ => (99, MEDIUM),
    };
    Class::entity(activity, severity, "Signing key", kid, all)
}

/// The first leaf of a log. A log that succeeds another reports a loss or a theft.
fn genesis(vkey: &str, succeeds: bool, origin: &str) -> Class {
    let severity = if succeeds { HIGH } else { INFORMATIONAL };
    Class::entity(
        1,
        severity,
        "Log",
        origin,
        json!({"entity": {"name": vkey}}),
    )
}

/// The class of events that have no other.
fn other() -> Class {
    Class::new(0, 99, INFORMATIONAL, json!({}))
}

fn authorize(decision: &DecisionLeaf, at: Timestamp, issuer: &str) -> Class {
    let permitted = decision.outcome == Outcome::Permit;
    let atoms = decision.grant.iter().flat_map(Grant::atoms);
    let privileges: Vec<String> = atoms
        .map(|(action, location, region)| {
            let right = format!("{} on {}", action.as_str(), location.as_str());
            region.map_or(right.clone(), |region| format!("{right} in {region}"))
        })
        .collect();
    // Action 1 is Allowed and 2 Denied; disposition 1 is Allowed and 2 Blocked; 0 is Unknown.
    let (action, word): (u8, _) = match decision.outcome {
        Outcome::Permit => (1, "Allowed"),
        Outcome::Deny | Outcome::Indeterminate => (2, "Denied"),
        Outcome::Pending => (0, "Unknown"),
    };
    let rules: Vec<Value> = decision
        .policies
        .iter()
        .map(|policy| json!({"decision": word, "policy": {"name": policy}}))
        .collect();
    let mut all = json!({
        "metadata": {"profiles": ["security_control"], "correlation_uid": decision.decision},
        "action_id": action,
        "disposition_id": action,
        "user": user(decision.workload.as_str()),
        "actor": {"user": user(decision.workload.as_str())},
        "authorizations": rules,
        "privileges": privileges,
        "policy": {"uid": decision.generation.to_string(), "is_applied": true},
        "status_detail": decision.outcome.as_str(),
    });
    if let (Some(session), Some(expires_at)) = (decision.session, decision.expires_at) {
        let told = json!({
            "uid": session,
            "created_time": millis(at),
            "expiration_time": millis(expires_at),
            "issuer": issuer,
        });
        merge(&mut all, json!({"session": told}));
    }
    if let Some(parent) = decision.parent_session {
        merge(&mut all, json!({"unmapped": {"parent_session": parent}}));
    }
    if let Some(resource) = &decision.resource {
        let to = json!({"name": resource});
        merge(&mut all, json!({"dst_endpoint": to}));
    }
    if let Some(code) = decision.refusal {
        merge(
            &mut all,
            json!({"status_detail": code.as_str(), "status_code": decision.outcome.as_str()}),
        );
    }
    if let Some(task) = decision.task {
        merge(&mut all, json!({"unmapped": {"task": task}}));
    }
    Class {
        status: [UNKNOWN, SUCCESS, FAILURE][usize::from(action)],
        ..Class::new(3003, 1, if permitted { INFORMATIONAL } else { LOW }, all)
    }
}

fn admin(change: &str, subject: &str, value: Option<&str>, actor: Value) -> Class {
    let mut all = actor;
    let role = |activity| {
        let told =
            json!({"user": {"uid": subject}, "privileges": value.iter().collect::<Vec<_>>()});
        (activity, told)
    };
    let (activity, told) = match change {
        "admin_bound" => role(1),
        "admin_unbound" => role(2),
        other => {
            let activity = match other {
                "workload_key_added" => 6,
                "workload_key_removed" => 7,
                _ => 3,
            };
            merge(
                &mut all,
                json!({"entity": {"name": value.unwrap_or(change)}}),
            );
            return Class::entity(activity, MEDIUM, "Registration", subject, all);
        }
    };
    merge(&mut all, told);
    Class::new(3005, activity, HIGH, all)
}

fn logoff(session: &str, by: &str, reading: &Reading<'_>) -> Value {
    let issuer = reading.recorded.issuer;
    json!({
        "session": {"uid": session, "issuer": issuer},
        // The leaf does not name the session's owner. If the row does not either, the event of the
        // permit does.
        "user": user(reading.recorded.subject.unwrap_or("unknown")),
        "actor": {"user": {"uid": by}},
        "service": {"name": issuer},
    })
}

fn actor(by: &str) -> Value {
    json!({"actor": {"user": {"uid": by}}})
}

fn user(identity: &str) -> Value {
    json!({"uid": identity, "type_id": 99, "type": "Workload"})
}

fn millis(at: Timestamp) -> i64 {
    at.micros().div_euclid(1_000)
}

/// Merges one object into another; objects in both are merged recursively.
fn merge(into: &mut Value, from: Value) {
    let (Value::Object(into), Value::Object(from)) = (into, from) else {
        return;
    };
    merge_maps(into, from);
}

fn merge_maps(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge_maps(old, new),
            (_, value) => {
                into.insert(name, value);
            }
        }
    }
}
