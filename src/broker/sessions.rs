//! Sessions, for those who may see them.

use super::call::Call;
use super::{Broker, BrokerError};
use crate::attest::Evidence;
use crate::clock::Timestamp;
use crate::domain::deny_list::RevocationProgress;
use crate::domain::limits::DEFAULT_PAGE;
use crate::domain::session::{SessionView, Standing};
use crate::ids::SessionId;
use crate::policy::AdminAction;
use crate::store::sessions::SessionFilter;

/// A session as it truly stands.
#[derive(Debug)]
pub struct SessionReport {
    /// Its record, and what decides about it.
    pub view: SessionView,
    /// How it stands.
    pub standing: Standing,
    /// The progress of its back end with denying it. `None` where it was not read.
    pub revocation_progress: Option<RevocationProgress>,
}

impl SessionReport {
    /// As it stands at `now`.
    #[must_use]
    pub fn new(view: SessionView, now: Timestamp) -> Self {
        let standing = view.standing_at(now);
        Self {
            view,
            standing,
            revocation_progress: None,
        }
    }
}

impl Broker {
    /// One session, for its workload or an admin.
    pub async fn session(
        &self,
        id: SessionId,
        evidence: &Evidence,
    ) -> Result<SessionReport, BrokerError> {
        let call = self.call(evidence);
        call.run(|| self.session_by(&call, id)).await
    }

    async fn session_by(
        &self,
        call: &Call<'_>,
        id: SessionId,
    ) -> Result<SessionReport, BrokerError> {
        let caller = self.caller(call).await?;
        call.consume().await?;
        let view = self.store().session_view(id).await?;
        let view = view.ok_or(BrokerError::NotFound("session"))?;
        let session = &view.session;
        let own = caller.owns(&session.workload, session.instance.as_ref());
        if !own && !self.may(&caller, AdminAction::ListSessions)? {
            return Err(BrokerError::NotFound("session"));
        }
        let revocation_progress = self.store().revocation_progress(id).await?;
        Ok(SessionReport {
            revocation_progress,
            ..SessionReport::new(view, self.now())
        })
    }

    /// The sessions of a listing: everybody's for an admin, a workload's own otherwise.
    pub async fn list_sessions(
        &self,
        evidence: &Evidence,
        filter: SessionFilter,
    ) -> Result<Vec<SessionReport>, BrokerError> {
        let call = self.call(evidence);
        call.run(|| self.list_sessions_by(&call, filter.clone()))
            .await
    }

    async fn list_sessions_by(
        &self,
        call: &Call<'_>,
        mut filter: SessionFilter,
    ) -> Result<Vec<SessionReport>, BrokerError> {
        let caller = self.caller(call).await?;
        call.consume().await?;
        if !self.may(&caller, AdminAction::ListSessions)? {
            let own = caller
                .identity()
                .ok_or(BrokerError::Forbidden("listSessions"))?;
            filter.workload = Some(own.to_string());
        }
        if filter.limit == 0 {
            filter.limit = DEFAULT_PAGE;
        }
        let now = self.now();
        let views = self.store().list_sessions(&filter).await?;
        Ok(views
            .into_iter()
            .map(|view| SessionReport::new(view, now))
            .collect())
    }
}
