//! Values of weights: read from a file into a tensor, widened for hashing, narrowed for writing, always in chunks.

use std::io::{self, Write};

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::CheckpointError;
use super::file::WeightsFile;

/// Bytes read or converted at once: small enough for the cache of a core, large enough to hide the calls.
const CHUNK_BYTES: usize = if cfg!(miri) { 1 << 9 } else { 1 << 18 };

/// Bytes in memory that one thread fills before it takes the next: matrices of megabytes are shared out evenly. Miri, which is
/// a thousand times slower, meets several parts in few bytes.
const PART_BYTES: usize = if cfg!(miri) { 1 << 12 } else { 1 << 21 };

/// A type that weights can have.
pub(crate) trait Value: candle_core::WithDType {
    const BYTES: usize;
    /// Zeros whose memory the system has not been made to hand out yet, where it can.
    fn zeros(count: usize) -> Vec<Self>;
    /// The values' own bytes, in the order of this machine.
    fn native_bytes(values: &mut [Self]) -> &mut [u8];
    /// From exactly [`Value::BYTES`] little-endian bytes.
    fn from_little_endian(bytes: &[u8]) -> Self;
    fn widen(self) -> f32;
    /// To the nearest, ties to even.
    fn narrow(value: f32) -> Self;
    fn push_little_endian(self, bytes: &mut Vec<u8>);
    fn same_bits(self, other: Self) -> bool;
}

macro_rules! value {
    ($type:ty, $bytes:literal, $zeros:expr, $widen:expr, $narrow:expr) => {
        impl Value for $type {
            const BYTES: usize = $bytes;

            fn zeros(count: usize) -> Vec<Self> {
                let zeros: Vec<Self> = $zeros(count);
                crate::pages::ask_for_large(&zeros);
                zeros
            }

            fn native_bytes(values: &mut [Self]) -> &mut [u8] {
                let bytes = size_of_val(values);
                // SAFETY: the memory is the slice's own, borrowed for as long as it is; these types have no padding, every
                // pattern of bits is a value of theirs, and bytes need no alignment.
                unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), bytes) }
            }

            fn from_little_endian(bytes: &[u8]) -> Self {
                let mut array = [0; $bytes];
                array.copy_from_slice(bytes);
                <$type>::from_le_bytes(array)
            }

            fn widen(self) -> f32 {
                $widen(self)
            }

            fn narrow(value: f32) -> Self {
                $narrow(value)
            }

            fn push_little_endian(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }

            fn same_bits(self, other: Self) -> bool {
                self.to_bits() == other.to_bits()
            }
        }
    };
}

// Zeros of f32 and u16, and not of bf16 and f16, come as memory of the system that nothing was written to.
value!(f32, 4, |count| vec![0.0; count], std::convert::identity, std::convert::identity);
value!(bf16, 2, <bf16 as crate::kernel::Element>::zeros, bf16::to_f32, bf16::from_f32);
value!(f16, 2, |count| vec![0_u16; count].reinterpret_into(), f16::to_f32, f16::from_f32);

