//! The paths of the OAuth endpoints.
//!
//! [`is_oauth`] tells them from all others. The rule: refusals at these paths have the form of RFC
//! 6749, and at all others the form of RFC 9457.
//!
//! Nothing fails here. `oauth` converts refusals by it, `challenge` selects the scheme of a 401,
//! and `openapi` describes both.

/// Whether the path is an OAuth endpoint, whose errors are those of RFC 6749.
pub(super) fn is_oauth(path: &str) -> bool {
    path.starts_with("/oauth2/")
}
