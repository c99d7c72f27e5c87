//! Random numbers that are a function of a key and an index, so that anything drawn can be drawn again.
//!
//! The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014):
//! stable across platforms and versions, unlike the generators of `rand`.

/// What SplitMix64's counter goes on by: 2⁶⁴ over the golden ratio.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output for a counter one step before: [`finalise`] of the next.
pub fn mix(z: u64) -> u64 {
    finalise(z.wrapping_add(STEP))
}

/// The finaliser: a bijection of 64 bits whose output bits each depend on all input bits.
pub fn finalise(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A key for the pair of a key and one more number.
pub fn combine(key: u64, number: u64) -> u64 {
    mix(key ^ mix(number))
}

/// A key for a name: FNV-1a over its bytes, then mixed.
pub fn key_of(name: &str) -> u64 {
    mix(name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// The `index`-th number of a key's sequence, in [0, 1).
pub fn uniform(key: u64, index: u64) -> f64 {
    (combine(key, index) >> 11) as f64 / (1u64 << 53) as f64
}

/// The `index`-th number of a key's sequence, standard normal (Box-Muller).
pub fn normal(key: u64, index: u64) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(key, 2 * index)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(key, 2 * index + 1)).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_fixed_for_all_time() {
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(combine(42, 7), combine(42, 7));
        assert_ne!(combine(42, 7), combine(42, 8));
        assert_ne!(key_of("a.b"), key_of("a.c"));
    }

    #[test]
    fn the_normal_numbers_have_mean_zero_and_variance_one() {
        let count = 100_000u64;
        let values: Vec<f64> = (0..count).map(|i| normal(3, i)).collect();
        let mean = values.iter().sum::<f64>() / count as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
