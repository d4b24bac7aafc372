//! Presets: the known facts about each provider of tokens.
//!
//! A preset ([`Preset`], with its `Rules` in one file each) completes an attestor of kind `oidc`:
//! issuer, algorithms, claims with their types, the templates of identity and instance, and the
//! conditions that close the provider's known weaknesses. The operator must supply the rest: an
//! audience that identifies this broker, and the immutable id of the owner. Other written members
//! may make an attestor narrower; members that would make it wider are refused. An operator who
//! needs a wider one writes the attestor without a preset.
//!
//! [`OidcWritten::resolve`] applies the preset and requires every member. It returns a
//! [`SpecRefusal`] with the member, the problem and the remedy; the first one ends it.
//! `config::document` calls it, and serde calls it for each [`OidcSpec`] that is read. The result is
//! complete, so a generation does not depend on a later version's presets. [`super::trust`] has the
//! types, and `attest::checks` checks the completed attestor like any other.

mod aws;
mod buildkite;
mod circleci;
mod github;
mod gitlab;
mod kubernetes;

use std::collections::BTreeSet;

use serde_json::Value;
use url::Url;

use super::trust::{ClaimSpec, ClaimType, OidcSpec, OidcWritten, Preset, SpecRefusal};
use super::workload::Reuse;

impl Preset {
    fn rules(self) -> &'static Rules {
        match self {
            Self::GithubActions => &github::RULES,
            Self::Gitlab => &gitlab::RULES,
            Self::Kubernetes => &kubernetes::RULES,
            Self::Buildkite => &buildkite::RULES,
            Self::Circleci => &circleci::RULES,
            Self::Aws => &aws::RULES,
        }
    }
}

/// The rules of a preset.
struct Rules {
    /// The provider's name in messages.
    provider: &'static str,
    /// The `iss`, if all tenants share one.
    issuer: Option<&'static str>,
    /// Whether a configured `iss` can be this provider's.
    issuer_fits: fn(&Url) -> bool,
    /// The form of a configured `iss`, for messages.
    issuer_form: &'static str,
    algorithms: &'static [&'static str],
    claims: &'static [Claim],
    /// Claims with names that can be renamed, given away or chosen. They must not be immutable.
    names: &'static [&'static str],
    /// At least one of these claims must be required. Each names an owner permanently.
    pins: &'static [&'static str],
    /// Whether one owner can have the issuer alone, so that `single_tenant` can replace a pin.
    single_tenant: bool,
    required: &'static [(&'static str, Fixed)],
    allowed: &'static [Allowed],
    equal: &'static [(&'static str, &'static str)],
    identity: &'static str,
    instance: Option<&'static str>,
    reuse: Reuse,
}

/// A value that a claim must have.
enum Fixed {
    Text(&'static str),
    Truth(bool),
}

impl Fixed {
    fn value(&self) -> Value {
        match self {
            Self::Text(text) => Value::from(*text),
            Self::Truth(truth) => Value::from(*truth),
        }
    }
}

/// The permitted values of a claim.
struct Allowed {
    claim: &'static str,
    /// The values that are permitted by default.
    default: &'static [&'static str],
    /// All values that may be configured.
    most: &'static [&'static str],
    /// The reason why other values are refused.
    why: &'static str,
}

/// A claim. It is closed by default; the methods relax it.
#[derive(Clone, Copy)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the properties of `ClaimSpec`, as constants"
)]
struct Claim {
    name: &'static str,
    kind: ClaimType,
    from: Option<&'static str>,
    immutable: bool,
    caller_shaped: bool,
    optional: bool,
    hidden: bool,
}

impl Claim {
    const fn of(name: &'static str, kind: ClaimType) -> Self {
        Self {
            name,
            kind,
            from: None,
            immutable: false,
            caller_shaped: false,
            optional: false,
            hidden: false,
        }
    }

    /// A text that names the same thing permanently.
    const fn id(name: &'static str) -> Self {
        let mut claim = Self::of(name, ClaimType::String);
        claim.immutable = true;
        claim
    }

    /// A text that the provider vouches for but that can change its meaning.
    const fn text(name: &'static str) -> Self {
        Self::of(name, ClaimType::String)
    }

    /// A text that the caller who starts the job can choose.
    const fn chosen(name: &'static str) -> Self {
        let mut claim = Self::of(name, ClaimType::String);
        claim.caller_shaped = true;
        claim
    }

    const fn from(mut self, pointer: &'static str) -> Self {
        self.from = Some(pointer);
        self
    }

    const fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// For identity, instance or a condition only; not visible to policy.
    const fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    fn spec(&self) -> ClaimSpec {
        ClaimSpec {
            kind: self.kind,
            from: self.from.map(str::to_owned),
            immutable: self.immutable,
            caller_shaped: self.caller_shaped,
            optional: self.optional,
            hidden: self.hidden,
        }
    }
}

/// The alternative for operators who need a setting that a preset refuses.
const WITHOUT: &str = "or leave `preset` out and write the attestor in full";

