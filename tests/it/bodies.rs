//! Bodies that are announced and never sent whole, over HTTP from the real binary: their memory is
//! bounded, and other clients are served meanwhile.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use tokio::net::TcpSocket;

use crate::support::fleet::{Fleet, Replica, body};
use crate::support::http::{Answer, allow_open_files, assert_problem, raw_status};
use crate::support::{SOON, until};

/// The announced length: the largest body of a caller.
const ANNOUNCED: usize = 64 * 1024;

/// The part that is sent. The broker takes the memory of the whole body for it.
const SENT: usize = 60 * 1024;

/// The largest body that takes its memory from the part for small ones.
const SMALL: usize = 4 * 1024;

/// Number of such bodies for which there is memory: those of one address, and all.
const OF_ONE_ADDRESS: usize = 32;
const OF_ALL: usize = 384;

/// Number of such bodies that each address sends.
const EACH: usize = 40;

/// Number of addresses that send them: two more than there are shares.
const ADDRESSES: u8 = 14;

/// Announces a body on a new connection from this address of the machine, and sends so many bytes
/// of it.
async fn send_a_part(server: SocketAddr, from: [u8; 4], sent: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let mut stream = socket.connect(server).await.unwrap().into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    let part = format!(
        "POST /v1/credentials HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/json\r\n\
         Content-Length: {ANNOUNCED}\r\n\r\n{}",
        " ".repeat(sent)
    );
    // The broker may refuse the body and close the connection before all of it was sent.
    drop(stream.write_all(part.as_bytes()));
    stream.set_nonblocking(true).unwrap();
    stream
}

async fn senders(replica: &Replica, from: [u8; 4]) -> Vec<TcpStream> {
    let mut senders = Vec::new();
    for _ in 0..EACH {
        senders.push(send_a_part(replica.address, from, SENT).await);
    }
    senders
}

/// Number of bodies that the broker has not refused, and of which it awaits the rest.
fn awaited(senders: &[TcpStream]) -> usize {
    let awaited = |stream: &&TcpStream| {
        let peeked = stream.peek(&mut [0]);
        matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    senders.iter().filter(awaited).count()
}

/// The statuses of the answers that arrived. A closed connection may have lost its answer.
fn statuses(senders: &mut [TcpStream]) -> Vec<u16> {
    let mut statuses = Vec::new();
    for stream in senders {
        let mut answer = [0; 1_024];
        let read = stream.read(&mut answer).unwrap_or(0);
        statuses.extend(raw_status(&answer[..read]));
    }
    statuses
}

/// Sends a whole body that is above the small ones, and malformed.
async fn send_a_large_one(fleet: &Fleet, replica: &Replica) -> Answer {
    let mut large = body();
    large["unknown"] = "x".repeat(SMALL).into();
    let token = fleet.token();
    replica
        .client
        .post_json(&token, "/v1/credentials", &large)
        .await
}

/// Sends parts of bodies from one more address, until there is no memory for a large body.
async fn take_the_rest(fleet: &Fleet, replica: &Replica) -> Vec<TcpStream> {
    let mut senders = Vec::new();
    loop {
        let answer = send_a_large_one(fleet, replica).await;
        if answer.status == 503 {
            assert_problem(&answer, 503, "overloaded");
            assert_eq!(answer.header("retry-after"), Some("1"));
            return senders;
        }
        assert_problem(&answer, 400, "invalid-request");
        assert!(senders.len() < 200, "there is always memory left");
        senders.push(send_a_part(replica.address, [127, 0, 0, 100], SMALL + 1).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_bodies_take_bounded_memory_and_others_go_on() {
    // Before the broker starts, because it inherits the limit.
    allow_open_files(usize::from(ADDRESSES) * EACH + 1_000);
    // The timeout keeps the bodies until the end of the test.
    let (fleet, replica) = Fleet::sqlite()
        .server("finish_seconds = 60\nrequest_timeout_seconds = 60")
        .start()
        .await;
    let mut first = senders(&replica, [127, 0, 0, 2]).await;
    until("the address has no more than its share", SOON, async || {
        awaited(&first) <= OF_ONE_ADDRESS
    })
    .await;
    assert!(awaited(&first) > OF_ONE_ADDRESS / 2);
    replica.ask(&fleet.token()).await.expect(201);
    let served = send_a_large_one(&fleet, &replica).await;
    assert_problem(&served, 400, "invalid-request");

    let mut others = Vec::new();
    for last in 3..2 + ADDRESSES {
        others.extend(senders(&replica, [127, 0, 0, last]).await);
    }
    until("all have no more than there is", SOON, async || {
        awaited(&first) + awaited(&others) <= OF_ALL
    })
    .await;
    assert!(awaited(&first) + awaited(&others) > OF_ALL / 2);
    let rest = take_the_rest(&fleet, &replica).await;
    // Nearly every request is small, and goes on.
    replica.ask(&fleet.token()).await.expect(201);
    assert_eq!(replica.client.get("/readyz").await.status, 200);
    for senders in [&mut first, &mut others] {
        let statuses = statuses(senders);
        assert!(statuses.iter().all(|status| *status == 503), "{statuses:?}");
    }
    drop((first, others, rest));
    until("the memory is free again", SOON, async || {
        send_a_large_one(&fleet, &replica).await.status == 400
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_body_gives_its_memory_back_at_the_timeout() {
    allow_open_files(EACH + 1_000);
    let (fleet, replica) = Fleet::sqlite()
        .server("request_timeout_seconds = 2\nheader_timeout_seconds = 1")
        .start()
        .await;
    // From the address of the test's own client.
    let mut stalled = senders(&replica, [127, 0, 0, 1]).await;
    until("no body is awaited any more", SOON, async || {
        awaited(&stalled) == 0
    })
    .await;
    let statuses = statuses(&mut stalled);
    let expected = |status: &u16| matches!(status, 408 | 503);
    assert!(statuses.iter().all(expected), "{statuses:?}");
    assert!(statuses.contains(&408));
    replica.ask(&fleet.token()).await.expect(201);
}

/// The server's settings of HTTP/2 (RFC 9113 §6.5.2), by their identifiers.
fn settings(replica: &Replica) -> BTreeMap<u16, u32> {
    let mut stream = replica.connect();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let empty_settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    stream.write_all(preface).unwrap();
    stream.write_all(&empty_settings).unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[3], 4, "the first frame has the settings");
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut payload).unwrap();
    let settings = payload.chunks_exact(6).map(|setting| {
        let (id, value) = setting.split_at(2);
        let id = u16::from_be_bytes(id.try_into().unwrap());
        (id, u32::from_be_bytes(value.try_into().unwrap()))
    });
    settings.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_in_http_2_has_few_requests_and_small_windows() {
    let (_fleet, replica) = Fleet::sqlite().start().await;
    let settings = settings(&replica);
    assert_eq!(settings.get(&3), Some(&32), "simultaneous requests");
    assert_eq!(settings.get(&4), Some(&65_536), "the window of a body");
    assert_eq!(settings.get(&6), Some(&32_768), "the size of a head");
}
