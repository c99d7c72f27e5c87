//! What corrects a block's sites, laid out in one flat f32 tensor, and its gradients.
//!
//! Of each corrected site: the A of every low-rank term, one behind the other, then every B, then factors on the input, factors
//! on the output and a bias where there are some; behind all sites what else is trained. One input of the tape's node carries
//! them all; candle's `cat` hands the gradients back to where the values come from.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::kronecker::Product;
use crate::kernel::low_rank::{down, outer};
use crate::kernel::{Element, Matrix, Rows, SumOrder};
use crate::noise;
use crate::site::{Kronecker, LowRank};

/// The correction of one site as a block takes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SiteForm {
    /// Features of the site's input.
    pub(crate) input_width: usize,
    /// Features of its output.
    pub(crate) output_width: usize,
    /// Low-rank terms, each with the key of its dropout in training.
    pub(crate) terms: Vec<(LowRank, Option<u64>)>,
    /// Kronecker products; not beside factors on the output.
    pub(crate) products: Vec<Kronecker>,
    /// Factors on the input, `[input]`, f32.
    pub(crate) input: Option<Tensor>,
    /// Factors on what the weight gives, `[output]`, f32.
    pub(crate) output: Option<Tensor>,
    /// Stands in the place of the site's own bias, `[output]`, f32.
    pub(crate) bias: Option<Tensor>,
}

impl SiteForm {
    fn is_empty(&self) -> bool {
        self.terms.is_empty()
            && self.products.is_empty()
            && self.input.is_none()
            && self.output.is_none()
            && self.bias.is_none()
    }
}

/// Where the correction of one site lies, and how it enters.
#[derive(Debug, Clone)]
struct SitePlan {
    input: usize,
    output: usize,
    offset: usize,
    terms: Vec<TermPlan>,
    /// First values of the vectors.
    input_factors: Option<usize>,
    output_factors: Option<usize>,
    bias: Option<usize>,
    products: Vec<ProductPlan>,
}

/// Where the factors of a Kronecker product lie.
#[derive(Debug, Clone)]
struct ProductPlan {
    /// `[O₁, I₁]` and `[O₂, I₂]`.
    left: [usize; 2],
    right: [usize; 2],
    /// First value of the left factor; the right one follows.
    place: usize,
    scale: f32,
}

impl ProductPlan {
    fn left_place(&self) -> Range<usize> {
        self.place..self.place + self.left[0] * self.left[1]
    }

    fn right_place(&self) -> Range<usize> {
        let start = self.left_place().end;
        start..start + self.right[0] * self.right[1]
    }
}

#[derive(Debug, Clone)]
struct TermPlan {
    rank: usize,
    scale: f32,
    dropout: Option<Dropout>,
}

/// Which of a term's inputs are zeroed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dropout {
    pub(super) probability: f64,
    pub(super) key: u64,
}

/// Where the factors of all sites of a block lie in the flat tensor.
#[derive(Debug, Clone)]
pub(super) struct ThinPlan {
    sites: Vec<Option<SitePlan>>,
    beside: usize,
    len: usize,
}

