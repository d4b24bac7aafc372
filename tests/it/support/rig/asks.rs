//! Requests and evidence for a rig's broker, and the parts of its answers.

use secrecy::ExposeSecret;
use taskpass::domain::request::{NewTask, ParentRef, RetryKey, TaskSelector};
use taskpass::ids::TaskId;
use taskpass::mint::Credential;

use super::*;

/// Evidence that consists of a bearer token.
pub fn bearer(token: &str) -> Evidence {
    Evidence {
        bearer: Some(SecretString::from(token.to_owned())),
        ..Evidence::default()
    }
}

/// A request for `actions` on orders-api in a new `job`.
pub fn ask(actions: &[&str]) -> CredentialRequest {
    CredentialRequest {
        task: TaskSelector::Open(job()),
        resource: "orders-api".into(),
        grant: serde_json::from_value(json!([{"type": "api", "actions": actions}])).unwrap(),
        ttl_seconds: None,
        retry: None,
    }
}

pub fn job() -> NewTask {
    NewTask {
        task_type: "job".into(),
        purpose: None,
        parent: None,
        deadline_seconds: None,
        heartbeat_seconds: None,
    }
}

/// The same request under another task.
pub fn ask_in(task: NewTask, actions: &[&str]) -> CredentialRequest {
    CredentialRequest {
        task: TaskSelector::Open(task),
        ..ask(actions)
    }
}

/// The same request, joining an open task.
pub fn ask_joining(issued: &Issued, actions: &[&str]) -> CredentialRequest {
    CredentialRequest {
        task: TaskSelector::Join {
            id: issued.task.id,
            handle: handle(issued),
        },
        ..ask(actions)
    }
}

/// A job that is a child of another task.
pub fn child_of(parent: TaskId, delegation: &Delegation) -> NewTask {
    NewTask {
        parent: Some(ParentRef {
            id: parent,
            delegation: delegation.token.clone(),
        }),
        ..job()
    }
}

pub fn with_key(request: CredentialRequest, key: &str) -> CredentialRequest {
    CredentialRequest {
        retry: Some(RetryKey {
            key: key.to_owned(),
            fingerprint: [7; 32],
        }),
        ..request
    }
}

pub fn handle(issued: &Issued) -> SecretString {
    issued.task.handle.clone().unwrap()
}

pub fn access_token(issued: &Issued) -> SecretString {
    let Credential::Jwt { access_token, .. } = &issued.credential else {
        panic!("the credential is not a token");
    };
    access_token.clone()
}

/// The claims of a credential, unverified.
pub fn claims(issued: &Issued) -> Value {
    crate::support::keys::peek(access_token(issued).expose_secret()).1
}

/// The code of a recorded refusal.
pub fn refusal(result: Result<Issued, BrokerError>) -> String {
    match result {
        Err(BrokerError::Denied(denied)) => denied.refusal.code.as_str().to_owned(),
        Err(other) => panic!("not a recorded refusal: {other}"),
        Ok(issued) => panic!("issued {}", issued.session.id),
    }
}
