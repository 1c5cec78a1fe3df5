//! So many a second, and a burst.

use std::time::Instant;

/// A token bucket.
pub(super) struct Budget {
    rate: f64,
    burst: f64,
    tokens: f64,
    last: Option<Instant>,
}

impl Budget {
    pub(super) fn new(rate: u32, burst: u32) -> Self {
        Self {
            rate: rate.into(),
            burst: burst.into(),
            tokens: burst.into(),
            last: None,
        }
    }

    /// Whether there is one left now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = self.last.map_or(0.0, |last| (now - last).as_secs_f64());
        self.last = Some(now);
        self.tokens = passed.mul_add(self.rate, self.tokens).min(self.burst);
        let has_one = self.tokens >= 1.0;
        if has_one {
            self.tokens -= 1.0;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut budget = Budget::new(10, 5);
        let start = Instant::now();
        let taken = |budget: &mut Budget, at| (0..100).filter(|_| budget.take(at)).count();
        assert_eq!(taken(&mut budget, start), 5);
        assert_eq!(taken(&mut budget, start + Duration::from_millis(300)), 3);
        assert_eq!(taken(&mut budget, start + Duration::from_secs(60)), 5);
    }
}
