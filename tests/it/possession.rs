//! Proofs of possession (RFC 9449, RFC 8705): which combinations of scheme, token and proof the
//! broker accepts, at every endpoint that takes an attestation.

use reqwest::{Method, RequestBuilder};
use serde_json::json;

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, assert_problem, send};
use crate::support::issuer::unix_seconds;
use crate::support::keys::{Algorithm, Key, base64url, sign_jwt};
use crate::support::random_hex;
use crate::support::rig::Kind;

/// The broker's issuer URL. The broker listens at another address in each test.
const BROKER: &str = "http://127.0.0.1:7070";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// The way in which a token is presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Bearer,
    Dpop,
    Parameter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// An attestation that names no key.
    Plain,
    /// An attestation that its issuer bound to the caller's key.
    Bound,
    Admin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    None,
    /// By the caller's key, without `ath`.
    Good,
    /// By the caller's key, with the token's hash.
    WithHash,
    /// By the caller's key, with the hash of another token.
    OtherHash,
    /// By a thief's key, with the token's hash.
    Thief,
    /// Two headers, each of which is valid alone.
    Twice,
}

const PROOFS: [Proof; 6] = [
    Proof::None,
    Proof::Good,
    Proof::WithHash,
    Proof::OtherHash,
    Proof::Thief,
    Proof::Twice,
];

/// The rules of RFC 9449 §4.3, §7.1 and §7.2, and of RFC 7800 for a token that names its key.
fn is_taken(scheme: Scheme, token: Token, proof: Proof) -> bool {
    match (token, scheme) {
        // The token is bound to no key, so it must come without a proof.
        (Token::Admin, Scheme::Bearer) => proof == Proof::None,
        // §7.2: a token that is bound to a key is not accepted as a bearer token.
        (Token::Admin, _) | (Token::Bound, Scheme::Bearer) => false,
        (Token::Plain, Scheme::Bearer | Scheme::Parameter) => {
            !matches!(proof, Proof::OtherHash | Proof::Twice)
        }
        (Token::Plain, Scheme::Dpop) => matches!(proof, Proof::WithHash | Proof::Thief),
        (Token::Bound, Scheme::Dpop) => proof == Proof::WithHash,
        (Token::Bound, Scheme::Parameter) => matches!(proof, Proof::Good | Proof::WithHash),
    }
}

struct Keys {
    own: Key,
    thief: Key,
}

/// The RFC 7638 thumbprint of a P-256 key.
fn thumbprint(key: &Key) -> String {
    let jwk = key.jwk();
    let canonical = format!(
        "{{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":{},\"y\":{}}}",
        jwk["x"], jwk["y"]
    );
    hash(&canonical)
}

fn hash(text: &str) -> String {
    base64url(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref())
}

fn proof(key: &Key, method: &Method, path: &str, nonce: &str, ath: Option<String>) -> String {
    let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": key.jwk()});
    let mut claims = json!({
        "jti": random_hex(16), "htm": method.as_str(), "htu": format!("{BROKER}{path}"),
        "iat": unix_seconds(), "nonce": nonce,
    });
    if let Some(ath) = ath {
        claims["ath"] = json!(ath);
    }
    sign_jwt(&header, &claims, key)
}

/// The proof headers of one request.
fn proofs(
    kind: Proof,
    keys: &Keys,
    token: &str,
    method: &Method,
    path: &str,
    nonce: &str,
) -> Vec<String> {
    let make = |key: &Key, ath| proof(key, method, path, nonce, ath);
    match kind {
        Proof::None => vec![],
        Proof::Good => vec![make(&keys.own, None)],
        Proof::WithHash => vec![make(&keys.own, Some(hash(token)))],
        Proof::OtherHash => vec![make(&keys.own, Some(hash("another")))],
        Proof::Thief => vec![make(&keys.thief, Some(hash(token)))],
        Proof::Twice => (0..2).map(|_| make(&keys.own, Some(hash(token)))).collect(),
    }
}

/// An endpoint, and how to call it.
struct Door {
    method: Method,
    path: String,
    ask: fn(RequestBuilder, &str) -> RequestBuilder,
    /// Whether the endpoint takes the token in a form, and not in a header.
    in_form: bool,
}

