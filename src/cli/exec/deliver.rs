//! Delivers the credential to the command: in variables, in a file, or from an endpoint.
//!
//! A form that does not fit the credential is [`CliError::Usage`]; a file that cannot be written,
//! or an answer without a credential, is [`CliError::Unavailable`]. `super::renewal` and
//! `super::endpoint` keep the delivered credential current.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::DeliverAs;
use super::endpoint::Endpoint;
use super::renewal::{Renewal, RenewalTrigger};
use crate::cli::CliError;
use crate::client::credentials::CredentialRequester;
use crate::client::session::CachedSession;
use crate::client::task_lease::Never;
use crate::clock::{Clock as _, SystemClock};
use crate::config::ProcessEnvironment;
use crate::crypto::random::SystemRandom;
use crate::files::{create_private, write_whole};
use crate::ids::Random as _;
use crate::process::HANDOVER_VARIABLE;
use crate::wire::credentials::{CredentialBody, IssuedBody};
use crate::wire::secret::SecretText;

/// Variables that would give AWS's tools other credentials or endpoints, or with which the command
/// could authenticate to the broker as this process. SDKs search in different orders, so all of
/// these are removed.
const REMOVED: [&str; 43] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    // Older SDKs use these names for the same values.
    "AWS_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_CREDENTIAL_FILE",
    "AWS_CREDENTIAL_PROFILES_FILE",
    "AWS_ACCOUNT_ID",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "BOTO_CONFIG",
    "BOTO_PATH",
    "AWS_SDK_LOAD_CONFIG",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_IAM_ROLE_ARN",
    "AWS_IAM_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_EC2_INSTANCE_PROFILE_NAME",
    "AWS_LOGIN_CACHE_DIRECTORY",
    "AWS_SSO_SESSION",
    "AWS_SSO_ACCOUNT_ID",
    "AWS_SSO_ROLE_NAME",
    "AWS_AUTH_SCHEME_PREFERENCE",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "TASKPASS_TOKEN",
    "TASKPASS_TOKEN_FILE",
    "TASKPASS_KEY_FILE",
    // `taskpass request --env` exports these two for another task.
    "TASKPASS_CREDENTIAL",
    "TASKPASS_HANDLE",
    HANDOVER_VARIABLE,
    // With these the command could obtain attestations for this broker or for any other audience.
    "ACTIONS_ID_TOKEN_REQUEST_URL",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
];

/// Prefixes of more such variables. The name of an AWS service may follow.
const REMOVED_BEGINNINGS: [&str; 2] = ["AWS_BEARER_TOKEN_", "AWS_ENDPOINT_URL"];

/// Variables that name files and replace options of the command line. They hold no secret, so they
/// stay in the environment of this process.
const OF_THE_COMMAND_LINE: [&str; 2] = ["TASKPASS_TOKEN_FILE", "TASKPASS_KEY_FILE"];

/// The names of the variables that the command does not get; `*` stands for any suffix.
pub(super) fn removed_names() -> impl Iterator<Item = String> {
    let many = REMOVED_BEGINNINGS.map(|beginning| format!("{beginning}*"));
    REMOVED.map(str::to_owned).into_iter().chain(many)
}

/// All variables that the command does not get: the listed ones, and existing ones with a listed
/// prefix.
fn removed() -> impl Iterator<Item = String> {
    let begins = |name: &String| {
        let mut beginnings = REMOVED_BEGINNINGS.iter();
        beginnings.any(|beginning| name.starts_with(beginning))
    };
    let there = ProcessEnvironment.names().into_iter().filter(begins);
    REMOVED.map(str::to_owned).into_iter().chain(there)
}

/// Variables that are also removed from this process's own environment, which the command could
/// read. `hidden` is added to them.
pub(super) fn withheld(hidden: Option<String>) -> Vec<String> {
    let stay = |name: &String| OF_THE_COMMAND_LINE.contains(&name.as_str());
    let names = removed().filter(|name| !stay(name));
    names.chain(hidden).collect()
}

/// The changes to the environment for the command: variables to remove and to set.
pub(super) struct Environment {
    pub(super) remove: Vec<String>,
    set: Vec<(String, SecretString)>,
}

impl Environment {
    /// The variables to set, with secrets in plain text.
    pub(super) fn set(&self) -> impl Iterator<Item = (&str, OsString)> {
        self.set
            .iter()
            .map(|(name, value)| (name.as_str(), OsString::from(value.expose_secret())))
    }
}

