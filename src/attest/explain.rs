//! Explains a token condition by condition.
//!
//! An attestor lists its conditions once ([`Conditions`]). To accept a token, all must hold, and
//! the first that fails is the reason for the refusal. To explain a token to the operator offline,
//! all of them are shown ([`Attestors::explain`] returns an [`Explanation`]).
//!
//! An explanation accepts nothing: it makes no request, consumes no evidence, and returns no
//! workload. A condition that cannot be checked offline is [`ConditionResult::NotChecked`] with the reason,
//! so an explanation without a failure does not prove that the broker would accept the token. A
//! token that no attestor recognises has one failed condition. The command `attest` calls this
//! file. It shows the required values, so its output is for the operator alone.

use std::borrow::Cow;

use super::condition_result::ConditionResult;
use super::{AttestError, Attestor, Attestors, Confirmation, Evidence, Presented, jwks};
use crate::clock::Timestamp;
use crate::crypto::jwk::VerificationKey;
use crate::crypto::jwt::UnverifiedJwt;
use crate::domain::workload::KeyBinding;

/// A condition and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct Condition {
    /// The claim or header parameter that it is about, or `signature`, `identity` or `use`.
    pub name: Cow<'static, str>,
    pub outcome: ConditionResult,
    /// The value that the configuration requires, for its operator; `None` if it requires no
    /// particular one.
    pub expected: Option<String>,
}

/// Conditions in the order of evaluation.
#[derive(Debug, Default)]
pub(super) struct Conditions(Vec<Condition>);

impl Conditions {
    /// Adds the result of a check. Several checks of one claim share one line: the first that
    /// fails.
    pub(super) fn check(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        result: Result<(), AttestError>,
    ) {
        let name = name.into();
        let outcome = result.map_or_else(ConditionResult::Fails, |()| ConditionResult::Holds);
        let known = self.0.iter_mut().find(|known| known.name == name);
        match known {
            Some(known) if known.outcome == ConditionResult::Holds => known.outcome = outcome,
            Some(_) => {}
            None => self.0.push(Condition {
                name,
                outcome,
                expected: None,
            }),
        }
    }

    /// The first failure, as the reason for the refusal.
    pub(super) fn hold(self) -> Result<(), AttestError> {
        let failed = self
            .0
            .into_iter()
            .find_map(|condition| match condition.outcome {
                ConditionResult::Fails(error) => Some(error),
                ConditionResult::Holds | ConditionResult::NotChecked(_) => None,
            });
        failed.map_or(Ok(()), Err)
    }
}

/// A token compared with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The attestor for the token; `None` if there is none or more than one.
    pub attestor: Option<String>,
    /// The conditions in the order in which the broker evaluates them.
    pub conditions: Vec<Condition>,
}

impl Explanation {
    /// Whether a condition fails.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.failures() > 0
    }

    fn failures(&self) -> usize {
        let fails = |condition: &&Condition| matches!(condition.outcome, ConditionResult::Fails(_));
        self.conditions.iter().filter(fails).count()
    }

    fn of_nobody(name: &'static str, error: AttestError, expected: Option<String>) -> Self {
        Self {
            attestor: None,
            conditions: vec![Condition {
                name: name.into(),
                outcome: ConditionResult::Fails(error),
                expected,
            }],
        }
    }
}

impl Attestors {
    /// Compares a token with the configuration, without a network and without consuming the token.
    /// `keys` are the keys of its issuer if known, and `proved` the keys that its caller proves.
    #[must_use]
    pub fn explain(
        &self,
        evidence: &Evidence,
        keys: Option<&[u8]>,
        proved: &[KeyBinding],
        now: Timestamp,
    ) -> Explanation {
        let presented = Presented::new(evidence);
        let token = match presented.token() {
            Ok(token) => token,
            Err(error) => return Explanation::of_nobody("token", error, None),
        };
        let all = || self.all.iter().map(AsRef::as_ref);
        let recognising: Vec<_> = all().filter(|a| a.recognises(&presented)).collect();
        let candidates = match recognising.as_slice() {
            [_] => recognising,
            // With none or several attestors, explain by the nearest one.
            _ => all().filter(|a| a.issued(&presented)).collect(),
        };
        let explained = candidates
            .into_iter()
            .map(|attestor| hold_against(attestor, token, keys, proved, now));
        explained
            .min_by_key(Explanation::failures)
            .unwrap_or_else(|| {
                let error = self.refusal(&presented);
                let issuers: Vec<&str> = self.issuers.iter().map(String::as_str).collect();
                let expected = Some(format!("one of {}", issuers.join(", ")));
                Explanation::of_nobody("iss", error, expected)
            })
    }
}

/// Every condition of one attestor.
fn hold_against(
    attestor: &dyn Attestor,
    token: &UnverifiedJwt,
    keys: Option<&[u8]>,
    proved: &[KeyBinding],
    now: Timestamp,
) -> Explanation {
    let mut conditions = vec![algorithm(attestor, token), signature(attestor, token, keys)];
    let claims = token.unverified_claims();
    conditions.extend(attestor.conditions(claims, now).0);
    match Confirmation::of(claims) {
        Ok(wanted) if wanted.is_empty() => {}
        Ok(wanted) => conditions.push(Condition {
            name: "cnf".into(),
            outcome: wanted.hold_against(proved),
            expected: None,
        }),
        Err(error) => {
            let mut failed = Conditions::default();
            failed.check("cnf", Err(error));
            conditions.extend(failed.0);
        }
    }
    if attestor.is_reviewed() {
        conditions.push(not_checked("review", "only the cluster can confirm it"));
    }
    conditions.push(not_checked(
        "use",
        "only the broker knows whether it was used before",
    ));
    for condition in &mut conditions {
        condition.expected = attestor.expected(&condition.name);
    }
    Explanation {
        attestor: Some(attestor.name().to_owned()),
        conditions,
    }
}

fn not_checked(name: &'static str, why: &'static str) -> Condition {
    Condition {
        name: name.into(),
        outcome: ConditionResult::NotChecked(why.into()),
        expected: None,
    }
}

fn algorithm(attestor: &dyn Attestor, token: &UnverifiedJwt) -> Condition {
    let believed = attestor
        .algorithms()
        .contains(&token.unverified_algorithm());
    Condition {
        name: "alg".into(),
        outcome: if believed {
            ConditionResult::Holds
        } else {
            ConditionResult::Fails(AttestError::WrongAlgorithm)
        },
        expected: None,
    }
}

fn signature(attestor: &dyn Attestor, token: &UnverifiedJwt, keys: Option<&[u8]>) -> Condition {
    const NAME: &str = "signature";
    let configured = attestor.configured_keys(token);
    let keys: Vec<VerificationKey> = match keys {
        Some(set) => match jwks::parse(set, attestor.key_use()) {
            Some(keys) => keys,
            None => return not_checked(NAME, "the key set has no usable key"),
        },
        None if configured.is_empty() => {
            return not_checked(NAME, "no keys are known: name the issuer's key set");
        }
        None => configured,
    };
    let algorithm = token.unverified_algorithm();
    let named = jwks::select(&keys, token.unverified_kid(), algorithm);
    let outcome = if named.is_empty() {
        ConditionResult::Fails(AttestError::UnknownKey)
    } else {
        match jwks::verify_with(token, &named, attestor.algorithms()) {
            Ok(_) => ConditionResult::Holds,
            Err(error) => ConditionResult::Fails(error.into()),
        }
    };
    Condition {
        name: NAME.into(),
        outcome,
        expected: None,
    }
}
