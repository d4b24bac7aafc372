//! The composition root: puts a broker together from its configuration, and takes it apart in the
//! right order.
//!
//! Start: store, its claim and clock; sealing keys; our own keys, made on the first start; the
//! ledger, checked against the checkpoint that was kept outside the store; the broker; the
//! generation that decides; the sweeper; the listener. Whatever cannot be relied on stops the start
//! with a message that says what to do.
//!
//! Stop: unready, drain, stop accepting, tracked requests finish, the ledger drains, the store is
//! closed.
