//! The calls of STS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_sts::config::interceptors::{
    BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef,
};
use aws_sdk_sts::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_sts::error::BoxError;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::types::{AssumedRoleUser, Credentials, PolicyDescriptorType, Tag};
use secrecy::{ExposeSecret, SecretString};

use super::clients::Clients;
use crate::clock::Timestamp;
use crate::domain::aws::AwsRole;
use crate::mint::MintError;

/// The session tag that holds our session's id.
pub(super) const SESSION_TAG: &str = "TaskpassSession";

/// The session tag that holds the hash of the decision's leaf.
pub(super) const DECISION_TAG: &str = "TaskpassDecision";

/// The name and the length of the broker's own sessions.
const OWN_SESSION: &str = "taskpass-revoker";
const OWN_SECONDS: i32 = 900;

/// What is asked of STS.
pub(super) struct Asked {
    pub(super) session_name: String,
    pub(super) source_identity: String,
    pub(super) session_id: String,
    pub(super) policy: String,
    pub(super) seconds: i32,
}

/// What STS gave.
pub(super) struct Made {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: SecretString,
    pub(super) session_token: SecretString,
    pub(super) expiration: Timestamp,
}

impl Clients {
    /// A session by a token of ours.
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
            .set_policy_arns(managed(role))
            .duration_seconds(asked.seconds);
        let tries = Tries::default();
        let sent = request.customize().interceptor(tries.clone()).send().await;
        let answer = sent.map_err(|error| tries.judge(failure(error)))?;
        made(role, asked, answer.credentials, answer.assumed_role_user)
    }

    /// A session by the broker's own credentials.
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
            .set_policy_arns(managed(role))
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

    /// A session of the broker's own, of a role that is no resource, confined by `policy`.
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
        let none = || MintError::Unknown("STS answered without credentials".into());
        answer.credentials.ok_or_else(none)
    }
}

/// Whether an earlier try of a call ended so that a session may have been made. That a later one
/// is refused then says nothing of the earlier.
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
    /// What a failure means, where it may not be about the only try.
    fn judge(&self, failed: MintError) -> MintError {
        match failed {
            MintError::Refused(told) | MintError::Throttled(told)
                if self.0.earlier_unclear.load(Ordering::SeqCst) =>
            {
                MintError::Unknown(format!("{told}, after a try that nothing is known of"))
            }
            other => other,
        }
    }
}

fn managed(role: &AwsRole) -> Option<Vec<PolicyDescriptorType>> {
    let arns = role.policy_arns.iter();
    let all: Vec<_> = arns
        .map(|arn| PolicyDescriptorType::builder().arn(arn).build())
        .collect();
    (!all.is_empty()).then_some(all)
}

/// Believes an answer only if it is about the session that was asked for.
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
    let expiration = Timestamp::from_seconds(credentials.expiration.secs());
    let filled = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if !filled(&credentials.access_key_id)
        || !filled(&credentials.secret_access_key)
        || !filled(&credentials.session_token)
    {
        return Err(odd("usable credentials"));
    }
    Ok(Made {
        access_key_id: credentials.access_key_id,
        secret_access_key: credentials.secret_access_key.into(),
        session_token: credentials.session_token.into(),
        expiration,
    })
}

/// What a failed call means: only the word of AWS that it refuses means that nothing was made.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
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
                | "PackedPolicyTooLarge"
                | "RegionDisabledException"
                | "IDPRejectedClaim"
                | "InvalidIdentityToken"
                | "ExpiredTokenException"
                | "ExpiredToken"
                | "InvalidClientTokenId"
                | "SignatureDoesNotMatch"
                | "MissingAuthenticationToken"
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
