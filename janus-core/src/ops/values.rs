//! Reading tensors as f32 values and writing f32 values back in a tensor's type.

use std::borrow::Cow;

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::kernel::Element;

use super::composed::require_fast;

/// Elements per parallel piece: below this the pool costs more than it gives.
const CHUNK: usize = 1 << 15;

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
///
/// # Errors
/// A composed pass, other types or devices, tensors with gaps.
pub(crate) fn with_slices<E: Stored, T>(tensors: &[&Tensor], f: impl FnOnce(&[&[E]]) -> Result<T>) -> Result<T> {
    require_fast()?;
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

/// Widens bf16 values to f32, exactly.
pub(crate) fn widen(source: &[bf16], target: &mut [f32]) {
    debug_assert_eq!(source.len(), target.len());
    if source.len() <= CHUNK {
        source.convert_to_f32_slice(target);
    } else {
        target.par_chunks_mut(CHUNK).zip(source.par_chunks(CHUNK)).for_each(|(t, s)| s.convert_to_f32_slice(t));
    }
}

/// Rounds f32 values to bf16, to nearest even.
pub(crate) fn narrow(source: &[f32]) -> Vec<bf16> {
    let mut target = <bf16 as Element>::zeros(source.len());
    if source.len() <= CHUNK {
        target.convert_from_f32_slice(source);
    } else {
        target.par_chunks_mut(CHUNK).zip(source.par_chunks(CHUNK)).for_each(|(t, s)| t.convert_from_f32_slice(s));
    }
    target
}

/// The values of a storage in row-major order as f32; borrowed where they already are that.
pub(crate) fn read<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Cow<'a, [f32]>> {
    require_fast()?;
    Ok(match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Cow::Borrowed(&values[start..end]),
        (CpuStorage::F32(values), None) => {
            let mut wide = Vec::with_capacity(layout.shape().elem_count());
            runs(layout, |start, length| wide.extend_from_slice(&values[start..start + length]));
            Cow::Owned(wide)
        }
        (CpuStorage::BF16(values), Some((start, end))) => {
            let mut wide = vec![0f32; end - start];
            widen(&values[start..end], &mut wide);
            Cow::Owned(wide)
        }
        (CpuStorage::BF16(values), None) => {
            let mut wide = vec![0f32; layout.shape().elem_count()];
            let mut filled = 0;
            runs(layout, |start, length| {
                widen(&values[start..start + length], &mut wide[filled..filled + length]);
                filled += length;
            });
            Cow::Owned(wide)
        }
        (other, _) => bail!("expected f32 or bf16 values, got {:?}", dtype_of(other)),
    })
}

/// Calls `copy(start, length)` for each run of adjacent values of a strided layout, in row-major order.
fn runs(layout: &Layout, mut copy: impl FnMut(usize, usize)) {
    let (dims, strides) = (layout.dims(), layout.stride());
    let mut outer = dims.len();
    let mut length = 1;
    while outer > 0 && (strides[outer - 1] == length || dims[outer - 1] == 1) {
        length *= dims[outer - 1];
        outer -= 1;
    }
    let mut index = vec![0usize; outer];
    let mut at = layout.start_offset();
    for _ in 0..dims[..outer].iter().product::<usize>() {
        copy(at, length);
        for axis in (0..outer).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < dims[axis] {
                break;
            }
            at -= strides[axis] * dims[axis];
            index[axis] = 0;
        }
    }
}

/// Calls `f` with the tensor's values in row-major order as f32. The tensor must lie on the processor.
pub(crate) fn with_values<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(&read(storage, layout)?),
        _ => bail!("expected a tensor on the processor"),
    }
}

/// Puts f32 values into a storage of type `dtype` (f32 or bf16).
pub(crate) fn store(values: Vec<f32>, dtype: DType) -> Result<CpuStorage> {
    Ok(match dtype {
        DType::F32 => CpuStorage::F32(values),
        DType::BF16 => CpuStorage::BF16(narrow(&values)),
        other => bail!("expected f32 or bf16, got {other:?}"),
    })
}

/// A tensor of `shape` and type `dtype` from f32 values.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<candle_core::Shape>, like: &Tensor) -> Result<Tensor> {
    match like.dtype() {
        DType::F32 => Tensor::from_vec(values, shape, like.device()),
        DType::BF16 => Tensor::from_vec(narrow(&values), shape, like.device()),
        other => bail!("expected f32 or bf16, got {other:?}"),
    }
}

/// The sum of each column of `rows`, `[count, columns]`, row after row in f64: the gradient of a bias.
pub(crate) fn column_sums(rows: &[f32], columns: usize) -> Vec<f32> {
    let mut sums = vec![0f64; columns];
    for row in rows.chunks_exact(columns.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// The type of a storage.
pub(crate) fn dtype_of(storage: &CpuStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}
