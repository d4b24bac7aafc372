//! Compares the cost of decisions by small and by large generations.
//!
//! The generations are interleaved: each round measures all of them, and only the ratios to the
//! small generation within one round are shown, as the median and the range of all rounds.
//!
//! `make bench ARGS=--decide` runs it. `--smoke` only checks that everything works, with smaller
//! generations. Nothing is asserted about the ratios.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark prints its results and panics on errors"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use serde_json::json;
use taskpass::clock::Timestamp;
use taskpass::domain::decision::Outcome;
use taskpass::domain::generation::PolicyFile;
use taskpass::domain::grant::{AuthorizationDetail, Grant};
use taskpass::domain::request::{
    CredentialRequest, NewTask, ResolvedRequest, ResourceSelector, TaskSelector,
};
use taskpass::domain::revocability::{ExpiresBy, OpenSessions, Revocability, RevocationClass};
use taskpass::domain::workload::{ClaimValue, OneTime, Reuse, Workload};
use taskpass::policy::{
    AdminAction, AdminPrincipal, CompiledGeneration, GenerationParts, Question, TaskFacts, build,
};

/// Seconds since the epoch at which all decisions are made.
const NOW: i64 = 1_795_000_000;

/// Policies in the small generation that are not about other workloads.
const OWN_POLICIES: usize = 3;

/// The measured operations.
const OPERATIONS: [&str; 3] = ["evaluated", "reused", "act on the broker"];

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--smoke");
    let (rounds, times) = if smoke { (3, 20) } else { (15, 2_000) };
    let (many_actions, many_policies) = if smoke { (100, 100) } else { (5_000, 10_000) };
    let cases = [
        Case::new(2, 10),
        Case::new(many_actions, 10),
        Case::new(2, many_policies),
    ];
    for case in &cases {
        case.check();
    }
    let taken: Vec<Vec<[f64; 3]>> = (0..rounds)
        .map(|_| cases.iter().map(|case| case.measure(times)).collect())
        .collect();
    println!("Time of a decision, relative to 2 actions and 10 policies: median (range)");
    for (number, case) in cases.iter().enumerate().skip(1) {
        for (which, operation) in OPERATIONS.iter().enumerate() {
            let ratios = taken
                .iter()
                .map(|round| round[number][which] / round[0][which]);
            println!(
                "{} actions, {} policies, {operation}: {}",
                case.actions,
                case.policies,
                summary(ratios)
            );
        }
    }
    let reused = taken.iter().map(|round| round[0][1] / round[0][0]);
    println!("reused, relative to evaluated: {}", summary(reused));
}

fn summary(ratios: impl Iterator<Item = f64>) -> String {
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    let (first, last) = (ratios[0], ratios[ratios.len() - 1]);
    format!("{:.2} ({first:.2} to {last:.2})", ratios[ratios.len() / 2])
}

/// A generation with a question that it permits.
struct Case {
    actions: usize,
    policies: usize,
    generation: CompiledGeneration,
    workload: Workload,
    roles: BTreeSet<String>,
    ask: ResolvedRequest,
    /// The recorded input of the decision about the question.
    input: Vec<u8>,
}

impl Case {
    fn new(actions: usize, policies: usize) -> Self {
        let parts = parts(actions, policies);
        let (_, generation) = build(parts, &[]).unwrap();
        let detail = json!([{
            "type": "api", "actions": ["orders:a0"], "locations": ["https://orders.example/v1"]
        }]);
        let details: Vec<AuthorizationDetail> = serde_json::from_value(detail).unwrap();
        let request = CredentialRequest {
            task: TaskSelector::Open(NewTask {
                task_type: "report".into(),
                purpose: None,
                parent: None,
                deadline_seconds: None,
                heartbeat_seconds: None,
            }),
            resource: ResourceSelector::from("orders-api"),
            grant: Grant::try_from(details).unwrap(),
            ttl_seconds: None,
            retry: None,
        };
        let ask = generation.catalog().resolve(request).unwrap();
        let mut case = Self {
            actions,
            policies,
            generation,
            workload: workload(),
            roles: BTreeSet::new(),
            ask,
            input: Vec::new(),
        };
        case.input = case.generation.decide(&case.question()).input;
        case
    }

