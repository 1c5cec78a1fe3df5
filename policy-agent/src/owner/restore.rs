//! The time before the sources have listed everything, where there are objects of an earlier
//! run to fall back on.
//!
//! What sources say is put aside until every kind has been listed, and then taken as one
//! change: rules of a moment that never was, such as today's pods with last week's policies,
//! are never written.

use std::time::SystemTime;

use dataplane::kernel::{Kernel, KernelError};
use dataplane::layout::policy;

use super::Owner;
use crate::event::Event;
use crate::journal::Restored;

/// Reads the objects of an earlier run, if there are any. Not before they are needed: it takes
/// time and memory.
pub type Earlier = Box<dyn FnOnce() -> Option<Restored> + Send>;

/// What to enforce while the sources are silent.
#[derive(Default)]
pub(super) enum Fallback {
    /// Nothing: the tables are left as they are.
    #[default]
    None,
    /// Objects that are not enforced yet.
    Ready(Earlier, Vec<Event>),
    /// Objects that are enforced, as of then.
    Enforced(SystemTime, Vec<Event>),
}

impl<K: Kernel> Owner<K> {
    /// Has objects of an earlier run ready for [`Owner::restore`]. To be called before the
    /// first event.
    pub fn fall_back_on(&mut self, earlier: Earlier) {
        self.fallback = Fallback::Ready(earlier, Vec::new());
    }

    /// Enforces the objects of an earlier run until every kind has been listed, where the
    /// kernel holds no policies: else what it holds is newer. Returns whether it does so.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn restore(&mut self) -> Result<bool, KernelError> {
        if !matches!(self.fallback, Fallback::Ready(..)) {
            return Ok(false);
        }
        let has_policies = policy::generation(&self.observe()?).is_some();
        let Fallback::Ready(earlier, aside) = std::mem::take(&mut self.fallback) else {
            return Ok(false);
        };
        let restored = if has_policies { None } else { earlier() };
        let Some(restored) = restored else {
            // What was put aside needs no care any more: nothing is written before all is there.
            aside.into_iter().for_each(|event| self.take(event));
            return Ok(false);
        };
        let listed = std::mem::take(&mut self.listed);
        for event in restored.events {
            self.take(event);
        }
        self.listed = listed;
        self.fallback = Fallback::Enforced(restored.as_of, aside);
        Ok(true)
    }

    /// As of when objects of an earlier run are enforced, if they are.
    pub const fn enforces_as_of(&self) -> Option<SystemTime> {
        match &self.fallback {
            Fallback::Enforced(as_of, _) => Some(*as_of),
            _ => None,
        }
    }

    /// Puts the event aside where there is something to fall back on. Returns what is to be
    /// taken now.
    pub(super) fn put_aside(&mut self, event: Event) -> Vec<Event> {
        let (Fallback::Ready(_, aside) | Fallback::Enforced(_, aside)) = &mut self.fallback else {
            return vec![event];
        };
        if let Event::Reset(kind, _) = &event {
            self.listed.insert(*kind);
        }
        aside.push(event);
        if !self.has_listed_all() {
            return Vec::new();
        }
        match std::mem::take(&mut self.fallback) {
            Fallback::Ready(_, aside) | Fallback::Enforced(_, aside) => aside,
            Fallback::None => Vec::new(),
        }
    }
}
