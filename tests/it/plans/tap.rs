//! A relay in front of PostgreSQL that takes the plans out of the server's answers.
//!
//! The extension `auto_explain` sends the plan of each statement to the client, as a message of
//! the level INFO, which the server sends to clients of every level. The relay keeps what
//! such messages say and drops them, so the product never sees one. Everything else passes.
//!
//! A statement of a function or of a foreign key's check has no label. The server tells its plan
//! before that of the statement that called the function, so it counts as a part of the next
//! statement with a label on the same connection.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;
use taskpass::store::postgres::BROKER;

use super::judge::{reads_all_of_a_large_table, shown};

/// What the product's statements did.
#[derive(Clone, Debug, Default)]
pub(super) struct Learnt {
    /// The labels of all statements that were executed.
    pub(super) seen: BTreeSet<String>,
    /// By label, the plans that read a large table from end to end, since [`Tap::begin_to_judge`].
    pub(super) at_fault: BTreeMap<String, BTreeSet<String>>,
    judges: bool,
}

/// A running relay. It lasts as long as the process.
pub(super) struct Tap {
    address: SocketAddr,
    learnt: Arc<Mutex<Learnt>>,
}

impl Tap {
    /// A relay in front of the server at `upstream`.
    pub(super) fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let learnt = Arc::<Mutex<Learnt>>::default();
        let shared = Arc::clone(&learnt);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { continue };
                let learnt = Arc::clone(&shared);
                // A connection ends with an error of the side that closed it.
                thread::spawn(move || drop(relay(client, upstream, &learnt)));
            }
        });
        Self { address, learnt }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Judges the plans from now on. Before, the tables are small.
    pub(super) fn begin_to_judge(&self) {
        self.learnt.lock().unwrap().judges = true;
    }

    pub(super) fn learnt(&self) -> Learnt {
        self.learnt.lock().unwrap().clone()
    }
}

impl Learnt {
    /// Takes over a plan. `parts` has the plans at fault of statements without a label, since the
    /// last statement with one.
    fn learn(&mut self, told: &Value, parts: &mut Vec<String>) {
        let statement = told["Query Text"].as_str().unwrap_or_default();
        let plan = &told["Plan"];
        if self.judges && reads_all_of_a_large_table(plan) {
            parts.push(format!("{}\n{}", one_line(statement), shown(plan)));
        }
        let Some(label) = label(statement) else {
            return;
        };
        self.seen.insert(label.to_owned());
        if !parts.is_empty() {
            let at_fault = self.at_fault.entry(label.to_owned()).or_default();
            at_fault.extend(parts.drain(..));
        }
    }
}

/// The first label in a text: the name in `/* name */`.
fn label(statement: &str) -> Option<&str> {
    labels(statement).next()
}

/// The names in all comments of the form `/* name */`.
pub(super) fn labels(text: &str) -> impl Iterator<Item = &str> {
    let comments = text.split("/* ").skip(1);
    let names = comments.filter_map(|rest| rest.split_once(" */").map(|(name, _)| name));
    names.filter(|name| is_name(name))
}

pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Passes on everything between a client and the server until one of them closes.
fn relay(mut client: TcpStream, upstream: SocketAddr, learnt: &Mutex<Learnt>) -> io::Result<()> {
    let mut server = TcpStream::connect(upstream)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let hello = loop {
        let packet = read_packet(&mut client, Vec::new())?;
        // A request for TLS or GSSAPI encryption.
        if !matches!(packet.get(4..8), Some([0x04, 0xd2, 0x16, 0x2f | 0x30])) {
            break packet;
        }
        client.write_all(b"N")?;
    };
    server.write_all(&hello)?;
    let hello = String::from_utf8_lossy(&hello);
    let is_of_broker = hello.contains(&format!("application_name\0{BROKER}\0"));
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        drop(io::copy(&mut from, &mut to));
        drop(to.shutdown(Shutdown::Both));
    });
    let ended = pass_answers(server, &mut client, is_of_broker.then_some(learnt));
    drop(client.shutdown(Shutdown::Both));
    ended
}

fn pass_answers(
    server: TcpStream,
    client: &mut TcpStream,
    learnt: Option<&Mutex<Learnt>>,
) -> io::Result<()> {
    let mut server = BufReader::new(server);
    let mut parts = Vec::new();
    loop {
        let mut kind = vec![0];
        server.read_exact(&mut kind)?;
        let message = read_packet(&mut server, kind)?;
        match (plan_in(&message), learnt) {
            (None, _) => client.write_all(&message)?,
            (Some(plan), Some(learnt)) => learnt.lock().unwrap().learn(&plan, &mut parts),
            (Some(_), None) => {}
        }
    }
}

/// The plan in a message of `auto_explain`; `None` in any other message.
fn plan_in(message: &[u8]) -> Option<Value> {
    if message[0] != b'N' {
        return None;
    }
    let mut fields = message.get(5..)?.split(|byte| *byte == 0);
    let text = fields.find_map(|field| field.strip_prefix(b"M"))?;
    let text = std::str::from_utf8(text).ok()?;
    let (head, json) = text.split_once('\n')?;
    if !head.starts_with("duration: ") || !head.ends_with("plan:") {
        return None;
    }
    let plan = serde_json::from_str(json);
    Some(plan.unwrap_or_else(|error| panic!("{error}: {json}")))
}

/// Appends a packet of the length that it announces to `packet`. The length counts itself.
fn read_packet(stream: &mut impl Read, mut packet: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    packet.extend(length);
    let rest = u64::from(u32::from_be_bytes(length)).saturating_sub(4);
    stream.by_ref().take(rest).read_to_end(&mut packet)?;
    Ok(packet)
}