fn refuse<T>(
    key: impl Into<String>,
    problem: impl Into<String>,
    remedy: impl Into<String>,
) -> Result<T, SpecRefusal> {
    Err(SpecRefusal {
        key: key.into(),
        problem: problem.into(),
        remedy: remedy.into(),
    })
}

impl OidcWritten {
    /// The complete specification, with the members that its preset adds.
    pub fn resolve(mut self) -> Result<OidcSpec, SpecRefusal> {
        if let Some(preset) = self.preset.take() {
            fill_in(preset, &mut self)?;
        }
        let missing = |key: &'static str| SpecRefusal {
            key: String::new(),
            problem: format!("missing field `{key}`"),
            remedy: "add it; taskpass.example.toml describes every key".to_owned(),
        };
        Ok(OidcSpec {
            name: self.name,
            issuer: self.issuer.ok_or_else(|| missing("issuer"))?,
            audience: self.audience.ok_or_else(|| missing("audience"))?,
            algorithms: self.algorithms.ok_or_else(|| missing("algorithms"))?,
            typ: self.typ,
            required: self.required,
            single_tenant: self.single_tenant,
            allowed: self.allowed,
            equal: self.equal,
            identity: self.identity.ok_or_else(|| missing("identity"))?,
            instance: self.instance,
            claims: self.claims,
            reuse: self.reuse.unwrap_or_default(),
            leeway_seconds: self.leeway_seconds,
            max_age_seconds: self.max_age_seconds,
            max_stale_seconds: self.max_stale_seconds,
            discovery: self.discovery,
            keys_from: self.keys_from,
            token_review: self.token_review,
        })
    }
}

impl TryFrom<OidcWritten> for OidcSpec {
    type Error = SpecRefusal;

    fn try_from(written: OidcWritten) -> Result<Self, SpecRefusal> {
        written.resolve()
    }
}

/// Applies `preset`, and refuses members that would weaken it.
fn fill_in(preset: Preset, written: &mut OidcWritten) -> Result<(), SpecRefusal> {
    let rules = preset.rules();
    rules.issuer(written)?;
    if written.audience.as_deref().is_none_or(str::is_empty) {
        return refuse(
            "audience",
            "is missing; presets have no default for it",
            "name an audience that workloads request for this broker only",
        );
    }
    rules.algorithms(written)?;
    rules.claims(written)?;
    rules.owner(written)?;
    rules.required(written)?;
    rules.allowed(written)?;
    for (one, other) in rules.equal {
        let pair = ((*one).to_owned(), (*other).to_owned());
        if !written.equal.contains(&pair) {
            written.equal.push(pair);
        }
    }
    rules.templates(written)?;
    written.reuse.get_or_insert(rules.reuse);
    if preset == Preset::Circleci {
        circleci::check_organization(written)?;
    }
    if preset == Preset::Kubernetes {
        kubernetes::check_cluster(written)?;
    }
    Ok(())
}

impl Rules {
    fn issuer(&self, written: &mut OidcWritten) -> Result<(), SpecRefusal> {
        let Some(text) = &written.issuer else {
            let Some(fixed) = self.issuer else {
                return refuse(
                    "issuer",
                    format!("is missing: {} has more than one issuer", self.provider),
                    format!("give {}", self.issuer_form),
                );
            };
            written.issuer = Some(fixed.to_owned());
            return Ok(());
        };
        let fits = Url::parse(text).is_ok_and(|url| (self.issuer_fits)(&url));
        if fits && !text.ends_with('/') {
            return Ok(());
        }
        refuse(
            "issuer",
            format!("is not an issuer of {}", self.provider),
            format!(
                "give {}, exactly as the provider writes it",
                self.issuer_form
            ),
        )
    }

    fn algorithms(&self, written: &mut OidcWritten) -> Result<(), SpecRefusal> {
        let Some(chosen) = &written.algorithms else {
            let all = self.algorithms.iter().map(|name| (*name).to_owned());
            written.algorithms = Some(all.collect());
            return Ok(());
        };
        match chosen
            .iter()
            .find(|a| !self.algorithms.contains(&a.as_str()))
        {
            None => Ok(()),
            Some(other) => refuse(
                "algorithms",
                format!("has `{other}`, which {} does not sign with", self.provider),
                format!("choose among {}", self.algorithms.join(", ")),
            ),
        }
    }

    /// A claim of the preset may be written again to hide it, to show it or to require it. Other
    /// claims may be added, but a name may not be added as an id.
    fn claims(&self, written: &mut OidcWritten) -> Result<(), SpecRefusal> {
        for (name, own) in &written.claims {
            let key = format!("claims.{name}");
            if let Some(known) = self.claims.iter().find(|known| known.name == name) {
                let (known, same) = (known.spec(), own.kind);
                let weaker = same != known.kind
                    || (own.from.is_some() && own.from != known.from)
                    || (own.immutable && !known.immutable)
                    || (!own.caller_shaped && known.caller_shaped)
                    || (own.optional && !known.optional);
                if weaker {
                    return refuse(
                        key,
                        "is weaker than the preset's, or of another type or source",
                        format!("remove it, {WITHOUT}"),
                    );
                }
            } else if own.immutable && self.is_name(name, own) {
                return refuse(
                    key,
                    "is a name: it can be chosen, changed or given to another",
                    format!("use an id, such as {}", self.pins.join(" or ")),
                );
            }
        }
        for known in self.claims {
            let own = written.claims.entry(known.name.to_owned());
            let own = own.or_insert_with(|| known.spec());
            own.from = known.from.map(str::to_owned);
        }
        Ok(())
    }

