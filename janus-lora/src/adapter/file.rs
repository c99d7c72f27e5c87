//! The two kinds of file in an adapter folder: JSON texts, and safetensors.
//!
//! The header of a weights file is checked before any value is read, and values are read one tensor after the other
//! into a buffer as long as the file really is: a header cannot make the program allocate more than the file holds.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use janus_core::checkpoint::require_unique_names;
use janus_core::directory::{Directory, Place};
use janus_core::input::{self, Opened};
use janus_core::output::{OutputError, write_below};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::error::AdapterError;

/// File name of the weights in an adapter folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// Longest header that is read: of some 150 bytes for a tensor, a hundred times what the largest adapters have.
const HEADER_LIMIT_BYTES: u64 = 16 << 20;

/// The text of a JSON file of at most `limit_bytes` in a folder, `None` where there is no such file.
pub(crate) fn read_json_text(
    folder: Place<'_>,
    file: &'static str,
    limit_bytes: u64,
) -> Result<Option<String>, AdapterError> {
    let content = input::read(folder, file, limit_bytes)?;
    // Whatever is not UTF-8 becomes a character that no name holds, or breaks the JSON.
    Ok(content.map(|content| String::from_utf8_lossy(&content).into_owned()))
}

/// A safetensors file whose header has been read and checked.
pub(crate) struct WeightsFile {
    path: PathBuf,
    file: File,
    values_at: u64,
    metadata: HashMap<String, String>,
    /// Every tensor, by name.
    tensors: Vec<(String, TensorInfo)>,
}

fn unsound(path: &Path, problem: impl ToString) -> AdapterError {
    let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    AdapterError::Safetensors { file, problem: problem.to_string() }
}

impl WeightsFile {
    /// The file of a folder.
    pub(crate) fn of(Opened { path, mut file }: Opened) -> Result<Self, AdapterError> {
        let failed = |source| AdapterError::Io { path: path.clone(), source };
        let file_bytes = file.metadata().map_err(failed)?.len();
        let mut length = [0; 8];
        match file.read_exact(&mut length) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(unsound(&path, format!("it is {file_bytes} bytes long, shorter than a header")));
            }
            read => read.map_err(failed)?,
        }
        let header_bytes = u64::from_le_bytes(length);
        let room_bytes = file_bytes.saturating_sub(8);
        if header_bytes > room_bytes.min(HEADER_LIMIT_BYTES) {
            let problem = format!("its header claims {header_bytes} bytes, the file has room for {room_bytes}");
            return Err(unsound(&path, problem));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(failed)?;
        require_unique_names(&header).map_err(|problem| unsound(&path, problem))?;
        // Checks that types, shapes and offsets agree and that tensors follow one another without gap or overlap.
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|problem| unsound(&path, problem))?;
        let value_bytes = room_bytes - header_bytes;
        if metadata.data_len() as u64 != value_bytes {
            let expected = metadata.data_len();
            let problem = format!("its tensors take {expected} bytes, the file has {value_bytes} for them");
            return Err(unsound(&path, problem));
        }
        let mut tensors: Vec<_> = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        let metadata = metadata.metadata().clone().unwrap_or_default();
        Ok(Self { path, file, values_at: 8 + header_bytes, metadata, tensors })
    }

    /// A text of the header's own.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Every tensor, by name.
    pub(crate) fn tensors(&self) -> &[(String, TensorInfo)] {
        &self.tensors
    }

    /// The values of a tensor as f32, in its shape.
    pub(crate) fn read(&self, info: &TensorInfo) -> Result<Tensor, AdapterError> {
        let (begin, end) = info.data_offsets;
        let mut bytes = vec![0; end - begin];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.values_at + begin as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|source| AdapterError::Io { path: self.path.clone(), source })?;
        let values: Vec<f32> = match info.dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => {
                return Err(unsound(&self.path, format!("a tensor is `{other:?}`, expected `F32`, `BF16` or `F16`")));
            }
        };
        Ok(Tensor::from_vec(values, info.shape.as_slice(), &Device::Cpu)?)
    }
}

/// Whether tensors of this type are read.
pub(crate) fn is_read(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16)
}

/// Writes tensors as f32, in the order of their names, with `{"format": "pt"}` and at most one text `more` as metadata: equal
/// tensors give equal bytes.
pub(crate) fn write_weights(
    into: &Directory,
    name: &str,
    tensors: &[(String, Tensor)],
    more: Option<(&str, String)>,
) -> Result<(), AdapterError> {
    let mut infos = Vec::with_capacity(tensors.len());
    let mut at = 0;
    for (name, tensor) in tensors {
        let end = at + tensor.elem_count() * DType::F32.size_in_bytes();
        let info = TensorInfo { dtype: Dtype::F32, shape: tensor.dims().to_vec(), data_offsets: (at, end) };
        infos.push((name.clone(), info));
        at = end;
    }
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let texts = format.into_iter().chain(more.map(|(key, text)| (key.to_owned(), text)));
    let unsound = |problem: &dyn std::fmt::Display| unsound(Path::new(name), problem);
    let metadata = Metadata::new(Some(texts.collect()), infos).map_err(|problem| unsound(&problem))?;
    let mut header = serde_json::to_value(&metadata).map_err(|problem| unsound(&problem))?;
    if let Some(texts) = header.get_mut("__metadata__").and_then(serde_json::Value::as_object_mut) {
        // The format's own map has them in no order.
        texts.sort_keys();
    }
    let mut header = serde_json::to_vec(&header).map_err(|problem| unsound(&problem))?;
    // The format asks for values aligned to 8 bytes, padded with spaces.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut computing = None;
    let written = write_below(into, name, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, tensor) in tensors {
            let values = match f32_values(tensor) {
                Ok(values) => values,
                Err(e) => {
                    computing = Some(e);
                    return Err(io::Error::other("a tensor cannot be read"));
                }
            };
            write_values(out, &values)?;
        }
        Ok(())
    });
    match (written, computing) {
        (Err(_), Some(e)) => Err(e.into()),
        (written, _) => Ok(written?),
    }
}

fn f32_values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

fn write_values(out: &mut dyn Write, values: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(1 << 16);
    for piece in values.chunks(1 << 14) {
        bytes.clear();
        bytes.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Writes a text file.
pub(crate) fn write_text(folder: &Directory, file: &str, text: &str) -> Result<(), OutputError> {
    write_below(folder, file, |out| out.write_all(text.as_bytes()))
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
