//! Tests of the configuration: its example, its faults, its variables and its files.

mod endpoints;
mod exports;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;

use super::sections::File;
use super::*;

const EXAMPLE: &str = include_str!("../../../taskpass.example.toml");
const RSA_KEY: &str = include_str!("../../../tests/it/support/test_only_rsa_key.pem");
const SEALING: &str = "tpk1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
const SEALING_NEXT: &str = "tpk1_AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA";

fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(own).collect()
}

fn sealed() -> BTreeMap<String, String> {
    variables(&[(SEALING_KEYS_VARIABLE, &format!("{SEALING},{SEALING_NEXT}"))])
}

include!("../../../tests/fixtures/configuration_faults/mod.rs");

fn parse(text: &str, environment: &BTreeMap<String, String>) -> Result<Config, ConfigErrors> {
    let path = Path::new("/etc/taskpass/taskpass.toml");
    Config::parse(path, text, environment, Mode::Production)
}

/// The example with its commented-out settings.
fn uncommented() -> String {
    let setting = |line: &str| {
        let rest = line.strip_prefix('#')?;
        let first = rest.chars().next()?;
        (first.is_ascii_lowercase() || first == '[').then(|| rest.to_owned())
    };
    EXAMPLE
        .lines()
        .map(|line| setting(line).unwrap_or_else(|| line.to_owned()) + "\n")
        .collect()
}

/// Tables whose keys the user chooses.
const FREE: [&str; 6] = [
    "attestors.claims",
    "endpoints",
    "attestors.required",
    "attestors.allowed",
    "attestors.keys.jwk",
    "ledger.shared_checkpoint.headers",
];

fn paths(value: &serde_json::Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(_) if FREE[2..].contains(&at) => {}
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let key = if FREE[..2].contains(&at) { "*" } else { key };
                let path = if at.is_empty() {
                    key.to_owned()
                } else {
                    format!("{at}.{key}")
                };
                found.insert(path.clone());
                paths(value, &path, found);
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|v| paths(v, at, found)),
        _ => {}
    }
}

#[test]
fn the_example_loads() {
    let config = parse(EXAMPLE, &sealed()).unwrap();
    assert_eq!(config.attestors.len(), 2);
    assert_eq!(config.secrets.sealing_keys.len(), 2);
    assert_eq!(config.policy.directory, Path::new("/etc/taskpass/policies"));
    assert_eq!(config.own_audiences(), ["https://broker.example"]);
}

/// Serde writes every key of the parsed file, absent ones as null. So this test finds a key of the
/// types that the example lacks; the reverse does not load.
#[test]
fn the_example_shows_every_key() {
    let text = uncommented();
    let document = Document::parse(Path::new("example"), &text).unwrap();
    let file: File = document.read().unwrap();
    let mut known = BTreeSet::new();
    paths(&serde_json::to_value(&file).unwrap(), "", &mut known);
    // The parsed file has the values that the preset filled in, but not the preset.
    known.insert("attestors.preset".to_owned());
    let shown: toml::Table = toml::from_str(&text).unwrap();
    let mut documented = BTreeSet::new();
    paths(&serde_json::to_value(&shown).unwrap(), "", &mut documented);
    assert_eq!(known, documented);
    let kinds: BTreeSet<_> = file
        .attestors
        .iter()
        .map(std::mem::discriminant)
        .map(|d| format!("{d:?}"))
        .collect();
    assert_eq!(kinds.len(), 3, "an attestor of each kind");
}

