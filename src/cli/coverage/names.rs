//! How AWS's records name what its policies name otherwise.
//!
//! CloudTrail writes the name of a call, a policy the name of a right. They are the same, service
//! by service and call by call, save where this table says otherwise; it is in `docs/coverage.md`
//! too. What needs several rights at once is not compared with a grant at all.

use super::record::{Deed, arn};
use crate::domain::grant::{ActionName, Location};

/// What a record of AWS says that was called.
#[derive(Clone, Debug, Default)]
pub(super) struct Call {
    /// `s3.amazonaws.com`.
    pub(super) source: String,
    /// `GetObject`.
    pub(super) name: String,
    pub(super) region: Option<String>,
    /// ARNs and their types, as the record lists them. What it lists without an ARN is not here.
    pub(super) resources: Vec<(String, Option<String>)>,
    pub(super) bucket: Option<String>,
    pub(super) key: Option<String>,
    pub(super) version: Option<String>,
}

/// Services whose host has another name than their rights.
const SERVICES: [(&str, &str); 5] = [
    ("monitoring", "cloudwatch"),
    ("email", "ses"),
    ("tagging", "tag"),
    ("models.lex", "lex"),
    ("runtime.lex", "lex"),
];

/// Calls that are named otherwise than the right that they need.
const CALLS: [(&str, &str, &str); 28] = [
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
    ("s3", "DeleteBucketCors", "PutBucketCORS"),
    ("s3", "DeleteBucketTagging", "PutBucketTagging"),
    (
        "s3",
        "GetBucketAccelerateConfiguration",
        "GetAccelerateConfiguration",
    ),
    ("lambda", "Invoke", "InvokeFunction"),
];

/// Calls that need several rights, each on another thing: no single right says that they were
/// granted.
const SEVERAL: [(&str, &str); 5] = [
    ("s3", "CopyObject"),
    ("s3", "UploadPartCopy"),
    ("s3", "DeleteObjects"),
    ("dynamodb", "TransactWriteItems"),
    ("dynamodb", "ExecuteTransaction"),
];

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

/// Codes by which AWS says that a call was not authorized. Whatever else went wrong did so after it
/// was let in, or may have.
const REFUSED: [&str; 16] = [
    "AccessDenied",
    "AccessDeniedException",
    "AllAccessDisabled",
    "AuthorizationError",
    "AuthorizationErrorException",
    "Client.UnauthorizedOperation",
    "UnauthorizedOperation",
    "UnauthorizedException",
    "NotAuthorized",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "SignatureDoesNotMatch",
    "InvalidIdentityToken",
    "IDPRejectedClaim",
];

/// Whether an error's code says that nothing was done.
pub(super) fn is_refusal(code: &str) -> bool {
    REFUSED.contains(&code)
}

/// The host of a service of AWS, without what they all share.
fn service_of(source: &str) -> Option<&str> {
    let host = source
        .strip_suffix(".amazonaws.com.cn")
        .or_else(|| source.strip_suffix(".amazonaws.com"))?;
    let known = SERVICES.iter().find(|(name, _)| *name == host);
    known.map_or_else(|| host.split('.').next(), |(_, service)| Some(*service))
}

/// Whether this is how AWS names its services.
pub(super) fn is_aws(source: &str) -> bool {
    service_of(source).is_some()
}

impl Call {
    /// As people read it: `s3:GetObject`.
    pub(super) fn shown(&self) -> String {
        let service = service_of(&self.source).unwrap_or(&self.source);
        format!("{service}:{}", self.name)
    }

    /// Whether it makes a session.
    pub(super) fn makes_a_session(&self) -> bool {
        service_of(&self.source) == Some("sts")
            && matches!(
                self.name.as_str(),
                "AssumeRole" | "AssumeRoleWithWebIdentity"
            )
    }

