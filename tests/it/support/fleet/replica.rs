//! Requests to one replica: over HTTP, over TLS, on raw connections.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;
use crate::support::http::Answer;

impl Tls {
    /// A client of the replica at this address, with or without a certificate.
    pub fn client(&self, address: SocketAddr, own: Option<&Identity>, version: Version) -> Client {
        let own = own.map(Identity::both_pem);
        let base = format!("https://{address}");
        Client::over_tls(&base, &self.server.pem, own.as_deref(), version)
    }

    pub(super) fn section(&self) -> String {
        format!(
            "[server.tls]\ncertificate = \"certificate.pem\"\nprivate_key = \"private-key.pem\"\n{}",
            self.settings
        )
    }
}

impl Replica {
    /// The current nonce for DPoP proofs.
    pub async fn nonce(&self) -> String {
        let request = self.client.request(reqwest::Method::GET, "/livez");
        let answer = crate::support::http::send(request.header("dpop", "x")).await;
        answer.header("dpop-nonce").unwrap().to_owned()
    }

    /// `taskpass exec`, which runs `command` with a token for reading orders.
    pub fn exec(&self, options: &[&str], command: &[&str]) -> Launch {
        let url = format!("http://{}", self.address);
        let parts = [
            &["exec", "--url", &url][..],
            &ORDERS_ARGUMENTS,
            options,
            &["--"],
            command,
        ];
        Launch::taskpass(parts.concat())
    }

    /// Requests a credential.
    pub async fn ask(&self, token: &str) -> Answer {
        self.client
            .post_json(token, "/v1/credentials", &body())
            .await
    }

    /// A raw connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect_timeout(&self.address, SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// The bytes of the request that [`Self::ask`] sends, with an `Idempotency-Key`, so that a test
    /// can send them in parts. `headers` are additional header lines, each with its line end.
    pub fn raw_request(&self, token: &str, key: &str, headers: &str) -> Vec<u8> {
        let body = body().to_string();
        format!(
            "POST /v1/credentials HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\
             Idempotency-Key: \"{key}\"\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
            self.address,
            body.len()
        )
        .into_bytes()
    }

    /// A connection on which the server has read a request's head, and half of the body was sent.
    pub fn half_a_request(&self, token: &str, key: &str) -> TcpStream {
        const CONTINUE: &[u8; 25] = b"HTTP/1.1 100 Continue\r\n\r\n";
        let request = self.raw_request(token, key, "Expect: 100-continue\r\n");
        let half = request.len() - body().to_string().len() / 2;
        let mut stream = self.connect();
        stream.write_all(&request[..half]).unwrap();
        // The server answers `100 Continue` when it has read the head and wants the body.
        let mut go_on = [0; CONTINUE.len()];
        stream.read_exact(&mut go_on).unwrap();
        assert_eq!(&go_on, CONTINUE);
        stream
    }

    /// Requests a credential with an `Idempotency-Key`, on a new connection.
    pub async fn ask_again(&self, token: &str, key: &str) -> Answer {
        let client = Client::new(&format!("http://{}", self.address));
        let request = client
            .request(reqwest::Method::POST, "/v1/credentials")
            .bearer_auth(token)
            .header("Idempotency-Key", format!("\"{key}\""))
            .json(&body());
        crate::support::http::send(request).await
    }
}
