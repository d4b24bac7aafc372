//! Clauses of the standards of OAuth and HTTP that third-party clients rely on, one test each: RFC
//! 6749 §5.2, 6750 §3, 7523, 8414, 8693, 9110 §12.5, 9449 §§4.3, 5 and 7.1, 9651.

use serde_json::{Value, json};

use crate::oauth::{
    ACCESS_TOKEN, BROKER, Form, JWT, JWT_BEARER, POLICY, exchange, post, token, with,
};
use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, assert_oauth_error, assert_problem, send};
use crate::support::issuer::unix_seconds;
use crate::support::keys::{Algorithm, Key, sign_jwt};
use crate::support::random_hex;

/// A broker, and a workload `nightly` with a registered key.
struct World {
    fleet: Fleet,
    replica: Replica,
    key: Key,
}

impl World {
    async fn begin() -> Self {
        let key = Key::generate(Algorithm::Es256);
        let (x, y) = (key.jwk()["x"].clone(), key.jwk()["y"].clone());
        let attestor = format!(
            "[[attestors]]\nkind = \"key\"\nname = \"workload\"\nkeys = [{{ workload = \"nightly\", \
             jwk = {{ kty = \"EC\", crv = \"P-256\", x = {x}, y = {y}, kid = \"{}\" }} }}]\n",
            key.kid,
        );
        let (fleet, replica) = Fleet::sqlite()
            .tables(&attestor)
            .more_policies(POLICY)
            .start()
            .await;
        Self {
            fleet,
            replica,
            key,
        }
    }

    fn assertion(&self, audience: Value) -> String {
        let now = unix_seconds();
        let mut header = self.key.header();
        header["typ"] = json!("client-authentication+jwt");
        let claims = json!({
            "iss": "nightly", "sub": "nightly", "aud": audience, "jti": random_hex(16),
            "iat": now, "exp": now + 60,
        });
        sign_jwt(&header, &claims, &self.key)
    }

