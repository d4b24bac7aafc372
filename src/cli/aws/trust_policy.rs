//! `taskpass aws trust-policy`: what a role must trust to be the broker's, and what is wrong with
//! what it trusts.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::Failure;
use crate::cli::output::{self, Form};
use crate::cli::serve::ConfigFile;
use crate::domain::catalog::Resource;
use crate::domain::kind::aws::AwsRole;
use crate::mint::aws::trust::Trusted;

/// The largest document that is read: IAM's own limit is far below.
const MAX_BYTES: usize = 64 * 1024;

/// Print the trust policy that a resource's role needs, or judge the one that it has
#[derive(Args, Debug)]
#[command(
    after_help = "AWS is not asked: a policy that stands is read from a file.\n\nExamples:\n  \
    taskpass aws trust-policy --resource reports-bucket >trust.json\n  \
    aws iam get-role --role-name reports --query Role.AssumeRolePolicyDocument >has.json\n  \
    taskpass aws trust-policy --resource reports-bucket --check has.json"
)]
pub(super) struct TrustPolicy {
    #[command(flatten)]
    file: ConfigFile,
    /// The resource, as it is registered
    #[arg(long, value_name = "NAME")]
    resource: String,
    /// The policy of the role by which the broker ends sessions of the resource's role, instead
    #[arg(long)]
    revoker: bool,
    /// Say what is wrong with the policy in this file, and who else is let in; exit code 1 if anything is
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Whoever else may come in, as the policy writes it; may be given several times
    #[arg(long, value_name = "PRINCIPAL", requires = "check")]
    expect: Vec<String>,
}

/// What of a configuration says whom a role has to trust; it is read without the rest's secrets.
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
    fn read(path: &Path) -> Result<Self, Failure> {
        let unread = |why: String| Failure::Usage(format!("{}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| unread(error.to_string()))?;
        toml::from_str(&text).map_err(|error| unread(error.message().to_owned()))
    }
}

impl TrustPolicy {
    pub(super) fn run(self, form: Form) -> Result<(), Failure> {
        let trusted = self.trusted()?;
        let Some(file) = &self.check else {
            return output::json(&trusted.policy());
        };
        let unread = |why: String| Failure::Usage(format!("{}: {why}", file.display()));
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
            return Err(Failure::Told);
        }
        let told = faults.iter().map(|fault| output::printable(fault));
        Err(Failure::Refused(told.collect::<Vec<_>>().join("\n")))
    }

    fn trusted(&self) -> Result<Trusted, Failure> {
        let config = Registered::read(&self.file.path()?)?;
        let mut resources = config.resources.iter();
        let name = self.resource.as_str();
        let resource = resources
            .find(|resource| resource.name == name)
            .ok_or_else(|| Failure::Usage(format!("there is no resource `{name}`")))?;
        let federated = |role: &&AwsRole| role.is_federated();
        let role = resource.kind.aws_role().filter(federated).ok_or_else(|| {
            Failure::Usage(format!(
                "`{name}` is not a role that the broker assumes in mode `web_identity`"
            ))
        })?;
        let issuer = &config.server.issuer;
        let trusted = if self.revoker {
            let revocation = role.revocation.as_ref();
            let writer = revocation.and_then(|revocation| revocation.role_arn.as_ref());
            let writer = writer.ok_or_else(|| {
                Failure::Usage(format!("`{name}` has no [resources.aws.revocation]"))
            })?;
            Trusted::revoker(issuer, writer)
        } else {
            Trusted::resource(issuer, &role.role_arn, name)
        };
        trusted.ok_or_else(|| Failure::Usage("the role's ARN is unreadable".into()))
    }
}