impl ThinPlan {
    /// Lays out the corrections of the sites and, behind them, the f32 tensors `beside`; returns the flat tensor, `None` where
    /// there is nothing in it.
    ///
    /// # Errors
    /// Factors that do not fit their site or each other.
    pub(super) fn of(sites: &[SiteForm], beside: &[Tensor]) -> Result<(Self, Option<Tensor>)> {
        let mut plan = Self { sites: Vec::with_capacity(sites.len()), beside: 0, len: 0 };
        let mut parts = Vec::new();
        for form in sites {
            let own = if form.is_empty() { None } else { Some(SitePlan::of(form, plan.len, &mut parts)?) };
            plan.len = own.as_ref().map_or(plan.len, SitePlan::end);
            plan.sites.push(own);
        }
        plan.beside = plan.len;
        for tensor in beside {
            plan.len += tensor.elem_count();
            parts.push(tensor.flatten_all()?);
        }
        let flat = if parts.is_empty() { None } else { Some(Tensor::cat(&parts, 0)?) };
        Ok((plan, flat))
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Place of the first value behind the factors.
    pub(super) fn beside(&self) -> usize {
        self.beside
    }

    /// The factors of each site.
    pub(super) fn read<'a>(&'a self, flat: &'a [f32]) -> Vec<Option<Thin<'a>>> {
        self.sites.iter().map(|site| site.as_ref().map(|plan| Thin::new(plan, flat))).collect()
    }
}

impl SitePlan {
    /// Lays out a site's correction from `offset` on and appends its tensors to `parts`.
    fn of(form: &SiteForm, offset: usize, parts: &mut Vec<Tensor>) -> Result<Self> {
        let (input, output) = (form.input_width, form.output_width);
        let (terms, products) = (Vec::with_capacity(form.terms.len()), Vec::with_capacity(form.products.len()));
        let (input_factors, output_factors, bias) = (None, None, None);
        let mut own = Self { input, output, offset, terms, input_factors, output_factors, bias, products };
        for (term, key) in &form.terms {
            let (a, b) = (term.a.dims(), term.b.dims());
            let rank = a.first().copied().unwrap_or(0);
            if a != [rank, input] || b != [output, rank] {
                bail!("factors of shapes {a:?} and {b:?} do not fit a site of {input} inputs and {output} outputs");
            }
            let dropout = key.filter(|_| term.dropout > 0.0);
            let dropout = dropout.map(|key| Dropout { probability: term.dropout, key });
            own.terms.push(TermPlan { rank, scale: term.scale as f32, dropout });
            parts.push(term.a.flatten_all()?);
        }
        for (term, _) in &form.terms {
            parts.push(term.b.flatten_all()?);
        }
        let mut end = own.place_of_b().end;
        let mut place = |vector: &Option<Tensor>, length: usize| -> Result<Option<usize>> {
            let Some(vector) = vector else { return Ok(None) };
            if vector.dims() != [length] {
                bail!(
                    "a vector of shape {:?} does not fit a site of {input} inputs and {output} outputs",
                    vector.dims()
                );
            }
            parts.push(vector.clone());
            end += length;
            Ok(Some(end - length))
        };
        own.input_factors = place(&form.input, input)?;
        own.output_factors = place(&form.output, output)?;
        own.bias = place(&form.bias, output)?;
        for Kronecker { left, right, scale } in &form.products {
            let ((o1, i1), (o2, i2)) = (left.dims2()?, right.dims2()?);
            if [o1 * o2, i1 * i2] != [output, input] || own.output_factors.is_some() {
                bail!(
                    "a product of [{o1}, {i1}] and [{o2}, {i2}] does not fit a site of {input} inputs and {output} outputs"
                );
            }
            let plan = ProductPlan { left: [o1, i1], right: [o2, i2], place: own.end(), scale: *scale as f32 };
            own.products.push(plan);
            parts.extend([left.flatten_all()?, right.flatten_all()?]);
        }
        Ok(own)
    }

    fn rank(&self) -> usize {
        self.terms.iter().map(|term| term.rank).sum()
    }

    /// Place of the first value behind all of it.
    fn end(&self) -> usize {
        let vector = |place: Option<usize>, length: usize| if place.is_some() { length } else { 0 };
        let vectors = vector(self.input_factors, self.input)
            + vector(self.output_factors, self.output)
            + vector(self.bias, self.output);
        let end = self.place_of_b().end + vectors;
        self.products.last().map_or(end, |product| product.right_place().end)
    }

    /// Where every A lies in the flat tensor.
    fn place_of_a(&self) -> Range<usize> {
        self.offset..self.offset + self.rank() * self.input
    }

    /// Where every B lies in the flat tensor.
    fn place_of_b(&self) -> Range<usize> {
        self.place_of_a().end..self.offset + self.rank() * (self.input + self.output)
    }
}

/// The correction of one site: all terms side by side, and its vectors.
#[derive(Debug)]
pub(super) struct Thin<'a> {
    plan: &'a SitePlan,
    /// `[rank, input]`.
    pub(super) a: Rows<'a, f32>,
    /// Bᵀ times its scale, `[rank, output]`.
    scaled_b: Vec<f32>,
    /// Factors on the input, `[input]`.
    pub(super) input: Option<&'a [f32]>,
    /// Factors on what the weight gives, `[output]`.
    pub(super) output: Option<&'a [f32]>,
    /// In the place of the site's own bias, `[output]`.
    pub(super) bias: Option<&'a [f32]>,
    products: Vec<Product<'a>>,
}