/// The defaults that the example states are the actual defaults.
#[test]
fn the_examples_defaults_are_the_defaults() {
    let plain = parse(SMALL, &sealed()).unwrap();
    let text = uncommented();
    let document = Document::parse(Path::new("example"), &text).unwrap();
    let shown: File = document.read().unwrap();
    let mut keys = shown.keys.clone();
    keys.rs256_private_key_file = None;
    let mut server = shown.server.clone();
    server.issuer.clone_from(&plain.server.issuer);
    server.tls = Tls::default();
    // This default is a share of another key's value.
    let per_address = server.max_connections_per_address.take();
    assert_eq!(per_address, Some(plain.server.connections_per_address()));
    assert_eq!(json(&keys), json(&plain.keys));
    assert_eq!(json(&server), json(&plain.server));
    assert_eq!(json(&shown.limits), json(&plain.limits));
    assert_eq!(json(&shown.retention), json(&plain.retention));
    assert_eq!(json(&shown.log), json(&plain.log));
    assert_eq!(
        json(&shown.store.postgres.unwrap()),
        json(&Postgres::default())
    );
    let (plain, shown) = (plain.store.sqlite.unwrap(), shown.store.sqlite.unwrap());
    assert_eq!(plain.read_connections, shown.read_connections);
    assert_eq!(plain.max_wal_bytes, shown.max_wal_bytes);
}

fn json<T: serde::Serialize>(value: &T) -> serde_json::Value {
    serde_json::to_value(value).unwrap()
}

#[test]
fn each_fault_is_told_with_its_line_and_remedy() {
    let mut untold = String::new();
    for (old, new, line, key, problem, remedy) in FAULTS.into_iter().flatten() {
        assert!(SMALL.contains(old), "{old}");
        let text = SMALL.replacen(old, new, 1);
        let errors = parse(&text, &sealed()).expect_err(new);
        let fits = |e: &&ConfigError| {
            e.at.map(|at| at.line) == Some(*line)
                && e.key == *key
                && e.problem.contains(problem)
                && e.remedy.contains(remedy)
        };
        if !errors.iter().any(|e| fits(&e)) {
            writeln!(untold, "{new} at {key}:\n{errors}\n").unwrap();
        }
        let shown = errors.to_string();
        assert!(!format!("{shown}{errors:?}").contains("hunter2"), "{shown}");
    }
    assert!(untold.is_empty(), "{untold}");
}

#[test]
fn what_stands_twice_is_told_at_the_second() {
    let block = |from: &str, to: &str| {
        let start = SMALL.find(from).unwrap();
        let end = SMALL.find(to).unwrap_or(SMALL.len());
        SMALL[start..end].to_owned()
    };
    let attestor = block("[[attestors]]", "[[resources]]");
    let errors = parse(&format!("{SMALL}{attestor}"), &sealed()).unwrap_err();
    let keys: Vec<_> = errors.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["attestors.1.name", "attestors.1.audience"]);
    let resource = block("[[resources]]", "[[task_types]]");
    let errors = parse(&format!("{SMALL}{resource}"), &sealed()).unwrap_err();
    assert_eq!(errors.iter().next().unwrap().key, "resources.1");
    let without = SMALL.replace(&attestor, "");
    let errors = parse(&without, &sealed()).unwrap_err();
    assert!(
        errors.to_string().contains("`attestors` is empty"),
        "{errors}"
    );
}

#[test]
fn several_contradictions_are_told_together_and_in_order() {
    let text = SMALL
        .replace("8443\"", "8443/\"")
        .replace("broker.example/log", "a b");
    let errors = parse(&text, &BTreeMap::new()).unwrap_err();
    let keys: Vec<_> = errors.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(
        keys,
        [SEALING_KEYS_VARIABLE, "server.issuer", "ledger.origin"]
    );
}

/// A configuration, an environment, and words that the error must contain.
type Case<'c> = (&'c str, &'c [(&'c str, &'c str)], &'c str);

