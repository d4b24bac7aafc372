use std::time::Duration;

use super::registrar::{BATCH_ENTRIES, CALL_SECONDS, LAG_SECONDS, STEP_SECONDS};
use super::*;
use crate::domain::cutoff::Selector;
use crate::domain::decision::{Outcome, RefusalCode};
use crate::domain::generation_digest::GenerationDigest;
use crate::domain::session::EndReason;

const MS: Duration = Duration::from_millis(1);

#[test]
fn everything_is_rendered_under_its_name() {
    let metrics = Metrics::new();
    metrics.decision(Outcome::Permit);
    metrics.refusal(RefusalCode::TtlTooLong);
    metrics.evaluation(true);
    metrics.observed("freeze", Outcome::Permit, Outcome::Deny);
    let until = crate::clock::Timestamp::from_seconds(1_800_000_000);
    metrics.observing([("freeze", until)].into_iter());
    metrics.attestation_failure("ci", "expired");
    metrics.attestors(["ci"].into_iter(), &["expired", "replayed"]);
    metrics.unattested();
    metrics.foreign_token();
    metrics.mint("jwt", Ended::Ok);
    metrics.sessions_ended(EndReason::Revoked, 3);
    metrics.revocation(&Selector::Resource("orders".into()));
    metrics.revocation_lag(RevocationLag::RequestedToDurable, MS);
    metrics.sweep("task_expiry", Ended::from(&Err::<(), ()>(())), 2);
    metrics.export_delivered("siem", 7);
    metrics.export_failed("siem");
    metrics.export_lag("siem", 3, 65_000 * MS, true);
    metrics.witness_size("w.example/a", 40);
    metrics.witness_signed("w.example/a", 1_800_000_000);
    metrics.witness_failed("w.example/a", "refused");
    metrics.ledger_size(44);
    metrics.ledger_key_left(Some(6 * 86_400 + 1));
    metrics.ledger_batch(3, MS);
    metrics.ledger_queue_depth(9);
    metrics.stage(Stage::Commit, MS);
    metrics.http_request(Some("/v1/tasks/{id}"), "BREW", 404, MS);
    metrics.http_request(None, "GET", 404, MS);
    metrics.rate_limited(RateLimit::Address);
    metrics.generation_behind(true);
    metrics.other_endpoints(2);
    metrics.clock_skew(-0.25);
    metrics.task_panic("request");
    let text = metrics.render();
    for line in [
        "taskpass_decisions_total{outcome=\"permit\"} 1",
        "taskpass_decisions_total{outcome=\"indeterminate\"} 0",
        "taskpass_refusals_total{code=\"ttl-too-long\"} 1",
        "taskpass_evaluations_total{reused=\"yes\"} 1",
        "taskpass_evaluations_total{reused=\"no\"} 0",
        "taskpass_observed_total{policy=\"freeze\",outcome=\"permit\",outcome_if_enforced=\"deny\"} 1",
        "taskpass_observed_total{policy=\"freeze\",outcome=\"permit\",outcome_if_enforced=\"indeterminate\"} 0",
        "taskpass_observing_until_timestamp_seconds{policy=\"freeze\"} 1800000000",
        "taskpass_attestation_failures_total{attestor=\"ci\",reason=\"expired\"} 1",
        "taskpass_attestation_failures_total{attestor=\"ci\",reason=\"replayed\"} 0",
        "taskpass_unattested_total 1",
        "taskpass_foreign_tokens_total 1",
        "taskpass_mints_total{minter=\"jwt\",result=\"ok\"} 1",
        "taskpass_sessions_ended_total{reason=\"revoked\"} 3",
        "taskpass_revocations_total{selector=\"resource\"} 1",
        "taskpass_revocation_lag_seconds_count{part=\"requested_to_durable\"} 1",
        "taskpass_sweeps_total{worker=\"task_expiry\",result=\"failed\"} 1",
        "taskpass_swept_rows_total{worker=\"task_expiry\"} 2",
        "taskpass_export_delivered_total{sink=\"siem\"} 7",
        "taskpass_export_failures_total{sink=\"siem\"} 1",
        "taskpass_export_lag_entries{sink=\"siem\"} 3",
        "taskpass_export_lag_seconds{sink=\"siem\"} 65",
        "taskpass_export_disabled{sink=\"siem\"} 1",
        "taskpass_witness_size{witness=\"w.example/a\"} 40",
        "taskpass_witness_timestamp_seconds{witness=\"w.example/a\"} 1800000000",
        "taskpass_witness_failures_total{witness=\"w.example/a\",reason=\"refused\"} 1",
        "taskpass_ledger_size 44",
        "taskpass_ledger_key_days_left 6",
        "taskpass_ledger_batch_entries_bucket{le=\"4.0\"} 1",
        "taskpass_ledger_queue_depth 9",
        "taskpass_ledger_commit_seconds_count 1",
        "taskpass_stage_seconds_count{stage=\"commit\"} 1",
        "taskpass_stage_seconds_count{stage=\"release\"} 0",
        "taskpass_http_requests_total{route=\"/v1/tasks/{id}\",method=\"other\",status=\"404\"} 1",
        "taskpass_http_seconds_count{route=\"none\"} 1",
        "taskpass_rate_limited_total{by=\"address\"} 1",
        "taskpass_generation_behind 1",
        "taskpass_replicas_with_other_endpoints 2",
        "taskpass_clock_skew_seconds -0.25",
        "taskpass_task_panics_total{task=\"request\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    let build = format!(
        "taskpass_build_info{{version=\"{}\"}} 1",
        env!("CARGO_PKG_VERSION")
    );
    assert!(text.contains(&build), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn one_generation_is_active() {
    let metrics = Metrics::new();
    for byte in [1, 2] {
        metrics.generation_active(&GenerationDigest::new([byte; 32]));
    }
    let text = metrics.render();
    let active: Vec<_> = text
        .lines()
        .filter(|l| l.starts_with("taskpass_generation_active{"))
        .collect();
    let wanted = format!(
        "taskpass_generation_active{{generation=\"sha256:{}\"}} 1",
        "02".repeat(32)
    );
    assert_eq!(active, [wanted]);
}

#[test]
fn bounds_rise() {
    for bounds in [STEP_SECONDS, CALL_SECONDS, LAG_SECONDS, BATCH_ENTRIES] {
        assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
    }
    let most = f64::from(u32::try_from(crate::domain::limits::MAX_BATCH_ENTRIES).unwrap());
    assert_eq!(BATCH_ENTRIES.last(), Some(&most));
}
