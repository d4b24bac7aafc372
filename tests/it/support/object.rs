//! An object of an object store, on loopback: conditional reads and writes by RFC 9110, and the
//! faults of unfit or hostile stores.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::server::Server;

/// The server's behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Good,
    /// Accepts requests and never answers.
    Hang,
    /// Holds reads until the behaviour changes, and then answers with the content of that time.
    HoldReads,
    /// Answers only with this status.
    Status(u16),
    /// Redirects to another path that has the object.
    Redirect,
    /// Answers with a weak entity tag.
    WeakTag,
    /// Answers with a body without an end.
    Flood,
    /// Writes as requested, but answers 500.
    WriteAndFail,
    /// Ignores all conditions of writes.
    Careless,
    /// Checks only the condition of a creation.
    HalfCareless,
}

/// The object, and records of the requests.
#[derive(Debug)]
struct Shelf {
    manner: Manner,
    content: Option<Bytes>,
    version: u64,
    writes: u64,
    asked_with: Vec<Option<String>>,
}

/// The server. It stops when its last owner is dropped.
pub struct ObjectStore {
    shelf: Arc<Mutex<Shelf>>,
    server: Server,
}

impl ObjectStore {
    pub fn start() -> Self {
        let shelf = Arc::new(Mutex::new(Shelf {
            manner: Manner::Good,
            content: None,
            version: 0,
            writes: 0,
            asked_with: Vec::new(),
        }));
        let app = Router::new()
            .route("/checkpoint", get(read).put(write))
            .route("/elsewhere", get(read).put(write))
            .with_state(Arc::clone(&shelf));
        Self {
            shelf,
            server: Server::start(app),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/checkpoint", self.server.address)
    }

    pub fn set(&self, manner: Manner) {
        self.shelf.lock().unwrap().manner = manner;
    }

    pub fn content(&self) -> Option<String> {
        let shelf = self.shelf.lock().unwrap();
        let content = shelf.content.as_ref();
        content.map(|content| String::from_utf8(content.to_vec()).unwrap())
    }

    /// Replaces the object without any condition.
    pub fn force(&self, content: Option<&str>) {
        let mut shelf = self.shelf.lock().unwrap();
        shelf.content = content.map(|content| Bytes::copy_from_slice(content.as_bytes()));
        shelf.version += 1;
    }

    /// Number of writes.
    pub fn writes(&self) -> u64 {
        self.shelf.lock().unwrap().writes
    }

    /// The `Authorization` header of each request.
    pub fn asked_with(&self) -> Vec<Option<String>> {
        self.shelf.lock().unwrap().asked_with.clone()
    }
}

type Shared = State<Arc<Mutex<Shelf>>>;

fn note_caller(shelf: &Mutex<Shelf>, headers: &HeaderMap) -> Manner {
    let mut shelf = shelf.lock().unwrap();
    let with = headers.get(header::AUTHORIZATION);
    let with = with.map(|value| value.to_str().unwrap().to_owned());
    shelf.asked_with.push(with);
    shelf.manner
}

/// The answer of a faulty behaviour; `None` for the others.
async fn unwell(manner: Manner) -> Option<Response> {
    match manner {
        Manner::Hang => std::future::pending().await,
        Manner::Status(status) => Some(StatusCode::from_u16(status).unwrap().into_response()),
        Manner::Redirect => {
            let to = [(header::LOCATION, "/elsewhere")];
            Some((StatusCode::TEMPORARY_REDIRECT, to).into_response())
        }
        Manner::Flood => {
            let forever = futures_util::stream::repeat_with(|| {
                Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b'x'; 8192]))
            });
            let tag = [(header::ETAG, "\"flood\"")];
            Some((tag, Body::from_stream(forever)).into_response())
        }
        Manner::Good
        | Manner::HoldReads
        | Manner::WeakTag
        | Manner::WriteAndFail
        | Manner::Careless
        | Manner::HalfCareless => None,
    }
}

async fn read(State(shelf): Shared, headers: HeaderMap) -> Response {
    let mut manner = note_caller(&shelf, &headers);
    while manner == Manner::HoldReads {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        manner = shelf.lock().unwrap().manner;
    }
    if let Some(answer) = unwell(manner).await {
        return answer;
    }
    let shelf = shelf.lock().unwrap();
    let weak = if manner == Manner::WeakTag { "W/" } else { "" };
    match &shelf.content {
        None => StatusCode::NOT_FOUND.into_response(),
        Some(content) => {
            let tag = format!("{weak}\"v{}\"", shelf.version);
            ([(header::ETAG, tag)], content.clone()).into_response()
        }
    }
}

async fn write(State(shelf): Shared, headers: HeaderMap, body: Bytes) -> Response {
    let manner = note_caller(&shelf, &headers);
    if let Some(answer) = unwell(manner).await {
        return answer;
    }
    let mut shelf = shelf.lock().unwrap();
    let tag = format!("\"v{}\"", shelf.version);
    let fits = match (
        headers.get(header::IF_MATCH),
        headers.get(header::IF_NONE_MATCH),
    ) {
        (Some(wanted), None) => shelf.content.is_some() && wanted.as_bytes() == tag.as_bytes(),
        (None, Some(wanted)) => shelf.content.is_none() && wanted.as_bytes() == b"*",
        _ => return StatusCode::BAD_REQUEST.into_response(),
    };
    let creates = headers.contains_key(header::IF_NONE_MATCH);
    let careless = match manner {
        Manner::Careless => true,
        Manner::HalfCareless => !creates,
        _ => false,
    };
    if !fits && !careless {
        return StatusCode::PRECONDITION_FAILED.into_response();
    }
    shelf.content = Some(body);
    shelf.version += 1;
    shelf.writes += 1;
    if manner == Manner::WriteAndFail {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    [(header::ETAG, format!("\"v{}\"", shelf.version))].into_response()
}
