//! One forward pass over given tensors, for comparing with another implementation.
//!
//! It runs the same batches, models and corrections as every other command, in f32 whatever the stored type.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use janus_core::checkpoint::require_unique_names;
use janus_core::input::{InputError, read_named};
use janus_core::pass::Pass;
use janus_core::{Diagnose, Janus, Parts};

use crate::base::Base;
use crate::cache::Image;
use crate::culprit::finite;
use crate::error::Result;
use crate::tasks::{CodeBatch, TextBatch};
use crate::train::trainable::Trainables;

/// A larger input file is no probe.
const MAX_INPUT_BYTES: u64 = 1 << 30;

/// Five tensors take some hundred bytes.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Inputs that cannot be probed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// A file that is not a readable safetensors file.
    #[error("`{}` cannot be read as safetensors: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A tensor that must be there.
    #[error("`{}` has no tensor `{tensor}`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: &'static str,
    },
    /// A tensor of a name that means nothing here.
    #[error("`{}` has a tensor `{tensor}`, which is none of the inputs", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A tensor of another type or number of dimensions.
    #[error("`{tensor}` is {got}, expected {expected}")]
    Type {
        /// Its name.
        tensor: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// A tensor whose shape does not fit `input_ids`.
    #[error("`{tensor}` has shape {got:?}, expected {expected:?} as `input_ids`")]
    Shape {
        /// Its name.
        tensor: &'static str,
        /// What was expected.
        expected: Vec<usize>,
        /// What came.
        got: Vec<usize>,
    },
    /// A value that cannot stand there.
    #[error("`{tensor}` has the value {value} at row {row}, position {position}")]
    Value {
        /// Its name.
        tensor: &'static str,
        /// The value.
        value: i64,
        /// Row.
        row: usize,
        /// Position in the row.
        position: usize,
    },
    /// A pixel that no picture has.
    #[error("`pixel_values` holds {value} at value {index}, expected finite numbers")]
    Pixel {
        /// The value.
        value: f32,
        /// Its place among all of them.
        index: usize,
    },
    /// Gradients of nothing.
    #[error("gradients need a loss: neither `labels` nor `image_tokens` is given")]
    NoLoss,
    /// A row that is longer than the base's positions.
    #[error("row {row} has {tokens} tokens, the base has {positions} positions")]
    Positions {
        /// The row.
        row: usize,
        /// Its tokens, those of its image among them.
        tokens: usize,
        /// Positions of the base.
        positions: usize,
    },
    /// A row without a token.
    #[error("row {row} of `attention_mask` is all zeros")]
    EmptyRow {
        /// The row.
        row: usize,
    },
}

impl Diagnose for ProbeError {
    fn hints(&self) -> Vec<String> {
        match self {
            ProbeError::Missing { .. } | ProbeError::Unknown { .. } => {
                vec!["inputs are `input_ids`, `attention_mask`, `pixel_values`, `image_tokens` and `labels`".into()]
            }
            ProbeError::File { .. } => vec!["give a safetensors file with `input_ids`".into()],
            ProbeError::Value { tensor: "labels", .. } => {
                vec!["labels are token ids, or -100 where none counts".into()]
            }
            ProbeError::Value { tensor: "input_ids" | "image_tokens", .. } => {
                vec![
                    "`janus base inspect` tells the sizes of the vocabulary and of the image codes; ids begin at 0"
                        .into(),
                ]
            }
            ProbeError::Type { .. } | ProbeError::Shape { .. } => vec![
                "ids, masks, labels and image tokens are I64 `[batch, sequence]`, pixels F32 `[images, 3, size, size]`"
                    .into(),
            ],
            ProbeError::Value { .. } => vec!["a mask is 0 or 1".into()],
            ProbeError::Pixel { .. } => vec!["pixels of Janus lie between -1 and 1".into()],
            ProbeError::NoLoss => vec!["leave `--gradients` out, or give `labels` or `image_tokens`".into()],
            ProbeError::Positions { .. } => vec!["give shorter rows".into()],
            ProbeError::EmptyRow { .. } => vec!["a row has one token at least: leave the row out".into()],
        }
    }
}

/// What a probe is given. Ids and masks I64, pixels F32.
#[derive(Debug)]
pub struct ProbeInput {
    /// `[batch, sequence]`; with image tokens the prompt up to and with `<begin_of_image>`.
    ids: Vec<u32>,
    rows: usize,
    mask: Vec<bool>,
    labels: Option<Vec<i64>>,
    pixels: Option<Tensor>,
    codes: Option<Vec<Vec<u32>>>,
}