fn doors() -> Vec<Door> {
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    let door = |method: Method, path: &str, ask: fn(RequestBuilder, &str) -> RequestBuilder| Door {
        method,
        path: path.to_owned(),
        ask,
        in_form: false,
    };
    let token_form: fn(RequestBuilder, &str) -> RequestBuilder =
        |request, _| request.form(&[("token", "x")]);
    vec![
        door(Method::POST, "/v1/credentials", |request, _| {
            request.json(&body())
        }),
        door(Method::POST, "/v1/tasks", |request, _| {
            request.json(&json!({"type": "job"}))
        }),
        door(
            Method::POST,
            &format!("/v1/tasks/{unknown}/heartbeat"),
            |request, _| request.json(&json!({})),
        ),
        door(Method::GET, "/v1/sessions", |request, _| request),
        door(
            Method::GET,
            &format!("/v1/decisions/{unknown}"),
            |request, _| request,
        ),
        door(Method::GET, "/v1/admins", |request, _| request),
        door(Method::POST, "/oauth2/introspect", token_form),
        door(Method::POST, "/oauth2/revoke", token_form),
        Door {
            in_form: true,
            ..door(Method::POST, "/oauth2/token", |request, token| {
                request.form(&[
                    ("grant_type", EXCHANGE),
                    ("subject_token", token),
                    ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
                    ("resource", "https://orders.example"),
                    ("scope", "orders:read"),
                    ("task_type", "job"),
                ])
            })
        },
    ]
}

/// Whether the broker accepted the caller's evidence, even if it refused the request later.
fn was_taken(door: &Door, answer: &Answer) -> bool {
    if !door.in_form {
        // The bootstrap token is accepted everywhere, but has few rights.
        return answer.status != 401;
    }
    if answer.status == 200 {
        return true;
    }
    let error = answer.json();
    assert_eq!(answer.status, 400, "{error}");
    let told = ["invalid_dpop_proof", "invalid_request"];
    assert!(told.contains(&error["error"].as_str().unwrap()), "{error}");
    false
}

