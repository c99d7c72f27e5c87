//! The driver of a product: blocks of result columns over the threads, chunks of the inner index, rounding at the end.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::chunk::{Chunk, Filling, fills_under_tiles};
use super::element::Element;
use super::finish::{self, Finish};
use super::level::{Level, level};
use super::matrix::Matrix;
use super::panel::{LANES, Line, Panel, Side};
use super::rows::{Rows, SharedRows};
use super::tile::MAX_ROWS;
use super::weights::{Weights, of_rows};
use super::{few_rows, tile};

/// Result columns of a block: two panels.
pub(super) const BLOCK_COLUMNS: usize = 2 * LANES;

/// Rows of a block of sums, a multiple of every tile's rows.
const BLOCK_ROWS: usize = 768;

/// Rows up to which a product is made of dot products that read the weight once, without panels.
pub(crate) const FEW_ROWS: usize = 16;

/// The same where rows of the matrix are summed: more of them are better off with panels.
const FEW_ROWS_PLAIN: usize = 4;

/// In which order the sums of a product are made: the result's rounding, and nothing else, follows from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SumOrder {
    /// As is quickest for the number of rows, on which a row's sums then depend.
    #[default]
    ByCount,
    /// That of many rows, whatever their number.
    Many,
    /// That of few rows, whatever their number.
    Few,
}

/// One product of a sum: `x: [m, inner]` times a matrix walked one way or the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term<'a, E> {
    pub(super) x: Rows<'a, E>,
    /// `x` in f32, for levels that have no tiles for values as they are stored.
    wide: Option<Rows<'a, f32>>,
    pub(super) matrix: Weights<'a, E>,
    pub(super) side: Side,
    order: SumOrder,
}

impl<'a, E: Element> Term<'a, E> {
    /// `x·Wᵀ` with `x: [m, inner]` and `weight: [n, inner]`.
    pub(crate) fn transposed(x: Rows<'a, E>, weight: impl Into<Weights<'a, E>>) -> Self {
        let matrix = weight.into();
        assert_eq!(x.width, matrix.width(), "inner sizes differ");
        Self { x, wide: None, matrix, side: Side::Transposed, order: SumOrder::default() }
    }

    /// `x·W` with `x: [m, inner]` and `weight: [inner, n]`.
    pub(crate) fn plain(x: Rows<'a, E>, weight: impl Into<Weights<'a, E>>) -> Self {
        let matrix = weight.into();
        assert_eq!(x.width, matrix.count(), "inner sizes differ");
        Self { x, wide: None, matrix, side: Side::Plain, order: SumOrder::default() }
    }

    /// The same, its sums made in an order.
    pub(crate) fn in_order(self, order: SumOrder) -> Self {
        Self { order, ..self }
    }

    fn columns(&self) -> usize {
        match self.side {
            Side::Transposed => self.matrix.count(),
            Side::Plain => self.matrix.width(),
        }
    }

    /// Rows and columns of the matrix that hold some inner steps of some result columns.
    pub(super) fn area(&self, inner: Range<usize>, columns: Range<usize>) -> (Range<usize>, Range<usize>) {
        match self.side {
            Side::Transposed => (columns, inner),
            Side::Plain => (inner, columns),
        }
    }

    /// A tile's rows times a panel.
    fn tile(
        &self,
        level: Level,
        rows: Range<usize>,
        inner: Range<usize>,
        panel: Panel<'_>,
        sums: &mut [f32],
        add: bool,
    ) {
        #[cfg(target_arch = "x86_64")]
        if level.has_tiles::<E>() {
            let x = self.x.part(rows, inner);
            // SAFETY: the processor has the instructions of `level`.
            unsafe { super::avx512::tile(x.count, x.values, x.stride, panel, sums, BLOCK_COLUMNS, add) };
            return;
        }
        let x = self.wide.expect("rows without tiles of their own were widened").part(rows, inner);
        tile::wide(level, x.count, x.values, x.stride, panel, sums, BLOCK_COLUMNS, add);
    }

