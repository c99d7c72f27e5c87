//! A block backward: from the gradient of its output to those of its input, of its low-rank factors and of trained norms.

use rayon::prelude::*;

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
    /// What each of them gives before anything of its shape is added; only looked at where there are factors on it.
    pub(super) outputs: &'a [Option<Rows<'a, E>>],
}

impl<E: Element> Sites<'_, E> {
    /// Writes the corrections' gradients into `flat` and returns the gradient of the shared input where it is wanted.
    ///
    /// `x` is called only where a site has a correction.
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
        let width = self.view.linears[self.first].weight.width();
        let d_hidden = thin::d_hidden(thin, dy);
        // The gradient of what the weight gives, where there are factors on it.
        let behind: Vec<Option<Matrix<E>>> =
            thin.iter().zip(dy).map(|(thin, dy)| Some(thin::scaled(*dy, thin.as_ref()?.output?))).collect();
        let of_product = |place: usize| behind[place].as_ref().map_or(dy[place], Matrix::view);
        // Of inputs with factors, the gradient behind these.
        let mut through: Vec<(usize, Vec<f32>)> = Vec::new();
        for (place, site) in sites.clone().enumerate() {
            if thin[place].as_ref().is_some_and(|thin| thin.input.is_some()) {
                let mut g = vec![0f32; m * width];
                let term = Term::plain(of_product(place), self.view.linears[site].weight);
                product(&[term], Finish::default(), &mut g, width);
                through.push((place, g));
            }
        }
        // What the gradient of the input gets through Kronecker products.
        let mut beside_product: Vec<Vec<f32>> = Vec::new();
        if thin.iter().any(Option::is_some) {
            let x = x();
            let x = match &x {
                Input::Held(x) => *x,
                Input::Made(x) => x.view(),
            };
            thin::gradients(thin, x, dy, &self.hidden[sites.clone()], &d_hidden, flat);
            self.vector_gradients(thin, x, dy, flat);
            for (thin, dy) in thin.iter().zip(dy) {
                let own = thin.as_ref().and_then(|thin| thin.product_gradients(x, *dy, flat, wanted));
                beside_product.extend(own);
            }
            for (place, g) in &through {
                thin[*place].as_ref().expect("it has factors").input_gradients(x, g, flat);
            }
        }
        if !wanted {
            return None;
        }
        let is_direct = |place: &usize| !through.iter().any(|(other, _)| other == place);
        let terms: Vec<Term<'_, E>> = (0..dy.len())
            .filter(is_direct)
            .map(|place| Term::plain(of_product(place), self.view.linears[self.first + place].weight))
            .collect();
        // Terms behind a dropout are added masked, the others beside the sums.
        let (mut direct, mut masked) = (Vec::new(), Vec::new());
        for (thin, d_hidden) in thin.iter().zip(&d_hidden) {
            if let (Some(thin), Some(d_hidden)) = (thin, d_hidden) {
                if thin.drops() || terms.is_empty() {
                    masked.push((thin, d_hidden))
                } else {
                    direct.push((d_hidden.as_slice(), thin.a))
                }
            }
        }
        let (left, right) = beside(&direct, m);
        let rank = left.len() / m.max(1);
        let low_rank = (rank > 0).then(|| (Rows::dense(&left, m, rank), Rows::dense(&right, rank, width)));
        let mut dx = if terms.is_empty() { Matrix::zeros(m, width) } else { Matrix::new(m, width) };
        let stride = dx.stride();
        product(&terms, Finish { low_rank, ..Finish::default() }, dx.values_mut(), stride);
        for (place, g) in &through {
            let factors = thin[*place].as_ref().and_then(|thin| thin.input).expect("it has factors");
            add_scaled(&mut dx, g, Some(factors));
        }
        beside_product.iter().for_each(|own| add_scaled(&mut dx, own, None));
        for (thin, d_hidden) in masked {
            thin.add_d_input(d_hidden, &mut dx);
        }
        Some(dx)
    }

    /// Writes the gradients of factors on outputs and of biases.
    fn vector_gradients(&self, thin: &[Option<Thin<'_>>], x: Rows<'_, E>, dy: &[Rows<'_, E>], flat: &mut [f32]) {
        for (place, (thin, dy)) in thin.iter().zip(dy).enumerate() {
            let Some(thin) = thin.as_ref().filter(|thin| thin.output.is_some() || thin.bias.is_some()) else {
                continue;
            };
            let linear = &self.view.linears[self.first + place];
            let z_of = |column: usize| {
                let weights = linear.weight.wide_row(column);
                let z = |row: usize| {
                    let products = x.row(row).iter().zip(&*weights).enumerate();
                    let scaled = |(at, (x, w)): (usize, (&E, &f32))| {
                        x.widen() * w * thin.input.map_or(1.0, |factors| factors[at])
                    };
                    products.map(scaled).sum()
                };
                (0..x.count()).map(z).collect()
            };
            let y = self.outputs.get(place).copied().flatten();
            // Without factors on it the output is not looked at.
            thin.vector_gradients(y.unwrap_or(*dy), *dy, linear.bias, &z_of, flat);
        }
    }
}

/// `dx += factors ⊙ g`, `g: [m, width]`; without factors `dx += g`.
fn add_scaled<E: Element>(dx: &mut Matrix<E>, g: &[f32], factors: Option<&[f32]>) {
    let (stride, width) = (dx.stride().max(1), dx.width());
    dx.values_mut().par_chunks_mut(stride).zip(g.par_chunks(width.max(1))).for_each(|(row, g)| {
        for (column, (value, g)) in row.iter_mut().zip(g).enumerate() {
            *value = E::narrow(value.widen() + factors.map_or(1.0, |factors| factors[column]) * g);
        }
    });
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
    let sites = |first, outputs| Sites { view, thin, hidden: &saved.hidden, first, outputs };
    let summed = |place: usize| [saved.before_sums[place].as_ref().map(Matrix::view)];
    let (before_o, before_last) = (summed(0), summed(1));
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
    let d_activated = sites(last, &before_last).backward(&[own_dy.view()], activated, flat, into_inner)?;
    drop(own_dy);
    let d_inner: Vec<Matrix<E>> = match saved.inner.as_slice() {
        [gate, up] => silu_gate_backward(gate.view(), up.view(), d_activated.view()).into(),
        [inner] => vec![gelu_backward(inner.view(), d_activated.view())],
        _ => unreachable!("a block's MLP has two or three maps"),
    };
    drop(d_activated);
    let renormed = || Input::Made(norm(saved.middle.view(), second_norm));
    let d_inner_rows: Vec<Rows<'_, E>> = d_inner.iter().map(Matrix::view).collect();
    let inner: Vec<Option<Rows<'_, E>>> = saved.inner.iter().map(|inner| Some(inner.view())).collect();
    let d_normed = sites(MLP, &inner).backward(&d_inner_rows, renormed, flat, below_mlp)?;
    drop(d_inner);
    norm_gradients(saved.middle.view(), second_norm, d_normed.view(), flat);
    if !below_second_norm {
        return None;
    }
    let d_middle = norm_backward(saved.middle.view(), second_norm, d_normed.view(), dy);
    drop(d_normed);

    let gathered = plan.kept.map(|kept| gather(saved.attended.out.view(), kept));
    let attended = || Input::Held(gathered.as_ref().unwrap_or(&saved.attended.out).view());
    let d_out = sites(O, &before_o).backward(&[d_middle.view()], attended, flat, below_attention)?;
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
    let unrotated = unrotated(saved, thin, plan);
    let outputs = [
        Some(unrotated[0].as_ref().map_or(q.view(), Matrix::view)),
        Some(unrotated[1].as_ref().map_or(k.view(), Matrix::view)),
        Some(v.view()),
    ];
    let d_normed = sites(Q, &outputs).backward(&[dq.view(), dk.view(), dv.view()], renormed, flat, below_first_norm)?;
    norm_gradients(x, first_norm, d_normed.view(), flat);
    wanted.then(|| norm_backward(x, first_norm, d_normed.view(), d_middle.view()))
}

/// Queries and keys before their rotation, where factors on them are trained.
fn unrotated<E: Element>(saved: &Saved<E>, thin: &[Option<Thin<'_>>], plan: &Plan<'_>) -> [Option<Matrix<E>>; 2] {
    std::array::from_fn(|place| {
        let angles = plan.angles?;
        thin[Q + place].as_ref()?.output?;
        let rotated = saved.qkv[place].view();
        let mut turned = Matrix::new(rotated.count(), rotated.width());
        let (stride, width) = (turned.stride().max(1), rotated.width());
        let rows = turned.values_mut().chunks_mut(stride).enumerate();
        rows.for_each(|(i, row)| row[..width].copy_from_slice(rotated.row(i)));
        rotate(&mut turned, plan.heads.head_dim, angles.cosines, angles.sines, -1.0);
        Some(turned)
    })
}