    /// A form with client authentication by `private_key_jwt`.
    fn authenticated(&self, rest: &[(&'static str, &str)]) -> Form<'static> {
        let mut form = vec![
            ("client_id", "nightly".to_owned()),
            ("client_assertion_type", JWT_BEARER.to_owned()),
            ("client_assertion", self.assertion(json!(BROKER))),
        ];
        form.extend(
            rest.iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        form
    }

    async fn credentials(&self) -> Answer {
        token(&self.replica, &self.authenticated(&CREDENTIALS)).await
    }
}

const STATEMENT: &str = "application/token-introspection+jwt";

const CREDENTIALS: [(&str, &str); 4] = [
    ("grant_type", "client_credentials"),
    ("resource", "https://orders.example"),
    ("scope", "orders:read"),
    ("task_type", "job"),
];

async fn ask(
    replica: &Replica,
    path: &str,
    form: &[(&str, &str)],
    headers: &[(&str, &str)],
) -> Answer {
    let form = form
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    post(replica, path, &form.collect(), &headers).await
}

async fn proof(replica: &Replica, key: &Key, path: &str, token: Option<&str>) -> String {
    let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": key.jwk()});
    let mut claims = json!({
        "jti": random_hex(16), "htm": "POST", "htu": format!("{BROKER}{path}"),
        "iat": unix_seconds(), "nonce": replica.nonce().await,
    });
    if let Some(token) = token {
        let hash = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        claims["ath"] = json!(crate::support::keys::base64url(hash.as_ref()));
    }
    sign_jwt(&header, &claims, key)
}

fn challenge(answer: &Answer) -> String {
    answer
        .header("www-authenticate")
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metadata_names_the_ways_in_which_each_endpoint_authenticates() {
    let (_fleet, replica) = Fleet::sqlite().start().await;
    for path in [
        "/.well-known/oauth-authorization-server",
        "/.well-known/openid-configuration",
    ] {
        let told = replica.client.get(path).await.expect(200);
        for endpoint in ["introspection", "revocation"] {
            let methods = &told[format!("{endpoint}_endpoint_auth_methods_supported")];
            assert_eq!(methods, &json!(["private_key_jwt", "Bearer", "DPoP"]));
        }
        assert_eq!(
            told["token_endpoint_auth_methods_supported"],
            json!(["private_key_jwt", "none"])
        );
        for endpoint in ["token", "introspection", "revocation"] {
            let signed = &told[format!("{endpoint}_endpoint_auth_signing_alg_values_supported")];
            assert_eq!(signed, &json!(["EdDSA", "ES256"]), "{endpoint}");
        }
        // The token endpoint does not issue AWS sessions.
        assert_eq!(
            told["authorization_details_types_supported"],
            json!(["api"])
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_key_jwt_authenticates_at_every_endpoint_that_names_it() {
    let world = World::begin().await;
    let replica = &world.replica;
    let own = world.credentials().await.expect(200);
    let own = own["access_token"].as_str().unwrap();
    let asked = world.authenticated(&[("token", own)]);
    let told = post(replica, "/oauth2/introspect", &asked, &[])
        .await
        .expect(200);
    // The client is authenticated; policy decides whether it may learn about the token.
    assert_eq!(told, json!({"active": false}));
    let revoking = world.authenticated(&[("token", own)]);
    let done = post(replica, "/oauth2/revoke", &revoking, &[]).await;
    assert_eq!(done.status, 200, "{}", done.text());
    let admin = format!("Bearer {}", world.fleet.admin);
    let told = ask(
        replica,
        "/oauth2/introspect",
        &[("token", own)],
        &[("authorization", &admin)],
    )
    .await;
    assert_eq!(told.expect(200), json!({"active": false}), "revoked");

    for path in ["/oauth2/introspect", "/oauth2/revoke"] {
        // An assertion can be used only once.
        let again = post(replica, path, &revoking, &[]).await;
        assert_oauth_error(&again, 401, "invalid_client");
        let (name, other) = ("client_id", "somebody");
        let form = with(world.authenticated(&[("token", own)]), name, other);
        let strange = post(replica, path, &form, &[]).await;
        assert_oauth_error(&strange, 401, "invalid_client");
        let form = world.authenticated(&[("token", own)]);
        let twice = [("authorization", admin.clone())];
        let twice = post(replica, path, &form, &twice).await;
        assert_oauth_error(&twice, 400, "invalid_request");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_assertion_whose_audience_is_a_list_of_one_authenticates() {
    let world = World::begin().await;
    for (audience, good) in [
        (json!([BROKER]), true),
        (json!([BROKER, "https://elsewhere.example"]), false),
        (json!([BROKER, BROKER]), false),
        (json!([]), false),
    ] {
        let form = world.authenticated(&CREDENTIALS);
        let form = with(form, "client_assertion", &world.assertion(audience.clone()));
        let answer = token(&world.replica, &form).await;
        if good {
            answer.expect(200);
        } else {
            assert_oauth_error(&answer, 400, "invalid_client");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_proof_is_an_invalid_proof_and_not_an_invalid_request() {
    let world = World::begin().await;
    let (fleet, replica) = (&world.fleet, &world.replica);
    let key = Key::generate(Algorithm::Es256);
    let once = proof(replica, &key, "/oauth2/token", None).await;
    let dpop = [("dpop", once.clone())];
    post(replica, "/oauth2/token", &exchange(fleet), &dpop)
        .await
        .expect(200);
    let again = post(replica, "/oauth2/token", &exchange(fleet), &dpop).await;
    assert_oauth_error(&again, 400, "invalid_dpop_proof");
    // A used attestation stays an invalid request, even with a fresh proof.
    let used = exchange(fleet);
    token(replica, &used).await.expect(200);
    let fresh = [("dpop", proof(replica, &key, "/oauth2/token", None).await)];
    let again = post(replica, "/oauth2/token", &used, &fresh).await;
    assert_oauth_error(&again, 400, "invalid_request");

    // The same for a request to the broker's own API.
    let once = proof(replica, &key, "/v1/credentials", None).await;
    let request = |proof: &str| {
        replica
            .client
            .request(reqwest::Method::POST, "/v1/credentials")
            .bearer_auth(fleet.token())
            .header("dpop", proof)
            .json(&body())
    };
    send(request(&once)).await.expect(201);
    let again = send(request(&once)).await;
    assert_problem(&again, 401, "attestation-failed");
    assert!(challenge(&again).starts_with("DPoP error=\"invalid_dpop_proof\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_challenge_names_the_scheme_that_was_tried_and_invalid_token() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let key = Key::generate(Algorithm::Es256);
    let stranger = sign_jwt(
        &key.header(),
        &json!({"iss": "https://elsewhere.example"}),
        &key,
    );
    for path in ["/oauth2/introspect", "/oauth2/revoke"] {
        let form = [("token", "x")];
        let nobody = ask(&replica, path, &form, &[]).await;
        assert_oauth_error(&nobody, 401, "invalid_client");
        assert!(challenge(&nobody).starts_with("Bearer, DPoP algs=\"ES256 "));

        let bearer = format!("Bearer {stranger}");
        let strange = ask(&replica, path, &form, &[("authorization", &bearer)]).await;
        assert_oauth_error(&strange, 401, "invalid_token");
        assert_eq!(challenge(&strange), "Bearer error=\"invalid_token\"");

        let dpop = format!("DPoP {stranger}");
        let own = proof(&replica, &key, path, Some(&stranger)).await;
        let strange = [("authorization", dpop.as_str()), ("dpop", own.as_str())];
        let strange = ask(&replica, path, &form, &strange).await;
        assert_oauth_error(&strange, 401, "invalid_token");
        assert!(challenge(&strange).starts_with("DPoP error=\"invalid_token\", algs="));

        // The token is valid, but its proof is missing or is for another endpoint.
        let good = fleet.token();
        let dpop = format!("DPoP {good}");
        let unproven = ask(&replica, path, &form, &[("authorization", &dpop)]).await;
        assert_oauth_error(&unproven, 401, "invalid_dpop_proof");
        // The first refusal used up its token.
        let good = fleet.token();
        let dpop = format!("DPoP {good}");
        let elsewhere = proof(&replica, &key, "/v1/tasks", Some(&good)).await;
        let elsewhere = [
            ("authorization", dpop.as_str()),
            ("dpop", elsewhere.as_str()),
        ];
        let elsewhere = ask(&replica, path, &form, &elsewhere).await;
        assert_oauth_error(&elsewhere, 401, "invalid_dpop_proof");
        for refused in [unproven, elsewhere] {
            assert!(challenge(&refused).starts_with("DPoP error=\"invalid_dpop_proof\", algs="));
        }
    }
    let sessions = replica.client.get("/v1/sessions").await;
    assert_problem(&sessions, 401, "attestation-failed");
    assert!(challenge(&sessions).starts_with("Bearer, DPoP algs="));
    let sessions = replica.client.get_as(&stranger, "/v1/sessions").await;
    assert_problem(&sessions, 401, "attestation-failed");
    assert_eq!(challenge(&sessions), "Bearer error=\"invalid_token\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn basic_alone_is_challenged_with_basic() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let basic = [("authorization", "Basic YWdlbnQ6c2VjcmV0".to_owned())];
    for (path, form) in [
        ("/oauth2/token", exchange(&fleet)),
        (
            "/oauth2/token",
            vec![("grant_type", "client_credentials".to_owned())],
        ),
        ("/oauth2/introspect", vec![("token", "x".to_owned())]),
        ("/oauth2/revoke", vec![("token", "x".to_owned())]),
    ] {
        let answer = post(&replica, path, &form, &basic).await;
        assert_oauth_error(&answer, 401, "invalid_client");
        assert_eq!(challenge(&answer), "Basic realm=\"taskpass\"", "{path}");
    }
    // In addition to an assertion, it is a second method of authentication.
    let form = vec![
        ("grant_type", "client_credentials".to_owned()),
        ("client_assertion_type", JWT_BEARER.to_owned()),
        ("client_assertion", "a.b.c".to_owned()),
    ];
    let both = post(&replica, "/oauth2/token", &form, &basic).await;
    assert_oauth_error(&both, 400, "invalid_request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_at_the_token_endpoint_are_told_in_oauths_form() {
    let (_fleet, replica) = Fleet::sqlite()
        .limits([100_000, 100_000, 1, 30])
        .start()
        .await;
    let form = vec![("grant_type", "password".to_owned())];
    let mut limited = None;
    for _ in 0..50 {
        let answer = token(&replica, &form).await;
        if answer.status == 429 {
            limited = Some(answer);
            break;
        }
    }
    let limited = limited.unwrap();
    let told = assert_oauth_error(&limited, 429, "temporarily_unavailable");
    assert!(told["error_description"].is_string());
    assert!(limited.header("retry-after").is_some());
    assert!(limited.header("ratelimit").is_some());
    assert!(told.get("type").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_that_no_endpoint_of_oauths_has_is_refused_in_oauths_form() {
    let (_fleet, replica) = Fleet::sqlite().start().await;
    for path in ["/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"] {
        let answer = replica.client.get(path).await;
        assert_oauth_error(&answer, 405, "invalid_request");
        assert_eq!(answer.header("allow"), Some("POST"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scope_has_one_space_between_two_words() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let good = || exchange(&fleet);
    for bad in [
        "orders:read  orders:write",
        " orders:read",
        "orders:read ",
        "orders:read\torders:write",
        "orders:read\"",
        " ",
    ] {
        let answer = token(&replica, &with(good(), "scope", bad)).await;
        assert_oauth_error(&answer, 400, "invalid_scope");
    }
    token(&replica, &good()).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_of_weight_zero_is_not_given() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let admin = format!("Bearer {}", fleet.admin);
    for (accept, media_type) in [
        (format!("{STATEMENT};q=0"), "application/json"),
        (format!("{STATEMENT};q=0, */*"), "application/json"),
        (
            format!("application/json, {STATEMENT};q=0.5"),
            "application/json",
        ),
        ("*/*".to_owned(), "application/json"),
        ("application/json;q=0, */*".to_owned(), STATEMENT),
        (STATEMENT.to_owned(), STATEMENT),
        (format!("application/json;q=0.5, {STATEMENT}"), STATEMENT),
    ] {
        let headers = [
            ("authorization", admin.as_str()),
            ("accept", accept.as_str()),
        ];
        let answer = ask(&replica, "/oauth2/introspect", &[("token", "x")], &headers).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), Some(media_type), "{accept}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_is_a_structured_field() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let ask = async |key: &str| {
        let request = replica
            .client
            .request(reqwest::Method::POST, "/v1/credentials")
            .bearer_auth(fleet.token())
            .header("idempotency-key", key)
            .json(&body());
        send(request).await
    };
    let first = ask(r#""a\"b\\c""#).await.expect(201);
    // The same key in another spelling.
    let again = ask(r#" "a\"b\\c";note=1 "#).await.expect(201);
    assert_eq!(again["task"]["id"], first["task"]["id"]);
    for bad in ["abc", r#""a\c""#, r#""a", "b""#, "7", "?1"] {
        assert_problem(&ask(bad).await, 400, "invalid-request");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_htu_with_an_escaped_unreserved_letter_is_the_endpoint_s() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let key = Key::generate(Algorithm::Es256);
    for (htu, good) in [
        ("/oauth2/%74oken", true),
        ("/v1/../oauth2/./token", true),
        ("/oauth2%2Ftoken", false),
        ("/oauth2/Token", false),
    ] {
        let dpop = [("dpop", proof(&replica, &key, htu, None).await)];
        let answer = post(&replica, "/oauth2/token", &exchange(&fleet), &dpop).await;
        if good {
            answer.expect(200);
        } else {
            assert_oauth_error(&answer, 400, "invalid_dpop_proof");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_wanted_as_a_jwt_is_answered_as_one() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    for (wanted, issued) in [("", ACCESS_TOKEN), (ACCESS_TOKEN, ACCESS_TOKEN), (JWT, JWT)] {
        let form = with(exchange(&fleet), "requested_token_type", wanted);
        let granted = token(&replica, &form).await.expect(200);
        assert_eq!(granted["issued_token_type"], issued);
    }
}
