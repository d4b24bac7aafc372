use futures_util::FutureExt as _;
use serde_json::json;
use wiremock::{MockServer, ResponseTemplate};

use super::super::tests::testing::{TestKey, now, ok, serve, serve_keys, with_endpoints};
use super::*;
use crate::domain::endpoint::{EndpointName, EndpointUse};

const DISCOVERY: &str = "/.well-known/openid-configuration";

fn source(issuer: &str) -> Arc<KeySource> {
    source_for(issuer, 600)
}

/// A source that accepts a set for this long while the issuer does not answer.
fn source_for(issuer: &str, max_stale_seconds: u64) -> Arc<KeySource> {
    let table = with_endpoints(&mut [json!({"name": "test", "issuer": issuer})]);
    let name = EndpointName::try_from("test".to_owned()).unwrap();
    let own = table.find(&name, EndpointUse::Discovery).unwrap();
    let tracker = TaskTracker::new();
    KeySource::discovered("test", issuer, Some(own), max_stale_seconds, tracker).unwrap()
}

async fn fetches(server: &MockServer) -> usize {
    let requests = server.received_requests().await.unwrap();
    requests.iter().filter(|r| r.url.path() == "/jwks").count()
}

async fn find(source: &Arc<KeySource>, kid: &str, at: Timestamp) -> Result<(), KeyError> {
    let keys = source.keys(Some(kid), Algorithm::Es256, at).await?;
    assert_eq!(keys[0].kid(), Some(kid));
    Ok(())
}

#[tokio::test]
async fn one_odd_key_does_not_spoil_the_others() {
    let server = MockServer::start().await;
    let mut private = TestKey::new().jwk_named("private");
    private["d"] = json!("AAAA");
    let keys = json!([
        {"kty": "oct", "k": "AAAA", "kid": "shared"},
        private,
        "text",
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "coin"},
        TestKey::new().jwk_named("good"),
    ]);
    serve_keys(&server, keys).await;
    let source = source(&server.uri());
    assert_eq!(find(&source, "good", now()).await, Ok(()));
    for odd in ["shared", "private", "coin"] {
        assert_eq!(find(&source, odd, now()).await, Err(KeyError::Unknown));
    }
    let only = source.keys(None, Algorithm::Es256, now()).await;
    assert_eq!(only.unwrap()[0].kid(), Some("good"));
    let other = source.keys(Some("good"), Algorithm::Rs256, now()).await;
    assert_eq!(other.unwrap_err(), KeyError::Unknown);
}

#[tokio::test]
async fn of_two_usable_keys_with_one_kid_the_second_verifies_too() {
    let server = MockServer::start().await;
    let (first, second, stranger) = (TestKey::new(), TestKey::new(), TestKey::new());
    serve_keys(
        &server,
        json!([first.jwk_named("same"), second.jwk_named("same")]),
    )
    .await;
    let source = source(&server.uri());
    let allowed = [Algorithm::Es256];
    for (key, good) in [(&first, true), (&second, true), (&stranger, false)] {
        let token = key.sign(
            &json!({"alg": "ES256", "kid": "same"}),
            &json!({"iss": "i"}),
        );
        let token = UnverifiedJwt::parse(&token).unwrap();
        let keys = source.keys(Some("same"), Algorithm::Es256, now()).await;
        let verified = verify_with(&token, &keys.unwrap(), &allowed);
        assert_eq!(verified.is_ok(), good);
    }
}

#[test]
fn no_more_keys_of_one_kid_are_tried_than_four() {
    let keys: Vec<_> = (0..MAX_OF_ONE_NAME + 3)
        .filter_map(|_| usable_key(TestKey::new().jwk_named("same"), KeyUse::Signatures))
        .collect();
    let named = select(&keys, Some("same"), Algorithm::Es256);
    assert_eq!(named.len(), MAX_OF_ONE_NAME);
    assert!(select(&keys, None, Algorithm::Es256).is_empty());
}

