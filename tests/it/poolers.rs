//! Poolers and managed databases that do not accept the options of the broker's connections. The
//! error at the start names the cause and the remedy.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use crate::support::fleet::Fleet;
use crate::support::postgres::fresh_database;
use crate::support::process::{Ended, Launch};

const SEALING_KEY: &str = "tpk1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

const CANCEL_AND_SSL: [u32; 3] = [80_877_102, 80_877_103, 80_877_104];

/// The pooler's handling of a connection's first message.
#[derive(Clone)]
enum Pooler {
    /// Refuses the connection with this SQLSTATE and message.
    Refuses(&'static str, &'static str),
    /// Passes everything except the options on to this server.
    Drops(SocketAddr),
}

/// Serves connections until the test ends. Returns the address.
fn stand_in(pooler: Pooler) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, pooler) = (client.unwrap(), pooler.clone());
            // An error on one connection does not stop the server.
            std::thread::spawn(move || drop(serve(client, &pooler)));
        }
    });
    address
}

fn serve(mut client: TcpStream, pooler: &Pooler) -> std::io::Result<()> {
    let body = loop {
        let mut length = [0; 4];
        client.read_exact(&mut length)?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        client.read_exact(&mut body)?;
        let code = u32::from_be_bytes(body[..4].try_into().unwrap());
        if !CANCEL_AND_SSL.contains(&code) {
            break body;
        }
        client.write_all(b"N")?;
    };
    let parameters: Vec<&[u8]> = body[4..].split(|byte| *byte == 0).collect();
    let has_options = parameters.contains(&&b"options"[..]);
    match pooler {
        Pooler::Refuses(code, message) if has_options => {
            let mut fields = Vec::new();
            for (kind, value) in [
                (b'S', "FATAL"),
                (b'V', "FATAL"),
                (b'C', *code),
                (b'M', *message),
            ] {
                fields.push(kind);
                fields.extend_from_slice(value.as_bytes());
                fields.push(0);
            }
            fields.push(0);
            let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
            client.write_all(&[&b"E"[..], &length, &fields].concat())
        }
        Pooler::Refuses(..) => Ok(()),
        Pooler::Drops(server) => {
            let mut kept = body[..4].to_vec();
            for pair in parameters.chunks(2) {
                if let [name, value] = pair
                    && !name.is_empty()
                    && *name != b"options"
                {
                    kept.extend([*name, &b"\0"[..], *value, &b"\0"[..]].concat());
                }
            }
            kept.push(0);
            let length = u32::try_from(kept.len() + 4).unwrap().to_be_bytes();
            let mut server = TcpStream::connect(server)?;
            server.write_all(&[&length[..], &kept].concat())?;
            let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
            std::thread::spawn(move || drop(std::io::copy(&mut from_client, &mut to_server)));
            std::io::copy(&mut server, &mut client).map(drop)
        }
    }
}

fn start(url: String) -> Ended {
    let config = Fleet::sqlite()
        .config(crate::support::free_address())
        .replace(crate::support::configuration::SQLITE, "kind = \"postgres\"");
    Launch::taskpass(["serve"])
        .config(config)
        .file(
            "policies/admin.cedar",
            include_str!("../../policies/admin.cedar"),
        )
        .env("TASKPASS_SEALING_KEYS", SEALING_KEY)
        .env("TASKPASS_DATABASE_URL", url)
        .run()
}

#[test]
fn a_pooler_that_refuses_the_options_of_connections_is_named_with_the_remedy() {
    for (code, message) in [
        // PgBouncer before 1.20, and from 1.20 on.
        ("08P01", "unsupported startup parameter: options"),
        (
            "08P01",
            "unsupported startup parameter in options: statement_timeout",
        ),
        (
            "0A000",
            "Feature not supported: RDS Proxy currently doesn\u{2019}t support command-line options.",
        ),
        (
            "42501",
            "permission denied to set parameter \"synchronous_commit\"",
        ),
    ] {
        let address = stand_in(Pooler::Refuses(code, message));
        let refused = start(format!("postgres://u:hunter2@{address}/taskpass"));
        assert_eq!(refused.code(), Some(3), "{}", refused.stderr);
        let told = &refused.stderr;
        for words in [
            "refuses the broker's connection options",
            &message[..20],
            code,
            "name the primary itself",
            "PgBouncer",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert!(!told.contains("hunter2"), "{told}");
    }
}

#[test]
fn other_refusals_of_a_database_are_not_told_as_a_poolers() {
    for (code, message) in [
        ("28P01", "password authentication failed for user \"u\""),
        ("42501", "permission denied for database \"taskpass\""),
        ("3D000", "database \"taskpass\" does not exist"),
    ] {
        let address = stand_in(Pooler::Refuses(code, message));
        let refused = start(format!("postgres://u:hunter2@{address}/taskpass"));
        assert_eq!(refused.code(), Some(3), "{}", refused.stderr);
        assert!(refused.stderr.contains(message), "{}", refused.stderr);
        assert!(!refused.stderr.contains("PgBouncer"), "{}", refused.stderr);
    }
}

#[test]
fn a_pooler_that_drops_the_options_of_connections_is_no_database_to_serve_from() {
    let database = fresh_database();
    let address = stand_in(Pooler::Drops(database.address()));
    let url = crate::support::postgres::serving(&database.url_via(address));
    let refused = start(url.to_string());
    assert_eq!(refused.code(), Some(3), "{}", refused.stderr);
    let told = &refused.stderr;
    for words in [
        "drops the broker's connection options",
        "statement_timeout is 0 ms and not 5000 ms",
        "name the primary itself",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
}
