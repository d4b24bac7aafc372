//! Reads sessions for callers that may see them.
//!
//! `session` reads one, `list_sessions` a page. A `SessionReport` is a session with its status at
//! the moment of the read.
//!
//! The rule: a workload sees its own sessions, an admin with the right `listSessions` all.
//! Failures: `NotFound` for a session that does not exist or that the caller may not see. A caller
//! without an identity (a token or a handle) and without the right gets `Forbidden` from the
//! listing. `revocation_progress` is `None` in listings. `http::sessions` calls this module;
//! `access` authorizes the caller, and `domain::validity` computes the status.

use super::Verification;
use crate::attest::Evidence;
use crate::broker::access::Unverified;
use crate::broker::error::BrokerError;
use crate::clock::Timestamp;
use crate::domain::deny_list::RevocationProgress;
use crate::domain::limits::DEFAULT_PAGE;
use crate::domain::validity::{EffectiveStatus, SessionView};
use crate::ids::SessionId;
use crate::policy::AdminAction;
use crate::store::sessions::SessionFilter;

/// A session with its status.
#[derive(Debug)]
pub struct SessionReport {
    /// Its record, with the facts that determine its status.
    pub view: SessionView,
    /// Its status when it was read.
    pub status: EffectiveStatus,
    /// The progress of its denial at the back end. `None` if it was never requested, or not read.
    pub revocation_progress: Option<RevocationProgress>,
}

impl SessionReport {
    /// A report with the status at `now` and without the revocation's progress.
    #[must_use]
    pub fn new(view: SessionView, now: Timestamp) -> Self {
        let status = view.status_at(now);
        Self {
            view,
            status,
            revocation_progress: None,
        }
    }
}

impl Verification {
    /// One session, for its workload or an admin.
    pub async fn session(
        &self,
        id: SessionId,
        evidence: &Evidence,
    ) -> Result<SessionReport, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.session_by(unverified, id)).await
    }

    async fn session_by(
        &self,
        unverified: Unverified<'_>,
        id: SessionId,
    ) -> Result<SessionReport, BrokerError> {
        let reader = unverified.read().await?;
        let view = self.core.store().session_view(id).await?;
        let view = view.ok_or(BrokerError::NotFound("session"))?;
        let session = &view.session;
        let own = reader.owns(&session.workload, session.instance.as_ref());
        if !own && !reader.may(AdminAction::ListSessions)? {
            return Err(BrokerError::NotFound("session"));
        }
        let revocation_progress = self.core.store().revocation_progress(id).await?;
        Ok(SessionReport {
            revocation_progress,
            ..SessionReport::new(view, self.core.now())
        })
    }

    /// The sessions of a listing: all for an admin, otherwise the workload's own.
    pub async fn list_sessions(
        &self,
        evidence: &Evidence,
        filter: SessionFilter,
    ) -> Result<Vec<SessionReport>, BrokerError> {
        let call = self.access.call(evidence);
        call.run(|unverified| self.list_sessions_by(unverified, filter.clone()))
            .await
    }

    async fn list_sessions_by(
        &self,
        unverified: Unverified<'_>,
        mut filter: SessionFilter,
    ) -> Result<Vec<SessionReport>, BrokerError> {
        let reader = unverified.read().await?;
        if !reader.may(AdminAction::ListSessions)? {
            let own = reader
                .identity()
                .ok_or(BrokerError::Forbidden("listSessions"))?;
            filter.workload = Some(own.to_string());
        }
        if filter.limit == 0 {
            filter.limit = DEFAULT_PAGE;
        }
        let now = self.core.now();
        let views = reader.list_sessions(&filter).await?;
        Ok(views
            .into_iter()
            .map(|view| SessionReport::new(view, now))
            .collect())
    }
}
