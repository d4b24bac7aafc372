//! Whether a commit of PostgreSQL was acknowledged in full.
//!
//! A COMMIT waits until a synchronous standby has it. A wait that is cancelled, by
//! `pg_cancel_backend` for one, ends with the answer of a success: a warning is all that tells it
//! from one. The broker releases credentials upon such answers, and the serving role may cancel its
//! own sessions. So on the connections that matter every warning during a commit counts as no
//! acknowledgement.
//!
//! The driver hands the server's notices to `tracing` and to nothing else. [`NoticeWatch`] is the
//! subscriber of exactly the future that commits. Each connection is tried with a statement that is
//! always warned of before it is used, so that a driver, or a pooler in between, which keeps
//! warnings to itself is refused.

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
use super::postgres::refused_options;

/// What the driver names the server's notices.
const NOTICE: &str = "sqlx::postgres::notice";

/// The last warning.
type Warning = Arc<Mutex<Option<String>>>;

/// Hears what the server warns of while a future runs.
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

    /// What became of a statement, and the warning that came with it.
    async fn over<T>(&self, statement: impl Future<Output = T>) -> (T, Option<String>) {
        drop(self.take());
        let done = statement.with_subscriber(self.dispatch.clone()).await;
        (done, self.take())
    }

    fn take(&self) -> Option<String> {
        // It holds one value that is replaced whole.
        let mut warning = self.warning.lock().unwrap_or_else(PoisonError::into_inner);
        warning.take()
    }
}

/// The subscriber: it takes the server's warnings and nothing else.
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

/// A connection on which commits are watched.
#[derive(Debug)]
pub struct WatchedConnection {
    connection: PgConnection,
    watch: NoticeWatch,
}

impl WatchedConnection {
    /// Connects, and sees to it that warnings are heard.
    pub(super) async fn connect(options: &PgConnectOptions) -> Result<Self, StoreError> {
        let mut watched = Self {
            connection: PgConnection::connect_with(options)
                .await
                .map_err(refused_options)?,
            watch: NoticeWatch::new(),
        };
        // There is no transaction, and the server warns of that.
        let tried = watched.watch.over(watched.connection.execute("ROLLBACK"));
        let (tried, warning) = tried.await;
        tried?;
        if warning.is_none() {
            return Err(StoreError::Unfit(
                "the connection to the database passes on no warnings of the server, so a commit that \
                 was not acknowledged by its standby would look like one that was; connect to the \
                 database itself, without a pooler"
                    .into(),
            ));
        }
        Ok(watched)
    }

    /// Runs what commits by itself. After an error it is not known whether it was committed, or whether
    /// a synchronous standby has it.
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

    /// Commits the transaction.
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
