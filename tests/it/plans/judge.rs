//! Whether a plan reads a large table or a whole index of it from end to end.
//!
//! A plan is a node in the JSON format of PostgreSQL's EXPLAIN.

use std::fmt::Write as _;

use serde_json::Value;

/// Tables whose number of rows grows with the use of the broker. The partitions of `leaf_body`
/// belong to them too.
const LARGE: [&str; 13] = [
    "task",
    "session",
    "one_time",
    "retry",
    "delegation",
    "cutoff",
    "ending",
    "deny_entry",
    "cosigned",
    "leaf",
    "leaf_opening",
    "tile",
    "ledger_head",
];

/// The properties of a plan node that a failure message names.
const SHOWN: [&str; 7] = [
    "Subplan Name",
    "Relation Name",
    "Index Name",
    "Index Cond",
    "Recheck Cond",
    "Filter",
    "Sort Key",
];

fn is_large(table: &str) -> bool {
    LARGE.contains(&table) || table.starts_with("leaf_body")
}

/// Whether the plan has a sequential scan of a large table, or a scan of a whole index of one that
/// no LIMIT ends.
pub(super) fn reads_all_of_a_large_table(plan: &Value) -> bool {
    reads_all(plan, false)
}

/// `is_limited`: whether a node above ends the reading of this node early.
fn reads_all(node: &Value, is_limited: bool) -> bool {
    let kind = text(node, "Node Type");
    let is_large = is_large(text(node, "Relation Name"));
    let is_whole = node["Index Cond"].is_null();
    let is_at_fault = match kind {
        "Seq Scan" => is_large,
        "Index Scan" | "Index Only Scan" => is_large && is_whole && !is_limited,
        // The table is told by the node above. Reads of a whole index matter on large tables only.
        "Bitmap Index Scan" => is_whole,
        _ => false,
    };
    let is_limited = match kind {
        "Limit" => true,
        // These read all rows of their input before they return the first.
        "Sort" | "Aggregate" | "Hash" | "WindowAgg" | "SetOp" => false,
        _ => is_limited,
    };
    let children = node["Plans"].as_array().into_iter().flatten();
    let mut at_fault = children.map(|child| {
        // These are run to their end, or once for each row of another node.
        let is_apart = matches!(
            text(child, "Parent Relationship"),
            "InitPlan" | "SubPlan" | "Inner"
        );
        reads_all(child, is_limited && !is_apart)
    });
    is_at_fault || at_fault.any(|is_at_fault| is_at_fault)
}

fn text<'a>(node: &'a Value, field: &str) -> &'a str {
    node[field].as_str().unwrap_or_default()
}

/// The plan for a reader, one node a line.
pub(super) fn shown(plan: &Value) -> String {
    let mut lines = String::new();
    show(plan, 1, &mut lines);
    lines
}

fn show(node: &Value, depth: usize, lines: &mut String) {
    let indent = "  ".repeat(depth);
    let kind = text(node, "Node Type");
    write!(lines, "{indent}{kind}, {} rows", node["Plan Rows"]).unwrap();
    for field in SHOWN {
        if !node[field].is_null() {
            write!(lines, "; {field}: {}", node[field]).unwrap();
        }
    }
    lines.push('\n');
    for child in node["Plans"].as_array().into_iter().flatten() {
        show(child, depth + 1, lines);
    }
}

#[test]
fn only_a_limit_right_above_an_index_ends_its_reading() {
    let scan = |kind: &str, under: &str| {
        let scan = serde_json::json!({"Node Type": kind, "Relation Name": "task"});
        serde_json::json!({"Node Type": "Limit", "Plans": [{"Node Type": under, "Plans": [scan]}]})
    };
    assert!(reads_all_of_a_large_table(&scan("Seq Scan", "LockRows")));
    assert!(!reads_all_of_a_large_table(&scan("Index Scan", "LockRows")));
    assert!(reads_all_of_a_large_table(&scan("Index Scan", "Sort")));
    let mut found = scan("Index Scan", "Sort");
    found["Plans"][0]["Plans"][0]["Index Cond"] = "(id = $1)".into();
    assert!(!reads_all_of_a_large_table(&found));
}
