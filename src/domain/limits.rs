//! The broker's general maxima, default values and similar numbers. Each states its unit, its
//! reason and the consequence beyond it.
//!
//! This file enforces nothing: the user of a constant does, and is tested at the limit and one
//! above it. Maxima that belong to one algorithm or format stand next to it instead.
//!
//! An excess is refused by that user, with its own error. `docs/reference/limits.md` lists the
//! limits for operators.

/// The largest request body. A credential request has about 1 KiB; the rest leaves room for long
/// `authorization_details`. A longer body is refused.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// The largest body of an administrative request: a whole generation with its policies. A longer
/// one is refused.
pub const MAX_ADMIN_BODY_BYTES: usize = 8 * 1024 * 1024;

/// The largest small body: several times a credential request, so nearly every body is small. A
/// larger one is not refused, but takes its memory from another pool.
pub const SMALL_BODY_BYTES: usize = 4 * 1024;

/// The memory for all small bodies that a replica reads or works on. Most are read before it is
/// known who sent them. It is apart from the memory for large ones, so that these keep none of it.
/// At least six thousand bodies fit. Beyond it a body waits for [`BODY_WAIT_SECONDS`].
pub const MAX_SMALL_BODIES_BYTES: usize = 24 * 1024 * 1024;

/// The same for the other bodies of callers. At least 384 fit. Beyond it a body is refused with 503
/// at once.
pub const MAX_LARGE_BODIES_BYTES: usize = 24 * 1024 * 1024;

/// The part of [`MAX_SMALL_BODIES_BYTES`], and that of [`MAX_LARGE_BODIES_BYTES`], for the bodies
/// of one address: a twelfth. The smaller it is, the more addresses an attack needs, and the sooner
/// many honest callers behind one NAT are refused: they can have 2,048 bodies of a kilobyte and 32
/// of the largest at once. Beyond it a body is refused with 503 at once.
pub const MAX_ADDRESS_BODIES_BYTES: usize = 2 * 1024 * 1024;

/// The memory for the bodies of administrative requests that may be larger than
/// [`MAX_BODY_BYTES`]: two of the largest, one from an address. They are read after the caller was
/// authorized. Beyond it a body is refused with 503 at once.
pub const MAX_DOCUMENTS_BYTES: usize = 2 * MAX_ADMIN_BODY_BYTES;

/// How long a small body waits for memory, in seconds: long enough for a burst to pass. A body that
/// waited longer is refused with 503.
pub const BODY_WAIT_SECONDS: u64 = 1;

/// The longest identity or instance: long enough for percent-encoded claims, short enough for an
/// index. Evidence that yields a longer one is refused.
pub const MAX_IDENTITY_BYTES: usize = 512;

/// The longest text of one claim that policy may read. It bounds the work of policy for data that
/// the issuer chose. A token with a longer one is refused.
pub const MAX_CLAIM_BYTES: usize = 1_024;

/// The longest purpose of a task: a few sentences for an approver. A request with a longer one is
/// refused.
pub const MAX_PURPOSE_BYTES: usize = 1_024;

/// The longest reason that an admin gives for a revocation: a sentence or two, which the ledger
/// keeps. A request with a longer one is refused.
pub const MAX_REASON_BYTES: usize = 512;

/// The longest name of a resource, task type or attestor: it must stay readable in log lines,
/// metrics and policies. A configuration or policy with a longer one is refused.
pub const MAX_NAME_BYTES: usize = 64;

/// Maximum number of objects in one `authorization_details`. With [`MAX_ACTIONS`] and
/// [`MAX_LOCATIONS`] it bounds the size of one grant, which every record of the request contains. A
/// request with more is refused.
pub const MAX_DETAILS: usize = 8;

/// Maximum number of actions in one object of `authorization_details`; see [`MAX_DETAILS`].
pub const MAX_ACTIONS: usize = 32;

/// Maximum number of locations in one object of `authorization_details`; see [`MAX_DETAILS`].
pub const MAX_LOCATIONS: usize = 16;

/// The longest text of one action or location: longer than usual ARNs and URLs. A request with a
/// longer one is refused.
pub const MAX_GRANT_TEXT_BYTES: usize = 512;

/// The longest location in a record of an access. The name of an S3 object alone has up to 1,024
/// bytes. A policy that compares a location with a longer text is refused at load.
pub const MAX_LOCATION_BYTES: usize = 2_048;

/// Maximum number of combinations of action and location over all objects of one request. Policy
/// decides about each of them. A request with more is refused as `too-many-rights`.
pub const MAX_EVALUATIONS: usize = 128;

