//! Random numbers that can be had again: every run says which seed it had.

use std::time::{SystemTime, UNIX_EPOCH};

/// Numbers that look random and are the same for the same seed (Knuth's MMIX generator).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The numbers of the seed in that environment variable, else of one that the clock
    /// gives. Prints which.
    pub fn of_run(variable: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seed = number(variable, now.map_or(0, |now| u64::from(now.subsec_nanos())));
        eprintln!("{variable}={seed}");
        let mut random = Self(seed);
        // Neighbouring seeds begin alike.
        for _ in 0..4 {
            random.below(2);
        }
        random
    }

    /// One of the numbers below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of these; there is at least one.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// At most `count` of these, in random order.
    pub fn sample<T: Clone>(&mut self, from: &[T], count: usize) -> Vec<T> {
        let mut left = from.to_vec();
        let count = count.min(left.len());
        (0..count)
            .map(|_| left.swap_remove(self.below(left.len())))
            .collect()
    }
}

/// The number in an environment variable: how long bounded runs go.
pub fn number(variable: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else {
        return default;
    };
    text.parse()
        .unwrap_or_else(|_| panic!("{variable} is {text:?}: give a number"))
}
