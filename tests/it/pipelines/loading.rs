//! Invalid attestors are refused with an error that names the key and the remedy, and the examples
//! in the documents load.

use taskpass::domain::trust::AttestorSpec;

use super::{config, examples, load};

fn attestor(lines: &str) -> String {
    format!("\n[[attestors]]\nkind = \"oidc\"\nname = \"ci\"\n{lines}\n")
}

#[test]
fn every_example_of_the_document_loads() {
    let blocks = examples();
    assert!(blocks.len() >= 8, "{} examples", blocks.len());
    for block in &blocks {
        if let Err(error) = load(&format!("\n{block}")) {
            panic!("{error}\n{block}");
        }
    }
    for preset in [
        "github-actions",
        "gitlab",
        "kubernetes",
        "buildkite",
        "circleci",
        "aws",
    ] {
        let shown = format!("preset = \"{preset}\"");
        assert!(
            blocks.iter().any(|block| block.contains(&shown)),
            "{preset}"
        );
    }
}

#[test]
fn what_only_the_operator_can_know_must_be_written() {
    let github = "preset = \"github-actions\"";
    let audience = "audience = \"https://broker.example\"";
    let gitlab = "preset = \"gitlab\"\nissuer = \"https://gitlab.example\"";
    let cluster = "preset = \"kubernetes\"\nissuer = \"https://oidc.cluster.example/1\"";
    let org = "3b31b6ab-1f5c-4a5d-b1f5-0f5a9e1c7d11";
    let circle = format!("preset = \"circleci\"\nissuer = \"https://oidc.circleci.com/org/{org}\"");
    let aws = "preset = \"aws\"\nissuer = \"https://abc.tokens.sts.global.api.aws\"";
    let own = "required = { repository_owner_id = \"65\" }";
    let cases = [
        (format!("{github}\n{own}"), "audience"),
        (format!("{github}\n{own}\naudience = \"\""), "audience"),
        (
            format!("{github}\n{own}\naudience = \"https://github.com/acme\""),
            "audience",
        ),
        (format!("{github}\n{audience}"), "repository_owner_id"),
        (
            format!("{github}\n{audience}\nrequired = {{ repository_owner = \"acme\" }}"),
            "repository_owner_id",
        ),
        (
            format!("{github}\n{audience}\nsingle_tenant = true"),
            "single_tenant",
        ),
        (
            format!("{github}\n{audience}\nrequired = {{ repository_owner_id = 65 }}"),
            "quotation marks",
        ),
        (
            format!("{github}\n{audience}\nrequired = {{ repository_owner_id = \"\" }}"),
            "non-empty",
        ),
        (
            format!("preset = \"gitlab\"\n{audience}\nrequired = {{ namespace_id = \"7\" }}"),
            "issuer",
        ),
        (format!("{gitlab}\n{audience}"), "namespace_id"),
        (
            format!("{gitlab}\n{audience}\nrequired = {{ project_path = \"a/b\" }}"),
            "namespace_id",
        ),
        (
            format!("preset = \"kubernetes\"\n{audience}\nsingle_tenant = true"),
            "issuer",
        ),
        (format!("{cluster}\n{audience}"), "service_account_uid"),
        (
            format!("preset = \"buildkite\"\n{audience}"),
            "organization_id",
        ),
        (
            format!(
                "preset = \"buildkite\"\n{audience}\nrequired = {{ organization_slug = \"a\" }}"
            ),
            "organization_id",
        ),
        (
            format!("preset = \"circleci\"\n{audience}\nrequired = {{ org_id = \"{org}\" }}"),
            "issuer",
        ),
        (format!("{circle}\n{audience}"), "project_id"),
        (
            format!("{circle}\naudience = \"{org}\"\nrequired = {{ org_id = \"{org}\" }}"),
            "audience",
        ),
        (
            format!(
                "{circle}\n{audience}\nrequired = {{ org_id = \"00000000-1f5c-4a5d-b1f5-0f5a9e1c7d11\" }}"
            ),
            "another organisation",
        ),
        (format!("{aws}\n{audience}"), "aws_account"),
        (
            format!("preset = \"aws\"\n{audience}\nrequired = {{ aws_account = \"1\" }}"),
            "issuer",
        ),
        (format!("preset = \"jenkins\"\n{audience}"), "preset"),
    ];
    for (lines, word) in cases {
        let error = load(&attestor(&lines)).expect_err(&lines);
        assert!(error.contains(word), "{lines}\n{error}");
    }
}

