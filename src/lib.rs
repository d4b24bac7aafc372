//! Taskpass.
