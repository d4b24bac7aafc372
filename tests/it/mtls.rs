//! Credentials issued to a client with a TLS certificate are bound to it (RFC 8705 §3): the
//! handshake, the token, the handle and introspection. The tests run the real binary with its own
//! TLS.

use std::io::ErrorKind;
use std::net::SocketAddr;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use reqwest::Method;
use reqwest::tls::Version;
use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};

use crate::support::configuration::Configuration;
use crate::support::fleet::{Fleet, Replica, body, verify};
use crate::support::http::{Answer, Client, assert_problem, send};
use crate::support::issuer::{Issuer, unix_seconds};
use crate::support::keys::{Algorithm, Key, peek, sign_jwt};
use crate::support::tls::{Authority, Handshakes, Identity, present};
use crate::support::{free_address, random_hex};

const BIND: &str = "client_certificates = \"bind\"";
const VERSIONS: [Version; 2] = [Version::TLS_1_2, Version::TLS_1_3];
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const BOUND: &str = "https://bound.taskpass.test";

const POLICIES: &str = r#"
@id("bound-open") @description("opens")
permit (principal == Workload::bound::"bound:agent", action == Action::"openTask", resource);
@id("bound-read") @description("reads") @max_ttl("600")
permit (principal == Workload::bound::"bound:agent", action == Action::"orders:read", resource);
"#;

/// An attestor whose tokens may be used again with a proof of possession.
fn reusable(issuer: &Issuer) -> String {
    format!(
        "[[attestors]]\nkind = \"oidc\"\nname = \"bound\"\nissuer = \"{}\"\naudience = \"{BOUND}\"\n\
         algorithms = [\"ES256\"]\nsingle_tenant = true\nidentity = \"{{sub}}\"\nreuse = \"bound\"\n\
         [attestors.claims]\nsub = {{ type = \"string\", immutable = true }}\n",
        issuer.url()
    )
}

async fn start(settings: &str) -> (Fleet, Replica) {
    Fleet::sqlite()
        .over_tls(settings, None)
        .attestors(reusable)
        .more_policies(POLICIES)
        .start()
        .await
}

fn client(fleet: &Fleet, replica: &Replica, own: Option<&Identity>) -> Client {
    fleet.tls().client(replica.address, own, Version::TLS_1_3)
}

async fn ask(client: &Client, token: &str, body: &Value) -> Answer {
    client.post_json(token, "/v1/credentials", body).await
}

fn joining(granted: &Value) -> Value {
    let mut body = body();
    body["task"] = json!({"id": granted["task"]["id"], "handle": granted["task"]["handle"]});
    body
}

/// Performs an action on a task by its handle.
async fn act(client: &Client, granted: &Value, what: &str) -> Answer {
    let (id, handle) = (&granted["task"]["id"], &granted["task"]["handle"]);
    let path = format!("/v1/tasks/{}/{what}", id.as_str().unwrap());
    let request = client.request(Method::POST, &path).header(
        "authorization",
        format!("Handle {}", handle.as_str().unwrap()),
    );
    send(request.json(&json!({}))).await
}

fn access_token(granted: &Value) -> &str {
    granted["credential"]["access_token"].as_str().unwrap()
}

/// The broker's answer to a resource server that introspects a token.
async fn introspect(fleet: &Fleet, replica: &Replica, token: &str) -> Value {
    let request = replica.client.request(Method::POST, "/oauth2/introspect");
    let request = request.bearer_auth(&fleet.admin).form(&[("token", token)]);
    send(request).await.expect(200)
}

/// Asserts that the server ended the connection, whether or not the client could read its alert.
#[track_caller]
fn refused_by_the_server(seen: std::io::Result<String>, what: &str) {
    let error = seen.expect_err(what);
    let gone = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind());
    let told = error.to_string().contains("received fatal alert");
    assert!(gone || told, "{what}: {error}");
}

