//! What the processor can do, asked once at run time.

use std::sync::OnceLock;

use super::element::Element;

/// Instruction sets a product is written for, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Whatever the target always has.
    Plain,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// These and AVX512-BF16.
    Avx512Bf16,
}

impl Level {
    /// Whether the AVX-512 panels and tiles serve values of this type: paired ones need the bf16 dot product.
    pub(super) fn has_tiles<E: Element>(self) -> bool {
        self >= if E::PAIRED { Level::Avx512Bf16 } else { Level::Avx512 }
    }
}

/// The highest level of this processor.
pub(crate) fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = LOWERED.get() {
        return level;
    }
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(test)]
thread_local! {
    static LOWERED: std::cell::Cell<Option<Level>> = const { std::cell::Cell::new(None) };
}

/// Runs `f` as on a processor of a lower level, in a pool of one thread.
#[cfg(test)]
pub(crate) fn at_level<T: Send>(level: Level, f: impl FnOnce() -> T + Send) -> T {
    assert!(level <= detect(), "the processor cannot run {level:?}");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        LOWERED.set(Some(level));
        f()
    })
}

/// Every level this processor can run, least first.
#[cfg(test)]
pub(crate) fn levels() -> Vec<Level> {
    let all = [Level::Plain, Level::Avx2, Level::Avx512, Level::Avx512Bf16];
    all.into_iter().filter(|l| *l <= detect()).collect()
}

/// Whether this processor multiplies f32 faster than bf16: it has AVX-512 and not the part of it that takes bf16, whose products
/// are AVX2's then. With that part bf16 is 1.8 times as fast, and with AVX2 alone both are alike (steps of Janus-Pro-1B: 55 and 30
/// tokens a second on a Zen 4, 19.7 and 18.7 with AVX2; `docs/benchmarks/results`).
pub fn prefers_f32() -> bool {
    level() == Level::Avx512
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let has512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    if has512 && is_x86_feature_detected!("avx512bf16") {
        Level::Avx512Bf16
    } else if has512 {
        Level::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Level::Avx2
    } else {
        Level::Plain
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Plain
}
