//! Access to metrics: each way to reach a broker, with and without credentials.

use reqwest::Method;

use crate::support::fleet::{Fleet, Replica};
use crate::support::free_address;
use crate::support::http::{Client, send};

const PATH: &str = "/metrics";

async fn broker(server: &str) -> (Fleet, Replica) {
    Fleet::sqlite().server(server).start().await
}

/// Asserts that the metrics need the credentials of an identity with the right to read them.
async fn wants_credentials(fleet: &Fleet, replica: &Replica) {
    let refused = replica.client.get(PATH).await;
    assert_eq!(refused.status, 401, "{}", refused.text());
    assert!(!refused.text().contains("taskpass_"), "{}", refused.text());
    let forged = replica.client.get_as("tpa_0000", PATH).await;
    assert_eq!(forged.status, 401);
    // An identity without the right to read metrics.
    let other = replica.client.get_as(&fleet.token(), PATH).await;
    assert_eq!(other.status, 403, "{}", other.text());
    let shown = replica.client.get_as(&fleet.admin, PATH).await;
    assert_eq!(shown.status, 200, "{}", shown.text());
    assert!(shown.text().contains("taskpass_ledger_size"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direct_request_on_this_machine_reads_metrics_and_one_through_a_proxy_does_not() {
    let (fleet, replica) = broker("").await;
    let shown = replica.client.get(PATH).await;
    assert_eq!(shown.status, 200);
    assert!(shown.text().contains("taskpass_ledger_size"));
    for (name, value) in [
        ("x-forwarded-for", "192.0.2.7"),
        ("forwarded", "for=192.0.2.7"),
        ("via", "1.1 proxy"),
        ("x-real-ip", "192.0.2.7"),
        ("origin", "http://127.0.0.1:9"),
        ("host", "broker.example"),
    ] {
        let asked = replica.client.request(Method::GET, PATH);
        let refused = send(asked.header(name, value)).await;
        assert_eq!(refused.status, 401, "{name}: {}", refused.text());
        let asked = replica.client.request(Method::GET, PATH);
        let shown = send(asked.header(name, value).bearer_auth(&fleet.admin)).await;
        assert_eq!(shown.status, 200, "{name}: {}", shown.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_behind_a_proxy_on_the_same_host_are_not_for_the_world() {
    let (fleet, replica) = broker("[server.tls]\nterminated_upstream = true").await;
    wants_credentials(&fleet, &replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_other_machines_reach_shows_metrics_to_nobody_without_credentials() {
    let config = "[server.tls]\nterminated_upstream = true";
    let (fleet, replica) = Fleet::sqlite()
        .server(config)
        .on_all_addresses()
        .start()
        .await;
    wants_credentials(&fleet, &replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_for_metrics_serves_them_and_nothing_else() {
    let address = free_address();
    for proxied in [false, true] {
        let (fleet, replica) = broker(&format!(
            "[server.tls]\nterminated_upstream = {proxied}\n[metrics]\nlisten = \"{address}\""
        ))
        .await;
        // With a listener for metrics, the callers' listener always requires credentials.
        wants_credentials(&fleet, &replica).await;
        let metrics = Client::new(&format!("http://{address}"));
        let shown = metrics.get(PATH).await;
        assert_eq!(shown.status, 200);
        assert!(shown.text().contains("taskpass_ledger_size"));
        for other in ["/", "/livez", "/v1/tasks", "/v1/ledger/keys", "/metrics/x"] {
            assert_eq!(metrics.get(other).await.status, 404, "{other}");
        }
        let posted = send(metrics.request(Method::POST, PATH)).await;
        assert_eq!(posted.status, 405);
    }
}
