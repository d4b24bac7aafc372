//! A log over HTTP by C2SP tlog-tiles, and the faults of unfit or hostile servers. Tree and
//! signatures are those of [`super::log`], not the product's.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::log::{Log, leaf_hash, root};
use super::server::Server;

/// The server's behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Follows C2SP tlog-tiles.
    Good,
    /// Also follows it, but has removed partial tiles that have become full.
    OnlyFullTiles,
    /// Accepts requests for paths that contain this text, and never answers.
    Hang(&'static str),
    /// Answers with a body without an end.
    Flood(&'static str),
    /// Redirects to a path that has the right content.
    Redirect(&'static str),
    /// Answers only with this status.
    Status(&'static str, u16),
    /// Answers with a truncated body.
    Cut(&'static str),
    /// Answers with a wrong bit in each tile of this level.
    Lie(u32),
    /// Answers with one hash less, or one byte more, than requested.
    Short,
    Long,
    /// Answers with tiles of another tree than the checkpoint's.
    OtherTree,
}

struct Shelf {
    manner: Manner,
    note: String,
    /// Notes that are shown once each, before the current one.
    before: VecDeque<String>,
    leaves: Vec<Vec<u8>>,
    asked: Vec<String>,
}

/// The server. It stops when its last owner is dropped.
pub struct TileServer {
    base: String,
    shelf: Arc<Mutex<Shelf>>,
    _server: Server,
}

/// Leaf hashes that are the same for every `branch` up to `fork`, and differ after it.
pub fn grown(size: usize, fork: usize, branch: u8) -> Vec<Vec<u8>> {
    (0..size)
        .map(|n| {
            let branch = if n < fork { 0 } else { branch };
            leaf_hash(format!("{branch} {n}").as_bytes())
        })
        .collect()
}

impl TileServer {
    /// A server without leaves.
    pub fn start() -> Self {
        let shelf = Arc::new(Mutex::new(Shelf {
            manner: Manner::Good,
            note: String::new(),
            before: VecDeque::new(),
            leaves: Vec::new(),
            asked: Vec::new(),
        }));
        let app = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&shelf));
        let server = Server::start(app);
        Self {
            base: format!("http://{}/log", server.address),
            shelf,
            _server: server,
        }
    }

    pub fn url(&self) -> &str {
        &self.base
    }

    pub fn set(&self, manner: Manner) {
        self.shelf.lock().unwrap().manner = manner;
    }

    /// Publishes these leaves under a checkpoint of the log, and returns the checkpoint.
    pub fn show(&self, log: &Log, origin: &str, leaves: &[Vec<u8>]) -> String {
        let note = log.checkpoint(origin, leaves.len(), &root(leaves));
        self.show_note(&note, leaves);
        note
    }

    /// Publishes these leaves under any note.
    pub fn show_note(&self, note: &str, leaves: &[Vec<u8>]) {
        let mut shelf = self.shelf.lock().unwrap();
        note.clone_into(&mut shelf.note);
        shelf.leaves = leaves.to_vec();
    }

    /// Shows these notes first, once each.
    pub fn show_before(&self, notes: &[&str]) {
        let notes = notes.iter().map(|note| (*note).to_owned());
        self.shelf.lock().unwrap().before = notes.collect();
    }

    /// The requested paths so far.
    pub fn asked(&self) -> Vec<String> {
        self.shelf.lock().unwrap().asked.clone()
    }
}

async fn answer(State(shelf): State<Arc<Mutex<Shelf>>>, uri: Uri) -> Response {
    let path = uri.path().to_owned();
    let (manner, content) = {
        let mut shelf = shelf.lock().unwrap();
        shelf.asked.push(path.clone());
        let before = path
            .ends_with("/checkpoint")
            .then(|| shelf.before.pop_front());
        let content = match before.flatten() {
            Some(note) => Some(note.into_bytes()),
            None => content(&shelf, &path),
        };
        (shelf.manner, content)
    };
    let endless = |chunk: &'static [u8]| {
        let chunks =
            std::iter::repeat_with(move || Ok::<_, std::io::Error>(Bytes::from_static(chunk)));
        Body::from_stream(futures_util::stream::iter(chunks))
    };
    match manner {
        Manner::Hang(part) if path.contains(part) => std::future::pending().await,
        Manner::Flood(part) if path.contains(part) => endless(&[b'a'; 4096]).into_response(),
        Manner::Redirect(part) if path.contains(part) && !path.starts_with("/elsewhere") => {
            let there = format!("/elsewhere{path}");
            (StatusCode::FOUND, [(header::LOCATION, there)]).into_response()
        }
        Manner::Status(part, status) if path.contains(part) => {
            StatusCode::from_u16(status).unwrap().into_response()
        }
        Manner::Cut(part) if path.contains(part) => {
            let half = content.unwrap_or_default();
            let chunks = [
                Ok(Bytes::from(half[..half.len() / 2].to_vec())),
                Err(std::io::Error::other("cut")),
            ];
            Body::from_stream(futures_util::stream::iter(chunks)).into_response()
        }
        _ => match content {
            Some(content) => content.into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
    }
}

fn content(shelf: &Shelf, path: &str) -> Option<Vec<u8>> {
    let path = path.strip_prefix("/elsewhere").unwrap_or(path);
    let path = path.strip_prefix("/log/")?;
    if path == "checkpoint" {
        return Some(shelf.note.clone().into_bytes());
    }
    let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
    let level: u32 = level.parse().unwrap();
    let (index, width) = match rest.split_once(".p/") {
        Some((index, width)) => (index, width.parse().unwrap()),
        None => (rest, 256),
    };
    let digits: String = index.chars().filter(char::is_ascii_digit).collect();
    let index: usize = digits.parse().unwrap();
    let span = 256_usize.pow(level);
    let present = (shelf.leaves.len() / span)
        .saturating_sub(index * 256)
        .min(256);
    if width > present
        || (shelf.manner == Manner::OnlyFullTiles && width < present && present == 256)
    {
        return None;
    }
    let mut bytes: Vec<u8> = (index * 256..index * 256 + width)
        .flat_map(|n| root(&shelf.leaves[n * span..(n + 1) * span]))
        .collect();
    match shelf.manner {
        Manner::Lie(at) if at == level => bytes.iter_mut().step_by(32).for_each(|byte| *byte ^= 1),
        Manner::Short => bytes.truncate(bytes.len() - 32),
        Manner::Long => bytes.push(0),
        Manner::OtherTree => bytes = leaf_hash(&bytes).repeat(width),
        _ => {}
    }
    Some(bytes)
}
