//! Revocability: three facts about the effect of revoking a credential.
//!
//! 1. New uses: how soon the first one is refused ([`RevocationClass`]).
//! 2. Open sessions: whether a connection or session that the credential has opened goes on
//!    ([`OpenSessions`]).
//! 3. Expiry without the broker: which party ends the credential if the broker is gone
//!    ([`ExpiresBy`]).
//!
//! Each kind of resource states them ([`ResourceKind::revocability`](super::kind::ResourceKind)).
//! The session, the permit's leaf and the context of policy evaluation contain them.
//!
//! Nothing here returns an error: `parse` and `from_parts` answer `None` for an unknown name, or
//! for a class with a bound that it does not have. The store then reports a corrupt row. This file
//! ends nothing: [`super::validity`] derives from the class when an end takes effect.

use serde::{Deserialize, Serialize};

/// The default of the time, in seconds, for which a replica relies on facts that it read from the
/// store.
pub const DEFAULT_READ_LEASE_SECONDS: u64 = 5;

/// How soon a new use of a revoked credential is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "snake_case")]
pub enum RevocationClass {
    /// At the next use: each use reads the primary store.
    Immediate {
        /// Maximum age in seconds of the facts that a use reads, directly after a failover of the
        /// store. Zero if the store cannot fail over.
        bound_seconds: u64,
    },
    /// Within a fixed time.
    Bounded {
        /// Maximum age in seconds of an answer that is still accepted.
        bound_seconds: u64,
    },
    /// Only when the credential expires.
    ExpiryOnly,
}

impl RevocationClass {
    /// Every name.
    pub const NAMES: [&'static str; 3] = ["immediate", "bounded", "expiry_only"];

    /// The name on the wire, in the store and in policy.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Immediate { .. } => "immediate",
            Self::Bounded { .. } => "bounded",
            Self::ExpiryOnly => "expiry_only",
        }
    }

    /// The bound in seconds. `None` for [`Self::ExpiryOnly`].
    #[must_use]
    pub fn bound_seconds(self) -> Option<u64> {
        match self {
            Self::Immediate { bound_seconds } | Self::Bounded { bound_seconds } => {
                Some(bound_seconds)
            }
            Self::ExpiryOnly => None,
        }
    }

    /// The inverse of [`Self::as_str`] and [`Self::bound_seconds`].
    #[must_use]
    pub fn from_parts(class: &str, bound_seconds: Option<u64>) -> Option<Self> {
        match (class, bound_seconds) {
            ("immediate", Some(bound_seconds)) => Some(Self::Immediate { bound_seconds }),
            ("bounded", Some(bound_seconds)) => Some(Self::Bounded { bound_seconds }),
            ("expiry_only", None) => Some(Self::ExpiryOnly),
            _ => None,
        }
    }
}

/// The effect of a revocation on connections and sessions that the credential has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenSessions {
    /// The back end ends it, within the bound of the class.
    Ended,
    /// They go on after the revocation.
    Kept,
    /// There are none: each call presents the credential again.
    None,
}

impl OpenSessions {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::Ended, Self::Kept, Self::None];

    /// The name on the wire, in the store and in policy.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Kept => "kept",
            Self::None => "none",
        }
    }

    /// The inverse of [`Self::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|own| own.as_str() == text)
    }
}

/// Which party ends a credential at its expiry if the broker is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpiresBy {
    /// The credential itself, which states its expiry to each verifier.
    Itself,
    /// The back end, which stores the expiry and ends the credential.
    BackEnd,
    /// The broker. Without the broker the credential stays valid.
    Broker,
}

impl ExpiresBy {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::Itself, Self::BackEnd, Self::Broker];

    /// The name on the wire, in the store and in policy.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Itself => "itself",
            Self::BackEnd => "back_end",
            Self::Broker => "broker",
        }
    }

    /// The inverse of [`Self::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|own| own.as_str() == text)
    }
}

/// The effect of revoking one credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of the types say it all")]
pub struct Revocability {
    #[serde(flatten)]
    pub class: RevocationClass,
    pub open_sessions: OpenSessions,
    pub expires_by: ExpiresBy,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_class_and_its_bound_stand_beside_the_other_two_answers() {
        let text = |own: Revocability| serde_json::to_string(&own).unwrap();
        let own = |class| Revocability {
            class,
            open_sessions: OpenSessions::None,
            expires_by: ExpiresBy::Itself,
        };
        assert_eq!(
            text(own(RevocationClass::Immediate { bound_seconds: 0 })),
            r#"{"class":"immediate","bound_seconds":0,"open_sessions":"none","expires_by":"itself"}"#
        );
        assert_eq!(
            text(own(RevocationClass::ExpiryOnly)),
            r#"{"class":"expiry_only","open_sessions":"none","expires_by":"itself"}"#
        );
    }

    #[test]
    fn every_combination_of_answers_is_read_back_as_it_was_written() {
        let classes = [
            RevocationClass::Immediate { bound_seconds: 5 },
            RevocationClass::Bounded { bound_seconds: 30 },
            RevocationClass::ExpiryOnly,
        ];
        for class in classes {
            let parts = RevocationClass::from_parts(class.as_str(), class.bound_seconds());
            assert_eq!(parts, Some(class));
            for open_sessions in OpenSessions::ALL {
                assert_eq!(
                    OpenSessions::parse(open_sessions.as_str()),
                    Some(open_sessions)
                );
                for expires_by in ExpiresBy::ALL {
                    assert_eq!(ExpiresBy::parse(expires_by.as_str()), Some(expires_by));
                    let own = Revocability {
                        class,
                        open_sessions,
                        expires_by,
                    };
                    let text = serde_json::to_string(&own).unwrap();
                    assert_eq!(serde_json::from_str::<Revocability>(&text).unwrap(), own);
                    let value = serde_json::to_value(own).unwrap();
                    assert_eq!(value["class"], class.as_str());
                    assert_eq!(value["open_sessions"], open_sessions.as_str());
                    assert_eq!(value["expires_by"], expires_by.as_str());
                }
            }
        }
    }

    #[test]
    fn an_unknown_or_incomplete_answer_is_no_revocability() {
        for bad in [
            json!({"class": "immediate", "bound_seconds": 0}),
            json!({"class": "immediate", "open_sessions": "none", "expires_by": "itself"}),
            json!({"class": "never", "open_sessions": "none", "expires_by": "itself"}),
            json!({"class": "expiry_only", "open_sessions": "some", "expires_by": "itself"}),
            json!({"class": "expiry_only", "open_sessions": "none", "expires_by": "nobody"}),
        ] {
            assert!(
                serde_json::from_value::<Revocability>(bad.clone()).is_err(),
                "{bad}"
            );
        }
        assert_eq!(RevocationClass::from_parts("bounded", None), None);
        assert_eq!(RevocationClass::from_parts("expiry_only", Some(1)), None);
    }
}
