//! The words and shapes of the HTTP interface, which its server and its clients share.

pub mod words;
