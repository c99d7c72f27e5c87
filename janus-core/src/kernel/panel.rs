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

/// Where the lines of a panel lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Lines from one step to the next.
    pub(super) step: usize,
    /// Lines from the first half of the columns to the second.
    pub(super) half: usize,
}

impl Layout {
    /// Both halves of a step side by side.
    pub(super) const TOGETHER: Self = Self { step: LINES, half: 1 };

    /// That of a panel of `depth` steps as products lay it out. An AVX2 tile takes one half of the columns at a time, and
    /// every second line of a panel would meet the others in half of the first-level cache's sets.
    pub(super) fn of(level: Level, depth: usize) -> Self {
        if level == Level::Avx2 { Self { step: 1, half: depth } } else { Self::TOGETHER }
    }
}

/// A panel in a scratch buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) lines: &'a [Line],
    pub(super) layout: Layout,
    /// Inner values, of which the last pair may be a half.
    pub(super) depth: usize,
}

impl<'a> Panel<'a> {
    /// The rows of an f32 panel whose halves lie together.
    #[inline(always)]
    pub(super) fn wide_rows(self) -> impl Iterator<Item = &'a [f32]> {
        assert_eq!(self.layout, Layout::TOGETHER, "the halves of a row lie apart");
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

/// Lays out inner steps `inner` and result columns `columns` (at most [`LANES`]) of a matrix by the best way of `level`, for
/// values of type `E`; `lines` begin at the first of the steps.
pub(super) fn pack<E: Element, W: Element>(
    level: Level,
    matrix: Rows<'_, W>,
    side: Side,
    inner: Range<usize>,
    columns: Range<usize>,
    lines: &mut [Line],
    layout: Layout,
) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2 {
        let whole = match side {
            Side::Transposed => columns.end <= matrix.count && inner.end <= matrix.width,
            Side::Plain => columns.end <= matrix.width && inner.end <= matrix.count,
        };
        let as_stored = level.has_tiles::<E>() && E::PAIRED == W::PAIRED;
        let steps = if as_stored && E::PAIRED { inner.len().div_ceil(2) } else { inner.len() };
        let end = steps.saturating_sub(1) * layout.step + layout.half + 1;
        assert!(whole && lines.len() >= end && columns.len() <= LANES);
        assert!(layout == Layout::TOGETHER || !level.has_tiles::<E>());
        let (values, stride) = (matrix.values, matrix.stride);
        // SAFETY: the processor has the instructions of `level`, the block lies inside the matrix, and the lines hold it.
        unsafe {
            if as_stored {
                super::avx512::pack(values, stride, side, inner, columns, lines);
            } else {
                super::avx2::pack(values, stride, side, inner, columns, lines, layout);
            }
        }
        return;
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = level;
    assert_eq!(layout, Layout::TOGETHER);
    wide(matrix, side, inner, columns, lines);
}

/// Lays out inner steps `inner` and result columns `columns` (at most [`LANES`]) of a matrix as an f32 panel; missing
/// columns are zero. The slow truth, and the path of processors without AVX2.
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