#[test]
fn the_environment_and_the_file_agree() {
    let postgres = SMALL
        .replace("\"sqlite\"", "\"postgres\"")
        .replace("[store.sqlite]\ndata_dir = \"data\"\n", "");
    let url = "postgres://u:hunter2@localhost/d";
    let cases: &[Case<'_>] = &[
        (SMALL, &[], "TASKPASS_SEALING_KEYS` is not set"),
        (SMALL, &[(SEALING_KEYS_VARIABLE, "")], "set and empty"),
        (SMALL, &[(SEALING_KEYS_VARIABLE, ",\n,")], "holds no key"),
        (
            SMALL,
            &[(SEALING_KEYS_VARIABLE, "hunter2,hunter2")],
            "a key twice",
        ),
        (
            SMALL,
            &[(SEALING_KEYS_VARIABLE, "hunter2")],
            "cannot seal: sealing key 1 does not begin with",
        ),
        (
            SMALL,
            &[(SEALING_KEYS_VARIABLE, "tpk1_AAECAwQFBgcICQoLDA0ODw")],
            "cannot seal: sealing key 1 has 16 bytes",
        ),
        (
            SMALL,
            &[(SEALING_KEYS_VARIABLE, "tpk1_hunter2=")],
            "cannot seal: sealing key 1 is not base64url",
        ),
        (
            SMALL,
            &[
                (SEALING_KEYS_VARIABLE, SEALING),
                ("TASKPASS_SEALING_KEYS_FILE", "/x"),
            ],
            "together with its _FILE",
        ),
        (
            SMALL,
            &[("TASKPASS_SEALING_KEYS_FILE", "/nowhere/at/all")],
            "cannot be read",
        ),
        (
            SMALL,
            &[
                (SEALING_KEYS_VARIABLE, SEALING),
                (DATABASE_URL_VARIABLE, url),
            ],
            "taskpass.toml:4:1: `store.kind` is `sqlite`, but TASKPASS_DATABASE_URL",
        ),
        (
            &postgres,
            &[
                (SEALING_KEYS_VARIABLE, SEALING),
                (DATABASE_URL_VARIABLE, "hunter2"),
            ],
            "not a PostgreSQL URL",
        ),
        (
            SMALL,
            &[
                (SEALING_KEYS_VARIABLE, SEALING),
                (LOG_VARIABLE, "taskpass=["),
            ],
            "not a filter",
        ),
    ];
    for (text, pairs, wanted) in cases {
        let errors = parse(text, &variables(pairs)).expect_err(wanted);
        assert!(errors.to_string().contains(wanted), "{errors}");
        assert!(
            !format!("{errors}{errors:?}").contains("hunter2"),
            "{errors}"
        );
    }
    let environment = variables(&[
        (SEALING_KEYS_VARIABLE, &format!("{SEALING}\n{SEALING_NEXT}")),
        (DATABASE_URL_VARIABLE, url),
    ]);
    let config = parse(&postgres, &environment).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    assert_eq!(config.secrets.sealing_keys.len(), 2);
    assert_eq!(
        production_settings(&environment),
        [DATABASE_URL_VARIABLE, SEALING_KEYS_VARIABLE]
    );
}

#[test]
fn a_variable_that_is_not_text_is_refused() {
    struct Broken;
    impl Environment for Broken {
        fn get(&self, _: &str) -> Result<Option<String>, NotText> {
            Err(NotText)
        }
    }
    let path = Path::new("taskpass.toml");
    let errors = Config::parse(path, SMALL, &Broken, Mode::Production).unwrap_err();
    assert!(errors.to_string().contains("is not UTF-8"), "{errors}");
    assert!(Config::path(None, &Broken).is_err());
    let named = Config::path(Some("x.toml".into()), &Broken).unwrap();
    assert_eq!(named, Path::new("x.toml"));
}

#[test]
fn metrics_are_shown_without_credentials_only_where_no_proxy_can_be_in_between() {
    let open = |text: &str| {
        let config = parse(text, &sealed()).unwrap();
        config.server.is_of_this_machine_alone()
    };
    assert!(open(SMALL));
    assert!(open(&SMALL.replace("127.0.0.1:8443", "localhost:8443")));
    // Callers use an external name, so a proxy forwards their requests.
    let named = SMALL.replace("http://127.0.0.1:8443", "https://broker.example");
    let tls = "[server.tls]\ncertificate = \"a\"\nprivate_key = \"b\"\n[store]";
    assert!(!open(&named.replacen("[store]", tls, 1)));
    let proxied = "[server.tls]\nterminated_upstream = true\n[store]";
    assert!(!open(&named.replacen("[store]", proxied, 1)));
    assert!(!open(&SMALL.replacen("[store]", proxied, 1)));
    let trusted = "trusted_proxies = [\"127.0.0.1/32\"]\n[store]";
    assert!(!open(&SMALL.replacen("[store]", trusted, 1)));
    let all = SMALL.replacen(
        "[store]",
        &format!("listen = \"0.0.0.0:8443\"\n{proxied}"),
        1,
    );
    assert!(!open(&all));
}

