//! A block forward, and what its backward needs.

use candle_core::Result;

use super::rows::{gather, gelu, norm, rotate, silu_gate};
use super::thin::Thin;
use super::view::{BlockView, K, MLP, O, Q, V};
use crate::kernel::attention::{self, Attended, Heads, KeyValues, Segment};
use crate::kernel::{Element, Finish, Matrix, Rows, Term, product};

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

/// One site: `x·Wᵀ + b` with its low-rank terms, and `add` on top. Returns the output and `x·Aᵀ`.
pub(super) fn site<E: Element>(
    view: &BlockView<'_, E>,
    thin: &[Option<Thin<'_>>],
    which: usize,
    x: Rows<'_, E>,
    add: Option<Rows<'_, E>>,
) -> (Matrix<E>, Option<Vec<f32>>) {
    let linear = &view.linears[which];
    let hidden = thin[which].as_ref().map(|thin| thin.hidden(x));
    let low_rank = match (&hidden, &thin[which]) {
        (Some(hidden), Some(thin)) => Some((Rows::dense(hidden, x.count(), thin.rank()), thin.b())),
        _ => None,
    };
    let mut y = Matrix::new(x.count(), linear.weight.count());
    let stride = y.stride();
    let finish = Finish { bias: linear.bias, low_rank, add, ..Finish::default() };
    product(&[Term::transposed(x, linear.weight)], finish, y.values_mut(), stride);
    (y, hidden)
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
    let (mut q, hidden_q) = site(view, thin, Q, normed.view(), None);
    let (mut k, hidden_k) = site(view, thin, K, normed.view(), None);
    let (v, hidden_v) = site(view, thin, V, normed.view(), None);
    drop(normed);
    if let Some(angles) = plan.angles {
        rotate(&mut q, plan.heads.head_dim, angles.cosines, angles.sines, 1.0);
        rotate(&mut k, plan.heads.head_dim, angles.cosines, angles.sines, 1.0);
    }
    cache.keep(&k, &v)?;
    let attended = match cache.all() {
        Some((all, segments)) => attention::forward(q.view(), all, plan.heads, &segments),
        None => attention::forward(q.view(), KeyValues::of(k.view(), v.view()), plan.heads, plan.segments),
    };
    let ((middle, hidden_o), kept) = match plan.kept {
        Some(kept) => {
            let (x, out) = (gather(x, kept), gather(attended.out.view(), kept));
            (site(view, thin, O, out.view(), Some(x.view())), kept.len())
        }
        None => (site(view, thin, O, attended.out.view(), Some(x)), x.count()),
    };
    debug_assert_eq!(middle.rows(), kept);

    let normed = norm(middle.view(), second_norm);
    let last = view.linears.len() - 1;
    let (mut inner, mut hidden) = (Vec::new(), vec![hidden_q, hidden_k, hidden_v, hidden_o]);
    for which in MLP..last {
        let (y, own) = site(view, thin, which, normed.view(), None);
        inner.push(y);
        hidden.push(own);
    }
    drop(normed);
    let activated = activate(&inner);
    let (y, own) = site(view, thin, last, activated.view(), Some(middle.view()));
    hidden.push(own);
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
