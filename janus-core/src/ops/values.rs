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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernel::testing::values;
    use crate::ops::weight::with_weights;

    /// Values of both types, in order, turned, and a part of each row: every way that a layout has.
    #[test]
    fn values_are_read_in_row_major_order_whatever_the_layout() {
        let wide = values::<bf16>(5 * 7 * 3, 1);
        let f32s: Vec<f32> = wide.iter().map(|value| value.to_f32()).collect();
        let tensors = [
            Tensor::from_vec(f32s, (5, 7, 3), &Device::Cpu).unwrap(),
            Tensor::from_vec(wide, (5, 7, 3), &Device::Cpu).unwrap(),
        ];
        for tensor in tensors {
            let views = [
                tensor.clone(),
                tensor.transpose(0, 1).unwrap(),
                tensor.transpose(1, 2).unwrap(),
                tensor.narrow(0, 1, 3).unwrap(),
                tensor.narrow(1, 2, 4).unwrap(),
                tensor.narrow(2, 1, 1).unwrap(),
                tensor.narrow(1, 0, 1).unwrap().broadcast_as((5, 4, 3)).unwrap(),
                tensor.narrow(1, 3, 0).unwrap(),
            ];
            for view in views {
                let expected = view.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                with_values(&view, |got| {
                    assert_eq!(got, expected, "{:?}", view.layout());
                    Ok(())
                })
                .unwrap();
            }
        }
    }

    #[test]
    fn more_values_than_a_piece_are_those_of_one_by_one() {
        let count = CHUNK + 77;
        let wide = values::<f32>(count, 2);
        let narrowed = narrow(&wide);
        assert!(narrowed.iter().zip(&wide).all(|(got, value)| *got == bf16::from_f32(*value)));
        let mut back = vec![0f32; count];
        widen(&narrowed, &mut back);
        assert!(back.iter().zip(&narrowed).all(|(got, value)| *got == value.to_f32()));
        let few = narrow(&wide[..100]);
        assert_eq!(few, narrowed[..100]);
    }

    #[test]
    fn slices_and_weights_are_parts_of_what_is_held() {
        let held = Tensor::from_vec(values::<bf16>(6 * 5, 3), (6, 5), &Device::Cpu).unwrap();
        let part = held.narrow(0, 2, 3).unwrap();
        let expected = part.flatten_all().unwrap().to_vec1::<bf16>().unwrap();
        with_slices::<bf16, _>(&[&held, &part], |slices| {
            assert_eq!((slices[0].len(), slices[1]), (30, expected.as_slice()));
            Ok(())
        })
        .unwrap();
        let wide = part.to_dtype(DType::F32).unwrap();
        with_weights::<f32, _>(&[&part.into(), &wide.into()], |weights| {
            assert_eq!(weights.len(), 2);
            Ok(())
        })
        .unwrap();
        for refused in [held.t().unwrap(), held.narrow(1, 1, 2).unwrap(), held.to_dtype(DType::F64).unwrap()] {
            assert!(with_slices::<bf16, _>(&[&refused], |_| Ok(())).is_err());
            assert!(with_weights::<f32, _>(&[&refused.into()], |_| Ok(())).is_err());
        }
    }

    #[test]
    fn what_is_stored_has_the_type_asked_for() {
        let wide = vec![0.5f32, -1.25, 3.0];
        for dtype in [DType::F32, DType::BF16] {
            let storage = store(wide.clone(), dtype).unwrap();
            assert_eq!(dtype_of(&storage), dtype);
            assert_eq!(*read(&storage, &Layout::contiguous(3)).unwrap(), wide);
            let like = Tensor::zeros(1, dtype, &Device::Cpu).unwrap();
            assert_eq!(tensor(wide.clone(), 3, &like).unwrap().dtype(), dtype);
        }
        assert!(store(wide, DType::F64).is_err());
        assert_eq!(column_sums(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [5.0, 7.0, 9.0]);
        assert_eq!(column_sums(&[], 0), [0f32; 0]);
    }
}
