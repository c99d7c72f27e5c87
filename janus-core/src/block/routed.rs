//! Sites and norms whose rows have routes: the weights are read once for all rows, each row gets what its own slots add.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::kronecker::Product;
use super::rows;
use super::view::{BlockView, NormView, O};
use crate::kernel::{Blocks, Element, Finish, Job, Matrix, Rows, Share, SumOrder, Term, products};
use crate::ops::values::{Stored, with_slices};
use crate::pass::Span;
use crate::site::Blend;

/// Spans were laid over all rows of the block.
const ROUTED: &str = "every row of a routed block has a span";

/// What a pass with routes computes with in a block.
#[derive(Debug)]
pub(crate) struct Routed {
    /// Runs of all rows.
    spans: Vec<Span>,
    /// Of each site what each mixture makes of it.
    sites: Vec<Vec<Blend>>,
    /// Of each norm and each mixture the weight and the bias in the place of the norm's own, f32.
    norms: [Vec<Option<[Tensor; 2]>>; 2],
}

/// The same as slices.
#[derive(Debug)]
pub(super) struct RoutedView<'a, E> {
    /// Runs of the rows that meet the block's first sites, and of those that leave the attention.
    spans: [&'a [Span]; 2],
    sites: Vec<Vec<BlendView<'a, E>>>,
    norms: [Vec<Option<NormView<'a>>>; 2],
}

/// A mixture at one site.
#[derive(Debug)]
struct BlendView<'a, E> {
    pairs: Vec<PairView<'a, E>>,
    products: Vec<Product<'a>>,
    input: Option<&'a [f32]>,
    output: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
}

#[derive(Debug, Clone, Copy)]
struct PairView<'a, E> {
    /// `[rank, input]`.
    a: Blocks<'a, E>,
    /// `[rank, output]`.
    b: Blocks<'a, E>,
    factor: f32,
}

impl Routed {
    /// Of a single site.
    pub(super) fn of_site(spans: Vec<Span>, blends: Vec<Blend>) -> Self {
        Self { spans, sites: vec![blends], norms: [Vec::new(), Vec::new()] }
    }

    /// Of a block.
    pub(super) fn of(spans: Vec<Span>, sites: Vec<Vec<Blend>>, norms: [Vec<Option<[Tensor; 2]>>; 2]) -> Self {
        Self { spans, sites, norms }
    }

    /// The runs of some rows.
    pub(super) fn picked(&self, rows: &[u32]) -> Vec<Span> {
        Span::picked(&self.spans, rows.iter().map(|row| *row as usize)).expect(ROUTED)
    }

    /// Calls `f` with everything as slices; `kept` are the runs of the rows that leave the attention, all where absent; `own`
    /// is the block.
    pub(super) fn with_view<E: Stored, T>(
        &self,
        kept: Option<&[Span]>,
        own: &BlockView<'_, E>,
        f: impl FnOnce(&RoutedView<'_, E>) -> Result<T>,
    ) -> Result<T> {
        let blends = || self.sites.iter().flatten();
        let pairs = blends().flat_map(|blend| &blend.pairs).flat_map(|(pair, _)| [&pair.a, &pair.b]);
        let vectors = |blend: &'_ Blend| -> Vec<Tensor> {
            let products = blend.products.iter().flat_map(|product| [&product.left, &product.right]);
            products.chain(&blend.input).chain(&blend.output).chain(&blend.bias).cloned().collect()
        };
        let wide: Vec<Tensor> = blends().flat_map(vectors).collect();
        let wide: Vec<&Tensor> = wide.iter().chain(self.norms.iter().flatten().flatten().flatten()).collect();
        with_slices::<E, _>(&pairs.collect::<Vec<_>>(), |factors| {
            with_slices::<f32, _>(&wide, |wide| {
                let (mut factors, mut wide) = (factors.iter().copied(), wide.iter().copied());
                let mut sites = Vec::with_capacity(self.sites.len());
                for (site, linear) in self.sites.iter().zip(&own.linears) {
                    let size = [linear.weight.count(), linear.weight.width()];
                    let views = site.iter().map(|blend| BlendView::of(blend, size, &mut factors, &mut wide));
                    sites.push(views.collect::<Result<Vec<_>>>()?);
                }
                let mut of_norm = |which: usize| {
                    let own = self.norms[which].iter().map(|parameters| {
                        parameters.as_ref().map(|_| {
                            let (weight, bias) = (next(&mut wide), next(&mut wide));
                            let own = own.norms.expect("a block has norms")[which];
                            NormView { weight, bias: own.bias.map(|_| bias), ..own }
                        })
                    });
                    own.collect()
                };
                let norms = [of_norm(0), of_norm(1)];
                f(&RoutedView { spans: [&self.spans, kept.unwrap_or(&self.spans)], sites, norms })
            })
        })
    }
}