/// Whether weights can have this type.
pub(crate) fn is_weight_dtype(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

/// A run of values in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent<'a> {
    pub(crate) name: &'a str,
    pub(crate) file: &'a WeightsFile,
    pub(crate) dtype: DType,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl Extent<'_> {
    /// Passes the bytes on in chunks, in order.
    pub(crate) fn for_each_chunk(
        &self,
        mut visit: impl FnMut(&[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        self.file.require_sum(self.offset)?;
        let mut buffer = vec![0; (CHUNK_BYTES as u64).min(self.bytes) as usize];
        let mut done = 0;
        while done < self.bytes {
            let length = (self.bytes - done).min(CHUNK_BYTES as u64);
            let chunk = &mut buffer[..length as usize];
            self.file.read_at(chunk, self.offset + done)?;
            visit(chunk)?;
            done += length;
        }
        Ok(())
    }

    /// The values from number `first` on, read straight into `values` where the file holds that type, by way of a small
    /// buffer where it holds another.
    fn fill<S: Value, T: Value>(&self, first: usize, values: &mut [T]) -> Result<(), CheckpointError> {
        let mut offset = self.offset + first as u64 * S::BYTES as u64;
        if S::DTYPE == T::DTYPE {
            self.file.read_at(T::native_bytes(values), offset)?;
            if cfg!(target_endian = "big") {
                for value in values {
                    let bytes = T::native_bytes(std::slice::from_mut(value));
                    *value = T::from_little_endian(bytes);
                }
            }
            return Ok(());
        }
        let mut buffer = vec![0; CHUNK_BYTES.min(values.len() * S::BYTES)];
        for chunk in values.chunks_mut(CHUNK_BYTES / S::BYTES) {
            let bytes = &mut buffer[..chunk.len() * S::BYTES];
            self.file.read_at(bytes, offset)?;
            offset += bytes.len() as u64;
            let wide = || bytes.chunks_exact(S::BYTES).map(|bytes| S::from_little_endian(bytes).widen());
            chunk.iter_mut().zip(wide()).for_each(|(value, wide)| *value = T::narrow(wide));
            if T::DTYPE == DType::F16 {
                check_overflow(self.name, T::DTYPE, chunk.iter().map(|v| v.widen()).zip(wide()))?;
            }
        }
        Ok(())
    }

    fn read_values<S: Value, T: Value>(&self) -> Result<Vec<T>, CheckpointError> {
        // The extent was checked to lie within its file, so this is bounded by what is on disk.
        let mut values = T::zeros((self.bytes / S::BYTES as u64) as usize);
        let part = PART_BYTES / T::BYTES;
        let parts = values.par_chunks_mut(part).enumerate();
        // The first in the file of all that go wrong, whichever thread met it.
        let failed = parts.filter_map(|(index, values)| self.fill::<S, T>(index * part, values).err());
        match failed.find_first(|_| true) {
            None => Ok(values),
            Some(error) => Err(error),
        }
    }

    fn read_as<T: Value>(&self) -> Result<Vec<T>, CheckpointError> {
        match self.dtype {
            DType::F32 => self.read_values::<f32, T>(),
            DType::BF16 => self.read_values::<bf16, T>(),
            DType::F16 => self.read_values::<f16, T>(),
            dtype => Err(CheckpointError::WeightDtype { dtype }),
        }
    }

    /// A tensor in memory, converted on the way: the values exist once, in the type asked for.
    pub(crate) fn read(&self, shape: &[usize], dtype: DType) -> Result<Tensor, CheckpointError> {
        self.file.require_sum(self.offset)?;
        let tensor = match dtype {
            DType::F32 => Tensor::from_vec(self.read_as::<f32>()?, shape, &Device::Cpu),
            DType::BF16 => Tensor::from_vec(self.read_as::<bf16>()?, shape, &Device::Cpu),
            DType::F16 => Tensor::from_vec(self.read_as::<f16>()?, shape, &Device::Cpu),
            dtype => return Err(CheckpointError::WeightDtype { dtype }),
        };
        tensor.map_err(|source| CheckpointError::Tensor { tensor: self.name.to_string(), source })
    }

    fn matches_values<S: Value, T: Value>(&self, values: &[T]) -> Result<bool, CheckpointError> {
        if values.len() as u64 != self.bytes / S::BYTES as u64 {
            return Ok(false);
        }
        let part = (PART_BYTES / T::BYTES).min(values.len().max(1));
        let parts = values.par_chunks(part).enumerate();
        let same = parts.map_init(
            || T::zeros(part),
            |buffer, (index, values)| {
                let stored = &mut buffer[..values.len()];
                self.fill::<S, T>(index * part, stored)?;
                Ok(stored.iter().zip(values).all(|(stored, value)| stored.same_bits(*value)))
            },
        );
        same.try_reduce(|| true, |one, other| Ok(one && other))
    }

    fn matches_as<T: Value>(&self, values: &[T]) -> Result<bool, CheckpointError> {
        match self.dtype {
            DType::F32 => self.matches_values::<f32, T>(values),
            DType::BF16 => self.matches_values::<bf16, T>(values),
            DType::F16 => self.matches_values::<f16, T>(values),
            dtype => Err(CheckpointError::WeightDtype { dtype }),
        }
    }

    /// Whether reading the values now, as the tensor's type, gives the tensor's bits.
    pub(crate) fn matches(&self, tensor: &Tensor) -> Result<bool, CheckpointError> {
        self.file.require_sum(self.offset)?;
        with_values(self.name, tensor, |values| match values {
            Values::F32(values) => self.matches_as(values),
            Values::BF16(values) => self.matches_as(values),
            Values::F16(values) => self.matches_as(values),
        })?
    }

    /// Passes the values on in chunks, widened to f32, as little-endian bytes.
    pub(crate) fn for_each_widened(&self, mut visit: impl FnMut(&[u8])) -> Result<(), CheckpointError> {
        let mut wide = Vec::new();
        self.for_each_chunk(|chunk| {
            match self.dtype {
                DType::F32 => visit(chunk),
                DType::BF16 => visit(widen_bytes::<bf16>(chunk, &mut wide)),
                DType::F16 => visit(widen_bytes::<f16>(chunk, &mut wide)),
                dtype => return Err(CheckpointError::WeightDtype { dtype }),
            }
            Ok(())
        })
    }
}

fn widen_bytes<'a, S: Value>(chunk: &[u8], wide: &'a mut Vec<u8>) -> &'a [u8] {
    wide.resize(chunk.len() / S::BYTES * f32::BYTES, 0);
    for (wide, bytes) in wide.chunks_exact_mut(f32::BYTES).zip(chunk.chunks_exact(S::BYTES)) {
        wide.copy_from_slice(&S::from_little_endian(bytes).widen().to_le_bytes());
    }
    wide
}

