//! `taskpass aws credential-process`: many calls, also at once, share one session; after the end of
//! its task the command prints no credentials; and the cache is safe from other users.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::balancer::{Balancer, Fault};
use crate::support::fleet::{Fleet, Replica};
use crate::support::moto::{Moto, python_program};
use crate::support::process::{Ended, Launch};
use crate::support::rig::{BUCKET_POLICY, aws_bucket};
use crate::support::sts::Sts;

/// A broker with a role in AWS, and the directory that the calls share.
struct World {
    fleet: Fleet,
    replica: Replica,
    /// A runtime directory; its subdirectory `taskpass` holds the cache.
    runtime: TempDir,
}

impl World {
    async fn with(aws: &str) -> Self {
        let (fleet, replica) = Fleet::sqlite()
            .tables(&aws_bucket(aws))
            .more_policies(BUCKET_POLICY)
            .start()
            .await;
        Self {
            fleet,
            replica,
            runtime: TempDir::new().unwrap(),
        }
    }

    async fn scripted() -> (Self, Sts) {
        let sts = Sts::granting().await;
        (Self::with(&sts.url()).await, sts)
    }

    /// The arguments of a call, without those about the task.
    fn arguments(&self) -> Vec<String> {
        let url = format!("http://{}", self.replica.address);
        let token = self.token().display().to_string();
        let arguments = [
            "aws",
            "credential-process",
            "--url",
            &url,
            "--token-file",
            &token,
            "--resource",
            "bucket",
            "--action",
            "s3:ListAllMyBuckets",
        ];
        arguments.map(str::to_owned).to_vec()
    }

    /// The path of the file with the attestation.
    fn token(&self) -> PathBuf {
        self.runtime.path().join("token")
    }

    /// Replaces the attestation file atomically.
    fn put_token(&self, token: &str) {
        let new = self.runtime.path().join("token.new");
        fs::write(&new, token).unwrap();
        fs::rename(new, self.token()).unwrap();
    }

    fn call_with(&self, options: &[&str], token: String) -> Launch {
        self.put_token(&token);
        let options = options.iter().map(|option| (*option).to_owned());
        let arguments: Vec<String> = self.arguments().into_iter().chain(options).collect();
        Launch::taskpass(arguments)
            .env("TASKPASS_RETRY_SECONDS", "1")
            .env("XDG_RUNTIME_DIR", self.runtime.path())
    }

    /// Runs a call with a fresh attestation.
    fn call(&self, options: &[&str]) -> Ended {
        let options = [&["--task-type", "listing"], options].concat();
        self.call_with(&options, self.fleet.token()).run()
    }

    async fn sessions(&self) -> Vec<Value> {
        let listed = self
            .replica
            .client
            .get_as(&self.fleet.admin, "/v1/sessions")
            .await
            .expect(200);
        listed["sessions"].as_array().unwrap().clone()
    }

    fn cache(&self) -> PathBuf {
        self.runtime.path().join("taskpass")
    }

    /// The path of the cache's only file.
    fn kept(&self) -> PathBuf {
        let files: Vec<PathBuf> = fs::read_dir(self.cache())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
            .collect();
        let [file] = &files[..] else {
            panic!("{files:?}");
        };
        file.clone()
    }

    /// Changes the cached session, to simulate that time has passed.
    fn change(&self, change: impl FnOnce(&mut Value)) {
        let path = self.kept();
        let mut kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut kept["held"]);
        fs::write(&path, kept.to_string()).unwrap();
    }

    async fn revoke(&self, selector: Value) {
        let revocation = json!({"selector": selector, "reason": "test"});
        let revoked = self
            .replica
            .client
            .post_json(&self.fleet.admin, "/v1/revocations", &revocation)
            .await;
        assert!(revoked.status < 300, "{}", revoked.text());
    }
}

/// The printed output, which must be in the format that AWS's SDKs read.
fn printed(ended: &Ended) -> Value {
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let printed: Value = serde_json::from_str(&ended.stdout).unwrap();
    let mut names: Vec<&String> = printed.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(
        names,
        [
            "AccessKeyId",
            "Expiration",
            "SecretAccessKey",
            "SessionToken",
            "Version"
        ]
    );
    assert_eq!(printed["Version"], 1);
    let secret = printed["SecretAccessKey"].as_str().unwrap();
    assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
    printed
}

