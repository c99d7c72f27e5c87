//! The driver of a product: blocks of result columns over the threads, chunks of the inner index, rounding at the end.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::element::Element;
use super::level::{Level, level};
use super::panel::{self, LANES, LINES, Line, Panel, Side};
use super::rows::{Rows, SPREAD, extent};
use super::{few_rows, tile};

/// Result columns of a block: two panels.
const BLOCK_COLUMNS: usize = 2 * LANES;

/// Bytes of one panel's chunk: two of them and a block of sums share a core's second-level cache.
const PANEL_BYTES: usize = 128 << 10;

/// Rows of a block of sums, a multiple of every tile's rows.
const BLOCK_ROWS: usize = 768;

/// Rows of an AVX-512 tile: 24 sums of 16 lanes, two panel lines and a broadcast value fill the 32 registers.
pub(super) const TILE_ROWS: usize = 12;

/// Rows up to which a product is made of dot products that read the weight once, without panels.
pub(crate) const FEW_ROWS: usize = 16;

/// One product of a sum: `x: [m, inner]` times a matrix walked one way or the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term<'a, E> {
    x: Rows<'a, E>,
    matrix: Rows<'a, E>,
    side: Side,
}

impl<'a, E: Element> Term<'a, E> {
    /// `x·Wᵀ` with `x: [m, inner]` and `weight: [n, inner]`.
    pub(crate) fn transposed(x: Rows<'a, E>, weight: Rows<'a, E>) -> Self {
        assert_eq!(x.width, weight.width, "inner sizes differ");
        Self { x, matrix: weight, side: Side::Transposed }
    }

    /// `x·W` with `x: [m, inner]` and `weight: [inner, n]`.
    pub(crate) fn plain(x: Rows<'a, E>, weight: Rows<'a, E>) -> Self {
        assert_eq!(x.width, weight.count, "inner sizes differ");
        Self { x, matrix: weight, side: Side::Plain }
    }

    fn columns(&self) -> usize {
        match self.side {
            Side::Transposed => self.matrix.count,
            Side::Plain => self.matrix.width,
        }
    }

    /// Where the matrix holds some inner steps of some result columns.
    fn area(&self, inner: Range<usize>, columns: Range<usize>) -> Area<'a, E> {
        match self.side {
            Side::Transposed => Area { matrix: self.matrix, rows: columns, columns: inner },
            Side::Plain => Area { matrix: self.matrix, rows: inner, columns },
        }
    }
}

/// A block of a matrix, by its own rows and columns.
struct Area<'a, E> {
    matrix: Rows<'a, E>,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<E> Area<'_, E> {
    /// Cache lines in it.
    fn lines(&self) -> usize {
        self.rows.len() * (self.columns.len() * size_of::<E>()).div_ceil(64)
    }
}

/// What happens to the sums before they are rounded, in this order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finish<'a, E> {
    /// Factor on the sums.
    pub(crate) factor: f32,
    /// `[n]`, added to every row.
    pub(crate) bias: Option<&'a [E]>,
    /// `left: [m, rank]` times `right: [rank, n]`, added.
    pub(crate) low_rank: Option<(Rows<'a, f32>, Rows<'a, f32>)>,
    /// `[m, n]`, added.
    pub(crate) add: Option<Rows<'a, E>>,
    /// Whether what the result held before is added, too.
    pub(crate) accumulate: bool,
}

impl<E> Default for Finish<'_, E> {
    fn default() -> Self {
        Self { factor: 1.0, bias: None, low_rank: None, add: None, accumulate: false }
    }
}

/// A product to be made: `out = finish(Σ terms)`, `out: [m, n]` with rows `out_stride` apart.
#[derive(Debug)]
pub(crate) struct Job<'a, E, O> {
    /// What is summed.
    pub(crate) terms: Vec<Term<'a, E>>,
    /// What happens to the sums.
    pub(crate) finish: Finish<'a, E>,
    /// Where they go.
    pub(crate) out: &'a mut [O],
    /// Values from one row of the result to the next.
    pub(crate) out_stride: usize,
}

