//! Those who open connections and say nothing, or speak a byte at a time: they are cut off in time,
//! and until then they take nothing from those who speak.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{
    Client, allow_open_files, most_open_files, open_sockets, raw_status, send_then_slowly,
};
use crate::support::{SOON, until};

/// As many as a replica is to bear.
const TEN_THOUSAND: usize = 10_000;

/// Files that are open beside; where the system permits fewer than both, it is fewer connections.
const OTHER_FILES: usize = 1_000;

/// How many of these connections the server has not closed.
fn still_open(idle: &[TcpStream]) -> usize {
    let open = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    idle.iter().filter(|stream| open(stream)).count()
}

/// Asks on a connection of its own, and uses what it gets.
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
    // Before the broker is started: it inherits the limit.
    allow_open_files(count + OTHER_FILES);
    // They are to stay open until the end of the test.
    let (fleet, replica) = Fleet::start_with(
        "finish_seconds = 60\nrequest_timeout_seconds = 60\nheader_timeout_seconds = 60\n\
             max_connections_per_address = 12000",
    )
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
    assert_eq!(still_open(&idle), count, "all that time");
    drop(idle);
    is_served(&fleet, &replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_too_many_is_closed_and_its_place_is_free_again_in_time() {
    let (fleet, replica) =
        Fleet::start_with("max_connections = 8\nheader_timeout_seconds = 1").await;
    let idle = open_sockets(replica.address, 20);
    // Those beyond the bound are closed unheard, and the silent ones when their time is over.
    until("there is room again", SOON, async || still_open(&idle) == 0).await;
    is_served(&fleet, &replica).await;
}

/// Whether a request on this connection is answered; it stays open.
fn answers(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let asked = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: broker\r\n\r\n");
    asked.is_ok() && stream.read(&mut [0; 12]).is_ok_and(|read| read > 0)
}

/// A connection from another address of this machine.
async fn from_elsewhere(server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = socket.connect(server).await.unwrap().into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_keeps_its_connections_open_gets_no_more_of_them() {
    let (fleet, replica) = Fleet::start_with("max_connections_per_address = 6").await;
    let held = open_sockets(replica.address, 20);
    // Those that were used are not timed out. The test's own client has some of the six.
    let used = held.iter().filter(|stream| answers(stream)).count();
    assert!((1..=6).contains(&used), "{used} of 20");
    assert!(!answers(&open_sockets(replica.address, 1)[0]));
    assert!(answers(&from_elsewhere(replica.address).await));
    drop(held);
    until("their places are free again", SOON, async || {
        answers(&open_sockets(replica.address, 1)[0])
    })
    .await;
    is_served(&fleet, &replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_speaks_a_byte_at_a_time_is_cut_off_and_delays_nobody() {
    let (fleet, replica) =
        Fleet::start_with("header_timeout_seconds = 1\nrequest_timeout_seconds = 2").await;
    let request = replica.raw_request(&fleet.token(), "slow", "");
    let head = request
        .windows(4)
        .position(|end| end == b"\r\n\r\n")
        .unwrap()
        + 4;
    let address = replica.address;
    let pause = Duration::from_millis(100);
    // A hundred dribble their heads, and a hundred their bodies.
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
    // Each of them would take a minute and more to its end.
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    for thread in slow {
        let outcome = thread.join().unwrap();
        assert!(outcome.ended_after.is_some(), "it was cut off");
        let status = raw_status(&outcome.answer);
        assert!(matches!(status, None | Some(408 | 503)), "{status:?}");
    }
    assert_eq!(
        fleet.alive().await,
        usize::try_from(fleet.sessions()).unwrap()
    );
}

/// Asks for more and more on one connection and reads nothing, until the other end has had enough.
/// Says whether it was.
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
            // Nobody takes what is written: the server waits for this end to read.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return true,
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pipelines_and_never_reads_is_cut_off() {
    let (fleet, replica) =
        Fleet::start_with("header_timeout_seconds = 2\nrequest_timeout_seconds = 10").await;
    let address = replica.address;
    let unread: Vec<_> = (0..4)
        .map(|_| std::thread::spawn(move || ask_and_never_read(address, SOON)))
        .collect();
    is_served(&fleet, &replica).await;
    for thread in unread {
        assert!(thread.join().unwrap(), "it was not cut off");
    }
    is_served(&fleet, &replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_pipeline_and_never_read_do_not_delay_a_stop() {
    // Without the limit the stop would take all of it.
    let (_fleet, mut replica) =
        Fleet::start_with("header_timeout_seconds = 2\nfinish_seconds = 600").await;
    let address = replica.address;
    for _ in 0..4 {
        std::thread::spawn(move || ask_and_never_read(address, SOON));
    }
    // Until the buffers on the way are full.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(replica.process.terminate().code(), Some(0));
}
