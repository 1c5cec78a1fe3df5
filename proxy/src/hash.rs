//! The hash maps of this crate.

/// With a hash that is quick for short keys: a cold start looks up a hundred thousand. It
/// is seeded at random, so nobody can choose names that collide.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// The same for a set.
pub(crate) type HashSet<T> = std::collections::HashSet<T, foldhash::fast::RandomState>;