impl<'a> Thin<'a> {
    fn new(plan: &'a SitePlan, flat: &'a [f32]) -> Self {
        let rank = plan.rank();
        let (a, mut b) = (&flat[plan.place_of_a()], &flat[plan.place_of_b()]);
        let vector = |place: Option<usize>, length: usize| place.map(|place| &flat[place..place + length]);
        let mut scaled_b = Vec::with_capacity(rank * plan.output);
        for term in &plan.terms {
            let (own, rest) = b.split_at(term.rank * plan.output);
            b = rest;
            scaled_b.extend(Rows::dense(own, plan.output, term.rank).turned().into_iter().map(|v| v * term.scale));
        }
        Self {
            plan,
            a: Rows::dense(a, rank, plan.input),
            scaled_b,
            input: vector(plan.input_factors, plan.input),
            output: vector(plan.output_factors, plan.output),
            bias: vector(plan.bias, plan.output),
            products: plan
                .products
                .iter()
                .map(|own| Product {
                    left: Rows::dense(&flat[own.left_place()], own.left[0], own.left[1]),
                    right: Rows::dense(&flat[own.right_place()], own.right[0], own.right[1]),
                    scale: own.scale,
                })
                .collect(),
        }
    }

    pub(super) fn rank(&self) -> usize {
        self.a.count()
    }

