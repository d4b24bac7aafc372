//! Every maximum, with its reason. Each is tested at the limit and one above it.

/// The largest request body. A credential request has about 1 KiB; the rest leaves room for long
/// `authorization_details`.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// The largest body of an administrative request: a whole generation with its policies.
pub const MAX_ADMIN_BODY_BYTES: usize = 8 * 1024 * 1024;

/// The longest identity or instance: long enough for percent-encoded claims, short enough for an
/// index.
pub const MAX_IDENTITY_BYTES: usize = 512;

/// The longest text of one claim that policy may read.
pub const MAX_CLAIM_BYTES: usize = 1_024;

/// The longest purpose of a task: a few sentences for an approver.
pub const MAX_PURPOSE_BYTES: usize = 1_024;

/// The longest reason that an admin gives for a revocation.
pub const MAX_REASON_BYTES: usize = 512;

/// The longest name of a resource, task type or attestor in the configuration.
pub const MAX_NAME_BYTES: usize = 64;

/// Maximum number of objects in one `authorization_details`.
pub const MAX_DETAILS: usize = 8;

/// Maximum number of actions in one object of `authorization_details`.
pub const MAX_ACTIONS: usize = 32;

/// Maximum number of locations in one object of `authorization_details`.
pub const MAX_LOCATIONS: usize = 16;

/// The longest text of one action or location.
pub const MAX_GRANT_TEXT_BYTES: usize = 512;

/// The longest location in a record of an access. The name of an S3 object alone has up to 1,024
/// bytes.
pub const MAX_PLACE_BYTES: usize = 2_048;

/// Maximum number of policy evaluations for one request: one for each action and location of each
/// object. It limits the CPU time of one request to a few milliseconds.
pub const MAX_EVALUATIONS: usize = 128;

/// Maximum number of wildcards in one action or location. Real ones have a handful; more would make
/// the comparison of two patterns slow.
pub const MAX_WILDCARDS: usize = 16;

/// Maximum number of steps for one comparison of two patterns: about a millisecond. Real patterns
/// take a few hundred.
pub const MAX_COMPARISON_STEPS: u64 = 10_000;

/// Maximum number of steps of all comparisons and evaluations in one pass over a request: resolving
/// it, comparing it with its parent's rights, deciding it. It limits the CPU time of a pass to
/// about ten milliseconds.
pub const MAX_REQUEST_STEPS: u64 = 100_000;

/// The number of steps that one policy evaluation counts as, by its approximate duration.
pub const EVALUATION_STEPS: u64 = 200;

/// The deepest nesting of brackets, `if`s and accesses in a policy.
pub const MAX_POLICY_NESTING: usize = 128;

/// Maximum number of terms in one chain of `&&`, `||`, `+`, `-` and `*` in a policy, including
/// those of the enclosing chains: enough for two thousand locations, each with the locations below
/// it.
pub const MAX_POLICY_TERMS: usize = 4_096;

/// Maximum depth of a policy's condition after its chains are balanced. The stack for evaluation is
/// sized for it.
pub const MAX_EVALUATION_DEPTH: usize = 192;

/// Maximum number of expressions in the evaluated form of one policy. An `if` in the condition of
/// an `if` doubles its content.
pub const MAX_POLICY_EXPRESSIONS: usize = 50_000;

/// Maximum number of expressions that the evaluated forms of all policies of a generation may add
/// to the written ones: about 150 MB.
pub const MAX_ADDED_EXPRESSIONS: usize = 100_000;

/// Maximum number of steps in which a load may compare the registered AWS actions with each other:
/// enough for five hundred patterns, in about half a second.
pub const MAX_LOAD_STEPS: u64 = 5_000_000;

/// Maximum number of problems that a load reports. Each needs a search through its file for the
/// line.
pub const MAX_PROBLEMS: usize = 100;

/// Maximum time in seconds that a call waits for another generation to load. A replica loads one at
/// a time.
pub const LOAD_WAIT_SECONDS: u64 = 5;

/// Maximum number of observing policies for one resource. Each is evaluated in addition to the
/// enforced ones and named in the leaf.
pub const MAX_OBSERVED: usize = 16;

/// Maximum number of days between the activation of an observing policy and its last day of
/// observing: half a year. A policy that observes for longer is an unenforced policy and not a
/// trial.
pub const MAX_OBSERVED_DAYS: u64 = 180;

/// The longest life of a credential: half a day, like the longest session of an AWS role.
pub const MAX_TTL_SECONDS: u64 = 43_200;

/// The longest session, in seconds, of an AWS role that is assumed with the credentials of another
/// role. AWS refuses a longer one regardless of the role's settings.
pub const MAX_CHAINED_SESSION_SECONDS: u64 = 3_600;

/// Maximum difference between the expiry of an AWS session and the requested one, in seconds: five
/// minutes of clock difference that AWS permits, and one minute for the call.
pub const MAX_AWS_EXPIRY_SLACK_SECONDS: u64 = 360;

/// The longest access key id and secret access key that the broker accepts from AWS. Those of AWS
/// have 20 and 40 bytes.
pub const MAX_AWS_KEY_BYTES: usize = 1_024;

/// The longest session token that the broker accepts from AWS. Those of AWS have up to about 4 KiB.
pub const MAX_AWS_TOKEN_BYTES: usize = 16 * 1_024;

/// The longest life of a task: a week. Split a longer job into several tasks.
pub const MAX_DEADLINE_SECONDS: u64 = 604_800;

