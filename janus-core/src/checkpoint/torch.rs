//! A file of `torch.save`: a zip archive of one pickle and one stored (uncompressed) entry per storage.
//! Layout: `<name>/data.pkl`, `<name>/byteorder`, `<name>/data/<key>` (`torch/serialization.py`, release 1.6 and later).

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::sync::OnceLock;

use zip::{CompressionMethod, ZipArchive};

use super::CheckpointError;
use super::error::TorchProblem;
use super::file::{Stored, Sum, WeightsFile};
use super::pickle::{PickledTensor, read_state_dict};

/// Longest pickle that is read; one of 1,000 tensors has 0.2 MB.
const MAX_PICKLE_BYTES: u64 = 16 << 20;

/// Where an archive keeps the bytes of a storage.
#[derive(Debug, Clone, Copy)]
struct Run {
    offset: u64,
    bytes: u64,
    crc32: u32,
}

/// The tensors of `file`, which is number `index` of the checkpoint's files.
pub(super) fn read_header(file: &WeightsFile, index: usize) -> Result<Vec<Stored>, CheckpointError> {
    let refuse = |problem| CheckpointError::Torch { file: file.path().to_path_buf(), problem };
    let mut archive = ZipArchive::new(BufReader::new(file.file())).map_err(|e| refuse(TorchProblem::Zip(e)))?;
    if archive.has_duplicate_names() {
        return Err(refuse(entry("data.pkl", "or another one is in the archive twice")));
    }
    let names: Vec<String> = archive
        .file_names()
        .map(|name| name.map(|name| name.into_owned()))
        .collect::<Result<_, _>>()
        .map_err(|e| refuse(TorchProblem::Zip(e)))?;
    let mut pickles = names.iter().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let (Some(pickle), None) = (pickles.next(), pickles.next()) else {
        return Err(refuse(entry("data.pkl", "is missing or not the only one")));
    };
    let prefix = pickle.strip_suffix("data.pkl").unwrap_or_default();
    let byte_order = format!("{prefix}byteorder");
    if names.contains(&byte_order) && read_entry(&mut archive, &byte_order, 16).map_err(refuse)? != b"little" {
        return Err(refuse(entry(&byte_order, "is not `little`")));
    }
    let bytes = read_entry(&mut archive, pickle, MAX_PICKLE_BYTES).map_err(refuse)?;
    let tensors = read_state_dict(&bytes).map_err(refuse)?;

    let mut runs: HashMap<String, Run> = HashMap::new();
    let mut sums = Vec::new();
    let mut stored = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let run = match runs.get(&tensor.storage) {
            Some(run) => *run,
            None => {
                let name = format!("{prefix}data/{}", tensor.storage);
                let run = locate(&mut archive, &name, file.bytes()).map_err(refuse)?;
                runs.insert(tensor.storage.clone(), run);
                // torch writes 0 where it was asked to work out none (`set_crc32_options(False)`).
                if run.crc32 != 0 {
                    let Run { offset, bytes, crc32 } = run;
                    sums.push(Sum { entry: name, offset, bytes, crc32, holds: OnceLock::new() });
                }
                run
            }
        };
        stored.push(place(tensor, run, index).map_err(refuse)?);
    }
    file.set_sums(sums);
    Ok(stored)
}

fn entry(name: &str, problem: &'static str) -> TorchProblem {
    TorchProblem::Entry { entry: name.to_string(), problem }
}

fn read_entry<R: Read + std::io::Seek>(
    archive: &mut ZipArchive<R>,
    name: &str,
    max_bytes: u64,
) -> Result<Vec<u8>, TorchProblem> {
    let file = archive.by_name(name).map_err(TorchProblem::Zip)?;
    if file.size() > max_bytes {
        return Err(entry(name, "is too long"));
    }
    let mut bytes = Vec::new();
    // The size in the directory may lie, so the reading is bounded, too.
    file.take(max_bytes).read_to_end(&mut bytes).map_err(|_| entry(name, "cannot be read"))?;
    Ok(bytes)
}

/// The bytes of an entry within the file, which must be stored as they are.
fn locate<R: Read + std::io::Seek>(
    archive: &mut ZipArchive<R>,
    name: &str,
    file_bytes: u64,
) -> Result<Run, TorchProblem> {
    let index = archive.index_for_name(name).ok_or_else(|| entry(name, "is missing"))?;
    let file = archive.by_index_raw(index).map_err(TorchProblem::Zip)?;
    if file.compression() != CompressionMethod::Stored || file.encrypted() {
        return Err(entry(name, "is compressed or encrypted, which torch never does"));
    }
    let bytes = file.size();
    let offset = file.data_start().ok_or_else(|| entry(name, "has no position"))?;
    if file.compressed_size() != bytes || offset.checked_add(bytes).is_none_or(|end| end > file_bytes) {
        return Err(entry(name, "reaches beyond the file"));
    }
    Ok(Run { offset, bytes, crc32: file.crc32() })
}

fn place(tensor: PickledTensor, run: Run, file: usize) -> Result<Stored, TorchProblem> {
    let size = tensor.dtype.size_in_bytes() as u64;
    let PickledTensor { name, dtype, storage, storage_elements, first_element, shape, elements } = tensor;
    // The pickle was checked against its own claim; the archive decides what is there.
    let end = first_element + elements;
    let held = run.bytes / size;
    if held < storage_elements || end > held {
        return Err(TorchProblem::OutOfRange { name, begin: first_element, end, storage, elements: held });
    }
    // All of this lies within the run, so within the file: no product or sum can overflow.
    Ok(Stored { name, dtype, shape, file, offset: run.offset + first_element * size, bytes: elements * size })
}