    /// Bᵀ times its scale, `[rank, output]`.
    pub(super) fn b(&self) -> Rows<'_, f32> {
        Rows::dense(&self.scaled_b, self.rank(), self.plan.output)
    }

    /// Whether some of the input is zeroed before A.
    pub(super) fn drops(&self) -> bool {
        self.plan.terms.iter().any(|term| term.dropout.is_some())
    }

    /// Runs `f` for each run of rank rows that sees the same input, which is `x` or what dropout leaves of it.
    fn each_input<E: Element>(&self, x: Rows<'_, E>, mut f: impl FnMut(Range<usize>, Rows<'_, E>, f32)) {
        let mut first = 0;
        for term in &self.plan.terms {
            let ranks = first..first + term.rank;
            first = ranks.end;
            match &term.dropout {
                None => f(ranks, x, 1.0),
                Some(dropout) => f(ranks, dropout.apply(x).view(), dropout.factor()),
            }
        }
    }

    /// `x·Aᵀ` behind the dropout, `[m, rank]`.
    fn masked_hidden<E: Element>(&self, x: Rows<'_, E>) -> Vec<f32> {
        let mut hidden = vec![0f32; x.count() * self.rank()];
        self.each_input(x, |ranks, x, factor| {
            let factors = vec![self.a.part(ranks.clone(), 0..self.plan.input)];
            let own = down(&[(x, factors)], SumOrder::ByCount).concat();
            for (row, own) in hidden.chunks_exact_mut(self.rank().max(1)).zip(own.chunks_exact(ranks.len().max(1))) {
                row[ranks.clone()].iter_mut().zip(own).for_each(|(h, o)| *h = o * factor);
            }
        });
        hidden
    }

    /// Writes the gradient of every A, its input being masked anew.
    fn masked_gradient_of_a<E: Element>(&self, x: Rows<'_, E>, d_hidden: &[f32], flat: &mut [f32]) {
        let d_hidden = Rows::dense(d_hidden, x.count(), self.rank());
        let d_a = &mut flat[self.plan.place_of_a()];
        self.each_input(x, |ranks, x, factor| {
            let own = outer(&[(vec![d_hidden.part(0..x.count(), ranks.clone())], x)]).concat();
            let d_a = &mut d_a[ranks.start * self.plan.input..ranks.end * self.plan.input];
            d_a.iter_mut().zip(own).for_each(|(d, o)| *d = o * factor);
        });
    }

    /// Writes the gradient of every B, given that of the scaled Bᵀ, `[rank, output]`.
    fn gradient_of_b(&self, turned: &[f32], flat: &mut [f32]) {
        let (mut d_b, mut first) = (&mut flat[self.plan.place_of_b()], 0);
        for term in &self.plan.terms {
            let (own, rest) = d_b.split_at_mut(term.rank * self.plan.output);
            d_b = rest;
            let rows = &turned[first * self.plan.output..][..own.len()];
            for (target, value) in own.iter_mut().zip(Rows::dense(rows, term.rank, self.plan.output).turned()) {
                *target = value * term.scale;
            }
            first += term.rank;
        }
    }

    /// What the Kronecker products give of `x`, `[m, output]`; `None` without any.
    pub(super) fn products_of<E: Element>(&self, x: Rows<'_, E>, order: SumOrder) -> Option<Vec<f32>> {
        if self.products.is_empty() {
            return None;
        }
        let mut y = vec![0f32; x.count() * self.plan.output];
        self.products.iter().for_each(|product| product.add_to(x, order, &mut y));
        Some(y)
    }

    /// Writes the gradients of the Kronecker products; where `wanted`, what the gradient of the input gets through them,
    /// `[m, input]`, `None` without any.
    pub(super) fn product_gradients<E: Element>(
        &self,
        x: Rows<'_, E>,
        dy: Rows<'_, E>,
        flat: &mut [f32],
        wanted: bool,
    ) -> Option<Vec<f32>> {
        if self.products.is_empty() {
            return None;
        }
        let mut dx = wanted.then(|| vec![0f32; x.count() * self.plan.input]);
        for (product, own) in self.products.iter().zip(&self.plan.products) {
            let (before, behind) = flat.split_at_mut(own.left_place().end);
            let d_right = &mut behind[..own.right[0] * own.right[1]];
            product.backward(x, dy, &mut before[own.left_place()], d_right, dx.as_deref_mut());
        }
        dx
    }

    /// Writes the gradients of factors on the output and of the bias: `y` is what the site gives before anything of its shape is
    /// added, `dy` the gradient of that; `weight_row` gives an output's weights, `x` is the site's input. The gradient of B is
    /// in `flat` already.
    ///
    /// With `y = output ⊙ z + T + bias`, that of a factor is `Σ dy·z`, and z is had from y: `Σ dy·T` is what `B ⊙ dB` sums to,
    /// since T is linear in B. Where a factor is next to nothing, z is made anew.
    pub(super) fn vector_gradients<E: Element>(
        &self,
        y: Rows<'_, E>,
        dy: Rows<'_, E>,
        own_bias: Option<&[E]>,
        z_of: &dyn Fn(usize) -> Vec<f32>,
        flat: &mut [f32],
    ) {
        let width = self.plan.output;
        if let Some(place) = self.plan.bias {
            let sums = column_sums(dy, |_, _, dy| dy);
            flat[place..place + width].copy_from_slice(&sums);
        }
        let (Some(place), Some(factors)) = (self.plan.output_factors, self.output) else { return };
        let bias = |column: usize| match (self.bias, own_bias) {
            (Some(bias), _) => bias[column],
            (None, Some(bias)) => bias[column].widen(),
            (None, None) => 0.0,
        };
        let biases: Vec<f32> = (0..width).map(bias).collect();
        let mut sums = column_sums(dy, |row, column, dy| dy * (y.row(row)[column].widen() - biases[column]));
        let (of_b, mut first) = (&flat[self.plan.place_of_b()], 0);
        for term in &self.plan.terms {
            let d_b = &of_b[first * width..][..term.rank * width];
            for (column, sum) in sums.iter_mut().enumerate() {
                let products = (0..term.rank).map(|r| {
                    // The gradient is that of B, its value here Bᵀ times the scale.
                    let scaled = self.scaled_b[(first + r) * width + column];
                    if term.scale == 0.0 { 0.0 } else { scaled / term.scale * d_b[column * term.rank + r] }
                });
                *sum -= products.sum::<f32>();
            }
            first += term.rank;
        }
        for (column, (sum, factor)) in sums.iter_mut().zip(factors).enumerate() {
            *sum = if factor.abs() < NEXT_TO_NOTHING {
                z_of(column).iter().enumerate().map(|(row, z)| dy.row(row)[column].widen() * z).sum()
            } else {
                *sum / factor
            };
        }
        flat[place..place + width].copy_from_slice(&sums);
    }

    /// Adds to the gradient of the input what it gets through factors on it, and writes the gradient of these: `g: [m, input]`
    /// is the gradient of the input behind the factors.
    pub(super) fn input_gradients<E: Element>(&self, x: Rows<'_, E>, g: &[f32], flat: &mut [f32]) {
        let Some(place) = self.plan.input_factors else { return };
        let width = self.plan.input;
        let g = Rows::dense(g, x.count(), width);
        let sums = column_sums(g, |row, column, g| g * x.row(row)[column].widen());
        flat[place..place + width].copy_from_slice(&sums);
    }

    /// Adds what the gradient of the input gets through A and the dropout: `dx += mask(d_hidden·A)`.
    pub(super) fn add_d_input<E: Element>(&self, d_hidden: &[f32], dx: &mut Matrix<E>) {
        let (rank, width, stride) = (self.rank(), self.plan.input, dx.stride());
        let mut first = 0;
        for term in &self.plan.terms {
            let rows = dx.values_mut().chunks_mut(stride).zip(d_hidden.chunks_exact(rank.max(1)));
            for (i, (row, d_hidden)) in rows.enumerate() {
                let mut sums = vec![0f32; width];
                for (j, factor) in d_hidden[first..first + term.rank].iter().enumerate() {
                    sums.iter_mut().zip(self.a.row(first + j)).for_each(|(s, a)| *s += factor * a);
                }
                for (column, (value, sum)) in row.iter_mut().zip(&sums).enumerate() {
                    let share = match &term.dropout {
                        Some(dropout) if dropout.drops((i * width + column) as u64) => continue,
                        Some(dropout) => sum * dropout.factor(),
                        None => *sum,
                    };
                    *value = E::narrow(value.widen() + share);
                }
            }
            first += term.rank;
        }
    }
}

