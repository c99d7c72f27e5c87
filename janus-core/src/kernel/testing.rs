//! Seeded values and comparison for the tests of this room.

use super::Element;

/// Values in (-1, 1) that depend on `seed` and nothing else.
pub(crate) fn values<E: Element>(count: usize, seed: u64) -> Vec<E> {
    (0..count as u64).map(|i| E::narrow((crate::noise::uniform(seed, i) * 2.0 - 1.0) as f32)).collect()
}

/// Fails unless all values agree to `bound`, absolute.
pub(crate) fn close(got: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(got.len(), expected.len());
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= bound, "value {i}: got {a}, expected {b}, bound {bound}");
    }
}
