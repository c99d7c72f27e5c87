//! A block forward, and what its backward needs.

use candle_core::Result;

use super::routed::RoutedView;
use super::rows::{gather, gelu, norm, rotate, silu_gate};
use super::thin::{self, Thin};
use super::view::{BlockView, MLP, O, Q};
use crate::kernel::attention::{self, Attended, Heads, KeyValues, Segment};
use crate::kernel::{Element, Finish, Job, Matrix, Rows, Term, products};

/// Cosines and sines of every token, `[tokens, head_dim / 2]` each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Angles<'a> {
    pub(super) cosines: &'a [f32],
    pub(super) sines: &'a [f32],
}

/// What a block computes besides its parameters.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) heads: &'a Heads,
    pub(super) segments: &'a [Segment],
    pub(super) angles: Option<Angles<'a>>,
    /// Tokens that leave the block; all where absent.
    pub(super) kept: Option<&'a [u32]>,
}

/// What the forward leaves for the backward.
#[derive(Debug)]
pub(super) struct Saved<E: Element> {
    /// Rotated queries and keys, and values: `[tokens, width]` each.
    pub(super) qkv: [Matrix<E>; 3],
    pub(super) attended: Attended<E>,
    /// Input of the second norm, `[kept, hidden]`.
    pub(super) middle: Matrix<E>,
    /// Gate and up, or fc1's output, `[kept, inner]`.
    pub(super) inner: Vec<Matrix<E>>,
    /// `x·Aᵀ` of every site with a correction.
    pub(super) hidden: Vec<Option<Vec<f32>>>,
    /// Of the attention's output map and the MLP's last, what it gives before the addition, where factors on it are trained.
    pub(super) before_sums: [Option<Matrix<E>>; 2],
}

/// What corrects a block's sites in one pass.
#[derive(Debug, Clone, Copy)]
pub(super) enum Corrections<'c, 'a, E> {
    /// The same for all rows, of each site where there is one.
    Thin(&'c [Option<Thin<'a>>]),
    /// Row by row; nothing follows backward.
    Routed(&'c RoutedView<'a, E>),
}

impl<E: Element> Corrections<'_, '_, E> {
    /// Sites that share their input, with what corrects them; as [`sites`], whose `x·Aᵀ` are there where a backward may follow.
    fn sites<const N: usize>(
        self,
        view: &BlockView<'_, E>,
        first: usize,
        x: Rows<'_, E>,
    ) -> ([Matrix<E>; N], [Option<Vec<f32>>; N]) {
        match self {
            Corrections::Thin(thin) => sites(view, thin, first, x, None),
            Corrections::Routed(routed) => (routed.sites(view, first, x, None), std::array::from_fn(|_| None)),
        }
    }

    /// A site on whose result something is added; as [`summed`].
    fn summed(
        self,
        view: &BlockView<'_, E>,
        site: usize,
        x: Rows<'_, E>,
        add: Rows<'_, E>,
    ) -> (Matrix<E>, Option<Vec<f32>>, Option<Matrix<E>>) {
        match self {
            Corrections::Thin(thin) => summed(view, thin, site, x, add),
            Corrections::Routed(routed) => {
                let [y] = routed.sites(view, site, x, Some(add));
                (y, None, None)
            }
        }
    }

    /// One of the block's norms.
    fn norm(self, view: &BlockView<'_, E>, which: usize, x: Rows<'_, E>) -> Matrix<E> {
        let own = &view.block_norms()[which];
        match self {
            Corrections::Thin(_) => norm(x, own),
            Corrections::Routed(routed) => routed.norm(which, own, x),
        }
    }
}

