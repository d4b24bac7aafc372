//! Clients that open connections and send nothing, or send a byte at a time: the broker closes
//! these connections in time, and until then they do not slow down other clients.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{
    Client, allow_open_files, most_open_files, open_sockets, raw_status, send_then_slowly,
};
use crate::support::{SOON, until};

/// Number of connections that a replica must support.
const TEN_THOUSAND: usize = 10_000;

/// Number of other open files. If the system's limit is below the sum, the test opens fewer
/// connections.
const OTHER_FILES: usize = 1_000;

/// Number of these connections that the server has not closed.
fn still_open(idle: &[TcpStream]) -> usize {
    let open = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    idle.iter().filter(|stream| open(stream)).count()
}

/// Requests a credential on a connection of its own, and uses it.
async fn is_served(fleet: &Fleet, replica: &Replica) {
    let client = Client::new(&format!("http://{}", replica.address));
    let granted = client
        .post_json(&fleet.token(), "/v1/credentials", &body())
        .await;
    assert!(fleet.is_good(replica, &granted.expect(201)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_open_connections_do_not_stop_the_service() {
    let count = TEN_THOUSAND.min(most_open_files() - OTHER_FILES);
    // Before the broker starts, because it inherits the limit.
    allow_open_files(count + OTHER_FILES);
    // The timeouts keep the connections open until the end of the test.
    let (fleet, replica) = Fleet::postgres()
        .server(
            "finish_seconds = 60\nrequest_timeout_seconds = 60\nheader_timeout_seconds = 60\n\
             max_connections_per_address = 12000",
        )
        .start()
        .await;
    let idle = open_sockets(replica.address, count);
    let began = Instant::now();
    for _ in 0..5 {
        is_served(&fleet, &replica).await;
    }
    assert_eq!(replica.client.get("/readyz").await.status, 200);
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        still_open(&idle),
        count,
        "every idle connection stayed open"
    );
    drop(idle);
    is_served(&fleet, &replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_too_many_is_closed_and_its_place_is_free_again_in_time() {
    let (fleet, replica) = Fleet::postgres()
        .server("max_connections = 8\nheader_timeout_seconds = 1")
        .start()
        .await;
    let idle = open_sockets(replica.address, 20);
    // The broker closes connections above the limit at once, and silent ones after the timeout.
    until("the silent connections are closed", SOON, async || {
        still_open(&idle) == 0
    })
    .await;
    is_served(&fleet, &replica).await;
}

/// Whether a request on this connection is answered. The connection stays open.
fn answers(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let asked = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: broker\r\n\r\n");
    asked.is_ok() && stream.read(&mut [0; 12]).is_ok_and(|read| read > 0)
}

/// A connection from 127.0.0.2, another address of this machine.
async fn from_elsewhere(server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = socket.connect(server).await.unwrap().into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_keeps_its_connections_open_gets_no_more_of_them() {
    let (fleet, replica) = Fleet::postgres()
        .server("max_connections_per_address = 6")
        .start()
        .await;
    let held = open_sockets(replica.address, 20);
    // Used connections do not time out. The test's own client holds some of the six.
    let used = held.iter().filter(|stream| answers(stream)).count();
    assert!((1..=6).contains(&used), "{used} of 20");
    assert!(!answers(&open_sockets(replica.address, 1)[0]));
    assert!(answers(&from_elsewhere(replica.address).await));
    drop(held);
    until("the address may open connections again", SOON, async || {
        answers(&open_sockets(replica.address, 1)[0])
    })
    .await;
    is_served(&fleet, &replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_speaks_a_byte_at_a_time_is_cut_off_and_delays_nobody() {
    let (fleet, replica) = Fleet::postgres()
        .server("header_timeout_seconds = 1\nrequest_timeout_seconds = 2")
        .start()
        .await;
    let request = replica.raw_request(&fleet.token(), "slow", "");
    let head = request
        .windows(4)
        .position(|end| end == b"\r\n\r\n")
        .unwrap()
        + 4;
    let address = replica.address;
    let pause = Duration::from_millis(100);
    // A hundred clients send their heads slowly, and a hundred their bodies.
    let slow: Vec<_> = (0..200)
        .map(|n| {
            let (at_once, slowly) = request.split_at(if n % 2 == 0 { 0 } else { head });
            let (at_once, slowly) = (at_once.to_vec(), slowly.to_vec());
            std::thread::spawn(move || send_then_slowly(address, &at_once, &slowly, pause, SOON))
        })
        .collect();
    let began = Instant::now();
    while slow.iter().any(|thread| !thread.is_finished()) {
        let began = Instant::now();
        is_served(&fleet, &replica).await;
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            began.elapsed()
        );
    }
    // At that speed each request would take more than a minute.
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    for thread in slow {
        let outcome = thread.join().unwrap();
        assert!(
            outcome.ended_after.is_some(),
            "the broker closed the connection"
        );
        let status = raw_status(&outcome.answer);
        assert!(matches!(status, None | Some(408 | 503)), "{status:?}");
    }
    assert_eq!(
        fleet.alive().await,
        usize::try_from(fleet.sessions()).unwrap()
    );
}

/// Sends requests on one connection and never reads, until the server closes it. Returns whether
/// the server did so within `patience`.
fn ask_and_never_read(address: SocketAddr, patience: Duration) -> bool {
    let mut stream = TcpStream::connect_timeout(&address, SOON).unwrap();
    stream
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let request = format!("GET /openapi.json HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let began = Instant::now();
    while began.elapsed() < patience {
        match stream.write(request.repeat(50).as_bytes()) {
            Ok(_) => {}
            // The server's buffer is full: it waits for this client to read.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return true,
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pipelines_and_never_reads_is_cut_off() {
    let (fleet, replica) = Fleet::postgres()
        .server("header_timeout_seconds = 2\nrequest_timeout_seconds = 10")
        .start()
        .await;
    let address = replica.address;
    let unread: Vec<_> = (0..4)
        .map(|_| std::thread::spawn(move || ask_and_never_read(address, SOON)))
        .collect();
    is_served(&fleet, &replica).await;
    for thread in unread {
        assert!(
            thread.join().unwrap(),
            "the broker did not close the connection"
        );
    }
    is_served(&fleet, &replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_pipeline_and_never_read_do_not_delay_a_stop() {
    // Without the limit for unread answers, the stop would take 600 s.
    let (_fleet, mut replica) = Fleet::postgres()
        .server("header_timeout_seconds = 2\nfinish_seconds = 600")
        .start()
        .await;
    let address = replica.address;
    for _ in 0..4 {
        std::thread::spawn(move || ask_and_never_read(address, SOON));
    }
    // Wait until the buffers between client and server are full.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(replica.process.terminate().code(), Some(0));
}
