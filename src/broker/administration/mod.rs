//! Administration: the acts of admins on the broker itself, and the records that auditors read.

mod bindings;
pub mod generations;
pub mod records;
pub mod succession;
pub mod time;
pub mod workload_keys;

use std::sync::Arc;

use super::access::Access;
use super::core::Core;
use super::generations::Generations;

/// The acts of admins on roles, workload keys, generations and the clock, and the records that
/// auditors read.
pub struct Administration {
    core: Core,
    access: Arc<Access>,
    generations: Arc<Generations>,
}

impl Administration {
    pub(super) fn new(core: Core, access: Arc<Access>, generations: Arc<Generations>) -> Self {
        Self {
            core,
            access,
            generations,
        }
    }
}
