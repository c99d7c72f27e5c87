//! Tensors of a file, and the one building block of these networks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::NetworkError;
use crate::error::Result;

/// The tensors of a file by name.
pub(super) struct Weights {
    file: PathBuf,
    tensors: HashMap<String, Tensor>,
}

impl Weights {
    /// Reads safetensors, or what PyTorch pickled (by a reader that executes nothing).
    pub(super) fn open(file: &Path) -> Result<Self> {
        let is_safetensors = file.extension().is_some_and(|extension| extension == "safetensors");
        let tensors = if is_safetensors {
            candle_core::safetensors::load(file, &Device::Cpu)
        } else {
            candle_core::pickle::read_all(file).map(HashMap::from_iter)
        };
        match tensors {
            Ok(tensors) => Ok(Self { file: file.to_path_buf(), tensors }),
            Err(error) => {
                let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
                Err(NetworkError::Unreadable { file: file.to_path_buf(), reason }.into())
            }
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor in f32, whose shape has to be the expected one where that is not `None`.
    pub(super) fn get<const N: usize>(&self, name: &str, expected: [Option<usize>; N]) -> Result<Tensor> {
        let missing = || NetworkError::Missing { file: self.file.clone(), tensor: name.to_owned() };
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        let fits = |(got, expected): (&usize, &Option<usize>)| expected.is_none_or(|expected| *got == expected);
        if tensor.rank() != N || !tensor.dims().iter().zip(&expected).all(fits) {
            let size = |size: &Option<usize>| size.map_or("any".to_owned(), |size| size.to_string());
            let expected = format!("[{}]", expected.iter().map(size).collect::<Vec<_>>().join(", "));
            let (file, got) = (self.file.clone(), tensor.dims().to_vec());
            return Err(NetworkError::Shape { file, tensor: name.to_owned(), expected, got }.into());
        }
        Ok(tensor.to_dtype(DType::F32)?)
    }
}

/// A convolution with bias and ReLU.
#[derive(Debug)]
pub(super) struct Convolution {
    /// `[out, in, height, width]`.
    pub(super) weight: Tensor,
    /// `[1, out, 1, 1]`.
    pub(super) bias: Tensor,
    pub(super) stride: usize,
    /// Rows above and below, columns left and right.
    pub(super) padding: (usize, usize),
}

impl Convolution {
    /// `[images, in, height, width]` to `[images, out, height, width]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, columns) = self.padding;
        let x = x.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?;
        Ok(x.conv2d(&self.weight, 0, self.stride, 1, 1)?.broadcast_add(&self.bias)?.relu()?)
    }
}
