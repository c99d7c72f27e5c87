//! A block's frozen parameters as slices, held while it is computed.

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};
use half::bf16;

use crate::kernel::{Element, Rows};

/// A type of values that candle stores.
pub(crate) trait Stored: Element + candle_core::WithDType {
    /// The values of a storage, if it holds this type.
    fn values(storage: &CpuStorage) -> Option<&[Self]>;

    /// A storage of such values.
    fn storage(values: Vec<Self>) -> CpuStorage;
}

impl Stored for f32 {
    fn values(storage: &CpuStorage) -> Option<&[Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }

    fn storage(values: Vec<Self>) -> CpuStorage {
        CpuStorage::F32(values)
    }
}

impl Stored for bf16 {
    fn values(storage: &CpuStorage) -> Option<&[Self]> {
        match storage {
            CpuStorage::BF16(values) => Some(values),
            _ => None,
        }
    }

    fn storage(values: Vec<Self>) -> CpuStorage {
        CpuStorage::BF16(values)
    }
}

/// Calls `f` with the values of contiguous tensors on the processor, in order.
pub(crate) fn with_slices<E: Stored, T>(tensors: &[&Tensor], f: impl FnOnce(&[&[E]]) -> Result<T>) -> Result<T> {
    let held: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(held.len());
    for (storage, layout) in &held {
        let Storage::Cpu(storage) = &**storage else { bail!("expected values on the processor") };
        let (Some(values), Some((start, end))) = (E::values(storage), layout.contiguous_offsets()) else {
            bail!("expected contiguous {:?} values of shape {:?}", E::DTYPE, layout.dims());
        };
        slices.push(&values[start..end]);
    }
    f(&slices)
}

/// A norm: root-mean-square without bias, layer norm with one.
#[derive(Debug, Clone, Copy)]
pub(super) struct NormView<'a, E> {
    pub(super) weight: &'a [E],
    pub(super) bias: Option<&'a [E]>,
    pub(super) eps: f32,
}

/// A linear map.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinearView<'a, E> {
    /// `[output, input]`.
    pub(super) weight: Rows<'a, E>,
    /// `[output]`.
    pub(super) bias: Option<&'a [E]>,
}

/// All of a block: q, k, v, o, then the maps of the MLP.
#[derive(Debug)]
pub(super) struct BlockView<'a, E> {
    pub(super) norms: [NormView<'a, E>; 2],
    pub(super) linears: Vec<LinearView<'a, E>>,
}

/// Places in [`BlockView::linears`].
pub(super) const Q: usize = 0;
pub(super) const K: usize = 1;
pub(super) const V: usize = 2;
pub(super) const O: usize = 3;
/// First map of the MLP: gate (then up and down), or fc1 (then fc2).
pub(super) const MLP: usize = 4;
