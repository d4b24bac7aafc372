//! Runs the contents of `examples/` against a real broker with the example's configuration and
//! policies. Other servers stand in for the platforms.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use wiremock::matchers::{header, header_exists, method, query_param};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::configuration::Configuration;
use crate::support::fleet::{Fleet, Replica};
use crate::support::http::{Client, send};
use crate::support::issuer::Issuer;
use crate::support::keys::Algorithm;
use crate::support::moto::{Moto, python_program};
use crate::support::process::{Ended, Launch};
use crate::support::rig::aws_endpoint;

/// The audience in all examples.
const AUDIENCE: &str = "https://broker.example";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

/// The documents of a YAML file, as JSON.
fn yaml(name: &str) -> Vec<Value> {
    let program = "import json, sys; from ruamel.yaml import YAML\n\
                   print(json.dumps(list(YAML(typ='safe').load_all(open(sys.argv[1])))))";
    let arguments = ["-c".into(), program.into(), path(name).into_os_string()];
    let read = Launch::program(python_program("python"), arguments).run();
    assert_eq!(read.code(), Some(0), "{}", read.stderr);
    serde_json::from_str(&read.stdout).unwrap()
}

/// A broker with the example's configuration, except that this test's issuer supplies the issuer's
/// keys, and AWS is at `aws`.
async fn broker(example: &str, aws: &str) -> (Fleet, Replica) {
    let config = text(&format!("{example}/broker.toml"));
    let policy = text(&format!("{example}/policy.cedar"));
    let more = |issuer: &Issuer| {
        // GitHub and GitLab sign with RS256, and their presets accept only that.
        issuer.add_key(Algorithm::Rs256);
        let mut config: toml::Table = config.parse().unwrap();
        config["attestors"][0]
            .as_table_mut()
            .unwrap()
            .insert("keys_from".into(), "stand-in".into());
        // The test broker already has the sample API.
        let resources = config["resources"].as_array_mut().unwrap();
        resources.retain(|resource| resource["name"].as_str() != Some("orders-api"));
        for resource in resources.iter_mut() {
            let role = resource["aws"].as_table_mut().unwrap();
            role.insert("endpoint".into(), "aws".into());
        }
        if resources.is_empty() {
            config.remove("resources");
        }
        let keys = issuer.base();
        let keys = format!("[endpoints.stand-in]\nurl = \"{keys}/jwks\"\nuse = [\"keys\"]\n");
        let aws = (!aws.is_empty()).then(|| aws_endpoint(aws));
        format!("{config}\n{keys}{}", aws.unwrap_or_default())
    };
    Fleet::sqlite()
        .attestors(more)
        .more_policies(&policy)
        .start()
        .await
}

/// The newest session, with its workload and the reason of its end.
async fn newest(fleet: &Fleet, replica: &Replica) -> Value {
    let listed = replica.client.get_as(&fleet.admin, "/v1/sessions").await;
    listed.expect(200)["sessions"][0].clone()
}

/// A launch whose `PATH` contains `taskpass` and `aws`, as the example expects.
fn job(script: &str, replica: &Replica) -> Launch {
    let binary = Path::new(env!("CARGO_BIN_EXE_taskpass"));
    let folders = [binary, &python_program("python")]
        .map(|program| program.parent().unwrap().display().to_string());
    let search = format!("{}:{}", folders.join(":"), std::env::var("PATH").unwrap());
    Launch::program("bash", ["-euo", "pipefail", "-c", script])
        .env("PATH", search)
        .env("TASKPASS_URL", format!("http://{}", replica.address))
}

fn ran(ended: &Ended, says: &str) {
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains(says), "{}", ended.stdout);
}

/// Users copy the examples into one directory of policies, so ids must not collide.
#[test]
fn no_two_examples_share_the_id_of_a_policy() {
    let mut seen = std::collections::BTreeMap::new();
    for example in ["github", "gitlab", "kubernetes", "python-agent"] {
        let policies = text(&format!("{example}/policy.cedar"));
        for id in policies.lines().filter(|line| line.starts_with("@id(")) {
            let other = seen.insert(id.to_owned(), example);
            assert_eq!(other, None, "{id} of {example}");
        }
    }
    assert!(seen.len() >= 8, "{seen:?}");
}

