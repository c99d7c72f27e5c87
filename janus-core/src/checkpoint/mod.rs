//! Checkpoint folders: opened, read tensor by tensor, fingerprinted, written, converted, made at random.
//!
//! Tensors have their native names throughout (transformers' `JanusForConditionalGeneration`), whatever the files call
//! them. Opening reads `config.json` and the headers of the weights, nothing else; reading is by position, straight into
//! the tensor, without a second copy or a memory map.

mod error;
mod file;
mod fingerprint;
mod init;
mod known;
mod layout;
mod names;
mod pickle;
mod random;
mod safetensors;
mod shards;
mod side_files;
mod source;
mod tensor_file;
mod tokenizer;
mod torch;
mod values;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};

pub use error::{CheckpointError, HeaderProblem, IndexProblem, Misshapen, TorchProblem};
pub use fingerprint::{Fingerprint, TensorDigests, tensor_digest};
pub use init::{init_checkpoint, init_side_files};
pub use known::{FilesIdentity, KnownFingerprints};
pub use names::{EMBED_TOKENS, ExpectedTensor, LM_HEAD, expected_tensors};
pub use random::RandomWeights;
pub use safetensors::require_unique_names;
pub(crate) use shards::{MAX_INDEX_BYTES, MAX_SHARDS};
pub use source::WeightSource;
pub use tensor_file::TensorFile;
pub use tokenizer::{Merges, learn_merges, merged_ids, write_tokenizer};
pub use write::{WriteOptions, WriteReport, convert_checkpoint, write_checkpoint};

use crate::config::{JanusConfig, Layout};
use crate::input;
use file::{Stored, WeightsFile};
use values::Extent;

/// Longest `config.json` that is read; published ones have 3 kB.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Native name; the stored one for tensors that nothing uses.
    pub name: String,
    /// Native shape.
    pub shape: Vec<usize>,
    /// Stored precision.
    pub dtype: DType,
    /// The file that holds it.
    pub file: PathBuf,
    /// Its size there.
    pub bytes: u64,
    file_index: usize,
    offset: u64,
}

