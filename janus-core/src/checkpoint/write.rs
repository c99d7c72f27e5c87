//! Writing a checkpoint folder: tensor by tensor from another one, into one safetensors file or shards with an index.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

use super::layout::place;
use super::names::expected_tensors;
use super::values::{is_weight_dtype, write_values};
use super::{Checkpoint, CheckpointError, side_files};
use crate::config::{Layout, torch_dtype_name};
use crate::directory::{Directory, Place};
use crate::output::write_below;

/// Bytes of a shard unless asked otherwise, as transformers used to cut.
const DEFAULT_MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// How to write a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteOptions {
    /// How to name the tensors.
    pub layout: Layout,
    /// Precision of all tensors, `f32`, `bf16` or `f16`; `None` keeps each tensor's own.
    pub dtype: Option<DType>,
    /// A file grows no larger than this, except for a single tensor that is larger.
    pub max_shard_bytes: u64,
    /// Writes `lm_head.weight` of a tied model, and a configuration that does not tie: a change to the embedding table or
    /// the head alone is possible then.
    pub untie_head: bool,
}

impl WriteOptions {
    /// In `layout`, every tensor in its own precision, shards of 5 GB, a tied head left tied.
    pub fn new(layout: Layout) -> Self {
        Self { layout, dtype: None, max_shard_bytes: DEFAULT_MAX_SHARD_BYTES, untie_head: false }
    }

    /// With all tensors in this precision.
    #[must_use]
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// With files no larger than this.
    #[must_use]
    pub fn with_max_shard_bytes(mut self, bytes: u64) -> Self {
        self.max_shard_bytes = bytes;
        self
    }

    /// With a head of its own, even if the source ties it.
    #[must_use]
    pub fn with_untied_head(mut self, untie: bool) -> Self {
        self.untie_head = untie;
        self
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteReport {
    /// Names of the weights files, in order.
    pub files: Vec<String>,
    /// Tensors in them.
    pub tensors: usize,
    /// Values in them.
    pub parameters: u64,
    /// Bytes of the values.
    pub bytes: u64,
}

/// A tensor to be written: header facts now, values later.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    /// Stored name.
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) source: PlannedSource,
}

#[derive(Debug, Clone)]
pub(super) enum PlannedSource {
    /// Native tensors, whose rows follow each other.
    Native(Vec<String>),
    /// The unused tensor of this index, byte for byte.
    Unused(usize),
}

impl Planned {
    fn elements(&self) -> u64 {
        self.shape.iter().map(|side| *side as u64).product()
    }

    fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.dtype.size_in_bytes() as u64)
    }
}

/// Arranges native tensors, given with their shapes and precisions, as `layout` stores them.
pub(super) fn plan(layout: Layout, tensors: impl Iterator<Item = (String, Vec<usize>, DType)>) -> Vec<Planned> {
    let mut planned: Vec<Planned> = Vec::new();
    let mut fused: BTreeMap<String, usize> = BTreeMap::new();
    for (native, shape, dtype) in tensors {
        let place = place(layout, &native, &shape);
        if let Some(index) = fused.get(&place.name) {
            // Canonical order is q, k, v, which is also the order of the rows.
            if planned[*index].dtype != dtype {
                planned[*index].dtype = DType::F32;
            }
            if let PlannedSource::Native(parts) = &mut planned[*index].source {
                parts.push(native);
            }
            continue;
        }
        if place.third.is_some() {
            fused.insert(place.name.clone(), planned.len());
        }
        let source = PlannedSource::Native(vec![native]);
        planned.push(Planned { name: place.name, shape: place.shape, dtype, source });
    }
    planned
}