fn attestation(fleet: &Fleet, token: Token, keys: &Keys) -> String {
    let mut claims = json!({"sub": "agent:reports", "run": "run-1"});
    match token {
        Token::Admin => return fleet.admin.clone(),
        Token::Plain => {}
        Token::Bound => claims["cnf"] = json!({"jkt": thumbprint(&keys.own)}),
    }
    fleet.issuer.token(claims)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_scheme_token_and_proof_is_taken_as_the_rfc_wants_at_every_door() {
    let (fleet, replica) = Fleet::sqlite().start().await;
    let keys = Keys {
        own: Key::generate(Algorithm::Es256),
        thief: Key::generate(Algorithm::Es256),
    };
    for door in doors() {
        let schemes: &[Scheme] = if door.in_form {
            &[Scheme::Parameter]
        } else {
            &[Scheme::Bearer, Scheme::Dpop]
        };
        for scheme in schemes {
            for token in [Token::Plain, Token::Bound, Token::Admin] {
                if token == Token::Admin && door.in_form {
                    continue;
                }
                for kind in PROOFS {
                    let text = attestation(&fleet, token, &keys);
                    let mut request = replica.client.request(door.method.clone(), &door.path);
                    request = (door.ask)(request, &text);
                    request = match scheme {
                        Scheme::Bearer => request.header("authorization", format!("Bearer {text}")),
                        Scheme::Dpop => request.header("authorization", format!("DPoP {text}")),
                        Scheme::Parameter => request,
                    };
                    let nonce = replica.nonce().await;
                    for proof in proofs(kind, &keys, &text, &door.method, &door.path, &nonce) {
                        request = request.header("dpop", proof);
                    }
                    let answer = send(request).await;
                    // The bootstrap token is accepted and then refused, because it cannot get
                    // credentials.
                    assert_eq!(
                        was_taken(&door, &answer),
                        is_taken(*scheme, token, kind)
                            && !(token == Token::Admin && opens(&door.path)),
                        "{scheme:?} {token:?} {kind:?} at {}: {}",
                        door.path,
                        answer.text()
                    );
                }
            }
        }
    }
}

/// Whether an endpoint serves only workloads, so that it refuses an administrator's token.
fn opens(path: &str) -> bool {
    ["/v1/credentials", "/v1/tasks"].contains(&path)
}

/// Requests a credential with a token that is bound to `key`.
async fn ask(replica: &Replica, token: &str, key: &Key) -> Answer {
    let (method, path) = (Method::POST, "/v1/credentials");
    let nonce = replica.nonce().await;
    let proof = proof(key, &method, path, &nonce, Some(hash(token)));
    let request = replica.client.request(method, path).json(&body());
    let request = request.header("authorization", format!("DPoP {token}"));
    send(request.header("dpop", proof)).await
}

async fn begin(kind: Kind) -> (Fleet, Replica) {
    Fleet::on(kind).start().await
}

on_both_stores! {
    by reference;

    fn a_stolen_attestation_that_is_bound_to_a_key_gets_nothing_with_the_thiefs;
    fn a_bad_proof_uses_up_the_attestation_that_it_came_with;
    fn a_proof_without_a_nonce_leaves_the_attestation_to_its_own_key;
    fn a_proof_in_the_wrong_scheme_is_used_up_and_the_token_that_is_bound_to_its_key_is_not;
    fn a_confirmation_method_that_is_not_known_does_not_hold;
    fn a_proof_beside_a_handle_names_no_other_token;
}

async fn a_stolen_attestation_that_is_bound_to_a_key_gets_nothing_with_the_thiefs(
    (fleet, replica): &(Fleet, Replica),
) {
    let keys = Keys {
        own: Key::generate(Algorithm::Es256),
        thief: Key::generate(Algorithm::Es256),
    };
    let token = attestation(fleet, Token::Bound, &keys);
    let stolen = ask(replica, &token, &keys.thief).await;
    let problem = assert_problem(&stolen, 401, "attestation-failed");
    assert_eq!(
        (&problem["reason"], &problem["claim"]),
        (&json!("confirmation"), &json!("cnf"))
    );
    assert!(
        stolen
            .header("www-authenticate")
            .unwrap()
            .starts_with("DPoP error=\"invalid_token\"")
    );
    let bare = replica
        .client
        .post_json(&token, "/v1/credentials", &body())
        .await;
    assert_problem(&bare, 401, "attestation-failed");
    // Neither attempt used the token up, and its owner's credential is bound to the owner's
    // key.
    let granted = ask(replica, &token, &keys.own).await.expect(201);
    let access = granted["credential"]["access_token"].as_str().unwrap();
    let claims = crate::support::keys::peek(access).1;
    assert_eq!(claims["cnf"], json!({"jkt": thumbprint(&keys.own)}));
}

async fn a_bad_proof_uses_up_the_attestation_that_it_came_with(
    (fleet, replica): &(Fleet, Replica),
) {
    let keys = Keys {
        own: Key::generate(Algorithm::Es256),
        thief: Key::generate(Algorithm::Es256),
    };
    for kind in [Proof::None, Proof::Good, Proof::OtherHash, Proof::Twice] {
        let token = attestation(fleet, Token::Plain, &keys);
        let (method, path) = (Method::POST, "/v1/credentials");
        let nonce = replica.nonce().await;
        let mut request = replica.client.request(method.clone(), path).json(&body());
        for proof in proofs(kind, &keys, &token, &method, path, &nonce) {
            request = request.header("dpop", proof);
        }
        let refused = send(request.header("authorization", format!("DPoP {token}"))).await;
        assert_eq!(
            assert_problem(&refused, 401, "attestation-failed")["reason"],
            "bad_proof",
            "{kind:?}"
        );
        let bare = replica.client.post_json(&token, path, &body()).await;
        assert_eq!(
            assert_problem(&bare, 401, "attestation-failed")["reason"],
            "replayed",
            "{kind:?}"
        );
        let proven = ask(replica, &token, &keys.own).await;
        assert_eq!(
            assert_problem(&proven, 401, "attestation-failed")["reason"],
            "replayed",
            "{kind:?}"
        );
    }
}

async fn a_proof_without_a_nonce_leaves_the_attestation_to_its_own_key(
    (fleet, replica): &(Fleet, Replica),
) {
    let keys = Keys {
        own: Key::generate(Algorithm::Es256),
        thief: Key::generate(Algorithm::Es256),
    };
    let token = attestation(fleet, Token::Plain, &keys);
    let path = "/v1/credentials";
    let unnumbered = proof(&keys.own, &Method::POST, path, "", Some(hash(&token)));
    let request = replica.client.request(Method::POST, path).json(&body());
    let request = request.header("authorization", format!("DPoP {token}"));
    let wanted = send(request.header("dpop", unnumbered)).await;
    assert_eq!(wanted.status, 401, "{}", wanted.text());
    assert!(
        wanted
            .header("www-authenticate")
            .unwrap()
            .contains("use_dpop_nonce")
    );
    // The broker has seen the token with this key, so another key or none is refused.
    let bare = replica.client.post_json(&token, path, &body()).await;
    assert_eq!(
        assert_problem(&bare, 401, "attestation-failed")["reason"],
        "replayed"
    );
    let stolen = ask(replica, &token, &keys.thief).await;
    assert_eq!(
        assert_problem(&stolen, 401, "attestation-failed")["reason"],
        "replayed"
    );
    ask(replica, &token, &keys.own).await.expect(201);
    let again = ask(replica, &token, &keys.own).await;
    assert_eq!(
        assert_problem(&again, 401, "attestation-failed")["reason"],
        "replayed"
    );
}

async fn a_proof_in_the_wrong_scheme_is_used_up_and_the_token_that_is_bound_to_its_key_is_not(
    (fleet, replica): &(Fleet, Replica),
) {
    let keys = Keys {
        own: Key::generate(Algorithm::Es256),
        thief: Key::generate(Algorithm::Es256),
    };
    let token = attestation(fleet, Token::Bound, &keys);
    let path = "/v1/credentials";
    let nonce = replica.nonce().await;
    let shown = proof(&keys.own, &Method::POST, path, &nonce, Some(hash(&token)));
    let present = async |scheme: &str| {
        let request = replica.client.request(Method::POST, path).json(&body());
        let request = request.header("authorization", format!("{scheme} {token}"));
        send(request.header("dpop", shown.clone())).await
    };
    let refused = present("Bearer").await;
    assert_eq!(
        assert_problem(&refused, 401, "attestation-failed")["reason"],
        "confirmation"
    );
    // An attacker who captured token and proof together gets nothing.
    let replayed = present("DPoP").await;
    assert_eq!(
        assert_problem(&replayed, 401, "attestation-failed")["reason"],
        "bad_proof"
    );
}

async fn a_confirmation_method_that_is_not_known_does_not_hold(
    (fleet, replica): &(Fleet, Replica),
) {
    let key = Key::generate(Algorithm::Es256);
    let own = thumbprint(&key);
    for cnf in [
        json!({}),
        json!([]),
        json!("x"),
        json!(null),
        json!({"jkt": 7}),
        json!({"jkt": ""}),
        json!({"jwk": key.jwk()}),
        json!({"kid": "k"}),
        json!({"jku": "https://evil.example"}),
        json!({"jkt": own, "kid": "k"}),
        json!({"jkt": own, "x5t#S256": "AAAA"}),
        json!({"x5t#S256": "AAAA"}),
    ] {
        let claims = json!({"sub": "agent:reports", "run": "run-1"});
        let mut claims = fleet.issuer.claims(claims);
        claims["cnf"] = cnf.clone();
        let signer = fleet.issuer.key();
        let token = fleet.issuer.token_with(&signer.header(), &claims, &signer);
        let problem = ask(replica, &token, &key).await;
        let problem = assert_problem(&problem, 401, "attestation-failed");
        assert_eq!(problem["reason"], "confirmation", "{cnf}: {problem}");
    }
}

async fn a_proof_beside_a_handle_names_no_other_token((fleet, replica): &(Fleet, Replica)) {
    let key = Key::generate(Algorithm::Es256);
    let (method, path) = (Method::POST, "/v1/credentials");
    let nonce = replica.nonce().await;
    let opening = proof(&key, &method, path, &nonce, None);
    let request = replica
        .client
        .request(method, path)
        .bearer_auth(fleet.token());
    let granted = send(request.header("dpop", opening).json(&body()))
        .await
        .expect(201);
    let task = &granted["task"];
    let path = format!("/v1/tasks/{}/heartbeat", task["id"].as_str().unwrap());
    let handle = task["handle"].as_str().unwrap();
    let beat = async |count: usize| {
        let nonce = replica.nonce().await;
        let mut request = replica
            .client
            .request(Method::POST, &path)
            .header("authorization", format!("Handle {handle}"))
            .json(&json!({}));
        for _ in 0..count {
            request = request.header("dpop", proof(&key, &Method::POST, &path, &nonce, None));
        }
        send(request).await
    };
    assert_problem(&beat(0).await, 404, "not-found");
    beat(1).await.expect(200);
    assert_problem(&beat(2).await, 401, "attestation-failed");
}
