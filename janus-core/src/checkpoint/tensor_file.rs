//! One file of tensors that is no part of a base: what `torch.save` wrote of a state dict, or safetensors, told apart by
//! content and read through the same careful readers as the weights of a base.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Tensor};

use super::file::{Stored, WeightsFile};
use super::values::Extent;
use super::{CheckpointError, safetensors, torch};

/// First bytes of a zip archive, which `torch.save` writes.
const ZIP_MAGIC: [u8; 4] = *b"PK\x03\x04";

/// An open file of tensors. Opening reads its directory alone; each tensor is read when it is asked for.
#[derive(Debug)]
pub struct TensorFile {
    file: WeightsFile,
    tensors: HashMap<String, Stored>,
}

impl TensorFile {
    /// Opens a file and reads its directory.
    ///
    /// # Errors
    /// A file that is neither an archive of `torch.save` nor safetensors, or one whose directory does not hold together or
    /// asks for anything but tensors.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = WeightsFile::open(path)?;
        let mut magic = [0; ZIP_MAGIC.len()];
        let known = file.bytes() >= magic.len() as u64;
        if known {
            file.read_at(&mut magic, 0)?;
        }
        // A pickle without an archive (protocol 2 and later begin with 0x80) is what torch wrote before release 1.6.
        let is_torch = known && (magic == ZIP_MAGIC || magic[0] == 0x80);
        let stored = match is_torch {
            true => torch::read_header(&file, 0)?,
            false => safetensors::read_header(&file, 0)?,
        };
        let tensors = stored.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Ok(Self { file, tensors })
    }

    /// The shape of a tensor, `None` where there is none of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// Reads a tensor in f32 onto the CPU, `None` where there is none of that name.
    ///
    /// # Errors
    /// A type that weights cannot have, or the system's.
    pub fn read(&self, name: &str) -> Result<Option<Tensor>, CheckpointError> {
        let Some(stored) = self.tensors.get(name) else { return Ok(None) };
        let Stored { dtype, offset, bytes, .. } = *stored;
        let extent = Extent { name: &stored.name, file: &self.file, dtype, offset, bytes };
        extent.read(&stored.shape, DType::F32).map(Some)
    }
}
