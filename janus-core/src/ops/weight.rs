//! A frozen weight: what may be asked of it, whatever it is held as.
//!
//! Products with it are in [`linear`](super::linear), [`thin`](super::thin) and [`head_loss`](super::head_loss()); nobody but the
//! operations looks at how it is held.

use candle_core::{DType, Device, Result, Storage, Tensor, bail};
use half::bf16;

use super::composed::require_fast;
use super::select_rows;
use super::values::Stored;
use crate::kernel::{Rows, Weights};

/// A frozen parameter of the base: a matrix, a kernel of a convolution, a table or a vector.
///
/// It is held dense, in the type that it was loaded in, which may be narrower than that of the values it meets.
#[derive(Debug, Clone)]
pub struct Weight(Tensor);

impl From<Tensor> for Weight {
    fn from(values: Tensor) -> Self {
        Self(values)
    }
}

impl Weight {
    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        self.0.dims()
    }

    /// Rows and values of a row.
    ///
    /// # Errors
    /// Another shape than that of a matrix.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        self.0.dims2()
    }

    /// The type that it is held in.
    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    /// The device that it lies on.
    pub fn device(&self) -> &Device {
        self.0.device()
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        self.0.elem_count() * self.0.dtype().size_in_bytes()
    }

    /// Some rows of a table or a matrix, `[indices, width]`, in the type that it is held in.
    ///
    /// # Errors
    /// An index beyond it.
    pub fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        select_rows(&self.0, indices)
    }

    /// Adjacent rows, `[count, ..]`, in a type.
    ///
    /// # Errors
    /// Rows beyond it.
    pub fn part(&self, first: usize, count: usize, dtype: DType) -> Result<Tensor> {
        self.0.narrow(0, first, count)?.to_dtype(dtype)
    }

    /// Its values in the type that it is held in: no copy where it is held dense.
    pub fn values(&self) -> Tensor {
        self.0.clone()
    }

    /// Its values in a type: no copy where it is held dense in that type.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        self.0.to_dtype(dtype)
    }

    /// Whether it carries a graph, as a weight under a check of its gradient does.
    pub(crate) fn is_tracked(&self) -> bool {
        self.0.track_op()
    }

    /// The same without graph and gaps, as products take it.
    pub(crate) fn prepared(&self) -> Result<Self> {
        Ok(Self(self.0.detach().contiguous()?))
    }

    /// The same as a matrix of its rows, of a convolution's kernel as of any other.
    pub(crate) fn as_matrix(&self) -> Result<Self> {
        Ok(Self(self.0.flatten_from(1)?))
    }

    /// Whether products of values of a type take it as it is held.
    pub(crate) fn meets(&self, values: DType) -> bool {
        meets(values, self.dtype())
    }

    /// The same, held so that products of values of a type take it.
    pub(crate) fn meeting(&self, values: DType) -> Result<Self> {
        if self.meets(values) { Ok(self.clone()) } else { Ok(Self(self.0.to_dtype(values)?)) }
    }
}

/// Whether products of values of a type take a weight held in another one as it is.
pub(crate) fn meets(values: DType, held: DType) -> bool {
    values == held || (values, held) == (DType::F32, DType::BF16)
}

/// Calls `f` with the rows of matrices on the processor, in order, as values of type `E` meet them.
///
/// # Errors
/// A composed pass, matrices of types that such values do not meet, on other devices or with gaps.
pub(crate) fn with_weights<E: Stored, T>(
    weights: &[&Weight],
    f: impl FnOnce(&[Weights<'_, E>]) -> Result<T>,
) -> Result<T> {
    require_fast()?;
    let held: Vec<_> = weights.iter().map(|weight| weight.0.storage_and_layout()).collect();
    let mut rows = Vec::with_capacity(held.len());
    for (storage, layout) in &held {
        let Storage::Cpu(storage) = &**storage else { bail!("expected values on the processor") };
        let (count, width) = layout.shape().dims2()?;
        rows.push(match (E::values(storage), bf16::values(storage), layout.contiguous_offsets()) {
            (Some(values), _, Some((start, end))) => Rows::dense(&values[start..end], count, width).into(),
            (None, Some(values), Some((start, end))) => Weights::half(Rows::dense(&values[start..end], count, width)),
            _ => bail!("expected contiguous {:?} values of shape {:?}", E::DTYPE, layout.dims()),
        });
    }
    f(&rows)
}
