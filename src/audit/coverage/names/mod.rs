//! Translates between the names in AWS's records and those in its policies.
//!
//! CloudTrail writes the name of a call, and a policy the name of a right. They are the same for
//! each service and call, except for this table, which is also in `docs/reference/coverage.md`. A
//! call that needs several rights is not compared with a grant.
//!
//! A call that cannot be compared with a grant is [`RecordedAction::Unclear`], with the reason;
//! nothing here fails. [`super::cloudtrail`] and [`super::mapped`] make a [`Call`] from a record.

#[cfg(test)]
mod tests;

use super::record::{RecordedAction, Region, arn, arn_that_begins};
use crate::domain::action::ActionName;
use crate::domain::location::Location;

/// The call in a record of AWS.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    /// The host of the service, for example `s3.amazonaws.com`.
    pub(crate) source: String,
    /// The name of the call, for example `GetObject`.
    pub(crate) name: String,
    pub(crate) region: Region,
    /// The ARN, if there is one, and the type of each resource that the record lists.
    pub(crate) resources: Vec<(Option<String>, Option<String>)>,
    pub(crate) bucket: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) version: Option<String>,
    /// Whether one of the last three members has a value that is not a text.
    pub(crate) odd: bool,
}

/// Services whose host name differs from the prefix of their rights.
const SERVICES: [(&str, &str); 5] = [
    ("monitoring", "cloudwatch"),
    ("email", "ses"),
    ("tagging", "tag"),
    ("models.lex", "lex"),
    ("runtime.lex", "lex"),
];