/// Below it, what a factor multiplies cannot be had from the product.
const NEXT_TO_NOTHING: f32 = 1e-3;

/// Rows whose share of a sum over rows is summed in one piece.
const SUMMED_ROWS: usize = 64;

/// `Σ_rows f(row, column, value)` of every column. Pieces of rows are summed apart and then in their order, so that the threads
/// change nothing.
fn column_sums<E: Element>(values: Rows<'_, E>, f: impl Fn(usize, usize, f32) -> f32 + Sync) -> Vec<f32> {
    let (count, width) = (values.count(), values.width());
    let pieces: Vec<Vec<f32>> = (0..count.div_ceil(SUMMED_ROWS))
        .into_par_iter()
        .map(|piece| {
            let mut sums = vec![0f32; width];
            for row in piece * SUMMED_ROWS..count.min((piece + 1) * SUMMED_ROWS) {
                for (column, (sum, value)) in sums.iter_mut().zip(values.row(row)).enumerate() {
                    *sum += f(row, column, value.widen());
                }
            }
            sums
        })
        .collect();
    let mut sums = vec![0f32; width];
    pieces.iter().for_each(|piece| sums.iter_mut().zip(piece).for_each(|(sum, own)| *sum += own));
    sums
}

/// A matrix with its columns multiplied.
pub(super) fn scaled<E: Element>(x: Rows<'_, E>, factors: &[f32]) -> Matrix<E> {
    let mut scaled = Matrix::new(x.count(), x.width());
    let (stride, width) = (scaled.stride().max(1), x.width());
    scaled.values_mut().par_chunks_mut(stride).enumerate().for_each(|(row, target)| {
        for ((target, value), factor) in target[..width].iter_mut().zip(x.row(row)).zip(factors) {
            *target = E::narrow(value.widen() * factor);
        }
    });
    scaled
}

impl Dropout {
    /// What the kept values are multiplied by; where none is kept, nothing times infinity must not come up.
    fn factor(&self) -> f32 {
        if self.probability < 1.0 { (1.0 / (1.0 - self.probability)) as f32 } else { 0.0 }
    }

    fn drops(&self, index: u64) -> bool {
        noise::uniform(self.key, index) < self.probability
    }

    /// The input with zeroes, not yet divided by what is kept.
    fn apply<E: Element>(&self, x: Rows<'_, E>) -> Matrix<E> {
        let mut kept = Matrix::zeros(x.count(), x.width());
        let stride = kept.stride();
        for (i, row) in kept.values_mut().chunks_mut(stride).enumerate() {
            for (column, (target, value)) in row.iter_mut().zip(x.row(i)).enumerate() {
                if !self.drops((i * x.width() + column) as u64) {
                    *target = *value;
                }
            }
        }
        kept
    }
}

