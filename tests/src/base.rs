//! The fixtures' model in each form its folder has, and what all its tests do with it.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use janus_core::checkpoint::Checkpoint;
use janus_core::model::decoder::Placement;
use janus_core::ops;
use janus_core::pass::Pass;
use janus_core::{DeviceChoice, Janus, Parts, Result};

use crate::expected::Expected;

/// The model folders of the fixtures.
pub const LAYOUTS: [&str; 3] = ["hf", "hf-sharded", "deepseek"];

/// The id of `<image_placeholder>` in the fixtures' vocabulary.
pub const PLACEHOLDER: u32 = 379;

/// Where the model computes: on the processor, or where the environment variable `JANUS_TEST_DEVICE` says (`cuda:0`; needs
/// the feature `cuda` of this crate).
///
/// # Panics
/// There is no such device: what was asked for is not left out in silence.
pub fn device() -> Device {
    let choice = std::env::var("JANUS_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    choice.parse::<DeviceChoice>().and_then(DeviceChoice::open).unwrap_or_else(|e| panic!("JANUS_TEST_DEVICE: {e}"))
}

/// Opens a model folder whole, in f32 on [`device`].
///
/// # Panics
/// It cannot be opened.
pub fn open(folder: &Path) -> Janus {
    let checkpoint = Checkpoint::open(folder).unwrap_or_else(|e| panic!("{e}"));
    Janus::open(&checkpoint, DType::F32, &device(), Parts::all(), &mut |_| {}).unwrap_or_else(|e| panic!("{e}"))
}

/// Calls `check` as [`each_form`] does, and once more while every operation is composed as on a GPU.
///
/// # Panics
/// As [`each_form`].
pub fn each_model(fixtures: &Path, mut check: impl FnMut(&str, &Janus)) {
    each_form(fixtures, &mut check);
    let model = open(&fixtures.join("hf"));
    ops::with_composed(|| check("hf (composed)", &model));
}

/// Calls `check` with the model of every folder, and with that of `deepseek/` when only its `pytorch_model.bin` is there.
///
/// # Panics
/// A folder cannot be opened or copied, or the check fails.
pub fn each_form(fixtures: &Path, mut check: impl FnMut(&str, &Janus)) {
    for layout in LAYOUTS {
        check(layout, &open(&fixtures.join(layout)));
    }
    let copy = pickled(fixtures).unwrap_or_else(|e| panic!("{e}"));
    let checkpoint = Checkpoint::open(copy.path()).unwrap_or_else(|e| panic!("{e}"));
    let only = copy.path().join("pytorch_model.bin");
    assert!(checkpoint.tensors().all(|tensor| tensor.file == only), "a tensor is not read from the pickled file");
    check("deepseek (pytorch_model.bin)", &open(copy.path()));
}

/// A copy of `deepseek/` without its safetensors file.
fn pickled(fixtures: &Path) -> std::io::Result<tempfile::TempDir> {
    let copy = tempfile::tempdir()?;
    for entry in fs_err::read_dir(fixtures.join("deepseek"))? {
        let entry = entry?;
        if entry.file_name() != "model.safetensors" {
            fs_err::copy(entry.path(), copy.path().join(entry.file_name()))?;
        }
    }
    Ok(copy)
}

/// One batch of the fixtures: ids, mask and placement.
#[derive(Debug)]
pub struct Batch {
    /// Token ids, `[rows · length]`.
    pub ids: Vec<u32>,
    /// True = a token, `[rows · length]`.
    pub mask: Vec<bool>,
    /// Rows.
    pub rows: usize,
    /// Tokens a row.
    pub length: usize,
    /// Positions and mask as the model takes them.
    pub placement: Placement,
}

impl Batch {
    /// `input_ids` and `attention_mask` of a file.
    pub fn of(expected: &Expected) -> Self {
        let ids = expected.ids("input_ids");
        let (rows, length) = (ids.len(), ids.first().map_or(0, Vec::len));
        let mask = expected.mask();
        let placement = Placement::masked(&mask, rows);
        Self { ids: ids.concat(), mask, rows, length, placement }
    }

    /// Merged embeddings, `[rows, length, hidden]`; `features` overwrite the placeholders.
    ///
    /// # Errors
    /// The model's.
    pub fn embed(&self, model: &Janus, features: Option<&Tensor>) -> Result<Tensor> {
        model.embed_with_images(&Pass::inference(), &self.ids, self.rows, PLACEHOLDER, features)
    }

    /// The rows of `x: [rows, length, width]` that stand for tokens, `[tokens, width]`; `x` may hold only the last
    /// positions.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn attended(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, length, width) = x.dims3()?;
        let first = self.length - length;
        let attended = |place: &u32| {
            let (row, position) = (*place as usize / length, *place as usize % length);
            self.mask[row * self.length + first + position]
        };
        let places: Vec<u32> = (0..(rows * length) as u32).filter(attended).collect();
        Ok(ops::select_rows(&x.reshape((rows * length, width))?, &places)?)
    }

    /// The rows of `x: [rows, length, width]` from which a label is predicted, `[labels, width]`, and the labels: the row
    /// at i stands for the label at i + 1.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn predicting(&self, x: &Tensor, labels: &[Vec<i64>]) -> Result<(Tensor, Vec<u32>)> {
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for (row, labels) in labels.iter().enumerate() {
            for (position, label) in labels.iter().enumerate().skip(1) {
                if let Ok(label) = u32::try_from(*label) {
                    places.push((row * self.length + position - 1) as u32);
                    targets.push(label);
                }
            }
        }
        let (rows, length, width) = x.dims3()?;
        Ok((ops::select_rows(&x.reshape((rows * length, width))?, &places)?, targets))
    }
}

/// The mean cross-entropy of rows of logits `[labels, classes]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn mean_loss(logits: &Tensor, labels: &[u32]) -> Result<f64> {
    let sum = ops::cross_entropy(logits, labels)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    Ok(sum / labels.len() as f64)
}
