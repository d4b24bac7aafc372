//! Files that change while the real binary runs, and SIGHUP: a complete file takes effect, an
//! invalid one leaves the previous content in use.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rustls::version::TLS13;
use sqlx::{AssertSqlSafe, Executor};

use crate::support::fleet::{DATABASE_FILE, Fleet, Replica, SEALING_FILE, SINK_SECRET, body};
use crate::support::postgres::TestDatabase;
use crate::support::process::{CONFIG_FILE, Signal};
use crate::support::receiver::Receiver;
use crate::support::tls::{Handshakes, Identity};
use crate::support::{SOON, until};

const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "private-key.pem";

const PENDING: &str = "taskpass_reload_pending{what=\"configuration\"} ";
const FAILURES: &str = "taskpass_reload_failures_total{what=\"configuration\"} ";

const MAY_RESEAL: &str = "@id(\"keys\") @description(\"reseals\") permit (principal == Bootstrap::\"token\", \
                          action == Action::\"manageKeys\", resource == Broker::\"taskpass\");";

fn write(replica: &Replica, name: &str, text: &str) {
    fs::write(replica.process.dir().join(name), text).unwrap();
}

fn read(replica: &Replica, name: &str) -> String {
    fs::read_to_string(replica.process.dir().join(name)).unwrap()
}

