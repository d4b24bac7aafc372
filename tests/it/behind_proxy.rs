//! Clients behind a real nginx: the broker limits and logs each under its own address, and no
//! client can choose its address.

use std::net::IpAddr;

use reqwest::Method;

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, Client, send};
use crate::support::nginx::Nginx;

/// Only nginx connects from this address.
const TRUSTED: &str = "trusted_proxies = [\"127.0.0.1/32\"]";

/// Limits: one request a second for each address, with a burst of 20.
const LIMITS: [u32; 4] = [100_000, 100_000, 1, 20];

fn client(at: std::net::SocketAddr, from: &str) -> Client {
    let from: IpAddr = from.parse().unwrap();
    Client::from_address(&format!("http://{at}"), from)
}

/// Sends many invalid tokens at once, with forged `X-Forwarded-For` addresses.
async fn ask_often(
    client: &Client,
    count: usize,
    forged: impl Fn(usize) -> Option<String>,
) -> Vec<Answer> {
    let asks = (0..count).map(|n| {
        let mut request = client.request(Method::POST, "/v1/credentials");
        if let Some(address) = forged(n) {
            request = request.header("x-forwarded-for", address);
        }
        send(request.bearer_auth("junk").json(&body()))
    });
    futures_util::future::join_all(asks).await
}

async fn served(fleet: &Fleet, client: &Client) {
    let (token, body) = (fleet.token(), body());
    let asked = client.post_json(&token, "/v1/credentials", &body);
    asked.await.expect(201);
}

fn limited(answers: &[Answer]) -> usize {
    let limited = answers.iter().filter(|answer| answer.status == 429);
    let limited = limited.count();
    let refused = answers.iter().filter(|answer| answer.status == 401);
    assert_eq!(limited + refused.count(), answers.len());
    limited
}

async fn broker() -> (Fleet, Replica, Nginx) {
    let (fleet, replica) = Fleet::sqlite().server(TRUSTED).limits(LIMITS).start().await;
    let nginx = Nginx::before(replica.address);
    (fleet, replica, nginx)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_noisy_client_behind_a_proxy_spends_its_own_limit_alone() {
    let (fleet, replica, nginx) = broker().await;
    let noisy = client(nginx.address, "127.0.0.2");
    assert!(limited(&ask_often(&noisy, 200, |_| None).await) > 0);
    for quiet in ["127.0.0.3", "127.0.0.4"] {
        let quiet = client(nginx.address, quiet);
        for _ in 0..5 {
            served(&fleet, &quiet).await;
        }
    }
    let logged = replica.process.stderr();
    assert!(logged.contains("\"client\":\"127.0.0.2\""), "{logged}");
    assert!(!logged.contains("\"client\":\"127.0.0.1\""), "{logged}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_behind_a_proxy_cannot_choose_its_address() {
    let (fleet, replica, nginx) = broker().await;
    // A client's own `X-Forwarded-For` value precedes the address that nginx appends.
    let forging = client(nginx.address, "127.0.0.2");
    let forged = |n| Some(format!("203.0.113.{n}"));
    assert!(limited(&ask_often(&forging, 200, forged).await) > 0);
    // A forged header does not use up another address's limit, nor the proxy's.
    let another = |n: usize| {
        Some(
            if n.is_multiple_of(2) {
                "127.0.0.3"
            } else {
                "127.0.0.1"
            }
            .to_owned(),
        )
    };
    assert!(limited(&ask_often(&forging, 200, another).await) > 0);
    let other = client(nginx.address, "127.0.0.3");
    served(&fleet, &other).await;
    // The broker ignores the header of a client that connects without the proxy.
    let direct = client(replica.address, "127.0.0.5");
    assert!(limited(&ask_often(&direct, 200, forged).await) > 0);
    let logged = replica.process.stderr();
    assert!(!logged.contains("\"client\":\"203.0.113."), "{logged}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_behind_a_proxy_that_is_not_trusted_share_its_limit() {
    let (_fleet, replica) = Fleet::sqlite().limits(LIMITS).start().await;
    let nginx = Nginx::before(replica.address);
    let noisy = client(nginx.address, "127.0.0.2");
    assert!(limited(&ask_often(&noisy, 200, |_| None).await) > 0);
    let logged = replica.process.stderr();
    assert!(!logged.contains("\"client\":\"127.0.0.2\""), "{logged}");
}
