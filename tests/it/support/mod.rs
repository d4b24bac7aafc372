//! Shared code of the tests. Only `rig` and `fleet` use the product's code, so that the other parts
//! check it independently.
//!
//! - [`postgres`], [`sqlite`]: a fresh store for each test.
//! - [`balancer`]: a TCP balancer in front of replicas, which can spoil connections.
//! - [`proxy`]: a TCP proxy in front of PostgreSQL, which loses the messages that a test chooses.
//! - [`ci`]: a pipeline with its policies and tokens.
//! - [`configuration`]: the text of a broker's configuration.
//! - [`keys`], [`issuer`]: JOSE on ring, and an OIDC issuer that can misbehave.
//! - [`process`]: the real binary, with signals and its output.
//! - [`terminal`]: a program at a terminal, with a user who types.
//! - [`moto`], [`sts`]: stand-ins for AWS.
//! - [`http`]: a client, checks of answers, and senders of raw and slow requests.
//! - [`log`]: a transparency log, implemented from the RFC.
//! - [`witness`]: a witness of logs over HTTP, which can misbehave.
//! - [`object`]: an object over HTTP, which may ignore conditional requests.
//! - [`tiles`]: a tiled log over HTTP, which can misbehave.
//! - [`server`]: runs the HTTP servers of this module.
//! - [`tls`]: certificates and handshakes.
//! - [`node`], [`judge`], [`nginx`]: third-party software: programs for Node.js, an evaluator of
//!   IAM policies, a proxy.
//! - [`canary`]: searches for secrets that must not be stored.
//!
//! Everything works in plain and in async tests: servers, proxies and set-up run on threads of
//! their own. Functions named `wait_…` block their thread. An async test that runs parts of the
//! product in its own runtime uses [`until`] instead.

#![allow(
    dead_code,
    unused_macros,
    reason = "not every helper has a caller in each binary"
)]

/// Runs the same cases on both stores. Each case is an async function of the calling module. Its
/// argument is the result of the module's `begin`, an async function of the store's kind. Cases
/// listed `by reference` borrow it; `then` names a check that runs after each of them.
macro_rules! on_both_stores {
    (@module $name:ident |$begun:ident| $play:expr) => {
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                let $begun = super::begin($crate::support::rig::Kind::Sqlite).await;
                $play
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                let $begun = super::begin($crate::support::rig::Kind::Postgres).await;
                $play
            }
        }
    };
    (by reference then $after:ident; $(fn $name:ident;)+) => {
        $(on_both_stores! {
            @module $name |begun| {
                super::$name(&begun).await;
                super::$after(&begun).await;
            }
        })+
    };
    (by reference; $(fn $name:ident;)+) => {
        $(on_both_stores! { @module $name |begun| super::$name(&begun).await })+
    };
    ($(fn $name:ident;)+) => {
        $(on_both_stores! { @module $name |begun| super::$name(begun).await })+
    };
}

pub mod balancer;
pub mod canary;
pub mod ci;
pub mod configuration;
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

/// How long a test waits for something that should happen soon: long enough for a machine that is
/// busy with other work. A passing test never waits that long.
pub const SOON: Duration = Duration::from_mins(1);

/// Runs async work on a thread and runtime of its own, and blocks until it is done. Unlike a
/// runtime's `block_on` it may be called from an async test and from `Drop`.
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

/// Checks `condition` every 10 ms until it holds. Fails after `deadline`, with `expected` in the
/// message.
pub fn wait_until(expected: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(
            begin.elapsed() < deadline,
            "not within {deadline:?}: {expected}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Like [`wait_until`], without blocking the runtime of an async test.
pub async fn until<F: Future<Output = bool>>(
    expected: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> F,
) {
    let begin = Instant::now();
    while !condition().await {
        assert!(
            begin.elapsed() < deadline,
            "not within {deadline:?}: {expected}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes a file of a broker's or monitor's state with the required mode.
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

/// Encodes `bytes` in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A free loopback address. Its port is below the range that the kernel uses for outgoing
/// connections, so that none of them takes it. A lock on a file with the port's name keeps other
/// tests from getting it while this process lives.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let directory = std::env::temp_dir().join("taskpass-test-ports");
    // If another user owns the directory, ports are chosen without locks.
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
