//! The documents that a web page in a browser may read: the public ones, and no others.

use std::collections::BTreeSet;

use reqwest::Method;

use crate::support::fleet::{Fleet, Replica};
use crate::support::http::{Answer, assert_no_store, send};

const ALWAYS: [&str; 6] = [
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
    "/.well-known/jwks.json",
    "/federation/aws/.well-known/openid-configuration",
    "/federation/aws/.well-known/jwks.json",
    "/status/{list}",
];
const WITH_LEDGER: [&str; 2] = ["/v1/ledger/checkpoint", "/ledger/{path}"];

async fn asked(replica: &Replica, method: Method, path: &str) -> Answer {
    let request = replica.client.request(method.clone(), path);
    let request = request.header("origin", "https://page.example");
    send(if method == Method::OPTIONS {
        request
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", "mcp-protocol-version")
    } else {
        request
    })
    .await
}

/// The paths of the HTTP description, with values for their parameters.
async fn paths(replica: &Replica) -> Vec<(String, String)> {
    let described = replica.client.get("/openapi.json").await.expect(200);
    let paths = described["paths"].as_object().unwrap().keys();
    let filled = |path: &String| {
        let filled = path.replace("{path}", "checkpoint").replace("{list}", "0");
        let filled = filled.replace("{index}", "0").replace("{kid}", "x");
        filled.replace("{id}", "01890a5d-ac96-774b-bcce-b302099a8057")
    };
    paths.map(|path| (path.clone(), filled(path))).collect()
}

async fn is_readable_by_pages(replica: &Replica, path: &str) -> bool {
    let got = asked(replica, Method::GET, path).await;
    let preflight = asked(replica, Method::OPTIONS, path).await;
    let allowed = |answer: &Answer| answer.header("access-control-allow-origin") == Some("*");
    assert_eq!(allowed(&got), allowed(&preflight), "{path}");
    assert!(got.header("access-control-allow-credentials").is_none());
    if allowed(&preflight) {
        assert_eq!(preflight.status, 204, "{path}");
        assert_eq!(
            preflight.header("access-control-allow-methods"),
            Some("GET, HEAD")
        );
        assert_eq!(preflight.header("access-control-allow-headers"), Some("*"));
    } else {
        assert_eq!(preflight.status, 405, "{path}: {}", preflight.text());
    }
    allowed(&got)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_read_public_documents_and_no_other_route() {
    for (server, public) in [
        (
            "public_ledger = true",
            &[&ALWAYS[..], &WITH_LEDGER].concat(),
        ),
        ("", &ALWAYS.to_vec()),
    ] {
        let (_fleet, replica) = Fleet::sqlite().server(server).start().await;
        let mut readable = BTreeSet::new();
        for (path, filled) in paths(&replica).await {
            if is_readable_by_pages(&replica, &filled).await {
                readable.insert(path);
            }
        }
        let public: BTreeSet<String> = public.iter().map(|path| (*path).to_owned()).collect();
        assert_eq!(readable, public);
        // Entries are never readable by web pages.
        assert!(!is_readable_by_pages(&replica, "/ledger/tile/entries/000.p/1").await);
        let metadata = asked(&replica, Method::GET, ALWAYS[0]).await;
        assert_eq!(metadata.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiles_of_a_public_ledger_are_cached_for_ever_and_its_checkpoint_is_asked_for_anew() {
    let (fleet, replica) = Fleet::sqlite().server("public_ledger = true").start().await;
    let tile = replica.client.get("/ledger/tile/0/000.p/1").await;
    assert_eq!(tile.status, 200);
    let cached = tile.header("cache-control").unwrap();
    assert_eq!(cached, "public, max-age=31536000, immutable");
    for path in ["/ledger/checkpoint", "/v1/ledger/checkpoint"] {
        let checkpoint = replica.client.get(path).await;
        assert_eq!(checkpoint.status, 200);
        assert_eq!(
            checkpoint.header("cache-control"),
            Some("public, no-cache"),
            "{path}"
        );
    }
    let entries = replica
        .client
        .get_as(&fleet.admin, "/ledger/tile/entries/000.p/1")
        .await;
    assert_eq!(entries.status, 200, "{}", entries.text());
    assert_no_store(&entries);
    assert_no_store(&replica.client.get("/ledger/tile/0/999").await);
    let (fleet, replica) = Fleet::sqlite().start().await;
    let tile = replica
        .client
        .get_as(&fleet.admin, "/ledger/tile/0/000.p/1")
        .await;
    assert_eq!(tile.status, 200);
    assert_no_store(&tile);
}
