//! Brokers to measure: a generation of a given size, one or more replicas, a filled store.

use std::fmt::Write as _;

use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::filling::{Filling, Template};
use crate::options::Options;
use crate::support::fleet::{Fleet, Replica};
use crate::support::rig::Kind;

/// Policies of every generation that are not about agents: the bootstrap token's.
const OTHER_POLICIES: usize = 1;

/// The size of a generation.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Workloads that request credentials, each with two policies.
    pub agents: usize,
    /// Actions of the requested resource.
    pub actions: usize,
    /// All policies together; those that are not about agents are about other workloads.
    pub policies: usize,
    /// The way in which the resource's servers verify credentials.
    pub verification: &'static str,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            agents: 200,
            actions: 2,
            policies: 200 * 2 + OTHER_POLICIES,
            verification: "introspection",
        }
    }
}

impl Shape {
    /// The same for few agents, so that a generation of ten policies is possible.
    pub fn with_few_agents() -> Self {
        Self {
            agents: 4,
            policies: 10,
            ..Self::default()
        }
    }

    fn tables(&self) -> String {
        let actions: Vec<String> = (0..self.actions)
            .map(|n| format!("\"bench:a{n}\""))
            .collect();
        format!(
            r#"
[[resources]]
name = "bench-api"
kind = "jwt"
owner = "bench"
audience = "https://bench.example"
actions = [{}]
locations = ["https://bench.example/v1"]
verification = "{}"
[[task_types]]
name = "bench"
max_deadline_seconds = 7200
resources = ["bench-api"]
max_open_per_workload = 1000000
"#,
            actions.join(", "),
            self.verification
        )
    }

    fn policies(&self) -> String {
        let mut text = String::new();
        for n in 0..self.agents {
            let who = format!("principal == Workload::dev::\"dev:agent%3A{n}\"");
            writeln!(
                text,
                "@id(\"open-{n}\") @description(\"opens\") permit ({who}, \
                 action == Action::\"openTask\", resource == TaskType::\"bench\");\n\
                 @id(\"read-{n}\") @description(\"reads\") @max_ttl(\"900\") permit ({who}, \
                 action == Action::\"bench:a0\", resource == Api::\"bench-api\");"
            )
            .unwrap();
        }
        for n in self.agents * 2 + OTHER_POLICIES..self.policies {
            writeln!(
                text,
                "@id(\"other-{n}\") @description(\"reads\") permit (\
                 principal == Workload::dev::\"dev:w{n}\", action == Action::\"bench:a0\", \
                 resource == Api::\"bench-api\") when {{ context.task.depth == 1 }};"
            )
            .unwrap();
        }
        text
    }
}

/// Running replicas on one store. The replicas are dropped before their database.
pub struct Bed {
    pub replicas: Vec<Replica>,
    pub fleet: Fleet,
    pub shape: Shape,
    /// The rows of its first credential, of which filled rows are copies.
    pub template: Template,
}

impl Bed {
    /// One replica on this kind of store, which has issued one credential.
    pub async fn on(kind: Kind, shape: Shape) -> Self {
        let (fleet, replica) = Fleet::for_load(kind, &shape.tables(), &shape.policies()).await;
        let mut bed = Self {
            replicas: vec![replica],
            fleet,
            shape,
            template: Template::default(),
        };
        let granted = bed.issue(0).await;
        bed.template = Template::granted(&granted);
        bed
    }

    /// One replica on PostgreSQL, with so many past sessions.
    pub async fn filled(shape: Shape, past: usize) -> Self {
        let bed = Self::on(Kind::Postgres, shape).await;
        bed.fill(&Filling::past(past), &bed.template).await;
        bed
    }

    /// Inserts copies of a template's rows.
    pub async fn fill(&self, filling: &Filling, template: &Template) {
        filling.insert(self.fleet.database(), template).await;
    }

    /// Starts another replica.
    pub fn add_replica(&mut self) {
        let replica = self.fleet.replica();
        self.replicas.push(replica);
    }

    pub fn first(&self) -> &Replica {
        &self.replicas[0]
    }

    /// The evidence of the agent with this number.
    pub fn token(&self, n: usize) -> String {
        let agent = n % self.shape.agents;
        let claims = json!({"sub": format!("agent:{agent}"), "run": "run-1"});
        self.fleet.issuer.token(claims)
    }

    /// The body of a request that opens a task and gets a credential.
    pub fn body(&self) -> Value {
        json!({
            "task": {"type": "bench"}, "resource": "bench-api",
            "authorization_details": [{"type": "api", "actions": ["bench:a0"]}],
            "ttl_seconds": 900,
        })
    }

    /// Gets one credential from the first replica.
    pub async fn issue(&self, n: usize) -> Value {
        let client = &self.first().client;
        let (token, body) = (self.token(n), self.body());
        let asked = client.post_json(&token, "/v1/credentials", &body);
        asked.await.expect(201)
    }

    /// Revokes all that the selector names, at the first replica.
    pub async fn revoke(&self, selector: Value, more: Value) -> Value {
        let mut body = json!({"selector": selector, "reason": "a benchmark"});
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let client = &self.first().client;
        let asked = client.post_json(&self.fleet.admin, "/v1/revocations", &body);
        asked.await.expect(200)
    }

    /// One row of the database, read by its owner.
    pub async fn row<R>(&self, sql: String) -> R
    where
        R: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
    {
        let mut connection = self.fleet.database().connect().await;
        sqlx::query_as(AssertSqlSafe(sql))
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }
}

/// The sentence about a store of `past` sessions, for reports.
pub fn about_store(options: &Options) -> String {
    format!(
        "PostgreSQL with {} past sessions, analysed; median (range) of {} rounds of {} s",
        options.past, options.rounds, options.seconds
    )
}
