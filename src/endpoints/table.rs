//! The table of a replica's endpoints: `[endpoints.NAME]`, and with them `[aws.own_credentials]`.
//!
//! [`EndpointTable`] is read once at the start, and the API cannot change it. A generation obtains
//! a server only by [`EndpointTable::find`], with a name and a use that the entry permits. A server
//! is identified by scheme, host and port ([`Endpoint::serves`]), and plain http is for loopback
//! only.
//!
//! [`EndpointTable::new`] returns every error in the entries. A name, use or role that the table
//! does not permit is an [`UnfitEndpoint`], whose remedy is a change of this replica's
//! configuration. The broker checks a generation's references before it activates it, and attestors
//! and minters check again when they use one. Files are opened elsewhere: [`crate::config`] checks
//! them at the start, `attest::api` and [`crate::mint`] read them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use url::Url;

use super::address::is_loopback_host;
use super::own_credentials::{self, OwnCredentials};
use super::unfit_endpoint::UnfitEndpoint;
use crate::crypto::digest::sha256;
use crate::domain::endpoint::{EndpointName, EndpointReference, EndpointUse, EndpointsDigest};
use crate::domain::kind::aws::AwsRole;

/// `[endpoints.NAME]` as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointSpec {
    /// URL: https, or http on loopback. For `discovery` the issuer's base URL, otherwise the exact
    /// URL of the requests.
    pub url: String,
    /// Permitted uses.
    #[serde(rename = "use")]
    pub uses: BTreeSet<EndpointUse>,
    /// PEM file of the only authorities that may certify the server; `None` for the public ones.
    /// Read for each request, except for AWS.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// File with the bearer token for the server. Read for each request.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
}

/// An error in an entry of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the other names say it all")]
pub struct EndpointError {
    /// The name of the entry as configured.
    pub name: String,
    /// The key within the entry; empty for the entry as a whole.
    pub key: &'static str,
    pub problem: String,
    pub remedy: String,
}

/// A server that this replica may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    url: Url,
    uses: BTreeSet<EndpointUse>,
    ca_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
}

impl Endpoint {
    /// The URL of the server.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The PEM file of its authorities, if it has its own.
    #[must_use]
    pub fn ca_file(&self) -> Option<&PathBuf> {
        self.ca_file.as_ref()
    }

    /// The file with its bearer token.
    #[must_use]
    pub fn token_file(&self) -> Option<&PathBuf> {
        self.token_file.as_ref()
    }

    /// Whether `url` is on this server: the same scheme, host and port.
    #[must_use]
    pub fn serves(&self, url: &Url) -> bool {
        self.url.origin() == url.origin() && is_plain(url)
    }
}

/// A replica's endpoints. They are read once at the start, and the API cannot change them.
#[derive(Clone, Debug, Default)]
pub struct EndpointTable {
    endpoints: BTreeMap<EndpointName, Endpoint>,
    own_credentials: Option<OwnCredentials>,
}

impl EndpointTable {
    /// Creates the table, or returns every error in the entries. Does not open their files.
    pub fn new(specs: &BTreeMap<String, EndpointSpec>) -> Result<Self, Vec<EndpointError>> {
        let mut errors = Vec::new();
        let mut table = BTreeMap::new();
        for (name, spec) in specs {
            let before = errors.len();
            let endpoint = check(name, spec, &mut errors);
            if let (Some(endpoint), true) = (endpoint, errors.len() == before)
                && let Ok(name) = EndpointName::try_from(name.clone())
            {
                table.insert(name, endpoint);
            }
        }
        if errors.is_empty() {
            return Ok(Self {
                endpoints: table,
                own_credentials: None,
            });
        }
        Err(errors)
    }

    /// Adds `[aws.own_credentials]` to the table.
    #[must_use]
    pub fn with_own_credentials(mut self, own: Option<OwnCredentials>) -> Self {
        self.own_credentials = own;
        self
    }

    /// Checks that a role may be assumed as registered: mode `assume_role` uses the AWS credentials
    /// of the host.
    pub fn check_role(&self, role: &AwsRole) -> Result<(), UnfitEndpoint> {
        own_credentials::check(self.own_credentials.as_ref(), role)
    }

    /// The region of the host's credentials, if they may be used for this role.
    pub fn own_credentials_region(&self, role: &AwsRole) -> Result<&str, UnfitEndpoint> {
        self.check_role(role)?;
        match &self.own_credentials {
            Some(own) => Ok(&own.region),
            None => Err(UnfitEndpoint::OwnCredentials {
                role_arn: role.role_arn.clone(),
            }),
        }
    }