impl ProbeInput {
    /// Reads and checks an input file.
    ///
    /// # Errors
    /// A file or tensor that is not as it must be.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |reason: String| ProbeError::File { path: path.to_path_buf(), reason };
        let told = |error: InputError| match error {
            InputError::Io { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        let bytes = read_named(path, MAX_INPUT_BYTES).map_err(|error| failed(told(error)))?;
        let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
        if let Some(length) = length.filter(|length| *length > MAX_HEADER_BYTES) {
            return Err(failed(format!("its header claims {length} bytes, expected at most {MAX_HEADER_BYTES}")).into());
        }
        // The checked parser first: it refuses headers that lie.
        let (header_bytes, _) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| failed(e.to_string()))?;
        require_unique_names(&bytes[8..8 + header_bytes]).map_err(|e| failed(e.to_string()))?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|e| failed(e.to_string()))?;
        const KNOWN: [&str; 5] = ["input_ids", "attention_mask", "pixel_values", "image_tokens", "labels"];
        let mut names: Vec<&String> = tensors.keys().collect();
        names.sort();
        if let Some(name) = names.into_iter().find(|name| !KNOWN.contains(&name.as_str())) {
            return Err(ProbeError::Unknown { path: path.to_path_buf(), tensor: name.clone() }.into());
        }
        let missing = || ProbeError::Missing { path: path.to_path_buf(), tensor: "input_ids" };
        let (shape, ids) = integers(&tensors, "input_ids")?.ok_or_else(missing)?;
        let like_ids = |name: &'static str| -> Result<Option<Vec<i64>>> {
            match integers(&tensors, name)? {
                Some((own, _)) if own != shape => {
                    Err(ProbeError::Shape { tensor: name, expected: shape.to_vec(), got: own.to_vec() }.into())
                }
                other => Ok(other.map(|(_, values)| values)),
            }
        };
        let width = shape[1];
        let at = |tensor, place: usize, value| ProbeError::Value {
            tensor,
            value,
            row: place / width,
            position: place % width,
        };
        let mask = match like_ids("attention_mask")? {
            Some(values) => {
                if let Some(place) = values.iter().position(|v| !(0..=1).contains(v)) {
                    return Err(at("attention_mask", place, values[place]).into());
                }
                values.iter().map(|v| *v == 1).collect()
            }
            None => vec![true; ids.len()],
        };
        let labels = like_ids("labels")?;
        let codes = match integers(&tensors, "image_tokens")? {
            Some((own, _)) if own[0] != shape[0] => {
                let expected = vec![shape[0], own[1]];
                return Err(ProbeError::Shape { tensor: "image_tokens", expected, got: own.to_vec() }.into());
            }
            Some((own, values)) => {
                let codes = unsigned("image_tokens", &values, own[1])?;
                Some(codes.chunks(own[1].max(1)).map(<[u32]>::to_vec).collect())
            }
            None => None,
        };
        let pixels = match tensors.get("pixel_values") {
            Some(pixels) if pixels.dtype() == DType::F32 && pixels.rank() == 4 => {
                let values = pixels.flatten_all()?.to_vec1::<f32>()?;
                if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                    return Err(ProbeError::Pixel { value: values[index], index }.into());
                }
                Some(pixels.clone())
            }
            Some(other) => {
                let got = format!("{:?} {:?}", other.dtype(), other.dims());
                return Err(ProbeError::Type {
                    tensor: "pixel_values",
                    expected: "F32 [images, 3, height, width]",
                    got,
                }
                .into());
            }
            None => None,
        };
        Ok(Self { ids: unsigned("input_ids", &ids, width)?, rows: shape[0], mask, labels, pixels, codes })
    }

    /// Parts of the model that the pass needs.
    pub fn parts(&self) -> Parts {
        let codes = self.codes.is_some();
        Parts { text_head: !codes, vision: self.pixels.is_some(), generation: codes, image_tokenizer: false }
    }

    /// Ids and labels within the model's tables, before anything is computed.
    fn check(&self, model: &Janus) -> Result<()> {
        let vocabulary = model.config().text.vocab_size;
        let width = self.ids.len() / self.rows.max(1);
        if let Some(place) = self.ids.iter().position(|id| *id as usize >= vocabulary) {
            let (value, row, position) = (i64::from(self.ids[place]), place / width, place % width);
            return Err(ProbeError::Value { tensor: "input_ids", value, row, position }.into());
        }
        let positions = model.config().text.max_position_embeddings;
        // The last image token is not read any more.
        let codes = self.codes.iter().flatten().map(|codes| codes.len().saturating_sub(1)).max().unwrap_or(0);
        for (row, mask) in self.mask.chunks(width.max(1)).enumerate() {
            let tokens = mask.iter().filter(|attended| **attended).count() + codes;
            if tokens > positions {
                return Err(ProbeError::Positions { row, tokens, positions }.into());
            }
        }
        let classes = model.config().vq.num_embeddings;
        for (row, codes) in self.codes.iter().flatten().enumerate() {
            if let Some(position) = codes.iter().position(|code| *code as usize >= classes) {
                let value = i64::from(codes[position]);
                return Err(ProbeError::Value { tensor: "image_tokens", value, row, position }.into());
            }
        }
        let labels = self.labels.iter().flatten();
        if let Some((place, label)) =
            labels.enumerate().find(|(_, l)| **l != -100 && !(0..vocabulary as i64).contains(*l))
        {
            let (row, position) = (place / width, place % width);
            return Err(ProbeError::Value { tensor: "labels", value: *label, row, position }.into());
        }
        Ok(())
    }
}

