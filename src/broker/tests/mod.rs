//! Unit tests of the use cases. They run a whole broker on a store in memory, with a clock that the
//! test moves and an attestor that accepts each token.

mod admission;
mod delegation;
mod revocation;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use secrecy::SecretString;
use serde_json::json;

use super::issuance::Issued;
use super::tasks::{Delegation, TaskAuthority, TaskWithSessions};
use super::{Broker, BrokerError};
use crate::app::{Assembled, Options, assemble_on};
use crate::attest::tests::fake;
use crate::attest::{Attestors, Evidence};
use crate::clock::{Clock as _, ManualClock, SharedClock, Timestamp};
use crate::config::{Config, Mode};
use crate::domain::decision::RefusalCode;
use crate::domain::generation::PolicyFile;
use crate::domain::request::{CredentialRequest, NewTask, ParentRef, TaskSelector};
use crate::domain::task::TaskEnd;
use crate::ids::TaskId;
use crate::mint::Credential;
use crate::store::Store;
use crate::store::sqlite::Sqlite;

/// The token of the development mode, which the test's admin presents.
const ADMIN: &str = "tpa_unit-test-admin-token";

const CONFIG: &str = r#"
[server]
issuer = "http://127.0.0.1:7070"
listen = "127.0.0.1:7070"
[store]
kind = "sqlite"
[store.sqlite]
data_dir = "DIRECTORY/data"
[ledger]
origin = "dev.taskpass.local/unit"
checkpoint_file = "DIRECTORY/checkpoint"
[policy]
directory = "policies"
[limits]
denials_per_identity = 1000
identity_requests_per_second = 100000
identity_burst = 100000
[[attestors]]
kind = "key"
name = "fake"
[[resources]]
name = "orders"
kind = "jwt"
owner = "orders"
audience = "https://orders.example"
actions = ["orders:read", "orders:write"]
locations = ["https://orders.example/v1"]
verifiers = ["fake:server"]
verification = "introspection"
[[task_types]]
name = "job"
max_deadline_seconds = 3600
resources = ["orders"]
max_sessions = 3
max_open_per_workload = 2
[[task_types]]
name = "watched"
max_deadline_seconds = 3600
max_heartbeat_seconds = 60
resources = ["orders"]
"#;

/// The workloads that may open tasks and read.
const WORKLOADS: [&str; 5] = ["agent", "other", "parent", "child", "stranger"];

const ADMIN_POLICY: &str = r#"
@id("admin") @description("the test's admin")
permit (principal == Bootstrap::"dev", action in [Action::"revokeSession", Action::"revokeMany",
  Action::"liftCutoff", Action::"readRevocations", Action::"introspect", Action::"endTask"],
  resource == Broker::"taskpass");
"#;

fn policies() -> String {
    let of_workloads = WORKLOADS.map(|name| {
        format!(
            "@id(\"{name}-open\") @description(\"opens tasks\")\n\
             permit (principal == Workload::fake::\"fake:{name}\", action == Action::\"openTask\", resource);\n\
             @id(\"{name}-read\") @description(\"reads, ten minutes at most\") @max_ttl(\"600\")\n\
             permit (principal == Workload::fake::\"fake:{name}\", action == Action::\"orders:read\", resource);\n"
        )
    });
    of_workloads.concat() + ADMIN_POLICY
}

/// A broker on a store in memory.
struct Unit {
    broker: Arc<Broker>,
    clock: Arc<ManualClock>,
    serials: AtomicU64,
    _assembled: Assembled,
    /// The directory of the checkpoint and the sealing key.
    _directory: tempfile::TempDir,
}