    /// Whether the matrix is read where it lies, by the whole product's rows, so that a row's sums do not depend on how rows
    /// were shared out.
    fn is_few_rows(&self) -> bool {
        match (self.order, self.side) {
            (SumOrder::Few, _) => true,
            (SumOrder::Many, _) => false,
            (SumOrder::ByCount, Side::Transposed) => self.x.count <= FEW_ROWS,
            (SumOrder::ByCount, Side::Plain) => self.x.count <= FEW_ROWS_PLAIN,
        }
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
    /// Where the sums go before anything of the result's own shape is added, as far apart as those of the result.
    pub(crate) kept: Option<&'a mut [E]>,
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
    products_at(level(), true, vec![Job { terms: terms.to_vec(), finish, out, out_stride, kept: None }]);
}

/// As [`product`] on the calling thread alone.
pub(crate) fn product_alone<E: Element, O: Element>(
    terms: &[Term<'_, E>],
    finish: Finish<'_, E>,
    out: &mut [O],
    out_stride: usize,
) {
    products_at(level(), false, vec![Job { terms: terms.to_vec(), finish, out, out_stride, kept: None }]);
}

fn products_at<E: Element, O: Element>(level: Level, parallel: bool, mut jobs: Vec<Job<'_, E, O>>) {
    let copies: Vec<Vec<Copied<E>>> = jobs.iter().map(|job| job.copies(level, parallel)).collect();
    let prepared: Vec<Prepared<'_, E, O>> =
        jobs.iter_mut().zip(&copies).filter_map(|(job, copies)| Prepared::of(job, copies, parallel)).collect();
    let ends: Vec<usize> = prepared
        .iter()
        .scan(0, |end, job| {
            *end += job.column_blocks * job.row_blocks;
            Some(*end)
        })
        .collect();
    let count = ends.last().copied().unwrap_or(0);
    let place = |index: usize| {
        let which = ends.partition_point(|end| *end <= index);
        let first = if which == 0 { 0 } else { ends[which - 1] };
        (&prepared[which], prepared[which].block(index - first))
    };
    let workers = if parallel { rayon::current_num_threads().min(count) } else { 1 };
    let claimed = AtomicUsize::new(0);
    let claim = |limit: usize| {
        let next =
            claimed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| (next < limit).then_some(next + 1));
        next.ok().map(place)
    };
    let work = || {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut current = claim(count);
            let mut is_ready = false;
            while let Some((job, block)) = current {
                // The last blocks go to whoever is free; the others are claimed in time to be laid out ahead.
                let next = claim(count.saturating_sub(workers));
                let ahead = next.as_ref().filter(|_| fills_under_tiles(level));
                let ahead = ahead.and_then(|(job, block)| block.chunks(level, &job.terms).next());
                #[cfg(target_arch = "x86_64")]
                job.finish.bring(&block.rows, block.columns.start);
                is_ready = block.sum(level, &job.terms, is_ready, ahead.as_ref(), scratch);
                // SAFETY: each block, claimed once, has a place of its own.
                unsafe {
                    let kept = job.kept.as_ref();
                    finish::write(level, block.rows, block.columns, &job.finish, &scratch.sums, &job.out, kept);
                };
                current = next.or_else(|| claim(count));
            }
        });
    };
    if workers > 1 {
        (0..workers).into_par_iter().with_max_len(1).for_each(|_| work());
    } else {
        work();
    }
}

/// How the rows of a term are read.
enum Copied<E: Element> {
    /// Where they lie.
    None,
    /// As they are, but further apart.
    Spread(Matrix<E>),
    /// In f32.
    Wide(Matrix<f32>),
}