#[tokio::test]
async fn fifty_unknown_keys_cost_one_fetch() {
    let server = MockServer::start().await;
    serve_keys(&server, json!([TestKey::new().jwk_named("a")])).await;
    let source = source(&server.uri());
    let unknown = |round: u64| {
        let source = Arc::clone(&source);
        async move {
            let at = now().plus_seconds(round);
            let asked = (0..50).map(|index| {
                let source = Arc::clone(&source);
                async move { find(&source, &format!("../{index}"), at).await }
            });
            futures_util::future::join_all(asked).await
        }
    };
    assert!(
        unknown(0)
            .await
            .iter()
            .all(|r| *r == Err(KeyError::Unknown))
    );
    assert_eq!(fetches(&server).await, 1);
    // No lookup waits that long for the end of the cool-down.
    let early = COOL_DOWN_SECONDS - MAX_COOL_DOWN_WAIT.as_secs() - 1;
    let answers = unknown(early).await;
    assert!(answers.iter().all(|r| *r == Err(KeyError::Unknown)));
    assert_eq!(fetches(&server).await, 1);
    unknown(COOL_DOWN_SECONDS).await;
    assert_eq!(fetches(&server).await, 2);
}

/// An instant so close to the end of a cool-down that began at [`now`] that lookups wait for its
/// end.
fn shortly_before_the_next_fetch() -> Timestamp {
    let next = now().plus_seconds(COOL_DOWN_SECONDS);
    next.minus(Duration::from_millis(200))
}

#[tokio::test]
async fn a_new_key_is_found_where_the_cool_down_that_a_stranger_caused_ends_soon() {
    let server = MockServer::start().await;
    serve_keys(&server, json!([TestKey::new().jwk_named("a")])).await;
    let source = source(&server.uri());
    let invented = find(&source, "invented", now()).await;
    assert_eq!(invented, Err(KeyError::Unknown));
    assert_eq!(fetches(&server).await, 1);

    server.reset().await;
    let both = ["a", "new"].map(|kid| TestKey::new().jwk_named(kid));
    serve_keys(&server, json!(both)).await;
    // While the rest of the cool-down is longer than the longest wait, the result is the same as
    // for a forged token, without delay.
    let seconds = COOL_DOWN_SECONDS - MAX_COOL_DOWN_WAIT.as_secs() - 1;
    let early = now().plus_seconds(seconds);
    assert_eq!(find(&source, "new", early).await, Err(KeyError::Unknown));
    assert_eq!(fetches(&server).await, 0);
    let at = shortly_before_the_next_fetch();
    assert_eq!(find(&source, "new", at).await, Ok(()));
    assert_eq!(fetches(&server).await, 1);
}

#[tokio::test]
async fn questions_that_wait_for_the_end_of_the_cool_down_cost_one_fetch_and_delay_no_known_key() {
    let server = MockServer::start().await;
    serve_keys(&server, json!([TestKey::new().jwk_named("a")])).await;
    let source = source(&server.uri());
    assert_eq!(find(&source, "a", now()).await, Ok(()));
    let at = shortly_before_the_next_fetch();
    let invented: Vec<_> = (0..50).map(|index| format!("invented-{index}")).collect();
    let asked = invented.iter().map(|kid| find(&source, kid, at));
    let known = async {
        tokio::task::yield_now().await;
        find(&source, "a", at).now_or_never()
    };
    let (known, answers) = tokio::join!(known, futures_util::future::join_all(asked));
    assert_eq!(known, Some(Ok(())));
    assert!(answers.iter().all(|r| *r == Err(KeyError::Unknown)));
    assert_eq!(fetches(&server).await, 2);
}

#[tokio::test]
async fn a_fetch_that_fails_at_the_end_of_the_cool_down_leaves_open_whether_a_key_exists() {
    let server = MockServer::start().await;
    serve_keys(&server, json!([TestKey::new().jwk_named("a")])).await;
    let source = source(&server.uri());
    assert_eq!(find(&source, "a", now()).await, Ok(()));
    server.reset().await;
    serve(&server, DISCOVERY, ResponseTemplate::new(503)).await;
    let at = shortly_before_the_next_fetch();
    assert_eq!(find(&source, "new", at).await, Err(KeyError::Unreachable));
    assert_eq!(find(&source, "a", at).await, Ok(()));
}