/// Writes the planned tensors into `into`; `values` writes those of one of them.
pub(super) fn write_weights<E: From<crate::Error>>(
    mut planned: Vec<Planned>,
    max_shard_bytes: u64,
    into: &Directory,
    values: &mut dyn FnMut(&Planned, &mut dyn Write) -> Result<(), E>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<WriteReport, E> {
    // Wider types first, so that every tensor of a file begins at a multiple of its element's size.
    planned.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.size_in_bytes()));
    let total: u64 = planned.iter().map(Planned::bytes).sum();
    let parameters = planned.iter().map(Planned::elements).sum();
    let tensors = planned.len();

    let mut shards: Vec<Vec<Planned>> = vec![Vec::new()];
    let mut shard_bytes = 0_u64;
    for tensor in planned {
        let bytes = tensor.bytes();
        if shard_bytes.saturating_add(bytes) > max_shard_bytes && shards.last().is_some_and(|shard| !shard.is_empty()) {
            shards.push(Vec::new());
            shard_bytes = 0;
        }
        shard_bytes += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }

    let mut done = 0;
    let mut files = Vec::with_capacity(shards.len());
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => "model.safetensors".to_string(),
            count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let path = into.path().join(&file);
        let io_error = |source| E::from(crate::Error::from(CheckpointError::Io { path: path.clone(), source }));
        let opened = into.update_file(&file).and_then(|opened| opened.set_len(0).map(|()| opened));
        let mut writer = BufWriter::with_capacity(1 << 20, opened.map_err(io_error)?);
        writer.write_all(&header(shard)).map_err(io_error)?;
        for tensor in shard {
            values(tensor, &mut writer)?;
            weight_map.insert(tensor.name.clone(), file.clone());
            done += tensor.bytes();
            progress(done, total);
        }
        writer.flush().map_err(io_error)?;
        files.push(file);
    }
    if files.len() > 1 {
        let index = json!({
            "metadata": { "total_parameters": parameters, "total_size": total },
            "weight_map": weight_map,
        });
        write_json(into, "model.safetensors.index.json", &index).map_err(E::from)?;
    }
    Ok(WriteReport { files, tensors, parameters, bytes: total })
}

/// Length and text of a safetensors header, padded so that the values begin at a multiple of 8 bytes.
fn header(tensors: &[Planned]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut begin = 0_u64;
    for tensor in tensors {
        let end = begin + tensor.bytes();
        let dtype = super::safetensors::dtype_name(tensor.dtype);
        let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, end] });
        entries.insert(tensor.name.clone(), entry);
        begin = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&text);
    bytes
}

/// Writes a JSON file with two spaces of indent and a final newline.
pub(super) fn write_json(into: &Directory, name: &str, value: &Value) -> crate::Result<()> {
    write_below(into, name, |writer| {
        serde_json::to_writer_pretty(&mut *writer, value)?;
        writer.write_all(b"\n")
    })?;
    Ok(())
}

/// Writes `source` into the folder `into`, as a whole: weights, configuration, tokenizer and the other small files.
///
/// `into` is meant to be a [`crate::output::StagedFolder`]'s folder: what an error leaves there is incomplete.
/// `transform` gets each native tensor with its name, in its stored precision, and gives the tensor to write, of the same
/// shape and of any precision; the writer converts. `progress` hears of bytes done and in total.
///
/// Between equal layouts all small files are copied and `config.json` keeps its keys; between different ones the target
/// gets its own form of `config.json`, `preprocessor_config.json`, `processor_config.json` and `tokenizer_config.json`.
/// Tensors that nothing uses are carried from the original layout to the original layout.
///
/// # Errors
/// What reading, `transform` and the system report; a finite value that `f16` cannot hold.
pub fn write_checkpoint<'a, E: From<crate::Error>>(
    source: &Checkpoint,
    options: &WriteOptions,
    transform: &mut dyn FnMut(&str, Tensor) -> Result<Tensor, E>,
    into: impl Into<Place<'a>>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<WriteReport, E> {
    if let Some(dtype) = options.dtype.filter(|dtype| !is_weight_dtype(*dtype)) {
        return Err(lift(CheckpointError::WeightDtype { dtype }));
    }
    let into = &make(into.into()).map_err(lift)?;
    let with_head = !source.is_tied() || options.untie_head;
    let native = expected_tensors(source.config(), with_head).into_iter().map(|tensor| {
        let own = source.tensor(&tensor.name).map_or(DType::F32, |info| info.dtype);
        (tensor.name, tensor.shape, options.dtype.unwrap_or(own))
    });
    let mut planned = plan(options.layout, native);
    if (source.layout(), options.layout) == (Layout::DeepSeek, Layout::DeepSeek) {
        planned.extend(source.unused().iter().enumerate().map(|(index, info)| Planned {
            name: info.name.clone(),
            shape: info.shape.clone(),
            dtype: info.dtype,
            source: PlannedSource::Unused(index),
        }));
    }
    let mut values = |tensor: &Planned, writer: &mut dyn Write| -> Result<(), E> {
        let io_error = |source| CheckpointError::Io { path: into.path().to_path_buf(), source };
        match &tensor.source {
            PlannedSource::Native(parts) => {
                for name in parts {
                    let info = source.tensor(name).ok_or_else(|| {
                        lift(CheckpointError::UnknownTensor {
                            folder: source.folder().to_path_buf(),
                            tensor: name.clone(),
                        })
                    })?;
                    let written = transform(name, source.read(name, info.dtype).map_err(lift)?)?;
                    check_shape(name, &info.shape, &written).map_err(lift)?;
                    write_values(name, &written, tensor.dtype, writer, io_error).map_err(lift)?;
                }
                Ok(())
            }
            PlannedSource::Unused(index) => source
                .extent(&source.unused()[*index])
                .for_each_chunk(|bytes| writer.write_all(bytes).map_err(io_error))
                .map_err(lift),
        }
    };
    let report = write_weights(planned, options.max_shard_bytes, into, &mut values, progress)?;

    if source.layout() == options.layout {
        side_files::copy(source.folder(), into).map_err(E::from)?;
    } else {
        side_files::convert(source, options.layout, into).map_err(E::from)?;
    }
    write_config(source, options, with_head, into).map_err(E::from)?;
    Ok(report)
}

