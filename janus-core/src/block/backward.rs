//! A block backward: from the gradient of its output to those of its input, of its low-rank factors and of trained norms.

use super::forward::{Plan, Saved, activate};
use super::rows::{gather, gelu_backward, norm, norm_backward, norm_gradients, rotate, scatter, silu_gate_backward};
use super::thin::{self, Thin, beside};
use super::view::{BlockView, MLP, O, Q};
use crate::kernel::{Element, Finish, Matrix, Rows, Term, attention, product};

/// The input of sites: where it lies, or made again.
pub(super) enum Input<'a, E: Element> {
    Held(Rows<'a, E>),
    Made(Matrix<E>),
}

/// One or several sites that share their input.
pub(super) struct Sites<'a, E> {
    pub(super) view: &'a BlockView<'a, E>,
    pub(super) thin: &'a [Option<Thin<'a>>],
    /// `x·Aᵀ` of every site of the view.
    pub(super) hidden: &'a [Option<Vec<f32>>],
    /// The first of them.
    pub(super) first: usize,
}

impl<E: Element> Sites<'_, E> {
    /// Writes the factors' gradients into `flat` and returns the gradient of the shared input where it is wanted.
    ///
    /// `x` is called only where a site has factors.
    pub(super) fn backward<'x>(
        &self,
        dy: &[Rows<'_, E>],
        x: impl FnOnce() -> Input<'x, E>,
        flat: &mut [f32],
        wanted: bool,
    ) -> Option<Matrix<E>> {
        let sites = self.first..self.first + dy.len();
        let thin = &self.thin[sites.clone()];
        let m = dy[0].count();
        let d_hidden = thin::d_hidden(thin, dy);
        if thin.iter().any(Option::is_some) {
            let x = x();
            let x = match &x {
                Input::Held(x) => *x,
                Input::Made(x) => x.view(),
            };
            thin::gradients(thin, x, dy, &self.hidden[sites.clone()], &d_hidden, flat);
        }
        if !wanted {
            return None;
        }
        let terms: Vec<Term<'_, E>> =
            sites.clone().zip(dy).map(|(site, dy)| Term::plain(*dy, self.view.linears[site].weight)).collect();
        // Terms behind a dropout are added masked, the others beside the sums.
        let (mut direct, mut masked) = (Vec::new(), Vec::new());
        for (thin, d_hidden) in thin.iter().zip(&d_hidden) {
            if let (Some(thin), Some(d_hidden)) = (thin, d_hidden) {
                if thin.drops() { masked.push((thin, d_hidden)) } else { direct.push((d_hidden.as_slice(), thin.a)) }
            }
        }
        let width = self.view.linears[self.first].weight.width();
        let (left, right) = beside(&direct, m);
        let rank = left.len() / m.max(1);
        let low_rank = (rank > 0).then(|| (Rows::dense(&left, m, rank), Rows::dense(&right, rank, width)));
        let mut dx = Matrix::new(m, width);
        let stride = dx.stride();
        product(&terms, Finish { low_rank, ..Finish::default() }, dx.values_mut(), stride);
        for (thin, d_hidden) in masked {
            thin.add_d_input(d_hidden, &mut dx);
        }
        Some(dx)
    }
}

/// Gradient of the block's input, `[tokens, hidden]`, where `wanted`; the gradients of factors and of trained norms go into
/// `flat`.
/// `dy: [kept, hidden]`.
pub(super) fn backward<E: Element>(
    view: &BlockView<'_, E>,
    thin: &[Option<Thin<'_>>],
    plan: &Plan<'_>,
    x: Rows<'_, E>,
    saved: &Saved<E>,
    dy: Rows<'_, E>,
    flat: &mut [f32],
    wanted: bool,
) -> Option<Matrix<E>> {
    let sites = |first| Sites { view, thin, hidden: &saved.hidden, first };
    let [first_norm, second_norm] = view.block_norms();
    let last = view.linears.len() - 1;
    // Whether anything is trained before a place, or the input wants its gradient.
    let below_first_norm = wanted || first_norm.is_trained();
    let below_attention = below_first_norm || thin[..O].iter().any(Option::is_some);
    let below_second_norm = below_attention || thin[O].is_some();
    let below_mlp = below_second_norm || second_norm.is_trained();

    let into_inner = below_mlp || thin[MLP..last].iter().any(Option::is_some);
    let own_dy = dy.spread(true);
    let activated = || Input::Made(activate(&saved.inner));
    let d_activated = sites(last).backward(&[own_dy.view()], activated, flat, into_inner)?;
    drop(own_dy);
    let d_inner: Vec<Matrix<E>> = match saved.inner.as_slice() {
        [gate, up] => silu_gate_backward(gate.view(), up.view(), d_activated.view()).into(),
        [inner] => vec![gelu_backward(inner.view(), d_activated.view())],
        _ => unreachable!("a block's MLP has two or three maps"),
    };
    drop(d_activated);
    let renormed = || Input::Made(norm(saved.middle.view(), second_norm));
    let d_inner_rows: Vec<Rows<'_, E>> = d_inner.iter().map(Matrix::view).collect();
    let d_normed = sites(MLP).backward(&d_inner_rows, renormed, flat, below_mlp)?;
    drop(d_inner);
    norm_gradients(saved.middle.view(), second_norm, d_normed.view(), flat);
    if !below_second_norm {
        return None;
    }
    let d_middle = norm_backward(saved.middle.view(), second_norm, d_normed.view(), dy);
    drop(d_normed);

    let gathered = plan.kept.map(|kept| gather(saved.attended.out.view(), kept));
    let attended = || Input::Held(gathered.as_ref().unwrap_or(&saved.attended.out).view());
    let d_out = sites(O).backward(&[d_middle.view()], attended, flat, below_attention)?;
    let (d_middle, d_out) = match plan.kept {
        Some(kept) => (scatter(d_middle.view(), kept, x.count()), scatter(d_out.view(), kept, x.count())),
        None => (d_middle, d_out),
    };
    let [q, k, v] = &saved.qkv;
    let rows = [q.view(), k.view(), v.view()];
    let [mut dq, mut dk, dv] = attention::backward(rows, &saved.attended, d_out.view(), plan.heads, plan.segments);
    drop(d_out);
    if let Some(angles) = plan.angles {
        rotate(&mut dq, plan.heads.head_dim, angles.cosines, angles.sines, -1.0);
        rotate(&mut dk, plan.heads.head_dim, angles.cosines, angles.sines, -1.0);
    }
    let renormed = || Input::Made(norm(x, first_norm));
    let d_normed = sites(Q).backward(&[dq.view(), dk.view(), dv.view()], renormed, flat, below_first_norm)?;
    norm_gradients(x, first_norm, d_normed.view(), flat);
    wanted.then(|| norm_backward(x, first_norm, d_normed.view(), d_middle.view()))
}
