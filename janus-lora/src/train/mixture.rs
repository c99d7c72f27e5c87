//! From which table each row of a step comes.
//!
//! `sample` gives the next row to the table that lags furthest behind its share, so that shares hold within one row at
//! any time, whatever the seed; `each` gives every table its own batch.

use crate::recipe::Mixture;

/// Tables of the rows of a micro-batch.
#[derive(Debug, Clone)]
pub struct Mixer {
    mixture: Mixture,
    shares: Vec<f64>,
    given: Vec<u64>,
}

impl Mixer {
    /// For tables of these weights.
    pub fn new(mixture: Mixture, weights: &[f64]) -> Self {
        let total: f64 = weights.iter().sum();
        Self { mixture, shares: weights.iter().map(|w| w / total).collect(), given: vec![0; weights.len()] }
    }

    /// How many rows of each table the next micro-batch of `rows` has.
    pub fn next(&mut self, rows: usize) -> Vec<usize> {
        let mut counts = vec![0; self.shares.len()];
        match self.mixture {
            Mixture::Each => counts.fill(rows),
            Mixture::Sample => {
                for _ in 0..rows {
                    let total = self.given.iter().sum::<u64>() + 1;
                    let lag = |i: usize| self.shares[i] * total as f64 - self.given[i] as f64;
                    let table = (0..counts.len()).reduce(|a, b| if lag(b) > lag(a) { b } else { a }).unwrap_or(0);
                    counts[table] += 1;
                    self.given[table] += 1;
                }
            }
        }
        counts
    }

    /// Rows given so far of each table; stays at zero where every table gives the same.
    pub fn given(&self) -> &[u64] {
        &self.given
    }

    /// Goes on after so many rows of each table. `false`, and nothing changes, where the numbers are not those of its
    /// tables or too large to be counted on.
    #[must_use]
    pub fn restore(&mut self, given: &[u64]) -> bool {
        let countable =
            given.iter().try_fold(0u64, |sum, rows| sum.checked_add(*rows)).is_some_and(|sum| sum < 1 << 62);
        let fits = given.len() == self.given.len() && countable;
        if fits {
            self.given.copy_from_slice(given);
        }
        fits
    }

    /// Rows that table `table` gives to a step of `rows` rows, on average.
    pub fn rows_per_step(&self, table: usize, rows: usize) -> f64 {
        match self.mixture {
            Mixture::Each => rows as f64,
            Mixture::Sample => self.shares[table] * rows as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_hold_within_one_row_at_any_time() {
        let mut mixer = Mixer::new(Mixture::Sample, &[5.0, 1.0, 4.0]);
        let mut totals = [0usize; 3];
        for batch in 1..=200 {
            for (total, count) in totals.iter_mut().zip(mixer.next(3)) {
                *total += count;
            }
            for (total, share) in totals.iter().zip([0.5, 0.1, 0.4]) {
                assert!((*total as f64 - share * (3 * batch) as f64).abs() <= 1.0 + 1e-9, "{totals:?} after {batch}");
            }
        }
    }

    #[test]
    fn a_mixer_goes_on_where_another_stood() {
        let mut whole = Mixer::new(Mixture::Sample, &[5.0, 1.0, 4.0]);
        for _ in 0..7 {
            whole.next(3);
        }
        let mut resumed = Mixer::new(Mixture::Sample, &[5.0, 1.0, 4.0]);
        assert!(resumed.restore(whole.given()));
        for _ in 0..20 {
            assert_eq!(resumed.next(3), whole.next(3));
        }
        assert!(!resumed.restore(&[1, 2]) && !resumed.restore(&[u64::MAX, 1, 1]));
        assert_eq!(resumed.given(), whole.given());
    }

    #[test]
    fn each_gives_every_table_a_batch() {
        assert_eq!(Mixer::new(Mixture::Each, &[5.0, 1.0]).next(3), [3, 3]);
    }
}
