//! The calls of STS.
//!
//! [`Asked`] is a request for a session, and [`Made`] the session that STS created. An answer is
//! accepted only if it is about the requested session, with an expiry that was requested.
//!
//! The error says whether a session may exist. [`MintError::Refused`], [`MintError::TooManyRights`]
//! and [`MintError::Throttled`] mean that AWS itself refused, or that nothing was sent, so none
//! exists. Everything else is [`MintError::Unknown`], and so is a refusal after an attempt with an
//! unclear result (`Tries`): the broker then treats the session as existing. [`super::AwsMinter`]
//! calls this file for permits, and [`super::deny`] for the session that writes deny lists.
//! [`super::clients`] limits attempts and time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_sts::config::interceptors::{
    BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef,
};
use aws_sdk_sts::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_sts::error::BoxError;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::types::{AssumedRoleUser, Credentials, Tag};
use secrecy::{ExposeSecret, SecretString};

use super::clients::Clients;
use crate::clock::Timestamp;
use crate::domain::kind::aws::AwsRole;
use crate::domain::limits::{MAX_AWS_EXPIRY_SLACK_SECONDS, MAX_AWS_KEY_BYTES, MAX_AWS_TOKEN_BYTES};
use crate::mint::MintError;

/// The session tag with the session's id.
pub(super) const SESSION_TAG: &str = "TaskpassSession";

/// The session tag with the hash of the decision's leaf.
pub(super) const DECISION_TAG: &str = "TaskpassDecision";

/// Name and length of the broker's own sessions.
const OWN_SESSION: &str = "taskpass-revoker";
const OWN_SECONDS: i32 = 900;

/// A request to STS.
pub(super) struct Asked {
    pub(super) session_name: String,
    pub(super) source_identity: String,
    pub(super) session_id: String,
    pub(super) policy: String,
    /// Requested length in seconds.
    pub(super) seconds: i32,
    /// The time of the request.
    pub(super) at: Timestamp,
}

/// The session that STS created.
pub(super) struct Made {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: SecretString,
    pub(super) session_token: SecretString,
    pub(super) expiration: Timestamp,
}

impl Clients {
    /// Creates a session with a token of the broker.
    pub(super) async fn with_web_identity(
        &self,
        role: &AwsRole,
        asked: &Asked,
        token: &SecretString,
    ) -> Result<Made, MintError> {
        let client = self.sts(role).await?;
        let request = client
            .assume_role_with_web_identity()
            .role_arn(&role.role_arn)
            .role_session_name(&asked.session_name)
            .web_identity_token(token.expose_secret())
            .policy(&asked.policy)
            .duration_seconds(asked.seconds);
        let tries = Tries::default();
        let sent = request.customize().interceptor(tries.clone()).send().await;
        let answer = sent.map_err(|error| tries.judge(failure(error)))?;
        made(role, asked, answer.credentials, answer.assumed_role_user)
    }

    /// Creates a session with the credentials of the replica's host.
    pub(super) async fn assume_role(
        &self,
        role: &AwsRole,
        asked: &Asked,
    ) -> Result<Made, MintError> {
        let client = self.sts(role).await?;
        let mut request = client
            .assume_role()
            .role_arn(&role.role_arn)
            .role_session_name(&asked.session_name)
            .source_identity(&asked.source_identity)
            .policy(&asked.policy)
            .set_external_id(role.external_id.clone())
            .duration_seconds(asked.seconds);
        for (key, value) in [
            (SESSION_TAG, &asked.session_id),
            (DECISION_TAG, &asked.source_identity),
        ] {
            let tag = Tag::builder().key(key).value(value).build();
            let tag = tag.map_err(|error| MintError::Refused(error.to_string()))?;
            request = request.tags(tag).transitive_tag_keys(key);
        }
        let tries = Tries::default();
        let sent = request.customize().interceptor(tries.clone()).send().await;
        let answer = sent.map_err(|error| tries.judge(failure(error)))?;
        made(role, asked, answer.credentials, answer.assumed_role_user)
    }

    /// Creates a session for the broker itself, of a role that is no resource, restricted by
    /// `policy`.
    pub(super) async fn own_session(
        &self,
        role: &AwsRole,
        writer: &str,
        token: &SecretString,
        policy: &str,
    ) -> Result<Credentials, MintError> {
        let client = self.sts(role).await?;
        let request = client
            .assume_role_with_web_identity()
            .role_arn(writer)
            .role_session_name(OWN_SESSION)
            .web_identity_token(token.expose_secret())
            .policy(policy)
            .duration_seconds(OWN_SECONDS);
        let answer = request.send().await.map_err(failure)?;
        let none = || MintError::Unknown("STS answered without usable credentials".into());
        answer.credentials.filter(is_usable).ok_or_else(none)
    }
}

/// Whether an earlier attempt of a call may have created a session. The refusal of a later attempt
/// then does not show that no session exists.
#[derive(Clone, Debug, Default)]
struct Tries(Arc<Seen>);

#[derive(Debug, Default)]
struct Seen {
    last_unclear: AtomicBool,
    earlier_unclear: AtomicBool,
}

impl Intercept for Tries {
    fn name(&self) -> &'static str {
        "tries"
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if self.0.last_unclear.load(Ordering::SeqCst) {
            self.0.earlier_unclear.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let error = context.output_or_error().and_then(Result::err);
        let answered = matches!(&error, Some(error) if error.is_operation_error());
        let client_error = context
            .response()
            .is_some_and(|response| response.status().is_client_error());
        self.0
            .last_unclear
            .store(!(answered && client_error), Ordering::SeqCst);
        Ok(())
    }
}

