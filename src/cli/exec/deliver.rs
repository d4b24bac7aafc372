//! Where the command finds its credential.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::How;
use super::endpoint::Endpoint;
use crate::cli::Failure;
use crate::cli::held::Asker;
use crate::cli::lease::Never;
use crate::crypto::random::SystemRandom;
use crate::files::create_private;
use crate::ids::Random as _;
use crate::process::HANDOVER_VARIABLE;

/// Variables by which AWS's tools would find other credentials than the ones they are given, and by
/// which the command could ask the broker in our name.
const REMOVED: [&str; 20] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "TASKPASS_TOKEN",
    "TASKPASS_TOKEN_FILE",
    "TASKPASS_KEY_FILE",
    HANDOVER_VARIABLE,
    // With these it could have attestations made, for us or for anybody else.
    "ACTIONS_ID_TOKEN_REQUEST_URL",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
];

/// Variables that name files and that the command line is read by: they hold no secret, and stay in
/// the environment of this process.
const OF_THE_COMMAND_LINE: [&str; 2] = ["TASKPASS_TOKEN_FILE", "TASKPASS_KEY_FILE"];

/// Variables that are not even in the environment that the command could read of this process.
/// `hidden` is one more that it does not get.
pub(super) fn withheld(hidden: Option<String>) -> Vec<String> {
    let stay = |name: &&str| OF_THE_COMMAND_LINE.contains(name);
    let names = REMOVED.into_iter().filter(|name| !stay(name));
    names.map(str::to_owned).chain(hidden).collect()
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
    /// Removed when this is dropped.
    _file: Option<PrivateFile>,
    endpoint: Option<Endpoint>,
}

impl Delivered {
    /// Puts it there.
    pub(super) fn prepare(to: To<'_>, granted: &Value, asker: Asker) -> Result<Self, Failure> {
        let To { how, variable, .. } = to;
        let mut remove: Vec<String> = REMOVED.map(str::to_owned).to_vec();
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
        let (mut file, mut endpoint) = (None, None);
        match (how, text("/credential/type")) {
            (How::Env, Some("jwt")) => {
                let name = variable.unwrap_or("TASKPASS_ACCESS_TOKEN");
                set.extend(told(name, "/credential/access_token"));
            }
            (How::File, Some("jwt")) => {
                let token = text("/credential/access_token").unwrap_or_default();
                let made = PrivateFile::with(token)?;
                let name = variable.unwrap_or("TASKPASS_ACCESS_TOKEN_FILE");
                set.push((name.to_owned(), made.name()));
                file = Some(made);
            }
            (How::Endpoint, Some("jwt")) => {
                return Err(Failure::Usage(
                    "an endpoint is for credentials of AWS; take --as env or --as file".into(),
                ));
            }
            (how, Some("aws_sts")) => {
                set.extend(told("AWS_REGION", "/credential/region"));
                set.extend(told("AWS_DEFAULT_REGION", "/credential/region"));
                // What fails with this credential must not be tried with the machine's own.
                set.push(("AWS_EC2_METADATA_DISABLED".into(), "true".into()));
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
                        let made = PrivateFile::with(&shared_credentials(granted))?;
                        set.push(("AWS_SHARED_CREDENTIALS_FILE".into(), made.name()));
                        // Its profiles may name roles and logins, which some tools try first.
                        set.push(("AWS_CONFIG_FILE".into(), "/dev/null".into()));
                        file = Some(made);
                    }
                    How::Endpoint => {
                        let made = Endpoint::start(granted, asker)?;
                        set.extend(made.variables());
                        // Files come before an endpoint when AWS's tools look.
                        for name in ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"] {
                            set.push((name.into(), "/dev/null".into()));
                        }
                        endpoint = Some(made);
                    }
                }
            }
            _ => {
                return Err(Failure::Unestablished(
                    "the broker gave a credential of a kind that this version does not know".into(),
                ));
            }
        }
        Ok(Self {
            environment: Environment { remove, set },
            _file: file,
            endpoint,
        })
    }

    /// Answers the command as long as it is asked.
    pub(super) async fn serve(&mut self) -> Never {
        match self.endpoint.take() {
            Some(endpoint) => endpoint.serve().await,
            None => std::future::pending().await,
        }
    }
}

/// The form of AWS's own file of credentials.
fn shared_credentials(granted: &Value) -> String {
    let text = |name: &str| {
        let value = granted.pointer(&format!("/credential/{name}"));
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

    fn path(&self) -> &Path {
        &self.0
    }

    fn name(&self) -> SecretString {
        SecretString::from(self.path().to_string_lossy().into_owned())
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        // Where somebody removed it before us, that is as well.
        drop(std::fs::remove_file(&self.0));
    }
}
