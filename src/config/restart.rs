//! The settings that a running broker does not reload.
//!
//! [`Config::settings_for_next_start`] compares the running configuration with a newer one, setting
//! by setting. `RELOADED` and `RELOADED_OF_SINK` name the exceptions; every other setting takes
//! effect at the next start, so a new one is reported without a change here. It returns keys and no
//! values, because values may be private.
//!
//! The comparison cannot fail. A section that holds a path that is not UTF-8 is not compared.
//! `app::reload` logs a warning for each key and reloads the rest.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{Config, StoreKind};

/// Settings that a reload applies.
const RELOADED: [&str; 2] = ["log.level", "keys.rs256_private_key_file"];

/// The setting of each sink of `[[export]]` that a reload applies.
const RELOADED_OF_SINK: &str = "secret_file";

/// Settings of `[limits]` that are part of a generation.
const LIMITS_OF_GENERATION: [&str; 3] = [
    "denials_per_identity",
    "denials_per_attestor",
    "denial_window_seconds",
];

impl Config {
    /// The keys of the settings that `newer` changes and that take effect at the next start. A sink
    /// is identified by its name instead of its position. On PostgreSQL the settings of a
    /// generation are excluded: they take effect when a generation is activated.
    #[must_use]
    pub fn settings_for_next_start(&self, newer: &Self) -> BTreeSet<String> {
        let with_generation = self.store.kind == StoreKind::Sqlite;
        let mut found = BTreeSet::new();
        add_differences(
            "",
            &self.settings(with_generation),
            &newer.settings(with_generation),
            &mut found,
        );
        for name in self.changed_endpoints(newer) {
            found.insert(format!("endpoints.{name}"));
        }
        if self.endpoints.own_credentials() != newer.endpoints.own_credentials() {
            found.insert("aws.own_credentials".to_owned());
        }
        found
    }

    /// The settings as written, except for endpoints and settings that a reload applies. A section
    /// with a path that is not UTF-8 is omitted.
    fn settings(&self, with_generation: bool) -> Value {
        let sections = [
            ("server", serde_json::to_value(&self.server)),
            ("store", serde_json::to_value(&self.store)),
            ("ledger", serde_json::to_value(&self.ledger)),
            ("keys", serde_json::to_value(&self.keys)),
            ("admin", serde_json::to_value(&self.admin)),
            ("limits", serde_json::to_value(&self.limits)),
            ("log", serde_json::to_value(&self.log)),
            ("metrics", serde_json::to_value(&self.metrics)),
        ];
        let of_generation = [
            ("attestors", serde_json::to_value(&self.attestors)),
            ("resources", serde_json::to_value(&self.resources)),
            ("task_types", serde_json::to_value(&self.task_types)),
            ("policy", serde_json::to_value(&self.policy)),
            ("retention", serde_json::to_value(self.retention)),
        ];
        let of_generation = of_generation.into_iter().filter(|_| with_generation);
        let sections = sections.into_iter().chain(of_generation);
        let mut settings: Map<String, Value> = sections
            .map(|(name, section)| (name.to_owned(), section.unwrap_or_default()))
            .collect();
        if let Some(Value::Object(limits)) = settings.get_mut("limits")
            && !with_generation
        {
            for name in LIMITS_OF_GENERATION {
                limits.remove(name);
            }
        }
        let sinks = self.export.iter().map(|export| {
            let mut sink = serde_json::to_value(export).unwrap_or_default();
            if let Value::Object(sink) = &mut sink {
                sink.remove(RELOADED_OF_SINK);
            }
            (export.name.clone(), sink)
        });
        let sinks = Value::Object(sinks.collect());
        settings.insert("export".to_owned(), sinks);
        Value::Object(settings)
    }

    fn changed_endpoints(&self, newer: &Self) -> BTreeSet<String> {
        let own: BTreeMap<_, _> = self.endpoints.iter().collect();
        let newer: BTreeMap<_, _> = newer.endpoints.iter().collect();
        let names = own.keys().chain(newer.keys());
        let changed = names.filter(|name| own.get(*name) != newer.get(*name));
        changed.map(ToString::to_string).collect()
    }
}

/// Adds the keys at which two documents differ. Lists are compared as a whole.
fn add_differences(key: &str, one: &Value, other: &Value, found: &mut BTreeSet<String>) {
    if let (Value::Object(one), Value::Object(other)) = (one, other) {
        let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
        for name in names {
            let key = if key.is_empty() {
                name.clone()
            } else {
                format!("{key}.{name}")
            };
            let of = |document: &Map<String, Value>| document.get(name).cloned();
            let (one, other) = (of(one), of(other));
            add_differences(
                &key,
                &one.unwrap_or_default(),
                &other.unwrap_or_default(),
                found,
            );
        }
    } else if one != other && !RELOADED.contains(&key) {
        found.insert(key.to_owned());
    }
}