#[test]
fn configurations_and_policies_load_and_files_for_pipelines_are_valid() {
    for example in ["github", "gitlab", "kubernetes", "python-agent"] {
        let config = Configuration {
            issuer: "https://broker.example",
            server: "listen = \"127.0.0.1:7070\"\n[server.tls]\nterminated_upstream = true",
            origin: "broker.example/log",
            tables: &text(&format!("{example}/broker.toml")),
            ..Configuration::default()
        };
        let checked = Launch::taskpass(["policy", "check", "policies"])
            .config(config.text())
            .file(
                "policies/example.cedar",
                text(&format!("{example}/policy.cedar")),
            )
            .run();
        assert_eq!(checked.code(), Some(0), "{example}: {}", checked.stderr);
    }
    for (schema, file) in [
        ("github-workflows", "github/.github/workflows/release.yml"),
        ("github-actions", "github/run-with-taskpass/action.yml"),
        ("gitlab-ci", "gitlab/.gitlab-ci.yml"),
    ] {
        let schema = format!("vendor.{schema}");
        let file = path(file).into_os_string();
        let arguments = ["--builtin-schema".into(), schema.into(), file];
        let checked = Launch::program(python_program("check-jsonschema"), arguments).run();
        assert_eq!(
            checked.code(),
            Some(0),
            "{}{}",
            checked.stdout,
            checked.stderr
        );
    }
}

/// The script and the variables of the step that runs the action, as GitHub would pass them: each
/// input in the variable that the action gives it.
fn action(inputs: &Value) -> (String, Vec<(String, String)>) {
    let action = yaml("github/run-with-taskpass/action.yml").remove(0);
    let step = &action["runs"]["steps"][0];
    let script = step["run"].as_str().unwrap().to_owned();
    assert!(
        !script.contains("${{"),
        "an input inside the script would allow script injection"
    );
    let variables = step["env"].as_object().unwrap().iter();
    let variables = variables.map(|(name, value)| {
        let value = value.as_str().unwrap();
        let input = value.strip_prefix("${{ inputs.").unwrap();
        let input = input.strip_suffix(" }}").unwrap();
        let declared = &action["inputs"][input];
        let given = inputs.get(input).unwrap_or(&declared["default"]);
        (name.clone(), given.as_str().expect(input).to_owned())
    });
    (script, variables.collect())
}

fn github_claims() -> Value {
    json!({
        "iss": "https://token.actions.githubusercontent.com",
        "sub": "repo:octo-org/octo-repo:ref:refs/heads/main", "aud": AUDIENCE,
        "ref": "refs/heads/main", "sha": "0a1b", "repository": "octo-org/octo-repo",
        "repository_owner": "octo-org", "actor_id": "12", "repository_visibility": "private",
        "repository_id": "74", "repository_owner_id": "65", "run_id": "1001",
        "run_number": "10", "run_attempt": "1", "check_run_id": "5005",
        "runner_environment": "github-hosted", "actor": "octocat", "workflow": "release",
        "head_ref": "", "base_ref": "", "event_name": "push", "ref_type": "branch",
        "ref_protected": "true",
        "job_workflow_ref": "octo-org/octo-repo/.github/workflows/release.yml@refs/heads/main",
        "job_workflow_sha": "1111111111111111111111111111111111111111",
    })
}

