//! A device that several sessions use in turn, and its memory while it is needed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Backend, BufferId};
use crate::Result;

/// A device that several sessions use in turn.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<Mutex<Box<dyn Backend>>>);

impl Shared {
    pub(super) fn new(backend: Box<dyn Backend>) -> Self {
        Shared(Arc::new(Mutex::new(backend)))
    }

    /// The device, for as long as the result lives. A panic elsewhere leaves it as good as it was.
    pub(super) fn lock(&self) -> MutexGuard<'_, Box<dyn Backend>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer that is given back when it is dropped.
    pub(super) fn alloc(&self, name: &str, bytes: u64) -> Result<Allocation> {
        let id = self.lock().alloc(name, bytes)?;
        Ok(Allocation { id, device: self.clone() })
    }
}

/// A buffer, given back on drop.
#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) id: BufferId,
    device: Shared,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.device.lock().free(self.id);
    }
}