fn next<'a, E>(slices: &mut impl Iterator<Item = &'a [E]>) -> &'a [E] {
    slices.next().expect("one slice for every tensor")
}

impl<'a, E: Element> BlendView<'a, E> {
    /// Of a map of `[output, input]`.
    fn of(
        blend: &Blend,
        [output, input]: [usize; 2],
        factors: &mut impl Iterator<Item = &'a [E]>,
        wide: &mut impl Iterator<Item = &'a [f32]>,
    ) -> Result<Self> {
        let mut pairs = Vec::with_capacity(blend.pairs.len());
        for (pair, factor) in &blend.pairs {
            let rank = pair.a.dims3()?.1;
            let (a, b) = (Blocks::new(next(factors), rank, input), Blocks::new(next(factors), rank, output));
            pairs.push(PairView { a, b, factor: *factor });
        }
        let mut products = Vec::with_capacity(blend.products.len());
        for product in &blend.products {
            let ((o1, i1), (o2, i2)) = (product.left.dims2()?, product.right.dims2()?);
            let (left, right) = (Rows::dense(next(wide), o1, i1), Rows::dense(next(wide), o2, i2));
            products.push(Product { left, right, scale: product.scale as f32 });
        }
        let mut vector = |vector: &Option<Tensor>| vector.as_ref().map(|_| next(wide));
        let (input, output) = (vector(&blend.input), vector(&blend.output));
        Ok(Self { pairs, products, input, output, bias: vector(&blend.bias) })
    }
}

/// Rows that one thread takes through A at a time.
const ROWS_OF_A_PART: usize = 16;

/// A span's rows through A, times the factor, of one pair of one site.
struct Hidden {
    site: usize,
    span: usize,
    pair: usize,
    /// `[rows, rank]`.
    values: Vec<f32>,
}

