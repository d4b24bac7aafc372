//! Every maximum, with its reason. Each is tested at the limit and one past it.

/// The largest request body. A credential request is about 1 KiB; the rest is room for long
/// `authorization_details`.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// The largest body of an administrative request: a whole generation with its policies.
pub const MAX_ADMIN_BODY_BYTES: usize = 8 * 1024 * 1024;

/// An identity or instance. Long enough for percent-encoded claims, short enough for an index.
pub const MAX_IDENTITY_BYTES: usize = 512;

/// One claim's text as policy may see it.
pub const MAX_CLAIM_BYTES: usize = 1_024;

/// The free text of a task's purpose: a few sentences for an approver.
pub const MAX_PURPOSE_BYTES: usize = 1_024;

/// The reason that an admin gives for a revocation.
pub const MAX_REASON_BYTES: usize = 512;

/// A name of a resource, task type or attestor in the configuration.
pub const MAX_NAME_BYTES: usize = 64;

/// Objects in one `authorization_details`.
pub const MAX_DETAILS: usize = 8;

/// Actions in one object of `authorization_details`.
pub const MAX_ACTIONS: usize = 32;

/// Locations in one object of `authorization_details`.
pub const MAX_LOCATIONS: usize = 16;

/// One action's or location's text.
pub const MAX_GRANT_TEXT_BYTES: usize = 512;

/// A place in a record of what was done. An object's name on S3 alone has up to 1,024 bytes.
pub const MAX_PLACE_BYTES: usize = 2_048;

/// Policy evaluations for one request: one per action and location of each object. It bounds the
/// CPU that one request can ask for to a few milliseconds.
pub const MAX_EVALUATIONS: usize = 128;

/// Wildcards in one action or location. Real ones have a handful; more would make comparing two of
/// them slow.
pub const MAX_WILDCARDS: usize = 16;

/// Steps of one comparison of two patterns: about a millisecond. Those of real patterns take
/// a few hundred.
pub const MAX_COMPARISON_STEPS: u64 = 10_000;

/// Steps of all comparisons and evaluations in one pass over a request: resolving it, finding what
/// covers it in its parent, deciding it. It bounds the CPU time of a pass to about ten milliseconds.
pub const MAX_REQUEST_STEPS: u64 = 100_000;

/// What one evaluation of policies counts for beside comparisons: about as long as so many steps.
pub const EVALUATION_STEPS: u64 = 200;

/// How deep brackets, `if`s and accesses may nest in a policy.
pub const MAX_POLICY_NESTING: usize = 128;

/// Terms that one chain of `&&`, `||`, `+`, `-` and `*` in a policy may have, those of the chains
/// around it included: room for two thousand places, each with what is below it.
pub const MAX_POLICY_TERMS: usize = 4_096;

/// Levels of a policy's condition after its chains were balanced. The stack for evaluation is made
/// for it.
pub const MAX_EVALUATION_DEPTH: usize = 192;

/// Expressions that one policy may become where it is put as it is evaluated. An `if` in the condition of
/// an `if` doubles what is within.
pub const MAX_POLICY_EXPRESSIONS: usize = 50_000;

/// Expressions that the policies of a generation may become together beyond those that are written in
/// them: about a hundred and fifty megabytes.
pub const MAX_ADDED_EXPRESSIONS: usize = 100_000;

/// Steps in which a load may compare the registered actions of AWS with each other: room for five
/// hundred patterns, in about half a second.
pub const MAX_LOAD_STEPS: u64 = 5_000_000;

/// Problems that a load tells of. Each costs a look through its file for the line.
pub const MAX_PROBLEMS: usize = 100;

/// How long a call may wait until another generation is loaded, in seconds. A replica loads one at a time.
pub const LOAD_WAIT_SECONDS: u64 = 5;

/// Policies about one resource that merely observe: each is evaluated beside those that decide, and
/// named in the leaf.
pub const MAX_OBSERVED: usize = 16;

/// How far ahead of its activation the last day may be on which a policy merely observes: half a
/// year. What is tried for longer is not tried, but left unenforced.
pub const MAX_OBSERVED_DAYS: u64 = 180;

/// The longest life of a credential: half a day, as an AWS role's longest session.
pub const MAX_TTL_SECONDS: u64 = 43_200;

/// The longest session of an AWS role that is assumed with the credentials of another role, in
/// seconds. AWS refuses a longer one, whatever the role allows.
pub const MAX_CHAINED_SESSION_SECONDS: u64 = 3_600;

/// How far the expiry of an AWS session may be from what was asked for, in seconds: the five minutes
/// by which AWS lets clocks differ, and the minute that a call may take.
pub const MAX_AWS_EXPIRY_SLACK_SECONDS: u64 = 360;

/// The longest access key id and secret access key that are taken from AWS. Theirs have 20 and 40
/// bytes.
pub const MAX_AWS_KEY_BYTES: usize = 1_024;

/// The longest session token that is taken from AWS. Theirs have up to about 4 KiB.
pub const MAX_AWS_TOKEN_BYTES: usize = 16 * 1_024;

/// The longest life of a task: a week. A longer job is several tasks.
pub const MAX_DEADLINE_SECONDS: u64 = 604_800;

