//! What can be wrong with a checkpoint folder.

use std::io;
use std::path::PathBuf;

use candle_core::DType;

use crate::config::Layout;
use crate::error::{Diagnose, Fault};
use crate::input::{InputError, fault_of_reading};

/// A weights file or checkpoint folder that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The system refused to read or write.
    #[error("cannot access `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the folder that is not read: it leads out of it, is too long or no regular file.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The path is no folder.
    #[error("`{}` is not a folder", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A folder without `config.json`.
    #[error("`{}` holds no `config.json`", folder.display())]
    NoConfig {
        /// The folder.
        folder: PathBuf,
    },
    /// A folder without weights.
    #[error("`{}` holds no weights", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A safetensors file whose header is broken or lies.
    #[error("`{}` is not a sound safetensors file: {problem}", file.display())]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: HeaderProblem,
    },
    /// A shard index that is broken or lies.
    #[error("`{}` is not a sound shard index: {problem}", file.display())]
    Index {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: IndexProblem,
    },
    /// A torch file that is broken or asks for more than tensors.
    #[error("`{}` cannot be read: {problem}", file.display())]
    Torch {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: TorchProblem,
    },
    /// A JSON file beside the weights that is broken.
    #[error("`{}` is not valid JSON", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A tensor stored in a precision that weights cannot have.
    #[error("tensor `{tensor}` in `{}` is `{dtype}`, expected `F32`, `BF16` or `F16`", file.display())]
    Dtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// The same tensor in two files.
    #[error("tensor `{tensor}` is stored twice, in `{}` and in `{}`", first.display(), second.display())]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Tensor names of one layout beside a configuration of the other.
    #[error("`{}` has a `config.json` of the {config} layout and tensors of the {tensors} layout", folder.display())]
    Layout {
        /// The folder.
        folder: PathBuf,
        /// What the configuration says.
        config: Layout,
        /// What the names say.
        tensors: Layout,
    },
    /// Tensors and configuration do not match one to one.
    #[error("tensors in `{}` do not match its `config.json`{}", folder.display(), mismatch(missing, leftover, misshapen))]
    Tensors {
        /// The folder.
        folder: PathBuf,
        /// Expected by the configuration, stored nowhere.
        missing: Vec<String>,
        /// Stored, used by nothing.
        leftover: Vec<String>,
        /// Stored in another shape than the configuration asks for.
        misshapen: Vec<Misshapen>,
    },
    /// No tensor of that name.
    #[error("`{}` has no tensor `{tensor}`", folder.display())]
    UnknownTensor {
        /// The folder.
        folder: PathBuf,
        /// The native name asked for.
        tensor: String,
    },
    /// A precision that weights cannot have.
    #[error("weights cannot be `{}`, only `f32`, `bf16` or `f16`", dtype.as_str())]
    WeightDtype {
        /// The type asked for.
        dtype: DType,
    },
    /// A value too large for the precision asked for.
    #[error("value `{value}` in tensor `{tensor}` does not fit `{}`", dtype.as_str())]
    Overflow {
        /// The tensor.
        tensor: String,
        /// The value.
        value: f32,
        /// The type asked for.
        dtype: DType,
    },
    /// A tensor to be written came back in another shape.
    #[error("tensor `{tensor}` to be written has shape {got:?}, expected {expected:?}")]
    WrittenShape {
        /// The tensor.
        tensor: String,
        /// The shape it has to have.
        expected: Vec<usize>,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// Texts that no merges can be learnt from.
    #[error("no merges can be learnt: {reason}")]
    Merges {
        /// What the learner says.
        reason: String,
    },
    /// Token ids that do not fit the vocabulary of the shape.
    #[error(
        "a vocabulary of {vocab_size} has no room for 256 bytes and {special} special tokens from id {first_id} on"
    )]
    VocabularyTooSmall {
        /// Rows.
        vocab_size: usize,
        /// Special tokens to place.
        special: usize,
        /// Where they would begin.
        first_id: u32,
    },
    /// The tensor engine failed.
    #[error("tensor `{tensor}` cannot be processed")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// Why.
        source: candle_core::Error,
    },
}

/// A tensor whose stored shape is not the expected one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshapen {
    /// Its name as stored.
    pub name: String,
    /// What the configuration asks for.
    pub expected: Vec<usize>,
    /// What the file has.
    pub got: Vec<usize>,
}

