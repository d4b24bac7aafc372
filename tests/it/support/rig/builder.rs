//! The settings of a rig, and its first start.

use super::*;

/// A rig that has not started. Its directory and database exist already, so that a test can
/// prepare them.
#[must_use]
pub struct RigBuilder {
    directory: SqliteFile,
    database: Option<TestDatabase>,
    policies: String,
    minters: Vec<Arc<dyn Minter>>,
    resources: Vec<Value>,
}

impl Rig {
    /// A rig on this kind of store, with [`POLICIES`].
    pub fn on(kind: Kind) -> RigBuilder {
        RigBuilder::new((kind == Kind::Postgres).then(fresh_database))
    }

    /// A rig on this PostgreSQL database, with [`POLICIES`].
    pub fn on_database(database: TestDatabase) -> RigBuilder {
        RigBuilder::new(Some(database))
    }
}

impl RigBuilder {
    fn new(database: Option<TestDatabase>) -> Self {
        Self {
            directory: fresh_sqlite(),
            database,
            policies: POLICIES.to_owned(),
            minters: Vec::new(),
            resources: Vec::new(),
        }
    }

    /// Replaces [`POLICIES`].
    pub fn policies(mut self, text: &str) -> Self {
        text.clone_into(&mut self.policies);
        self
    }

    pub fn minter(mut self, minter: Arc<dyn Minter>) -> Self {
        self.minters.push(minter);
        self
    }

    /// Adds resources, which the task type `job` may use.
    pub fn resources(mut self, resources: impl IntoIterator<Item = Value>) -> Self {
        self.resources.extend(resources);
        self
    }

    /// Sets the URL of the endpoint `aws`.
    pub fn aws(self, url: &str) -> Self {
        std::fs::write(self.directory.dir().join(ENDPOINTS), aws_endpoint(url)).unwrap();
        self
    }

    /// Sets the lines of `[ledger.shared_checkpoint]`.
    pub fn shared_checkpoint(self, lines: &str) -> Self {
        std::fs::write(self.directory.dir().join(SHARED), lines).unwrap();
        self
    }

    /// The database; panics on SQLite.
    pub fn database(&self) -> &TestDatabase {
        self.database.as_ref().unwrap()
    }

    /// Starts the broker and activates its generation.
    pub async fn start(self) -> Rig {
        let issuer = Issuer::start();
        let clock = ManualClock::new(Timestamp::from_seconds(unix_seconds()));
        let (assembled, config) = assemble(
            self.directory.dir(),
            self.database.as_ref().map(TestDatabase::url),
            &issuer,
            Arc::clone(&clock) as SharedClock,
            &self.policies,
            self.minters,
            self.resources,
        )
        .await
        .unwrap();
        let rig = Rig {
            broker: Arc::clone(&assembled.broker),
            clock,
            issuer,
            assembled: Some(assembled),
            config,
            policies: self.policies,
            directory: self.directory,
            database: self.database,
        };
        rig.activate().await;
        rig
    }
}