#[tokio::test]
async fn a_new_key_is_found_and_the_last_good_set_is_kept_but_not_for_ever() {
    let server = MockServer::start().await;
    serve_keys(&server, json!([TestKey::new().jwk_named("a")])).await;
    let source = source(&server.uri());
    assert_eq!(find(&source, "a", now()).await, Ok(()));

    server.reset().await;
    serve_keys(&server, json!([TestKey::new().jwk_named("b")])).await;
    let at = now().plus_seconds(20);
    assert_eq!(find(&source, "b", at).await, Ok(()));
    assert_eq!(find(&source, "a", at).await, Err(KeyError::Unknown));

    server.reset().await;
    serve(&server, "/jwks", ResponseTemplate::new(500)).await;
    let last = at.plus_seconds(600);
    assert_eq!(find(&source, "b", last).await, Ok(()));
    // The background fetch of the previous line began at `last` and found nothing new.
    source.refresh(last).await;
    assert_eq!(find(&source, "b", last).await, Ok(()));
    let over = last.plus_seconds(1);
    assert_eq!(find(&source, "b", over).await, Err(KeyError::Unreachable));
}

#[tokio::test]
async fn a_set_without_a_usable_key_means_that_the_issuer_has_none() {
    for none in [
        json!([]),
        json!([{"kty": "oct", "k": "AAAA", "kid": "a"}]),
        json!([{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "a"}]),
    ] {
        let server = MockServer::start().await;
        serve_keys(&server, json!([TestKey::new().jwk_named("a")])).await;
        let source = source(&server.uri());
        assert_eq!(find(&source, "a", now()).await, Ok(()));
        server.reset().await;
        serve_keys(&server, none).await;
        let at = now().plus_seconds(COOL_DOWN_SECONDS);
        source.refresh(at).await;
        assert_eq!(find(&source, "a", at).await, Err(KeyError::Unknown));
        // It is found again in the next set.
        server.reset().await;
        serve_keys(&server, json!([TestKey::new().jwk_named("a")])).await;
        let later = at.plus_seconds(COOL_DOWN_SECONDS);
        assert_eq!(find(&source, "a", later).await, Ok(()));
    }
}

#[tokio::test]
async fn a_withdrawn_key_is_not_believed_beyond_the_stated_bound() {
    let server = MockServer::start().await;
    serve_keys(&server, json!([TestKey::new().jwk_named("a")])).await;
    let source = source_for(&server.uri(), 3_600);
    assert_eq!(find(&source, "a", now()).await, Ok(()));
    // The issuer withdraws it, and no token arrives for almost the whole time.
    server.reset().await;
    serve_keys(&server, json!([TestKey::new().jwk_named("b")])).await;
    let over = now().plus_seconds(MAX_UNCONFIRMED_SECONDS + 1);
    assert_eq!(find(&source, "a", over).await, Err(KeyError::Unknown));
    assert_eq!(find(&source, "b", over).await, Ok(()));

    // While the issuer does not answer, the set serves until it is too old.
    server.reset().await;
    serve(&server, DISCOVERY, ResponseTemplate::new(503)).await;
    let away = over.plus_seconds(MAX_UNCONFIRMED_SECONDS + 1);
    assert_eq!(find(&source, "b", away).await, Ok(()));
    let last = over.plus_seconds(3_600);
    assert_eq!(find(&source, "b", last).await, Ok(()));
    let stale = last.plus_seconds(1);
    assert_eq!(find(&source, "b", stale).await, Err(KeyError::Unreachable));
}

#[tokio::test]
async fn a_fetch_that_failed_long_ago_does_not_excuse_believing_a_withdrawn_key() {
    let server = MockServer::start().await;
    serve_keys(&server, json!([TestKey::new().jwk_named("a")])).await;
    let source = source_for(&server.uri(), 3_600);
    assert_eq!(find(&source, "a", now()).await, Ok(()));
    // A token with an invented key id causes a fetch, which fails. No token arrives for a long
    // time.
    server.reset().await;
    serve(&server, "/jwks", ResponseTemplate::new(500)).await;
    serve(&server, DISCOVERY, ResponseTemplate::new(500)).await;
    let failed = now().plus_seconds(COOL_DOWN_SECONDS + 1);
    let invented = find(&source, "invented", failed).await;
    assert_eq!(invented, Err(KeyError::Unreachable));
    // Meanwhile the issuer withdraws the key. All lookups wait for the same fetch.
    server.reset().await;
    serve_keys(&server, json!([])).await;
    let over = now().plus_seconds(MAX_UNCONFIRMED_SECONDS + 38);
    let asked = (0..20).map(|_| find(&source, "a", over));
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|r| *r == Err(KeyError::Unknown)));
    assert_eq!(fetches(&server).await, 1);
}