/// What can be wrong with the header of a safetensors file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderProblem {
    /// Not even the eight bytes of the length.
    #[error("it is {file_bytes} bytes long, shorter than a header")]
    TooShort {
        /// Size of the file.
        file_bytes: u64,
    },
    /// A header that reaches beyond the file, or beyond all reason.
    #[error("its header claims {header_bytes} bytes, the file has room for {room_bytes}")]
    Length {
        /// What it claims.
        header_bytes: u64,
        /// What there is room for.
        room_bytes: u64,
    },
    /// Not the expected JSON.
    #[error("its header is not the expected JSON: {0}")]
    Json(serde_json::Error),
    /// A name that comes twice.
    #[error("its header names `{tensor}` twice")]
    Twice {
        /// The tensor.
        tensor: String,
    },
    /// A type nobody knows.
    #[error("tensor `{tensor}` has the unknown type `{dtype}`")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// The type.
        dtype: String,
    },
    /// A shape whose size does not fit 64 bits.
    #[error("the shape {shape:?} of tensor `{tensor}` overflows")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// Offsets that do not enclose what the shape needs.
    #[error(
        "tensor `{tensor}` needs {expected_bytes} bytes for its shape, its offsets {begin} to {end} do not give them"
    )]
    Size {
        /// The tensor.
        tensor: String,
        /// Bytes its shape and type need.
        expected_bytes: u64,
        /// First offset.
        begin: u64,
        /// Last offset.
        end: u64,
    },
    /// Tensors that overlap, or bytes between them that belong to none.
    #[error("tensor `{tensor}` begins at {begin}, expected {expected}: tensors overlap or leave a gap")]
    Gap {
        /// The tensor.
        tensor: String,
        /// Where it begins.
        begin: u64,
        /// Where the one before ends.
        expected: u64,
    },
    /// Tensors that end before or after the file.
    #[error("its tensors take {expected_bytes} bytes, the file has {got_bytes} for them")]
    FileSize {
        /// What the header promises.
        expected_bytes: u64,
        /// What follows the header.
        got_bytes: u64,
    },
}

/// What can be wrong with a shard index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexProblem {
    /// Not JSON, or no `weight_map` of strings.
    #[error("it is not the expected JSON: {0}")]
    Json(serde_json::Error),
    /// A shard that is not a plain file name.
    #[error("shard `{shard}` of tensor `{tensor}` is not the name of a file in the same folder")]
    OutsideFolder {
        /// The tensor.
        tensor: String,
        /// What the index says.
        shard: String,
    },
    /// A shard that does not exist.
    #[error("shard `{shard}` does not exist")]
    MissingShard {
        /// Its name.
        shard: String,
    },
    /// More shards than can be held open.
    #[error("it names {shards} shards, expected at most {limit}")]
    TooManyShards {
        /// How many.
        shards: usize,
        /// The limit.
        limit: usize,
    },
    /// A tensor that its shard does not hold.
    #[error("tensor `{tensor}` is not in shard `{shard}`")]
    NotInShard {
        /// The tensor.
        tensor: String,
        /// Where the index says it is.
        shard: String,
    },
    /// A tensor the index does not name.
    #[error("tensor `{tensor}` in shard `{shard}` is not in the index")]
    NotInIndex {
        /// The tensor.
        tensor: String,
        /// Where it is.
        shard: String,
    },
}

/// What can be wrong with a file of `torch.save`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchProblem {
    /// Not the zip that torch writes since 1.6.
    #[error("it is not a zip archive of `torch.save`: {0}")]
    Zip(zip::result::ZipError),
    /// An archive without the expected entry, or with a broken one.
    #[error("archive entry `{entry}` {problem}")]
    Entry {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An entry whose bytes are not those that were written.
    #[error("archive entry `{entry}` does not have the CRC-32 that the archive tells: it is damaged")]
    Sum {
        /// The entry.
        entry: String,
    },
    /// More operations than any file of tensors needs.
    #[error("its pickle has more than {limit} operations")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// A class or function that is not needed for tensors.
    #[error("its pickle asks for `{global}`, which is no part of a tensor; nothing was run")]
    Global {
        /// Module and name.
        global: String,
    },
    /// An operation that is not needed for tensors.
    #[error("its pickle uses opcode 0x{opcode:02x} at byte {position}, which tensors do not need; nothing was run")]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// Where.
        position: usize,
    },
    /// A pickle that ends early or does not hold together.
    #[error("its pickle is broken at byte {position}: {problem}")]
    Broken {
        /// Where.
        position: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// A value of the state dict that is not a tensor.
    #[error("entry `{name}` of its state dict is not a tensor")]
    NotATensor {
        /// The key.
        name: String,
    },
    /// A name that comes twice.
    #[error("its state dict names `{name}` twice")]
    Twice {
        /// The key.
        name: String,
    },
    /// A view that is not the plain order of rows.
    #[error("tensor `{name}` of shape {shape:?} has strides {stride:?}; only contiguous tensors are read")]
    Strides {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<i64>,
        /// Its strides in elements.
        stride: Vec<i64>,
    },
    /// A tensor that reaches beyond its storage.
    #[error("tensor `{name}` needs elements {begin} to {end} of storage `{storage}`, which has {elements}")]
    OutOfRange {
        /// The tensor.
        name: String,
        /// First element.
        begin: u64,
        /// One past the last element.
        end: u64,
        /// The storage's key.
        storage: String,
        /// Elements the storage has in the archive.
        elements: u64,
    },
}

