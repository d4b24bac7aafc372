//! A receiver of webhooks that records deliveries and misbehaves as it is told, and a check of
//! signatures that implements Standard Webhooks without the product's code.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::log::sha256;

/// The receiver's reply.
#[derive(Clone, Debug)]
pub enum Reply {
    /// This status with additional header lines, each with its line end.
    Status(u16, String),
    /// No answer; the connection stays open.
    Hang,
    /// 500, once it is [released](Receiver::release).
    Held,
    /// 200 and a body without an end.
    Flood,
    /// Closes the connection without an answer.
    Cut,
    /// Answers 204 after this pause.
    Slow(Duration),
}

/// A received request.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// The reply to it.
    pub reply: Reply,
}

#[derive(Debug, Default)]
struct State {
    deliveries: Mutex<Vec<Delivery>>,
    /// The next replies; when they are used up, 204.
    replies: Mutex<VecDeque<Reply>>,
    released: AtomicBool,
    stopped: AtomicBool,
}

/// A running receiver.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    state: Arc<State>,
}

impl Receiver {
    /// Starts a receiver with these replies to the first requests, and 204 to all further ones.
    pub fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        state.replies.lock().unwrap().extend(replies);
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(&state, stream.unwrap()));
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook?tenant=7", self.address)
    }

    /// Replaces the next replies.
    pub fn reply(&self, replies: impl IntoIterator<Item = Reply>) {
        let mut next = self.state.replies.lock().unwrap();
        next.clear();
        next.extend(replies);
    }

    /// Sends the held replies.
    pub fn release(&self) {
        self.state.released.store(true, Ordering::SeqCst);
    }

    /// All deliveries, in order.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.state.deliveries.lock().unwrap().clone()
    }

    /// The deliveries that the receiver accepted.
    pub fn taken(&self) -> Vec<Delivery> {
        let mut all = self.deliveries();
        all.retain(|delivery| {
            matches!(delivery.reply, Reply::Flood | Reply::Slow(_))
                || matches!(delivery.reply, Reply::Status(status, _) if status < 300)
        });
        all
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

fn serve(state: &State, stream: TcpStream) {
    let mut out = stream.try_clone().unwrap();
    let mut input = BufReader::new(stream);
    while let Some((headers, body)) = request(&mut input) {
        let next = state.replies.lock().unwrap().pop_front();
        let reply = next.unwrap_or(Reply::Status(204, String::new()));
        state.deliveries.lock().unwrap().push(Delivery {
            headers,
            body,
            reply: reply.clone(),
        });
        let written = match reply {
            Reply::Status(status, headers) => write!(
                out,
                "HTTP/1.1 {status} X\r\n{headers}Content-Length: 0\r\n\r\n"
            ),
            Reply::Slow(pause) => {
                std::thread::sleep(pause);
                write!(out, "HTTP/1.1 204 X\r\n\r\n")
            }
            Reply::Hang => {
                // Wait until the caller gives up.
                drop(input.read(&mut [0]));
                return;
            }
            Reply::Held => {
                while !state.released.load(Ordering::SeqCst)
                    && !state.stopped.load(Ordering::SeqCst)
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                write!(out, "HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")
            }
            Reply::Cut => return,
            Reply::Flood => {
                let mut written = write!(
                    out,
                    "HTTP/1.1 200 X\r\nContent-Length: 999999999999\r\n\r\nsecret-of-the-receiver"
                );
                while written.is_ok() {
                    written = out.write_all(&[b'x'; 4096]);
                }
                return;
            }
        };
        if written.is_err() {
            return;
        }
    }
}

fn request(input: &mut impl std::io::BufRead) -> Option<(BTreeMap<String, String>, Vec<u8>)> {
    let mut line = String::new();
    if input.read_line(&mut line).ok()? == 0 {
        return None;
    }
    assert!(line.starts_with("POST /hook?tenant=7 HTTP/1.1"), "{line}");
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        input.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        let before = headers.insert(name.to_ascii_lowercase(), value.to_owned());
        assert!(before.is_none(), "{name} came twice");
    }
    let length: usize = headers.get("content-length")?.parse().unwrap();
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    Some((headers, body))
}

impl Delivery {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Whether the signature is by this secret, and its time is within five minutes of the local
    /// clock.
    pub fn verifies(&self, secret: &str) -> bool {
        let key = STANDARD
            .decode(secret.strip_prefix("whsec_").unwrap())
            .unwrap();
        let stamp = self.header("webhook-timestamp");
        let now = super::issuer::unix_seconds();
        if stamp.parse::<i64>().unwrap().abs_diff(now) > 300 {
            return false;
        }
        let mut signed = format!("{}.{stamp}.", self.id()).into_bytes();
        signed.extend_from_slice(&self.body);
        let expected = format!("v1,{}", STANDARD.encode(hmac(&key, &signed)));
        let mut signatures = self.header("webhook-signature").split(' ');
        signatures.any(|signature| signature == expected)
    }
}

/// HMAC-SHA-256, by RFC 2104.
pub fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    assert!(key.len() <= 64, "longer keys are hashed first");
    let padded = |with: u8| -> Vec<u8> {
        let byte = |at| key.get(at).copied().unwrap_or(0) ^ with;
        (0..64).map(byte).collect()
    };
    let inner = sha256(&[&padded(0x36), message].concat());
    sha256(&[&padded(0x5c), inner.as_slice()].concat())
}
