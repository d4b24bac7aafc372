//! What the tests stand on. But for `rig` and `fleet`, nothing here uses the product's code, so that each part is an
//! independent check of it.
//!
//! - [`postgres`], [`sqlite`]: a fresh store for each test.
//! - [`balancer`]: a TCP balancer before replicas, which can spoil connections.
//! - [`proxy`]: a TCP proxy before PostgreSQL that loses exactly what it is told to lose.
//! - [`keys`], [`issuer`]: JOSE on ring, and an OIDC issuer that can misbehave.
//! - [`process`]: the real binary, its signals and what it printed.
//! - [`terminal`]: a program at a terminal, with a user who types.
//! - [`moto`], [`sts`]: stand-ins for AWS.
//! - [`http`]: a client, and a sender of what no client would send.
//! - [`log`]: a transparency log by the RFC's own words.
//! - [`witness`]: a witness of logs over HTTP, and the ways in which one can be unfit or hostile.
//! - [`object`]: an object behind HTTP that heeds conditional requests, or does not.
//! - [`tiles`]: that log behind HTTP, honest or not.
//! - [`server`]: what serves those that speak HTTP.
//! - [`tls`]: certificates, and a look at handshakes.
//! - [`moto`], [`node`], [`judge`], [`nginx`]: others' code: AWS as far as it can be had, programs of
//!   Node.js, an evaluator of IAM policies, a proxy.
//! - [`canary`]: a search for secrets where none may be.
//!
//! Everything works from plain and from async tests: servers, proxies and set-up run on threads of
//! their own. What waits (`wait_…`) blocks its thread, so an async test in whose runtime parts of
//! the product run waits by [`until`] instead.

#![allow(
    dead_code,
    unused_macros,
    reason = "not every helper has a caller at all times"
)]

/// The same cases on both stores. What a case is given comes from its module's `begin`, an async
/// function of the store's kind; `then` names what must hold after each.
macro_rules! on_both_stores {
    (@module $name:ident { $($case:item)+ } |$begun:ident| $play:expr) => {
        mod $name {
            use super::*;

            $($case)+

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                let $begun = begin($crate::support::rig::Kind::Sqlite).await;
                $play
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                let $begun = begin($crate::support::rig::Kind::Postgres).await;
                $play
            }
        }
    };
    (then $after:path; $(async fn $name:ident($fleet:ident, $replica:ident) $body:block)+) => {
        $(on_both_stores! {
            @module $name {
                async fn case(($fleet, $replica): &(Fleet, Replica)) $body
            }
            |begun| {
                case(&begun).await;
                $after(&begun).await;
            }
        })+
    };
    ($($(#[$meta:meta])* async fn $name:ident($fleet:ident, $replica:ident) $body:block)+) => {
        $(on_both_stores! {
            @module $name {
                $(#[$meta])*
                async fn case(($fleet, $replica): &(Fleet, Replica)) $body
            }
            |begun| case(&begun).await
        })+
    };
    ($($(#[$meta:meta])* async fn $name:ident($($given:ident)+: $type:ty) $body:block)+) => {
        $(on_both_stores! {
            @module $name {
                $(#[$meta])*
                async fn case($($given)+: $type) $body
            }
            |begun| case(begun).await
        })+
    };
}

pub mod balancer;
pub mod canary;
pub mod documented;
pub mod fleet;
pub mod http;
pub mod issuer;
pub mod judge;
pub mod keys;
pub mod log;
pub mod moto;
pub mod nginx;
pub mod node;
pub mod object;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod receiver;
pub mod rig;
pub mod server;
pub mod sqlite;
pub mod standby;
pub mod sts;
pub mod terminal;
pub mod tiles;
pub mod tls;
pub mod witness;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};

/// How long a test waits for something that should come soon: long enough for a machine that is busy
/// with other work. Nothing that passes takes so long.
pub const SOON: Duration = Duration::from_mins(1);

/// Does async work on a thread and a runtime of its own, and blocks until it is done. Unlike a
/// runtime's own `block_on` it may be called from an async test and from `Drop`.
pub fn block_on<T: Send>(work: impl AsyncFnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(work())
        });
        match worker.join() {
            Ok(output) => output,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Asks `condition` every 10 ms until it holds; fails after `deadline`, naming `what`.
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(
            begin.elapsed() < deadline,
            "waited {deadline:?} in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// As [`wait_until`], without blocking the runtime of an async test.
pub async fn until<F: Future<Output = bool>>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> F,
) {
    let begin = Instant::now();
    while !condition().await {
        assert!(
            begin.elapsed() < deadline,
            "waited {deadline:?} in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes a file of a broker's or a monitor's state, as an operator puts one back.
pub fn write_private(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Makes a directory that other users cannot enter.
pub fn make_private_directory(path: &Path) {
    std::fs::create_dir(path).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o700)).unwrap();
}

/// `length` random bytes.
pub fn random_bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SystemRandom::new().fill(&mut bytes).unwrap();
    bytes
}

/// `length` random bytes in hexadecimal.
pub fn random_hex(length: usize) -> String {
    hex(&random_bytes(length))
}

/// `bytes` in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A loopback address on which nothing listens. The port lies below those that the kernel gives to
/// outgoing connections, so that none of them takes it before the caller does. No other test gets it
/// while this process lives: it holds a lock on a file of the port's name.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let directory = std::env::temp_dir().join("taskpass-test-ports");
    // Where another user owns the directory, ports are chosen without locks.
    fs::create_dir_all(&directory).ok();
    let start = u16::from_be_bytes(random_bytes(2).try_into().unwrap());
    for _ in 0..1_000 {
        let step = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_000 + step % 10_000));
        let name = directory.join(address.port().to_string());
        let mut options = File::options();
        let file = options.create(true).truncate(false).write(true).open(name);
        let file = file.ok();
        let is_ours = file.as_ref().is_none_or(|file| file.try_lock().is_ok());
        if is_ours && TcpListener::bind(address).is_ok() {
            HELD.lock().unwrap().extend(file);
            return address;
        }
    }
    panic!("no free port between 10000 and 19999");
}

mod tests {
    use super::*;

    #[tokio::test]
    async fn block_on_works_inside_a_runtime() {
        assert_eq!(block_on(async || 7), 7);
    }

    #[test]
    fn free_addresses_differ_and_can_be_bound() {
        let (one, two) = (free_address(), free_address());
        assert_ne!(one, two);
        TcpListener::bind(one).unwrap();
    }

    #[test]
    #[should_panic(expected = "the moon")]
    fn a_vain_wait_names_what_it_waited_for() {
        wait_until("the moon", Duration::from_millis(30), || false);
    }
}
