//! One site with its low-rank terms as a node of the tape: for sites outside of blocks.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::backward::{Input, Sites};
use super::forward::sites;
use super::routed::Routed;
use super::thin::{self, SiteForm, ThinPlan};
use super::view::{BlockView, LinearView};
use crate::kernel::{Rows, SumOrder};
use crate::ops::values::{Stored, with_slices};
use crate::ops::weight::with_weights;
use crate::ops::{Weight, is_composed};
use crate::pass::Span;
use crate::site::Blend;

/// `x·Wᵀ + b` under a correction, `x: [.., input]` and the weight `[output, input]` of one type, or bf16 under f32. `None` where only the
/// operation by operation path will do. Sums are made in an order.
///
/// # Errors
/// Shapes that do not fit.
pub(crate) fn corrected_linear(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    form: SiteForm,
    order: SumOrder,
) -> Result<Option<Tensor>> {
    if !is_fused(x, weight, bias) {
        return Ok(None);
    }
    width_of(x, weight)?;
    let (thin, flat) = ThinPlan::of(&[form], &[])?;
    let Some(flat) = flat else { return Ok(None) };
    let node = CorrectedLinear { weight: weight.prepared()?, bias: bias.cloned(), thin, order };
    let x = x.contiguous()?;
    let tracked = x.track_op() || flat.track_op();
    Ok(Some(if tracked { x.apply_op2(&flat, node)? } else { x.apply_op2_no_bwd(&flat, &node)? }))
}

/// `x·Wᵀ + b`, every row of `x: [.., input]` with what its own mixture makes of the site. `None` where only the operation by
/// operation path will do.
///
/// # Errors
/// Shapes that do not fit.
pub(crate) fn routed_linear(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    spans: &[Span],
    blends: Vec<Blend>,
    order: SumOrder,
) -> Result<Option<Tensor>> {
    if !is_fused(x, weight, bias) || x.track_op() {
        return Ok(None);
    }
    let output = width_of(x, weight)?;
    let (x, weight, routed) = (x.contiguous()?, weight.prepared()?, Routed::of_site(spans.to_vec(), blends));
    let mut dims = x.dims().to_vec();
    dims.iter_mut().last().into_iter().for_each(|last| *last = output);
    Ok(Some(match x.dtype() {
        DType::F32 => Tensor::from_vec(routed_rows::<f32>(&x, &weight, bias, &routed, order)?, dims, x.device())?,
        _ => Tensor::from_vec(routed_rows::<bf16>(&x, &weight, bias, &routed, order)?, dims, x.device())?,
    }))
}

fn routed_rows<E: Stored>(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    routed: &Routed,
    order: SumOrder,
) -> Result<Vec<E>> {
    with_view::<E, _>(weight, bias, order, |view| {
        with_slices::<E, _>(&[x], |x| {
            let width = view.linears[0].weight.width();
            let x = Rows::dense(x[0], x[0].len() / width.max(1), width);
            routed.with_view(None, view, |routed| {
                let [y] = routed.sites(view, 0, x, None);
                Ok(y.to_dense())
            })
        })
    })
}

/// Calls `f` with a site as a block of one map.
fn with_view<E: Stored, T>(
    weight: &Weight,
    bias: Option<&Tensor>,
    order: SumOrder,
    f: impl FnOnce(&BlockView<'_, E>) -> Result<T>,
) -> Result<T> {
    let bias: Vec<&Tensor> = bias.into_iter().collect();
    with_weights::<E, _>(&[weight], |weights| {
        with_slices::<E, _>(&bias, |bias| {
            let linear = LinearView { weight: weights[0], bias: bias.first().copied() };
            f(&BlockView { norms: None, linears: vec![linear], order })
        })
    })
}

/// Whether values and parameters are such as a fused site takes.
fn is_fused(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> bool {
    let dtype = x.dtype();
    let fits = weight.meets(dtype) && bias.is_none_or(|bias| bias.dtype() == dtype);
    fits && !is_composed(x.device()) && matches!(dtype, DType::F32 | DType::BF16)
}

/// The outputs of a weight that takes `x`.
fn width_of(x: &Tensor, weight: &Weight) -> Result<usize> {
    let (output, input) = weight.dims2()?;
    if x.dims().last() != Some(&input) {
        bail!("input of shape {:?} does not fit a weight of shape [{output}, {input}]", x.dims());
    }
    Ok(output)
}

struct CorrectedLinear {
    weight: Weight,
    bias: Option<Tensor>,
    thin: ThinPlan,
    order: SumOrder,
}

impl CorrectedLinear {
    fn forward<E: Stored>(&self, x: &[E], flat: &[f32], dims: &[usize]) -> Result<(CpuStorage, Shape)> {
        with_view::<E, _>(&self.weight, self.bias.as_ref(), self.order, |view| {
            let weight = view.linears[0].weight;
            let x = Rows::dense(x, x.len() / weight.width().max(1), weight.width());
            let ([y], _) = sites(view, &self.thin.read(flat), 0, x, None);
            let mut dims = dims.to_vec();
            if let Some(last) = dims.last_mut() {
                *last = weight.count();
            }
            Ok((E::storage(y.to_dense()), Shape::from(dims)))
        })
    }

    fn backward<E: Stored>(
        &self,
        x: &Tensor,
        flat: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Vec<f32>)> {
        let dy = dy.contiguous()?;
        let mut gradients = vec![0f32; self.thin.len()];
        let dx = with_view::<E, _>(&self.weight, self.bias.as_ref(), self.order, |view| {
            with_slices::<E, _>(&[x, &dy, y], |slices| {
                with_slices::<f32, _>(&[flat], |flat| {
                    let weight = view.linears[0].weight;
                    let rows = slices[0].len() / weight.width().max(1);
                    let x_rows = Rows::dense(slices[0], rows, weight.width());
                    let dy = Rows::dense(slices[1], rows, weight.count());
                    let thin = self.thin.read(flat[0]);
                    let hidden = thin::hidden(&thin, x_rows, view.order);
                    let outputs = [Some(Rows::dense(slices[2], rows, weight.count()))];
                    let sites = Sites { view, thin: &thin, hidden: &hidden, first: 0, outputs: &outputs };
                    Ok(sites.backward(&[dy], || Input::Held(x_rows), &mut gradients, x.track_op()))
                })
            })
        })?;
        let dx = dx.map(|dx| Tensor::from_vec(dx.to_dense(), x.shape(), x.device())).transpose()?;
        Ok((dx, gradients))
    }
}

impl CustomOp2 for CorrectedLinear {
    fn name(&self) -> &'static str {
        "corrected-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, flat: &CpuStorage, lf: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(flat), Some((first, last))) = (flat, lf.contiguous_offsets()) else {
            bail!("a site's factors are f32 without gaps");
        };
        let Some((start, end)) = lx.contiguous_offsets() else { bail!("a site's input has gaps") };
        match x {
            CpuStorage::F32(x) => self.forward(&x[start..end], &flat[first..last], lx.dims()),
            CpuStorage::BF16(x) => self.forward(&x[start..end], &flat[first..last], lx.dims()),
            _ => bail!("a site computes in f32 or bf16"),
        }
    }

    fn bwd(&self, x: &Tensor, flat: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, gradients) = match x.dtype() {
            DType::F32 => self.backward::<f32>(x, flat, y, dy)?,
            _ => self.backward::<bf16>(x, flat, y, dy)?,
        };
        let gradients = Tensor::from_vec(gradients, flat.shape(), flat.device())?;
        Ok((dx, flat.track_op().then_some(gradients)))
    }
}
