//! A block forward, and what its backward needs.

use candle_core::Result;

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
    /// `x·Aᵀ` of every site with factors.
    pub(super) hidden: Vec<Option<Vec<f32>>>,
}

/// Sites that share their input: `x·Wᵀ + b` with their low-rank terms, and `add` on top of each. Returns the outputs and
/// each `x·Aᵀ`.
pub(super) fn sites<E: Element, const N: usize>(
    view: &BlockView<'_, E>,
    thin: &[Option<Thin<'_>>],
    first: usize,
    x: Rows<'_, E>,
    add: Option<Rows<'_, E>>,
) -> ([Matrix<E>; N], [Option<Vec<f32>>; N]) {
    let mut own = thin::hidden(&thin[first..first + N], x).into_iter();
    let hidden: [Option<Vec<f32>>; N] = std::array::from_fn(|_| own.next().flatten());
    let mut outputs: [Matrix<E>; N] =
        std::array::from_fn(|i| Matrix::new(x.count(), view.linears[first + i].weight.count()));
    let jobs = outputs.iter_mut().enumerate().map(|(i, y)| {
        let linear = &view.linears[first + i];
        let low_rank = match (&hidden[i], &thin[first + i]) {
            (Some(hidden), Some(thin)) => Some((Rows::dense(hidden, x.count(), thin.rank()), thin.b())),
            _ => None,
        };
        let out_stride = y.stride();
        Job {
            terms: vec![Term::transposed(x, linear.weight)],
            finish: Finish { bias: linear.bias, low_rank, add, ..Finish::default() },
            out: y.values_mut(),
            out_stride,
        }
    });
    products(jobs.collect());
    (outputs, hidden)
}

/// Receives keys and values as they are made and says what attention reads.
pub(super) trait Keep<E: Element> {
    /// `keys` and `values`: `[tokens, kv_width]`, rotated.
    fn keep(&mut self, keys: &Matrix<E>, values: &Matrix<E>) -> Result<()>;

    /// All keys and values so far, and which of them each query sees; absent: those of this block alone.
    fn all(&self) -> Option<(KeyValues<'_, E>, Vec<Segment>)>;
}

/// Nothing is kept.
impl<E: Element> Keep<E> for () {
    fn keep(&mut self, _keys: &Matrix<E>, _values: &Matrix<E>) -> Result<()> {
        Ok(())
    }

    fn all(&self) -> Option<(KeyValues<'_, E>, Vec<Segment>)> {
        None
    }
}

/// The block's output, `[kept, hidden]`, and what its backward needs.
pub(super) fn forward<E: Element>(
    view: &BlockView<'_, E>,
    thin: &[Option<Thin<'_>>],
    plan: &Plan<'_>,
    x: Rows<'_, E>,
    cache: &mut impl Keep<E>,
) -> Result<(Matrix<E>, Saved<E>)> {
    let [first_norm, second_norm] = view.block_norms();
    let normed = norm(x, first_norm);
    let ([mut q, mut k, v], hidden) = sites(view, thin, Q, normed.view(), None);
    drop(normed);
    let mut hidden = Vec::from(hidden);
    if let Some(angles) = plan.angles {
        rotate(&mut q, plan.heads.head_dim, angles.cosines, angles.sines, 1.0);
        rotate(&mut k, plan.heads.head_dim, angles.cosines, angles.sines, 1.0);
    }
    cache.keep(&k, &v)?;
    let attended = match cache.all() {
        Some((all, segments)) => attention::forward(q.view(), all, plan.heads, &segments),
        None => attention::forward(q.view(), KeyValues::of(k.view(), v.view()), plan.heads, plan.segments),
    };
    let ([middle], hidden_o) = match plan.kept {
        Some(kept) => {
            let (x, out) = (gather(x, kept), gather(attended.out.view(), kept));
            sites(view, thin, O, out.view(), Some(x.view()))
        }
        None => sites(view, thin, O, attended.out.view(), Some(x)),
    };
    hidden.extend(hidden_o);

    let normed = norm(middle.view(), second_norm);
    let last = view.linears.len() - 1;
    let mut inner = Vec::with_capacity(2);
    if last - MLP == 2 {
        let (made, own) = sites::<E, 2>(view, thin, MLP, normed.view(), None);
        inner.extend(made);
        hidden.extend(own);
    } else {
        let (made, own) = sites::<E, 1>(view, thin, MLP, normed.view(), None);
        inner.extend(made);
        hidden.extend(own);
    }
    drop(normed);
    let activated = activate(&inner);
    let ([y], own) = sites(view, thin, last, activated.view(), Some(middle.view()));
    hidden.extend(own);
    Ok((y, Saved { qkv: [q, k, v], attended, middle, inner, hidden }))
}

/// The input of the MLP's last map.
pub(super) fn activate<E: Element>(inner: &[Matrix<E>]) -> Matrix<E> {
    match inner {
        [gate, up] => silu_gate(gate.view(), up.view()),
        [x] => gelu(x.view()),
        _ => unreachable!("a block's MLP has two or three maps"),
    }
}