/// Writes `source` into `into` in another layout or precision, values unchanged but for rounding; see
/// [`write_checkpoint`].
///
/// # Errors
/// As [`write_checkpoint`].
pub fn convert_checkpoint<'a>(
    source: &Checkpoint,
    options: &WriteOptions,
    into: impl Into<Place<'a>>,
    progress: &mut dyn FnMut(u64, u64),
) -> crate::Result<WriteReport> {
    write_checkpoint(source, options, &mut |_, tensor| Ok::<_, crate::Error>(tensor), into, progress)
}

/// The folder to write into.
pub(super) fn make(into: Place<'_>) -> Result<Directory, CheckpointError> {
    into.make().map_err(|source| CheckpointError::Io { path: into.path().to_path_buf(), source })
}

pub(super) fn lift<E: From<crate::Error>>(error: CheckpointError) -> E {
    E::from(crate::Error::from(error))
}

pub(super) fn check_shape(name: &str, expected: &[usize], tensor: &Tensor) -> Result<(), CheckpointError> {
    if tensor.dims() == expected {
        return Ok(());
    }
    Err(CheckpointError::WrittenShape {
        tensor: name.to_string(),
        expected: expected.to_vec(),
        got: tensor.dims().to_vec(),
    })
}

fn write_config(source: &Checkpoint, options: &WriteOptions, with_head: bool, into: &Directory) -> crate::Result<()> {
    let value = if source.layout() == options.layout {
        let mut value = source.config_json().clone();
        if let Some(dtype) = options.dtype {
            set_dtype(&mut value, options.layout, dtype);
        }
        // Where a head is written the flag must not tie it: loaders that trust the flag would drop the tensor.
        if with_head && source.config().tie_word_embeddings {
            untie(&mut value, options.layout);
        }
        value
    } else {
        let mut config = source.config().clone();
        config.tie_word_embeddings = !with_head;
        side_files::SpecialIds::of_folder(into)?.complete(&mut config);
        config.to_json(options.layout, options.dtype.unwrap_or_else(|| source.stored_dtype()))
    };
    write_json(into, "config.json", &value)
}

/// Replaces the precision wherever the file names it.
fn set_dtype(value: &mut Value, layout: Layout, dtype: DType) {
    let name = json!(torch_dtype_name(dtype));
    let Some(root) = value.as_object_mut() else { return };
    let replace = |map: &mut Map<String, Value>| {
        for key in ["dtype", "torch_dtype"] {
            if let Some(old) = map.get_mut(key) {
                *old = name.clone();
            }
        }
    };
    replace(root);
    root.values_mut().filter_map(Value::as_object_mut).for_each(replace);
    if !root.contains_key("dtype") && !root.contains_key("torch_dtype") {
        let key = match layout {
            Layout::Native => "dtype",
            Layout::DeepSeek => "torch_dtype",
        };
        root.insert(key.into(), name.clone());
    }
}

fn untie(value: &mut Value, layout: Layout) {
    let Some(root) = value.as_object_mut() else { return };
    let inner = match layout {
        Layout::Native => {
            root.insert("tie_word_embeddings".into(), json!(false));
            "text_config"
        }
        Layout::DeepSeek => {
            if let Some(flag) = root.get_mut("tie_word_embeddings") {
                *flag = json!(false);
            }
            "language_config"
        }
    };
    if let Some(flag) = root.get_mut(inner).and_then(|inner| inner.get_mut("tie_word_embeddings")) {
        *flag = json!(false);
    }
}
