//! How fast memory can be read by all threads together.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

/// Many times the outermost cache of any processor this may run on.
const BUFFER_BYTES: usize = 1 << 30;
/// Words that one thread reads at a time.
const BLOCK: usize = 1 << 15;
/// Sums kept apart, so that additions do not wait for each other.
const LANES: usize = 32;

/// A buffer that is read with every thread of the pool.
pub(super) struct Memory(Vec<u64>);

impl Memory {
    /// Written once: pages that were never written all read the same page of zeros.
    pub(super) fn new() -> Self {
        let mut buffer = vec![0_u64; BUFFER_BYTES / size_of::<u64>()];
        buffer.par_chunks_mut(BLOCK).enumerate().for_each(|(i, block)| block.fill(i as u64));
        Self(buffer)
    }

    /// Bytes per second of reading it once.
    pub(super) fn bytes_per_second(&self) -> f64 {
        let clock = Instant::now();
        black_box(self.0.par_chunks(BLOCK).map(sum).reduce(|| 0, u64::wrapping_add));
        BUFFER_BYTES as f64 / clock.elapsed().as_secs_f64()
    }
}

fn sum(block: &[u64]) -> u64 {
    let mut sums = [0_u64; LANES];
    for words in block.chunks_exact(LANES) {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}