#[test]
fn files_are_read_and_protected() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let write = |name: &str, text: &str, mode: u32| {
        std::fs::write(at(name), text).unwrap();
        std::fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    let text = SMALL.replace(
        "[ledger]",
        "[keys]\naccess_token_algorithm = \"RS256\"\nrs256_private_key_file = \"rsa.pem\"\n[ledger]",
    );
    write("taskpass.toml", &text, 0o644);
    write("sealing", &format!("{SEALING}\n{SEALING_NEXT}\n"), 0o600);
    let sealing = at("sealing").display().to_string();
    let environment = variables(&[("TASKPASS_SEALING_KEYS_FILE", &sealing)]);
    let load = || Config::load(&at("taskpass.toml"), &environment, Mode::Production);

    let errors = load().unwrap_err().to_string();
    assert!(
        errors.contains(":9:1: `keys.rs256_private_key_file` names"),
        "{errors}"
    );
    assert!(
        errors.contains("`policy.directory` is not a directory"),
        "{errors}"
    );

    std::fs::create_dir(at("policies")).unwrap();
    write("rsa.pem", "hunter2", 0o644);
    let errors = load().unwrap_err().to_string();
    assert!(errors.contains("mode 0644"), "{errors}");
    assert!(errors.contains("chmod 0600"), "{errors}");

    write("rsa.pem", "hunter2", 0o600);
    let errors = load().unwrap_err().to_string();
    assert!(
        errors.contains("names a file that cannot be used"),
        "{errors}"
    );
    assert!(!errors.contains("hunter2"), "{errors}");

    write("rsa.pem", RSA_KEY, 0o600);
    let config = load().unwrap();
    assert!(config.secrets.rs256_private_key.is_some());
    assert_eq!(config.secrets.sealing_keys.len(), 2);
    assert!(!format!("{config:?}").contains("MIIE"));

    write("sealing", SEALING, 0o604);
    let errors = load().unwrap_err().to_string();
    assert!(
        errors.contains("`TASKPASS_SEALING_KEYS_FILE` names"),
        "{errors}"
    );
    assert!(errors.contains("chmod 0600"), "{errors}");
    write("sealing", " \n", 0o600);
    assert!(load().unwrap_err().to_string().contains("an empty file"));

    write("sealing", SEALING, 0o600);
    write(
        "taskpass.toml",
        &SMALL
            .replace(
                "[store]",
                "[server.tls]\ncertificate = \"c\"\nprivate_key = \"k\"\n[store]",
            )
            .replace("http:", "https:"),
        0o644,
    );
    let errors = load().unwrap_err().to_string();
    assert!(
        errors.contains(":4:1: `server.tls.certificate` names"),
        "{errors}"
    );
    assert!(
        errors.contains(":5:1: `server.tls.private_key` names"),
        "{errors}"
    );

    std::fs::write(at("taskpass.toml"), b"[server]\n\xff").unwrap();
    let errors = load().unwrap_err().to_string();
    assert!(errors.contains(":2:1: is not UTF-8"), "{errors}");
    let missing = Config::load(&at("none.toml"), &environment, Mode::Production);
    assert!(missing.unwrap_err().to_string().contains("--config"));
}

#[test]
fn development_needs_no_sealing_key_and_says_what_it_is() {
    let path = Path::new("taskpass.toml");
    let none = BTreeMap::new();
    assert!(Config::parse(path, SMALL, &none, Mode::Dev).is_err());
    let text = SMALL.replace("broker.example/log", "dev.taskpass.local/log");
    assert!(Config::parse(path, &text, &none, Mode::Dev).is_ok());
}