/// `x·Aᵀ` behind the dropout, `[m, rank]`, of each of several sites that share their input.
pub(super) fn hidden<E: Element>(sites: &[Option<Thin<'_>>], x: Rows<'_, E>, order: SumOrder) -> Vec<Option<Vec<f32>>> {
    let plain = |thin: &&Thin<'_>| !thin.drops();
    let factors: Vec<Rows<'_, f32>> = sites.iter().flatten().filter(plain).map(|thin| thin.a).collect();
    let mut own = if factors.is_empty() { Vec::new() } else { down(&[(x, factors)], order) }.into_iter();
    let mut of_site = |thin: &Thin<'_>| match thin.drops() {
        true => thin.masked_hidden(x),
        false => own.next().expect("a result for every factor"),
    };
    sites.iter().map(Option::as_ref).map(|thin| thin.map(&mut of_site)).collect()
}

/// Gradient of each site's [`hidden`] from that of its output, `[m, rank]`.
pub(super) fn d_hidden<E: Element>(sites: &[Option<Thin<'_>>], dy: &[Rows<'_, E>]) -> Vec<Option<Vec<f32>>> {
    let factors = sites.iter().zip(dy).filter_map(|(thin, dy)| Some((*dy, vec![thin.as_ref()?.b()])));
    let mut own = down(&factors.collect::<Vec<_>>(), SumOrder::ByCount).into_iter();
    let mut of_site = |_: &Thin<'_>| own.next().expect("a result for every factor");
    sites.iter().map(Option::as_ref).map(|thin| thin.map(&mut of_site)).collect()
}

/// Writes the gradients of the factors of sites that share their input into the flat gradient; `hidden` and `d_hidden` are
/// as the functions of these names return them.
pub(super) fn gradients<E: Element>(
    sites: &[Option<Thin<'_>>],
    x: Rows<'_, E>,
    dy: &[Rows<'_, E>],
    hidden: &[Option<Vec<f32>>],
    d_hidden: &[Option<Vec<f32>>],
    flat: &mut [f32],
) {
    let m = x.count();
    let mut own = Vec::with_capacity(sites.len());
    for (((thin, dy), hidden), d_hidden) in sites.iter().zip(dy).zip(hidden).zip(d_hidden) {
        if let (Some(thin), Some(hidden), Some(d_hidden)) = (thin, hidden, d_hidden) {
            own.push((thin, *dy, hidden, d_hidden));
        }
    }
    let rows = |thin: &Thin<'_>, values| Rows::dense(values, m, thin.rank());
    let mut groups: Vec<_> = own.iter().map(|(thin, dy, hidden, _)| (vec![rows(thin, hidden)], *dy)).collect();
    let plain = own.iter().filter(|(thin, ..)| !thin.drops());
    let shared: Vec<_> = plain.map(|(thin, _, _, d_hidden)| rows(thin, d_hidden)).collect();
    if !shared.is_empty() {
        groups.push((shared, x));
    }
    let made = outer(&groups);
    let (of_b, of_a) = made.split_at(own.len());
    let mut of_a = of_a.iter();
    for ((thin, _, _, d_hidden), of_b) in own.iter().zip(of_b) {
        thin.gradient_of_b(of_b, flat);
        if thin.drops() {
            thin.masked_gradient_of_a(x, d_hidden, flat);
        } else {
            flat[thin.plan.place_of_a()].copy_from_slice(of_a.next().expect("a result for every factor"));
        }
    }
}

/// Several sites that share their input: their hidden values and A's side by side.
pub(super) fn beside(parts: &[(&[f32], Rows<'_, f32>)], m: usize) -> (Vec<f32>, Vec<f32>) {
    let rank: usize = parts.iter().map(|(_, a)| a.count()).sum();
    let mut hidden = Vec::with_capacity(m * rank);
    for i in 0..m {
        for (own, a) in parts {
            hidden.extend_from_slice(&own[i * a.count()..(i + 1) * a.count()]);
        }
    }
    let rows = parts.iter().flat_map(|(_, a)| (0..a.count()).flat_map(|j| a.row(j).iter().copied()));
    (hidden, rows.collect())
}