/// Calls whose name differs from the right that they need.
const CALLS: [(&str, &str, &str); 56] = [
    ("s3", "HeadObject", "GetObject"),
    ("s3", "SelectObjectContent", "GetObject"),
    ("s3", "HeadBucket", "ListBucket"),
    ("s3", "ListObjects", "ListBucket"),
    ("s3", "ListObjectsV2", "ListBucket"),
    ("s3", "ListObjectVersions", "ListBucketVersions"),
    ("s3", "ListBuckets", "ListAllMyBuckets"),
    ("s3", "CreateMultipartUpload", "PutObject"),
    ("s3", "InitiateMultipartUpload", "PutObject"),
    ("s3", "UploadPart", "PutObject"),
    ("s3", "CompleteMultipartUpload", "PutObject"),
    ("s3", "ListParts", "ListMultipartUploadParts"),
    ("s3", "ListMultipartUploads", "ListBucketMultipartUploads"),
    (
        "s3",
        "GetObjectLockConfiguration",
        "GetBucketObjectLockConfiguration",
    ),
    (
        "s3",
        "PutObjectLockConfiguration",
        "PutBucketObjectLockConfiguration",
    ),
    ("s3", "GetBucketEncryption", "GetEncryptionConfiguration"),
    ("s3", "PutBucketEncryption", "PutEncryptionConfiguration"),
    ("s3", "DeleteBucketEncryption", "PutEncryptionConfiguration"),
    ("s3", "GetBucketLifecycle", "GetLifecycleConfiguration"),
    (
        "s3",
        "GetBucketLifecycleConfiguration",
        "GetLifecycleConfiguration",
    ),
    ("s3", "PutBucketLifecycle", "PutLifecycleConfiguration"),
    (
        "s3",
        "PutBucketLifecycleConfiguration",
        "PutLifecycleConfiguration",
    ),
    ("s3", "DeleteBucketLifecycle", "PutLifecycleConfiguration"),
    ("s3", "GetBucketReplication", "GetReplicationConfiguration"),
    ("s3", "PutBucketReplication", "PutReplicationConfiguration"),
    (
        "s3",
        "DeleteBucketReplication",
        "PutReplicationConfiguration",
    ),
    ("s3", "GetBucketCors", "GetBucketCORS"),
    ("s3", "PutBucketCors", "PutBucketCORS"),
    ("s3", "DeleteBucketCors", "PutBucketCORS"),
    ("s3", "DeleteBucketTagging", "PutBucketTagging"),
    (
        "s3",
        "GetBucketNotificationConfiguration",
        "GetBucketNotification",
    ),
    (
        "s3",
        "PutBucketNotificationConfiguration",
        "PutBucketNotification",
    ),
    ("s3", "GetPublicAccessBlock", "GetBucketPublicAccessBlock"),
    ("s3", "PutPublicAccessBlock", "PutBucketPublicAccessBlock"),
    (
        "s3",
        "DeletePublicAccessBlock",
        "PutBucketPublicAccessBlock",
    ),
    (
        "s3",
        "DeleteBucketPublicAccessBlock",
        "PutBucketPublicAccessBlock",
    ),
    (
        "s3",
        "DeleteBucketOwnershipControls",
        "PutBucketOwnershipControls",
    ),
    (
        "s3",
        "GetBucketAccelerateConfiguration",
        "GetAccelerateConfiguration",
    ),
    (
        "s3",
        "PutBucketAccelerateConfiguration",
        "PutAccelerateConfiguration",
    ),
    (
        "s3",
        "GetBucketInventoryConfiguration",
        "GetInventoryConfiguration",
    ),
    (
        "s3",
        "PutBucketInventoryConfiguration",
        "PutInventoryConfiguration",
    ),
    (
        "s3",
        "DeleteBucketInventoryConfiguration",
        "PutInventoryConfiguration",
    ),
    (
        "s3",
        "ListBucketInventoryConfigurations",
        "GetInventoryConfiguration",
    ),
    (
        "s3",
        "GetBucketMetricsConfiguration",
        "GetMetricsConfiguration",
    ),
    (
        "s3",
        "PutBucketMetricsConfiguration",
        "PutMetricsConfiguration",
    ),
    (
        "s3",
        "DeleteBucketMetricsConfiguration",
        "PutMetricsConfiguration",
    ),
    (
        "s3",
        "ListBucketMetricsConfigurations",
        "GetMetricsConfiguration",
    ),
    (
        "s3",
        "GetBucketAnalyticsConfiguration",
        "GetAnalyticsConfiguration",
    ),
    (
        "s3",
        "PutBucketAnalyticsConfiguration",
        "PutAnalyticsConfiguration",
    ),
    (
        "s3",
        "DeleteBucketAnalyticsConfiguration",
        "PutAnalyticsConfiguration",
    ),
    (
        "s3",
        "ListBucketAnalyticsConfigurations",
        "GetAnalyticsConfiguration",
    ),
    (
        "s3",
        "GetBucketIntelligentTieringConfiguration",
        "GetIntelligentTieringConfiguration",
    ),
    (
        "s3",
        "PutBucketIntelligentTieringConfiguration",
        "PutIntelligentTieringConfiguration",
    ),
    (
        "s3",
        "DeleteBucketIntelligentTieringConfiguration",
        "PutIntelligentTieringConfiguration",
    ),
    (
        "s3",
        "ListBucketIntelligentTieringConfigurations",
        "GetIntelligentTieringConfiguration",
    ),
    ("lambda", "Invoke", "InvokeFunction"),
];

/// Calls that need several rights on different objects: no single right permits them. If none of
/// the listed rights was granted, the call was certainly not.
const SEVERAL: [(&str, &str, &[&str]); 5] = [
    ("s3", "CopyObject", &["PutObject"]),
    ("s3", "UploadPartCopy", &["PutObject"]),
    (
        "s3",
        "DeleteObjects",
        &["DeleteObject", "DeleteObjectVersion"],
    ),
    (
        "dynamodb",
        "TransactWriteItems",
        &["PutItem", "UpdateItem", "DeleteItem", "ConditionCheckItem"],
    ),
    (
        "dynamodb",
        "ExecuteTransaction",
        &[
            "PartiQLSelect",
            "PartiQLInsert",
            "PartiQLUpdate",
            "PartiQLDelete",
        ],
    ),
];

/// Calls that list the objects of a bucket. Their records name a prefix without an ARN.
const LISTINGS: [&str; 4] = [
    "ListObjects",
    "ListObjectsV2",
    "ListObjectVersions",
    "ListMultipartUploads",
];

/// The type of an S3 object in records.
const OBJECT: &str = "AWS::S3::Object";

/// Calls that need another right for one version of an object.
const VERSIONED: [&str; 8] = [
    "GetObject",
    "GetObjectAcl",
    "GetObjectTagging",
    "GetObjectAttributes",
    "PutObjectAcl",
    "PutObjectTagging",
    "DeleteObject",
    "DeleteObjectTagging",
];

