//! A TCP proxy in front of PostgreSQL that loses the messages that a test chooses.
//!
//! There are two kinds of faults. A [`Mode`] applies to all connections until it is changed. A
//! trap, set by [`Proxy::arm`], applies to one COMMIT: it holds the COMMIT or cuts its connection,
//! either before the server has seen it, or after the server has committed and before the client
//! knows. A trap set by [`Proxy::arm_statement`] does the same to any other statement.
//!
//! For this the proxy reads the wire protocol (version 3), message by message. It refuses requests
//! for encryption itself, so that everything after is plain text. It recognises a COMMIT in the
//! client's stream, in simple queries and in prepared statements, and its success in the server's
//! stream, by the tag `COMMIT`, which only a committed transaction gets.

mod tests;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::SOON;
use super::postgres::TestDatabase;

/// The fault that applies to all traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// New connections are closed at once; open ones continue. See [`Proxy::cut`].
    Refuse,
    /// Nothing passes and nothing is lost: traffic continues after the mode changes.
    Stall,
    /// The client's messages are held back; the server's pass.
    StallToServer,
    /// The server's messages are held back; the client's pass.
    StallToClient,
    /// Everything passes with this delay, in each direction.
    Delay(Duration),
}

/// The point at which a trap catches a COMMIT or another statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// On its way to the server, which has not seen it: the transaction is open.
    Request,
    /// On the way back: the server has executed it, and the client does not know.
    Answer,
}

/// The action of a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Closes both sides of the connection without passing the message on.
    Cut,
    /// Holds the message until [`Proxy::release`]. It is then passed on even if the client has
    /// died, as a network would deliver it.
    Hold,
}

/// A running proxy. When dropped it closes everything.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The destination of new connections.
    upstream: SocketAddr,
    mode: Mode,
    closed: bool,
    trap: Option<Trap>,
    held: bool,
    caught: u64,
    commits: u64,
    connections: u64,
    /// While recording, the statements that clients executed, each with its connection.
    executed: Option<Vec<(u64, String)>>,
    open: HashMap<u64, [TcpStream; 2]>,
}

#[derive(Clone, Debug)]
struct Trap {
    at: At,
    fault: Fault,
    /// Number of matching COMMITs that pass before the trap catches one.
    skip: u64,
    /// Text that the statement, or a statement of the COMMIT's transaction, must contain.
    marker: String,
    /// Whether the trap catches the statement itself instead of its transaction's COMMIT.
    statement: bool,
}

/// State that the two directions of a connection share.
#[derive(Default)]
struct Link {
    /// The fault for the answer to the COMMIT that was sent.
    on_answer: Option<Fault>,
    /// The fault for the server's next message.
    on_next: Option<Fault>,
}