/// How the command gets the credential.
pub(super) struct DeliveryArgs<'a> {
    pub(super) how: DeliverAs,
    /// The name of the variable; `None` for the default name.
    pub(super) variable: Option<&'a str>,
    /// An additional variable that the command does not get.
    pub(super) hidden: Option<String>,
}

/// A credential that is delivered to the command.
pub(super) struct Delivered {
    pub(super) environment: Environment,
    method: DeliveryMethod,
    renewal: Renewal,
}

/// The means by which the credential is delivered.
enum DeliveryMethod {
    Variables,
    /// Removed when this is dropped.
    File(PrivateFile),
    Endpoint(Endpoint),
}

impl Delivered {
    pub(super) fn prepare(
        to: DeliveryArgs<'_>,
        granted: &IssuedBody,
        requester: CredentialRequester,
    ) -> Result<Self, CliError> {
        let DeliveryArgs { how, variable, .. } = to;
        let mut remove: Vec<String> = removed().collect();
        remove.extend(to.hidden);
        let secret =
            |name: &str, value: &SecretText| (name.to_owned(), value.clone().into_secret());
        let plain = |name: &str, value: String| (name.to_owned(), SecretString::from(value));
        let mut set = vec![
            plain("TASKPASS_TASK", granted.task.id.to_string()),
            plain("TASKPASS_SESSION", granted.session.id.to_string()),
        ];
        let held = CachedSession::of(granted, None, &requester.source, SystemClock.now())?;
        let renewal = Renewal::of(held, requester);
        let mut method = DeliveryMethod::Variables;
        match (how, &granted.credential) {
            (DeliverAs::Env, CredentialBody::Jwt { access_token, .. }) => {
                let name = variable.unwrap_or("TASKPASS_ACCESS_TOKEN");
                set.push(secret(name, access_token));
            }
            (DeliverAs::File, CredentialBody::Jwt { .. }) => {
                let made = PrivateFile::with(&contents(&granted.credential)?)?;
                let name = variable.unwrap_or("TASKPASS_ACCESS_TOKEN_FILE");
                set.push((name.to_owned(), made.name()));
                method = DeliveryMethod::File(made);
            }
            (DeliverAs::Endpoint, CredentialBody::Jwt { .. }) => {
                return Err(CliError::Usage(
                    "an endpoint serves AWS credentials only; use --as env or --as file".into(),
                ));
            }
            (
                how,
                CredentialBody::AwsSts {
                    access_key_id,
                    secret_access_key,
                    session_token,
                    region,
                    ..
                },
            ) => {
                set.push(plain("AWS_REGION", region.clone()));
                set.push(plain("AWS_DEFAULT_REGION", region.clone()));
                // Tools must not fall back to the machine's own credentials.
                set.push(("AWS_EC2_METADATA_DISABLED".into(), "true".into()));
                // The user's own files name roles, logins and endpoints, which some tools try
                // first.
                set.push(("AWS_CONFIG_FILE".into(), "/dev/null".into()));
                let mut credentials_file = SecretString::from("/dev/null");
                match how {
                    DeliverAs::Env => set.extend([
                        plain("AWS_ACCESS_KEY_ID", access_key_id.clone()),
                        secret("AWS_SECRET_ACCESS_KEY", secret_access_key),
                        secret("AWS_SESSION_TOKEN", session_token),
                    ]),
                    DeliverAs::File => {
                        let made = PrivateFile::with(&contents(&granted.credential)?)?;
                        credentials_file = made.name();
                        method = DeliveryMethod::File(made);
                    }
                    DeliverAs::Endpoint => {
                        let made = Endpoint::start(&renewal)?;
                        set.extend(made.variables());
                        method = DeliveryMethod::Endpoint(made);
                    }
                }
                set.push(("AWS_SHARED_CREDENTIALS_FILE".into(), credentials_file));
            }
            (_, CredentialBody::Unknown) => return Err(unknown_kind()),
        }
        Ok(Self {
            environment: Environment { remove, set },
            method,
            renewal,
        })
    }

