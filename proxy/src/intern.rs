//! Shared copies of values that occur many times: node and zone names, hints.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;

use crate::hash::HashSet;

/// Below this number of values nothing is thrown away.
const SMALL: usize = 64;

/// Values, each held once. Those that nobody else holds go when the pool has doubled.
#[derive(Debug)]
pub(crate) struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>>,
    limit: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self {
            values: HashSet::default(),
            limit: SMALL,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    /// The shared copy of the value.
    pub(crate) fn intern(&mut self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        if let Some(shared) = self.values.get(value.borrow()) {
            return Arc::clone(shared);
        }
        if self.values.len() >= self.limit {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.limit = SMALL.max(2 * self.values.len());
        }
        let shared: Arc<T> = value.into();
        self.values.insert(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one() {
        let mut pool = Pool::<str>::default();
        let one = pool.intern("node-1");
        assert!(Arc::ptr_eq(&one, &pool.intern("node-1")));
        assert!(!Arc::ptr_eq(&one, &pool.intern("node-2")));
    }

    #[test]
    fn values_that_nobody_holds_do_not_pile_up() {
        let mut pool = Pool::<str>::default();
        let held = pool.intern("held");
        for i in 0..100 * SMALL {
            pool.intern(format!("node-{i}").as_str());
        }
        assert!(pool.values.len() <= SMALL, "{}", pool.values.len());
        assert!(Arc::ptr_eq(&held, &pool.intern("held")));
    }
}
