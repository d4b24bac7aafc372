//! `/v1/generations`.
//!
//! `domain::generation` reads a generation's document and refuses a malformed one; the type here
//! only describes it. `http::admin` serves these shapes.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::domain::generation_digest::GenerationDigest;

/// A generation's document. This type only describes it:
/// [`Generation`](crate::domain::generation::Generation) reads and writes it.
#[derive(Debug, ToSchema)]
#[schema(examples(example_document))]
pub struct GenerationDocument {
    /// The version of this format.
    pub format: u32,
    /// The policy engine and its version.
    pub engine: String,
    /// The policy files, in order.
    pub policies: Vec<PolicyFileDocument>,
    /// The Cedar schema of the policies.
    pub schema: String,
    /// The attestors: which evidence is accepted, and how it maps to identity and claims.
    #[schema(value_type = Vec<Object>)]
    pub attestors: Vec<Value>,
    /// The registered resources.
    #[schema(value_type = Vec<Object>)]
    pub resources: Vec<Value>,
    /// The registered task types.
    #[schema(value_type = Vec<Object>)]
    pub task_types: Vec<Value>,
    /// The limits that affect decisions; if absent, the defaults.
    #[schema(value_type = Option<Object>)]
    pub limits: Option<Value>,
    /// The retention of ended records, in days.
    #[schema(value_type = Object)]
    pub retention: Value,
}

/// A policy file of a generation.
#[derive(Debug, ToSchema)]
pub struct PolicyFileDocument {
    /// Its name in messages, for example `reports.cedar`.
    pub name: String,
    /// The policies, in Cedar.
    pub text: String,
}

/// The active generation.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({
    "digest": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "index": 12,
    "by": "ci:repo-1",
    "at": "2026-01-01T00:00:00Z",
    "generation": example_document()
})))]
pub struct ActiveGenerationBody {
    /// The digest of the document.
    #[schema(value_type = String)]
    pub digest: GenerationDigest,
    /// The index of the leaf that records the activation.
    pub index: u64,
    /// The admin who activated it, or the name of the start that did.
    pub by: String,
    /// The time of the activation.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The document as it is stored.
    #[schema(value_type = GenerationDocument)]
    pub generation: Value,
}

/// A generation that was activated.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({
    "generation": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "observed_policies": [{"policy": "reports-v2", "enforced_from": "2026-02-01T00:00:00Z"}]
})))]
pub struct ActivatedBody {
    /// The digest of the generation.
    #[schema(value_type = String)]
    pub generation: GenerationDigest,
    /// Policies that are not enforced yet.
    pub observed_policies: Vec<ObservingBody>,
}

/// The result of a generation's check.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({
    "generation": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "observed_policies": [{"policy": "reports-v2", "enforced_from": "2026-02-01T00:00:00Z"}],
    "bound_identities": 3,
    "able_to_activate": 2
})))]
pub struct CheckedBody {
    /// The digest of the generation.
    #[schema(value_type = String)]
    pub generation: GenerationDigest,
    /// Policies that would not be enforced yet.
    pub observed_policies: Vec<ObservingBody>,
    /// The number of identities that have a role.
    pub bound_identities: usize,
    /// How many of them could activate the next generation by their roles alone.
    pub able_to_activate: usize,
}

/// A policy that is not enforced yet.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ObservingBody {
    /// The id of the policy.
    pub policy: String,
    /// From when on it is enforced.
    #[schema(value_type = String, format = DateTime)]
    pub enforced_from: Timestamp,
}

/// An example: a document with one policy.
fn example_document() -> Value {
    json!({
        "format": 1,
        "engine": "cedar-4",
        "policies": [{"name": "reports.cedar", "text": "permit (principal, action, resource);"}],
        "schema": "",
        "attestors": [],
        "resources": [],
        "task_types": [],
        "limits": {
            "denials_per_identity": 60,
            "denials_per_attestor": 6000,
            "denial_window_seconds": 60
        },
        "retention": {"bodies_days": 400, "openings_days": 90, "sessions_days": 30}
    })
}
