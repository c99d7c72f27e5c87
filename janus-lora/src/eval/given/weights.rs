//! Tensors of a file, and the one building block of these networks.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use janus_core::checkpoint::TensorFile;

use super::NetworkError;
use crate::error::Result;

/// The tensors of a file by name, each read when it is asked for.
pub(super) struct Weights {
    path: PathBuf,
    file: TensorFile,
}

impl Weights {
    /// Opens safetensors, or what PyTorch pickled (by a reader that executes nothing).
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path).map_err(|source| NetworkError::Unreadable { source })?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.file.shape(name).is_some()
    }

    /// A tensor in f32, whose shape has to be the expected one where that is not `None`.
    pub(super) fn get<const N: usize>(&self, name: &str, expected: [Option<usize>; N]) -> Result<Tensor> {
        let missing = || NetworkError::Missing { file: self.path.clone(), tensor: name.to_owned() };
        let shape = self.file.shape(name).ok_or_else(missing)?;
        let fits = |(got, expected): (&usize, &Option<usize>)| expected.is_none_or(|expected| *got == expected);
        if shape.len() != N || !shape.iter().zip(&expected).all(fits) {
            let size = |size: &Option<usize>| size.map_or("any".to_owned(), |size| size.to_string());
            let expected = format!("[{}]", expected.iter().map(size).collect::<Vec<_>>().join(", "));
            let (file, got) = (self.path.clone(), shape.to_vec());
            return Err(NetworkError::Shape { file, tensor: name.to_owned(), expected, got }.into());
        }
        let tensor = self.file.read(name).map_err(|source| NetworkError::Unreadable { source })?;
        tensor.ok_or_else(|| missing().into())
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