fn refused(ended: &Ended, code: i32, says: &str) {
    assert_eq!(ended.code(), Some(code), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
}

fn soon(seconds: i64) -> Value {
    let at = crate::support::issuer::unix_seconds() + seconds;
    let at = time::OffsetDateTime::from_unix_timestamp(at).unwrap();
    let format = &time::format_description::well_known::Rfc3339;
    json!(at.format(format).unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_calls_at_once_and_one_after_them_share_one_session() {
    let (world, sts) = World::scripted().await;
    let calls: Vec<_> = (0..10)
        .map(|_| {
            world
                .call_with(&["--task-type", "listing"], world.fleet.token())
                .spawn()
        })
        .collect();
    let mut seen = Vec::new();
    for mut call in calls {
        let status = call.wait(crate::support::SOON);
        let (stdout, stderr) = (call.stdout(), call.stderr());
        seen.push(printed(&Ended {
            status,
            stdout,
            stderr,
        }));
    }
    seen.push(printed(&world.call(&[])));
    assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
    let sessions = world.sessions().await;
    let [session] = &sessions[..] else {
        panic!("{sessions:?}");
    };
    assert_eq!(sts.asked().await.len(), 1);
    let name = session["id"].as_str().unwrap().replace('-', "");
    assert_eq!(seen[0]["SecretAccessKey"], format!("made-for-tp-{name}"));
    assert_eq!(seen[0]["Expiration"], session["expires_at"]);

    // Only the user has access to the cache.
    assert_eq!((mode(&world.cache()), mode(&world.kept())), (0o700, 0o600));
    let names: Vec<_> = fs::read_dir(world.cache()).unwrap().collect();
    assert_eq!(names.len(), 2, "a file and its lock: {names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_lists_s3_by_a_profile_that_names_the_command() {
    let moto = Moto::start();
    let world = World::with(&moto.url()).await;
    let command: Vec<String> = [env!("CARGO_BIN_EXE_taskpass").to_owned()]
        .into_iter()
        .chain(world.arguments())
        .chain(["--task-type", "listing"].map(str::to_owned))
        .collect();
    let program = format!(
        "import boto3\n\
         aws = dict(endpoint_url='{0}', region_name='us-east-1')\n\
         session = boto3.Session(profile_name='reports')\n\
         s3 = session.client('s3', **aws)\n\
         s3.create_bucket(Bucket='made-here')\n\
         for _ in range(3): print([b['Name'] for b in s3.list_buckets()['Buckets']])\n\
         print(session.client('sts', **aws).get_caller_identity()['Arn'])\n",
        moto.url()
    );
    let config = format!(
        "[profile reports]\ncredential_process = {}\n",
        command.join(" ")
    );
    world.put_token(&world.fleet.token());
    let ran = Launch::program(python_program("python"), ["list.py"])
        .file("list.py", program)
        .file(".aws/config", config)
        .env("XDG_RUNTIME_DIR", world.runtime.path())
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .run();
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    assert_eq!(ran.stdout.matches("made-here").count(), 3, "{}", ran.stdout);
    let sessions = world.sessions().await;
    assert_eq!(sessions.len(), 1, "one session serves all uses");
    let name = sessions[0]["id"].as_str().unwrap().replace('-', "");
    let arn = format!("assumed-role/reports/tp-{name}");
    assert!(ran.stdout.contains(&arn), "{}", ran.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_admin_ended_is_neither_given_out_nor_renewed() {
    for subject in ["task", "session"] {
        let (world, sts) = World::scripted().await;
        printed(&world.call(&[]));
        let session = world.sessions().await.remove(0);
        if subject == "task" {
            world.revoke(json!({"task": session["task_id"]})).await;
        } else {
            let path = format!("/v1/sessions/{}/revoke", session["id"].as_str().unwrap());
            let body = json!({"reason": "test"});
            let client = &world.replica.client;
            let revoked = client.post_json(&world.fleet.admin, &path, &body).await;
            assert!(revoked.status < 300, "{}", revoked.text());
        }
        for options in [&[][..], &["--reopen"]] {
            refused(&world.call(options), 1, "the task has ended");
        }
        let kept = fs::read_to_string(world.kept()).unwrap();
        assert!(!kept.contains("made-for"), "{kept}");
        assert_eq!(
            sts.asked().await.len(),
            1,
            "{subject}: the session was not renewed"
        );
        // A new task starts only after an explicit request.
        let ended = world.call(&["--end"]);
        assert_eq!((ended.code(), ended.stdout.as_str()), (Some(0), ""));
        printed(&world.call(&[]));
        assert_eq!(sts.asked().await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn little_left_is_another_session_of_the_same_task_and_nothing_follows_its_deadline() {
    let (world, sts) = World::scripted().await;
    let first = printed(&world.call(&[]));
    world.change(|held| {
        held["taken_at"] = soon(-500);
        held["expires_at"] = soon(60);
    });
    let second = printed(&world.call(&[]));
    assert_ne!(first["SecretAccessKey"], second["SecretAccessKey"]);
    assert_eq!(printed(&world.call(&[])), second);
    let sessions = world.sessions().await;
    assert_eq!(sessions.len(), 2);
    assert_eq!(sessions[0]["task_id"], sessions[1]["task_id"]);

    // The deadline has passed here, whether or not the broker has ended the task.
    world.change(|held| held["deadline"] = soon(-1));
    for _ in 0..2 {
        refused(&world.call(&[]), 1, "the task has ended: expired");
    }
    assert_eq!(sts.asked().await.len(), 2);
    let third = printed(&world.call(&["--reopen"]));
    assert_ne!(second["SecretAccessKey"], third["SecretAccessKey"]);
    assert_ne!(
        world.sessions().await[0]["task_id"],
        sessions[0]["task_id"],
        "`--reopen` opens another task"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_fails_is_said_and_not_tried_again_at_once() {
    let (world, sts) = World::scripted().await;
    let token = world.fleet.token();
    let listing = ["--task-type", "listing"];
    let call = || world.call_with(&listing, token.clone()).run();
    let first = printed(&call());
    world.change(|held| {
        held["taken_at"] = soon(-500);
        held["expires_at"] = soon(60);
    });
    // The first call used up the attestation, so the renewal must fail.
    let again = call();
    assert_eq!(printed(&again), first);
    assert!(again.stderr.contains("not renewed"), "{}", again.stderr);
    let quiet = call();
    assert_eq!(printed(&quiet), first);
    assert_eq!(quiet.stderr, "", "the renewal is not tried again at once");
    world.change(|held| held["expires_at"] = soon(-1));
    refused(&call(), 3, "the session has ended");
    assert_eq!(sts.asked().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_changes_nothing_while_the_session_lasts() {
    let (mut world, _sts) = World::scripted().await;
    let first = printed(&world.call(&[]));
    world.replica.process.kill();
    let away = world.call(&[]);
    assert_eq!(printed(&away), first);
    assert!(
        away.stderr.contains("could not be asked"),
        "{}",
        away.stderr
    );
    world.change(|held| held["expires_at"] = soon(-1));
    refused(&world.call(&[]), 3, "cannot reach");
    world.change(|held| held["deadline"] = soon(-1));
    refused(&world.call(&[]), 1, "the task has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_job_or_another_wish_does_not_get_this_ones_session() {
    let (world, _sts) = World::scripted().await;
    let mine = printed(&world.call(&[]));
    let claims = json!({"sub": "agent:reports", "run": "run-2"});
    let token = world.fleet.issuer.token(claims);
    let theirs = printed(&world.call_with(&["--task-type", "listing"], token).run());
    let shorter = printed(&world.call(&["--ttl", "300"]));
    let more = printed(&world.call(&["--action", "s3:GetObject"]));
    let seen = [&mine, &theirs, &shorter, &more].map(|one| &one["SecretAccessKey"]);
    for (n, one) in seen.iter().enumerate() {
        assert!(!seen[..n].contains(one), "{seen:?}");
    }
    assert_eq!(printed(&world.call(&[])), mine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_is_open_is_joined_and_left_to_who_opened_it() {
    let (world, _sts) = World::scripted().await;
    let opened = world
        .replica
        .client
        .post_json(
            &world.fleet.token(),
            "/v1/tasks",
            &json!({"type": "listing"}),
        )
        .await
        .expect(201);
    let (id, handle) = (
        opened["task"]["id"].as_str().unwrap(),
        opened["task"]["handle"].as_str().unwrap(),
    );
    let options = ["--task", id, "--handle-file", "handle"];
    let joined = |more: &[&str]| {
        let options = [&options, more].concat();
        let call = world.call_with(&options, world.fleet.token());
        call.file("handle", handle).run()
    };
    let first = printed(&joined(&[]));
    assert_eq!(printed(&joined(&[])), first);
    let sessions = world.sessions().await;
    assert_eq!((sessions.len(), &sessions[0]["task_id"]), (1, &json!(id)));
    let forgotten = joined(&["--end"]);
    assert_eq!(forgotten.code(), Some(0), "{}", forgotten.stderr);
    assert_eq!(world.sessions().await[0]["state"], "active");
    printed(&joined(&[]));

    let path = format!("/v1/tasks/{id}/complete");
    let complete = world.replica.client.request(reqwest::Method::POST, &path);
    let complete = complete.header("authorization", format!("Handle {handle}"));
    let complete = crate::support::http::send(complete.json(&json!({}))).await;
    complete.expect(200);
    refused(&joined(&[]), 1, "the task has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_done_says_so_and_the_task_is_completed() {
    let (world, _sts) = World::scripted().await;
    printed(&world.call(&[]));
    assert_eq!(world.call(&["--end"]).code(), Some(0));
    let session = world.sessions().await.remove(0);
    assert_eq!(session["end_reason"], "completed");
    let names: Vec<_> = fs::read_dir(world.cache()).unwrap().collect();
    assert_eq!(names.len(), 1, "only the lock file is left: {names:?}");
}

/// Enough error pages of a load balancer for every attempt of a call.
fn pages(status: &str) -> Vec<Fault> {
    vec![Fault::page(status); 50]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_load_balancer_neither_ends_the_task_nor_counts_as_its_end() {
    let (mut world, _sts) = World::scripted().await;
    let between = Balancer::before(&[world.replica.address], &[]);
    world.replica.address = between.address();
    let first = printed(&world.call(&[]));
    between.set_faults(&pages("404 Not Found"));
    let unknown = world.call(&[]);
    assert_eq!(printed(&unknown), first);
    assert!(
        unknown.stderr.contains("could not be asked"),
        "{}",
        unknown.stderr
    );
    between.set_faults(&pages("403 Forbidden"));
    refused(&world.call(&["--end"]), 3, "not the broker's answer");
    between.set_faults(&[]);
    assert_eq!(world.sessions().await[0]["state"], "active");

    // The deadline has passed by the local clock, but not at the broker.
    world.change(|held| held["deadline"] = soon(-1));
    refused(&world.call(&[]), 1, "the task has ended: expired");
    between.set_faults(&pages("403 Forbidden"));
    refused(&world.call(&["--end"]), 3, "not the broker's answer");
    between.set_faults(&[]);
    assert_eq!(world.sessions().await[0]["state"], "active");
    let ended = world.call(&["--end"]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    assert_eq!(world.sessions().await[0]["end_reason"], "completed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_finds_nothing_to_end_says_so_and_fails() {
    let (world, _sts) = World::scripted().await;
    refused(&world.call(&["--end"]), 1, "no cached task");
    printed(&world.call(&[]));
    // Other arguments identify another task.
    refused(&world.call(&["--ttl", "300", "--end"]), 1, "no cached task");
    assert_eq!(world.sessions().await[0]["state"], "active");
    assert_eq!(world.call(&["--end"]).code(), Some(0));
    refused(&world.call(&["--end"]), 1, "no cached task");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_file_is_one_job_however_its_name_is_spelt() {
    let (world, sts) = World::scripted().await;
    let first = printed(&world.call(&[]));
    let runtime = world.runtime.path();
    let (name, parent) = (runtime.file_name().unwrap(), runtime.parent().unwrap());
    let link = TempDir::new().unwrap();
    symlink(runtime, link.path().join("linked")).unwrap();
    let spellings = [
        runtime.join(".").join("token"),
        parent.join(name).join("..").join(name).join("token"),
        link.path().join("linked/token"),
    ];
    let listing = ["--task-type", "listing"];
    for spelling in spellings {
        world.put_token(&world.fleet.token());
        let token = world.token().display().to_string();
        let arguments = world.arguments().into_iter().map(|argument| {
            let is_token = argument == token;
            if is_token {
                spelling.display().to_string()
            } else {
                argument
            }
        });
        let arguments = arguments.chain(listing.map(str::to_owned));
        let call = Launch::taskpass(arguments).env("XDG_RUNTIME_DIR", runtime);
        assert_eq!(printed(&call.run()), first, "{}", spelling.display());
    }
    assert_eq!(sts.asked().await.len(), 1);
    // Kubernetes replaces the file behind the name.
    let rotated = runtime.join("..2026");
    fs::create_dir(&rotated).unwrap();
    fs::write(rotated.join("token"), world.fleet.token()).unwrap();
    fs::remove_file(world.token()).unwrap();
    symlink("..2026/token", world.token()).unwrap();
    let arguments: Vec<String> = world.arguments();
    let arguments = arguments.into_iter().chain(listing.map(str::to_owned));
    let call = Launch::taskpass(arguments).env("XDG_RUNTIME_DIR", runtime);
    assert_eq!(printed(&call.run()), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policy_refuses_is_told_and_nothing_is_printed() {
    let (world, sts) = World::scripted().await;
    refused(&world.call(&["--ttl", "700"]), 1, "ttl-too-long");
    let api = Launch::taskpass(["aws", "credential-process", "--resource", "orders-api"])
        .arg("--action=orders:read")
        .arg("--task-type=job")
        .arg(format!("--url=http://{}", world.replica.address))
        .env("TASKPASS_TOKEN", world.fleet.token())
        .env("XDG_RUNTIME_DIR", world.runtime.path())
        .run();
    refused(&api, 1, "unknown-action");
    let url = ["--task-type", "listing", "--url", "http://127.0.0.1:9"];
    let far = Launch::taskpass(["aws", "credential-process", "--resource", "bucket"])
        .arg("--action=s3:ListAllMyBuckets")
        .env("TASKPASS_TOKEN", "no-token")
        .env("TASKPASS_RETRY_SECONDS", "1")
        .env("XDG_RUNTIME_DIR", world.runtime.path());
    let far = url.into_iter().fold(far, Launch::arg).run();
    refused(&far, 3, "cannot reach");
    assert!(!far.stderr.contains("no-token"), "{}", far.stderr);
    assert!(sts.asked().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_or_file_that_others_could_have_made_is_not_used() {
    let (world, sts) = World::scripted().await;
    let cache = world.cache();
    let again = || {
        if cache.symlink_metadata().is_ok() {
            fs::remove_dir_all(&cache)
                .or_else(|_| fs::remove_file(&cache))
                .unwrap();
        }
    };
    let open_to = |mode: u32, path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let elsewhere = world.runtime.path().join("elsewhere");
    let says = "give another directory with --cache-dir";

    fs::create_dir(&elsewhere).unwrap();
    open_to(0o700, &elsewhere);
    symlink(&elsewhere, &cache).unwrap();
    refused(&world.call(&[]), 2, says);
    fs::remove_file(&cache).unwrap();
    assert!(fs::read_dir(&elsewhere).unwrap().next().is_none());

    for mode in [0o750, 0o705, 0o770, 0o777, 0o1777] {
        fs::create_dir(&cache).unwrap();
        open_to(mode, &cache);
        refused(&world.call(&[]), 2, says);
        again();
    }
    fs::write(&cache, "no directory").unwrap();
    refused(&world.call(&[]), 2, says);
    fs::remove_file(&cache).unwrap();

    // A directory that belongs to another user; only root can create one.
    let theirs = world.runtime.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    open_to(0o700, &theirs);
    let named = match chown(&theirs, Some(65_534), Some(65_534)) {
        Ok(()) => theirs.to_str().unwrap(),
        Err(_) => "/etc",
    };
    refused(&world.call(&["--cache-dir", named]), 2, says);
    assert!(sts.asked().await.is_empty(), "no session was requested");

    printed(&world.call(&[]));
    let kept = world.kept();
    open_to(0o640, &kept);
    refused(&world.call(&[]), 2, says);
    open_to(0o600, &kept);
    let moved = elsewhere.join("kept");
    fs::rename(&kept, &moved).unwrap();
    symlink(&moved, &kept).unwrap();
    refused(&world.call(&[]), 2, says);
    fs::remove_file(&kept).unwrap();
    let lock = kept.with_extension("lock");
    fs::remove_file(&lock).unwrap();
    symlink(&moved, &lock).unwrap();
    refused(&world.call(&[]), 2, says);
    assert_eq!(sts.asked().await.len(), 1);
}