/// Replaces a file atomically, with this mode.
fn replace(replica: &Replica, name: &str, text: &str, mode: u32) {
    let path = replica.process.dir().join(name);
    let new = replica.process.dir().join("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(&new, path).unwrap();
}

/// Number of log lines that contain all of these texts.
fn lines_with(replica: &Replica, texts: &[&str]) -> usize {
    let log = replica.process.stderr();
    let has_all = |line: &&str| texts.iter().all(|text| line.contains(text));
    log.lines().filter(has_all).count()
}

/// The value of a series of a replica whose metrics are public.
async fn value(replica: &Replica, series: &str) -> u64 {
    let metrics = replica.client.get("/metrics").await.text();
    let mut values = metrics.lines().filter_map(|line| line.strip_prefix(series));
    values.next().unwrap().parse().unwrap()
}

/// The content of a key file with a new sealing key before the fleet's own.
fn with_new_key(fleet: &Fleet) -> String {
    let new = crate::support::keys::base64url(&crate::support::random_bytes(32));
    format!("tpk1_{new}\n{}\n", fleet.sealing_key)
}

/// Number of rows that were resealed, in a fleet with [`MAY_RESEAL`].
async fn reseal(fleet: &Fleet, replica: &Replica) -> u64 {
    let nothing = serde_json::json!({});
    let resealed = replica
        .client
        .post_json(&fleet.admin, "/v1/keys/reseal", &nothing);
    resealed.await.expect(200)["resealed"].as_u64().unwrap()
}

/// Whether a new handshake presents this certificate.
fn is_served(replica: &Replica, identity: &Identity) -> bool {
    let client = Handshakes::new(identity, None, &TLS13);
    let greeted = client.greet(replica.address);
    greeted.is_ok_and(|(_, line)| line == "HTTP/1.1 200 OK")
}

async fn is_logged(replica: &Replica, text: &str) {
    until(&format!("{text:?} is logged"), SOON, async || {
        replica.process.stderr().contains(text)
    })
    .await;
}

fn tls_metric(metrics: &str) -> &str {
    let name = "taskpass_tls_certificate_not_after_timestamp_seconds{listener=\"broker\"} ";
    let mut values = metrics.lines().filter_map(|line| line.strip_prefix(name));
    values.next().unwrap()
}

async fn over_tls() -> (Fleet, Replica) {
    Fleet::sqlite().over_tls("", None).start().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_served_from_the_next_handshake_on() {
    let (fleet, replica) = over_tls().await;
    assert!(is_served(&replica, &fleet.tls().server));
    // Once with SIGHUP, and once by the change of the files alone.
    for (day, hangup) in [(1, true), (2, false)] {
        let renewed = Identity::server_until(2038, 1, day);
        write(&replica, KEY, &renewed.key_pem);
        write(&replica, CERTIFICATE, &renewed.pem);
        if hangup {
            replica.process.signal(Signal::Hup);
        }
        until("the renewed certificate is served", SOON, async || {
            is_served(&replica, &renewed)
        })
        .await;
        assert!(!is_served(&replica, &fleet.tls().server));
        let client = crate::support::http::Client::over_tls(
            &format!("https://{}", replica.address),
            &renewed.pem,
            None,
            reqwest::tls::Version::TLS_1_3,
        );
        let metrics = client.get_as(&fleet.admin, "/metrics").await.text();
        let midnight = 2_145_916_800 + i64::from(day - 1) * 86_400;
        assert_eq!(tls_metric(&metrics), midnight.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_written_pair_leaves_the_former_certificate_in_place_and_is_told() {
    let (fleet, replica) = over_tls().await;
    let former = &fleet.tls().server;
    let renewed = Identity::server_until(2038, 1, 1);
    let half = &renewed.pem[..renewed.pem.len() / 2];
    let told = || {
        let log = replica.process.stderr();
        log.matches("the certificate was not reloaded").count()
    };
    // Half of a file, then one file of the two.
    for (count, certificate) in [(1, half), (2, renewed.pem.as_str())] {
        write(&replica, CERTIFICATE, certificate);
        replica.process.signal(Signal::Hup);
        until("the failure is logged", SOON, async || told() >= count).await;
        assert!(is_served(&replica, former));
        assert!(!is_served(&replica, &renewed));
    }
    let failures = "taskpass_reload_failures_total{what=\"tls\"} ";
    let metrics = replica.client.get_as(&fleet.admin, "/metrics").await.text();
    let failed = metrics.lines().find_map(|line| line.strip_prefix(failures));
    assert!(failed.unwrap().parse::<u64>().unwrap() >= 2, "{failed:?}");
    assert!(
        tls_metric(&metrics).len() > 10,
        "the former certificate's expiry"
    );
    write(&replica, KEY, &renewed.key_pem);
    until("the whole pair is served", SOON, async || {
        is_served(&replica, &renewed)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_changes_the_log_level_and_ends_nothing() {
    let log = "[log]\nlevel = \"warn\"";
    let (_fleet, mut replica) = Fleet::sqlite().tables(log).start().await;
    let configuration = read(&replica, CONFIG_FILE);
    assert!(!replica.process.stderr().contains("\"DEBUG\""));
    for _ in 0..5 {
        replica.process.signal(Signal::Hup);
    }
    assert_eq!(replica.client.get("/readyz").await.status, 200);
    let verbose = configuration.replace("level = \"warn\"", "level = \"debug\"");
    write(&replica, CONFIG_FILE, &verbose);
    replica.process.signal(Signal::Hup);
    until("requests are logged", SOON, async || {
        replica.client.get("/livez").await;
        replica.process.stderr().contains("\"answered\"")
    })
    .await;
    // A configuration that does not load changes nothing.
    let broken = verbose.replace("level = \"debug\"", "level = \"loud\"");
    write(&replica, CONFIG_FILE, &broken);
    replica.process.signal(Signal::Hup);
    is_logged(&replica, "the configuration was not reloaded").await;
    let metrics = replica.client.get("/metrics").await.text();
    let name = "taskpass_reload_failures_total{what=\"configuration\"} ";
    let failed = metrics.lines().find_map(|line| line.strip_prefix(name));
    assert!(failed.unwrap().parse::<u64>().unwrap() > 0, "{metrics}");
    assert_eq!(replica.client.get("/readyz").await.status, 200);
    assert!(replica.process.ended().is_none());
    assert_eq!(replica.process.terminate().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sealing_keys_are_replaced_without_a_restart() {
    let (fleet, mut replica) = Fleet::sqlite()
        .secret_files()
        .more_policies(MAY_RESEAL)
        .start()
        .await;
    let old = &fleet.sealing_key;
    let new = crate::support::keys::base64url(&crate::support::random_bytes(32));
    let new = format!("tpk1_{new}");
    // An invalid list of keys leaves the present one in use.
    write(&replica, SEALING_FILE, "tpk1_short");
    replica.process.signal(Signal::Hup);
    is_logged(&replica, "the configuration was not reloaded").await;
    replica.ask(&fleet.token()).await.expect(201);
    write(&replica, SEALING_FILE, &format!("{new}\n{old}\n"));
    let until_sealed_anew = async || {
        replica.process.signal(Signal::Hup);
        reseal(&fleet, &replica).await > 0
    };
    until(
        "rows can be sealed with the new key",
        SOON,
        until_sealed_anew,
    )
    .await;
    // The new key may have taken effect while rows were being resealed.
    until("no row is left", SOON, async || {
        reseal(&fleet, &replica).await == 0
    })
    .await;
    replica.ask(&fleet.token()).await.expect(201);
    // The old key was removed while the broker runs: it still opens rows until the next start.
    write(&replica, SEALING_FILE, &new);
    is_logged(&replica, "sealing keys were removed").await;
    replica.ask(&fleet.token()).await.expect(201);
    replica.process.terminate();
    replica.process.restart();
    replica.process.wait_ready(replica.address);
    replica.ask(&fleet.token()).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_reload_is_tried_again_and_succeeds_once_the_mode_was_corrected() {
    let (fleet, replica) = Fleet::sqlite()
        .secret_files()
        .more_policies(MAY_RESEAL)
        .start()
        .await;
    replica.ask(&fleet.token()).await.expect(201);
    assert_eq!(value(&replica, PENDING).await, 0);
    replace(&replica, SEALING_FILE, &with_new_key(&fleet), 0o644);
    is_logged(&replica, &format!("chmod 0600 {SEALING_FILE}")).await;
    until("the reload is tried again", SOON, async || {
        value(&replica, FAILURES).await >= 3
    })
    .await;
    assert_eq!(value(&replica, PENDING).await, 1);
    let told = lines_with(&replica, &["the configuration was not reloaded"]);
    assert_eq!(told, 1, "the warning is logged once");
    // Apply only the remedy that the warning names; content and signals do not change.
    let file = replica.process.dir().join(SEALING_FILE);
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    until("the reload is no longer pending", SOON, async || {
        value(&replica, PENDING).await == 0
    })
    .await;
    assert!(reseal(&fleet, &replica).await > 0, "the new key is in use");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_succeeds_once_a_missing_authority_file_of_an_endpoint_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let authorities = directory.path().join("ca.pem");
    let pem = Identity::server().pem;
    fs::write(&authorities, &pem).unwrap();
    let tables = format!(
        "[log]\nlevel = \"warn\"\n[endpoints.other]\nurl = \"https://127.0.0.1:9/\"\n\
         use = [\"discovery\"]\nca_file = \"{}\"",
        authorities.display()
    );
    let (_fleet, replica) = Fleet::sqlite().tables(&tables).start().await;
    let configuration = read(&replica, CONFIG_FILE);
    fs::remove_file(&authorities).unwrap();
    let verbose = configuration.replace("level = \"warn\"", "level = \"debug\"");
    write(&replica, CONFIG_FILE, &verbose);
    is_logged(&replica, "endpoints.other.ca_file").await;
    assert_eq!(value(&replica, PENDING).await, 1);
    // The broker does not watch this file.
    fs::write(&authorities, &pem).unwrap();
    until("requests are logged", SOON, async || {
        replica.client.get("/livez").await;
        replica.process.stderr().contains("\"answered\"")
    })
    .await;
    until("nothing is pending", SOON, async || {
        value(&replica, PENDING).await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_in_use_is_renewed_though_the_configuration_names_another_one() {
    const WAITS: &str = "takes effect at the next start";
    let (fleet, replica) = over_tls().await;
    let other = Identity::server_until(2037, 1, 1);
    replace(&replica, "other.pem", &other.pem, 0o644);
    replace(&replica, "other-key.pem", &other.key_pem, 0o600);
    let configuration = read(&replica, CONFIG_FILE)
        .replace("\"certificate.pem\"", "\"other.pem\"")
        .replace("\"private-key.pem\"", "\"other-key.pem\"");
    write(&replica, CONFIG_FILE, &configuration);
    let waiting = |setting: &str| {
        let field = format!("\"setting\":\"{setting}\"");
        lines_with(&replica, &[WAITS, &field])
    };
    let settings = ["server.tls.certificate", "server.tls.private_key"];
    until(
        "the log names the settings that need a restart",
        SOON,
        async || settings.iter().all(|setting| waiting(setting) == 1),
    )
    .await;
    // Two checks later, that change causes no further reload.
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    assert!(is_served(&replica, &fleet.tls().server));
    let renewed = Identity::server_until(2038, 1, 1);
    replace(&replica, KEY, &renewed.key_pem, 0o600);
    replace(&replica, CERTIFICATE, &renewed.pem, 0o644);
    until("the renewed certificate is served", SOON, async || {
        is_served(&replica, &renewed)
    })
    .await;
    assert!(!is_served(&replica, &other));
    assert!(settings.iter().all(|setting| waiting(setting) == 1));
    assert_eq!(lines_with(&replica, &[WAITS]), settings.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_is_signed_with_its_new_secret_without_a_restart() {
    let receiver = Receiver::start([]);
    let sinks = format!(
        "[[export]]\nname = \"siem\"\nto = \"webhook\"\nformat = \"cloudevents\"\n\
         url = \"{}\"\nsecret_file = \"sink.secret\"",
        receiver.url()
    );
    let (fleet, replica) = Fleet::sqlite().secret_files().tables(&sinks).start().await;
    replica.ask(&fleet.token()).await.expect(201);
    until("an event is delivered", SOON, async || {
        !receiver.taken().is_empty()
    })
    .await;
    assert!(receiver.taken().iter().all(|one| one.verifies(SINK_SECRET)));
    let newer = "whsec_bmV3ZXItc2VjcmV0LW9mLXRoZS1yZWNlaXZlcg==";
    write(&replica, "sink.secret", newer);
    until(
        "deliveries are signed with the new secret",
        SOON,
        async || {
            replica.ask(&fleet.token()).await.expect(201);
            receiver.taken().iter().any(|one| one.verifies(newer))
        },
    )
    .await;
}

/// Creates a role with the serving role's rights.
async fn another_role(database: &TestDatabase, name: &str) {
    let mut owner = database.connect().await;
    let make = format!("CREATE ROLE {name} LOGIN PASSWORD '{name}'");
    owner.execute(AssertSqlSafe(make)).await.unwrap();
    let url = secrecy::SecretString::from(database.url());
    let settings = taskpass::store::postgres::PostgresSettings::default();
    let postgres = taskpass::store::postgres::Postgres::connect(&url, settings);
    postgres.await.unwrap().grant_serving(name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_credentials_of_the_database_are_used_without_a_restart() {
    let (fleet, replica) = Fleet::postgres().secret_files().start().await;
    let role = format!("taskpass_other_{}", crate::support::random_hex(4));
    another_role(fleet.database(), &role).await;
    let former = read(&replica, DATABASE_FILE);
    // Another database takes effect only at the next start.
    let elsewhere = former.replace(&format!("/{}", database_name(&former)), "/postgres");
    write(&replica, DATABASE_FILE, &elsewhere);
    replica.process.signal(Signal::Hup);
    is_logged(&replica, "names another server or database").await;
    let mut url: url::Url = former.parse().unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some(&role)).unwrap();
    write(&replica, DATABASE_FILE, url.as_str());
    replica.process.signal(Signal::Hup);
    let direct = fleet.database().pool().await;
    until("all connections belong to the new role", SOON, async || {
        // End the former role's connections, as an operator would before dropping it.
        let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE datname = current_database() AND application_name = 'taskpass' \
                     AND usename <> $1";
        let ended = sqlx::query(ended).bind(&role);
        ended.execute(&direct).await.unwrap();
        let answer = replica
            .client
            .post_json(&fleet.token(), "/v1/credentials", &body())
            .await;
        let (of_new,): (i64,) = sqlx::query_as(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND usename = $1",
        )
        .bind(&role)
        .fetch_one(&direct)
        .await
        .unwrap();
        answer.status == 201 && of_new > 2
    })
    .await;
}

fn database_name(url: &str) -> String {
    let url: url::Url = url.parse().unwrap();
    url.path().trim_start_matches('/').to_owned()
}
