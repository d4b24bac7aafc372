//! Policies on presets: each example gives a generation that survives storing and loading, and a
//! policy may depend on ids, not only on values that a caller chose.

use taskpass::domain::generation::{Generation, PolicyFile};
use taskpass::policy::{CompiledGeneration, GenerationParts, PolicyProblem, build};

use super::{config, examples};

fn generation(
    attestor: &str,
    policies: &str,
) -> Result<(Generation, CompiledGeneration, Vec<String>), Vec<PolicyProblem>> {
    let config = config(&format!("\n{attestor}")).unwrap();
    let own = config.own_audiences();
    let parts = GenerationParts {
        policies: vec![PolicyFile {
            name: "jobs.cedar".into(),
            text: policies.into(),
        }],
        limits: config.decision_limits(),
        retention: config.retention,
        attestors: config.attestors,
        resources: config.resources,
        task_types: config.task_types,
    };
    build(parts, &own).map(|(generation, compiled)| (generation, compiled, own))
}

#[test]
fn each_example_makes_a_generation_that_is_the_same_after_it_was_stored() {
    for example in examples() {
        let (made, compiled, own) = generation(example, "").unwrap_or_else(|problems| {
            panic!("{problems:?}\n{example}");
        });
        let stored = made.to_bytes().unwrap();
        let read: Generation = serde_json::from_slice(&stored).unwrap();
        assert_eq!(read.to_bytes().unwrap(), stored);
        let again = CompiledGeneration::compile(&read, &own).unwrap();
        assert_eq!(again.digest(), compiled.digest());
    }
}

#[test]
fn a_rule_may_rest_on_an_id_and_not_on_a_branch_or_an_environment_alone() {
    let github = examples()[0];
    let rule = |condition: &str| {
        format!(
            "@id(\"deploy\") @description(\"deployments\") @max_ttl(\"300\")\n\
             permit (principal is Workload::github, action == Action::\"orders:read\", resource)\n\
             when {{ {condition} }};"
        )
    };
    let id = "principal.claims.repository_id == \"74\"";
    let chosen = [
        "principal.claims.ref == \"refs/heads/main\"",
        "principal.claims has environment && principal.claims.environment == \"prod\"",
        "principal.claims has job_workflow_ref && principal.claims.job_workflow_ref == \"a@b\"",
    ];
    generation(github, &rule(id)).unwrap();
    for condition in chosen {
        let problems = generation(github, &rule(condition)).expect_err(condition);
        assert!(!problems.is_empty());
        generation(github, &rule(&format!("{id} && {condition}"))).unwrap();
    }
    // Policies cannot use names, because the presets do not pass them on.
    for name in ["sub", "repository", "actor", "run_id"] {
        let condition = format!("{id} && principal.claims.{name} == \"x\"");
        generation(github, &rule(&condition)).expect_err(name);
    }
}
