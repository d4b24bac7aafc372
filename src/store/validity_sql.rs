//! SQL fragments that judge validity, for statements that filter or count more rows than can be
//! read.
//!
//! Each mirrors one function of [`crate::domain::validity`], or one of
//! [`Cutoff`](crate::domain::cutoff::Cutoff), and its comment names it. `tests/it/validity/`
//! checks on both databases that the statements agree with these functions. `$of` is empty or a
//! table's alias with a dot; `$at` and `$now` are parameters.
//!
//! The rule: a fragment is true exactly for the rows for which its function is true. Change both,
//! or neither. A fragment runs nothing and never fails; a NULL in a row counts as the function
//! counts `None`. The other files of `store` put the fragments into their statements.

/// `!SessionLife::is_expired`.
macro_rules! unexpired {
    ($of:literal, $now:literal) => {
        concat!($of, "expires_at > ", $now)
    };
}

/// `SessionLife::may_stand`.
macro_rules! may_stand {
    ($of:literal, $now:literal) => {
        concat!(
            $of,
            "state <> 'ended' AND ",
            $crate::store::validity_sql::unexpired!($of, $now)
        )
    };
}

/// `SessionLife::lived_at`.
macro_rules! lived {
    ($of:literal, $at:literal) => {
        concat!(
            $crate::store::validity_sql::unexpired!($of, $at),
            " AND (",
            $of,
            "state <> 'ended' OR ",
            $of,
            "ended_at >= ",
            $at,
            ")"
        )
    };
}

/// `TaskLife::lived_at`.
macro_rules! task_lived {
    ($of:literal, $at:literal) => {
        concat!(
            "(",
            $of,
            "state = 'open' OR ",
            $of,
            "ended_at >= ",
            $at,
            ") AND ",
            $of,
            "deadline > ",
            $at
        )
    };
}

/// `TaskLife::state_at` is `Open`. `$silent_at` is the end of the time without a heartbeat that the
/// task is allowed.
macro_rules! task_open {
    ($silent_at:literal, $now:literal) => {
        concat!(
            "state = 'open' AND deadline > ",
            $now,
            " AND (heartbeat_seconds IS NULL OR ",
            $silent_at,
            " > ",
            $now,
            ")"
        )
    };
}

/// `TaskLife::expires_at`. `$silent_at` is the end of the time without a heartbeat that the task is
/// allowed.
macro_rules! task_expires_at {
    ($silent_at:literal) => {
        concat!(
            "(CASE WHEN heartbeat_seconds IS NULL OR deadline < ",
            $silent_at,
            " THEN deadline ELSE ",
            $silent_at,
            " END)"
        )
    };
}

/// The records of a task and of every task above it.
macro_rules! chain {
    ($task:literal) => {
        concat!(
            "chain AS (SELECT id, parent_id, state FROM task WHERE id = ",
            $task,
            " UNION SELECT t.id, t.parent_id, t.state FROM task t JOIN chain ON t.id = chain.parent_id)"
        )
    };
}

/// No task of `chain` was ended on record (`TaskChain::ended`, apart from the clock).
macro_rules! chain_open {
    () => {
        "NOT EXISTS (SELECT 1 FROM chain WHERE chain.state <> 'open')"
    };
}

/// `SessionLife::is_cut_off_everywhere`. `$elapsed` is the number of whole seconds since the cutoff
/// was committed; negative before it.
macro_rules! cut_off_everywhere {
    ($now:literal, $elapsed:literal) => {
        concat!(
            "(state = 'ended' OR expires_at <= ",
            $now,
            " OR (state = 'active' AND ",
            $elapsed,
            " >= CASE WHEN class = 'immediate' THEN 0 WHEN ",
            $crate::store::validity_sql::polled!(),
            " THEN bound_seconds END))"
        )
    };
}

/// `Session::is_in_status_lists`. It must equal the condition of the index `session_listed`, so
/// that SQLite and PostgreSQL use that index.
macro_rules! polled {
    () => {
        "in_status_lists"
    };
}

/// `Session::is_active_at_back_end`. It must equal the condition of the index `session_external`.
macro_rules! active_at_back_end {
    () => {
        "state = 'active' AND class = 'bounded' AND NOT is_local"
    };
}

/// `Cutoff::blocks`. It is never NULL.
macro_rules! blocks {
    ($now:literal) => {
        concat!(
            "lifted_idx IS NULL AND (until_lifted OR (blocked_until IS NOT NULL AND blocked_until > ",
            $now,
            "))"
        )
    };
}

/// No cutoff and no activation came since the log had `$as_of` leaves.
macro_rules! undisturbed_since {
    ($as_of:literal) => {
        concat!(
            "NOT EXISTS (SELECT 1 FROM cutoff WHERE idx >= ",
            $as_of,
            ") AND NOT EXISTS (SELECT 1 FROM activation WHERE idx >= ",
            $as_of,
            ")"
        )
    };
}

pub(crate) use {
    active_at_back_end, blocks, chain, chain_open, cut_off_everywhere, lived, may_stand, polled,
    task_expires_at, task_lived, task_open, undisturbed_since, unexpired,
};
