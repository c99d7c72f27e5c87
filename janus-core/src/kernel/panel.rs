//! A block of a weight as panels: 32 result columns side by side for each step of the inner index.
//!
//! f32 panels hold one row of 32 values a step; bf16 panels hold, for two steps, 32 pairs of adjacent inner values, as the
//! bf16 dot product takes them.

use std::ops::Range;

use super::element::Element;
use super::level::Level;
use super::rows::Rows;

/// Result columns of a panel.
pub(super) const LANES: usize = 32;

/// One cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(super) [u32; 16]);

/// Lines of one step: 32 values of 4 bytes.
pub(super) const LINES: usize = LANES / 16;

/// A panel in a scratch buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) lines: &'a [Line],
    /// Inner values, of which the last pair may be a half.
    pub(super) depth: usize,
}

impl<'a> Panel<'a> {
    /// The rows of an f32 panel.
    #[inline(always)]
    pub(super) fn wide_rows(self) -> impl Iterator<Item = &'a [f32]> {
        self.lines.chunks_exact(LINES).take(self.depth).map(|lines| {
            // SAFETY: `LINES` lines are `LANES` adjacent values of 4 bytes, and every bit pattern is an f32.
            unsafe { std::slice::from_raw_parts(lines.as_ptr().cast::<f32>(), LANES) }
        })
    }
}

/// Which way a matrix is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Rows of the matrix are result columns: `x·Wᵀ`.
    Transposed,
    /// Rows of the matrix are inner steps: `x·W`.
    Plain,
}

/// Lays out inner steps `inner` and result columns `columns` (at most [`LANES`]) of a matrix by the best way of `level`.
pub(super) fn pack<E: Element>(
    level: Level,
    matrix: Rows<'_, E>,
    side: Side,
    inner: Range<usize>,
    columns: Range<usize>,
    lines: &mut [Line],
) {
    #[cfg(target_arch = "x86_64")]
    if level.has_tiles::<E>() {
        let whole = match side {
            Side::Transposed => columns.end <= matrix.count && inner.end <= matrix.width,
            Side::Plain => columns.end <= matrix.width && inner.end <= matrix.count,
        };
        assert!(whole && lines.len() >= inner.len().div_ceil(if E::PAIRED { 2 } else { 1 }) * LINES);
        // SAFETY: the processor has the instructions of `level`, the block lies inside the matrix, and the lines hold it.
        unsafe { super::avx512::pack(matrix.values, matrix.stride, side, inner, columns, lines) };
        return;
    }
    wide(matrix, side, inner, columns, lines);
}

/// Lays out inner steps `inner` and result columns `columns` (at most [`LANES`]) of a matrix as an f32 panel; missing
/// columns are zero. The slow truth, and the path of processors without AVX-512.
fn wide<E: Element>(matrix: Rows<'_, E>, side: Side, inner: Range<usize>, columns: Range<usize>, lines: &mut [Line]) {
    for (k, lines) in inner.clone().zip(lines.chunks_exact_mut(LINES)) {
        for lane in 0..LANES {
            let column = columns.start + lane;
            let value = match side {
                _ if column >= columns.end => 0.0,
                Side::Transposed => matrix.row(column)[k].widen(),
                Side::Plain => matrix.row(k)[column].widen(),
            };
            lines[lane / 16].0[lane % 16] = value.to_bits();
        }
    }
}