impl Unit {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(Timestamp::from_seconds(1_795_000_000));
        let store = Store::Sqlite(Sqlite::in_memory().await);
        let options = Options {
            clock: Arc::clone(&clock) as SharedClock,
            dev_admin_token: Some(SecretString::from(ADMIN)),
            policies: Some(vec![PolicyFile {
                name: "unit.cedar".into(),
                text: policies(),
            }]),
            minters: Vec::new(),
        };
        let assembled = assemble_on(store, &config(directory.path()), options)
            .await
            .unwrap();
        let broker = Arc::clone(&assembled.broker);
        let generation = assembled.generation.clone();
        broker
            .administration
            .activate_own("unit-test", generation)
            .await
            .unwrap();
        broker.core.replace_attestors(Attestors::fake());
        Self {
            broker,
            clock,
            serials: AtomicU64::new(0),
            _assembled: assembled,
            _directory: directory,
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Fresh evidence of a workload. The instance has the same name.
    fn evidence(&self, name: &str) -> Evidence {
        let serial = self.serials.fetch_add(1, Ordering::SeqCst);
        fake::evidence(name, name, serial, self.now())
    }

    async fn issue(&self, name: &str, task: TaskSelector) -> Result<Issued, BrokerError> {
        self.broker
            .issuance
            .issue(self.evidence(name), request(task))
            .await
    }

    /// A credential on a new task of type `job`.
    async fn issue_job(&self, name: &str) -> Issued {
        self.issue(name, job()).await.unwrap()
    }

    async fn end(&self, issued: &Issued, end: TaskEnd) -> Result<TaskWithSessions, BrokerError> {
        self.broker
            .tasks
            .end_task(issued.task.id, by_handle(issued), end)
            .await
    }

    async fn delegate(
        &self,
        parent: &Issued,
        child: &str,
        sessions: u32,
    ) -> Result<Delegation, BrokerError> {
        let child = fake::identity(child);
        let authority = by_handle(parent);
        let delegation =
            self.broker
                .tasks
                .delegate(parent.task.id, authority, child, sessions, None);
        delegation.await
    }

    /// Issues a credential to `child`, in a task that the parent delegated to it.
    async fn issue_child(&self, parent: &Issued) -> Issued {
        let delegation = self.delegate(parent, "child", 1).await.unwrap();
        self.issue("child", child_of(parent.task.id, &delegation))
            .await
            .unwrap()
    }

    /// Whether introspection reports the credential as active.
    async fn is_active(&self, issued: &Issued) -> bool {
        let token = access_token(issued);
        let answer = self
            .broker
            .verification
            .introspect(&admin(), &token)
            .await
            .unwrap();
        matches!(
            answer.introspection,
            super::verification::introspect::Introspection::Active(_)
        )
    }
}

/// The evidence of the test's admin.
fn admin() -> Evidence {
    Evidence {
        bearer: Some(SecretString::from(ADMIN)),
        ..Evidence::default()
    }
}

fn config(directory: &Path) -> Config {
    let text = CONFIG.replace("DIRECTORY", &directory.display().to_string());
    Config::parse_text(&directory.join("taskpass.toml"), &text, Mode::Dev).unwrap()
}

fn request(task: TaskSelector) -> CredentialRequest {
    CredentialRequest {
        task,
        resource: "orders".into(),
        grant: serde_json::from_value(json!([{"type": "api", "actions": ["orders:read"]}]))
            .unwrap(),
        ttl_seconds: None,
        retry: None,
    }
}

/// A new task of the type `name`.
fn task_of_type(name: &str) -> NewTask {
    NewTask {
        task_type: name.into(),
        purpose: None,
        parent: None,
        deadline_seconds: None,
        heartbeat_seconds: None,
    }
}

fn job() -> TaskSelector {
    TaskSelector::Open(task_of_type("job"))
}

/// A new child of `parent`.
fn child_of(parent: TaskId, delegation: &Delegation) -> TaskSelector {
    TaskSelector::Open(NewTask {
        parent: Some(ParentRef {
            id: parent,
            delegation: delegation.token.clone(),
        }),
        ..task_of_type("job")
    })
}

fn joining(issued: &Issued) -> TaskSelector {
    TaskSelector::Join {
        id: issued.task.id,
        handle: handle(issued),
    }
}

fn handle(issued: &Issued) -> SecretString {
    issued.task.handle.clone().unwrap()
}

fn by_handle(issued: &Issued) -> TaskAuthority {
    TaskAuthority::Handle(handle(issued), Evidence::default())
}

fn access_token(issued: &Issued) -> SecretString {
    match &issued.credential {
        Credential::Jwt { access_token, .. } => access_token.clone(),
        other @ Credential::AwsSts { .. } => panic!("no access token: {other:?}"),
    }
}

/// The code of a refusal that is in the ledger.
fn refusal<T: std::fmt::Debug>(result: Result<T, BrokerError>) -> RefusalCode {
    match result {
        Err(BrokerError::Denied(denied)) => denied.refusal.code,
        other => panic!("not a recorded refusal: {other:?}"),
    }
}
