//! A real nginx in front of a broker, as a process of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::process::{Launch, Process};
use super::{SOON, free_address};

/// A running nginx. It stops when dropped.
pub struct Nginx {
    _process: Process,
    pub address: SocketAddr,
}

/// The path of the program, installed by a package or by `scripts/setup`.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.push("/usr/sbin".into());
    let found = places.into_iter().map(|place| place.join("nginx"));
    found
        .into_iter()
        .find(|program| program.exists())
        .unwrap_or_else(|| panic!("nginx is missing: run `scripts/setup test`"))
}

impl Nginx {
    /// Starts an nginx that passes requests on to `upstream` and appends its peer's address to
    /// `X-Forwarded-For`.
    pub fn before(upstream: SocketAddr) -> Self {
        let address = free_address();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary = temporary.map(|kind| format!("  {kind}_temp_path {kind};\n"));
        let config = format!(
            "daemon off;\nmaster_process off;\nerror_log stderr;\npid nginx.pid;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n{}  access_log off;\n  server {{\n    listen {address};\n    location / {{\n\
             \x20     proxy_pass http://{upstream};\n      proxy_http_version 1.1;\n\
             \x20     proxy_set_header Host $host;\n\
             \x20     proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n    }}\n  }}\n}}\n",
            temporary.concat()
        );
        let process = Launch::program(
            "/bin/sh",
            ["-c", r#"exec "$0" -p "$PWD" -e stderr -c nginx.conf"#],
        )
        .arg(program())
        .file("nginx.conf", config)
        .spawn();
        super::wait_until("nginx answers", SOON, || {
            std::net::TcpStream::connect(address).is_ok()
        });
        Self {
            _process: process,
            address,
        }
    }
}