    fn question(&self) -> Question<'_> {
        Question {
            workload: &self.workload,
            roles: Some(&self.roles),
            ask: &self.ask,
            revocability: Revocability {
                class: RevocationClass::Immediate { bound_seconds: 5 },
                open_sessions: OpenSessions::None,
                expires_by: ExpiresBy::Itself,
            },
            task: TaskFacts {
                task_type: "report".into(),
                depth: 1,
                deadline_seconds_left: 3_600,
                has_parent: false,
                opens: true,
            },
            bounds: None,
            now: Timestamp::from_seconds(NOW),
        }
    }

    /// Checks that each operation does the work that its name says.
    fn check(&self) {
        let reused = self.generation.decide(&self.question());
        let evaluated = self.generation.redecide(&self.input).unwrap();
        assert_eq!(
            (reused.outcome(), reused.reused, evaluated.reused),
            (Outcome::Permit, true, false)
        );
        assert_eq!(reused.verdict, evaluated.verdict);
        assert!(self.may());
    }

    fn may(&self) -> bool {
        let principal = AdminPrincipal::Workload {
            workload: &self.workload,
            roles: &self.roles,
        };
        let may = self.generation.may(principal, AdminAction::ReadLedger);
        may.unwrap()
    }

    /// Seconds for `times` repetitions of each operation.
    fn measure(&self, times: usize) -> [f64; 3] {
        [
            timed(times, || {
                black_box(self.generation.redecide(&self.input).unwrap());
            }),
            timed(times, || {
                black_box(self.generation.decide(&self.question()));
            }),
            timed(times, || {
                black_box(self.may());
            }),
        ]
    }
}

fn timed(times: usize, operation: impl Fn()) -> f64 {
    let began = Instant::now();
    for _ in 0..times {
        operation();
    }
    began.elapsed().as_secs_f64()
}

fn parts(actions: usize, policies: usize) -> GenerationParts {
    let actions: Vec<String> = (0..actions).map(|n| format!("orders:a{n}")).collect();
    GenerationParts {
        policies: vec![PolicyFile {
            name: "bench.cedar".into(),
            text: bundle(policies),
        }],
        attestors: vec![
            serde_json::from_value(json!({
                "kind": "oidc", "name": "dev", "issuer": "https://issuer.example",
                "audience": "https://broker.example", "algorithms": ["ES256"],
                "single_tenant": true, "identity": "{sub}",
                "claims": {"sub": {"type": "string", "immutable": true}}
            }))
            .unwrap(),
        ],
        resources: vec![
            serde_json::from_value(json!({
                "name": "orders-api", "kind": "jwt", "owner": "orders",
                "audience": "https://orders.example", "actions": actions,
                "locations": ["https://orders.example/v1"], "verification": "introspection"
            }))
            .unwrap(),
        ],
        task_types: vec![
            serde_json::from_value(json!({
                "name": "report", "max_deadline_seconds": 3_600, "resources": ["orders-api"]
            }))
            .unwrap(),
        ],
        ..GenerationParts::default()
    }
}

/// Policies about the agent, and about as many other workloads as are left.
fn bundle(policies: usize) -> String {
    let agent = "principal == Workload::dev::\"dev:agent\"";
    let mut text = format!(
        "@id(\"task\") @description(\"d\")\n\
         permit ({agent}, action == Action::\"openTask\", resource == TaskType::\"report\");\n\
         @id(\"orders\") @description(\"d\")\n\
         permit ({agent}, action in Action::\"any\", resource == Api::\"orders-api\");\n\
         @id(\"ledger\") @description(\"d\")\n\
         permit ({agent}, action == Action::\"readLedger\", resource == Broker::\"taskpass\");\n"
    );
    for n in OWN_POLICIES..policies {
        writeln!(
            text,
            "@id(\"other-{n}\") @description(\"d\")\n\
             permit (principal == Workload::dev::\"dev:w{n}\", action == Action::\"orders:a0\", \
             resource == Api::\"orders-api\") when {{ context.task.depth == 1 }};"
        )
        .unwrap();
    }
    text
}

fn workload() -> Workload {
    Workload {
        attestor: "dev".into(),
        identity: "dev:agent".to_owned().try_into().unwrap(),
        instance: None,
        claims: BTreeMap::from([("sub".to_owned(), ClaimValue::String("agent".into()))]),
        issued_at: Timestamp::EPOCH,
        reuse: Reuse::Once,
        evidence: OneTime {
            must_be_new: false,
            key: [0; 32],
            binding: None,
            issued_at: Timestamp::EPOCH,
            expires_at: Timestamp::MAX,
        },
        proofs: Vec::new(),
        key: None,
    }
}
