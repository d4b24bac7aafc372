//! stub
#![allow(missing_docs)]
use crate::clock::Timestamp;
use crate::domain::trust::AttestorSpec;
use crate::domain::workload::Workload;
use futures_util::future::BoxFuture;
use secrecy::SecretString;
use std::sync::Arc;
pub mod dpop {
    use super::*;
    use crate::domain::workload::{KeyBinding, OneTime};
    #[derive(Debug)]
    pub struct Proof {
        pub key: KeyBinding,
        pub one_time: OneTime,
    }
    pub fn verify(
        _e: &Evidence,
        _ath: Option<&str>,
        _now: Timestamp,
    ) -> Result<Proof, AttestError> {
        Err(AttestError::Unrecognised)
    }
}
#[derive(Debug, Default)]
pub struct Evidence {
    pub bearer: Option<SecretString>,
    pub dpop: Vec<String>,
    pub client_certificates: Vec<Vec<u8>>,
    pub method: String,
    pub url: String,
}
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    #[error("x")]
    Unrecognised,
}
impl AttestError {
    pub fn reason(&self) -> &'static str {
        "x"
    }
}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct AttestorConfigError;
#[derive(Debug)]
pub struct WorkloadKeysUnavailable;
pub trait WorkloadKeys: Send + Sync {
    fn find<'a>(
        &'a self,
        attestor: &'a str,
        workload: &'a str,
    ) -> BoxFuture<'a, Result<Vec<serde_json::Value>, WorkloadKeysUnavailable>>;
}
pub struct AttestContext {
    pub own_issuer: String,
    pub own_issuers: Vec<String>,
    pub tracker: tokio_util::task::TaskTracker,
    pub workload_keys: Arc<dyn WorkloadKeys>,
}
pub struct Attestors;
impl Attestors {
    pub fn new(_s: &[AttestorSpec], _c: AttestContext) -> Result<Self, AttestorConfigError> {
        Ok(Self)
    }
    pub async fn appraise(&self, _e: &Evidence, _now: Timestamp) -> Result<Workload, AttestError> {
        Err(AttestError::Unrecognised)
    }
}