impl Proxy {
    /// A proxy in front of the server at `upstream`.
    pub fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                upstream,
                mode: Mode::Pass,
                closed: false,
                trap: None,
                held: false,
                caught: 0,
                commits: 0,
                connections: 0,
                executed: None,
                open: HashMap::new(),
            }),
            changed: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &own));
        Self { address, shared }
    }

    /// A proxy in front of the cluster of `database`; see [`TestDatabase::url_via`].
    pub fn before(database: &TestDatabase) -> Self {
        Self::start(database.address())
    }

    /// The address at which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the fault for all traffic from now on.
    pub fn set(&self, mode: Mode) {
        self.shared.lock().mode = mode;
        self.shared.changed.notify_all();
    }

    /// Directs new connections to another server, as when an address moves. Open ones stay.
    pub fn lead_to(&self, upstream: SocketAddr) {
        self.shared.lock().upstream = upstream;
    }

    /// Cuts both sides of all open connections, and loses their traffic.
    pub fn cut(&self) {
        self.shared.lock().cut();
        self.shared.changed.notify_all();
    }

    /// Sets a trap for the next COMMIT on any connection.
    pub fn arm(&self, at: At, fault: Fault) {
        self.arm_for("", 0, at, fault);
    }

    /// Sets a trap for a COMMIT of a transaction in which a statement contained `marker` (for
    /// instance the comment with its function's name), after `skip` of them have passed. A new trap
    /// replaces the previous one.
    pub fn arm_for(&self, marker: &str, skip: u64, at: At, fault: Fault) {
        self.set_trap(marker, skip, at, fault, false);
    }

    /// Sets a trap for the next statement that contains `marker`, instead of a COMMIT. The server
    /// sends its answer only when it is complete, so a statement caught on its way back has been
    /// executed.
    pub fn arm_statement(&self, marker: &str, at: At, fault: Fault) {
        self.set_trap(marker, 0, at, fault, true);
    }

    fn set_trap(&self, marker: &str, skip: u64, at: At, fault: Fault, statement: bool) {
        self.shared.lock().trap = Some(Trap {
            at,
            fault,
            skip,
            marker: marker.to_owned(),
            statement,
        });
    }

    /// Removes the trap if it has not caught anything yet.
    pub fn disarm(&self) {
        self.shared.lock().trap = None;
    }

    /// Passes on the message that a trap holds.
    pub fn release(&self) {
        self.shared.lock().held = false;
        self.shared.changed.notify_all();
    }

    /// Number of messages that traps have caught.
    pub fn caught(&self) -> u64 {
        self.shared.lock().caught
    }

    /// Waits until traps have caught `count` messages. Blocks its thread; see [`Self::caught`].
    pub fn wait_caught(&self, count: u64) {
        super::wait_until("the trap catches a message", SOON, || {
            self.caught() >= count
        });
    }

    /// Starts to record the text of each statement that a client executes.
    pub fn record(&self) {
        self.shared.lock().executed = Some(Vec::new());
    }

    /// Ends the recording. Returns the statements in order, each with its connection.
    pub fn recorded(&self) -> Vec<(u64, String)> {
        self.shared.lock().executed.take().unwrap_or_default()
    }

    /// Number of COMMITs that the server has confirmed, including those whose confirmation was
    /// lost.
    pub fn commits(&self) -> u64 {
        self.shared.lock().commits
    }

    /// Number of connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.lock().connections
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.closed = true;
            state.cut();
        }
        self.shared.changed.notify_all();
        // Wakes the accepting thread.
        drop(TcpStream::connect(self.address));
    }
}

impl State {
    fn cut(&mut self) {
        for (_, [client, server]) in self.open.drain() {
            shut(&client);
            shut(&server);
        }
    }