#[tokio::test]
async fn a_failed_fetch_excuses_an_old_set_until_the_next_may_begin() {
    let server = MockServer::start().await;
    serve_keys(&server, json!([TestKey::new().jwk_named("a")])).await;
    let source = source_for(&server.uri(), 3_600);
    assert_eq!(find(&source, "a", now()).await, Ok(()));
    server.reset().await;
    serve(&server, DISCOVERY, ResponseTemplate::new(503)).await;
    let tried = async || server.received_requests().await.unwrap().len();
    let over = now().plus_seconds(MAX_UNCONFIRMED_SECONDS + 1);
    assert_eq!(find(&source, "a", over).await, Ok(()));
    assert_eq!(tried().await, 1);
    // The issuer receives no request, and no lookup waits.
    let during = over.plus_seconds(COOL_DOWN_SECONDS - 1);
    let at_once = find(&source, "a", during).now_or_never();
    assert_eq!(at_once, Some(Ok(())));
    assert_eq!(tried().await, 1);
    // Then a lookup waits for the next fetch. It fails too, so the set continues to serve.
    let again = over.plus_seconds(COOL_DOWN_SECONDS);
    assert_eq!(find(&source, "a", again).await, Ok(()));
    assert_eq!(tried().await, 2);
    // The issuer answers again: no lookup after the cool-down accepts the old set.
    server.reset().await;
    serve_keys(&server, json!([])).await;
    let back = again.plus_seconds(COOL_DOWN_SECONDS);
    assert_eq!(find(&source, "a", back).await, Err(KeyError::Unknown));
}

#[tokio::test]
async fn every_key_of_a_set_of_more_than_a_hundred_is_found() {
    let server = MockServer::start().await;
    let unusable = |n: usize| json!({"kty": "oct", "k": "AAAA", "kid": format!("secret-{n}")});
    let keys: Vec<_> = (0..2 * MAX_KEYS + 50)
        .flat_map(|n| [TestKey::new().jwk_named(&format!("key-{n}")), unusable(n)])
        .collect();
    serve_keys(&server, json!(keys)).await;
    let source = source(&server.uri());
    for n in [0, MAX_KEYS - 1, MAX_KEYS, 2 * MAX_KEYS, 2 * MAX_KEYS + 49] {
        assert_eq!(
            find(&source, &format!("key-{n}"), now()).await,
            Ok(()),
            "{n}"
        );
        let odd = find(&source, &format!("secret-{n}"), now()).await;
        assert_eq!(odd, Err(KeyError::Unknown), "{n}");
    }
    // No key is chosen for a token that names none.
    let unnamed = source.keys(None, Algorithm::Es256, now()).await;
    assert_eq!(unnamed.unwrap_err(), KeyError::Unknown);
    assert_eq!(fetches(&server).await, 1);
}

#[tokio::test]
async fn an_old_set_is_fetched_anew_while_it_serves() {
    let server = MockServer::start().await;
    serve_keys(&server, json!([TestKey::new().jwk_named("a")])).await;
    let source = source(&server.uri());
    assert_eq!(find(&source, "a", now()).await, Ok(()));
    let young = now().plus_seconds(REFRESH_SECONDS - 1);
    assert_eq!(find(&source, "a", young).await, Ok(()));
    let old = now().plus_seconds(REFRESH_SECONDS);
    assert_eq!(find(&source, "a", old).await, Ok(()));
    source.refresh(old).await;
    assert_eq!(fetches(&server).await, 2);
}

