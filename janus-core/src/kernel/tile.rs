//! Rows times a panel: the best tile of a level, and the plain Rust one, the slow truth of the tests.

use super::level::Level;
use super::panel::{LANES, Panel};

/// Rows of a plain tile.
const PLAIN_ROWS: usize = 4;

/// A number of rows that every tile's divides.
pub(super) const MAX_ROWS: usize = 12;

/// Rows of a tile of this level.
pub(super) fn rows(level: Level) -> usize {
    match level {
        Level::Plain => PLAIN_ROWS,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::avx2::TILE_ROWS,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 => super::avx512::TILE_ROWS,
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("a level of another processor"),
    }
}

/// `c[i][j] (+)= Σ_k a[i][k] · panel[k][j]` for rows of f32 values and an f32 panel; `c` has rows `LANES` long, `c_stride` apart.
pub(super) fn wide(
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
    if level == Level::Avx2 {
        // SAFETY: the processor has AVX2 and FMA.
        return unsafe { super::avx2::tiles(rows, a, a_stride, panel, c, c_stride, add) };
    }
    let tile_rows = self::rows(level);
    for start in (0..rows).step_by(tile_rows) {
        let (count, a, c) = (tile_rows.min(rows - start), &a[start * a_stride..], &mut c[start * c_stride..]);
        #[cfg(target_arch = "x86_64")]
        if level >= Level::Avx512 {
            // SAFETY: the processor has AVX-512.
            unsafe { super::avx512::tile(count, a, a_stride, panel, c, c_stride, add) };
            continue;
        }
        plain(count, a, a_stride, panel, c, c_stride, add);
    }
}

/// As [`wide`] for at most [`PLAIN_ROWS`] rows, by what the target always has.
fn plain(rows: usize, a: &[f32], a_stride: usize, panel: Panel<'_>, c: &mut [f32], c_stride: usize, add: bool) {
    // Where the target has no fused instruction, `mul_add` would be a library call.
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        by_halves(f32::mul_add, rows, a, a_stride, panel, c, c_stride, add);
    } else {
        by_halves(|a, b, c| a * b + c, rows, a, a_stride, panel, c, c_stride, add);
    }
}

#[inline(always)]
fn by_halves(
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
        let mut sums = [[0f32; HALF]; PLAIN_ROWS];
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