#[test]
fn a_database_elsewhere_proves_itself() {
    let postgres = |more: &str| {
        let store = format!("kind = \"postgres\"\n[store.postgres]\n{more}");
        SMALL
            .replace("kind = \"sqlite\"", &store)
            .replace("[store.sqlite]\ndata_dir = \"data\"", "")
    };
    for (url, more, good) in [
        ("postgres://u:p@db.example/t", "", false),
        ("postgres://u:p@db.example/t?sslmode=require", "", false),
        ("postgres://u:p@db.example/t?sslmode=verify-ca", "", false),
        ("postgres://u:p@localhost/t?host=db.example", "", false),
        ("postgres://u:p@127.0.0.1.example/t", "", false),
        ("postgres://u:p@db.example/t?sslmode=verify-full", "", true),
        (
            "postgres://u:p@db.example/t",
            "trusted_network = true",
            true,
        ),
        ("postgres://u:p@127.0.0.1:5433/t", "", true),
        ("postgres://u:p@[::1]/t", "", true),
        ("postgres://u:p@localhost/t", "", true),
        ("postgres:///t?host=/var/run/postgresql", "", true),
    ] {
        let text = postgres(more);
        let environment = variables(&[
            (SEALING_KEYS_VARIABLE, SEALING),
            (DATABASE_URL_VARIABLE, url),
        ]);
        let parsed = parse(&text, &environment);
        assert_eq!(parsed.is_ok(), good, "{url} {more}: {:?}", parsed.err());
    }
}

#[test]
fn settings_that_wait_for_a_restart_are_named_and_those_of_a_reload_are_not() {
    let more = "[log]\nlevel = \"info\"\n[limits]\ndenials_per_identity = 5\n[[export]]\n\
                name = \"siem\"\nto = \"file\"\nformat = \"ocsf\"\npath = \"events\"\n\
                [endpoints.idp]\nurl = \"https://idp.example\"\nuse = [\"keys\"]\n";
    let embedded = format!("{SMALL}{more}");
    let shared = embedded.replace(
        "kind = \"sqlite\"\n[store.sqlite]\ndata_dir = \"data\"",
        "kind = \"postgres\"",
    );
    let database = (DATABASE_URL_VARIABLE, "postgres://u:p@127.0.0.1/d");
    let sealing = (SEALING_KEYS_VARIABLE, SEALING);
    let environments = [variables(&[sealing]), variables(&[sealing, database])];
    let cases = [
        ("", "", "", ""),
        ("level = \"info\"", "level = \"debug\"", "", ""),
        (
            "[store]",
            "listen = \"127.0.0.1:9443\"\n[store]",
            "server.listen",
            "server.listen",
        ),
        (
            "\"events\"",
            "\"lines\"",
            "export.siem.path",
            "export.siem.path",
        ),
        (
            "https://idp.example",
            "https://other.example",
            "endpoints.idp",
            "endpoints.idp",
        ),
        // On PostgreSQL an activation changes these.
        (
            "denials_per_identity = 5",
            "denials_per_identity = 6",
            "limits.denials_per_identity",
            "",
        ),
        (
            "max_deadline_seconds = 60",
            "max_deadline_seconds = 90",
            "task_types",
            "",
        ),
    ];
    for (from, to, of_embedded, of_shared) in cases {
        let both = [(&embedded, of_embedded), (&shared, of_shared)];
        for ((text, expected), environment) in both.into_iter().zip(&environments) {
            assert!(text.contains(from), "{from}");
            let newer = parse(&text.replacen(from, to, 1), environment).unwrap();
            let found = parse(text, environment)
                .unwrap()
                .settings_for_next_start(&newer);
            let found: Vec<String> = found.into_iter().collect();
            assert_eq!(found.join(" "), expected, "{from}");
        }
    }
}
