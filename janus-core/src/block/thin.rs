//! The low-rank factors of a block's sites, laid out in one flat f32 tensor, and their gradients.
//!
//! Of each site with terms: the A of every term, one behind the other, then every B; behind all of them what else is
//! trained. One input of the tape's node carries them all; candle's `cat` hands the gradients back to the factors.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use crate::kernel::low_rank::{down, outer};
use crate::kernel::{Element, Matrix, Rows};
use crate::noise;
use crate::site::LowRank;

/// The terms of one site, each with the key of its dropout in training.
pub(crate) type KeyedTerms = Vec<(LowRank, Option<u64>)>;

/// Where the factors of one site lie, and how they enter.
#[derive(Debug, Clone)]
struct SitePlan {
    input: usize,
    output: usize,
    offset: usize,
    terms: Vec<TermPlan>,
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
    /// Lays out the terms of the sites (input and output sizes, terms, and the dropout key of each in training) and,
    /// behind them, the f32 tensors `beside`; returns the flat tensor, `None` where there is nothing in it.
    ///
    /// # Errors
    /// Factors that do not fit their site or each other.
    pub(super) fn of(sites: &[(usize, usize, KeyedTerms)], beside: &[Tensor]) -> Result<(Self, Option<Tensor>)> {
        let mut plan = Self { sites: Vec::with_capacity(sites.len()), beside: 0, len: 0 };
        let mut parts = Vec::new();
        for (input, output, terms) in sites {
            if terms.is_empty() {
                plan.sites.push(None);
                continue;
            }
            let mut own = SitePlan { input: *input, output: *output, offset: plan.len, terms: Vec::new() };
            for (term, key) in terms {
                let (a, b) = (term.a.dims(), term.b.dims());
                let rank = a.first().copied().unwrap_or(0);
                if a != [rank, *input] || b != [*output, rank] {
                    bail!("factors of shapes {a:?} and {b:?} do not fit a site of {input} inputs and {output} outputs");
                }
                let dropout = key.filter(|_| term.dropout > 0.0);
                let dropout = dropout.map(|key| Dropout { probability: term.dropout, key });
                own.terms.push(TermPlan { rank, scale: term.scale as f32, dropout });
                parts.push(term.a.flatten_all()?);
            }
            for (term, _) in terms {
                parts.push(term.b.flatten_all()?);
            }
            plan.len += own.len();
            plan.sites.push(Some(own));
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
    fn rank(&self) -> usize {
        self.terms.iter().map(|term| term.rank).sum()
    }

    fn len(&self) -> usize {
        self.rank() * (self.input + self.output)
    }

    /// Where every A lies in the flat tensor.
    fn place_of_a(&self) -> Range<usize> {
        self.offset..self.offset + self.rank() * self.input
    }

    /// Where every B lies in the flat tensor.
    fn place_of_b(&self) -> Range<usize> {
        self.place_of_a().end..self.offset + self.len()
    }
}

/// The factors of one site: all terms side by side.
#[derive(Debug)]
pub(super) struct Thin<'a> {
    plan: &'a SitePlan,
    /// `[rank, input]`.
    pub(super) a: Rows<'a, f32>,
    /// Bᵀ times its scale, `[rank, output]`.
    scaled_b: Vec<f32>,
}

impl<'a> Thin<'a> {
    fn new(plan: &'a SitePlan, flat: &'a [f32]) -> Self {
        let rank = plan.rank();
        let (a, mut b) = flat[plan.offset..plan.offset + plan.len()].split_at(rank * plan.input);
        let mut scaled_b = Vec::with_capacity(rank * plan.output);
        for term in &plan.terms {
            let (own, rest) = b.split_at(term.rank * plan.output);
            b = rest;
            scaled_b.extend(Rows::dense(own, plan.output, term.rank).turned().into_iter().map(|v| v * term.scale));
        }
        Self { plan, a: Rows::dense(a, rank, plan.input), scaled_b }
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
            let own = down(&[(x, vec![self.a.part(ranks.clone(), 0..self.plan.input)])]).concat();
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
pub(super) fn hidden<E: Element>(sites: &[Option<Thin<'_>>], x: Rows<'_, E>) -> Vec<Option<Vec<f32>>> {
    let plain = |thin: &&Thin<'_>| !thin.drops();
    let factors: Vec<Rows<'_, f32>> = sites.iter().flatten().filter(plain).map(|thin| thin.a).collect();
    let mut own = if factors.is_empty() { Vec::new() } else { down(&[(x, factors)]) }.into_iter();
    let mut of_site = |thin: &Thin<'_>| match thin.drops() {
        true => thin.masked_hidden(x),
        false => own.next().expect("a result for every factor"),
    };
    sites.iter().map(Option::as_ref).map(|thin| thin.map(&mut of_site)).collect()
}

/// Gradient of each site's [`hidden`] from that of its output, `[m, rank]`.
pub(super) fn d_hidden<E: Element>(sites: &[Option<Thin<'_>>], dy: &[Rows<'_, E>]) -> Vec<Option<Vec<f32>>> {
    let factors = sites.iter().zip(dy).filter_map(|(thin, dy)| Some((*dy, vec![thin.as_ref()?.b()])));
    let mut own = down(&factors.collect::<Vec<_>>()).into_iter();
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
