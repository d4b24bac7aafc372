//! Checks conditions on claims and the positions of claims, as far as the configuration shows them.

use super::{Checked, Outcome};
use crate::domain::trust::OidcSpec;

/// Refuses positions, values and pairs of claims whose condition never holds or always holds.
pub(super) fn check_conditions(at: &Checked<'_>, spec: &OidcSpec) -> Outcome {
    for (name, claim) in &spec.claims {
        if claim.from.as_deref().is_some_and(|p| !is_pointer(p)) {
            let problem = format!("`{name}` has a `from` that is not a JSON pointer");
            at.refuse(
                "claims",
                problem,
                "write `/` before each name, for example `/kubernetes.io/pod/uid`",
            )?;
        }
    }
    for (name, values) in &spec.allowed {
        if values.is_empty() || values.contains("") {
            let problem = format!("`{name}` has no value, or an empty one");
            at.refuse("allowed", problem, "list the accepted texts")?;
        }
    }
    for (one, other) in &spec.equal {
        if !spec.claims.contains_key(one) || one == other {
            let problem = format!("`{one}` is not declared, or is compared with itself");
            at.refuse("equal", problem, "name two claims and declare the first")?;
        }
    }
    let review_needs = ["service_account_uid", "pod_uid"];
    if spec.token_review.is_some() && !review_needs.iter().all(|c| spec.claims.contains_key(*c)) {
        at.refuse(
            "token_review",
            "the cluster's answer can be compared with no claim",
            "declare service_account_uid and pod_uid, or set `preset = \"kubernetes\"`",
        )?;
    }
    Ok(())
}

fn is_pointer(text: &str) -> bool {
    let escapes = text
        .split('~')
        .skip(1)
        .all(|rest| rest.starts_with(['0', '1']));
    text.len() > 1 && text.starts_with('/') && escapes
}