/// Error codes with which AWS reports that a call was not authorized. A call with any other error
/// was authorized, or may have been.
const REFUSED: [&str; 17] = [
    "AccessDenied",
    "AccessDeniedException",
    "AllAccessDisabled",
    "AuthorizationError",
    "AuthorizationErrorException",
    "Client.UnauthorizedOperation",
    "UnauthorizedOperation",
    "UnauthorizedException",
    "VpceAccessDenied",
    "NotAuthorized",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "SignatureDoesNotMatch",
    "InvalidIdentityToken",
    "IDPRejectedClaim",
];

/// Whether an error code shows that nothing was done.
pub(crate) fn is_refusal(code: &str) -> bool {
    REFUSED.contains(&code)
}

/// The prefix of a service's rights, from the host of the service; `None` if it is not one of AWS.
fn service_of(source: &str) -> Option<&str> {
    let host = source
        .strip_suffix(".amazonaws.com.cn")
        .or_else(|| source.strip_suffix(".amazonaws.com"))?;
    let known = SERVICES.iter().find(|(name, _)| *name == host);
    known.map_or_else(|| host.split('.').next(), |(_, service)| Some(*service))
}

/// Whether `source` has the form of an AWS service's host.
pub(crate) fn is_aws(source: &str) -> bool {
    service_of(source).is_some()
}

impl Call {
    /// The call in the form of a right: `s3:GetObject`.
    pub(crate) fn shown(&self) -> String {
        let service = service_of(&self.source).unwrap_or(&self.source);
        format!("{service}:{}", self.name)
    }

    /// Whether the call creates a session.
    pub(crate) fn makes_a_session(&self) -> bool {
        service_of(&self.source) == Some("sts")
            && matches!(
                self.name.as_str(),
                "AssumeRole" | "AssumeRoleWithWebIdentity"
            )
    }

    /// The action in the terms of a grant.
    pub(crate) fn recorded_action(&self) -> RecordedAction {
        let unclear = |why| RecordedAction::Unclear {
            why,
            needs: Vec::new(),
        };
        let Some(service) = service_of(&self.source) else {
            return unclear("its service is not one of AWS");
        };
        let several = |(of, call, _): &&(&str, &str, _)| *of == service && *call == self.name;
        if let Some((_, _, rights)) = SEVERAL.iter().find(several) {
            let needs = rights.iter().map(|right| format!("{service}:{right}"));
            return RecordedAction::Unclear {
                why: "the call needs several rights at once",
                needs: needs.filter_map(|right| right.try_into().ok()).collect(),
            };
        }
        let Some(action) = self.action(service) else {
            return unclear("its action has no name that a grant can contain");
        };
        let mut locations = self.locations(service);
        if service == "s3" && is_of_an_object(&action) {
            locations.of_objects();
        }
        let odd = self.odd.then_some("one of its parameters is not a text");
        RecordedAction::Rights {
            action,
            locations: locations.all,
            named: locations.named,
            unclear: locations.unclear.or(odd),
        }
    }

    fn action(&self, service: &str) -> Option<ActionName> {
        let name = undated(service, &self.name);
        let other = CALLS
            .iter()
            .find(|(of, call, _)| *of == service && *call == name);
        let mut name = other.map_or(name, |(_, _, right)| right).to_owned();
        let versioned = self.version.as_deref().is_some_and(|id| !id.is_empty());
        if service == "s3" && versioned && VERSIONED.contains(&name.as_str()) {
            name = name.replacen("Object", "ObjectVersion", 1);
        }
        let action = ActionName::try_from(format!("{service}:{name}")).ok()?;
        (action.is_aws() && !action.has_wildcards()).then_some(action)
    }

