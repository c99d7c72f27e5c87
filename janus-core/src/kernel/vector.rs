//! Loops over rows, compiled for each level of the processor, and the elementary functions they use.

/// Calls the best of one body's compilations for a level of the processor: in the body, `fused` says whether `mul_add` is an
/// instruction.
macro_rules! by_level {
    ($level:expr, |$fused:ident| fn<$($e:ident),+>($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {{
        #[inline(always)]
        fn body<$($e: $crate::kernel::Element),+>($fused: bool, $($argument: $type),*) $(-> $result)? $body

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<$($e: $crate::kernel::Element),+>($($argument: $type),*) $(-> $result)? {
            body::<$($e),+>(true, $($argument),*)
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2<$($e: $crate::kernel::Element),+>($($argument: $type),*) $(-> $result)? {
            body::<$($e),+>(true, $($argument),*)
        }

        use $crate::kernel::level::Level;
        let level: Level = $level;
        #[cfg(target_arch = "x86_64")]
        {
            if level >= Level::Avx512 {
                // SAFETY: the processor has these instructions.
                return unsafe { avx512::<$($e),+>($($argument),*) };
            }
            if level >= Level::Avx2 {
                // SAFETY: the processor has these instructions.
                return unsafe { avx2::<$($e),+>($($argument),*) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = level;
        body::<$($e),+>(false, $($argument),*)
    }};
}

/// Functions over slices whose loops are compiled for every level and chosen at run time.
macro_rules! vectorized {
    ($($(#[$doc:meta])* fn $name:ident<$e:ident>($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name<$e: $crate::kernel::Element>($($argument: $type),*) $(-> $result)? {
            $crate::kernel::vector::by_level!(
                $crate::kernel::level::level(),
                |_fused| fn<$e>($($argument: $type),*) $(-> $result)? $body
            )
        }
    )*};
}

pub(crate) use by_level;
pub(crate) use vectorized;

/// `eˣ` to about two units in the last place, without branches; below -87.3 the least normal numbers, above 88.3 the largest.
/// Range reduction and polynomial of Cephes (`single/expf.c`).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ leaves the nearest integer in the lowest bits.
    const MAGIC: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    (p * r * r + r + 1.0) * power
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function to a few units in the last place: `x · P(x²) / Q(x²)`, and one from where it rounds to one.
/// Rational approximation of Eigen (`unsupported/Eigen/src/SpecialFunctions`, `erf_float`).
#[inline(always)]
fn erf(x: f32) -> f32 {
    // From here on the error function is within 2⁻²⁵ of one.
    const ONE_FROM: f32 = 3.92;
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let mut p = -2.726_142e-10;
    p = p * s + 2.770_681_4e-8;
    p = p * s + -2.101_024e-6;
    p = p * s + -5.692_506_4e-5;
    p = p * s + -7.349_906_3e-4;
    p = p * s + -2.954_6e-3;
    p = p * s + -1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * s + -2.133_740_6e-4;
    q = q * s + -1.682_827e-3;
    q = q * s + -7.373_329_2e-3;
    q = q * s + -1.426_473_9e-2;
    // The quotient stays short of one, and what is missing would be multiplied by any large negative input of a gelu.
    if x.abs() >= ONE_FROM { 1f32.copysign(x) } else { x * p / q }
}

/// Φ(x), the standard normal distribution function.
#[inline(always)]
pub(crate) fn normal_cdf(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The standard normal density.
#[inline(always)]
pub(crate) fn normal_density(x: f32) -> f32 {
    const INVERSE_SQRT_TAU: f32 = 0.398_942_3;
    INVERSE_SQRT_TAU * exp(-0.5 * x * x)
}

/// Sum of `f` over indices below `count`, in sixteen running sums that become vector lanes.
#[inline(always)]
pub(crate) fn sum(count: usize, f: impl Fn(usize) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let whole = count / LANES * LANES;
    let mut at = 0;
    while at < whole {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(at + lane);
        }
        at += LANES;
    }
    let rest: f32 = (whole..count).map(&f).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_near_the_true_one() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0 + 0.003;
            let (got, truth) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / truth - 1.0).abs() < 3e-7, "{x}: {got} {truth}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 1e-37 && exp(1e30).is_finite());
    }

    #[test]
    fn the_normal_distribution_is_near_the_true_one() {
        for i in -900..900 {
            let x = i as f32 / 100.0;
            let truth = 0.5 * (1.0 + candle_core::cpu::erf::erf_f64(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2));
            assert!((f64::from(normal_cdf(x)) - truth).abs() < 3e-7, "{x}");
        }
        assert_eq!([-5.6, -100.0, -1e30, f32::NEG_INFINITY].map(normal_cdf), [0.0; 4]);
        assert_eq!([5.6, 100.0, 1e30, f32::INFINITY].map(normal_cdf), [1.0; 4]);
        assert!(normal_cdf(f32::NAN).is_nan());
    }

    #[test]
    fn a_sum_leaves_nothing_out() {
        for count in [0, 1, 15, 16, 17, 100] {
            assert_eq!(sum(count, |i| i as f32), (0..count).map(|i| i as f32).sum::<f32>());
        }
    }
}
