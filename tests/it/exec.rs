//! `taskpass exec`: a command has a credential for as long as it runs, and its task ends with it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use taskpass::clock::Timestamp;
use wiremock::matchers::{header, method, query_param};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::fleet::{Fleet, ORDERS_ARGUMENTS, Replica};
use crate::support::issuer::{AUDIENCE, unix_seconds};
use crate::support::keys::{base64url, peek};
use crate::support::moto::{Moto, python_program};
use crate::support::process::{Launch, Process, Signal};
use crate::support::rig::{BUCKET_ARGUMENTS, BUCKET_POLICY, aws_bucket};
use crate::support::sts::Sts;
use crate::support::{SOON, until};

const NIGHTLY_POLICY: &str = r#"
@id("nightly-open") @description("opens")
permit (principal == Workload::workload::"workload:nightly", action == Action::"openTask", resource);
@id("nightly-read") @description("reads") @max_ttl("600")
permit (principal == Workload::workload::"workload:nightly", action == Action::"orders:read", resource);
"#;

async fn start() -> (Fleet, Replica) {
    start_with("http://127.0.0.1:9", &json!({})).await
}

/// A broker whose AWS endpoint is `aws`, with a role, and a workload with the key `jwk`.
async fn start_with(aws: &str, jwk: &Value) -> (Fleet, Replica) {
    let keys = match jwk.as_object() {
        Some(jwk) if !jwk.is_empty() => format!(
            "keys = [{{ workload = \"nightly\", jwk = {{ kty = \"EC\", crv = \"P-256\", x = {}, y = {} }} }}]",
            jwk["x"], jwk["y"]
        ),
        _ => String::new(),
    };
    let more = format!(
        r#"
[[attestors]]
kind = "key"
name = "workload"
{keys}
{bucket}
"#,
        bucket = aws_bucket(aws),
    );
    let policies = format!("{NIGHTLY_POLICY}{BUCKET_POLICY}");
    Fleet::sqlite()
        .tables(&more)
        .more_policies(&policies)
        .start()
        .await
}

/// `taskpass exec` with an attestation in a file, running `script`.
fn exec(fleet: &Fleet, replica: &Replica, options: &[&str], script: &str) -> Launch {
    exec_as(fleet, replica, &["--token-file", "token"], options, script)
}

fn exec_as(
    fleet: &Fleet,
    replica: &Replica,
    who: &[&str],
    options: &[&str],
    script: &str,
) -> Launch {
    let url = format!("http://{}", replica.address);
    let rights: &[&str] = if options.contains(&"--resource") {
        &[]
    } else {
        &ORDERS_ARGUMENTS
    };
    let parts = [
        &["exec", "--url", &url][..],
        who,
        rights,
        options,
        &["--", "sh", "-c", script],
    ];
    Launch::taskpass(parts.concat()).file("token", fleet.token())
}

/// All sessions, newest first.
async fn sessions(fleet: &Fleet, replica: &Replica) -> Vec<Value> {
    let listed = replica
        .client
        .get_as(&fleet.admin, "/v1/sessions")
        .await
        .expect(200);
    listed["sessions"].as_array().unwrap().clone()
}

async fn newest(fleet: &Fleet, replica: &Replica) -> (String, String) {
    let newest = sessions(fleet, replica).await.remove(0);
    let text = |name: &str| newest[name].as_str().unwrap_or_default().to_owned();
    (text("state"), text("end_reason"))
}

fn ended(reason: &str) -> (String, String) {
    ("ended".to_owned(), reason.to_owned())
}