/// An open checkpoint folder, whose tensors match its configuration one to one.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: JanusConfig,
    config_json: serde_json::Value,
    files: Vec<WeightsFile>,
    /// In canonical order.
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    unused: Vec<TensorInfo>,
    tied: bool,
    /// Values that stand for stored ones, f32, by native name.
    replaced: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Opens a folder: reads the configuration and the headers, and matches them.
    ///
    /// `model.safetensors`, `model.safetensors.index.json`, `pytorch_model.bin` and `pytorch_model.bin.index.json` are
    /// looked for in this order.
    ///
    /// # Errors
    /// No such files, broken or lying ones, an unsupported configuration, or tensors that are missing, left over or of
    /// another shape; the last three are listed together.
    pub fn open(folder: &Path) -> crate::Result<Self> {
        let (config, config_json) = Self::read_config(folder)?;
        let (files, stored) = shards::open_weights(folder)?;
        Ok(Self::assemble(folder, config, config_json, files, stored)?)
    }

    /// A checkpoint whose weights are not there: its configuration, and no tensor that could be read. `stored` are the names of
    /// its tensors as its files spell them, where they are known.
    ///
    /// # Errors
    /// No configuration, or one that is not supported.
    pub fn outline(folder: &Path, stored: Option<&BTreeSet<String>>) -> crate::Result<Self> {
        let (config, config_json) = Self::read_config(folder)?;
        let head = layout::place(config.layout, LM_HEAD, &[]).name;
        let tied = config.tie_word_embeddings && !stored.is_some_and(|names| names.contains(&head));
        Ok(Self {
            folder: folder.to_path_buf(),
            config,
            config_json,
            files: Vec::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
            unused: Vec::new(),
            tied,
            replaced: BTreeMap::new(),
        })
    }

    fn read_config(folder: &Path) -> crate::Result<(JanusConfig, serde_json::Value)> {
        if !folder.is_dir() {
            return Err(CheckpointError::NotAFolder { path: folder.to_path_buf() }.into());
        }
        let config_path = folder.join("config.json");
        let text = input::read(folder, "config.json", MAX_CONFIG_BYTES).map_err(CheckpointError::from)?;
        let text = text.ok_or_else(|| CheckpointError::NoConfig { folder: folder.to_path_buf() })?;
        // Whatever is not UTF-8 becomes a character that breaks the JSON or stands in a key that nobody reads.
        let text = String::from_utf8_lossy(&text);
        let config = JanusConfig::from_json(&text, &config_path)?;
        let config_json =
            serde_json::from_str(&text).map_err(|source| CheckpointError::Json { file: config_path, source })?;
        Ok((config, config_json))
    }

    fn assemble(
        folder: &Path,
        config: JanusConfig,
        config_json: serde_json::Value,
        files: Vec<WeightsFile>,
        stored: Vec<Stored>,
    ) -> Result<Self, CheckpointError> {
        let mut remaining: BTreeMap<String, Stored> = stored.into_iter().map(|t| (t.name.clone(), t)).collect();
        let other = match config.layout {
            Layout::Native => Layout::DeepSeek,
            Layout::DeepSeek => Layout::Native,
        };
        if !remaining.contains_key(layout::embedding_name(config.layout))
            && remaining.contains_key(layout::embedding_name(other))
        {
            let folder = folder.to_path_buf();
            return Err(CheckpointError::Layout { folder, config: config.layout, tensors: other });
        }
        let (unused, used): (BTreeMap<_, _>, _) =
            remaining.into_iter().partition(|(name, _)| layout::is_known_unused(name));
        remaining = used;

        // A stored head is used whatever the flag says: published files contradict themselves here.
        let head = layout::place(config.layout, LM_HEAD, &[]).name;
        let tied = config.tie_word_embeddings && !remaining.contains_key(&head);
        let expected = expected_tensors(&config, !tied);

        let mut tensors = Vec::with_capacity(expected.len());
        let mut used = BTreeSet::new();
        let mut missing = BTreeSet::new();
        let mut misshapen: Vec<Misshapen> = Vec::new();
        for ExpectedTensor { name, shape } in expected {
            let place = layout::place(config.layout, &name, &shape);
            let Some(stored) = remaining.get(&place.name) else {
                missing.insert(place.name);
                continue;
            };
            let first_use = used.insert(place.name.clone());
            if stored.shape != place.shape {
                if first_use {
                    let (expected, got) = (place.shape, stored.shape.clone());
                    misshapen.push(Misshapen { name: place.name, expected, got });
                }
                continue;
            }
            let file = files[stored.file].path().to_path_buf();
            if !values::is_weight_dtype(stored.dtype) {
                let dtype = safetensors::dtype_name(stored.dtype).to_string();
                return Err(CheckpointError::Dtype { file, tensor: place.name, dtype });
            }
            let (offset, bytes) = match place.third {
                None => (stored.offset, stored.bytes),
                Some(third) => (stored.offset + third as u64 * (stored.bytes / 3), stored.bytes / 3),
            };
            tensors.push(TensorInfo { name, shape, dtype: stored.dtype, file, bytes, file_index: stored.file, offset });
        }
        let leftover: Vec<String> = remaining.keys().filter(|name| !used.contains(*name)).cloned().collect();
        if !(missing.is_empty() && leftover.is_empty() && misshapen.is_empty()) {
            let (folder, missing) = (folder.to_path_buf(), missing.into_iter().collect());
            return Err(CheckpointError::Tensors { folder, missing, leftover, misshapen });
        }
        let unused = unused
            .into_values()
            .map(|Stored { name, dtype, shape, file, offset, bytes }| TensorInfo {
                name,
                shape,
                dtype,
                file: files[file].path().to_path_buf(),
                bytes,
                file_index: file,
                offset,
            })
            .collect();
        let by_name = tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        let replaced = BTreeMap::new();
        Ok(Self { folder: folder.to_path_buf(), config, config_json, files, tensors, by_name, unused, tied, replaced })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its configuration.
    pub fn config(&self) -> &JanusConfig {
        &self.config
    }

    /// `config.json` as it stands, unknown keys included.
    pub(crate) fn config_json(&self) -> &serde_json::Value {
        &self.config_json
    }

    /// How the files name their tensors.
    pub fn layout(&self) -> Layout {
        self.config.layout
    }

    /// The precision in which most bytes are stored.
    pub fn stored_dtype(&self) -> DType {
        let sum = |dtype| self.tensors().filter(|t| t.dtype == dtype).map(|t| t.bytes).sum::<u64>();
        [DType::F32, DType::F16, DType::BF16].into_iter().max_by_key(|dtype| sum(*dtype)).unwrap_or(DType::BF16)
    }

    /// The type that holds a tensor of native name exactly and in the fewest bytes: bf16 where it is stored in that, or f32.
    pub fn exact_dtype(&self, native_name: &str) -> DType {
        let info = self.tensor(native_name).filter(|info| !self.replaced.contains_key(&info.name));
        info.map_or(DType::F32, |info| if info.dtype == DType::BF16 { DType::BF16 } else { DType::F32 })
    }

    /// Whether the head is the embedding table: no `lm_head.weight` is stored, and the configuration ties it.
    pub fn is_tied(&self) -> bool {
        self.tied
    }

    /// All tensors the model uses, in canonical order, by native name. A tied model has no `lm_head.weight` here.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// Stored tensors that are known to be used by nothing.
    pub fn unused(&self) -> &[TensorInfo] {
        &self.unused
    }

    /// The tensor of a native name; `lm_head.weight` of a tied model is the embedding table.
    pub fn tensor(&self, native_name: &str) -> Option<&TensorInfo> {
        let name = if self.tied && native_name == LM_HEAD { EMBED_TOKENS } else { native_name };
        self.by_name.get(name).map(|index| &self.tensors[*index])
    }

    /// Reads a tensor of native name and shape onto the CPU as `dtype` (`f32`, `bf16` or `f16`). The values are converted
    /// while they are read and exist in memory once. `lm_head.weight` of a tied model is the embedding table.
    ///
    /// # Errors
    /// No such tensor, another type, a finite value that `f16` cannot hold, or the system's.
    pub fn read(&self, native_name: &str, dtype: DType) -> Result<Tensor, CheckpointError> {
        let info = self.known_tensor(native_name)?;
        if let Some(value) = self.replaced.get(&info.name) {
            let converted = value.to_dtype(dtype);
            return converted.map_err(|source| CheckpointError::Tensor { tensor: info.name.clone(), source });
        }
        self.extent(info).read(&info.shape, dtype)
    }

    /// Lets a value stand for the stored one of a native name: the files stay as they are. The fingerprint is that of the
    /// files.
    ///
    /// # Errors
    /// No such tensor, or a value of another shape.
    pub fn replace(&mut self, native_name: &str, value: &Tensor) -> Result<(), CheckpointError> {
        let info = self.known_tensor(native_name)?;
        if info.shape != value.dims() {
            let (expected, got) = (info.shape.clone(), value.dims().to_vec());
            let misshapen = vec![Misshapen { name: info.name.clone(), expected, got }];
            let (folder, missing, leftover) = (self.folder.clone(), Vec::new(), Vec::new());
            return Err(CheckpointError::Tensors { folder, missing, leftover, misshapen });
        }
        let name = info.name.clone();
        let wide = value.to_dtype(DType::F32).and_then(|value| value.contiguous());
        let wide = wide.map_err(|source| CheckpointError::Tensor { tensor: name.clone(), source })?;
        self.replaced.insert(name, wide.detach());
        Ok(())
    }

    /// Whether reading a tensor of native name again, as the type of `tensor` (`f32`, `bf16` or `f16`, any device), gives the
    /// same bits in the same shape.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn matches(&self, native_name: &str, tensor: &Tensor) -> Result<bool, CheckpointError> {
        let info = self.known_tensor(native_name)?;
        if let Some(value) = self.replaced.get(&info.name) {
            let told = |source| CheckpointError::Tensor { tensor: info.name.clone(), source };
            let value = value.to_dtype(tensor.dtype()).map_err(told)?;
            return Ok(value.dims() == tensor.dims() && tensor_digest(&value)? == tensor_digest(tensor)?);
        }
        Ok(info.shape == tensor.dims() && self.extent(info).matches(tensor)?)
    }

    /// The first weights file that has been written to since it was opened; one that was replaced is still read as it was.
    pub fn rewritten_file(&self) -> Option<&Path> {
        self.files.iter().find(|file| file.is_rewritten()).map(WeightsFile::path)
    }

    fn known_tensor(&self, native_name: &str) -> Result<&TensorInfo, CheckpointError> {
        self.tensor(native_name).ok_or_else(|| CheckpointError::UnknownTensor {
            folder: self.folder.clone(),
            tensor: native_name.to_string(),
        })
    }

    /// Where the values of one of this checkpoint's tensors lie.
    fn extent<'a>(&'a self, info: &'a TensorInfo) -> Extent<'a> {
        Extent {
            name: &info.name,
            file: &self.files[info.file_index],
            dtype: info.dtype,
            offset: info.offset,
            bytes: info.bytes,
        }
    }
}

#[cfg(test)]
mod tests;