/// An integer tensor of two dimensions with its shape.
fn integers(tensors: &HashMap<String, Tensor>, name: &'static str) -> Result<Option<([usize; 2], Vec<i64>)>> {
    let Some(tensor) = tensors.get(name) else { return Ok(None) };
    match (tensor.dtype(), tensor.dims()) {
        (DType::I64, &[rows, width]) if rows > 0 && width > 0 => {
            Ok(Some(([rows, width], tensor.flatten_all()?.to_vec1()?)))
        }
        (dtype, dims) => {
            let got = format!("{dtype:?} {dims:?}");
            Err(ProbeError::Type { tensor: name, expected: "I64 [batch, sequence], not empty", got }.into())
        }
    }
}

fn unsigned(tensor: &'static str, values: &[i64], width: usize) -> Result<Vec<u32>> {
    let value = |(place, value): (usize, &i64)| {
        u32::try_from(*value).map_err(|_| {
            ProbeError::Value { tensor, value: *value, row: place / width, position: place % width }.into()
        })
    };
    values.iter().enumerate().map(value).collect()
}

/// Runs the pass; what comes out lies on the processor. With `trainables`, also the gradients of the loss, as `grad.` and the adapter tensor's name.
///
/// # Errors
/// Inputs that do not fit the model.
pub fn probe(
    base: &Base,
    model: &Janus,
    input: &ProbeInput,
    trainables: Option<&Trainables>,
) -> Result<Vec<(String, Tensor)>> {
    input.check(model)?;
    let pass = Pass::inference();
    let mut out: Vec<(String, Tensor)> = Vec::new();
    let special = base.tokenizer().special();
    let placeholder = special.image_placeholder;
    let images = input.pixels.as_ref().map(Image::each_of).transpose()?.unwrap_or_default();
    let loss = match &input.codes {
        Some(codes) => {
            let batch = CodeBatch { prompts: attended(input)?, codes: codes.clone(), images, placeholder };
            if let Some(features) = batch.features(model, &pass)? {
                out.push(("image_features".into(), features));
            }
            let logits = batch.logits(model, &pass)?;
            let (rows, count) = (codes.len(), codes.first().map_or(0, Vec::len));
            out.push(("gen_logits".into(), logits.reshape((rows, count, ()))?));
            let labels = codes.concat();
            Some((janus_core::ops::cross_entropy(&logits, &labels)? / labels.len() as f64)?)
        }
        None => {
            let labels = input.labels.as_deref().unwrap_or_default();
            let batch = TextBatch::padded(input.ids.clone(), &input.mask, labels, input.rows, images, placeholder);
            let features = batch.features(model, &pass)?;
            let hidden = batch.hidden(model, &pass, features.as_ref())?;
            let logits = model.decoder().text_logits(&pass, &hidden)?;
            if let Some(features) = features {
                out.push(("image_features".into(), features));
            }
            out.push(("logits".into(), logits));
            if batch.labels.is_empty() {
                None
            } else {
                let loss = batch.loss_of_hidden(model, &pass, &hidden)?;
                Some((loss.sum / loss.tokens as f64)?)
            }
        }
    };
    if let Some(loss) = &loss {
        out.push(("loss".into(), loss.clone()));
    }
    if let Some(trainables) = trainables {
        let gradients = loss.ok_or(ProbeError::NoLoss)?.backward()?;
        for trainable in trainables.iter() {
            // What the loss does not reach has no gradient and is left out, as in PEFT.
            if let Some(gradient) = gradients.get(&trainable.var) {
                out.push((format!("grad.{}", trainable.name), gradient.clone()));
            }
        }
    }
    let written = |tensor: Tensor| {
        let tensor = tensor.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        finite(tensor, "outputs of the probe")
    };
    out.into_iter().map(|(name, tensor)| Ok((name, written(tensor)?))).collect()
}

/// Each row's ids without its padding.
fn attended(input: &ProbeInput) -> Result<Vec<Vec<u32>>> {
    let width = input.ids.len() / input.rows.max(1);
    let rows = input.ids.chunks(width).zip(input.mask.chunks(width)).enumerate();
    rows.map(|(row, (ids, mask))| {
        let ids: Vec<u32> = ids.iter().zip(mask).filter(|(_, m)| **m).map(|(id, _)| *id).collect();
        if ids.is_empty() { Err(ProbeError::EmptyRow { row }.into()) } else { Ok(ids) }
    })
    .collect()
}
