//! A witness of logs over HTTP (C2SP tlog-witness) that shares no code with the product, and its
//! possible faults. It checks the log's signature and the consistency proof before it signs.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::issuer::unix_seconds;
use super::log::{Log, continues, signed_by};
use super::server::Server;

/// The witness's behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Follows C2SP tlog-witness.
    Good,
    /// Accepts requests and never answers.
    Hang,
    /// Answers only with this status.
    Status(u16),
    /// Redirects to a path where it would sign.
    Redirect,
    /// 200 with a body without an end.
    Flood,
    /// Answers 200 with this body.
    Say(&'static str),
    /// Signs another checkpoint's text.
    SignOther,
    /// Signs with another key under its own name.
    OtherKey,
    /// Signs with a clock that is off by so many seconds.
    Clock(i64),
    /// Always claims that its last size was this.
    Saw(u64),
    /// Claims another last size at every request.
    Restless,
}

/// A request: the old size, the new size, and the status of the answer.
pub type Asked = (u64, u64, u16);

struct Seat {
    log: Log,
    other: Log,
    manner: Manner,
    /// The log's keys; until they are set, the witness does not know the log.
    vkeys: Vec<String>,
    last: (u64, Vec<u8>),
    asked: Vec<Asked>,
}

/// The server. It stops when its last owner is dropped.
pub struct Witness {
    vkey: String,
    name: String,
    seat: Arc<Mutex<Seat>>,
    server: Server,
}

impl Witness {
    pub fn start(name: &str, manner: Manner) -> Self {
        let log = Log::new(name);
        let vkey = log.witness_key();
        let seat = Arc::new(Mutex::new(Seat {
            log,
            other: Log::new(name),
            manner,
            vkeys: Vec::new(),
            last: (0, Vec::new()),
            asked: Vec::new(),
        }));
        let app = Router::new()
            .route("/w/add-checkpoint", post(add_checkpoint))
            .route("/elsewhere", post(elsewhere))
            .with_state(Arc::clone(&seat));
        Self {
            vkey,
            name: name.to_owned(),
            seat,
            server: Server::start(app),
        }
    }

    /// Its table of `[[ledger.witnesses]]`.
    pub fn table(&self) -> String {
        format!(
            "[[ledger.witnesses]]\nurl = \"http://{}/w\"\nvkey = \"{}\"\n",
            self.server.address, self.vkey
        )
    }

    pub fn vkey(&self) -> &str {
        &self.vkey
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes it follow the log with these keys.
    pub fn trust(&self, vkeys: &[String]) {
        self.seat.lock().unwrap().vkeys = vkeys.to_vec();
    }

    pub fn set(&self, manner: Manner) {
        self.seat.lock().unwrap().manner = manner;
    }

    /// Makes it forget the checkpoints that it signed.
    pub fn forget(&self) {
        self.seat.lock().unwrap().last = (0, Vec::new());
    }

    /// Size of the last checkpoint that it signed.
    pub fn size(&self) -> u64 {
        self.seat.lock().unwrap().last.0
    }

    /// Every well-formed request.
    pub fn asked(&self) -> Vec<Asked> {
        self.seat.lock().unwrap().asked.clone()
    }
}

type Shared = State<Arc<Mutex<Seat>>>;

async fn elsewhere(State(seat): Shared, body: Bytes) -> Response {
    seat.lock().unwrap().judge(&body)
}

async fn add_checkpoint(State(seat): Shared, body: Bytes) -> Response {
    let manner = seat.lock().unwrap().manner;
    match manner {
        Manner::Hang => std::future::pending().await,
        Manner::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Manner::Redirect => {
            let to = [(header::LOCATION, "/elsewhere")];
            (StatusCode::TEMPORARY_REDIRECT, to).into_response()
        }
        Manner::Flood => {
            let forever = futures_util::stream::repeat_with(|| {
                Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b'x'; 8192]))
            });
            Body::from_stream(forever).into_response()
        }
        Manner::Say(text) => text.into_response(),
        Manner::Saw(size) => saw(size),
        Manner::Restless => {
            let mut seat = seat.lock().unwrap();
            seat.last.0 += 1;
            saw(seat.last.0 % 3)
        }
        Manner::Good | Manner::SignOther | Manner::OtherKey | Manner::Clock(_) => {
            seat.lock().unwrap().judge(&body)
        }
    }
}

fn saw(size: u64) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/x.tlog.size")];
    (StatusCode::CONFLICT, kind, format!("{size}\n")).into_response()
}

/// The parts of a request: the old size, the proof, the note.
fn parts(body: &str) -> Option<(u64, Vec<Vec<u8>>, &str)> {
    let (head, note) = body.split_once("\n\n")?;
    let mut lines = head.lines();
    let old = lines.next()?.strip_prefix("old ")?.parse().ok()?;
    let proof: Option<Vec<Vec<u8>>> = lines.map(|line| STANDARD.decode(line).ok()).collect();
    Some((old, proof?, note))
}

impl Seat {
    fn judge(&mut self, body: &Bytes) -> Response {
        let body = std::str::from_utf8(body).unwrap();
        let Some((old, proof, note)) = parts(body) else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        if self.vkeys.is_empty() {
            return StatusCode::NOT_FOUND.into_response();
        }
        let Some(text) = signed_by(note, &self.vkeys) else {
            return StatusCode::FORBIDDEN.into_response();
        };
        let lines: Vec<&str> = text.lines().collect();
        let size: u64 = lines[1].parse().unwrap();
        let root = STANDARD.decode(lines[2]).unwrap();
        let (last, last_root) = &self.last;
        let answer = if old > size {
            StatusCode::BAD_REQUEST.into_response()
        } else if old != *last {
            saw(*last)
        } else if !continues((*last, last_root), (size, &root), &proof) {
            StatusCode::UNPROCESSABLE_ENTITY.into_response()
        } else {
            self.last = (size, root);
            self.sign(&text).into_response()
        };
        self.asked.push((old, size, answer.status().as_u16()));
        answer
    }

    fn sign(&self, text: &str) -> String {
        let now = u64::try_from(unix_seconds()).unwrap();
        match self.manner {
            Manner::SignOther => self.log.cosign("other.test/log\n1\nAAAA\n", now),
            Manner::OtherKey => self.other.cosign(text, now),
            Manner::Clock(off) => self.log.cosign(text, now.saturating_add_signed(off)),
            // Adds a second line, by a key that the product does not know.
            _ => self.other.cosign(text, now) + &self.log.cosign(text, now),
        }
    }
}