#[tokio::test]
async fn an_issuer_that_lies_redirects_or_floods_is_not_believed() {
    let good = MockServer::start().await;
    serve_keys(&good, json!([TestKey::new().jwk_named("a")])).await;
    let jwks = format!("{}/jwks", good.uri());
    let large = "x".repeat(MAX_DOCUMENT_BYTES + 1);
    let redirect = |to: &str| ResponseTemplate::new(302).insert_header("location", to);
    for (what, discovery, keys) in [
        (
            "another issuer",
            Some(json!({"issuer": "https://other.example", "jwks_uri": jwks})),
            None,
        ),
        (
            "a slash more",
            Some(json!({"issuer": "SELF/", "jwks_uri": jwks})),
            None,
        ),
        (
            "plain http",
            Some(json!({"issuer": "SELF", "jwks_uri": "http://192.0.2.1/jwks"})),
            None,
        ),
        (
            "this machine, by https",
            Some(json!({"issuer": "SELF", "jwks_uri": jwks.replace("http:", "https:")})),
            None,
        ),
        (
            "this machine, by another port",
            Some(json!({"issuer": "SELF", "jwks_uri": jwks})),
            None,
        ),
        (
            "a name of this machine",
            Some(json!({"issuer": "SELF", "jwks_uri": "https://localhost:1/jwks"})),
            None,
        ),
        (
            "a file",
            Some(json!({"issuer": "SELF", "jwks_uri": "file:///etc/passwd"})),
            None,
        ),
        ("no keys' address", Some(json!({"issuer": "SELF"})), None),
        ("redirected discovery", None, None),
        (
            "redirected keys",
            Some(json!({"issuer": "SELF", "jwks_uri": "SELF/jwks"})),
            Some(redirect(&jwks)),
        ),
        (
            "an error",
            Some(json!({"issuer": "SELF", "jwks_uri": "SELF/jwks"})),
            Some(ResponseTemplate::new(500)),
        ),
        (
            "text",
            Some(json!({"issuer": "SELF", "jwks_uri": "SELF/jwks"})),
            Some(ResponseTemplate::new(200).set_body_string("keys")),
        ),
        (
            "too large",
            Some(json!({"issuer": "SELF", "jwks_uri": "SELF/jwks"})),
            Some(ResponseTemplate::new(200).set_body_string(large)),
        ),
    ] {
        let server = MockServer::start().await;
        let to = format!("{}{DISCOVERY}", good.uri());
        let answer = discovery.map_or(redirect(&to), |document| {
            let text = document.to_string().replace("SELF", &server.uri());
            ResponseTemplate::new(200).set_body_raw(text, "application/json")
        });
        serve(&server, DISCOVERY, answer).await;
        if let Some(keys) = keys {
            serve(&server, "/jwks", keys).await;
        }
        let result = find(&source(&server.uri()), "a", now()).await;
        assert_eq!(result, Err(KeyError::Unreachable), "{what}");
    }
}

#[tokio::test]
async fn an_issuer_that_hangs_is_given_up_once_for_all() {
    let server = MockServer::start().await;
    let slow = ok(&json!({})).set_delay(Duration::from_mins(1));
    serve(&server, DISCOVERY, slow).await;
    let source = source(&server.uri());
    let (one, two) = tokio::time::timeout(Duration::from_secs(30), async {
        tokio::join!(find(&source, "a", now()), find(&source, "b", now()))
    })
    .await
    .unwrap();
    assert_eq!(
        (one, two),
        (Err(KeyError::Unreachable), Err(KeyError::Unreachable))
    );
    assert_eq!(server.received_requests().await.unwrap().len(), 1);
    let nobody = self::source("http://127.0.0.1:1");
    assert_eq!(find(&nobody, "a", now()).await, Err(KeyError::Unreachable));
}

#[tokio::test]
async fn without_an_endpoint_no_issuer_leads_into_the_hosts_own_network() {
    let server = MockServer::start().await;
    serve_keys(&server, json!([TestKey::new().jwk_named("a")])).await;
    let port = server.address().port();
    for issuer in [
        server.uri(),
        format!("https://127.0.0.1:{port}"),
        format!("https://localhost:{port}"),
        format!("https://[::1]:{port}"),
    ] {
        let source = KeySource::discovered("test", &issuer, None, 600, TaskTracker::new());
        let result = find(&source.unwrap(), "a", now()).await;
        assert_eq!(result, Err(KeyError::Unreachable), "{issuer}");
    }
    assert!(server.received_requests().await.unwrap().is_empty());
}