    /// Whether the trap catches this statement, or a COMMIT after these statements. A match reduces
    /// `skip`.
    fn catches(&mut self, statements: &[String], statement: bool) -> Option<(At, Fault)> {
        let trap = self.trap.as_mut()?;
        let matches = statements.iter().any(|sql| sql.contains(&trap.marker));
        if trap.statement != statement || !matches {
            return None;
        }
        if trap.skip > 0 {
            trap.skip -= 1;
            return None;
        }
        let caught = (trap.at, trap.fault);
        self.trap = None;
        Some(caught)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn is_open(&self, id: u64) -> bool {
        self.lock().open.contains_key(&id)
    }

    fn close(&self, id: u64) {
        if let Some([client, server]) = self.lock().open.remove(&id) {
            shut(&client);
            shut(&server);
        }
        self.changed.notify_all();
    }

    /// Waits while the mode holds this direction back.
    fn wait_for_mode(&self, id: u64, stalls: Mode) {
        let state = self.lock();
        let state = self
            .changed
            .wait_while(state, |state| {
                let stalled = state.mode == Mode::Stall || state.mode == stalls;
                stalled && !state.closed && state.open.contains_key(&id)
            })
            .unwrap();
        let mode = state.mode;
        drop(state);
        if let Mode::Delay(delay) = mode {
            std::thread::sleep(delay);
        }
    }

    /// Applies the trap's fault to a connection. Returns whether the message may be passed on.
    fn apply(&self, id: u64, fault: Fault) -> bool {
        let mut state = self.lock();
        state.caught += 1;
        match fault {
            Fault::Cut => {
                drop(state);
                self.close(id);
                false
            }
            Fault::Hold => {
                state.held = true;
                let state = self
                    .changed
                    .wait_while(state, |state| {
                        state.held && !state.closed && state.open.contains_key(&id)
                    })
                    .unwrap();
                state.open.contains_key(&id)
            }
        }
    }
}

fn shut(stream: &TcpStream) {
    // It may already be closed.
    drop(stream.shutdown(Shutdown::Both));
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        let (mode, upstream) = {
            let state = shared.lock();
            if state.closed {
                return;
            }
            (state.mode, state.upstream)
        };
        if mode == Mode::Refuse {
            continue;
        }
        let Ok(server) = TcpStream::connect(upstream) else {
            continue;
        };
        // The client may already have disconnected.
        drop(client.set_nodelay(true));
        drop(server.set_nodelay(true));
        let id = {
            let mut state = shared.lock();
            state.connections += 1;
            let id = state.connections;
            let pair = [client.try_clone().unwrap(), server.try_clone().unwrap()];
            state.open.insert(id, pair);
            id
        };
        let link = Arc::new(Mutex::new(Link::default()));
        let to_server = Direction::new(shared, id, &link);
        let to_client = Direction::new(shared, id, &link);
        let (from_client, back) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || to_server.client_to_server(from_client, server));
        std::thread::spawn(move || to_client.server_to_client(back, client));
    }
}

/// One direction of one connection, on a thread of its own.
struct Direction {
    shared: Arc<Shared>,
    id: u64,
    link: Arc<Mutex<Link>>,
}

impl Direction {
    fn new(shared: &Arc<Shared>, id: u64, link: &Arc<Mutex<Link>>) -> Self {
        Self {
            shared: Arc::clone(shared),
            id,
            link: Arc::clone(link),
        }
    }

    fn client_to_server(&self, mut client: TcpStream, mut server: TcpStream) {
        drop(self.relay_client(&mut client, &mut server));
        self.finish(Mode::StallToServer);
    }

    fn server_to_client(&self, mut server: TcpStream, mut client: TcpStream) {
        drop(self.relay_server(&mut server, &mut client));
        self.finish(Mode::StallToClient);
    }

    /// Passes on the end of a stream, subject to the mode like any message.
    fn finish(&self, stalls: Mode) {
        self.shared.wait_for_mode(self.id, stalls);
        self.shared.close(self.id);
    }

    fn relay_client(&self, client: &mut TcpStream, server: &mut TcpStream) -> std::io::Result<()> {
        // The first messages have no type: they are a length followed by a code.
        loop {
            let packet = read_packet(client, &[])?;
            // A request for TLS or GSSAPI encryption.
            if let Some([0x04, 0xd2, 0x16, 0x2f | 0x30]) = packet.get(4..8) {
                self.shared.wait_for_mode(self.id, Mode::StallToClient);
                client.write_all(b"N")?;
                continue;
            }
            self.shared.wait_for_mode(self.id, Mode::StallToServer);
            server.write_all(&packet)?;
            break;
        }
        let mut session = Session::default();
        while self.shared.is_open(self.id) {
            let message = read_message(client)?;
            self.shared.wait_for_mode(self.id, Mode::StallToServer);
            let known = session.statements.len();
            let commits = session.is_commit(&message);
            if let Some(executed) = session.executed.take()
                && let Some(all) = &mut self.shared.lock().executed
            {
                all.push((self.id, executed));
            }
            let caught = if commits {
                let caught = self.shared.lock().catches(&session.statements, false);
                session.statements.clear();
                caught
            } else {
                let new = session.statements.get(known..).unwrap_or_default();
                self.shared.lock().catches(new, true)
            };
            if let Some((At::Answer, fault)) = caught {
                let mut link = self.link.lock().unwrap();
                if commits {
                    link.on_answer = Some(fault);
                } else {
                    link.on_next = Some(fault);
                }
            }
            if let Some((At::Request, fault)) = caught
                && !self.shared.apply(self.id, fault)
            {
                return Ok(());
            }
            server.write_all(&message)?;
        }
        Ok(())
    }

