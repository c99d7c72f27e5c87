//! A random stream that is the same on every platform and in every version of this program.
//!
//! SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014): a counter stepped by
//! the golden ratio and a bijective finaliser, those of [`janus_core::noise`]. Row orders and drawn data are promises to
//! users (a resumed run must see the rows it would have seen), so they rest on these few lines and on no crate's default
//! generator.

use janus_core::noise::{STEP, finalise, mix};

/// The stream's state.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// The stream that belongs to a seed and a path of numbers below it (purpose, epoch, window, ...).
    pub(crate) fn new(seed: u64, path: &[u64]) -> Self {
        let below = |state: u64, &step: &u64| finalise(state.wrapping_add(STEP) ^ mix(step));
        Self { state: path.iter().fold(mix(seed), below) }
    }

    /// 64 even bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        finalise(self.state)
    }

    /// Even in `0..bound`, without the bias of a plain remainder (Lemire, "Fast random integer generation in an
    /// interval", 2019). `bound` 0 gives 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        if bound < 2 {
            return 0;
        }
        let bound = bound as u64;
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.bits()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as usize;
            }
        }
    }

    /// Even in `[0, 1)`, 53 bits.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Even in `[low, high)`.
    pub(crate) fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Fisher and Yates: every order equally likely.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_splitmix64() {
        // First outputs for state 1234567, as in the reference implementation's published test vector.
        let mut random = Random { state: 1_234_567 };
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423u64];
        assert_eq!([random.bits(), random.bits(), random.bits()], expected);
    }

    #[test]
    fn paths_give_streams_of_their_own_and_bounds_hold() {
        assert_ne!(Random::new(1, &[0, 1]).bits(), Random::new(1, &[1, 0]).bits());
        assert_ne!(Random::new(1, &[0]).bits(), Random::new(1, &[0, 0]).bits());
        let mut random = Random::new(7, &[]);
        let mut seen = [0usize; 5];
        for _ in 0..5000 {
            seen[random.below(5)] += 1;
        }
        assert!(seen.iter().all(|&n| (850..1150).contains(&n)), "{seen:?}");
        let mut items: Vec<usize> = (0..100).collect();
        random.shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