/// Refuses a finite value that became infinite.
fn check_overflow(
    name: &str,
    dtype: DType,
    mut narrow_and_wide: impl Iterator<Item = (f32, f32)>,
) -> Result<(), CheckpointError> {
    match narrow_and_wide.find(|(narrow, wide)| narrow.is_infinite() && wide.is_finite()) {
        None => Ok(()),
        Some((_, value)) => Err(CheckpointError::Overflow { tensor: name.to_string(), value, dtype }),
    }
}

/// The values of a tensor on the CPU, row by row.
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    BF16(&'a [bf16]),
    F16(&'a [f16]),
}

/// Calls `visit` with the tensor's values, without a copy where it lies contiguous in main memory.
pub(crate) fn with_values<R>(
    name: &str,
    tensor: &Tensor,
    visit: impl FnOnce(Values<'_>) -> R,
) -> Result<R, CheckpointError> {
    let failed = |source| CheckpointError::Tensor { tensor: name.to_string(), source };
    let tensor = tensor.to_device(&Device::Cpu).and_then(|t| t.contiguous()).map_err(failed)?;
    let (storage, layout) = tensor.storage_and_layout();
    let values = match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((begin, end))) => Values::F32(&values[begin..end]),
        (Storage::Cpu(CpuStorage::BF16(values)), Some((begin, end))) => Values::BF16(&values[begin..end]),
        (Storage::Cpu(CpuStorage::F16(values)), Some((begin, end))) => Values::F16(&values[begin..end]),
        _ => return Err(CheckpointError::WeightDtype { dtype: tensor.dtype() }),
    };
    Ok(visit(values))
}

/// Passes the tensor's values on in chunks of little-endian bytes of `dtype`.
pub(crate) fn for_each_encoded(
    name: &str,
    tensor: &Tensor,
    dtype: DType,
    visit: &mut dyn FnMut(&[u8]) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    with_values(name, tensor, |values| match values {
        Values::F32(values) => encode_as(name, values, dtype, visit),
        Values::BF16(values) => encode_as(name, values, dtype, visit),
        Values::F16(values) => encode_as(name, values, dtype, visit),
    })?
}

fn encode_as<S: Value>(
    name: &str,
    values: &[S],
    dtype: DType,
    visit: &mut dyn FnMut(&[u8]) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    match dtype {
        DType::F32 => encode::<S, f32>(name, values, visit),
        DType::BF16 => encode::<S, bf16>(name, values, visit),
        DType::F16 => encode::<S, f16>(name, values, visit),
        dtype => Err(CheckpointError::WeightDtype { dtype }),
    }
}

fn encode<S: Value, T: Value>(
    name: &str,
    values: &[S],
    visit: &mut dyn FnMut(&[u8]) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    for chunk in values.chunks(CHUNK_BYTES / T::BYTES) {
        bytes.clear();
        if S::DTYPE == T::DTYPE {
            chunk.iter().for_each(|value| value.push_little_endian(&mut bytes));
        } else {
            chunk.iter().for_each(|value| T::narrow(value.widen()).push_little_endian(&mut bytes));
            if T::DTYPE == DType::F16 {
                let pairs = chunk.iter().map(|value| (T::narrow(value.widen()).widen(), value.widen()));
                check_overflow(name, T::DTYPE, pairs)?;
            }
        }
        visit(&bytes)?;
    }
    Ok(())
}

/// Writes the tensor's values as `dtype`, little-endian.
pub(crate) fn write_values(
    name: &str,
    tensor: &Tensor,
    dtype: DType,
    to: &mut dyn Write,
    io_error: impl Fn(io::Error) -> CheckpointError,
) -> Result<(), CheckpointError> {
    for_each_encoded(name, tensor, dtype, &mut |bytes| to.write_all(bytes).map_err(&io_error))
}

#[cfg(test)]
#[path = "values_tests.rs"]
mod tests;
