//! OAuth's endpoints, used as standard clients use them: tokens for attestations (RFC 8693), client
//! credentials with a key (RFC 7523), revocation (RFC 7009), and the standards' errors.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::fleet::{Fleet, Replica};
use crate::support::http::{Answer, assert_no_store, assert_oauth_error, send};
use crate::support::issuer::unix_seconds;
use crate::support::keys::{Algorithm, Key, hmac_jwt, peek, sign_jwt, verifies};
use crate::support::random_hex;

pub const BROKER: &str = "http://127.0.0.1:7070";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
pub const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

pub const POLICY: &str = r#"
@id("nightly-open") @description("opens")
permit (principal == Workload::workload::"workload:nightly", action == Action::"openTask", resource);
@id("nightly-read") @description("reads") @max_ttl("600")
permit (principal == Workload::workload::"workload:nightly", action == Action::"orders:read", resource);
"#;

pub type Form<'a> = Vec<(&'a str, String)>;

/// The form of a valid exchange, which tests change.
pub fn exchange(fleet: &Fleet) -> Form<'static> {
    vec![
        ("grant_type", EXCHANGE.into()),
        ("subject_token", fleet.token()),
        ("subject_token_type", JWT.into()),
        ("resource", "https://orders.example".into()),
        ("scope", "orders:read".into()),
        ("task_type", "job".into()),
    ]
}

/// The same form with a parameter replaced, or removed if `value` is empty.
pub fn with<'a>(mut form: Form<'a>, name: &'a str, value: &str) -> Form<'a> {
    form.retain(|(known, _)| *known != name);
    if !value.is_empty() {
        form.push((name, value.to_owned()));
    }
    form
}

pub async fn post(
    replica: &Replica,
    path: &str,
    form: &Form<'_>,
    headers: &[(&str, String)],
) -> Answer {
    let mut request = replica.client.request(Method::POST, path).form(form);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    send(request).await
}

pub async fn token(replica: &Replica, form: &Form<'_>) -> Answer {
    post(replica, "/oauth2/token", form, &[]).await
}

async fn sessions(fleet: &Fleet, replica: &Replica) -> usize {
    let listed = replica
        .client
        .get_as(&fleet.admin, "/v1/sessions")
        .await
        .expect(200);
    listed["sessions"].as_array().unwrap().len()
}

async fn is_active(fleet: &Fleet, replica: &Replica, access_token: &Value) -> bool {
    let form = vec![("token", access_token.as_str().unwrap().to_owned())];
    let bearer = [("authorization", format!("Bearer {}", fleet.admin))];
    let answer = post(replica, "/oauth2/introspect", &form, &bearer)
        .await
        .expect(200);
    answer["active"] == true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_is_exchanged_for_a_token_and_its_task() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let answer = token(&replica, &exchange(&fleet)).await;
    assert_no_store(&answer);
    let granted = answer.expect(200);
    assert_eq!(granted["issued_token_type"], ACCESS_TOKEN);
    assert_eq!(
        (&granted["token_type"], &granted["scope"]),
        (&json!("Bearer"), &json!("orders:read"))
    );
    assert_eq!(
        granted["authorization_details"][0]["actions"],
        json!(["orders:read"])
    );
    let access_token = &granted["access_token"];
    let (header, claims) = peek(access_token.as_str().unwrap());
    assert_eq!(
        (&header["typ"], &claims["aud"]),
        (&json!("at+jwt"), &json!("https://orders.example"))
    );
    let jwks = replica
        .client
        .get("/.well-known/jwks.json")
        .await
        .expect(200);
    assert!(verifies(
        access_token.as_str().unwrap(),
        key_of(access_token.as_str().unwrap(), &jwks)
    ));
    assert!(is_active(&fleet, &replica, access_token).await);

    // The answer names the task, which can be joined and ended by its handle.
    let (task, handle) = (
        granted["task"].as_str().unwrap(),
        granted["task_handle"].as_str().unwrap(),
    );
    let mut joining = with(exchange(&fleet), "task_type", "");
    joining.extend([
        ("task", task.to_owned()),
        ("task_handle", handle.to_owned()),
    ]);
    let joined = token(&replica, &joining).await.expect(200);
    assert_eq!(joined["task"], task);
    assert!(
        joined["task_handle"].is_null(),
        "the handle is returned only once"
    );
    let complete = format!("/v1/tasks/{task}/complete");
    let authorization = [("authorization", format!("Handle {handle}"))];
    let mut request = replica
        .client
        .request(Method::POST, &complete)
        .json(&json!({}));
    for (name, value) in &authorization {
        request = request.header(*name, value);
    }
    send(request).await.expect(200);
    assert!(!is_active(&fleet, &replica, access_token).await);

    let details =
        r#"[{"type":"api","actions":["orders:read"],"locations":["https://orders.example/v1/7"]}]"#;
    let form = with(
        with(exchange(&fleet), "scope", ""),
        "authorization_details",
        details,
    );
    let form = with(with(form, "resource", ""), "audience", "orders-api");
    let granted = token(&replica, &form).await.expect(200);
    assert_eq!(
        granted["authorization_details"],
        serde_json::from_str::<Value>(details).unwrap()
    );
}

