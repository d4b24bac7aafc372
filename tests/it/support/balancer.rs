//! A TCP balancer in front of replicas that distributes connections in turn, without health checks.
//! It can spoil the first connections, each in its own way.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// The fault of a connection.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is closed at once.
    Close,
    /// The connection is accepted and never answered.
    Hang,
    /// The balancer answers the request itself, with this text.
    Answer(String),
    /// The request is passed on, and the connection is closed when the answer arrives.
    LoseAnswer,
}

impl Fault {
    /// An answer with this status and these headers, and no body.
    pub fn status(status: &str, headers: &str) -> Self {
        Self::Answer(format!(
            "HTTP/1.1 {status}\r\n{headers}content-length: 0\r\nconnection: close\r\n\r\n"
        ))
    }

    /// An HTML error page of a load balancer with this status.
    pub fn page(status: &str) -> Self {
        let page = "<html>no</html>";
        let length = page.len();
        Self::Answer(format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/html\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n{page}"
        ))
    }
}

/// A running balancer. It accepts no more connections once it is dropped.
pub struct Balancer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstreams: Vec<SocketAddr>,
    next: AtomicUsize,
    faults: Mutex<VecDeque<Fault>>,
    /// The head of the first request of each connection.
    heads: Mutex<Vec<String>>,
    hanging: Mutex<Vec<TcpStream>>,
    closed: AtomicBool,
}

impl Balancer {
    /// A balancer in front of these servers. The first connections have these faults, one each.
    pub fn before(upstreams: &[SocketAddr], faults: &[Fault]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            upstreams: upstreams.to_vec(),
            next: AtomicUsize::new(0),
            faults: Mutex::new(faults.iter().cloned().collect()),
            heads: Mutex::default(),
            hanging: Mutex::default(),
            closed: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.closed.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || shared.serve(client));
            }
        });
        Self { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Replaces the remaining faults; the next connections have these.
    pub fn set_faults(&self, faults: &[Fault]) {
        *self.shared.faults.lock().unwrap() = faults.iter().cloned().collect();
    }

    /// The values of this header in the first request of each connection to this path.
    pub fn seen(&self, path: &str, header: &str) -> Vec<String> {
        let heads = self.shared.heads.lock().unwrap();
        let asked = heads.iter().filter(|head| {
            let target = head.split_whitespace().nth(1);
            target.is_some_and(|target| target.starts_with(path))
        });
        let value = |head: &String| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines
                .find(|(name, _)| name.eq_ignore_ascii_case(header))
                .map(|(_, value)| value.to_owned())
        };
        asked.filter_map(value).collect()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) {
        let fault = self.faults.lock().unwrap().pop_front();
        match fault {
            Some(Fault::Close) => {}
            Some(Fault::Hang) => self.hanging.lock().unwrap().push(client),
            Some(Fault::Answer(answer)) => {
                if self.request(&mut client).is_some() {
                    drop(client.write_all(answer.as_bytes()));
                }
            }
            Some(Fault::LoseAnswer) => {
                let Some((request, mut server)) = self.request(&mut client).zip(self.connect())
                else {
                    return;
                };
                drop(server.write_all(&request));
                drop(server.read(&mut [0; 1]));
            }
            None => {
                // Without a live replica, the client's connection is closed.
                let Some(server) = self.connect() else { return };
                self.pass(&client, &server);
            }
        }
    }

    fn connect(&self) -> Option<TcpStream> {
        let next = self.next.fetch_add(1, Ordering::SeqCst);
        let upstream = self.upstreams[next % self.upstreams.len()];
        TcpStream::connect(upstream).ok()
    }

    fn pass(&self, client: &TcpStream, server: &TcpStream) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut first = Vec::new();
                copy(client, server, |bytes| {
                    if first.is_empty() {
                        first.extend_from_slice(bytes);
                        self.note(bytes);
                    }
                });
            });
            scope.spawn(|| copy(server, client, |_| {}));
        });
    }

    fn note(&self, request: &[u8]) {
        let text = String::from_utf8_lossy(request).into_owned();
        let head = text.split("\r\n\r\n").next().unwrap_or_default().to_owned();
        self.heads.lock().unwrap().push(head);
    }

    /// Reads a whole request with its body.
    fn request(&self, client: &mut TcpStream) -> Option<Vec<u8>> {
        let mut request = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            let read = client.read(&mut buffer).ok().filter(|read| *read > 0)?;
            request.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&request);
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let head = head.to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.trim().parse().unwrap());
            if body.len() >= length {
                self.note(&request);
                return Some(request);
            }
        }
    }
}

/// Copies one connection to the other, until one of them ends.
fn copy(mut from: &TcpStream, mut to: &TcpStream, mut look: impl FnMut(&[u8])) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        look(&buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    for side in [from, to] {
        drop(side.shutdown(Shutdown::Both));
    }
}