impl<E: Element> RoutedView<'_, E> {
    /// The runs of the rows that meet a site.
    fn spans_at(&self, site: usize) -> &[Span] {
        self.spans[usize::from(site >= O)]
    }

    /// Sites that share their input: `x·Wᵀ + b`, each row with what its own mixture makes of them, and `add` on top.
    pub(super) fn sites<const N: usize>(
        &self,
        view: &BlockView<'_, E>,
        first: usize,
        x: Rows<'_, E>,
        add: Option<Rows<'_, E>>,
    ) -> [Matrix<E>; N] {
        let spans = self.spans_at(first);
        let hidden = self.hidden(spans, first..first + N, x);
        let mut outputs: [Matrix<E>; N] =
            std::array::from_fn(|i| Matrix::new(x.count(), view.linears[first + i].weight.count()));
        let inputs: [Option<Matrix<E>>; N] = std::array::from_fn(|i| self.scaled(spans, first + i, x));
        let through: [Option<Vec<f32>>; N] = std::array::from_fn(|i| {
            self.through(spans, first + i, x, view.linears[first + i].weight.count(), view.order)
        });
        let shares: [Vec<Share<'_, E>>; N] = std::array::from_fn(|i| self.shares(spans, first + i, &hidden));
        let jobs = outputs.iter_mut().enumerate().map(|(i, y)| {
            let linear = &view.linears[first + i];
            let out_stride = y.stride();
            let wide_add = through[i].as_ref().map(|own| Rows::dense(own, x.count(), linear.weight.count()));
            Job {
                terms: vec![
                    Term::transposed(inputs[i].as_ref().map_or(x, Matrix::view), linear.weight).in_order(view.order),
                ],
                finish: Finish { bias: linear.bias, wide_add, shares: &shares[i], add, ..Finish::default() },
                out: y.values_mut(),
                out_stride,
                kept: None,
            }
        });
        products(jobs.collect());
        outputs
    }

    /// Every span's rows through the A of every pair of its mixture, all in one round over the threads.
    fn hidden(&self, spans: &[Span], sites: std::ops::Range<usize>, x: Rows<'_, E>) -> Vec<Hidden> {
        let mut hidden = Vec::new();
        for site in sites {
            for (number, span) in spans.iter().enumerate() {
                for (pair, view) in self.sites[site][span.mixture].pairs.iter().enumerate() {
                    let values = vec![0f32; span.rows.len() * view.a.rank()];
                    hidden.push(Hidden { site, span: number, pair, values });
                }
            }
        }
        let of = |site: usize, span: usize, pair: usize| &self.sites[site][spans[span].mixture].pairs[pair];
        let of_rows: Vec<(PairView<'_, E>, Rows<'_, E>, &mut [f32])> = hidden
            .iter_mut()
            .flat_map(|Hidden { site, span, pair, values }| {
                let (own, rows) = (of(*site, *span, *pair), spans[*span].rows.clone());
                let parts = values.chunks_mut((ROWS_OF_A_PART * own.a.rank()).max(1)).enumerate();
                parts.map(move |(number, out)| {
                    let start = rows.start + number * ROWS_OF_A_PART;
                    let part = start..(start + ROWS_OF_A_PART).min(rows.end);
                    (*own, x.part(part, 0..x.width()), out)
                })
            })
            .collect();
        of_rows.into_par_iter().for_each(|(pair, x, out)| pair.a.down(x, pair.factor, out));
        hidden
    }

    fn shares<'a>(&'a self, spans: &[Span], site: usize, hidden: &'a [Hidden]) -> Vec<Share<'a, E>> {
        let mut own = hidden.iter().filter(|hidden| hidden.site == site).peekable();
        let share = |(number, span): (usize, &Span)| {
            let blend = &self.sites[site][span.mixture];
            let mut low_rank = Vec::with_capacity(blend.pairs.len());
            while let Some(hidden) = own.next_if(|hidden| hidden.span == number) {
                let b = blend.pairs[hidden.pair].b;
                low_rank.push((Rows::dense(&hidden.values, span.rows.len(), b.rank()), b));
            }
            Share { rows: span.rows.clone(), factors: blend.output, wide_bias: blend.bias, low_rank }
        };
        spans.iter().enumerate().map(share).collect()
    }

    /// The input under each row's factors; `None` where no row has any.
    fn scaled(&self, spans: &[Span], site: usize, x: Rows<'_, E>) -> Option<Matrix<E>> {
        let factors = |span: &Span| self.sites[site][span.mixture].input;
        spans.iter().find_map(factors)?;
        let mut scaled = Matrix::new(x.count(), x.width());
        let (stride, width) = (scaled.stride().max(1), x.width());
        scaled.values_mut().par_chunks_mut(stride).enumerate().for_each(|(row, target)| {
            let span = Span::of_row(spans, row).expect(ROUTED);
            let target = &mut target[..width];
            match factors(span) {
                Some(factors) => {
                    for ((target, value), factor) in target.iter_mut().zip(x.row(row)).zip(factors) {
                        *target = E::narrow(value.widen() * factor);
                    }
                }
                None => target.copy_from_slice(x.row(row)),
            }
        });
        Some(scaled)
    }

    /// What Kronecker products give of the rows that have some, `[m, output]`; `None` without any.
    fn through(&self, spans: &[Span], site: usize, x: Rows<'_, E>, output: usize, order: SumOrder) -> Option<Vec<f32>> {
        let of = |span: &Span| &self.sites[site][span.mixture].products;
        if spans.iter().all(|span| of(span).is_empty()) {
            return None;
        }
        let mut y = vec![0f32; x.count() * output];
        for span in spans {
            let own = x.part(span.rows.clone(), 0..x.width());
            let y = &mut y[span.rows.start * output..span.rows.end * output];
            of(span).iter().for_each(|product| product.add_to(own, order, y));
        }
        Some(y)
    }

    /// One of the block's norms over every row, with the parameters of its mixture.
    pub(super) fn norm(&self, which: usize, own: &NormView<'_>, x: Rows<'_, E>) -> Matrix<E> {
        let (spans, norms) = (self.spans[which], &self.norms[which]);
        if norms.iter().all(Option::is_none) {
            return rows::norm(x, own);
        }
        rows::norm_by_row(x, |row| {
            let span = Span::of_row(spans, row).expect(ROUTED);
            norms[span.mixture].as_ref().unwrap_or(own)
        })
    }
}