impl Tries {
    /// The meaning of a failure that may not be that of the only attempt.
    fn judge(&self, failed: MintError) -> MintError {
        match failed {
            MintError::Refused(told) | MintError::Throttled(told)
                if self.0.earlier_unclear.load(Ordering::SeqCst) =>
            {
                MintError::Unknown(format!("{told}, after a try that nothing is known of"))
            }
            MintError::TooManyRights { told, .. }
                if self.0.earlier_unclear.load(Ordering::SeqCst) =>
            {
                MintError::Unknown(format!("{told}, after a try that nothing is known of"))
            }
            other => other,
        }
    }
}

/// Accepts an answer only if it is about the requested session.
fn made(
    role: &AwsRole,
    asked: &Asked,
    credentials: Option<Credentials>,
    user: Option<AssumedRoleUser>,
) -> Result<Made, MintError> {
    let odd = |what: &str| MintError::Unknown(format!("STS answered without {what}"));
    let credentials = credentials.ok_or_else(|| odd("credentials"))?;
    let user = user.ok_or_else(|| odd("a session"))?;
    let name = role.parsed().ok_or_else(|| odd("a role"))?;
    let expected = format!(
        "arn:{}:sts::{}:assumed-role/{}/{}",
        name.partition, name.account, name.name, asked.session_name
    );
    if user.arn != expected {
        return Err(odd("the session that was asked for"));
    }
    if !is_usable(&credentials) {
        return Err(odd("usable credentials"));
    }
    let expiration = Timestamp::from_seconds(credentials.expiration.secs());
    let seconds = u64::try_from(asked.seconds).unwrap_or_default();
    let latest = asked
        .at
        .plus_seconds(seconds + MAX_AWS_EXPIRY_SLACK_SECONDS);
    if expiration <= asked.at || expiration > latest {
        return Err(odd("an expiry of the length that was asked for"));
    }
    Ok(Made {
        access_key_id: credentials.access_key_id,
        secret_access_key: credentials.secret_access_key.into(),
        session_token: credentials.session_token.into(),
        expiration,
    })
}

/// Whether credentials are printable and not longer than those of AWS.
fn is_usable(credentials: &Credentials) -> bool {
    let usable = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    };
    usable(&credentials.access_key_id, MAX_AWS_KEY_BYTES)
        && usable(&credentials.secret_access_key, MAX_AWS_KEY_BYTES)
        && usable(&credentials.session_token, MAX_AWS_TOKEN_BYTES)
}

/// The caller's message for a refusal because of the size of policy and tags.
const PACKED_TOO_LARGE: &str = "AWS refuses a session with such a long policy and so many tags; \
    request fewer or wider actions and resources";

/// The caller's message for a refusal because of the broker's own session.
const TAGS_INHERITED: &str = "AWS refuses the tags of this session because the AWS session of the \
    broker's host passes on tags with the same keys; the operator must give the host credentials \
    without transitive tags";

/// The meaning of a failed call. Only a refusal by AWS itself shows that no session exists.
#[expect(
    clippy::needless_pass_by_value,
    reason = "`map_err` passes it by value"
)]
pub(super) fn failure<E, R>(error: SdkError<E, R>) -> MintError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug,
{
    match &error {
        SdkError::ConstructionFailure(_) => MintError::Refused("the call could not be made".into()),
        SdkError::ServiceError(answer) => {
            let code = answer.err().code().unwrap_or("unknown");
            let told = match answer.err().message() {
                Some(message) => format!("{code}: {message}"),
                None => code.to_owned(),
            };
            match code {
                "PackedPolicyTooLarge" | "PackedPolicyTooLargeException" => {
                    MintError::TooManyRights {
                        told,
                        detail: PACKED_TOO_LARGE,
                    }
                }
                // A tag of the session has the key of a transitive tag of the calling session.
                "InvalidParameterValue" if told.to_ascii_lowercase().contains("transitive tag") => {
                    MintError::TooManyRights {
                        told,
                        detail: TAGS_INHERITED,
                    }
                }
                "Throttling" | "ThrottlingException" | "RequestLimitExceeded" => {
                    MintError::Throttled(told)
                }
                "AccessDenied"
                | "AccessDeniedException"
                | "ValidationError"
                | "MalformedPolicyDocument"
                | "LimitExceeded"
                | "NoSuchEntity"
                | "UnmodifiableEntity"
                | "RegionDisabledException"
                | "IDPRejectedClaim"
                | "InvalidIdentityToken"
                | "ExpiredTokenException"
                | "ExpiredToken"
                | "InvalidClientTokenId"
                | "SignatureDoesNotMatch"
                | "MissingAuthenticationToken"
                | "MissingParameter"
                | "InvalidParameterValue"
                | "InvalidParameterCombination"
                | "RequestExpired" => MintError::Refused(told),
                _ => MintError::Unknown(told),
            }
        }
        SdkError::DispatchFailure(failed) if failed.is_io() || failed.is_user() => {
            MintError::Unknown("AWS could not be reached".into())
        }
        SdkError::TimeoutError(_) => MintError::Unknown("AWS did not answer in time".into()),
        _ => MintError::Unknown("AWS gave no usable answer".into()),
    }
}