fn spawned(launch: Launch, says: &str) -> Process {
    let mut process = launch.spawn();
    process.wait_for_output(says);
    process
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_has_a_credential_while_it_runs_and_its_exit_code_is_ours() {
    let (fleet, replica) = start().await;
    let script = "echo token=$TASKPASS_ACCESS_TOKEN; echo other=$TASKPASS_TOKEN; read line";
    // Standard input is closed, so `read` returns and the script ends at once.
    let ran = exec(&fleet, &replica, &[], script)
        .env("TASKPASS_TOKEN", "hidden")
        .run();
    let token = ran
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("token="))
        .unwrap();
    let (_, claims) = peek(token);
    assert_eq!(claims["scope"], "orders:read");
    assert!(
        ran.stdout.contains("other=\n"),
        "the command gets no attestation: {}",
        ran.stdout
    );
    for (script, code, reason) in [("true", 0, "completed"), ("exit 7", 7, "revoked")] {
        let ran = exec(&fleet, &replica, &[], script).run();
        assert_eq!(ran.code(), Some(code), "{}", ran.stderr);
        let (state, why) = newest(&fleet, &replica).await;
        assert_eq!(state, "ended");
        assert!(why == reason || code == 7, "{why}");
    }
    let named = exec_as(
        &fleet,
        &replica,
        &["--token-env", "JOB_TOKEN"],
        &[],
        "echo [$JOB_TOKEN]",
    );
    let named = named.env("JOB_TOKEN", fleet.token()).run();
    assert_eq!(
        (named.code(), named.stdout.as_str()),
        (Some(0), "[]\n"),
        "{}",
        named.stderr
    );
    let missing = replica
        .exec(&["--token-file", "token"], &["/nowhere/at/all"])
        .file("token", fleet.token())
        .run();
    assert_eq!(missing.code(), Some(127));
    assert!(
        missing.stderr.contains("/nowhere/at/all"),
        "{}",
        missing.stderr
    );
    assert_eq!(
        newest(&fleet, &replica).await.0,
        "ended",
        "a command that did not start leaves no active session"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policy_refuses_is_not_run() {
    let (fleet, replica) = start().await;
    let refused = exec(&fleet, &replica, &["--ttl", "700"], "echo ran").run();
    assert_eq!((refused.code(), refused.stdout.as_str()), (Some(1), ""));
    assert!(
        refused.stderr.contains("ttl-too-long"),
        "{}",
        refused.stderr
    );
    let nobody = exec_as(&fleet, &replica, &[], &[], "echo ran").run();
    assert_eq!((nobody.code(), nobody.stdout.as_str()), (Some(2), ""));
    assert!(nobody.stderr.contains("--token-file"), "{}", nobody.stderr);
    let far = exec(
        &fleet,
        &replica,
        &["--url", "http://127.0.0.1:9", "--retry-seconds", "1"],
        "echo ran",
    );
    let far = far.run();
    assert_ne!(far.code(), Some(0));
    assert_eq!(far.stdout, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_its_owners_alone_and_gone_at_the_end() {
    let (fleet, replica) = start().await;
    let script = "echo file=$TASKPASS_ACCESS_TOKEN_FILE; stat -c mode=%a \"$TASKPASS_ACCESS_TOKEN_FILE\"; \
                  cat \"$TASKPASS_ACCESS_TOKEN_FILE\"";
    let ran = exec(&fleet, &replica, &["--as", "file"], script).run();
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let told = |name: &str| {
        ran.stdout
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
    };
    assert_eq!(told("mode="), "600");
    assert!(!Path::new(told("file=")).exists());
    assert_eq!(
        peek(ran.stdout.lines().last().unwrap()).1["scope"],
        "orders:read"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_reaches_the_command_and_its_task_ends() {
    let (fleet, replica) = start().await;
    let script = "trap 'echo told; exit 9' TERM; echo up; while :; do sleep 0.05; done";
    let mut process = spawned(exec(&fleet, &replica, &[], script), "up");
    assert_eq!(newest(&fleet, &replica).await.0, "active");
    process.signal(Signal::Term);
    let status = process.wait(SOON);
    assert_eq!(status.code(), Some(9));
    assert!(process.stdout().contains("told"));
    assert_eq!(newest(&fleet, &replica).await.0, "ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_exec_loses_its_session_within_its_heartbeat() {
    let (fleet, replica) = start().await;
    let options = ["--heartbeat", "3"];
    let mut process = spawned(exec(&fleet, &replica, &options, "echo up; sleep 30"), "up");
    // The session lives longer than its heartbeat timeout, because `exec` sends heartbeats.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(newest(&fleet, &replica).await.0, "active");
    process.kill();
    let killed = unix_seconds();
    until("the session has ended", SOON, async || {
        newest(&fleet, &replica).await.0 == "ended"
    })
    .await;
    assert_eq!(newest(&fleet, &replica).await, ended("expired"));
    let over = sessions(&fleet, &replica).await.remove(0)["ended_at"].clone();
    let over: Timestamp = serde_json::from_value(over).unwrap();
    let late = over.seconds() - killed;
    assert!(late <= 4, "{late} s after it was killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_task_was_ended_is_told_to_stop() {
    let (fleet, replica) = start().await;
    let script = "trap 'echo told; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let mut process = spawned(exec(&fleet, &replica, &["--heartbeat", "3"], script), "up");
    let task = sessions(&fleet, &replica).await[0]["task_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let revocation = json!({"selector": {"task": task}, "reason": "test"});
    let revoked = replica
        .client
        .post_json(&fleet.admin, "/v1/revocations", &revocation)
        .await;
    assert!(revoked.status < 300, "{}", revoked.text());
    let status = process.wait(SOON);
    assert_eq!(status.code(), Some(1), "{}", process.stderr());
    assert!(process.stdout().contains("told"));
    assert!(
        process.stderr().contains("the task has ended"),
        "{}",
        process.stderr()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn github_is_asked_for_a_token_for_the_broker_alone() {
    let (fleet, replica) = start().await;
    let github = MockServer::start().await;
    Mock::given(method("GET"))
        .and(query_param("audience", AUDIENCE))
        .and(query_param("api-version", "2.0"))
        .and(header("authorization", "bearer job-secret"))
        .respond_with(ResponseTemplate::new(200).set_body_json(json!({"value": fleet.token()})))
        .mount(&github)
        .await;
    let url = format!("{}/token?api-version=2.0", github.uri());
    let job = |secret: &str| {
        let script = "echo ran; env | grep ACTIONS_ID_TOKEN || true";
        exec_as(&fleet, &replica, &["--audience", AUDIENCE], &[], script)
            .env("ACTIONS_ID_TOKEN_REQUEST_URL", url.clone())
            .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", secret)
            .run()
    };
    let ran = job("job-secret");
    assert_eq!(
        (ran.code(), ran.stdout.as_str()),
        (Some(0), "ran\n"),
        "the command cannot ask for tokens itself: {}",
        ran.stderr
    );
    let refused = job("wrong");
    assert_eq!((refused.code(), refused.stdout.as_str()), (Some(3), ""));
    assert!(!refused.stderr.contains("wrong"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jobs_token_is_sent_to_no_proxy_and_over_http_to_this_machine_alone() {
    let (fleet, replica) = start().await;
    let (github, proxy) = (MockServer::start().await, MockServer::start().await);
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(200).set_body_json(json!({"value": fleet.token()})))
        .mount(&github)
        .await;
    let job = |url: String| {
        exec_as(&fleet, &replica, &["--audience", AUDIENCE], &[], "echo ran")
            .env("ACTIONS_ID_TOKEN_REQUEST_URL", url)
            .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "job-secret")
            .env("HTTP_PROXY", proxy.uri())
            .env("http_proxy", proxy.uri())
            .run()
    };
    let ran = job(format!("{}/token?v=2", github.uri()));
    assert_eq!(
        (ran.code(), ran.stdout.as_str()),
        (Some(0), "ran\n"),
        "{}",
        ran.stderr
    );
    for url in ["http://tokens.example/token", "ftp://127.0.0.1/token"] {
        let refused = job(url.to_owned());
        assert_eq!(refused.code(), Some(2), "{url}: {}", refused.stderr);
    }
    assert!(proxy.received_requests().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_key_signs_for_itself() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let point = key.public_key_raw();
    let jwk = json!({
        "kty": "EC", "crv": "P-256",
        "x": base64url(&point[1..33]), "y": base64url(&point[33..65]),
    });
    let (fleet, replica) = start_with("http://127.0.0.1:9", &jwk).await;
    let who = [
        "--key-file",
        "key.pem",
        "--workload",
        "nightly",
        "--audience",
        "http://127.0.0.1:7070",
    ];
    let run = |pem: String| {
        exec_as(&fleet, &replica, &who, &[], "echo ran")
            .file("key.pem", pem)
            .run()
    };
    let ran = run(key.serialize_pem());
    assert_eq!(
        (ran.code(), ran.stdout.as_str()),
        (Some(0), "ran\n"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        sessions(&fleet, &replica).await[0]["workload"],
        "workload:nightly"
    );
    let stranger = run(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .unwrap()
        .serialize_pem());
    assert_eq!((stranger.code(), stranger.stdout.as_str()), (Some(1), ""));
    let nonsense = run("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".into());
    assert_eq!(nonsense.code(), Some(2), "{}", nonsense.stderr);
}

/// Runs `script` with a session of the role, by each way of delivery, and checks that it used that
/// session.
async fn listing_by_every_delivery(moto: &Moto, script: &str, files: &[(&str, &str)]) {
    let (fleet, replica) = start_with(&moto.url(), &json!({})).await;
    for how in ["env", "file", "endpoint"] {
        let options = [&BUCKET_ARGUMENTS[..], &["--as", how]].concat();
        let mut launch = exec(&fleet, &replica, &options, script)
            .env("AWS_ACCESS_KEY_ID", "AKIAOTHER")
            .env("AWS_PROFILE", "nowhere");
        for (name, text) in files {
            launch = launch.file(*name, *text);
        }
        let ran = launch.run();
        assert_eq!(ran.code(), Some(0), "{how}: {}", ran.stderr);
        let session = sessions(&fleet, &replica).await.remove(0);
        let id = session["id"].as_str().unwrap();
        assert!(
            ran.stdout.contains(&format!("made-{id}")),
            "{how}: {}",
            ran.stdout
        );
        let name = format!("assumed-role/reports/tp-{}", id.replace('-', ""));
        assert!(
            ran.stdout.contains(&name),
            "{how}: the command used the session: {}",
            ran.stdout
        );
        assert_ne!(session["state"], "active", "{how}");
        assert_eq!(session["end_reason"], "completed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipelines_token_becomes_an_s3_listing_by_every_delivery() {
    let moto = Moto::start();
    let python: PathBuf = python_program("python");
    let program = format!(
        "import boto3, os\n\
         aws = dict(endpoint_url='{0}', region_name='us-east-1')\n\
         s3 = boto3.client('s3', **aws)\n\
         s3.create_bucket(Bucket='made-' + os.environ['TASKPASS_SESSION'])\n\
         print([b['Name'] for b in s3.list_buckets()['Buckets']])\n\
         print(boto3.client('sts', **aws).get_caller_identity()['Arn'])\n",
        moto.url()
    );
    let script = format!("{} list.py", python.display());
    listing_by_every_delivery(&moto, &script, &[("list.py", &program)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cli_of_aws_lists_by_every_delivery() {
    let moto = Moto::start();
    let aws = format!(
        "{} --endpoint-url {}",
        python_program("aws").display(),
        moto.url()
    );
    let script = format!(
        "set -e; {aws} sts get-caller-identity & \
         {aws} s3 mb \"s3://made-$TASKPASS_SESSION\" >made; {aws} s3 ls; wait $!"
    );
    listing_by_every_delivery(&moto, &script, &[]).await;
}

/// Variables that could lead AWS's tools to other credentials or endpoints, or obtain attestations.
const AMBIENT: [&str; 19] = [
    "AWS_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_BEARER_TOKEN_BEDROCK",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_STS",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CREDENTIAL_FILE",
    "AWS_CREDENTIAL_PROFILES_FILE",
    "BOTO_CONFIG",
    "TASKPASS_CREDENTIAL",
    "TASKPASS_HANDLE",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ambient_credential_or_endpoint_of_aws_is_left_to_the_command() {
    let sts = Sts::granting().await;
    let (fleet, replica) = start_with(&sts.url(), &json!({})).await;
    // The default profile holds a login of the machine's owner and another endpoint.
    let config = "[default]\nendpoint_url = http://127.0.0.1:9\naws_access_key_id = AKIAOTHER\n\
                  aws_secret_access_key = other\nregion = eu-west-1\n";
    let program = "import boto3, os\n\
         session = boto3.Session()\n\
         print('key', session.get_credentials().secret_key)\n\
         print('at', session.client('sts').meta.endpoint_url)\n\
         print('left', sorted(set(os.environ) & set(os.environ['NAMES'].split())))\n";
    for how in ["env", "file", "endpoint"] {
        let options = [&BUCKET_ARGUMENTS[..], &["--as", how]].concat();
        let script = format!("exec {} look.py", python_program("python").display());
        let mut launch = exec(&fleet, &replica, &options, &script)
            .file("look.py", program)
            .file(".aws/config", config)
            .file(".aws/credentials", config)
            .env("NAMES", AMBIENT.join(" "));
        for name in AMBIENT {
            launch = launch.env(name, "http://127.0.0.1:9/ambient");
        }
        let ran = launch.run();
        assert_eq!(ran.code(), Some(0), "{how}: {}", ran.stderr);
        assert!(
            ran.stdout.contains("key made-for-tp-"),
            "{how}: {}",
            ran.stdout
        );
        assert!(
            ran.stdout.contains("amazonaws.com\n"),
            "{how}: {}",
            ran.stdout
        );
        assert!(ran.stdout.contains("left []"), "{how}: {}", ran.stdout);
    }
}

/// Python program that requests credentials from the endpoint again and again on one connection,
/// and prints each change of the answer.
const ASKER: &str = r#"
import http.client, json, os, signal, time, urllib.parse
signal.signal(signal.SIGTERM, signal.SIG_IGN)
url = urllib.parse.urlsplit(os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
connection = http.client.HTTPConnection(url.hostname, url.port)
def ask(secret):
    connection.request("GET", url.path, headers={"Authorization": secret})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())
secret = os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"]
print("stranger", ask("another")[0], flush=True)
answers = [ask(secret) for _ in range(20)]
print("same", all(one == answers[0] for one in answers), answers[0][0], flush=True)
try:
    while ask(secret)[0] == 200:
        time.sleep(0.05)
except (http.client.HTTPException, ConnectionError):
    pass
try:
    connection.close()
    print("over", ask(secret)[0], flush=True)
except ConnectionError:
    print("over", flush=True)
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_gives_one_session_however_often_it_is_asked_and_none_after_the_end() {
    let sts = Sts::granting().await;
    let (fleet, replica) = start_with(&sts.url(), &json!({})).await;
    let endpoint = ["--as", "endpoint", "--heartbeat", "3"];
    let options = [&BUCKET_ARGUMENTS[..], &endpoint].concat();
    let script = format!("exec {} ask.py", python_program("python").display());
    let launch = exec(&fleet, &replica, &options, &script).file("ask.py", ASKER);
    let mut process = spawned(launch, "same True 200");
    assert!(process.stdout().contains("stranger 401"));
    let sessions = sessions(&fleet, &replica).await;
    assert_eq!((sessions.len(), sts.asked().await.len()), (1, 1));
    let revocation = json!({"selector": {"task": sessions[0]["task_id"]}, "reason": "test"});
    let revoked = replica
        .client
        .post_json(&fleet.admin, "/v1/revocations", &revocation)
        .await;
    assert!(revoked.status < 300, "{}", revoked.text());
    // The command ignores SIGTERM, but receives no credentials after the end.
    process.wait_for_output("over");
    assert!(!process.stdout().contains("over 200"));
    assert_eq!(process.wait(SOON).code(), Some(1));
    assert_eq!(sts.asked().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_json_tells_the_handle_by_which_its_task_is_ended() {
    let (fleet, replica) = start().await;
    let url = format!("http://{}", replica.address);
    let request = ["request", "--url", &url, "--token-file", "token"];
    let asked = Launch::taskpass([&request[..], &ORDERS_ARGUMENTS].concat())
        .file("token", format!("\u{feff}{}\r\n", fleet.token()))
        .run();
    assert_eq!(asked.code(), Some(0), "{}", asked.stderr);
    assert_eq!(peek(asked.stdout.trim()).1["scope"], "orders:read");
    let mut words = asked.stderr.split_whitespace();
    let handle = words.find(|word| word.starts_with("tph_")).unwrap();
    let task = sessions(&fleet, &replica).await[0]["task_id"].clone();
    let completed = Launch::taskpass(["task", "complete", task.as_str().unwrap(), "--url", &url])
        .env("TASKPASS_HANDLE", handle)
        .run();
    assert_eq!(completed.code(), Some(0), "{}", completed.stderr);
    assert_eq!(newest(&fleet, &replica).await, ended("completed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_a_session_of_aws_without_json_is_refused_before_it_asks() {
    let sts = Sts::granting().await;
    let (fleet, replica) = start_with(&sts.url(), &json!({})).await;
    let url = format!("http://{}", replica.address);
    let request = ["request", "--url", &url, "--token-file", "token"];
    let plain: &[&str] = &[];
    for form in [plain, &["--env"]] {
        let parts = [&request[..], &BUCKET_ARGUMENTS, form].concat();
        let refused = Launch::taskpass(parts).file("token", fleet.token()).run();
        assert_eq!((refused.code(), refused.stdout.as_str()), (Some(2), ""));
        assert!(refused.stderr.contains("--json"), "{}", refused.stderr);
    }
    assert!(sessions(&fleet, &replica).await.is_empty());
    assert!(sts.asked().await.is_empty());
}