async fn proof(replica: &Replica, key: &Key, url: &str) -> String {
    let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": key.jwk()});
    let claims = json!({
        "jti": random_hex(16), "htm": "POST", "htu": url, "iat": unix_seconds(),
        "nonce": replica.nonce().await,
    });
    sign_jwt(&header, &claims, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_with_a_certificate_gets_carries_its_thumbprint() {
    let (fleet, replica) = start(BIND).await;
    let metadata = "/.well-known/oauth-authorization-server";
    let told = replica.client.get(metadata).await.expect(200);
    assert_eq!(told["tls_client_certificate_bound_access_tokens"], true);
    for version in VERSIONS {
        for kind in [
            &PKCS_ECDSA_P256_SHA256,
            &PKCS_ECDSA_P384_SHA384,
            &PKCS_ED25519,
        ] {
            let own = Identity::client_with("agent", &KeyPair::generate_for(kind).unwrap());
            let cnf = json!({"x5t#S256": own.thumbprint()});
            let client = fleet.tls().client(replica.address, Some(&own), version);

            let granted = ask(&client, &fleet.token(), &body()).await.expect(201);
            assert_eq!(granted["credential"]["token_type"], "Bearer");
            let token = access_token(&granted);
            assert_eq!(peek(token).1["cnf"], cnf, "{version:?}");
            let leaf = verify(&fleet, &replica, &granted).await.leaf;
            let leaf: Value = serde_json::from_slice(&leaf).unwrap();
            assert_eq!(leaf["cnf"], cnf);
            let told = introspect(&fleet, &replica, token).await;
            assert_eq!((&told["active"], &told["cnf"]), (&json!(true), &cnf));
            assert_eq!(told["token_type"], "Bearer");

            let form = [
                ("grant_type", EXCHANGE),
                ("subject_token", &fleet.token()),
                ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
                ("resource", "https://orders.example"),
                ("scope", "orders:read"),
                ("task_type", "job"),
            ];
            let exchanged = client.post_form("/oauth2/token", &form).await.expect(200);
            assert_eq!(exchanged["token_type"], "Bearer");
            let token = exchanged["access_token"].as_str().unwrap();
            assert_eq!(peek(token).1["cnf"], cnf, "{version:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_certificate_nothing_is_bound_and_nobody_is_turned_away() {
    let (fleet, replica) = start(BIND).await;
    for version in VERSIONS {
        let bare = fleet.tls().client(replica.address, None, version);
        let granted = ask(&bare, &fleet.token(), &body()).await.expect(201);
        assert_eq!(granted["credential"]["token_type"], "Bearer");
        let token = access_token(&granted);
        assert_eq!(peek(token).1.get("cnf"), None);
        assert_eq!(introspect(&fleet, &replica, token).await.get("cnf"), None);
        act(&bare, &granted, "heartbeat").await.expect(200);
        // A later request with a certificate does not bind it either.
        let own = Identity::client("late");
        let late = client(&fleet, &replica, Some(&own));
        act(&late, &granted, "heartbeat").await.expect(200);
        let joined = ask(&late, &fleet.token(), &joining(&granted))
            .await
            .expect(201);
        let (_, claims) = peek(access_token(&joined));
        assert_eq!(claims["cnf"]["x5t#S256"], json!(own.thumbprint()));
        act(&bare, &granted, "heartbeat").await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_is_good_only_with_the_certificate_that_opened_its_task() {
    let (fleet, replica) = start(BIND).await;
    let own = Identity::client("agent");
    let with_own = client(&fleet, &replica, Some(&own));
    // The certificate's name does not matter: another certificate with the same name is refused.
    let others = [
        client(&fleet, &replica, None),
        client(&fleet, &replica, Some(&Identity::client("agent"))),
    ];
    let granted = ask(&with_own, &fleet.token(), &body()).await.expect(201);
    for other in &others {
        for what in ["heartbeat", "complete", "abort"] {
            assert_problem(&act(other, &granted, what).await, 404, "not-found");
        }
        let joined = ask(other, &fleet.token(), &joining(&granted)).await;
        assert_problem(&joined, 404, "not-found");
    }
    // A DPoP key does not replace the certificate, with or without the certificate.
    let key = Key::generate(Algorithm::Es256);
    for client in [&with_own, &others[0]] {
        let id = granted["task"]["id"].as_str().unwrap();
        let path = format!("/v1/tasks/{id}/heartbeat");
        let handle = granted["task"]["handle"].as_str().unwrap();
        let request = client
            .request(Method::POST, &path)
            .header("authorization", format!("Handle {handle}"))
            .header(
                "dpop",
                proof(
                    &replica,
                    &key,
                    &format!("https://{}{path}", replica.address),
                )
                .await,
            );
        assert_problem(&send(request.json(&json!({}))).await, 404, "not-found");
    }
    act(&with_own, &granted, "heartbeat").await.expect(200);
    let joined = ask(&with_own, &fleet.token(), &joining(&granted))
        .await
        .expect(201);
    let (_, claims) = peek(access_token(&joined));
    assert_eq!(claims["cnf"]["x5t#S256"], json!(own.thumbprint()));
    act(&with_own, &granted, "complete").await.expect(200);
    assert_eq!(
        introspect(&fleet, &replica, access_token(&granted)).await,
        json!({"active": false})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_that_may_come_again_comes_with_its_first_certificate() {
    let (fleet, replica) = start(BIND).await;
    let token = || fleet.issuer.token(json!({"sub": "agent", "aud": BOUND}));
    let own = client(&fleet, &replica, Some(&Identity::client("agent")));
    let other = client(&fleet, &replica, Some(&Identity::client("agent")));
    let bare = client(&fleet, &replica, None);
    let refused = async |client: &Client, token: &str| {
        let answer = ask(client, token, &body()).await;
        assert_problem(&answer, 401, "attestation-failed");
    };
    // An attestation first used without a certificate is used up, so that no other client can bind
    // it later.
    let shown = token();
    refused(&bare, &shown).await;
    refused(&own, &shown).await;
    let token = token();
    ask(&own, &token, &body()).await.expect(201);
    refused(&bare, &token).await;
    refused(&other, &token).await;
    ask(&own, &token, &body()).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_that_is_bound_to_a_certificate_is_good_with_that_one_alone() {
    let (fleet, replica) = start(BIND).await;
    let own = Identity::client("agent");
    let bound = || {
        let cnf = json!({"x5t#S256": own.thumbprint()});
        fleet
            .issuer
            .token(json!({"sub": "agent:reports", "run": "run-1", "cnf": cnf}))
    };
    let with_own = client(&fleet, &replica, Some(&own));
    let others = [
        client(&fleet, &replica, None),
        client(&fleet, &replica, Some(&Identity::client("agent"))),
    ];
    let token = bound();
    for other in &others {
        let refused = ask(other, &token, &body()).await;
        let problem = assert_problem(&refused, 401, "attestation-failed");
        assert_eq!(problem["claim"], "cnf", "{problem}");
        let form = [
            ("grant_type", EXCHANGE),
            ("subject_token", token.as_str()),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("resource", "https://orders.example"),
            ("scope", "orders:read"),
            ("task_type", "job"),
        ];
        let exchanged = other.post_form("/oauth2/token", &form).await;
        assert_eq!(exchanged.status, 400, "{}", exchanged.text());
    }
    // The refused requests did not use up the attestation.
    let granted = ask(&with_own, &token, &body()).await.expect(201);
    let claims = peek(access_token(&granted)).1;
    assert_eq!(claims["cnf"]["x5t#S256"], json!(own.thumbprint()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dpop_proof_binds_before_the_certificate_and_a_bad_one_is_not_made_up_for() {
    let (fleet, replica) = start(BIND).await;
    let own = client(&fleet, &replica, Some(&Identity::client("agent")));
    let key = Key::generate(Algorithm::Es256);
    let url = format!("https://{}/v1/credentials", replica.address);
    let with_proof = async |url: &str| {
        let request = own.request(Method::POST, "/v1/credentials");
        let request = request.bearer_auth(fleet.token());
        let proof = proof(&replica, &key, url).await;
        send(request.header("dpop", proof).json(&body())).await
    };
    let granted = with_proof(&url).await.expect(201);
    assert_eq!(granted["credential"]["token_type"], "DPoP");
    let token = access_token(&granted);
    let cnf = &peek(token).1["cnf"];
    assert!(
        cnf["jkt"].is_string() && cnf.get("x5t#S256").is_none(),
        "{cnf}"
    );
    let told = introspect(&fleet, &replica, token).await;
    assert_eq!((&told["token_type"], &told["cnf"]), (&json!("DPoP"), cnf));
    // The handle is bound to the proof's key, so the certificate alone does not suffice.
    assert_problem(&act(&own, &granted, "heartbeat").await, 404, "not-found");
    let refused = with_proof("https://elsewhere.example/v1/credentials").await;
    assert_problem(&refused, 401, "attestation-failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_default_no_client_is_asked_for_a_certificate() {
    let (fleet, replica) = start("").await;
    let own = Identity::client("agent");
    for version in [&TLS12, &TLS13] {
        let handshakes = Handshakes::new(&fleet.tls().server, Some(own.certified()), version);
        let (_, line) = handshakes.greet(replica.address).unwrap();
        assert_eq!((line.as_str(), handshakes.asked()), ("HTTP/1.1 200 OK", 0));
    }
    let metadata = "/.well-known/oauth-authorization-server";
    let told = replica.client.get(metadata).await.expect(200);
    assert_eq!(told.get("tls_client_certificate_bound_access_tokens"), None);
    let willing = client(&fleet, &replica, Some(&own));
    let granted = ask(&willing, &fleet.token(), &body()).await.expect(201);
    assert_eq!(peek(access_token(&granted)).1.get("cnf"), None);
    let token = fleet.issuer.token(json!({"sub": "agent", "aud": BOUND}));
    let unbound = ask(&willing, &token, &body()).await;
    assert_problem(&unbound, 401, "attestation-failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_refused_in_the_handshake_unless_its_key_is_shown() {
    let (fleet, replica) = start(BIND).await;
    let (own, other) = (Identity::client("agent"), Identity::client("agent"));
    let large = Identity::large_client(17 * 1024);
    let cut = own.der[..own.der.len() - 1].to_vec();
    let longer = [own.der.clone(), vec![0]].concat();
    let server = &fleet.tls().server;
    for version in [&TLS12, &TLS13] {
        let greet = |certificate| {
            let handshakes = Handshakes::new(server, certificate, version);
            let seen = handshakes.greet(replica.address);
            assert_eq!(handshakes.asked(), 1);
            seen.map(|(_, line)| line)
        };
        for (what, chain, key) in [
            ("somebody else's", vec![other.der.clone()], &own),
            ("no certificate", vec![b"no certificate".to_vec()], &own),
            ("one that is cut", vec![cut.clone()], &own),
            ("one with more behind it", vec![longer.clone()], &own),
            ("an empty one", vec![Vec::new()], &own),
            ("a large one", vec![large.der.clone()], &large),
            ("a long chain", vec![own.der.clone(); 60], &own),
        ] {
            let seen = greet(Some(present(chain, key)));
            refused_by_the_server(seen, what);
        }
        for good in [
            None,
            Some(own.certified()),
            Some(Identity::large_client(12 * 1024).certified()),
            // The server ignores the certificates after the client's own.
            Some(present(
                vec![own.der.clone(), b"no certificate".to_vec()],
                &own,
            )),
        ] {
            assert_eq!(greet(good).unwrap(), "HTTP/1.1 200 OK");
        }
    }
    // With a chain, the client's own certificate binds.
    let mut chain = own;
    chain.pem.push_str(&other.pem);
    let granted = ask(
        &client(&fleet, &replica, Some(&chain)),
        &fleet.token(),
        &body(),
    )
    .await;
    let granted = granted.expect(201);
    let (_, claims) = peek(access_token(&granted));
    assert_eq!(claims["cnf"]["x5t#S256"], json!(chain.thumbprint()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_connection_shows_the_key_itself_and_none_is_resumed() {
    let kinds = |fleet: &Fleet, address: SocketAddr, version| {
        let own = Identity::client("agent").certified();
        let handshakes = Handshakes::new(&fleet.tls().server, Some(own), version);
        [0; 3].map(|_| handshakes.greet(address).unwrap().0)
    };
    let (fleet, replica) = start(BIND).await;
    for version in [&TLS12, &TLS13] {
        assert_eq!(
            kinds(&fleet, replica.address, version),
            [HandshakeKind::Full; 3]
        );
    }
    // Control: without client certificates, the same client resumes its connections.
    let (fleet, replica) = start("").await;
    for version in [&TLS12, &TLS13] {
        let seen = kinds(&fleet, replica.address, version);
        assert_eq!(seen[1..], [HandshakeKind::Resumed; 2], "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorities_narrow_which_certificates_are_accepted() {
    let authority = Authority::new();
    let settings = format!("{BIND}\nclient_ca = \"authority.pem\"");
    let pem = Some(authority.pem());
    let (fleet, replica) = Fleet::sqlite()
        .over_tls(&settings, pem)
        .attestors(reusable)
        .more_policies(POLICIES)
        .start()
        .await;
    let own = authority.client("agent");
    let granted = ask(
        &client(&fleet, &replica, Some(&own)),
        &fleet.token(),
        &body(),
    )
    .await;
    let (_, claims) = peek(access_token(&granted.expect(201)));
    assert_eq!(claims["cnf"]["x5t#S256"], json!(own.thumbprint()));
    let server = &fleet.tls().server;
    for version in [&TLS12, &TLS13] {
        let greet = |certificate| {
            let handshakes = Handshakes::new(server, certificate, version);
            handshakes.greet(replica.address).map(|(_, line)| line)
        };
        assert_eq!(greet(Some(own.certified())).unwrap(), "HTTP/1.1 200 OK");
        assert_eq!(greet(None).unwrap(), "HTTP/1.1 200 OK");
        for stranger in [Identity::client("agent"), Authority::new().client("agent")] {
            refused_by_the_server(greet(Some(stranger.certified())), "a stranger's");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_stands_in_no_log() {
    let (fleet, replica) = start(BIND).await;
    let name = format!("canary-{}", random_hex(16));
    let own = Identity::client(&name);
    let with_own = client(&fleet, &replica, Some(&own));
    let granted = ask(&with_own, &fleet.token(), &body()).await.expect(201);
    act(&with_own, &granted, "heartbeat").await.expect(200);
    let refused = Handshakes::new(
        &fleet.tls().server,
        Some(present(vec![own.der.clone()], &Identity::client("thief"))),
        &TLS13,
    );
    assert!(refused.greet(replica.address).is_err());
    let log = replica.process.stderr() + &replica.process.stdout();
    assert!(
        log.contains("DEBUG"),
        "the log level should include every message"
    );
    let decimals = |bytes: &[u8]| {
        let numbers: Vec<String> = bytes.iter().map(ToString::to_string).collect();
        numbers.join(", ")
    };
    let name = name.as_bytes();
    for (how, text) in [
        ("text", String::from_utf8(name.to_vec()).unwrap()),
        ("hex", crate::support::hex(name)),
        ("numbers", decimals(name)),
        ("PEM", own.pem.lines().nth(2).unwrap().to_owned()),
    ] {
        assert!(!log.contains(&text), "as {how}");
    }
}

#[test]
fn binding_without_our_own_tls_does_not_start() {
    let address = free_address();
    let config = Configuration {
        issuer: &format!("http://{address}"),
        server: &format!("listen = \"{address}\"\n[server.tls]\n{BIND}"),
        ..Configuration::default()
    }
    .text();
    let ended = crate::support::process::Launch::taskpass(["serve", "--config", "taskpass.toml"])
        .config(config)
        .run();
    assert_ne!(ended.code(), Some(0));
    let told = "`server.tls.client_certificates` cannot bind tokens";
    assert!(ended.stderr.contains(told), "{}", ended.stderr);
}
