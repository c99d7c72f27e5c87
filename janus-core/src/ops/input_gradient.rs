//! A product with a frozen matrix on any device: candle's own forward, and a backward that forms the gradient of the
//! input only, where candle's own would also form a weight-sized one.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor};

/// `x·Wᵀ` with `x: [rows, in]`, `weight: [out, in]` of one type; returns `[rows, out]`.
///
/// # Errors
/// Shapes that do not fit.
pub(super) fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let weight = weight.detach();
    let y = x.detach().matmul(&weight.t()?)?;
    if x.track_op() { x.apply_op2(&y, InputGradient { weight }) } else { Ok(y) }
}

/// Stands in the graph for the product of its first input; its second is the product, which it returns.
struct InputGradient {
    weight: Tensor,
}

impl CustomOp2 for InputGradient {
    fn name(&self) -> &'static str {
        "input-gradient"
    }

    fn cpu_fwd(&self, _x: &CpuStorage, _lx: &Layout, y: &CpuStorage, ly: &Layout) -> Result<(CpuStorage, Shape)> {
        same(y, ly)
    }

    fn cuda_fwd(&self, _x: &CudaStorage, _lx: &Layout, y: &CudaStorage, ly: &Layout) -> Result<(CudaStorage, Shape)> {
        same(y, ly)
    }

    fn metal_fwd(
        &self,
        _x: &MetalStorage,
        _lx: &Layout,
        y: &MetalStorage,
        ly: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        same(y, ly)
    }

    /// `dx = dy·W`.
    fn bwd(&self, _x: &Tensor, _y: &Tensor, _result: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(dy.contiguous()?.matmul(&self.weight)?), None))
    }
}

/// A storage as it is; a fresh product begins at its start and has no gaps.
fn same<S: BackendStorage>(y: &S, layout: &Layout) -> Result<(S, Shape)> {
    if layout.start_offset() != 0 || !layout.is_contiguous() {
        candle_core::bail!("the product of shape {:?} does not fill its storage", layout.dims());
    }
    Ok((y.try_clone(layout)?, layout.shape().clone()))
}