/// Runs `make demo-pipeline`'s demonstration.
#[expect(clippy::print_stdout, reason = "the demonstration prints its steps")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demo_a_pipelines_token_becomes_an_s3_listing_and_then_nothing() {
    let moto = Moto::start();
    let (fleet, replica) = broker("github", &moto.url()).await;
    println!(
        "\n1. A broker that accepts GitHub's tokens of one owner, and a server in place of AWS."
    );

    let token = fleet.issuer.token(github_claims());
    let github = MockServer::start().await;
    Mock::given(method("GET"))
        .and(query_param("audience", AUDIENCE))
        .and(header("authorization", "bearer job-secret"))
        .respond_with(ResponseTemplate::new(200).set_body_json(json!({"value": token})))
        .mount(&github)
        .await;

    // Run the workflow's own step, adapted to this machine.
    let workflow = yaml("github/.github/workflows/release.yml").remove(0);
    let steps = workflow["jobs"]["list"]["steps"].as_array().unwrap();
    // Third-party actions must be pinned by commit, because their tags can be moved.
    let used = steps.iter().filter_map(|step| step["uses"].as_str());
    for action in used.filter(|action| !action.starts_with("./")) {
        let commit = action.rsplit_once('@').map(|(_, commit)| commit).unwrap();
        let pinned = commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
        assert!(pinned, "{action}");
    }
    let step = steps.iter().find(|step| step["with"]["run"].is_string());
    let mut inputs = step.unwrap()["with"].clone();
    assert_eq!(inputs["url"], AUDIENCE);
    inputs["url"] = json!(format!("http://{}", replica.address));
    // Run the step's own command, after commands that print the identity and create a bucket to
    // list.
    let command = inputs["run"].as_str().unwrap();
    assert_eq!(command, "aws s3 ls");
    // `exec` removes variables that name an endpoint from the command's environment.
    let aws = format!("aws --endpoint-url {}", moto.url());
    let command = command.replacen("aws", &aws, 1);
    inputs["run"] = json!(format!(
        "echo session $TASKPASS_SESSION\n\
         {aws} sts get-caller-identity --query Arn --output text\n\
         {aws} s3 mb s3://acme-releases\n{command}"
    ));
    let run = |inputs: &Value| {
        let (script, variables) = action(inputs);
        let mut launch = job(&script, &replica)
            // The token's audience is the broker's public name, which differs from the address it
            // listens on.
            .env("TASKPASS_AUDIENCE", AUDIENCE)
            .env(
                "ACTIONS_ID_TOKEN_REQUEST_URL",
                format!("{}/t?v=2", github.uri()),
            )
            .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "job-secret");
        for (name, value) in variables {
            launch = launch.env(&name, value);
        }
        launch.run()
    };
    let listed = run(&inputs);
    ran(&listed, " acme-releases\n");
    let session = newest(&fleet, &replica).await;
    let id = session["id"].as_str().unwrap();
    assert!(listed.stdout.contains(&format!("session {id}")));
    let role = format!("assumed-role/releases/tp-{}", id.replace('-', ""));
    assert!(listed.stdout.contains(&role), "{}", listed.stdout);
    println!("2. The action of examples/github lists S3 with a session of its own:");
    print!("{}", listed.stdout);

    assert_eq!(session["workload"], "github:repo:74");
    assert_eq!(session["end_reason"], "completed");
    assert_ne!(session["state"], "active");
    println!(
        "3. The command has ended, and so has its task: session {id} is {}, {}.",
        session["state"], session["end_reason"]
    );

    // GitHub's stand-in returns the same token again.
    let again = run(&inputs);
    assert_eq!((again.code(), again.stdout.as_str()), (Some(1), ""));
    assert!(again.stderr.contains("attestation"), "{}", again.stderr);
    println!("4. The same token a second time: refused.");

    // Policy does not permit a token of another event.
    let mut claims = github_claims();
    claims["event_name"] = json!("schedule");
    github.reset().await;
    let token = fleet.issuer.token(claims);
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(200).set_body_json(json!({"value": token})))
        .mount(&github)
        .await;
    let denied = run(&inputs);
    assert_eq!((denied.code(), denied.stdout.as_str()), (Some(1), ""));
    assert!(denied.stderr.contains("not-permitted"), "{}", denied.stderr);
    println!("5. A run that no push started: denied by policy.\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gitlab_job_runs_its_script_with_the_token_in_its_variable() {
    let (fleet, replica) = broker("gitlab", "").await;
    let pipeline = yaml("gitlab/.gitlab-ci.yml").remove(0);
    let job_definition = &pipeline["nightly-report"];
    assert_eq!(
        job_definition["id_tokens"]["TASKPASS_TOKEN"]["aud"],
        AUDIENCE
    );
    let script = job_definition["script"][0].as_str().unwrap();
    let claims = |project: &str| {
        json!({
            "iss": "https://gitlab.com",
            "sub": "project_path:my-group/my-project:ref_type:branch:ref:main", "aud": AUDIENCE,
            "namespace_id": "72", "namespace_path": "my-group", "project_id": project,
            "project_path": "my-group/my-project", "user_id": "1", "user_login": "sample",
            "pipeline_id": "574", "pipeline_source": "schedule", "job_id": "302", "ref": "main",
            "ref_type": "branch", "ref_path": "refs/heads/main", "ref_protected": "true",
            "runner_id": 1, "runner_environment": "self-hosted", "sha": "714a",
            "job_project_id": project, "job_project_path": "my-group/my-project",
            "job_namespace_id": "72", "project_visibility": "private",
        })
    };
    let run = |project: &str| {
        job(&format!("chmod +x report.sh; {script}"), &replica)
            .file("report.sh", REPORT)
            .env("TASKPASS_TOKEN", fleet.issuer.token(claims(project)))
            .run()
    };
    ran(&run("20"), "a credential and no attestation");
    let session = newest(&fleet, &replica).await;
    assert_eq!(session["workload"], "gitlab:project:20");
    assert_eq!(session["end_reason"], "completed");
    let other = run("21");
    assert_eq!((other.code(), other.stdout.as_str()), (Some(1), ""));
}