    /// `[aws.own_credentials]`.
    #[must_use]
    pub fn own_credentials(&self) -> Option<&OwnCredentials> {
        self.own_credentials.as_ref()
    }

    /// Whether the table has no endpoint.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The endpoints, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&EndpointName, &Endpoint)> {
        self.endpoints.iter()
    }

    /// The endpoint with this name, for this use.
    pub fn find(
        &self,
        name: &EndpointName,
        used_for: EndpointUse,
    ) -> Result<&Endpoint, UnfitEndpoint> {
        let Some(found) = self.endpoints.get(name) else {
            let name = name.clone();
            return Err(UnfitEndpoint::Unknown { name, used_for });
        };
        if found.uses.contains(&used_for) {
            return Ok(found);
        }
        let name = name.clone();
        Err(UnfitEndpoint::OtherUse { name, used_for })
    }

    /// The first of these references that this replica cannot use, with its pointer.
    pub fn check(
        &self,
        references: &[EndpointReference<'_>],
    ) -> Result<(), (String, UnfitEndpoint)> {
        references.iter().try_for_each(|reference| {
            let found = self.find(reference.name, reference.used_for);
            found
                .map(drop)
                .map_err(|unfit| (reference.pointer.clone(), unfit))
        })
    }

    /// The digest of the table: covers the configured names, URLs, uses and paths, and
    /// `[aws.own_credentials]`, but not the contents of files.
    #[must_use]
    pub fn digest(&self) -> EndpointsDigest {
        let rows: Vec<_> = self
            .endpoints
            .iter()
            .map(|(name, own)| {
                let path = |path: &Option<PathBuf>| {
                    path.as_ref()
                        .map(|path| path.to_string_lossy().into_owned())
                };
                let files = (path(&own.ca_file), path(&own.token_file));
                (name.as_str(), own.url.as_str(), &own.uses, files)
            })
            .collect();
        // These are texts only, so serialising them cannot fail.
        let bytes = match &self.own_credentials {
            None => serde_json::to_vec(&rows),
            own => serde_json::to_vec(&(&rows, own)),
        };
        let bytes = bytes.unwrap_or_default();
        let hex = sha256(&bytes).map(|byte| format!("{byte:02x}")).concat();
        EndpointsDigest(format!("sha256:{hex}"))
    }
}

fn check(name: &str, spec: &EndpointSpec, errors: &mut Vec<EndpointError>) -> Option<Endpoint> {
    let mut refuse = |key: &'static str, problem: &str, remedy: &str| {
        errors.push(EndpointError {
            name: name.to_owned(),
            key,
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
        });
    };
    if let Err(error) = EndpointName::try_from(name.to_owned()) {
        refuse("", "has an invalid name", &error.to_string());
    }
    if spec.uses.is_empty() {
        refuse(
            "use",
            "is empty: no generation could use the endpoint",
            "list one or more of keys, discovery, token_review, sts and iam",
        );
    }
    let aws = [EndpointUse::Sts, EndpointUse::Iam];
    if spec.token_file.is_some() && aws.iter().any(|used_for| spec.uses.contains(used_for)) {
        refuse(
            "token_file",
            "is not used by `sts` and `iam`",
            "remove it, or give the other uses an endpoint of their own",
        );
    }
    let parsed = Url::parse(&spec.url).ok();
    let url = parsed.filter(|url| is_plain(url) && is_secure(url));
    if url.is_none() {
        refuse(
            "url",
            "is not a safe URL",
            "give an https URL (http on loopback only) without a user, password or fragment",
        );
    }
    let url = url?;
    if spec.uses.contains(&EndpointUse::Discovery) && url.query().is_some() {
        refuse(
            "url",
            "has a query, and discovery adds a path to it",
            "give the issuer's base URL",
        );
    }
    Some(Endpoint {
        url,
        uses: spec.uses.clone(),
        ca_file: spec.ca_file.clone(),
        token_file: spec.token_file.clone(),
    })
}

/// Whether a URL has only scheme, host, port, path and query.
fn is_plain(url: &Url) -> bool {
    url.username().is_empty() && url.password().is_none() && url.fragment().is_none()
}

