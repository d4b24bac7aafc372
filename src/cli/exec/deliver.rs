//! Where the command finds its credential.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use zeroize::Zeroizing;

use super::How;
use super::endpoint::Endpoint;
use super::renewal::{Renewal, When};
use crate::cli::Failure;
use crate::cli::held::{Asker, Held};
use crate::cli::lease::Never;
use crate::clock::{Clock as _, SystemClock};
use crate::config::ProcessEnvironment;
use crate::crypto::random::SystemRandom;
use crate::domain::kind::MinterKind;
use crate::files::{create_private, write_whole};
use crate::ids::Random as _;
use crate::process::HANDOVER_VARIABLE;

/// Variables by which AWS's tools would find other credentials than the ones that they are given, or
/// other places to send them to, and by which the command could ask the broker in our name. The order
/// in which the SDKs look differs, so that none of them may be left.
const REMOVED: [&str; 40] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    // Names of the same that older SDKs know.
    "AWS_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_CREDENTIAL_FILE",
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
    HANDOVER_VARIABLE,
    // With these it could have attestations made, for us or for anybody else.
    "ACTIONS_ID_TOKEN_REQUEST_URL",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
];

/// The same for each service of AWS: what follows is a service's name.
const REMOVED_BEGINNINGS: [&str; 2] = ["AWS_BEARER_TOKEN_", "AWS_ENDPOINT_URL"];

/// Variables that name files and that the command line is read by: they hold no secret, and stay in
/// the environment of this process.
const OF_THE_COMMAND_LINE: [&str; 2] = ["TASKPASS_TOKEN_FILE", "TASKPASS_KEY_FILE"];

/// The names of the variables that the command does not get; `*` stands for any ending.
pub(super) fn removed_names() -> impl Iterator<Item = String> {
    let many = REMOVED_BEGINNINGS.map(|beginning| format!("{beginning}*"));
    REMOVED.map(str::to_owned).into_iter().chain(many)
}

/// Every variable that the command does not get, among those that there are.
fn removed() -> impl Iterator<Item = String> {
    let begins = |name: &String| {
        let mut beginnings = REMOVED_BEGINNINGS.iter();
        beginnings.any(|beginning| name.starts_with(beginning))
    };
    let there = ProcessEnvironment.names().into_iter().filter(begins);
    REMOVED.map(str::to_owned).into_iter().chain(there)
}

/// Variables that are not even in the environment that the command could read of this process.
/// `hidden` is one more that it does not get.
pub(super) fn withheld(hidden: Option<String>) -> Vec<String> {
    let stay = |name: &String| OF_THE_COMMAND_LINE.contains(&name.as_str());
    let names = removed().filter(|name| !stay(name));
    names.chain(hidden).collect()
}

/// What of our environment the command does not get, and what it gets beside.
pub(super) struct Environment {
    pub(super) remove: Vec<String>,
    set: Vec<(String, SecretString)>,
}

impl Environment {
    /// The variables to set. This is where the secrets go to the command.
    pub(super) fn set(&self) -> impl Iterator<Item = (&str, OsString)> {
        self.set
            .iter()
            .map(|(name, value)| (name.as_str(), OsString::from(value.expose_secret())))
    }
}

/// How the command is to get it.
pub(super) struct To<'a> {
    pub(super) how: How,
    /// The name of the variable, where another was asked for.
    pub(super) variable: Option<&'a str>,
    /// One more variable that the command does not get.
    pub(super) hidden: Option<String>,
}

/// A credential that is where the command looks for it.
pub(super) struct Delivered {
    pub(super) environment: Environment,
    place: Place,
    renewal: Renewal,
}

/// Where the command looks.
enum Place {
    Variables,
    /// Removed when this is dropped.
    File(PrivateFile),
    Endpoint(Endpoint),
}