/// The shortest heartbeat interval that a task may request. Below a second, network delays would
/// end tasks.
pub const MIN_HEARTBEAT_SECONDS: u64 = 1;
/// The longest heartbeat interval that a task may request.
pub const MAX_HEARTBEAT_SECONDS: u64 = 3_600;

/// Maximum depth of a chain of tasks, the root included. It limits the recursive query at every
/// use.
pub const MAX_CHAIN_DEPTH: u8 = 8;

/// The largest number of credentials that a task type may permit to one task and its descendants.
pub const MAX_SESSIONS_PER_TASK: u32 = 10_000;

/// How often one `Idempotency-Key` may supersede its credential.
pub const MAX_SUPERSEDES: u32 = 3;

/// How long an `Idempotency-Key` is kept.
pub const IDEMPOTENCY_SECONDS: u64 = 86_400;

/// The longest `Idempotency-Key`.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 128;

/// The longest life of a delegation token.
pub const MAX_DELEGATION_SECONDS: u64 = 300;

/// Maximum number of published ledger keys. Each of them signs every checkpoint, and readers check
/// at most 32 signatures of a note, including those of witnesses. Three rotations within the
/// overlap leave room for an emergency.
pub const MAX_LEDGER_KEYS: usize = 4;

/// Maximum number of published access-token keys at a rotation on demand. Verifiers limit the keys
/// of a set: the broker's own limit is 100.
pub const MAX_PUBLISHED_KEYS: usize = 16;

/// The broker becomes unready this many seconds before the signing ledger key ends: a week. A log
/// whose key has ended cannot continue.
pub const LEDGER_KEY_WARNING_SECONDS: u64 = 604_800;

/// Maximum number of entries that wait for the ledger. A full queue refuses with 503 at once: a
/// longer one would only hide the overload.
pub const MAX_QUEUE_ENTRIES: usize = 4_096;

/// Maximum number of further waiting entries that only consume evidence. Failed calls must not
/// depend on the number of waiting decisions.
pub const MAX_QUEUE_CONSUMPTIONS: usize = 4_096;

/// Maximum number of one-time ids that a replica keeps because their use could not be recorded. At
/// the maximum it accepts no calls that present evidence.
pub const MAX_UNRECORDED_EVIDENCE: usize = 100_000;

/// Maximum number of these one-time ids ([`MAX_UNRECORDED_EVIDENCE`]) that one batch of the ledger
/// records.
pub const MAX_BATCH_UNRECORDED: usize = 256;

/// Maximum number of bytes that wait for the ledger.
pub const MAX_QUEUE_BYTES: usize = 16 * 1024 * 1024;

/// Maximum number of entries in one batch of the ledger.
pub const MAX_BATCH_ENTRIES: usize = 256;

/// The largest leaf. C2SP entry bundles hold a 16-bit length; leaves normally have less than 4 KiB.
pub const MAX_LEAF_BYTES: usize = 65_535;

/// Maximum number of rows in one page of a list.
pub const MAX_PAGE: u32 = 500;

/// Maximum number of decisions in one page of their list. Programs read it, and the entries are
/// small.
pub const MAX_DECISIONS_PAGE: u32 = 1_000;

/// Number of rows in one page of a list if the caller names no limit.
pub const DEFAULT_PAGE: u32 = 100;

/// How long a selector blocks new grants if the admin names no time: enough to find the cause.
pub const DEFAULT_BLOCK_SECONDS: u64 = 3_600;

/// The longest block with an end; a longer one must be `until_lifted`.
pub const MAX_BLOCK_SECONDS: u64 = 31_536_000;

/// Maximum difference between a replica's clock and its database's. The replica is unready above
/// it.
pub const MAX_CLOCK_SKEW_SECONDS: u64 = 1;

/// How long one-time ids, idempotency keys and delegations are kept after their last possible use.
/// They are deleted for good, and a clock that was an hour ahead for a minute could delete them too
/// early.
pub const ONE_TIME_KEPT_SECONDS: u64 = 86_400;

/// Maximum advance, in seconds for each second that a process runs, of the stored horizon up to
/// which rows are deleted. After a day of standstill it takes an hour to catch up. A clock that is
/// a month ahead must stay so for more than a day before rows are deleted because of it.
pub const HORIZON_PACE: u64 = 24;

/// The largest step of a clock, and the largest lag behind a recorded time, without doubt about the
/// clock. Two ready replicas are up to two seconds apart, and a leap second or a time service adds
/// another.
pub const MAX_CLOCK_STEP_SECONDS: u64 = 5;

/// How long evidence is kept as used after its issue, in seconds, regardless of the expiry that it
/// states: two days. The broker refuses evidence older than `max_age_seconds`, which is an hour at
/// most.
pub const MAX_EVIDENCE_SECONDS: u64 = 172_800;

/// The largest burst of log lines about failed attestations for one attestor and reason.
pub const ATTESTATION_LINES_AT_ONCE: u64 = 10;

/// Seconds until one more log line is permitted for such an attestor and reason.
pub const ATTESTATION_LINE_SECONDS: u64 = 6;

/// The size of SQLite's write-ahead log above which the broker truncates it. SQLite itself restarts
/// the log from 4 MiB on if it can.
pub const CUT_WAL_BYTES: u64 = 16 * 1024 * 1024;

/// The size of a write-ahead log that cannot be truncated above which the broker warns.
pub const LARGE_WAL_BYTES: u64 = 64 * 1024 * 1024;