/// Makes products, spread over the thread pool together: several small ones cost one round of waking threads.
pub(crate) fn products<E: Element, O: Element>(jobs: Vec<Job<'_, E, O>>) {
    products_at(level(), true, jobs);
}

/// One product, spread over the thread pool.
pub(crate) fn product<E: Element, O: Element>(
    terms: &[Term<'_, E>],
    finish: Finish<'_, E>,
    out: &mut [O],
    out_stride: usize,
) {
    products_at(level(), true, vec![Job { terms: terms.to_vec(), finish, out, out_stride }]);
}

/// As [`product`] on the calling thread alone.
pub(crate) fn product_alone<E: Element, O: Element>(
    terms: &[Term<'_, E>],
    finish: Finish<'_, E>,
    out: &mut [O],
    out_stride: usize,
) {
    products_at(level(), false, vec![Job { terms: terms.to_vec(), finish, out, out_stride }]);
}

fn products_at<E: Element, O: Element>(level: Level, parallel: bool, mut jobs: Vec<Job<'_, E, O>>) {
    let spread: Vec<Vec<Option<Vec<E>>>> = jobs.iter().map(Job::spread).collect();
    let prepared: Vec<Prepared<'_, E, O>> =
        jobs.iter_mut().zip(&spread).filter_map(|(job, spread)| Prepared::of(job, spread, parallel)).collect();
    let ends: Vec<usize> = prepared
        .iter()
        .scan(0, |end, job| {
            *end += job.column_blocks * job.row_blocks;
            Some(*end)
        })
        .collect();
    let one = |index: usize| {
        let which = ends.partition_point(|end| *end <= index);
        let first = if which == 0 { 0 } else { ends[which - 1] };
        prepared[which].block(level, index - first);
    };
    let count = ends.last().copied().unwrap_or(0);
    if parallel {
        (0..count).into_par_iter().for_each(one);
    } else {
        (0..count).for_each(one);
    }
}

impl<E: Element, O: Element> Job<'_, E, O> {
    /// Copies of the terms' rows, where these lie badly.
    fn spread(&self) -> Vec<Option<Vec<E>>> {
        let spread = |term: &Term<'_, E>| term.x.crowded(term.columns()).then(|| term.x.spread());
        self.terms.iter().map(spread).collect()
    }
}

/// A product whose shapes were checked, cut into blocks.
struct Prepared<'a, E, O> {
    terms: Vec<Term<'a, E>>,
    finish: Finish<'a, E>,
    out: Shared<O>,
    m: usize,
    n: usize,
    block_rows: usize,
    row_blocks: usize,
    column_blocks: usize,
}

impl<'a, E: Element, O: Element> Prepared<'a, E, O> {
    /// `None` where there is nothing to compute.
    fn of(job: &'a mut Job<'_, E, O>, spread: &'a [Option<Vec<E>>], parallel: bool) -> Option<Self> {
        let first = job.terms.first()?;
        let (m, n) = (first.x.count, first.columns());
        for term in &job.terms {
            assert!(term.x.count == m && term.columns() == n, "terms of different shapes");
        }
        assert!(n <= job.out_stride || m <= 1, "rows of the result overlap");
        assert!(extent(m, n, job.out_stride) <= job.out.len(), "the result reaches beyond its values");
        let finish = job.finish;
        if let Some(bias) = finish.bias {
            assert_eq!(bias.len(), n, "bias of another length");
        }
        if let Some((left, right)) = finish.low_rank {
            assert!(left.count == m && right.width == n && left.width == right.count, "low-rank factors do not fit");
        }
        if let Some(add) = finish.add {
            assert!(add.count == m && add.width == n, "the addend has another shape");
        }
        if m == 0 || n == 0 {
            return None;
        }
        let terms = job.terms.iter().zip(spread).map(|(term, values)| match values {
            Some(values) => Term { x: Rows::new(values, m, term.x.width, term.x.width + SPREAD), ..*term },
            None => *term,
        });
        let column_blocks = n.div_ceil(BLOCK_COLUMNS);
        let wanted = if parallel { 4 * rayon::current_num_threads() } else { 1 };
        let row_blocks = m.div_ceil(BLOCK_ROWS).max(wanted.div_ceil(column_blocks)).min(m.div_ceil(TILE_ROWS));
        let block_rows = m.div_ceil(row_blocks).next_multiple_of(TILE_ROWS);
        Some(Self {
            terms: terms.collect(),
            finish,
            out: Shared { values: job.out.as_mut_ptr(), stride: job.out_stride },
            m,
            n,
            block_rows,
            row_blocks: m.div_ceil(block_rows),
            column_blocks,
        })
    }