/// The shortest and longest silence that a task may ask for. Below a second the network decides.
pub const MIN_HEARTBEAT_SECONDS: u64 = 1;
/// See [`MIN_HEARTBEAT_SECONDS`].
pub const MAX_HEARTBEAT_SECONDS: u64 = 3_600;

/// Generations of tasks, the root included. It bounds the recursive query of every use.
pub const MAX_CHAIN_DEPTH: u8 = 8;

/// The largest number of credentials that one task type may allow to one task and its descendants.
pub const MAX_SESSIONS_PER_TASK: u32 = 10_000;

/// How often one `Idempotency-Key` may supersede its credential.
pub const MAX_SUPERSEDES: u32 = 3;

/// How long an `Idempotency-Key` is kept.
pub const IDEMPOTENCY_SECONDS: u64 = 86_400;

/// An `Idempotency-Key`'s length.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 128;

/// How long a delegation token may wait for its child.
pub const MAX_DELEGATION_SECONDS: u64 = 300;

/// Ledger keys that are published at once. Each of them signs every checkpoint, and readers look at no
/// more than 32 signatures on a note, those of witnesses included. Three rotations within the overlap
/// leave room for an emergency.
pub const MAX_LEDGER_KEYS: usize = 4;

/// Access-token keys that a rotation on demand may have published at once. Verifiers bound the keys of
/// a set: ours takes 100.
pub const MAX_PUBLISHED_KEYS: usize = 16;

/// How long before its end the ledger key that signs makes the broker unready, in seconds: a week.
/// A log whose key ended has none to go on with.
pub const LEDGER_KEY_WARNING_SECONDS: u64 = 604_800;

/// Entries that wait for the ledger. Full is 503 at once: a longer queue only hides the overload.
pub const MAX_QUEUE_ENTRIES: usize = 4_096;

/// Further entries that wait for the ledger, if they only use evidence up: calls that come to
/// nothing must not depend on how many decisions wait.
pub const MAX_QUEUE_CONSUMPTIONS: usize = 4_096;

/// One-time ids that a replica keeps because their use could not be recorded. With as many it takes
/// no further calls that present evidence.
pub const MAX_UNRECORDED_EVIDENCE: usize = 100_000;

/// One-time ids of [`MAX_UNRECORDED_EVIDENCE`] that one batch of the ledger records.
pub const MAX_BATCH_UNRECORDED: usize = 256;

/// Bytes that wait for the ledger.
pub const MAX_QUEUE_BYTES: usize = 16 * 1024 * 1024;

/// Entries in one batch of the ledger.
pub const MAX_BATCH_ENTRIES: usize = 256;

/// One leaf. C2SP entry bundles hold a 16-bit length; ours are normally under 4 KiB.
pub const MAX_LEAF_BYTES: usize = 65_535;

/// Rows in one page of a listing.
pub const MAX_PAGE: u32 = 500;

/// Decisions in one page of their listing: they are read by programs, and small.
pub const MAX_DECISIONS_PAGE: u32 = 1_000;

/// Rows in one page of a listing when the caller names no limit.
pub const DEFAULT_PAGE: u32 = 100;

/// How long a selector blocks new grants when the admin says nothing: time to find the cause.
pub const DEFAULT_BLOCK_SECONDS: u64 = 3_600;

/// The longest block with an end; longer is `until_lifted`.
pub const MAX_BLOCK_SECONDS: u64 = 31_536_000;

/// How far a replica's clock may be from its database's before it is unready.
pub const MAX_CLOCK_SKEW_SECONDS: u64 = 1;

/// How much longer than anybody could use them one-time ids, idempotency keys and delegations are
/// kept: they are forgotten for good, and by a clock that was an hour ahead for a minute it may be too
/// early.
pub const ONE_TIME_KEPT_SECONDS: u64 = 86_400;

/// How many seconds the stored horizon, up to which rows are deleted, may move on in each second for
/// which a process runs. After a day of standstill it takes an hour to catch up; a clock that is a
/// month ahead has to be so for more than a day before anything is deleted by it.
pub const HORIZON_PACE: u64 = 24;

/// How far a clock may be set at once, or lie behind a time on record, without being in doubt. Two
/// ready replicas are up to two seconds apart, and a leap second or a time service adds another.
pub const MAX_CLOCK_STEP_SECONDS: u64 = 5;

/// For how long after it was issued evidence is kept as used, in seconds, whatever end it says itself:
/// two days. It is refused for its age after `max_age_seconds`, which is an hour at most.
pub const MAX_EVIDENCE_SECONDS: u64 = 172_800;

/// Log lines of failed attestations that one attestor and reason may have at once.
pub const ATTESTATION_LINES_AT_ONCE: u64 = 10;

/// Seconds after which such an attestor and reason may have one line more.
pub const ATTESTATION_LINE_SECONDS: u64 = 6;

/// The size of SQLite's write-ahead log from which on it is cut off. SQLite itself begins it anew from
/// 4 MiB on, where it can.
pub const CUT_WAL_BYTES: u64 = 16 * 1024 * 1024;

/// The size from which on a write-ahead log that cannot be cut off is told of.
pub const LARGE_WAL_BYTES: u64 = 64 * 1024 * 1024;