#[test]
fn an_issuer_that_cannot_be_the_providers_does_not_load() {
    let issuers = [
        (
            "github-actions",
            "https://token.actions.githubusercontent.com.evil.example",
        ),
        (
            "github-actions",
            "https://token.actions.githubusercontent.com/",
        ),
        (
            "github-actions",
            "https://token.actions.githubusercontent.com/a/b",
        ),
        (
            "github-actions",
            "https://token.actions.githubusercontent.com/acme?x=y",
        ),
        ("github-actions", "https://token.actions.a.b.ghe.com"),
        ("github-actions", "http://ghes.example/_services/token"),
        ("buildkite", "https://agent.buildkite.com.evil.example"),
        ("circleci", "https://oidc.circleci.com/org/acme"),
        ("circleci", "https://oidc.circleci.com"),
        ("aws", "https://sts.amazonaws.com"),
        ("aws", "https://a.b.tokens.sts.global.api.aws"),
        ("gitlab", "http://gitlab.example"),
    ];
    let pins = "repository_id = \"1\", namespace_id = \"1\", organization_id = \"1\", \
                project_id = \"1\", aws_account = \"1\"";
    for (preset, issuer) in issuers {
        let lines = format!(
            "preset = \"{preset}\"\nissuer = \"{issuer}\"\n\
             audience = \"https://broker.example\"\nrequired = {{ {pins} }}"
        );
        let error = load(&attestor(&lines)).expect_err(issuer);
        assert!(error.contains("issuer"), "{issuer}: {error}");
    }
    for issuer in [
        "https://token.actions.githubusercontent.com",
        "https://token.actions.githubusercontent.com/acme",
        "https://token.actions.acme.ghe.com",
        "https://ghes.example/_services/token",
    ] {
        let lines = format!(
            "preset = \"github-actions\"\nissuer = \"{issuer}\"\n\
             audience = \"https://broker.example\"\nrequired = {{ repository_owner_id = \"1\" }}"
        );
        load(&attestor(&lines)).unwrap_or_else(|error| panic!("{issuer}: {error}"));
    }
}

#[test]
fn what_is_written_beside_a_preset_may_not_make_it_wider() {
    let base = "preset = \"github-actions\"\naudience = \"https://broker.example\"\n\
                required = { repository_owner_id = \"65\" }\n";
    let wider = [
        ("algorithms = [\"RS256\", \"ES256\"]", "algorithms"),
        (
            "identity = \"owner:{repository_owner_id}\"",
            "{repository_id}",
        ),
        ("instance = \"{run_id}\"", "{run_attempt}"),
        (
            "allowed = { event_name = [\"push\", \"pull_request_target\"] }",
            "pull_request_target",
        ),
        (
            "allowed = { runner_environment = [\"anything\"] }",
            "runner_environment",
        ),
        ("allowed = { event_name = [] }", "event_name"),
        ("claims.ref = { type = \"string\" }", "claims.ref"),
        (
            "claims.ref = { type = \"string\", caller_shaped = true, immutable = true }",
            "claims.ref",
        ),
        (
            "claims.repository_id = { type = \"long\", immutable = true }",
            "claims.repository_id",
        ),
        (
            "claims.repository_id = { type = \"string\", optional = true }",
            "claims.repository_id",
        ),
        (
            "claims.repository_id = { type = \"string\", from = \"/repository\" }",
            "claims.repository_id",
        ),
        (
            "claims.sub = { type = \"string\", immutable = true }",
            "claims.sub",
        ),
        (
            "claims.repository = { type = \"string\", immutable = true }",
            "claims.repository",
        ),
        (
            "claims.whose = { type = \"string\", immutable = true, from = \"/repository_owner\" }",
            "claims.whose",
        ),
        (
            "claims.repo_property_tier = { type = \"string\", immutable = true }",
            "claims.repo_property_tier",
        ),
        (
            "claims.odd = { type = \"string\", from = \"odd\" }",
            "JSON pointer",
        ),
        ("equal = [[\"nowhere\", \"sub\"]]", "equal"),
        ("token_review = \"k8s\"", "token_review"),
        ("keys_from = \"nowhere\"", "[endpoints.nowhere]"),
        ("discovery = \"nowhere\"", "[endpoints.nowhere]"),
        ("keys_from = \"a\"\ndiscovery = \"b\"", "keys_from"),
        ("keys_from = \"https://keys.example\"", "keys_from"),
        (
            "keys_from = { url = \"https://keys.example\" }",
            "keys_from",
        ),
        ("leeway_seconds = 3600", "leeway_seconds"),
    ];
    for (line, word) in wider {
        let error = load(&attestor(&format!("{base}{line}"))).expect_err(line);
        assert!(error.contains(word), "{line}: {error}");
    }
    let gitlab = "preset = \"gitlab\"\nissuer = \"https://gitlab.com\"\n\
                  audience = \"https://broker.example\"\n";
    for (line, word) in [
        (
            "required = { project_id = \"1\", ref_protected = \"false\" }",
            "ref_protected",
        ),
        (
            "required = { project_id = \"1\" }\nallowed = { pipeline_source = [\"merge_request_event\"] }",
            "merge_request_event",
        ),
    ] {
        let error = load(&attestor(&format!("{gitlab}{line}"))).expect_err(line);
        assert!(error.contains(word), "{line}: {error}");
    }
}

