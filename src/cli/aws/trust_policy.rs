//! `taskpass aws trust-policy`: prints the trust policy that the broker needs on a role, and checks
//! an existing one.
//!
//! A policy with faults is exit code 1. A resource without such a role, and a file that cannot be
//! read, is [`CliError::Usage`]. `mint::aws` has the checks.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::CliError;
use crate::cli::output::{self, Form};
use crate::cli::serve::ConfigFile;
use crate::domain::catalog::Resource;
use crate::domain::kind::aws::AwsRole;
use crate::mint::aws::trust::Trusted;

/// The largest policy that is read, in bytes. IAM's own limit is far lower.
const MAX_BYTES: usize = 64 * 1024;

/// Print the trust policy that a resource's role needs, or check the one that it has
#[derive(Args, Debug)]
#[command(
    after_help = "The command does not call AWS: it reads an existing policy from a file.\n\nExamples:\n  \
    taskpass aws trust-policy --resource reports-bucket >trust.json\n  \
    aws iam get-role --role-name reports --query Role.AssumeRolePolicyDocument >has.json\n  \
    taskpass aws trust-policy --resource reports-bucket --check has.json"
)]
pub(super) struct TrustPolicy {
    #[command(flatten)]
    file: ConfigFile,
    /// The resource's name in the configuration
    #[arg(long, value_name = "NAME")]
    resource: String,
    /// Use the role with which the broker revokes sessions of the resource's role instead
    #[arg(long)]
    revoker: bool,
    /// Check the policy in this file: print its faults and the unexpected principals that it
    /// admits; exit with code 1 if there are any
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Another principal that may assume the role, as the policy writes it; may be given several
    /// times
    #[arg(long, value_name = "PRINCIPAL", requires = "check")]
    expect: Vec<String>,
}

/// The sections of a configuration that determine the trusted principal. They are read without the
/// configuration's secrets.
#[derive(Deserialize)]
struct Registered {
    server: Issuing,
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Issuing {
    issuer: String,
}

impl Registered {
    fn read(path: &Path) -> Result<Self, CliError> {
        let unread = |why: String| CliError::Usage(format!("{}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| unread(error.to_string()))?;
        toml::from_str(&text).map_err(|error| unread(error.message().to_owned()))
    }
}

impl TrustPolicy {
    pub(super) fn run(self, form: Form) -> Result<(), CliError> {
        let trusted = self.trusted()?;
        let Some(file) = &self.check else {
            return output::json(&trusted.policy());
        };
        let unread = |why: String| CliError::Usage(format!("{}: {why}", file.display()));
        let bytes = std::fs::read(file).map_err(|error| unread(error.to_string()))?;
        if bytes.len() > MAX_BYTES {
            return Err(unread("is too large for a policy".into()));
        }
        let policy: Value =
            serde_json::from_slice(&bytes).map_err(|_| unread("is not JSON".into()))?;
        let faults = trusted.faults_of(&policy, &self.expect);
        if faults.is_empty() {
            let good = format!("{}: good", file.display());
            return form.write(&json!({"good": true, "faults": []}), good);
        }
        if form.is_json() {
            output::even_unread(output::json(&json!({"good": false, "faults": faults})))?;
            return Err(CliError::AlreadyReported);
        }
        let told = faults.iter().map(|fault| output::printable(fault));
        Err(CliError::Refused(told.collect::<Vec<_>>().join("\n")))
    }

    fn trusted(&self) -> Result<Trusted, CliError> {
        let config = Registered::read(&self.file.path()?)?;
        let mut resources = config.resources.iter();
        let name = self.resource.as_str();
        let resource = resources
            .find(|resource| resource.name == name)
            .ok_or_else(|| CliError::Usage(format!("there is no resource `{name}`")))?;
        let federated = |role: &&AwsRole| role.is_federated();
        let role = resource.kind.aws_role().filter(federated).ok_or_else(|| {
            CliError::Usage(format!(
                "`{name}` is not a role that the broker assumes in mode `web_identity`"
            ))
        })?;
        let issuer = &config.server.issuer;
        let trusted = if self.revoker {
            let revocation = role.revocation.as_ref();
            let writer = revocation.and_then(|revocation| revocation.role_arn.as_ref());
            let writer = writer.ok_or_else(|| {
                CliError::Usage(format!("`{name}` has no [resources.aws.revocation]"))
            })?;
            Trusted::revoker(issuer, writer)
        } else {
            Trusted::resource(issuer, &role.role_arn, name)
        };
        trusted.ok_or_else(|| CliError::Usage("the role's ARN cannot be parsed".into()))
    }
}