impl<E: Element, O: Element> Job<'_, E, O> {
    /// Copies of the terms' rows, where these lie badly or have to be widened.
    fn copies(&self, level: Level, parallel: bool) -> Vec<Copied<E>> {
        let copy = |term: &Term<'_, E>| {
            if !term.is_few_rows() && !level.has_tiles::<E>() && E::as_wide(term.x.values).is_none() {
                Copied::Wide(term.x.widened(level, parallel))
            } else if term.x.crowded(term.columns()) {
                Copied::Spread(term.x.spread(parallel))
            } else {
                Copied::None
            }
        };
        self.terms.iter().map(copy).collect()
    }
}

/// A product whose shapes were checked, cut into blocks.
struct Prepared<'a, E, O> {
    terms: Vec<Term<'a, E>>,
    finish: Finish<'a, E>,
    out: SharedRows<'a, O>,
    kept: Option<SharedRows<'a, E>>,
    m: usize,
    n: usize,
    block_rows: usize,
    row_blocks: usize,
    column_blocks: usize,
}

impl<'a, E: Element, O: Element> Prepared<'a, E, O> {
    /// `None` where there is nothing to compute.
    fn of(job: &'a mut Job<'_, E, O>, copies: &'a [Copied<E>], parallel: bool) -> Option<Self> {
        let first = job.terms.first()?;
        let (m, n) = (first.x.count, first.columns());
        for term in &job.terms {
            assert!(term.x.count == m && term.columns() == n, "terms of different shapes");
        }
        let finish = job.finish;
        if let Some(bias) = finish.bias {
            assert_eq!(bias.len(), n, "bias of another length");
        }
        for columns in [finish.factors, finish.wide_bias].into_iter().flatten() {
            assert_eq!(columns.len(), n, "factors or bias of another length");
        }
        assert!(finish.shares.last().is_none_or(|share| share.rows.end == m), "shares of other rows");
        for share in finish.shares {
            for columns in [share.factors, share.wide_bias].into_iter().flatten() {
                assert_eq!(columns.len(), n, "factors or bias of another length");
            }
            for (left, right) in &share.low_rank {
                let fits = left.count == share.rows.len() && right.width() == n && left.width == right.rank();
                assert!(fits, "low-rank factors do not fit");
            }
        }
        if let Some((left, right)) = finish.low_rank {
            assert!(left.count == m && right.width == n && left.width == right.count, "low-rank factors do not fit");
        }
        if let Some(add) = finish.add {
            assert!(add.count == m && add.width == n, "the addend has another shape");
        }
        if let Some(add) = finish.wide_add {
            assert!(add.count == m && add.width == n, "the addend has another shape");
        }
        if m == 0 || n == 0 {
            return None;
        }
        let terms = job.terms.iter().zip(copies).map(|(term, copy)| {
            let x = if let Copied::Spread(copy) = copy { copy.view() } else { term.x };
            let wide = match copy {
                Copied::Wide(copy) => Some(copy.view()),
                _ => E::as_wide(x.values).map(|values| Rows::new(values, m, x.width, x.stride)),
            };
            Term { x, wide, ..*term }
        });
        let column_blocks = n.div_ceil(BLOCK_COLUMNS);
        let wanted = if parallel { 4 * rayon::current_num_threads() } else { 1 };
        let row_blocks = m.div_ceil(BLOCK_ROWS).max(wanted.div_ceil(column_blocks)).min(m.div_ceil(MAX_ROWS));
        let block_rows = m.div_ceil(row_blocks).next_multiple_of(MAX_ROWS);
        Some(Self {
            terms: terms.collect(),
            finish,
            out: SharedRows::new(job.out, m, n, job.out_stride),
            kept: job.kept.as_deref_mut().map(|kept| SharedRows::new(kept, m, n, job.out_stride)),
            m,
            n,
            block_rows,
            row_blocks: m.div_ceil(block_rows),
            column_blocks,
        })
    }

    /// Where one of the blocks lies.
    fn block(&self, index: usize) -> Block {
        let (column, row) = (index / self.row_blocks * BLOCK_COLUMNS, index % self.row_blocks * self.block_rows);
        let (end_row, end_column) = ((row + self.block_rows).min(self.m), (column + BLOCK_COLUMNS).min(self.n));
        Block { rows: row..end_row, columns: column..end_column }
    }
}