/// Maximum number of wildcards in one action or location. Real ones have a handful; more would make
/// the comparison of two patterns slow. A text with more is refused.
pub const MAX_WILDCARDS: usize = 16;

/// Maximum number of steps for one comparison of two patterns outside a request: about a
/// millisecond. Real patterns take a few hundred. A comparison that needs more gives the safe
/// answer (*not covered*, *overlapping*).
pub const MAX_COMPARISON_STEPS: u64 = 10_000;

/// Maximum number of steps of all comparisons and evaluations in one part of the work on a request:
/// resolving its names, comparing it with its parent's rights, deciding it, computing the effect of
/// observing policies. It limits the CPU time of each part to about ten milliseconds. A request
/// that needs more is refused as `too-many-rights`.
pub const MAX_REQUEST_STEPS: u64 = 100_000;

/// The number of steps that one policy evaluation counts as, by its approximate duration; see
/// [`MAX_REQUEST_STEPS`].
pub const EVALUATION_STEPS: u64 = 200;

/// The deepest nesting of brackets, `if`s and accesses in a policy. Cedar works by recursion, and
/// its stacks are sized for it. A policy beyond it is refused at load.
pub const MAX_POLICY_NESTING: usize = 128;

/// Maximum number of terms in one chain of `&&`, `||`, `+`, `-` and `*` in a policy, including
/// those of the enclosing chains: enough for two thousand locations, each with the locations below
/// it. A policy beyond it is refused at load.
pub const MAX_POLICY_TERMS: usize = 4_096;

/// Maximum depth of a policy's condition after its chains are balanced. The stack for evaluation is
/// sized for it. A deeper policy is refused at load.
pub const MAX_EVALUATION_DEPTH: usize = 192;

/// Maximum number of expressions in the evaluated form of one policy. That form writes the
/// condition of an `if` about requested values twice, so nested ones grow exponentially. A policy
/// beyond it is refused at load.
pub const MAX_POLICY_EXPRESSIONS: usize = 50_000;

/// Maximum number of expressions that the evaluated forms of all policies of a generation may add
/// to the written ones: about 150 MB of memory. A generation beyond it is refused at load.
pub const MAX_ADDED_EXPRESSIONS: usize = 100_000;

/// Maximum number of steps in which each check of a load may compare the registered AWS actions
/// with each other: enough for five hundred patterns, in about half a second. A generation that
/// needs more is refused; only the notes about a generation are incomplete instead.
pub const MAX_LOAD_STEPS: u64 = 5_000_000;

/// The number of problems at which each check of a load stops. Each needs a search through its file
/// for the line, and a longer list does not help its reader. The further ones are not reported.
pub const MAX_PROBLEMS: usize = 100;

/// Maximum time in seconds that a call waits for another generation to load. A replica loads one at
/// a time, because a load can take seconds of CPU time and hundreds of megabytes. A call that
/// waited longer is refused as overload.
pub const LOAD_WAIT_SECONDS: u64 = 5;

/// Maximum number of observing policies for one resource. Each is evaluated in addition to the
/// enforced ones and named in the leaf. A generation with more is refused at load.
pub const MAX_OBSERVED: usize = 16;

/// Maximum number of days between the activation of an observing policy and its last day of
/// observing: half a year. A policy that observes for longer is an unenforced policy and not a
/// trial. Its activation is refused.
pub const MAX_OBSERVED_DAYS: u64 = 180;

/// The longest life of a credential: half a day, like the longest session of an AWS role. A
/// configuration or policy that permits more is refused.
pub const MAX_TTL_SECONDS: u64 = 43_200;

/// The longest session, in seconds, of an AWS role that is assumed with the credentials of another
/// role. AWS refuses a longer one regardless of the role's settings, so a configuration that
/// permits more is refused.
pub const MAX_CHAINED_SESSION_SECONDS: u64 = 3_600;

/// Maximum difference between the expiry of an AWS session and the requested one, in seconds: five
/// minutes of clock difference that AWS permits, and one minute for the call. Beyond it the session
/// counts as one of unknown state, and its credential is not released.
pub const MAX_AWS_EXPIRY_SLACK_SECONDS: u64 = 360;

/// The longest access key id and secret access key that the broker accepts from AWS. Those of AWS
/// have 20 and 40 bytes. A session with longer ones counts as one of unknown state.
pub const MAX_AWS_KEY_BYTES: usize = 1_024;