    fn relay_server(&self, server: &mut TcpStream, client: &mut TcpStream) -> std::io::Result<()> {
        while self.shared.is_open(self.id) {
            let message = read_message(server)?;
            let next = self.link.lock().unwrap().on_next.take();
            if next.is_some_and(|fault| !self.shared.apply(self.id, fault)) {
                return Ok(());
            }
            if message[0] == b'C' && &message[5..] == b"COMMIT\0" {
                self.shared.lock().commits += 1;
                let fault = self.link.lock().unwrap().on_answer.take();
                if fault.is_some_and(|fault| !self.shared.apply(self.id, fault)) {
                    return Ok(());
                }
            }
            self.shared.wait_for_mode(self.id, Mode::StallToClient);
            client.write_all(&message)?;
        }
        Ok(())
    }
}

/// The statements of a client that the proxy remembers.
#[derive(Default)]
struct Session {
    /// The text of prepared statements by name.
    prepared: HashMap<Vec<u8>, String>,
    /// The text behind portals by name.
    portals: HashMap<Vec<u8>, String>,
    /// The statements executed since the last COMMIT or ROLLBACK.
    statements: Vec<String>,
    /// The statement that the last message executed.
    executed: Option<String>,
}

impl Session {
    /// Records a client's message. Returns whether it executes a COMMIT.
    fn is_commit(&mut self, message: &[u8]) -> bool {
        let body = &message[5..];
        let executed = match message[0] {
            b'Q' => text(cstring(body).0),
            b'P' => {
                let (name, rest) = cstring(body);
                let sql = text(cstring(rest).0);
                self.prepared.insert(name.to_vec(), sql);
                return false;
            }
            b'B' => {
                let (portal, rest) = cstring(body);
                let sql = self.prepared.get(cstring(rest).0).cloned();
                self.portals
                    .insert(portal.to_vec(), sql.unwrap_or_default());
                return false;
            }
            b'E' => {
                let sql = self.portals.get(cstring(body).0).cloned();
                sql.unwrap_or_default()
            }
            _ => return false,
        };
        self.executed = Some(executed.clone());
        let verb = last_verb(&executed);
        if verb == "ROLLBACK" || verb == "ABORT" {
            self.statements.clear();
            return false;
        }
        self.statements.push(executed);
        verb == "COMMIT" || verb == "END"
    }
}

/// The first word of the last statement in `sql`, past comments, in upper case.
fn last_verb(sql: &str) -> String {
    let mut verb = String::new();
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
        if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if rest.is_empty() {
            return verb;
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphabetic());
            verb = rest[..end.unwrap_or(rest.len())].to_ascii_uppercase();
            rest = rest.split_once(';').map_or("", |(_, after)| after);
        }
    }
}

/// A string up to its terminator, and the rest of the bytes.
fn cstring(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0);
    let end = end.unwrap_or(bytes.len());
    (&bytes[..end], bytes.get(end + 1..).unwrap_or_default())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A message with its type.
fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    read_packet(stream, &kind)
}

/// Reads a packet of the length that it announces (the length counts itself), and returns it after
/// `prefix`.
fn read_packet(stream: &mut TcpStream, prefix: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let size = usize::try_from(u32::from_be_bytes(length)).unwrap();
    let mut packet = [prefix, &length].concat();
    let head = packet.len();
    packet.resize(head + size.saturating_sub(4), 0);
    stream.read_exact(&mut packet[head..])?;
    Ok(packet)
}
