//! Backoff: how long to wait before the next start after an instance or a worker has failed.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// The time after which an instance that stays up has recovered: its next failure counts as the
/// first.
pub const RECOVERED_AFTER: Duration = Duration::from_secs(30);

/// Returns the delay after `failures` failures in a row: 0.1 s, doubled up to 30 s, and varied by
/// up to a quarter so that services that failed together do not restart together. The variation
/// depends only on `seed`, so callers stay pure.
pub fn delay(failures: u32, seed: u64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let delay = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    // Fibonacci hashing spreads consecutive seeds evenly over the range.
    let spread = (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as f64 / f64::from(u32::MAX);
    delay.mul_f64(0.75 + spread / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn stays_within_a_quarter_of_the_doubled_delay(failures in 1u32..100, seed: u64) {
            let exact = 0.1 * 2f64.powi(failures.min(20) as i32 - 1);
            let exact = exact.min(30.0);
            let got = delay(failures, seed).as_secs_f64();
            prop_assert!(got >= exact * 0.74 && got <= exact * 1.26, "{got} for {exact}");
        }
    }
}