/// The longest session token that the broker accepts from AWS. Those of AWS have up to about 4 KiB.
/// A session with a longer one counts as one of unknown state.
pub const MAX_AWS_TOKEN_BYTES: usize = 16 * 1_024;

/// The longest life of a task: a week. It bounds how long the broker must keep its records of a
/// task. A configuration that permits more is refused; split a longer job into several tasks.
pub const MAX_DEADLINE_SECONDS: u64 = 604_800;

/// The shortest heartbeat interval that a task may request. Below a second, network delays would
/// end tasks. Shorter ones are refused.
pub const MIN_HEARTBEAT_SECONDS: u64 = 1;

/// The longest heartbeat interval that a task may request: an hour. Until it has passed, a task
/// whose workload is gone counts as alive. Longer ones are refused.
pub const MAX_HEARTBEAT_SECONDS: u64 = 3_600;

/// Maximum depth of a chain of tasks, the root included. It limits the recursive query at every
/// use. A deeper task is refused as `too-deep`.
pub const MAX_CHAIN_DEPTH: u8 = 8;

/// The largest number of credentials that a task type may permit to one task and its descendants.
/// One revocation ends them all, so it bounds the work of that revocation. A configuration that
/// permits more is refused.
pub const MAX_SESSIONS_PER_TASK: u32 = 10_000;

/// Maximum number of decisions that a replica keeps for reuse by the active generation: a working
/// set of 10,000 workloads with one question each. Beyond it the least recently used ones leave.
pub const MAX_REMEMBERED_DECISIONS: u64 = 10_000;

/// Maximum size of these decisions in bytes. It bounds the memory when refusals with long offers
/// fill the cache.
pub const MAX_REMEMBERED_BYTES: u64 = 16 << 20;

/// How often one `Idempotency-Key` may supersede its credential: enough for a caller that lost
/// several answers. Beyond it the request is refused as already issued.
pub const MAX_SUPERSEDES: u32 = 3;

/// How long an `Idempotency-Key` is kept after its first request: a day, longer than a caller
/// retries. After that it is no longer recognised.
pub const IDEMPOTENCY_SECONDS: u64 = 86_400;

/// The longest `Idempotency-Key`: several times the length of a UUID. A request with a longer one
/// is refused.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 128;

/// The longest life of a delegation token: five minutes, because it only has to reach its receiver.
/// It is also the default. A request for a longer one is refused.
pub const MAX_DELEGATION_SECONDS: u64 = 300;

/// Maximum number of published ledger keys. Each of them signs every checkpoint, and readers check
/// at most 32 signatures of a note, including those of witnesses. Three rotations within the
/// overlap leave room for an emergency. A further rotation is refused until the oldest key leaves.
pub const MAX_LEDGER_KEYS: usize = 4;

/// Maximum number of published access-token keys at a rotation on demand; a further one is refused.
/// Verifiers limit the keys of a set: the broker's own limit is 100.
pub const MAX_PUBLISHED_KEYS: usize = 16;

/// The broker becomes unready this many seconds before the signing ledger key ends: a week, which
/// leaves time for a rotation. A log whose key has ended cannot continue.
pub const LEDGER_KEY_WARNING_SECONDS: u64 = 604_800;

/// Maximum number of entries that wait for the ledger. A full queue refuses with 503 at once: a
/// longer one would only hide the overload.
pub const MAX_QUEUE_ENTRIES: usize = 4_096;

/// Maximum number of further waiting entries that only consume evidence. They have slots of their
/// own, so that failed calls do not depend on the number of waiting decisions. Beyond it the call
/// is refused with 503, and the replica keeps the ids ([`MAX_UNRECORDED_EVIDENCE`]).
pub const MAX_QUEUE_CONSUMPTIONS: usize = 4_096;

/// Maximum number of one-time ids that a replica keeps in memory because their use could not be
/// recorded. At the maximum it accepts no calls that present evidence.
pub const MAX_UNRECORDED_EVIDENCE: usize = 100_000;

/// Maximum number of endings, revocations and other acts that wait for the ledger. They have a
/// lane of their own, so that they neither wait behind decisions nor are refused because of them.
pub const MAX_QUEUE_ACTS: usize = 4_096;

/// Maximum number of these one-time ids ([`MAX_UNRECORDED_EVIDENCE`]) that one batch of the ledger
/// records, so that they do not delay the batch's entries. The rest waits for the next batches.
pub const MAX_BATCH_UNRECORDED: usize = 256;