    /// Serves the command and renews its credential while this future is polled. Dropping the
    /// future removes the file.
    pub(super) async fn serve(self) -> Never {
        match self.method {
            DeliveryMethod::Variables => self.renewal.keep(RenewalTrigger::Never, |_| Ok(())).await,
            DeliveryMethod::File(file) => {
                let put = |held: &CachedSession| file.replace(&contents(&held.credential)?);
                self.renewal.keep(RenewalTrigger::Due, put).await
            }
            DeliveryMethod::Endpoint(endpoint) => {
                tokio::select! {
                    never = self.renewal.keep(RenewalTrigger::Asked, |_| Ok(())) => never,
                    never = endpoint.serve() => never,
                }
            }
        }
    }
}

/// The contents of a file with this credential: the token, or AWS's file format.
fn contents(credential: &CredentialBody) -> Result<Zeroizing<String>, CliError> {
    match credential {
        CredentialBody::Jwt { access_token, .. } => {
            Ok(Zeroizing::new(access_token.expose().to_owned()))
        }
        CredentialBody::AwsSts {
            access_key_id,
            secret_access_key,
            session_token,
            ..
        } => shared_credentials(
            access_key_id,
            secret_access_key.expose(),
            session_token.expose(),
        ),
        CredentialBody::Unknown => Err(unknown_kind()),
    }
}

fn unknown_kind() -> CliError {
    CliError::Unavailable(
        "the broker issued a credential of a kind that this version does not know".into(),
    )
}

/// AWS's file format for credentials. A value with a control character is refused, because a line
/// feed would begin another setting.
fn shared_credentials(
    access_key_id: &str,
    secret_access_key: &str,
    session_token: &str,
) -> Result<Zeroizing<String>, CliError> {
    for (name, value) in [
        ("access_key_id", access_key_id),
        ("secret_access_key", secret_access_key),
        ("session_token", session_token),
    ] {
        if value.contains(char::is_control) {
            return Err(CliError::Unavailable(format!(
                "the credential's `{name}` has a control character and cannot be written to a file"
            )));
        }
    }
    Ok(Zeroizing::new(format!(
        "[default]\naws_access_key_id = {access_key_id}\naws_secret_access_key = \
         {secret_access_key}\naws_session_token = {session_token}\n",
    )))
}

/// A file that only its owner may read. It is removed on drop.
struct PrivateFile(PathBuf);

impl PrivateFile {
    fn with(text: &str) -> Result<Self, CliError> {
        let mut name = [0; 16];
        SystemRandom::default()
            .fill(&mut name)
            .map_err(CliError::unavailable)?;
        let name = u128::from_be_bytes(name);
        let path = std::env::temp_dir().join(format!("taskpass-{name:032x}"));
        let failed = |error: std::io::Error| {
            CliError::Unavailable(format!("cannot write {}: {error}", path.display()))
        };
        let mut file = create_private(&path).map_err(failed)?;
        let private = Self(path.clone());
        file.write_all(text.as_bytes()).map_err(failed)?;
        Ok(private)
    }

    /// Replaces the text. A reader sees either the whole old text or the whole new one.
    fn replace(&self, text: &str) -> Result<(), CliError> {
        let replaced = write_whole(&self.0, text.as_bytes());
        replaced.map_err(|error| {
            CliError::Unavailable(format!("cannot write {}: {error}", self.0.display()))
        })
    }

    fn name(&self) -> SecretString {
        SecretString::from(self.0.to_string_lossy().into_owned())
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        // Ignore the error: another process may have removed the file.
        drop(std::fs::remove_file(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_credentials_file_holds_no_value_with_a_control_character() {
        let good = json!({
            "type": "aws_sts", "access_key_id": "AKIA", "secret_access_key": "s/+=",
            "session_token": "t", "expiration": "2026-01-01T00:00:00Z", "region": "eu-west-1"
        });
        let read = |value: &Value| CredentialBody::deserialize(value).unwrap();
        assert_eq!(
            contents(&read(&good)).unwrap().as_str(),
            "[default]\naws_access_key_id = AKIA\naws_secret_access_key = s/+=\naws_session_token = t\n"
        );
        for name in ["access_key_id", "secret_access_key", "session_token"] {
            for odd in ["t\ncredential_process = id", "t\r", "\u{0}", "t\u{85}"] {
                let mut bad = good.clone();
                bad[name] = json!(odd);
                let failure = contents(&read(&bad)).unwrap_err().to_string();
                assert!(failure.contains(name), "{failure}");
            }
        }
    }
}
