//! Paces, spreads over rounds, and reports as tables and JSON.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use serde_json::{Value, json};

use crate::options::Name;

/// Throughput and latencies of one load.
#[derive(Clone, Copy, Default)]
pub struct Pace {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Pace {
    /// Computes the pace from all latencies, in microseconds, and the duration of the load.
    pub fn of(mut latencies_us: Vec<f64>, took: Duration) -> Self {
        assert!(
            !latencies_us.is_empty(),
            "there is no latency to compute a pace from"
        );
        latencies_us.sort_unstable_by(f64::total_cmp);
        Self {
            per_second: latencies_us.len() as f64 / took.as_secs_f64(),
            p50_ms: quantile(&latencies_us, 0.5) / 1e3,
            p99_ms: quantile(&latencies_us, 0.99) / 1e3,
        }
    }
}

/// The value below which the part `part` of the sorted values lies.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part) as usize;
    sorted[at.min(sorted.len() - 1)]
}

/// The median and the range of one figure over all rounds.
#[derive(Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        assert!(
            !values.is_empty(),
            "there is no value to compute a spread of"
        );
        values.sort_unstable_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Self {
            median,
            min: values[0],
            max: values[values.len() - 1],
        }
    }

    pub fn to_json(self) -> Value {
        json!({"median": self.median, "min": self.min, "max": self.max})
    }

    /// `median (min–max)` with so many decimals.
    pub fn text(self, decimals: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$})")
    }
}

/// The spreads of rate and latencies over all rounds.
#[derive(Clone, Copy)]
pub struct PaceSpread {
    pub per_second: Spread,
    pub p50_ms: Spread,
    pub p99_ms: Spread,
}

impl PaceSpread {
    pub fn of(paces: &[Pace]) -> Self {
        let part = |part: fn(&Pace) -> f64| Spread::of(paces.iter().map(part));
        Self {
            per_second: part(|pace| pace.per_second),
            p50_ms: part(|pace| pace.p50_ms),
            p99_ms: part(|pace| pace.p99_ms),
        }
    }

    pub fn to_json(self) -> Value {
        json!({
            "per_second": self.per_second.to_json(),
            "p50_ms": self.p50_ms.to_json(),
            "p99_ms": self.p99_ms.to_json(),
        })
    }

    pub fn cells(self) -> [String; 3] {
        [
            self.per_second.text(0),
            self.p50_ms.text(2),
            self.p99_ms.text(2),
        ]
    }
}

/// A ratio of two figures that were taken in the same rounds.
#[derive(Clone, Copy)]
pub struct Ratio {
    /// The ratio of the two medians.
    pub of_medians: f64,
    /// The ratios within each round.
    pub by_round: Spread,
}

impl Ratio {
    pub fn of(above: &[f64], below: &[f64]) -> Self {
        let median = |values: &[f64]| Spread::of(values.iter().copied()).median;
        Self {
            of_medians: median(above) / median(below),
            by_round: Spread::of(above.iter().zip(below).map(|(above, below)| above / below)),
        }
    }

    pub fn to_json(self) -> Value {
        json!({"of_medians": self.of_medians, "by_round": self.by_round.to_json()})
    }

    /// The ratio of the medians, and the range of the ratios within each round.
    pub fn text(self) -> String {
        let Spread { min, max, .. } = self.by_round;
        format!("{:.2} ({min:.2}–{max:.2})", self.of_medians)
    }
}

/// A table in Markdown.
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self {
            head: head.iter().map(|&cell| cell.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.head.len(), "cells of a row");
        self.rows.push(cells);
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} |", self.head.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(self.head.len()))?;
        for row in &self.rows {
            writeln!(f, "| {} |", row.join(" | "))?;
        }
        Ok(())
    }
}

/// The result of one measurement.
pub struct Report {
    pub name: Name,
    /// The setting, in one sentence.
    pub about: String,
    pub tables: Vec<Table>,
    pub figures: Value,
    /// Requests that were not answered as expected.
    pub failed: usize,
}

impl Report {
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name.as_str(), "about": self.about,
            "figures": self.figures, "failed": self.failed,
        })
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}: {}", self.name.as_str(), self.about)?;
        for table in &self.tables {
            writeln!(f, "\n{table}")?;
        }
        if self.failed > 0 {
            writeln!(f, "{} requests failed", self.failed)?;
        }
        Ok(())
    }
}