#[test]
fn what_makes_it_narrower_loads_and_what_comes_out_says_everything() {
    let text = attestor(
        "preset = \"github-actions\"\naudience = \"https://broker.example\"\n\
         required = { repository_owner_id = \"65\", job_workflow_sha = \"abc\" }\n\
         allowed = { event_name = [\"schedule\"] }\n\
         identity = \"owner:{repository_owner_id}:repo:{repository_id}\"\n\
         reuse = \"per_task\"\nmax_age_seconds = 120\n\
         claims.environment = { type = \"string\", caller_shaped = true }\n\
         claims.head = { type = \"string\", caller_shaped = true, optional = true, from = \"/head_ref\" }",
    );
    load(&text).unwrap();
    let config = config(&text).unwrap();
    let [AttestorSpec::Oidc(spec)] = config.attestors.as_slice() else {
        panic!("{:?}", config.attestors);
    };
    assert_eq!(spec.issuer, "https://token.actions.githubusercontent.com");
    assert!(!spec.claims["environment"].optional);
    assert!(spec.claims["repository_id"].immutable);
    assert_eq!(spec.allowed["event_name"].len(), 1);
    assert!(spec.allowed["runner_environment"].contains("github-hosted"));
    // A generation holds the expanded form; reading that form without the preset gives the same
    // result.
    let written = serde_json::to_value(&config.attestors).unwrap();
    assert!(written[0].get("preset").is_none());
    let read: Vec<AttestorSpec> = serde_json::from_value(written).unwrap();
    assert_eq!(read, config.attestors);
}

#[test]
fn a_refusal_says_the_line_the_key_and_the_remedy() {
    let lines = "preset = \"github-actions\"\naudience = \"https://broker.example\"\n\
                 required = { repository_owner_id = \"65\", repository_id = 7 }";
    let error = load(&attestor(lines)).unwrap_err();
    let line = super::frame().lines().count() + 7;
    assert!(error.contains(&format!("taskpass.toml:{line}")), "{error}");
    assert!(
        error.contains("attestors.0.required.repository_id"),
        "{error}"
    );
    assert!(error.contains("quotation marks"), "{error}");
}

#[test]
fn a_trust_domain_without_its_exact_name_audience_and_bundle_does_not_load() {
    let good = "\n[[attestors]]\nkind = \"spiffe\"\nname = \"mesh\"\n\
                trust_domain = \"prod.acme.example\"\naudience = \"https://broker.example\"\n\
                bundle = \"spire\"\n[endpoints.spire]\n\
                url = \"https://spire.acme.example/bundle\"\nuse = [\"keys\"]\n";
    load(good).unwrap();
    for (from, to, word) in [
        (
            "prod.acme.example",
            "spiffe://prod.acme.example",
            "trust_domain",
        ),
        ("prod.acme.example", "Prod.acme.example", "trust_domain"),
        ("prod.acme.example", "", "trust_domain"),
        ("https://broker.example", "", "audience"),
        ("https://broker.example", "sts.amazonaws.com", "audience"),
        ("https://spire", "http://spire", "endpoints.spire.url"),
        ("use = [\"keys\"]", "use = [\"sts\"]", "bundle"),
        (
            "bundle = \"spire\"",
            "bundle = \"mesh\"",
            "[endpoints.mesh]",
        ),
        (
            "bundle = \"spire\"",
            "bundle = { url = \"https://spire.acme.example/bundle\" }",
            "bundle",
        ),
        ("bundle = ", "bundel = ", "bundel"),
    ] {
        let error = load(&good.replace(from, to)).expect_err(to);
        assert!(error.contains(word), "{to}: {error}");
    }
    let (attestor, _) = good.split_once("[endpoints").unwrap();
    let twice = format!("{attestor}{}", good.replace("mesh", "mesh2"));
    assert!(load(&twice).unwrap_err().contains("audience"));
}