/// Prints whether it received a credential and no attestation.
const REPORT: &str = "#!/bin/sh\n\
    test -n \"$TASKPASS_ACCESS_TOKEN\" -a -z \"${TASKPASS_TOKEN:-}${TASKPASS_TOKEN_FILE:-}\" && \
    echo a credential and no attestation\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kubernetes_job_runs_its_command_with_the_projected_token_and_holds_no_secret() {
    let (fleet, replica) = broker("kubernetes", "").await;
    let manifest = text("kubernetes/job.yaml");
    for word in ["kind: Secret", "secretKeyRef", "secretName", "hostPath"] {
        assert!(!manifest.contains(word), "{word}");
    }
    let documents = yaml("kubernetes/job.yaml");
    let pod = &documents[1]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let security = &container["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
    // The token's path, its volume and its audience must match.
    let token = &pod["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], AUDIENCE);
    let mount = &container["volumeMounts"][0];
    assert_eq!(mount["name"], pod["volumes"][0]["name"]);
    let place = [&mount["mountPath"], &token["path"]].map(|part| part.as_str().unwrap());
    let environment = container["env"].as_array().unwrap();
    let named = environment
        .iter()
        .find(|variable| variable["name"] == "TASKPASS_TOKEN_FILE");
    assert_eq!(named.unwrap()["value"], place.join("/"));

    let words = container["command"].as_array().unwrap();
    let words: Vec<&str> = words.iter().map(|word| word.as_str().unwrap()).collect();
    let script = format!("chmod +x report.sh; {}", words.join(" "));
    let claims = json!({
        "iss": "https://oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLE",
        "sub": "system:serviceaccount:jobs:report", "aud": [AUDIENCE],
        "kubernetes.io": {
            "namespace": "jobs",
            "node": {"name": "n1", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1"},
            "pod": {"name": "report-x7", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3"},
            "serviceaccount": {"name": "report", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
        },
    });
    let ended = job(&script, &replica)
        .file("report.sh", REPORT)
        .file("token", fleet.issuer.token(claims))
        .env("TASKPASS_TOKEN_FILE", "token")
        .run();
    ran(&ended, "a credential and no attestation");
    let session = newest(&fleet, &replica).await;
    assert_eq!(
        session["workload"],
        "cluster:sa:14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"
    );
    assert_eq!(session["end_reason"], "completed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_agent_does_its_task_is_denied_and_is_ended() {
    let mut broker =
        Launch::taskpass(["dev", "--listen", "127.0.0.1:0", "--json", "--no-story"]).spawn();
    broker.wait_for_output("\n");
    let told: Value = serde_json::from_str(broker.stdout().lines().next().unwrap()).unwrap();
    let url = told["url"].as_str().unwrap().to_owned();
    let client = Client::new(&url);
    let admin = told["admin_token"].as_str().unwrap();
    let attest = format!(
        "{} -c \"import json, urllib.request as u; print(json.load(u.urlopen(u.Request('{}/token', \
         b'{{\\\"sub\\\": \\\"agent:reports\\\"}}', {{'Content-Type': 'application/json'}})))['token'])\"",
        python_program("python").display(),
        told["issuer"].as_str().unwrap()
    );
    let orders = MockServer::start().await;
    let page = |next: Option<String>| {
        let body = json!({"orders": [{"amount": 20}, {"amount": 1}], "next": next});
        ResponseTemplate::new(200).set_body_json(body)
    };
    Mock::given(header_exists("authorization"))
        .and(query_param("page", "2"))
        .respond_with(page(None))
        .mount(&orders)
        .await;
    Mock::given(header_exists("authorization"))
        .and(query_param("page", "1"))
        .respond_with(page(Some(format!("{}/?page=2", orders.uri()))))
        .mount(&orders)
        .await;
    // Work that never ends, because each page names a next one.
    let endless = page(Some(format!("{}/?page=again", orders.uri())));
    Mock::given(query_param("page", "again"))
        .respond_with(endless.set_delay(Duration::from_millis(50)))
        .mount(&orders)
        .await;
    let agent = |first: &str, actions: &[&str]| {
        let program = path("python-agent/agent.py").into_os_string();
        let actions = actions.iter().map(|action| (*action).into());
        Launch::program(
            python_program("python"),
            [program].into_iter().chain(actions),
        )
        .env("TASKPASS_URL", &url)
        .env("TASKPASS_ATTEST", &attest)
        .env("ORDERS_URL", format!("{}/?page={first}", orders.uri()))
        .env("HEARTBEAT", "3")
    };
    let tasks = async || {
        let listed = client.get_as(admin, "/v1/tasks").await.expect(200);
        listed["tasks"].as_array().unwrap().clone()
    };

    ran(&agent("1", &[]).run(), "orders: 42");
    assert_eq!(tasks().await[0]["state"], "completed");
    let asked = orders.received_requests().await.unwrap();
    let token = asked[0].headers["authorization"].to_str().unwrap();
    let token = token.strip_prefix("Bearer ").unwrap();
    let introspected = client.request(reqwest::Method::POST, "/oauth2/introspect");
    let introspected = introspected.bearer_auth(admin).form(&[("token", token)]);
    assert_eq!(send(introspected).await.expect(200)["active"], false);

    let denied = agent("1", &["orders:read", "orders:write"]).run();
    assert_eq!((denied.code(), denied.stdout.as_str()), (Some(1), ""));
    assert!(denied.stderr.contains("orders:read"), "{}", denied.stderr);
    assert_eq!(tasks().await[0]["state"], "aborted");

    let mut working = agent("again", &[]).spawn();
    let before = asked.len();
    crate::support::until(
        "the agent has started its work",
        crate::support::SOON,
        async || orders.received_requests().await.unwrap().len() > before,
    )
    .await;
    let selector = json!({"task": tasks().await[0]["id"]});
    let body = json!({"selector": selector, "reason": "test"});
    let revoked = client.post_json(admin, "/v1/revocations", &body).await;
    assert!(revoked.status < 300, "{}", revoked.text());
    let status = working.wait(crate::support::SOON);
    assert_eq!(status.code(), Some(1), "{}", working.stderr());
    assert!(working.stderr().contains("refused: "));

    broker.kill();
    let nobody = agent("1", &[]).run();
    assert_eq!((nobody.code(), nobody.stdout.as_str()), (Some(3), ""));
}