    /// The locations of the call. A record that names none stands for any location of the service.
    fn locations(&self, service: &str) -> CallLocations {
        const UNREADABLE: &str = "it names a resource that no grant can name";
        let listed = self.listed(service);
        // If only the bucket is listed, the parameters name the object.
        let by_key = service == "s3" && self.bucket.is_some() && self.key.is_some();
        let is_object = |(_, kind): &(_, Option<String>)| kind.as_deref() == Some(OBJECT);
        let by_key = by_key && !self.resources.iter().any(is_object) && !listed.contains(&None);
        if !listed.is_empty() && !by_key {
            let all: Vec<Option<Location>> = listed.iter().map(|text| arn((*text)?)).collect();
            let unclear = all.contains(&None).then_some(UNREADABLE);
            return CallLocations {
                all: all.into_iter().flatten().collect(),
                named: true,
                unclear,
            };
        }
        let region = self.region.name().unwrap_or_default();
        let partition = match region {
            _ if region.starts_with("cn-") => "aws-cn",
            _ if region.starts_with("us-gov-") => "aws-us-gov",
            _ => "aws",
        };
        let (one, named) = match (service, &self.bucket, &self.key) {
            ("s3", Some(bucket), Some(key)) => {
                let text = format!("arn:{partition}:s3:::{bucket}/{key}");
                // For a key that is too long, the bucket is still known.
                match arn(&text) {
                    Some(location) => (Some(location), true),
                    None => (arn_that_begins(&text), false),
                }
            }
            ("s3", Some(bucket), None) => (arn(&format!("arn:{partition}:s3:::{bucket}")), true),
            _ => {
                let any = format!("arn:{partition}:{service}:*:*:*");
                (Location::accessed(any).ok(), false)
            }
        };
        CallLocations {
            unclear: one.is_none().then_some(UNREADABLE),
            all: one.into_iter().collect(),
            named,
        }
    }

    /// The listed resources that AWS used for authorization. A bucket that is listed with its
    /// object is only informative and is left out. A resource without an ARN is unknown.
    fn listed(&self, service: &str) -> Vec<Option<&str>> {
        let is_object = |kind: &Option<String>| kind.as_deref() == Some(OBJECT);
        let lists = service == "s3" && LISTINGS.contains(&self.name.as_str());
        let known = self
            .resources
            .iter()
            .filter(|(arn, kind)| !(lists && arn.is_none() && is_object(kind)));
        let objects = service == "s3" && known.clone().any(|(_, kind)| is_object(kind));
        known
            .filter(|(arn, kind)| !objects || arn.is_none() || is_object(kind))
            .map(|(arn, _)| arn.as_deref())
            .collect()
    }

    /// The location of the call, for display.
    pub(crate) fn shown_location(&self) -> String {
        let service = service_of(&self.source).unwrap_or_default();
        if let Some(first) = self.listed(service).into_iter().flatten().next() {
            return first.to_owned();
        }
        match (&self.bucket, &self.key) {
            (Some(bucket), Some(key)) => format!("{bucket}/{key}"),
            (Some(bucket), None) => bucket.clone(),
            _ => "-".to_owned(),
        }
    }
}

/// The locations of a call.
struct CallLocations {
    all: Vec<Location>,
    /// Whether each location is exact.
    named: bool,
    /// Why the list is incomplete; `None` if it is complete.
    unclear: Option<&'static str>,
}

impl CallLocations {
    /// Replaces a bucket by the pattern of its objects: an action on an object is not one on its
    /// bucket.
    fn of_objects(&mut self) {
        for location in &mut self.all {
            let parts: Vec<&str> = location.as_str().splitn(6, ':').collect();
            if matches!(parts[..], [_, _, _, "", "", name] if !name.contains('/')) {
                self.named = false;
                match Location::accessed(format!("{location}/*")) {
                    Ok(any) => *location = any,
                    Err(_) => self.unclear = Some("it does not name the object"),
                }
            }
        }
    }
}

/// Whether a right of S3 applies to objects, not to buckets.
fn is_of_an_object(right: &ActionName) -> bool {
    right.as_str().contains("Object") && !right.as_str().contains("Bucket")
}

/// The call's name without the date of the interface's version, which two services append.
fn undated<'a>(service: &str, name: &'a str) -> &'a str {
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let dated = match service {
        "lambda" => {
            let bare = name.strip_suffix("v2").unwrap_or(name);
            bare.len()
                .checked_sub(8)
                .and_then(|at| bare.split_at_checked(at))
        }
        "cloudfront" => name
            .len()
            .checked_sub(10)
            .and_then(|at| name.split_at_checked(at)),
        _ => None,
    };
    match dated {
        Some((bare, date)) if digits(date) && !bare.is_empty() => bare,
        _ => name,
    }
}
