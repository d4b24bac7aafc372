//! Checks the parts of the file that become a generation: attestors, resources, task types, limits
//! and retention.
//!
//! The rule: one token yields one identity, and no token of the broker is an attestation. The
//! domain's own types check the rest ([`Catalog`]); this file gives their errors a line.
//!
//! A fault is added to the [`Checker`]. `super` calls this file.

use std::collections::BTreeSet;

use super::super::document::catalog_complaint;
use super::super::sections;
use super::Checker;
use crate::domain::catalog::{Catalog, CatalogError, Resource, TaskType};
use crate::domain::trust::AttestorSpec;

pub(in crate::config) fn own_audiences(issuer: &str, attestors: &[AttestorSpec]) -> Vec<String> {
    let audiences = attestors
        .iter()
        .filter_map(|spec| spec.audience().map(str::to_owned));
    let all: BTreeSet<_> = audiences.chain([issuer.to_owned()]).collect();
    all.into_iter().collect()
}

impl Checker<'_> {
    pub(super) fn attestors(&mut self, file: &sections::File) {
        if file.attestors.is_empty() {
            let remedy = "add an [[attestors]] that names an issuer you trust";
            self.refuse(
                "attestors",
                "is empty: no evidence could be accepted",
                remedy,
            );
        }
        let mut names = BTreeSet::new();
        let mut pairs = BTreeSet::new();
        for (index, spec) in file.attestors.iter().enumerate() {
            let key = |part: &str| format!("attestors.{index}.{part}");
            let name = spec.name();
            self.name(&key("name"), name, names.insert(name), "attestor");
            let oidc = match spec {
                AttestorSpec::Oidc(oidc) => oidc,
                AttestorSpec::Key(spec) => {
                    for (at, registered) in spec.keys.iter().enumerate() {
                        let private = ["d", "k"].iter().any(|m| registered.jwk.get(m).is_some());
                        if private {
                            self.refuse(
                                &key(&format!("keys.{at}.jwk")),
                                "holds a private or symmetric key",
                                "give the public key of a new pair: treat this one as compromised",
                            );
                        }
                    }
                    continue;
                }
                AttestorSpec::Spiffe(_) => continue,
            };
            if !pairs.insert((oidc.issuer.trim_end_matches('/'), &oidc.audience)) {
                self.refuse(
                    &key("audience"),
                    "is shared with another attestor of the same issuer: one token would yield two \
                     identities",
                    "merge the two attestors, or give each its own audience",
                );
            }
            if oidc.issuer.trim_end_matches('/') == file.server.issuer.trim_end_matches('/') {
                self.refuse(
                    &key("issuer"),
                    "is the broker's own issuer: its tokens would be accepted as attestations",
                    "give the issuer of your workloads",
                );
            }
            if oidc.audience.is_empty() {
                self.refuse(
                    &key("audience"),
                    "is empty",
                    "give a value that identifies this broker only",
                );
            }
        }
    }

    pub(super) fn catalog(&mut self, file: &sections::File) {
        let own = own_audiences(&file.server.issuer, &file.attestors);
        let result = Catalog::new(file.resources.clone(), file.task_types.clone(), &own);
        let Err(error) = result else { return };
        let (what, name) = match &error {
            CatalogError::Name { what, name }
            | CatalogError::Duplicate { what, name }
            | CatalogError::Invalid { what, name, .. } => (*what, name),
        };
        let (list, index) = if what == "resource" {
            let named = |r: &Resource| r.name == *name;
            ("resources", file.resources.iter().rposition(named))
        } else {
            let named = |t: &TaskType| t.name == *name;
            ("task_types", file.task_types.iter().rposition(named))
        };
        let key = format!("{list}.{}", index.unwrap_or_default());
        let (problem, remedy) = catalog_complaint(&error);
        self.refuse(&key, problem, remedy);
    }

    pub(super) fn limits(&mut self, file: &sections::File) {
        let limits = &file.limits;
        let retention = &file.retention;
        let ranges = [
            (
                "limits.denials_per_identity",
                limits.denials_per_identity,
                1_000_000,
            ),
            (
                "limits.denials_per_attestor",
                limits.denials_per_attestor,
                1_000_000,
            ),
            (
                "limits.address_requests_per_second",
                limits.address_requests_per_second,
                1_000_000,
            ),
            ("limits.address_burst", limits.address_burst, 1_000_000),
            (
                "limits.identity_requests_per_second",
                limits.identity_requests_per_second,
                1_000_000,
            ),
            ("limits.identity_burst", limits.identity_burst, 1_000_000),
            ("retention.bodies_days", retention.bodies_days, 36_500),
            ("retention.openings_days", retention.openings_days, 36_500),
            ("retention.sessions_days", retention.sessions_days, 36_500),
        ];
        for (key, value, max) in ranges {
            self.range(key, u64::from(value), 1, max);
        }
        let window = limits.denial_window_seconds;
        self.range("limits.denial_window_seconds", window, 1, 3_600);
        if limits.denials_per_identity > limits.denials_per_attestor {
            self.refuse(
                "limits.denials_per_identity",
                "is more than denials_per_attestor: one identity could use up the attestor's limit",
                format!("give at most {}", limits.denials_per_attestor),
            );
        }
        if retention.openings_days > retention.bodies_days {
            self.refuse(
                "retention.openings_days",
                "is more than bodies_days: the bodies would be deleted before their openings",
                format!("give at most {}", retention.bodies_days),
            );
        }
    }
}