/// Maximum number of bytes of leaves that wait for the ledger, because entries differ in size and
/// each lane is in memory. A full lane refuses with 503.
pub const MAX_QUEUE_BYTES: usize = 16 * 1024 * 1024;

/// Maximum number of entries in one batch of the ledger, so that its transaction stays short. The
/// rest waits for the next batch.
pub const MAX_BATCH_ENTRIES: usize = 256;

/// The largest leaf. C2SP entry bundles hold a 16-bit length; leaves normally have less than 4 KiB.
/// An operation whose leaf would be larger is refused.
pub const MAX_LEAF_BYTES: usize = 65_535;

/// Maximum number of tasks that one leaf ends. Such a leaf has less than 11 KiB, and the ledger's
/// lock is held for some milliseconds while they are ended.
pub const MAX_TASKS_IN_LEAF: usize = 256;

/// Maximum number of rows in one page of a list, so that one answer stays small. A request for more
/// is refused.
pub const MAX_PAGE: u32 = 500;

/// Maximum number of decisions in one page of their list. Programs read it, and the entries are
/// small. A request for more is refused.
pub const MAX_DECISIONS_PAGE: u32 = 1_000;

/// Number of rows in one page of a list if the caller names no limit: enough for a person.
pub const DEFAULT_PAGE: u32 = 100;

/// How long a selector blocks new grants if the admin names no time: enough to find the cause.
pub const DEFAULT_BLOCK_SECONDS: u64 = 3_600;

/// The longest block with an end: a year. A request for a longer one is refused; it must be
/// `until_lifted`.
pub const MAX_BLOCK_SECONDS: u64 = 31_536_000;

/// The difference between a replica's clock and its database's from which on the replica is
/// unready. Synchronised clocks are a few milliseconds apart, and times in the ledger must stay
/// comparable between replicas.
pub const MAX_CLOCK_SKEW_SECONDS: u64 = 1;

/// How long one-time ids, idempotency keys and delegations are kept after their last possible use:
/// a day. They are deleted for good, and a clock that was an hour ahead for a minute could delete
/// them too early.
pub const ONE_TIME_KEPT_SECONDS: u64 = 86_400;

/// How long a recorded ending matters at most, in seconds: the longest life of a task, of a
/// credential, and of used evidence.
pub const ENDING_SECONDS: u64 = MAX_DEADLINE_SECONDS + MAX_TTL_SECONDS + ONE_TIME_KEPT_SECONDS;

/// How long the rows of the table of endings are kept, in seconds: a day. A follower reads each row
/// within a second, and one that lags further starts again.
pub const ENDINGS_KEPT_SECONDS: u64 = 86_400;

/// Maximum advance, in seconds for each second that a process runs, of the stored horizon up to
/// which rows are deleted. After a day of standstill it takes an hour to catch up. A clock that is
/// a month ahead must stay so for more than a day before rows are deleted because of it.
pub const HORIZON_PACE: u64 = 24;

/// The largest step of a clock, and the largest lag behind a recorded time, without doubt about the
/// clock. Two ready replicas are up to two seconds apart, and a leap second or a time service adds
/// another. Beyond it the replica closes.
pub const MAX_CLOCK_STEP_SECONDS: u64 = 5;

/// The most sessions of a revocation that are counted. An answer says that there are more. A
/// million would take seconds of the database during an incident.
pub const MAX_COUNTED_SESSIONS: u32 = 100_000;

/// How long evidence is kept as used after its issue, in seconds, regardless of the expiry that it
/// states: two days. The broker refuses evidence older than `max_age_seconds`, which is an hour at
/// most, so an id that is deleted after that cannot be used again, even if clocks were wrong.
pub const MAX_EVIDENCE_SECONDS: u64 = 172_800;

/// The largest burst of log lines about failed attestations for one attestor and reason. Every
/// caller can cause such failures, and must not be able to fill the log. Further lines are omitted,
/// and the next line states their number.
pub const ATTESTATION_LINES_AT_ONCE: u64 = 10;

/// Seconds until one more log line is permitted for such an attestor and reason: ten in a minute.
pub const ATTESTATION_LINE_SECONDS: u64 = 6;

/// The size of SQLite's write-ahead log from which on the broker truncates it. SQLite itself
/// restarts the log from 4 MiB on if no reader needs its content.
pub const CUT_WAL_BYTES: u64 = 16 * 1024 * 1024;

/// The size of a write-ahead log that cannot be truncated from which on the broker warns, once a
/// minute.
pub const LARGE_WAL_BYTES: u64 = 64 * 1024 * 1024;
