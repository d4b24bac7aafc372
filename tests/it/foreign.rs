//! Third-party software, unchanged, against the real binary: OAuth clients in other languages, and
//! an OpenID provider as the issuer of attestations. Their programs are in `tests/foreign`.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica};
use crate::support::http::{Client, send};
use crate::support::issuer::AUDIENCE;
use crate::support::keys::{base64url, peek};
use crate::support::moto::{other_python_program, python_program};
use crate::support::process::{Ended, Launch, Process};
use crate::support::tls::Identity;
use crate::support::{free_address, node};

const ORDERS: &str = "https://orders.example";

const POLICY: &str = r#"
@id("nightly-open") @description("opens")
permit (principal == Workload::workload::"workload:nightly", action == Action::"openTask", resource);
@id("nightly-read") @description("reads") @max_ttl("600")
permit (principal == Workload::workload::"workload:nightly", action == Action::"orders:read", resource);
"#;

/// A broker that knows a client's key, and the parameters for that client.
async fn broker_and_client() -> (Fleet, Replica, Value) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let point = key.public_key_raw();
    let (x, y) = (base64url(&point[1..33]), base64url(&point[33..65]));
    let attestor = format!(
        "[[attestors]]\nkind = \"key\"\nname = \"workload\"\nkeys = [{{ workload = \"nightly\", \
         jwk = {{ kty = \"EC\", crv = \"P-256\", x = \"{x}\", y = \"{y}\", kid = \"first\" }} }}]\n"
    );
    let (fleet, replica) = Fleet::sqlite()
        .found_by_issuer()
        .tables(&attestor)
        .more_policies(POLICY)
        .start()
        .await;
    let used = fleet.token();
    replica.ask(&used).await.expect(201);
    let attestations: Vec<String> = (0..40).map(|_| fleet.token()).collect();
    let sub = "agent:reports";
    let elsewhere = json!({"sub": sub, "run": "run-1", "aud": "https://elsewhere.example"});
    let given = json!({
        "issuer": format!("http://{}", replica.address),
        "audience": ORDERS,
        "client": "nightly",
        "key": key.serialize_pem(),
        "kid": "first",
        "admin": fleet.admin,
        "attestations": attestations,
        "stranger": fleet.issuer.token(json!({"sub": "agent:orders", "run": "run-9"})),
        "for_another": fleet.issuer.token(elsewhere),
        "used": used,
    });
    (fleet, replica, given)
}