    /// Computes one of the blocks.
    fn block(&self, level: Level, index: usize) {
        let (column, row) = (index / self.row_blocks * BLOCK_COLUMNS, index % self.row_blocks * self.block_rows);
        let (end_row, end_column) = ((row + self.block_rows).min(self.m), (column + BLOCK_COLUMNS).min(self.n));
        let block = Block { rows: row..end_row, columns: column..end_column };
        SCRATCH.with_borrow_mut(|scratch| {
            block.sum(level, &self.terms, scratch);
            // SAFETY: the assertions of `of` keep every block inside `out`, which is borrowed mutably for as long as this
            // product exists, and each index, met once, has a block of its own.
            unsafe { block.write(level, &self.finish, &mut scratch.sums, &self.out) };
        });
    }
}

/// The result, written by several threads in disjoint blocks.
struct Shared<O> {
    values: *mut O,
    stride: usize,
}

// SAFETY: threads write disjoint blocks only (see `Prepared::block`).
unsafe impl<O: Send> Sync for Shared<O> {}

/// Buffers of one thread, kept from product to product.
#[derive(Default)]
struct Scratch {
    panels: Vec<Line>,
    /// `[rows, BLOCK_COLUMNS]`.
    sums: Vec<f32>,
    /// Rows of x widened to f32, for levels without a bf16 dot product.
    wide: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

struct Block {
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Block {
    /// Fills the block's sums, `[rows, BLOCK_COLUMNS]`.
    fn sum<E: Element>(&self, level: Level, terms: &[Term<'_, E>], scratch: &mut Scratch) {
        let Scratch { panels, sums, wide } = scratch;
        sums.resize(self.rows.len().max(1) * BLOCK_COLUMNS, 0.0);
        let mut add = false;
        for (number, term) in terms.iter().enumerate() {
            // By the whole product's rows, so that a row's sums do not depend on how rows were shared out.
            if term.x.count <= FEW_ROWS && term.side == Side::Transposed {
                few_rows::dots(
                    level,
                    term.x,
                    self.rows.clone(),
                    term.matrix,
                    self.columns.clone(),
                    sums,
                    BLOCK_COLUMNS,
                    add,
                );
                add = true;
                continue;
            }
            let paired = E::PAIRED && level == Level::Avx512Bf16;
            let steps_of = |depth: usize| if paired { depth.div_ceil(2) } else { depth };
            let chunk = PANEL_BYTES / (LANES * 4) * if paired { 2 } else { 1 };
            for start in (0..term.x.width).step_by(chunk) {
                let inner = start..(start + chunk).min(term.x.width);
                let lines = steps_of(inner.len()) * LINES;
                let count = self.columns.len().div_ceil(LANES);
                if panels.len() < count * lines {
                    panels.resize(count * lines, Line([0; 16]));
                }
                for (number, lines) in panels.chunks_exact_mut(lines).take(count).enumerate() {
                    let first = self.columns.start + number * LANES;
                    let columns = first..(first + LANES).min(self.columns.end);
                    pack(level, term.matrix, term.side, inner.clone(), columns, lines);
                }
                let panels = panels.chunks_exact(lines).take(count).map(|lines| Panel { lines, depth: inner.len() });
                let next = if inner.end < term.x.width {
                    Some((term, inner.end..(inner.end + chunk).min(term.x.width), self.columns.clone()))
                } else if number + 1 < terms.len() {
                    let term = &terms[number + 1];
                    Some((term, 0..chunk.min(term.x.width), self.columns.clone()))
                } else {
                    // Most likely this thread's next block.
                    let columns = self.columns.end..(self.columns.end + BLOCK_COLUMNS).min(terms[0].columns());
                    Some((&terms[0], 0..chunk.min(terms[0].x.width), columns))
                        .filter(|(_, _, columns)| !columns.is_empty())
                };
                let next = next.map(|(term, inner, columns)| term.area(inner, columns));
                self.tiles(level, term.x, &inner, panels, next, sums, wide, add);
                add = true;
            }
        }
        if !add {
            sums.fill(0.0);
        }
    }

    /// Adds the rows of one chunk times its panels to the sums.
    fn tiles<'p, E: Element>(
        &self,
        level: Level,
        x: Rows<'_, E>,
        inner: &Range<usize>,
        panels: impl Iterator<Item = Panel<'p>> + Clone,
        next: Option<Area<'_, E>>,
        sums: &mut [f32],
        wide: &mut Vec<f32>,
        add: bool,
    ) {
        #[cfg(target_arch = "x86_64")]
        if level.has_tiles::<E>() {
            let share = next.as_ref().map_or(0, |next| next.lines().div_ceil(self.rows.len().div_ceil(TILE_ROWS)));
            for start in (0..self.rows.len()).step_by(TILE_ROWS) {
                if let Some(Area { matrix, rows, columns }) = &next {
                    // The memory is slow and the tiles leave it idle: what is packed next comes near meanwhile.
                    let from = start / TILE_ROWS * share;
                    super::avx512::bring(*matrix, rows, columns, from, from + share);
                }
                let count = TILE_ROWS.min(self.rows.len() - start);
                let values = &x.values[(self.rows.start + start) * x.stride + inner.start..];
                for (number, panel) in panels.clone().enumerate() {
                    let sums = &mut sums[start * BLOCK_COLUMNS + number * LANES..];
                    // SAFETY: the processor has the instructions of `level`.
                    unsafe { super::avx512::tile(count, values, x.stride, panel, sums, BLOCK_COLUMNS, add) };
                }
            }
            return;
        }
        for start in (0..self.rows.len()).step_by(tile::ROWS) {
            let count = tile::ROWS.min(self.rows.len() - start);
            wide.clear();
            for i in 0..count {
                wide.extend(x.row(self.rows.start + start + i)[inner.clone()].iter().map(|v| v.widen()));
            }
            for (number, panel) in panels.clone().enumerate() {
                let sums = &mut sums[start * BLOCK_COLUMNS + number * LANES..];
                #[cfg(target_arch = "x86_64")]
                if level >= Level::Avx2 {
                    // SAFETY: the processor has AVX2 and FMA.
                    unsafe { tile::avx2(count, wide, inner.len(), panel, sums, BLOCK_COLUMNS, add) };
                    continue;
                }
                tile::plain(count, wide, inner.len(), panel, sums, BLOCK_COLUMNS, add);
            }
        }
    }

    /// Finishes the sums and writes them, rounded.
    ///
    /// # Safety
    /// The block lies inside `out`, and no one else touches it there.
    unsafe fn write<E: Element, O: Element>(
        &self,
        level: Level,
        finish: &Finish<'_, E>,
        sums: &mut [f32],
        out: &Shared<O>,
    ) {
        #[cfg(target_arch = "x86_64")]
        {
            if level >= Level::Avx512 {
                // SAFETY: the processor has the instructions; the rest as this function's own.
                return unsafe { self.write_avx512(finish, sums, out) };
            }
            if level >= Level::Avx2 {
                // SAFETY: as above.
                return unsafe { self.write_avx2(finish, sums, out) };
            }
        }
        // SAFETY: as this function's own.
        unsafe { self.write_plain(|a, b, c| a * b + c, finish, sums, out) }
    }

    /// As [`Block::write`], compiled for AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn write_avx512<E: Element, O: Element>(&self, finish: &Finish<'_, E>, sums: &mut [f32], out: &Shared<O>) {
        // SAFETY: as this function's own.
        unsafe { self.write_plain(f32::mul_add, finish, sums, out) }
    }

