//! A stand-in for AWS: moto's server, with STS, IAM and S3, as a process of its own.
//!
//! It keeps roles, policies, sessions and buckets. It does not check the signatures of web
//! identities, nor session policies, nor most conditions: for those there are other judges.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::process::{Launch, Process};
use super::{SOON, free_address};

/// A running server; it ends with this.
pub struct Moto {
    _process: Process,
    pub address: SocketAddr,
}

/// The programs of the project's Python environment.
pub fn python_program(name: &str) -> PathBuf {
    let venv = std::env::var_os("TASKPASS_TEST_VENV").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".tools/venv"),
        PathBuf::from,
    );
    let program = venv.join("bin").join(name);
    assert!(
        program.exists(),
        "{} is missing: run `scripts/setup test`",
        program.display()
    );
    program
}

impl Moto {
    pub fn start() -> Self {
        let address = free_address();
        let arguments = ["-H", "127.0.0.1", "-p", &address.port().to_string()].map(str::to_owned);
        let process = Launch::program(python_program("moto_server"), arguments)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .spawn();
        super::wait_until("moto answers", SOON, || {
            std::net::TcpStream::connect(address).is_ok()
        });
        Self {
            _process: process,
            address,
        }
    }

    /// Its IAM, for somebody who may do everything.
    pub fn iam(&self) -> aws_sdk_iam::Client {
        let credentials =
            aws_sdk_iam::config::Credentials::new("AKIAEXAMPLE", "secret", None, None, "test");
        let config = aws_sdk_iam::Config::builder()
            .behavior_version_latest()
            .region(aws_sdk_iam::config::Region::new("eu-central-1"))
            .endpoint_url(self.url())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .credentials_provider(credentials)
            .build();
        aws_sdk_iam::Client::from_conf(config)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}