/// Buffers of one thread, kept from product to product.
#[derive(Default)]
struct Scratch {
    /// Panels of the chunk under the tiles.
    panels: Vec<Line>,
    /// Panels of the chunk after it.
    ahead: Vec<Line>,
    /// `[rows, BLOCK_COLUMNS]`.
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

struct Block {
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Block {
    /// What its panels hold, one filling after the other.
    fn chunks<'a, E: Element>(&self, level: Level, terms: &[Term<'a, E>]) -> impl Iterator<Item = Chunk<'a, E>> {
        let columns = self.columns.clone();
        let paneled = terms.iter().filter(|term| !term.is_few_rows());
        paneled.flat_map(move |term| Chunk::of(level, *term, columns.clone()))
    }

    /// Fills the block's sums, `[rows, BLOCK_COLUMNS]`. `is_ready` says that the first chunk is laid out. Returns whether `ahead`
    /// is laid out afterwards, which happens under the block's own tiles, if there are any.
    fn sum<E: Element>(
        &self,
        level: Level,
        terms: &[Term<'_, E>],
        is_ready: bool,
        ahead: Option<&Chunk<'_, E>>,
        scratch: &mut Scratch,
    ) -> bool {
        scratch.sums.resize(self.rows.len() * BLOCK_COLUMNS, 0.0);
        let mut add = false;
        for term in terms.iter().filter(|term| term.is_few_rows()) {
            let sums = &mut scratch.sums;
            of_rows!(term.matrix, |matrix| {
                let few = match term.side {
                    Side::Transposed => few_rows::dots,
                    Side::Plain => few_rows::row_sums,
                };
                few(level, term.x, self.rows.clone(), matrix, self.columns.clone(), sums, BLOCK_COLUMNS, add);
            });
            add = true;
        }
        let mut chunks = self.chunks(level, terms).peekable();
        let mut is_ready = is_ready;
        while let Some(chunk) = chunks.next() {
            if !is_ready {
                Filling::new(level, &chunk, &mut scratch.panels).complete();
            }
            let next = chunks.peek().or(ahead).filter(|_| fills_under_tiles(level));
            self.tiles(level, &chunk, next, scratch, add);
            is_ready = next.is_some();
            if is_ready {
                std::mem::swap(&mut scratch.panels, &mut scratch.ahead);
            }
            add = true;
        }
        if !add {
            scratch.sums.fill(0.0);
        }
        is_ready
    }

    /// Adds the rows of one chunk times its panels to the sums, and lays out the panels of the next one.
    fn tiles<E: Element>(
        &self,
        level: Level,
        chunk: &Chunk<'_, E>,
        next: Option<&Chunk<'_, E>>,
        scratch: &mut Scratch,
        add: bool,
    ) {
        let Scratch { panels, ahead, sums } = scratch;
        let mut filling = next.map(|next| Filling::new(level, next, ahead));
        let laid_out = chunk.laid_out(level, panels);
        let tile_rows = tile::rows(level);
        let tiles = self.rows.len().div_ceil(tile_rows);
        for number in 0..tiles {
            if let Some(filling) = &mut filling {
                filling.advance(number, tiles);
            }
            let start = number * tile_rows;
            #[cfg(target_arch = "x86_64")]
            super::prefetch::bring_sums(sums, (start + tile_rows) * BLOCK_COLUMNS, tile_rows * BLOCK_COLUMNS);
            let rows = self.rows.start + start..(self.rows.start + start + tile_rows).min(self.rows.end);
            for (number, panel) in laid_out.clone().enumerate() {
                let sums = &mut sums[start * BLOCK_COLUMNS + number * LANES..];
                chunk.term.tile(level, rows.clone(), chunk.inner.clone(), panel, sums, add);
            }
        }
        if let Some(mut filling) = filling {
            filling.complete();
        }
    }
}

#[cfg(test)]
#[path = "product_tests.rs"]
mod tests;
