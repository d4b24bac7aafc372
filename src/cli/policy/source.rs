//! Where recorded decisions and the generations that made them come from: a broker, or files.
//!
//! Nothing that comes is taken at its word. A leaf must have the hash it is said to have, an input
//! must open the leaf's commitment, and a generation must have its digest.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::Failure;
use super::super::client::Client;
use crate::crypto::digest::sha256;
use crate::domain::generation::{Generation, GenerationDigest};
use crate::domain::record::Record;
use crate::merkle::leaf_hash;
use crate::policy::CompiledGeneration;
use crate::policy::record::{RecordError, Recorded};

/// A generation with its text, compiled.
pub(super) struct Decider {
    pub(super) generation: Generation,
    pub(super) compiled: CompiledGeneration,
}

/// Reads a record: the leaf by its hash, the input by its commitment.
pub(super) fn open(record: &Record) -> Result<Recorded, Failure> {
    if let Some(leaf) = &record.leaf {
        let bytes = STANDARD.decode(leaf).unwrap_or_default();
        if leaf_hash(&bytes).to_string() != record.leaf_hash {
            return Err(Failure::Refused(format!(
                "FAILED: the leaf at index {} does not have the hash that the log has of it",
                record.index
            )));
        }
    }
    Recorded::open(record).map_err(|error| match error {
        RecordError::Pruned(_) => Failure::Unestablished(error.to_string()),
        _ => Failure::Refused(format!("FAILED: index {}: {error}", record.index)),
    })
}

/// Fetches a generation, and holds it against its digest.
pub(super) async fn decider(client: &Client, digest: GenerationDigest) -> Result<Decider, Failure> {
    let text = client
        .get_text(&format!("/v1/generations/{digest}"))
        .await?;
    if GenerationDigest::new(sha256(text.as_bytes())) != digest {
        return Err(Failure::Refused(format!(
            "FAILED: the generation that was handed out is not {digest}: its bytes have another digest"
        )));
    }
    let generation: Generation = serde_json::from_str(&text).map_err(|error| {
        Failure::Unestablished(format!("generation {digest} cannot be read: {error}"))
    })?;
    // Our own audiences only say which configurations are refused, never what is decided.
    let compiled = CompiledGeneration::compile(&generation, &[]).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let problems = problems.join("\n  ");
        Failure::Unestablished(format!(
            "generation {digest} does not load in this version:\n  {problems}"
        ))
    })?;
    Ok(Decider {
        generation,
        compiled,
    })
}
