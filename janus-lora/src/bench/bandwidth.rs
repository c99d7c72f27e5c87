//! How fast memory can be read by all threads together.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

/// Many times the outermost cache of any processor this may run on.
const BUFFER_BYTES: usize = 1 << 30;
/// The best of so many passes counts: whatever else runs beside only ever slows them down.
const PASSES: usize = 6;
/// Words that one thread reads at a time.
const BLOCK: usize = 1 << 15;
/// Sums kept apart, so that additions do not wait for each other.
const LANES: usize = 32;

/// Bytes per second of reading a large buffer once with every thread of the pool.
pub(super) fn memory_bandwidth_bytes_per_second() -> f64 {
    let words = BUFFER_BYTES / size_of::<u64>();
    let mut buffer = vec![0_u64; words];
    // Written first: pages that were never written all read the same page of zeros.
    buffer.par_chunks_mut(BLOCK).enumerate().for_each(|(i, block)| block.fill(i as u64));
    let pass = |_| {
        let clock = Instant::now();
        let sum = buffer.par_chunks(BLOCK).map(sum).reduce(|| 0, u64::wrapping_add);
        black_box(sum);
        BUFFER_BYTES as f64 / clock.elapsed().as_secs_f64()
    };
    (0..PASSES).map(pass).fold(0.0, f64::max)
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