/// Sites that share their input: `x·Wᵀ + b` with their corrections, and `add` on top of each. Returns the outputs and each
/// `x·Aᵀ`.
pub(super) fn sites<E: Element, const N: usize>(
    view: &BlockView<'_, E>,
    thin: &[Option<Thin<'_>>],
    first: usize,
    x: Rows<'_, E>,
    add: Option<Rows<'_, E>>,
) -> ([Matrix<E>; N], [Option<Vec<f32>>; N]) {
    let (outputs, hidden, _) = sites_kept(view, thin, first, x, add, false);
    (outputs, hidden)
}

/// A site on whose result something is added, as [`sites`], and what it gives before that where factors on it are there.
fn summed<E: Element>(
    view: &BlockView<'_, E>,
    thin: &[Option<Thin<'_>>],
    site: usize,
    x: Rows<'_, E>,
    add: Rows<'_, E>,
) -> (Matrix<E>, Option<Vec<f32>>, Option<Matrix<E>>) {
    let keeps = thin[site].as_ref().is_some_and(|thin| thin.output.is_some());
    let ([y], [hidden], [kept]) = sites_kept(view, thin, site, x, Some(add), keeps);
    (y, hidden, kept)
}

/// As [`sites`]; where `keeps`, also what the sites give before the addition.
#[allow(clippy::type_complexity, reason = "three results of each of the sites")]
fn sites_kept<E: Element, const N: usize>(
    view: &BlockView<'_, E>,
    thin: &[Option<Thin<'_>>],
    first: usize,
    x: Rows<'_, E>,
    add: Option<Rows<'_, E>>,
    keeps: bool,
) -> ([Matrix<E>; N], [Option<Vec<f32>>; N], [Option<Matrix<E>>; N]) {
    let mut own = thin::hidden(&thin[first..first + N], x, view.order).into_iter();
    let hidden: [Option<Vec<f32>>; N] = std::array::from_fn(|_| own.next().flatten());
    let mut outputs: [Matrix<E>; N] =
        std::array::from_fn(|i| Matrix::new(x.count(), view.linears[first + i].weight.count()));
    let mut kept: [Option<Matrix<E>>; N] = std::array::from_fn(|i| {
        let shape = (x.count(), view.linears[first + i].weight.count());
        keeps.then(|| Matrix::new(shape.0, shape.1))
    });
    let inputs: [Option<Matrix<E>>; N] = std::array::from_fn(|i| {
        let factors = thin[first + i].as_ref().and_then(|thin| thin.input);
        factors.map(|factors| thin::scaled(x, factors))
    });
    let through: [Option<Vec<f32>>; N] =
        std::array::from_fn(|i| thin[first + i].as_ref().and_then(|thin| thin.products_of(x, view.order)));
    let jobs = outputs.iter_mut().zip(&mut kept).enumerate().map(|(i, (y, kept))| {
        let (linear, thin) = (&view.linears[first + i], thin[first + i].as_ref());
        let low_rank = match (&hidden[i], thin) {
            (Some(hidden), Some(thin)) => Some((Rows::dense(hidden, x.count(), thin.rank()), thin.b())),
            _ => None,
        };
        let wide_bias = thin.and_then(|thin| thin.bias);
        let out_stride = y.stride();
        Job {
            terms: vec![
                Term::transposed(inputs[i].as_ref().map_or(x, Matrix::view), linear.weight).in_order(view.order),
            ],
            finish: Finish {
                factors: thin.and_then(|thin| thin.output),
                bias: linear.bias.filter(|_| wide_bias.is_none()),
                wide_bias,
                low_rank,
                wide_add: through[i].as_ref().map(|own| Rows::dense(own, x.count(), linear.weight.count())),
                add,
                ..Finish::default()
            },
            out: y.values_mut(),
            out_stride,
            kept: kept.as_mut().map(Matrix::values_mut),
        }
    });
    products(jobs.collect());
    (outputs, hidden, kept)
}

/// Receives keys and values as they are made and says what attention reads.
pub(super) trait Keep<E: Element> {
    /// `keys` and `values`: `[tokens, kv_width]`, rotated.
    fn keep(&mut self, keys: &Matrix<E>, values: &Matrix<E>) -> Result<()>;

    /// All keys and values so far, one for all segments or one for each, and which of them each query sees; absent: those of this
    /// block alone.
    fn all(&self) -> Option<(Vec<KeyValues<'_, E>>, Vec<Segment>)>;
}

/// Nothing is kept.
impl<E: Element> Keep<E> for () {
    fn keep(&mut self, _keys: &Matrix<E>, _values: &Matrix<E>) -> Result<()> {
        Ok(())
    }

    fn all(&self) -> Option<(Vec<KeyValues<'_, E>>, Vec<Segment>)> {
        None
    }
}

/// The block's output, `[kept, hidden]`, and what its backward needs.
pub(super) fn forward<E: Element>(
    view: &BlockView<'_, E>,
    corrections: Corrections<'_, '_, E>,
    plan: &Plan<'_>,
    x: Rows<'_, E>,
    cache: &mut impl Keep<E>,
) -> Result<(Matrix<E>, Saved<E>)> {
    let normed = corrections.norm(view, 0, x);
    let ([mut q, mut k, v], hidden) = corrections.sites(view, Q, normed.view());
    drop(normed);
    let mut hidden = Vec::from(hidden);
    if let Some(angles) = plan.angles {
        rotate(&mut q, plan.heads.head_dim, angles.cosines, angles.sines, 1.0);
        rotate(&mut k, plan.heads.head_dim, angles.cosines, angles.sines, 1.0);
    }
    cache.keep(&k, &v)?;
    let attended = match cache.all() {
        Some((all, segments)) => attention::forward(q.view(), &all, plan.heads, &segments, view.order),
        None => {
            attention::forward(q.view(), &[KeyValues::of(k.view(), v.view())], plan.heads, plan.segments, view.order)
        }
    };
    let (middle, hidden_o, before_o) = match plan.kept {
        Some(kept) => {
            let (x, out) = (gather(x, kept), gather(attended.out.view(), kept));
            corrections.summed(view, O, out.view(), x.view())
        }
        None => corrections.summed(view, O, attended.out.view(), x),
    };
    hidden.push(hidden_o);

    let normed = corrections.norm(view, 1, middle.view());
    let last = view.linears.len() - 1;
    let mut inner = Vec::with_capacity(2);
    if last - MLP == 2 {
        let (made, own) = corrections.sites::<2>(view, MLP, normed.view());
        inner.extend(made);
        hidden.extend(own);
    } else {
        let (made, own) = corrections.sites::<1>(view, MLP, normed.view());
        inner.extend(made);
        hidden.extend(own);
    }
    drop(normed);
    let activated = activate(&inner);
    let (y, own, before_last) = corrections.summed(view, last, activated.view(), middle.view());
    hidden.push(own);
    Ok((y, Saved { qkv: [q, k, v], attended, middle, inner, hidden, before_sums: [before_o, before_last] }))
}

/// The input of the MLP's last map.
pub(super) fn activate<E: Element>(inner: &[Matrix<E>]) -> Matrix<E> {
    match inner {
        [gate, up] => silu_gate(gate.view(), up.view()),
        [x] => gelu(x.view()),
        _ => unreachable!("a block's MLP has two or three maps"),
    }
}
