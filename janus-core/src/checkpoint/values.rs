//! Values of weights: read from a file into a tensor, widened for hashing, narrowed for writing, always in chunks.

use std::io::{self, Write};

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::{bf16, f16};

use super::CheckpointError;
use super::file::WeightsFile;
use crate::kernel::pages::prefer_large;

/// Bytes read or converted at once: small enough for the cache of a core, large enough to hide the calls.
const CHUNK_BYTES: usize = 1 << 18;

/// A type that weights can have.
pub(crate) trait Value: candle_core::WithDType {
    const BYTES: usize;
    /// From exactly [`Value::BYTES`] little-endian bytes.
    fn from_little_endian(bytes: &[u8]) -> Self;
    fn widen(self) -> f32;
    /// To the nearest, ties to even.
    fn narrow(value: f32) -> Self;
    fn push_little_endian(self, bytes: &mut Vec<u8>);
}

macro_rules! value {
    ($type:ty, $bytes:literal, $widen:expr, $narrow:expr) => {
        impl Value for $type {
            const BYTES: usize = $bytes;

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
        }
    };
}

value!(f32, 4, std::convert::identity, std::convert::identity);
value!(bf16, 2, bf16::to_f32, bf16::from_f32);
value!(f16, 2, f16::to_f32, f16::from_f32);

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

    fn read_values<S: Value, T: Value>(&self) -> Result<Vec<T>, CheckpointError> {
        // The extent was checked to lie within its file, so this is bounded by what is on disk.
        let mut values: Vec<T> = Vec::with_capacity((self.bytes / S::BYTES as u64) as usize);
        prefer_large(&mut values);
        self.for_each_chunk(|chunk| {
            let source = chunk.chunks_exact(S::BYTES);
            if S::DTYPE == T::DTYPE {
                values.extend(source.map(T::from_little_endian));
            } else {
                let first = values.len();
                values.extend(source.map(|bytes| T::narrow(S::from_little_endian(bytes).widen())));
                if T::DTYPE == DType::F16 {
                    let wide = chunk.chunks_exact(S::BYTES).map(|bytes| S::from_little_endian(bytes).widen());
                    check_overflow(self.name, T::DTYPE, values[first..].iter().map(|v| v.widen()).zip(wide))?;
                }
            }
            Ok(())
        })?;
        Ok(values)
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
        let tensor = match dtype {
            DType::F32 => Tensor::from_vec(self.read_as::<f32>()?, shape, &Device::Cpu),
            DType::BF16 => Tensor::from_vec(self.read_as::<bf16>()?, shape, &Device::Cpu),
            DType::F16 => Tensor::from_vec(self.read_as::<f16>()?, shape, &Device::Cpu),
            dtype => return Err(CheckpointError::WeightDtype { dtype }),
        };
        tensor.map_err(|source| CheckpointError::Tensor { tensor: self.name.to_string(), source })
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
    wide.clear();
    for bytes in chunk.chunks_exact(S::BYTES) {
        S::from_little_endian(bytes).widen().push_little_endian(wide);
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