    /// As [`Block::write`], compiled for AVX2.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn write_avx2<E: Element, O: Element>(&self, finish: &Finish<'_, E>, sums: &mut [f32], out: &Shared<O>) {
        // SAFETY: as this function's own.
        unsafe { self.write_plain(f32::mul_add, finish, sums, out) }
    }

    /// As [`Block::write`] with a given fused product.
    #[inline(always)]
    unsafe fn write_plain<E: Element, O: Element>(
        &self,
        fused: impl Fn(f32, f32, f32) -> f32,
        finish: &Finish<'_, E>,
        sums: &mut [f32],
        out: &Shared<O>,
    ) {
        let columns = self.columns.clone();
        for (row, sums) in self.rows.clone().zip(sums.chunks_exact_mut(BLOCK_COLUMNS)) {
            let sums = &mut sums[..columns.len()];
            if finish.factor != 1.0 {
                sums.iter_mut().for_each(|s| *s *= finish.factor);
            }
            if let Some(bias) = finish.bias {
                sums.iter_mut().zip(&bias[columns.clone()]).for_each(|(s, b)| *s += b.widen());
            }
            if let Some((left, right)) = finish.low_rank {
                let left = left.row(row);
                let values = |j: usize| &right.row(j)[columns.clone()];
                if let Ok(whole) = <&mut [f32; BLOCK_COLUMNS]>::try_from(&mut *sums) {
                    // Of a size known here, so that the sums stay in registers over the whole rank.
                    let mut lanes = *whole;
                    for (j, factor) in left.iter().enumerate() {
                        if let Ok(values) = <&[f32; BLOCK_COLUMNS]>::try_from(values(j)) {
                            for (lane, r) in lanes.iter_mut().zip(values) {
                                *lane = fused(*factor, *r, *lane);
                            }
                        }
                    }
                    *whole = lanes;
                } else {
                    for (j, factor) in left.iter().enumerate() {
                        sums.iter_mut().zip(values(j)).for_each(|(s, r)| *s = fused(*factor, *r, *s));
                    }
                }
            }
            if let Some(add) = finish.add {
                sums.iter_mut().zip(&add.row(row)[columns.clone()]).for_each(|(s, a)| *s += a.widen());
            }
            // SAFETY: the block lies inside `out` and is this call's alone.
            let out = unsafe {
                std::slice::from_raw_parts_mut(out.values.add(row * out.stride + columns.start), columns.len())
            };
            if finish.accumulate {
                out.iter_mut().zip(&*sums).for_each(|(o, s)| *o = O::narrow(o.widen() + *s));
            } else {
                out.iter_mut().zip(&*sums).for_each(|(o, s)| *o = O::narrow(*s));
            }
        }
    }
}