impl Delivered {
    /// Puts it there.
    pub(super) fn prepare(to: To<'_>, granted: &Value, asker: Asker) -> Result<Self, Failure> {
        let To { how, variable, .. } = to;
        let mut remove: Vec<String> = removed().collect();
        remove.extend(to.hidden);
        let text = |pointer: &str| granted.pointer(pointer).and_then(Value::as_str);
        let told = |name: &str, pointer: &str| {
            text(pointer).map(|value| (name.to_owned(), SecretString::from(value)))
        };
        let mut set: Vec<_> = [
            told("TASKPASS_TASK", "/task/id"),
            told("TASKPASS_SESSION", "/session/id"),
        ]
        .into_iter()
        .flatten()
        .collect();
        let held = Held::of(granted, None, &asker.source, SystemClock.now())?;
        let renewal = Renewal::of(held, asker);
        let mut place = Place::Variables;
        let made_by = text("/credential/type").and_then(MinterKind::of_credential_type);
        match (how, made_by) {
            (How::Env, Some(MinterKind::Jwt)) => {
                let name = variable.unwrap_or("TASKPASS_ACCESS_TOKEN");
                set.extend(told(name, "/credential/access_token"));
            }
            (How::File, Some(MinterKind::Jwt)) => {
                let made = PrivateFile::with(&contents(&granted["credential"]))?;
                let name = variable.unwrap_or("TASKPASS_ACCESS_TOKEN_FILE");
                set.push((name.to_owned(), made.name()));
                place = Place::File(made);
            }
            (How::Endpoint, Some(MinterKind::Jwt)) => {
                return Err(Failure::Usage(
                    "an endpoint is for credentials of AWS; take --as env or --as file".into(),
                ));
            }
            (how, Some(MinterKind::Aws)) => {
                set.extend(told("AWS_REGION", "/credential/region"));
                set.extend(told("AWS_DEFAULT_REGION", "/credential/region"));
                // What fails with this credential must not be tried with the machine's own.
                set.push(("AWS_EC2_METADATA_DISABLED".into(), "true".into()));
                // Files of the user's name roles, logins and endpoints, which some tools try first.
                set.push(("AWS_CONFIG_FILE".into(), "/dev/null".into()));
                let mut credentials_file = SecretString::from("/dev/null");
                match how {
                    How::Env => set.extend(
                        [
                            told("AWS_ACCESS_KEY_ID", "/credential/access_key_id"),
                            told("AWS_SECRET_ACCESS_KEY", "/credential/secret_access_key"),
                            told("AWS_SESSION_TOKEN", "/credential/session_token"),
                        ]
                        .into_iter()
                        .flatten(),
                    ),
                    How::File => {
                        let made = PrivateFile::with(&contents(&granted["credential"]))?;
                        credentials_file = made.name();
                        place = Place::File(made);
                    }
                    How::Endpoint => {
                        let made = Endpoint::start(&renewal)?;
                        set.extend(made.variables());
                        place = Place::Endpoint(made);
                    }
                }
                set.push(("AWS_SHARED_CREDENTIALS_FILE".into(), credentials_file));
            }
            (_, None) => {
                return Err(Failure::Unestablished(
                    "the broker gave a credential of a kind that this version does not know".into(),
                ));
            }
        }
        Ok(Self {
            environment: Environment { remove, set },
            place,
            renewal,
        })
    }

    /// Answers the command and renews its credential, as long as this is polled. A file is there as
    /// long as this lives.
    pub(super) async fn serve(self) -> Never {
        match self.place {
            Place::Variables => self.renewal.keep(When::Never, |_| Ok(())).await,
            Place::File(file) => {
                let put = |held: &Held| file.replace(&contents(&held.credential));
                self.renewal.keep(When::Due, put).await
            }
            Place::Endpoint(endpoint) => {
                tokio::select! {
                    never = self.renewal.keep(When::Asked, |_| Ok(())) => never,
                    never = endpoint.serve() => never,
                }
            }
        }
    }
}

/// The contents of a file with this credential: the token, or AWS's own form.
fn contents(credential: &Value) -> Zeroizing<String> {
    let text = |name: &str| credential.get(name).and_then(Value::as_str);
    Zeroizing::new(match text("access_token") {
        Some(token) => token.to_owned(),
        None => shared_credentials(credential),
    })
}

/// The form of AWS's own file of credentials.
fn shared_credentials(credential: &Value) -> String {
    let text = |name: &str| {
        let value = credential.get(name);
        value.and_then(Value::as_str).unwrap_or_default()
    };
    format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\naws_session_token = {}\n",
        text("access_key_id"),
        text("secret_access_key"),
        text("session_token"),
    )
}

/// A file that only its owner may read, as long as this lives.
struct PrivateFile(PathBuf);

impl PrivateFile {
    fn with(text: &str) -> Result<Self, Failure> {
        let mut name = [0; 16];
        SystemRandom::default()
            .fill(&mut name)
            .map_err(Failure::unestablished)?;
        let name = u128::from_be_bytes(name);
        let path = std::env::temp_dir().join(format!("taskpass-{name:032x}"));
        let failed = |error: std::io::Error| {
            Failure::Unestablished(format!("cannot write {}: {error}", path.display()))
        };
        let mut file = create_private(&path).map_err(failed)?;
        let private = Self(path.clone());
        file.write_all(text.as_bytes()).map_err(failed)?;
        Ok(private)
    }

    /// Puts another text there. Who reads it sees the one or the other as a whole.
    fn replace(&self, text: &str) -> Result<(), Failure> {
        let replaced = write_whole(&self.0, text.as_bytes());
        replaced.map_err(|error| {
            Failure::Unestablished(format!("cannot write {}: {error}", self.0.display()))
        })
    }

    fn name(&self) -> SecretString {
        SecretString::from(self.0.to_string_lossy().into_owned())
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        // Where somebody removed it before us, that is as well.
        drop(std::fs::remove_file(&self.0));
    }
}
