//! Rows times a panel in plain Rust: the path of processors without AVX-512, and the slow truth of the tests.

use super::level::Level;
use super::panel::{LANES, Panel};

/// Rows of a plain tile.
pub(super) const ROWS: usize = 4;

/// `c[i][j] (+)= Σ_k a[i][k] · panel[k][j]` for `rows` ≤ [`ROWS`] rows; `c` has rows `LANES` long, `c_stride` apart.
#[inline(always)]
fn tile(
    fused: impl Fn(f32, f32, f32) -> f32 + Copy,
    rows: usize,
    a: &[f32],
    a_stride: usize,
    panel: Panel<'_>,
    c: &mut [f32],
    c_stride: usize,
    add: bool,
) {
    const HALF: usize = LANES / 2;
    for half in 0..2 {
        let mut sums = [[0f32; HALF]; ROWS];
        if add {
            for (i, sum) in sums.iter_mut().enumerate().take(rows) {
                sum.copy_from_slice(&c[i * c_stride + half * HALF..][..HALF]);
            }
        }
        for (k, lanes) in panel.wide_rows().enumerate() {
            let lanes = &lanes[half * HALF..][..HALF];
            for (i, sum) in sums.iter_mut().enumerate() {
                // A tile short of rows computes its last row again: no branch in the loop.
                let value = a[i.min(rows - 1) * a_stride + k];
                for (s, lane) in sum.iter_mut().zip(lanes) {
                    *s = fused(value, *lane, *s);
                }
            }
        }
        for (i, sum) in sums.iter().enumerate().take(rows) {
            c[i * c_stride + half * HALF..][..HALF].copy_from_slice(sum);
        }
    }
}

/// As [`tile`], by AVX2 where `level` has it.
pub(super) fn portable(
    level: Level,
    rows: usize,
    a: &[f32],
    a_stride: usize,
    panel: Panel<'_>,
    c: &mut [f32],
    c_stride: usize,
    add: bool,
) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2 {
        // SAFETY: the processor has AVX2 and FMA.
        return unsafe { avx2(rows, a, a_stride, panel, c, c_stride, add) };
    }
    plain(rows, a, a_stride, panel, c, c_stride, add);
}

/// As [`tile`], by what the target always has.
fn plain(rows: usize, a: &[f32], a_stride: usize, panel: Panel<'_>, c: &mut [f32], c_stride: usize, add: bool) {
    // Where the target has no fused instruction, `mul_add` would be a library call.
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        tile(f32::mul_add, rows, a, a_stride, panel, c, c_stride, add);
    } else {
        tile(|a, b, c| a * b + c, rows, a, a_stride, panel, c, c_stride, add);
    }
}

/// As [`plain`], compiled for AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(rows: usize, a: &[f32], a_stride: usize, panel: Panel<'_>, c: &mut [f32], c_stride: usize, add: bool) {
    tile(f32::mul_add, rows, a, a_stride, panel, c, c_stride, add);
}
