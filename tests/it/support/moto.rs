//! A stand-in for AWS: moto's server, with STS, IAM and S3, as a process of its own.
//!
//! It keeps roles, policies, sessions and buckets. It checks neither the signatures of web
//! identities, nor session policies, nor most conditions: other tests cover those.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::process::{Launch, Process};
use super::{SOON, free_address};

/// A running server. It stops when dropped.
pub struct Moto {
    _process: Process,
    pub address: SocketAddr,
}

/// A program of the project's Python environment.
pub fn python_program(name: &str) -> PathBuf {
    program_of("TASKPASS_TEST_VENV", ".tools/venv", name)
}

/// A program of the second Python environment, whose packages need other versions.
pub fn other_python_program(name: &str) -> PathBuf {
    program_of("TASKPASS_TEST_DESCRIPTION", ".tools/description", name)
}

fn program_of(variable: &str, default: &str, name: &str) -> PathBuf {
    let venv = std::env::var_os(variable).map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(default),
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

    /// A client of its IAM with all rights.
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

    /// Makes it check signatures and permissions from now on.
    pub async fn enforce(&self) {
        let url = format!("{}/moto-api/reset-auth", self.url());
        let put = client().post(url).body("0").send().await;
        assert!(put.unwrap().status().is_success());
    }

    /// Makes an S3 bucket, and returns an access key with all rights to it.
    pub async fn bucket(&self, name: &str) -> (String, String) {
        let url = format!("{}/{name}", self.url());
        let body = "<CreateBucketConfiguration><LocationConstraint>eu-central-1\
                    </LocationConstraint></CreateBucketConfiguration>";
        let put = client().put(url).body(body).send().await;
        let put = put.unwrap();
        assert!(put.status().is_success(), "{}", put.text().await.unwrap());
        let iam = self.iam();
        let user = format!("{name}-user");
        iam.create_user().user_name(&user).send().await.unwrap();
        iam.put_user_policy()
            .user_name(&user)
            .policy_name("all")
            .policy_document(
                r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*"}}"#,
            )
            .send()
            .await
            .unwrap();
        let made = iam.create_access_key().user_name(&user).send().await;
        let key = made.unwrap().access_key.unwrap();
        (key.access_key_id, key.secret_access_key)
    }
}

/// A client that does not sign its requests.
fn client() -> reqwest::Client {
    super::http::install_crypto_provider();
    reqwest::Client::new()
}