fn seen(ended: &Ended) -> Vec<&str> {
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    ended.stdout.lines().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_javascript_pass_untouched() {
    let (_fleet, _replica, given) = broker_and_client().await;
    let ended = node::script("oauth.mjs")
        .file("given", given.to_string())
        .run();
    assert_eq!(
        seen(&ended),
        [
            "discovery finds the endpoints by either document",
            "an attestation is exchanged for a token",
            "the token verifies by the published keys, for its audience alone",
            "rights in detail are granted as asked",
            "a registered key authenticates its client",
            "a token is bound to the key of its DPoP proof",
            "introspection reports a token as active until it is revoked",
            "errors of an exchange have the codes of the standards",
            "an invalid proof is reported as such",
            "a failed client authentication is reported as such",
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_servers_of_javascript_refuse_a_bound_token_without_its_key() {
    let bind = "client_certificates = \"bind\"";
    let (fleet, replica) = Fleet::sqlite().over_tls(bind, None).start().await;
    let clients = ["agent", "agent"].map(|name| {
        let own = Identity::client(name);
        json!({"key": own.key_pem, "cert": own.pem})
    });
    let server = Identity::server();
    let given = json!({
        "issuer": format!("https://{}", replica.address),
        "audience": ORDERS,
        "trusted": [fleet.tls().server.pem, server.pem],
        "server": {"key": server.key_pem, "certificate": server.pem},
        "clients": clients,
        "admin": fleet.admin,
        "attestations": (0..20).map(|_| fleet.token()).collect::<Vec<_>>(),
    });
    let ended = node::script("bound.mjs")
        .file("given", given.to_string())
        .run();
    assert_eq!(
        seen(&ended),
        [
            "a bound token is served with a proof by its key",
            "as a bearer token it is refused, with or without its proof",
            "a proof by another key, for another URL, method or token, is refused",
            "an unbound token is refused where a proof is required",
            "a bound token is served with its certificate",
            "without that certificate, or with another, it is refused",
            "a token without a certificate binding is refused where one is required",
            "a server that does not support certificates refuses a token bound to one",
            "introspection names the same binding",
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_python_passes_untouched() {
    let (_fleet, _replica, given) = broker_and_client().await;
    let ended = Launch::program(python_program("python"), ["oauth.py"])
        .file("oauth.py", include_str!("../foreign/oauth.py"))
        .file("given", given.to_string())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .run();
    assert_eq!(
        seen(&ended),
        [
            "discovery finds the endpoints",
            "an attestation is exchanged for a token that verifies by the published keys",
            "a registered key authenticates its client",
            "introspection reports a token as active until it is revoked",
            "errors have the codes of the standards",
        ]
    );
}

/// The rows about these libraries in the table of `docs/reference/standards.md`.
fn rows(libraries: &[&str]) -> Vec<String> {
    let document = include_str!("../../docs/reference/standards.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| "));
    let rows = rows.filter_map(|line| line.strip_suffix(" |"));
    let of = |row: &&str| {
        row.split(" | ")
            .next()
            .is_some_and(|name| libraries.contains(&name))
    };
    rows.filter(of).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_of_javascript_run_by_what_the_metadata_advertises() {
    let (_fleet, _replica, given) = broker_and_client().await;
    let ended = node::script("advertised.mjs")
        .file("given", given.to_string())
        .run();
    assert_eq!(seen(&ended), rows(&["openid-client", "oauth4webapi"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_of_python_run_by_what_the_metadata_advertises() {
    for (library, python) in [
        ("Authlib", python_program("python")),
        ("requests-oauthlib", other_python_program("python")),
    ] {
        let (_fleet, _replica, given) = broker_and_client().await;
        let ended = Launch::program(python, ["advertised.py", library])
            .file("advertised.py", include_str!("../foreign/advertised.py"))
            .file("given", given.to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .run();
        assert_eq!(seen(&ended), rows(&[library]));
    }
}

/// oidc-provider, which issues tokens to the clients registered in `tests/foreign/issuer.mjs`.
struct Provider {
    _process: Process,
    /// The issuer's identifier, as in its tokens.
    issuer: String,
    /// The URL at which it listens.
    url: String,
}

impl Provider {
    fn start() -> Self {
        let port = free_address().port();
        let mut process = node::script("issuer.mjs").arg(port.to_string()).spawn();
        process.wait_for_output("serving");
        Self {
            _process: process,
            issuer: format!("https://issuer-{port}.test"),
            url: format!("http://127.0.0.1:{port}"),
        }
    }

    /// A token of `client`, for `resource`.
    async fn token(&self, client: &str, resource: &str) -> String {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", client),
            ("client_secret", "test-only"),
            ("resource", resource),
        ];
        let at = Client::new(&self.url);
        let answer = send(at.request(reqwest::Method::POST, "/token").form(&form)).await;
        let granted = answer.expect(200);
        granted["access_token"].as_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_an_independent_issuer_attests_whom_it_names() {
    let provider = Provider::start();
    let attestor = format!(
        r#"
[[attestors]]
kind = "oidc"
name = "provider"
issuer = "{}"
discovery = "provider"
audience = "{AUDIENCE}"
typ = "at+jwt"
algorithms = ["ES256"]
single_tenant = true
identity = "{{sub}}"
instance = "{{run}}"
[attestors.claims]
sub = {{ type = "string", immutable = true }}
run = {{ type = "string", immutable = true, hidden = true }}
[endpoints.provider]
url = "{}"
use = ["discovery"]
"#,
        provider.issuer, provider.url
    );
    let policy = r#"
@id("provider-open") @description("opens")
permit (principal == Workload::provider::"provider:agent%3Areports", action == Action::"openTask", resource);
@id("provider-read") @description("reads") @max_ttl("600")
permit (principal == Workload::provider::"provider:agent%3Areports", action == Action::"orders:read", resource);
"#;
    let (_fleet, replica) = Fleet::sqlite()
        .tables(&attestor)
        .more_policies(policy)
        .start()
        .await;
    let token = provider.token("agent:reports", AUDIENCE).await;
    let granted = replica.ask(&token).await.expect(201);
    assert_eq!(granted["session"]["workload"], "provider:agent%3Areports");
    let (_, claims) = peek(granted["credential"]["access_token"].as_str().unwrap());
    assert_eq!(claims["client_id"], "provider:agent%3Areports");

    // The issuer knows this client too, but no policy permits it anything.
    let other = provider.token("agent:nobody", AUDIENCE).await;
    assert_eq!(replica.ask(&other).await.status, 403);
    // The same token again, a token for another server, and a token of another issuer.
    let elsewhere = provider.token("agent:reports", "https://elsewhere.example");
    let stranger = Provider::start();
    let strangers = stranger.token("agent:reports", AUDIENCE);
    let fresh = provider.token("agent:reports", AUDIENCE).await;
    for bad in [token, elsewhere.await, strangers.await]
        .into_iter()
        .chain(altered(&fresh))
    {
        let refused = replica.ask(&bad).await;
        assert_eq!(refused.status, 401, "{}", refused.text());
    }
    // None of these refusals used up the fresh token.
    replica.ask(&fresh).await.expect(201);
}

/// Copies of the token with other claims, without a signature, with a wrong signature, and with
/// another type.
fn altered(token: &str) -> Vec<String> {
    let parts: Vec<&str> = token.split('.').collect();
    let (header, claims) = peek(token);
    let put = |mut object: Value, name: &str, value: Value| {
        object[name] = value;
        base64url(object.to_string().as_bytes())
    };
    let swapped = match parts[2].split_at(1) {
        ("A", rest) => format!("B{rest}"),
        (_, rest) => format!("A{rest}"),
    };
    let of = |header: &str, claims: &str, signature: &str| format!("{header}.{claims}.{signature}");
    vec![
        of(
            parts[0],
            &put(claims.clone(), "run", json!("run-2")),
            parts[2],
        ),
        of(
            parts[0],
            &put(claims.clone(), "exp", json!(4_000_000_000_u64)),
            parts[2],
        ),
        of(
            &put(header.clone(), "typ", json!("JWT")),
            parts[1],
            parts[2],
        ),
        of(&put(header, "alg", json!("none")), parts[1], ""),
        of(parts[0], parts[1], &swapped),
        of(parts[0], parts[1], ""),
    ]
}