/// Invalid forms, each with the standard's error code.
fn bad_forms(fleet: &Fleet, used: Form<'static>) -> Vec<(Form<'static>, &'static str)> {
    let good = || exchange(fleet);
    let stranger = Key::generate(Algorithm::Es256);
    let claims = fleet
        .issuer
        .claims(json!({"sub": "agent:reports", "run": "run-1"}));
    let hmac = hmac_jwt(
        &json!({"alg": "HS256", "typ": "JWT", "kid": fleet.issuer.key().kid}),
        &claims,
        fleet.issuer.key().public_pem().as_bytes(),
    );
    let unknown_type = r#"[{"type":"gcp","actions":["a"]}]"#;
    let unknown_field = r#"[{"type":"api","actions":["orders:read"],"more":1}]"#;
    let details = |text: &str| with(with(good(), "scope", ""), "authorization_details", text);
    let twice = |name: &'static str, value: &str| {
        let mut form = good();
        form.push((name, value.to_owned()));
        form
    };
    vec![
        (with(good(), "grant_type", ""), "invalid_request"),
        (
            with(good(), "grant_type", "password"),
            "unsupported_grant_type",
        ),
        (with(good(), "subject_token", ""), "invalid_request"),
        (with(good(), "subject_token", "a.b.c"), "invalid_request"),
        (with(good(), "subject_token", &hmac), "invalid_request"),
        (
            with(
                good(),
                "subject_token",
                &sign_jwt(&stranger.header(), &claims, &stranger),
            ),
            "invalid_request",
        ),
        (used, "invalid_request"),
        (with(good(), "subject_token_type", ""), "invalid_request"),
        (
            with(good(), "subject_token_type", ACCESS_TOKEN),
            "invalid_request",
        ),
        (
            with(
                good(),
                "requested_token_type",
                "urn:ietf:params:oauth:token-type:saml2",
            ),
            "invalid_request",
        ),
        (with(good(), "actor_token", "a.b.c"), "invalid_request"),
        (with(good(), "client_secret", "x"), "invalid_request"),
        (with(good(), "resource", ""), "invalid_target"),
        (
            with(good(), "resource", "https://elsewhere.example"),
            "invalid_target",
        ),
        (with(good(), "audience", "orders-api"), "invalid_target"),
        (twice("resource", "https://other.example"), "invalid_target"),
        (twice("scope", "orders:write"), "invalid_request"),
        (with(good(), "scope", ""), "invalid_scope"),
        (with(good(), "scope", "orders:delete"), "invalid_scope"),
        (with(good(), "scope", "orders:\u{e9}"), "invalid_scope"),
        (
            with(good(), "authorization_details", "[]"),
            "invalid_request",
        ),
        (details("[]"), "invalid_authorization_details"),
        (details("{"), "invalid_authorization_details"),
        (details(unknown_type), "invalid_authorization_details"),
        (details(unknown_field), "invalid_authorization_details"),
        (with(good(), "task_type", ""), "invalid_request"),
        (with(good(), "task_type", "unknown"), "invalid_request"),
        (with(good(), "task", "x"), "invalid_request"),
        (
            with(good(), "task_deadline_seconds", "0"),
            "invalid_request",
        ),
        (with(good(), "ttl_seconds", "soon"), "invalid_request"),
        (with(good(), "ttl_seconds", "0"), "invalid_request"),
        (with(good(), "ttl_seconds", "700"), "invalid_request"),
        (with(good(), "task_purpose", "a\0b"), "invalid_request"),
        (with(good(), "client_assertion", "a.b.c"), "invalid_request"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_is_the_standards_and_nothing_is_left_of_it() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let good = || exchange(&fleet);
    let used = good();
    token(&replica, &used).await.expect(200);
    let before = sessions(&fleet, &replica).await;
    for (form, error) in bad_forms(&fleet, used) {
        let answer = token(&replica, &form).await;
        assert_oauth_error(&answer, 400, error);
        assert_no_store(&answer);
    }
    // A denial names its decision, but not the policy.
    let denied = token(&replica, &with(good(), "scope", "orders:delete"))
        .await
        .json();
    assert!(denied["decision_id"].is_string(), "{denied}");
    assert_eq!(denied.as_object().unwrap().len(), 3);
    // The attestation belongs in the form, and nowhere else.
    let bearer = [("authorization", format!("Bearer {}", fleet.token()))];
    let both = post(&replica, "/oauth2/token", &good(), &bearer).await;
    assert_oauth_error(&both, 400, "invalid_request");
    let json = replica
        .client
        .post_json(&fleet.admin, "/oauth2/token", &json!({}))
        .await;
    assert!([400, 415].contains(&json.status));
    assert_eq!(
        sessions(&fleet, &replica).await,
        before,
        "something was left"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn introspection_is_signed_where_that_is_asked_for() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let granted = token(&replica, &exchange(&fleet)).await.expect(200);
    let access_token = granted["access_token"].as_str().unwrap().to_owned();
    let jwks = replica.client.get("/.well-known/jwks.json").await;
    let jwks = jwks.expect(200);
    let ask = async |token: &str, accept: &str| {
        let form = vec![("token", token.to_owned())];
        let headers = [
            ("authorization", format!("Bearer {}", fleet.admin)),
            ("accept", accept.to_owned()),
        ];
        post(&replica, "/oauth2/introspect", &form, &headers).await
    };
    let signed = "application/json;q=0.5, application/token-introspection+jwt";
    let answer = ask(&access_token, signed).await;
    assert_eq!(answer.status, 200);
    let media_type = answer.header("content-type").unwrap();
    assert_eq!(media_type, "application/token-introspection+jwt");
    assert_no_store(&answer);
    let statement = answer.text();
    assert!(verifies(&statement, key_of(&statement, &jwks)));
    let (header, claims) = peek(&statement);
    assert_eq!(header["typ"], "token-introspection+jwt");
    assert_eq!(claims["iss"], BROKER);
    assert!(claims["aud"].is_string(), "{claims}");
    assert!(claims["iat"].as_i64().unwrap() <= unix_seconds());
    for absent in ["sub", "exp", "jti"] {
        assert_eq!(
            claims.get(absent),
            None,
            "the signed answer must not pass as a token"
        );
    }
    // The signed answer has the same content as the unsigned one.
    let plain = ask(&access_token, "application/json").await.expect(200);
    assert_eq!(claims["token_introspection"], plain);
    assert_eq!(plain["active"], true);
    // The signed answer is no token, here or as an attestation.
    assert_eq!(
        ask(&statement, "*/*").await.expect(200),
        json!({"active": false})
    );
    let form = with(exchange(&fleet), "subject_token", &statement);
    assert_oauth_error(&token(&replica, &form).await, 400, "invalid_request");
    // About an inactive token it says only that.
    let (_, claims) = peek(&ask("a.b.c", signed).await.text());
    assert_eq!(claims["token_introspection"], json!({"active": false}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_binds_the_token_and_a_bad_one_gets_none() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let key = Key::generate(Algorithm::Es256);
    let nonce = replica.nonce().await;
    let proof = |change: Value| {
        let mut header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": key.jwk()});
        let mut claims = json!({
            "jti": random_hex(16), "htm": "POST", "htu": format!("{BROKER}/oauth2/token"),
            "iat": unix_seconds(), "nonce": nonce,
        });
        for (name, value) in change.as_object().cloned().unwrap() {
            let part = if header[&name].is_null() {
                &mut claims
            } else {
                &mut header
            };
            part[name] = value;
        }
        sign_jwt(&header, &claims, &key)
    };
    let ask = async |proofs: &[String]| {
        let headers: Vec<_> = proofs.iter().map(|proof| ("dpop", proof.clone())).collect();
        post(&replica, "/oauth2/token", &exchange(&fleet), &headers).await
    };
    let once = proof(json!({}));
    let granted = ask(std::slice::from_ref(&once)).await.expect(200);
    assert_eq!(granted["token_type"], "DPoP");
    assert!(peek(granted["access_token"].as_str().unwrap()).1["cnf"]["jkt"].is_string());
    let before = sessions(&fleet, &replica).await;
    let now = unix_seconds();
    for bad in [
        json!({"htm": "GET"}),
        json!({"htu": format!("{BROKER}/v1/credentials")}),
        json!({"htu": "https://elsewhere.example/oauth2/token"}),
        json!({"iat": now + 600}),
        json!({"iat": now - 600}),
        json!({"typ": "JWT"}),
        json!({"alg": "HS256"}),
        json!({"alg": "none"}),
        json!({"jti": null}),
        json!({"jwk": Key::generate(Algorithm::Es256).jwk()}),
    ] {
        let answer = ask(&[proof(bad.clone())]).await;
        let error = answer.json();
        assert_eq!(
            (answer.status, &error["error"]),
            (400, &json!("invalid_dpop_proof")),
            "{bad}"
        );
    }
    for bad in [
        json!(null),
        json!(7),
        json!("made-up"),
        json!(format!("{nonce}A")),
    ] {
        let answer = ask(&[proof(json!({"nonce": bad}))]).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (400, &json!("use_dpop_nonce")),
            "{bad}"
        );
        assert!(answer.header("dpop-nonce").is_some());
    }
    assert_eq!(
        ask(&[proof(json!({})), proof(json!({}))]).await.status,
        400,
        "two proofs"
    );
    assert_eq!(
        ask(&[once]).await.status,
        400,
        "a proof can be used only once"
    );
    assert_eq!(
        sessions(&fleet, &replica).await,
        before,
        "something was left"
    );
}

/// The published key with the token's key id.
fn key_of<'a>(token: &str, jwks: &'a Value) -> &'a Value {
    let (header, _) = peek(token);
    let mut keys = jwks["keys"].as_array().unwrap().iter();
    keys.find(|key| key["kid"] == header["kid"]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_key_authenticates_its_client() {
    let key = Key::generate(Algorithm::Es256);
    let (x, y) = (key.jwk()["x"].clone(), key.jwk()["y"].clone());
    let attestor = format!(
        "[[attestors]]\nkind = \"key\"\nname = \"workload\"\nkeys = [{{ workload = \"nightly\", \
         jwk = {{ kty = \"EC\", crv = \"P-256\", x = {x}, y = {y}, kid = \"{kid}\" }} }}]\n",
        kid = key.kid,
    );
    let (fleet, replica) = Fleet::sqlite()
        .tables(&attestor)
        .more_policies(POLICY)
        .start()
        .await;
    let assertion = |change: Value| {
        let now = unix_seconds();
        let mut header = key.header();
        header["typ"] = json!("client-authentication+jwt");
        let mut claims = json!({
            "iss": "nightly", "sub": "nightly", "aud": BROKER, "jti": random_hex(16),
            "iat": now, "exp": now + 60,
        });
        for (name, value) in change.as_object().cloned().unwrap() {
            claims[name] = value;
        }
        sign_jwt(&header, &claims, &key)
    };
    let form = |assertion: String| -> Form<'static> {
        vec![
            ("grant_type", "client_credentials".into()),
            ("client_assertion_type", JWT_BEARER.into()),
            ("client_assertion", assertion),
            ("resource", "https://orders.example".into()),
            ("scope", "orders:read".into()),
            ("task_type", "job".into()),
        ]
    };
    let named = with(form(assertion(json!({}))), "client_id", "nightly");
    let granted = token(&replica, &named).await.expect(200);
    let (_, claims) = peek(granted["access_token"].as_str().unwrap());
    assert_eq!(claims["client_id"], "workload:nightly");
    let before = sessions(&fleet, &replica).await;
    for bad in [
        named,
        with(form(assertion(json!({}))), "client_id", "somebody"),
        with(form(assertion(json!({}))), "client_assertion_type", ""),
        form(assertion(json!({"aud": format!("{BROKER}/oauth2/token")}))),
        form(assertion(json!({"exp": unix_seconds() + 900}))),
    ] {
        let answer = token(&replica, &bad).await;
        // A 401 must name a scheme of `Authorization`, and this endpoint accepts none.
        assert_oauth_error(&answer, 400, "invalid_client");
        assert!(answer.header("www-authenticate").is_none());
    }
    assert_eq!(
        sessions(&fleet, &replica).await,
        before,
        "something was left"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_revokes_its_own_token_and_nobody_elses() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let granted = token(&replica, &exchange(&fleet)).await.expect(200);
    let access_token = &granted["access_token"];
    let revoke = async |who: String, token: &str| {
        let form = vec![
            ("token", token.to_owned()),
            ("token_type_hint", "refresh_token".to_owned()),
        ];
        let bearer = [("authorization", format!("Bearer {who}"))];
        post(&replica, "/oauth2/revoke", &form, &bearer).await
    };
    let own = access_token.as_str().unwrap();
    let other = fleet
        .issuer
        .token(json!({"sub": "agent:orders", "run": "run-9"}));
    assert_oauth_error(&revoke(other, own).await, 400, "unauthorized_client");
    let nobody = post(
        &replica,
        "/oauth2/revoke",
        &vec![("token", own.to_owned())],
        &[],
    )
    .await;
    assert_oauth_error(&nobody, 401, "invalid_client");
    assert!(is_active(&fleet, &replica, access_token).await);
    let done = revoke(fleet.token(), own).await;
    assert_eq!((done.status, done.text().as_str()), (200, ""));
    assert_no_store(&done);
    assert!(!is_active(&fleet, &replica, access_token).await);
    // Revoking again, or revoking an unknown token, succeeds.
    assert_eq!(revoke(fleet.token(), own).await.status, 200);
    assert_eq!(revoke(fleet.token(), "no token").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metadata_says_what_is_served() {
    let (_fleet, replica) = Fleet::sqlite().start().await;
    for path in [
        "/.well-known/oauth-authorization-server",
        "/.well-known/openid-configuration",
    ] {
        let told = replica.client.get(path).await.expect(200);
        assert_eq!(told["issuer"], BROKER);
        for (name, path) in [
            ("token_endpoint", "/oauth2/token"),
            ("introspection_endpoint", "/oauth2/introspect"),
            ("revocation_endpoint", "/oauth2/revoke"),
        ] {
            assert_eq!(told[name], format!("{BROKER}{path}"));
        }
        assert!(
            told["grant_types_supported"]
                .as_array()
                .unwrap()
                .contains(&json!(EXCHANGE))
        );
    }
}