/// Names shown of each list; the variant's fields hold them all.
const SHOWN: usize = 20;

fn mismatch(missing: &[String], leftover: &[String], misshapen: &[Misshapen]) -> String {
    let shapes: Vec<String> = misshapen
        .iter()
        .map(|Misshapen { name, expected, got }| format!("`{name}` has {got:?}, expected {expected:?}"))
        .collect();
    let quoted = |names: &[String]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
    let mut text = String::new();
    for (title, items) in [("missing", quoted(missing)), ("left over", quoted(leftover)), ("of another shape", shapes)]
    {
        if items.is_empty() {
            continue;
        }
        text.push_str(&format!("; {} {title}: {}", items.len(), items[..items.len().min(SHOWN)].join(", ")));
        if items.len() > SHOWN {
            text.push_str(&format!(" and {} more", items.len() - SHOWN));
        }
    }
    text
}

impl Diagnose for CheckpointError {
    fn fault(&self) -> Fault {
        match self {
            CheckpointError::Io { source, .. } => fault_of_reading(source),
            CheckpointError::Input(e) => e.fault(),
            CheckpointError::WrittenShape { .. } | CheckpointError::Tensor { .. } => Fault::Internal,
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            CheckpointError::Input(e) => return e.hints(),
            CheckpointError::NoConfig { .. } | CheckpointError::NotAFolder { .. } => {
                "a checkpoint is a folder with `config.json`, weights and `tokenizer.json`"
            }
            CheckpointError::NoWeights { .. } => {
                "looked for `model.safetensors`, `model.safetensors.index.json`, `pytorch_model.bin` and `pytorch_model.bin.index.json`"
            }
            CheckpointError::Safetensors { .. } => {
                "the file may be cut off: compare its size with the source and fetch it again"
            }
            CheckpointError::Index { problem: IndexProblem::MissingShard { .. }, .. } => {
                "fetch the missing file into the same folder"
            }
            CheckpointError::Index { problem: IndexProblem::TooManyShards { .. }, .. } => {
                "save the weights in larger shards"
            }
            CheckpointError::Index { .. } => "take the index from where the weights came from; shards lie beside it",
            CheckpointError::Torch { problem: TorchProblem::Global { .. } | TorchProblem::Opcode { .. }, .. } => {
                "a weights file needs no code: do not trust this one, use a safetensors copy"
            }
            CheckpointError::Torch { problem: TorchProblem::Strides { .. }, .. } => {
                "save the tensors with `.contiguous()`, or use a safetensors copy"
            }
            CheckpointError::Torch { .. } => {
                "fetch the file again, or use a safetensors copy: only what `torch.save` of a state dict writes is read"
            }
            CheckpointError::Overflow { .. } => "`bf16` has the range of `f32`",
            CheckpointError::Json { .. } => "take the file anew from where the base was published",
            CheckpointError::Dtype { .. } => {
                "quantised or integer weights cannot be read: use the checkpoint as it was published in bf16, f16 or f32"
            }
            CheckpointError::Duplicate { .. } => {
                "keep one of the two: both belong to one checkpoint only if an index says so"
            }
            CheckpointError::Layout { .. }
            | CheckpointError::Tensors { .. }
            | CheckpointError::UnknownTensor { .. } => "take `config.json` and the weights from one checkpoint",
            CheckpointError::WeightDtype { .. } => "for example `bf16`",
            CheckpointError::Merges { .. } => "give more text, or a smaller vocabulary",
            CheckpointError::VocabularyTooSmall { .. } => "give the shape a larger `vocab_size`",
            CheckpointError::Io { .. } if self.fault() == Fault::Input => {
                "see whether it is there, whole, and this user may read it, such as with `ls -l`"
            }
            CheckpointError::Io { .. } | CheckpointError::WrittenShape { .. } | CheckpointError::Tensor { .. } => {
                return Vec::new();
            }
        };
        vec![hint.into()]
    }
}
