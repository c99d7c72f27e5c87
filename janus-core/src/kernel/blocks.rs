//! Factors of pairs as slots hold them: in blocks of columns, each with all of the factor's rows, so that whoever walks along
//! the columns reads one stream of memory instead of one for every row, on a page of its own.

use candle_core::{Result, Tensor};

use super::element::Element;
use super::level::{Level, level};
#[cfg(target_arch = "x86_64")]
use super::prefetch;
use super::product::BLOCK_COLUMNS;
use super::rows::Rows;
use super::vector::by_level;

/// Rows of a factor whose running sums stay in registers.
const TOGETHER: usize = 8;

/// Running sums of one row.
const LANES: usize = 16;

/// A factor `[rank, width]` in blocks, `[width / 64 rounded up, rank, 64]` with zeros behind the last column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks<'a, E> {
    values: &'a [E],
    rank: usize,
    width: usize,
}

/// The blocks of a factor `[rank, width]`.
///
/// # Errors
/// The tensor engine's.
pub(crate) fn in_blocks(factor: &Tensor) -> Result<Tensor> {
    let (rank, width) = factor.dims2()?;
    let blocks = width.div_ceil(BLOCK_COLUMNS);
    let padded = factor.pad_with_zeros(1, 0, blocks * BLOCK_COLUMNS - width)?;
    padded.reshape((rank, blocks, BLOCK_COLUMNS))?.transpose(0, 1)?.contiguous()
}

/// A factor `[rank, width]` from its blocks.
///
/// # Errors
/// The tensor engine's.
pub(crate) fn from_blocks(blocks: &Tensor, width: usize) -> Result<Tensor> {
    let (count, rank, columns) = blocks.dims3()?;
    blocks.transpose(0, 1)?.contiguous()?.reshape((rank, count * columns))?.narrow(1, 0, width)?.contiguous()
}

impl<'a, E: Element> Blocks<'a, E> {
    /// The values that [`in_blocks`] made of a factor.
    pub(crate) fn new(values: &'a [E], rank: usize, width: usize) -> Self {
        assert_eq!(values.len(), width.div_ceil(BLOCK_COLUMNS) * rank * BLOCK_COLUMNS, "blocks of another factor");
        Self { values, rank, width }
    }

    /// Rows of the factor.
    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    /// Columns of the factor.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// All rows of the block that begins at a column, one after the other.
    pub(super) fn at(&self, column: usize) -> std::slice::ChunksExact<'a, E> {
        debug_assert!(column.is_multiple_of(BLOCK_COLUMNS));
        let size = self.rank * BLOCK_COLUMNS;
        self.values[column / BLOCK_COLUMNS * size..][..size].chunks_exact(BLOCK_COLUMNS)
    }

    /// Asks for what [`Blocks::at`] gives of a column.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn bring(&self, column: usize) {
        let size = self.rank * BLOCK_COLUMNS;
        prefetch::bring_run::<E, { prefetch::OUTER }>(self.values, column / BLOCK_COLUMNS * size, size);
    }

    /// `factor · x·Aᵀ` of `x: [m, width]` on the calling thread, to `out: [m, rank]`.
    pub(crate) fn down(&self, x: Rows<'_, E>, factor: f32, out: &mut [f32]) {
        self.down_at(level(), x, factor, out);
    }

    fn down_at(&self, level: Level, x: Rows<'_, E>, factor: f32, out: &mut [f32]) {
        let a = *self;
        assert!(x.width() == self.width && out.len() == x.count() * self.rank, "a factor of another width");
        by_level!(level, |fused| fn<E>(a: Blocks<'_, E>, x: Rows<'_, E>, factor: f32, out: &mut [f32]) {
            for (row, out) in out.chunks_exact_mut(a.rank.max(1)).enumerate() {
                let mut first = 0;
                while first < a.rank {
                    let (own, left) = (&mut out[first..], a.rank - first);
                    first += match left {
                        TOGETHER.. => put(a.dots::<TOGETHER>(fused, x.row(row), first), factor, own),
                        4.. => put(a.dots::<4>(fused, x.row(row), first), factor, own),
                        _ => put(a.dots::<1>(fused, x.row(row), first), factor, own),
                    };
                }
            }
        });
    }

    /// Dot products of `x` with `R` rows from `first` on.
    #[inline(always)]
    fn dots<const R: usize>(self, fused: bool, x: &[E], first: usize) -> [f32; R] {
        let mut sums = [[0f32; LANES]; R];
        let size = self.rank * BLOCK_COLUMNS;
        for (number, block) in self.values.chunks_exact(size).enumerate() {
            #[cfg(target_arch = "x86_64")]
            {
                let ahead = (number + AHEAD) * size + first * BLOCK_COLUMNS;
                prefetch::bring_run::<E, { prefetch::INNER }>(self.values, ahead, R * BLOCK_COLUMNS);
            }
            let x = widened(&x[number * BLOCK_COLUMNS..]);
            let rows = block[first * BLOCK_COLUMNS..].chunks_exact(BLOCK_COLUMNS);
            for (sums, row) in sums.iter_mut().zip(rows) {
                for (x, row) in x.chunks_exact(LANES).zip(row.chunks_exact(LANES)) {
                    for ((sum, x), value) in sums.iter_mut().zip(x).zip(row) {
                        *sum = if fused { x.mul_add(value.widen(), *sum) } else { x * value.widen() + *sum };
                    }
                }
            }
        }
        sums.map(|sums| sums.iter().sum())
    }
}