    /// Whether it is a name, under its own or another claim's name.
    fn is_name(&self, name: &str, own: &ClaimSpec) -> bool {
        let source = match &own.from {
            None => name.to_owned(),
            Some(pointer) => pointer.trim_start_matches('/').replace("~1", "/"),
        };
        let listed = |text: &str| {
            self.names
                .iter()
                .any(|known| match known.strip_suffix('*') {
                    Some(prefix) => text.starts_with(prefix),
                    None => text == *known,
                })
        };
        let known = |claim: &&Claim| {
            !claim.immutable && (claim.from == own.from.as_deref() && own.from.is_some())
        };
        listed(&source) || self.claims.iter().any(|claim| known(&claim))
    }

    fn owner(&self, written: &OidcWritten) -> Result<(), SpecRefusal> {
        if written.single_tenant {
            if self.single_tenant {
                return Ok(());
            }
            return refuse(
                "single_tenant",
                format!(
                    "is not possible for {}, whose issuer serves many tenants",
                    self.provider
                ),
                format!("require {}", self.pins.join(" or ")),
            );
        }
        if self
            .pins
            .iter()
            .any(|pin| written.required.contains_key(*pin))
        {
            return Ok(());
        }
        let alone = if self.single_tenant {
            ", or set `single_tenant = true` if the whole issuer is yours"
        } else {
            ""
        };
        refuse(
            "required",
            format!(
                "pins no owner: tokens of every tenant of {} would be accepted",
                self.provider
            ),
            format!("require {}{alone}", self.pins.join(" or ")),
        )
    }

    fn required(&self, written: &mut OidcWritten) -> Result<(), SpecRefusal> {
        for (claim, fixed) in self.required {
            let fixed = fixed.value();
            match written.required.get(*claim) {
                Some(own) if *own != fixed => {
                    return refuse(
                        format!("required.{claim}"),
                        format!("is not {fixed}"),
                        format!("remove it, {WITHOUT}"),
                    );
                }
                _ => drop(written.required.insert((*claim).to_owned(), fixed)),
            }
        }
        for (name, value) in &written.required {
            let Some(claim) = self.claims.iter().find(|claim| claim.name == name) else {
                continue;
            };
            let fits = match claim.kind {
                ClaimType::String => value.is_string(),
                ClaimType::Long => value.is_i64(),
                ClaimType::Bool => value.is_boolean(),
                ClaimType::Set => false,
            };
            if !fits {
                return refuse(
                    format!("required.{name}"),
                    format!("is of another type than {} gives it", self.provider),
                    "write ids of this provider as text, in quotation marks",
                );
            }
        }
        Ok(())
    }

    fn allowed(&self, written: &mut OidcWritten) -> Result<(), SpecRefusal> {
        for rule in self.allowed {
            let key = rule.claim.to_owned();
            let texts = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect();
            let most: BTreeSet<String> = texts(rule.most);
            let own = written.allowed.entry(key);
            let own = own.or_insert_with(|| texts(rule.default));
            if let Some(other) = own.iter().find(|value| !most.contains(*value)) {
                return refuse(
                    format!("allowed.{}", rule.claim),
                    format!("has `{}`: {}", other.escape_debug(), rule.why),
                    format!("choose among {}, {WITHOUT}", rule.most.join(", ")),
                );
            }
        }
        Ok(())
    }

    /// Templates may have more parts than the preset's, never fewer: two workloads must not share
    /// an identity.
    fn templates(&self, written: &mut OidcWritten) -> Result<(), SpecRefusal> {
        let written_or_known = [
            ("identity", &mut written.identity, Some(self.identity)),
            ("instance", &mut written.instance, self.instance),
        ];
        for (key, own, known) in written_or_known {
            let Some(known) = known else { continue };
            let Some(text) = own else {
                *own = Some(known.to_owned());
                continue;
            };
            if let Some(lost) = placeholders(known).find(|part| !text.contains(part)) {
                return refuse(
                    key,
                    format!("has no {lost}, so two workloads would share one identity"),
                    format!("keep every part of `{known}`, {WITHOUT}"),
                );
            }
        }
        Ok(())
    }
}

/// The `{claims}` in a template.
fn placeholders(template: &'static str) -> impl Iterator<Item = &'static str> {
    template
        .split_inclusive('}')
        .filter_map(|piece| piece.find('{').and_then(|at| piece.get(at..)))
}

/// An `https` URL with a host and without parts that could hide another host.
fn is_plain_https(url: &Url) -> bool {
    url.scheme() == "https"
        && url.username().is_empty()
        && url.password().is_none()
        && url.port().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
}

#[cfg(test)]
mod tests;