/// Whether no party between the replica and the server can read or change the traffic.
fn is_secure(url: &Url) -> bool {
    match url.scheme() {
        "https" => url.host().is_some(),
        "http" => is_loopback_host(url),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(entries: serde_json::Value) -> Result<EndpointTable, Vec<EndpointError>> {
        EndpointTable::new(&serde_json::from_value(entries).unwrap())
    }

    fn name(text: &str) -> EndpointName {
        EndpointName::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn an_endpoint_serves_only_what_its_operator_says() {
        let table = table(json!({
            "spire": {"url": "https://spire.acme.example/bundle", "use": ["keys"]},
        }))
        .unwrap();
        let spire = name("spire");
        assert!(table.find(&spire, EndpointUse::Keys).is_ok());
        for other in [
            EndpointUse::Discovery,
            EndpointUse::TokenReview,
            EndpointUse::Sts,
            EndpointUse::Iam,
        ] {
            let unfit = table.find(&spire, other).unwrap_err();
            assert!(matches!(unfit, UnfitEndpoint::OtherUse { .. }), "{unfit}");
        }
        let unfit = table.find(&name("other"), EndpointUse::Keys).unwrap_err();
        assert!(unfit.to_string().contains("[endpoints.other]"), "{unfit}");
    }

    #[test]
    fn each_fault_of_an_entry_is_told_by_its_key() {
        for (entry, key) in [
            (
                json!({"url": "http://spire.example/", "use": ["keys"]}),
                "url",
            ),
            (json!({"url": "http://10.0.0.1/", "use": ["keys"]}), "url"),
            (json!({"url": "ftp://127.0.0.1/", "use": ["keys"]}), "url"),
            (
                json!({"url": "https://u:p@a.example/", "use": ["keys"]}),
                "url",
            ),
            (
                json!({"url": "https://a.example/#x", "use": ["keys"]}),
                "url",
            ),
            (json!({"url": "spire", "use": ["keys"]}), "url"),
            (
                json!({"url": "https://a.example/?x=1", "use": ["discovery"]}),
                "url",
            ),
            (json!({"url": "https://a.example/", "use": []}), "use"),
            (
                json!({"url": "https://a.example/", "use": ["keys", "sts"], "token_file": "/t"}),
                "token_file",
            ),
        ] {
            let errors = table(json!({"a": entry.clone()})).unwrap_err();
            let keys: Vec<_> = errors.iter().map(|error| error.key).collect();
            assert_eq!(keys, [key], "{entry}");
        }
        let odd = table(json!({"A.b": {"url": "https://a.example/", "use": ["keys"]}}));
        assert_eq!(odd.unwrap_err()[0].key, "");
        for good in [
            "http://127.0.0.1:8080/x",
            "http://[::1]/",
            "http://localhost/",
            "https://10.0.0.1/",
        ] {
            table(json!({"a": {"url": good, "use": ["keys"]}})).unwrap();
        }
    }

    #[test]
    fn unknown_members_and_uses_do_not_load() {
        for entry in [
            json!({"url": "https://a.example/", "use": ["keys"], "token": "secret"}),
            json!({"url": "https://a.example/", "use": ["anything"]}),
            json!({"url": "https://a.example/"}),
        ] {
            assert!(serde_json::from_value::<EndpointSpec>(entry).is_err());
        }
    }

    #[test]
    fn the_digest_is_of_all_that_is_configured() {
        let digest = |entry: serde_json::Value| table(json!({"a": entry})).unwrap().digest();
        let full = json!({"url": "https://a.example/", "use": ["keys"], "ca_file": "/c", "token_file": "/t"});
        let same = json!({"token_file": "/t", "ca_file": "/c", "use": ["keys"], "url": "https://a.example"});
        assert_eq!(digest(full.clone()), digest(same));
        assert_ne!(EndpointTable::default().digest(), digest(full.clone()));
        for (key, value) in [
            ("url", json!("https://b.example/")),
            ("use", json!(["keys", "discovery"])),
            ("ca_file", json!("/t")),
            ("token_file", json!("/u")),
        ] {
            let mut other = full.clone();
            other[key] = value;
            assert_ne!(digest(full.clone()), digest(other), "{key}");
        }
        let swapped = json!({"url": "https://a.example/", "use": ["keys"], "token_file": "/c"});
        let as_ca = json!({"url": "https://a.example/", "use": ["keys"], "ca_file": "/c"});
        assert_ne!(digest(swapped), digest(as_ca));
    }

    #[test]
    fn a_servers_own_urls_have_its_origin() {
        let table =
            table(json!({"a": {"url": "https://idp.example:8443/realm", "use": ["discovery"]}}));
        let table = table.unwrap();
        let endpoint = table.find(&name("a"), EndpointUse::Discovery).unwrap();
        for (url, serves) in [
            ("https://idp.example:8443/realm/jwks", true),
            ("https://idp.example:8443/", true),
            ("https://idp.example/realm/jwks", false),
            ("http://idp.example:8443/realm/jwks", false),
            ("https://idp.example.evil.example:8443/", false),
            ("https://u@idp.example:8443/realm/jwks", false),
        ] {
            assert_eq!(endpoint.serves(&url.parse().unwrap()), serves, "{url}");
        }
    }
}