    /// What it did, as a grant would say it.
    pub(super) fn deed(&self) -> Deed {
        let Some(service) = service_of(&self.source) else {
            return Deed::Unclear("its service is not one of AWS");
        };
        if SEVERAL.contains(&(service, self.name.as_str())) {
            return Deed::Unclear("the call needs several rights at once");
        }
        let Some(action) = self.action(service) else {
            return Deed::Unclear("its action has no name that a grant could have");
        };
        match self.places(service) {
            Ok(places) => Deed::Rights {
                action,
                places,
                named: self.names_a_place(),
            },
            Err(why) => Deed::Unclear(why),
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

    /// What it was done to. A record that names nothing is taken to mean anything of the service.
    fn places(&self, service: &str) -> Result<Vec<Location>, &'static str> {
        const UNREADABLE: &str = "it names a resource that no grant could name";
        let region = self.region.as_deref().unwrap_or_default();
        let partition = match region {
            _ if region.starts_with("cn-") => "aws-cn",
            _ if region.starts_with("us-gov-") => "aws-us-gov",
            _ => "aws",
        };
        let listed: Vec<&str> = self.listed(service);
        if !listed.is_empty() {
            let places = listed.into_iter().map(|text| arn(text).ok_or(UNREADABLE));
            return places.collect();
        }
        let one = match (service, &self.bucket, &self.key) {
            ("s3", Some(bucket), Some(key)) => format!("arn:{partition}:s3:::{bucket}/{key}"),
            ("s3", Some(bucket), None) => format!("arn:{partition}:s3:::{bucket}"),
            _ => format!("arn:{partition}:{service}:*:*:*"),
        };
        Ok(vec![arn(&one).ok_or(UNREADABLE)?])
    }

    /// What the record lists and AWS judged by: where it lists an object of S3, its bucket is told
    /// for the reader's sake.
    fn listed(&self, service: &str) -> Vec<&str> {
        let is_object = |kind: &Option<String>| kind.as_deref() == Some("AWS::S3::Object");
        let objects = self.resources.iter().any(|(_, kind)| is_object(kind));
        self.resources
            .iter()
            .filter(|(_, kind)| service != "s3" || !objects || is_object(kind))
            .map(|(text, _)| text.as_str())
            .collect()
    }

    /// Whether it names what it was done to.
    fn names_a_place(&self) -> bool {
        !self.resources.is_empty() || self.bucket.is_some()
    }

    /// What it was done to, for people.
    pub(super) fn shown_place(&self) -> String {
        let service = service_of(&self.source).unwrap_or_default();
        if let Some(first) = self.listed(service).first() {
            return (*first).to_owned();
        }
        match (&self.bucket, &self.key) {
            (Some(bucket), Some(key)) => format!("{bucket}/{key}"),
            (Some(bucket), None) => bucket.clone(),
            _ => "-".to_owned(),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn call(source: &str, name: &str) -> Call {
        Call {
            source: source.into(),
            name: name.into(),
            region: Some("eu-central-1".into()),
            ..Call::default()
        }
    }

    fn right(source: &str, name: &str) -> String {
        match call(source, name).deed() {
            Deed::Rights { action, .. } => action.as_str().to_owned(),
            other => format!("{other:?}"),
        }
    }

    fn places(call: &Call) -> Vec<String> {
        match call.deed() {
            Deed::Rights { places, .. } => places.iter().map(|p| p.as_str().to_owned()).collect(),
            other => vec![format!("{other:?}")],
        }
    }

    #[test]
    fn a_call_is_named_as_the_right_that_it_needs() {
        for (source, name, expected) in [
            ("s3.amazonaws.com", "GetObject", "s3:GetObject"),
            ("s3.amazonaws.com", "ListObjectsV2", "s3:ListBucket"),
            ("s3.amazonaws.com", "HeadObject", "s3:GetObject"),
            ("s3.amazonaws.com.cn", "UploadPart", "s3:PutObject"),
            (
                "monitoring.amazonaws.com",
                "PutMetricData",
                "cloudwatch:PutMetricData",
            ),
            (
                "lambda.amazonaws.com",
                "ListFunctions20150331",
                "lambda:ListFunctions",
            ),
            (
                "lambda.amazonaws.com",
                "GetFunction20150331v2",
                "lambda:GetFunction",
            ),
            (
                "cloudfront.amazonaws.com",
                "GetDistribution2020_05_31",
                "cloudfront:GetDistribution",
            ),
            ("dynamodb.amazonaws.com", "GetItem", "dynamodb:GetItem"),
        ] {
            assert_eq!(right(source, name), expected);
        }
        let mut versioned = call("s3.amazonaws.com", "HeadObject");
        versioned.version = Some("3sL4".into());
        let Deed::Rights { action, .. } = versioned.deed() else {
            panic!();
        };
        assert_eq!(action.as_str(), "s3:GetObjectVersion");
        for (source, name) in [
            ("s3.amazonaws.com", "CopyObject"),
            ("s3.amazonaws.com", "Get*"),
            ("s3.amazonaws.com", "Get Object"),
            ("s3.amazonaws.com", ""),
            ("evil.example", "GetObject"),
            ("amazonaws.com", "GetObject"),
            (".amazonaws.com", "GetObject"),
        ] {
            assert!(
                right(source, name).starts_with("Unclear"),
                "{source} {name}"
            );
        }
    }

    #[test]
    fn tables_are_without_doubles() {
        for (n, (service, name, _)) in CALLS.iter().enumerate() {
            let same = |(s, c, _): &(&str, &str, &str)| s == service && c == name;
            assert!(!CALLS[n + 1..].iter().any(same), "{service}:{name}");
            assert!(!SEVERAL.contains(&(*service, *name)));
        }
    }

    #[test]
    fn of_an_object_and_its_bucket_the_object_is_what_counts() {
        let mut one = call("s3.amazonaws.com", "GetObject");
        assert_eq!(places(&one), ["arn:aws:s3:*:*:*"]);
        one.bucket = Some("reports".into());
        assert_eq!(places(&one), ["arn:aws:s3:::reports"]);
        one.key = Some("team/x y".into());
        assert_eq!(places(&one), ["arn:aws:s3:::reports/team/x?y"]);
        one.resources = vec![
            (
                "arn:aws:s3:::reports".into(),
                Some("AWS::S3::Bucket".into()),
            ),
            (
                "arn:aws:s3:::reports/a".into(),
                Some("AWS::S3::Object".into()),
            ),
        ];
        assert_eq!(places(&one), ["arn:aws:s3:::reports/a"]);
        let mut china = call("sqs.amazonaws.com", "SendMessage");
        china.region = Some("cn-north-1".into());
        assert_eq!(places(&china), ["arn:aws-cn:sqs:*:*:*"]);
    }
}