/// Blocks that are asked for ahead.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4;

#[inline(always)]
fn put<const R: usize>(dots: [f32; R], factor: f32, out: &mut [f32]) -> usize {
    out.iter_mut().zip(dots).for_each(|(out, dot)| *out = factor * dot);
    R
}

/// The first values of a row, with zeros behind its last.
#[inline(always)]
fn widened<E: Element>(values: &[E]) -> [f32; BLOCK_COLUMNS] {
    if let Some(whole) = values.first_chunk::<BLOCK_COLUMNS>() {
        return whole.map(E::widen);
    }
    let mut wide = [0f32; BLOCK_COLUMNS];
    wide.iter_mut().zip(values).for_each(|(wide, value)| *wide = value.widen());
    wide
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, WithDType};
    use half::bf16;

    use super::*;
    use crate::kernel::level::levels;
    use crate::kernel::testing::{close, values};

    fn agrees<E: Element + WithDType>() {
        // Whole blocks and a part of one; ranks that take all ways of meeting rows together.
        for (m, rank, width) in [(1, 8, 128), (2, 9, 150), (3, 5, 75), (2, 23, 64), (4, 1, 13)] {
            let (x, a) = (values::<E>(m * (width + 3), 1), values::<E>(rank * width, 2));
            let factor = Tensor::from_vec(a.clone(), (rank, width), &Device::Cpu).unwrap();
            let laid = in_blocks(&factor).unwrap();
            let back = from_blocks(&laid, width).unwrap().flatten_all().unwrap().to_vec1::<E>().unwrap();
            assert!(back.iter().zip(&a).all(|(back, a)| back.widen() == a.widen()));
            let laid = laid.flatten_all().unwrap().to_vec1::<E>().unwrap();
            let (x, rows) = (Rows::new(&x, m, width, width + 3), Rows::dense(&a, rank, width));
            let dot = |i: usize, r: usize| -> f32 {
                x.row(i).iter().zip(rows.row(r)).map(|(x, a)| x.widen() * a.widen()).sum::<f32>() * -0.5
            };
            let truth: Vec<f32> = (0..m * rank).map(|at| dot(at / rank, at % rank)).collect();
            for level in levels() {
                let mut out = vec![f32::NAN; m * rank];
                Blocks::new(&laid, rank, width).down_at(level, x, -0.5, &mut out);
                close(&out, &truth, 1e-5);
            }
        }
    }

    #[test]
    fn factors_in_blocks_give_the_products_of_their_rows() {
        agrees::<f32>();
        agrees::<bf16>();
    }
}
