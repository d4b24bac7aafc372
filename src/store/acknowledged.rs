//! Whether PostgreSQL acknowledged a commit in full.
//!
//! A COMMIT waits until a synchronous standby has it. When that wait is cancelled, for example by
//! `pg_cancel_backend`, the server still answers with success, and only a warning tells the two
//! apart. The broker releases credentials after such answers, and the serving role may cancel its
//! own sessions. So on the ledger's and the lease's connections any warning during a commit counts
//! as no acknowledgement.
//!
//! The driver hands the server's notices only to `tracing`. [`NoticeWatch`] is the subscriber of
//! the one future that commits; [`WatchedConnection`] runs it. Each new connection first runs a
//! statement that always causes a warning. A driver or a pooler that does not pass warnings on is
//! thereby refused (`Unfit`). After a warning the caller gets `NotPrimary`: the commit may or may
//! not be durable, and the caller must drop the connection. `store::append` and `store::lease` call
//! this module; they find out whether the commit was made.

use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor};
use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber;
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber, span};

use super::StoreError;
use super::pooler::refused_options;

/// The target under which the driver logs the server's notices.
const NOTICE: &str = "sqlx::postgres::notice";

/// The last warning.
type Warning = Arc<Mutex<Option<String>>>;

/// Collects the server's warnings while a future runs.
#[derive(Clone, Debug)]
struct NoticeWatch {
    warning: Warning,
    dispatch: Dispatch,
}

impl NoticeWatch {
    fn new() -> Self {
        let warning = Warning::default();
        let listener = Listener {
            warning: Arc::clone(&warning),
        };
        Self {
            warning,
            dispatch: Dispatch::new(listener),
        }
    }

    /// Runs the statement; returns its result and the last warning during it.
    async fn over<T>(&self, statement: impl Future<Output = T>) -> (T, Option<String>) {
        drop(self.take());
        let done = statement.with_subscriber(self.dispatch.clone()).await;
        (done, self.take())
    }

    fn take(&self) -> Option<String> {
        // The mutex guards one value that is always replaced whole, so a poisoned lock is harmless.
        let mut warning = self.warning.lock().unwrap_or_else(PoisonError::into_inner);
        warning.take()
    }
}

/// The subscriber: it takes only the server's warnings.
struct Listener {
    warning: Warning,
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == NOTICE && *metadata.level() <= Level::WARN
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::WARN)
    }

    fn event(&self, event: &Event<'_>) {
        let mut message = Message::default();
        event.record(&mut message);
        let mut warning = self.warning.lock().unwrap_or_else(PoisonError::into_inner);
        *warning = Some(message.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The text of a notice.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.0);
        }
    }
}

/// A connection whose commits are checked for warnings.
#[derive(Debug)]
pub struct WatchedConnection {
    connection: PgConnection,
    watch: NoticeWatch,
}

impl WatchedConnection {
    /// Connects, and checks that the connection passes warnings on.
    pub(super) async fn connect(options: &PgConnectOptions) -> Result<Self, StoreError> {
        let mut watched = Self {
            connection: PgConnection::connect_with(options)
                .await
                .map_err(refused_options)?,
            watch: NoticeWatch::new(),
        };
        // No transaction is open, so the server warns about this statement.
        let tried = watched.watch.over(watched.connection.execute("ROLLBACK"));
        let (tried, warning) = tried.await;
        tried?;
        if warning.is_none() {
            return Err(StoreError::Unfit(
                "the connection to the database does not pass on the server's warnings, so a \
                 commit that was not acknowledged by its standby would look like one that was; \
                 connect to the database itself, without a pooler"
                    .into(),
            ));
        }
        Ok(watched)
    }

    /// Runs a statement that commits by itself. After an error the caller does not know whether it
    /// was committed, or whether a synchronous standby has it.
    pub(super) async fn acknowledged<'c, T, F>(
        &'c mut self,
        commit: impl FnOnce(&'c mut PgConnection) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + 'c,
    {
        let Self { connection, watch } = self;
        let (done, warning) = watch.over(commit(connection)).await;
        let done = done?;
        unwarned(warning)?;
        Ok(done)
    }

    /// Commits the open transaction.
    pub(super) async fn commit(&mut self) -> Result<(), StoreError> {
        let (done, warning) = self.watch.over(self.connection.execute("COMMIT")).await;
        done?;
        unwarned(warning)
    }
}

impl Deref for WatchedConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for WatchedConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

fn unwarned(warning: Option<String>) -> Result<(), StoreError> {
    match warning {
        None => Ok(()),
        Some(warning) => Err(StoreError::NotPrimary(format!(
            "it answered a commit with the warning `{warning}`, so its synchronous standby may lack it"
        ))),
    }
}