/// `sums = x·panel` for `rows` rows of `panel.depth` values, `stride` apart; `sums: [rows, LANES]`.
pub(super) fn multiply(level: Level, rows: usize, x: &[f32], stride: usize, panel: Panel<'_>, sums: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if level.has_tiles::<f32>() {
        for start in (0..rows).step_by(TILE_ROWS) {
            let count = TILE_ROWS.min(rows - start);
            let (x, sums) = (&x[start * stride..], &mut sums[start * LANES..]);
            // SAFETY: the processor has the instructions of `level`.
            unsafe { super::avx512::tile(count, x, stride, panel, sums, LANES, false) };
        }
        return;
    }
    for start in (0..rows).step_by(tile::ROWS) {
        let count = tile::ROWS.min(rows - start);
        let (x, sums) = (&x[start * stride..], &mut sums[start * LANES..]);
        #[cfg(target_arch = "x86_64")]
        if level >= Level::Avx2 {
            // SAFETY: the processor has AVX2 and FMA.
            unsafe { tile::avx2(count, x, stride, panel, sums, LANES, false) };
            continue;
        }
        tile::plain(count, x, stride, panel, sums, LANES, false);
    }
}

/// Lays out one panel by the best way of `level`.
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
    panel::wide(matrix, side, inner, columns, lines);
}

#[cfg(test)]
#[path = "product_tests.rs"]
mod tests;
