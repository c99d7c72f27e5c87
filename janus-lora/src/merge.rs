//! Adapters folded into base weights: a new checkpoint that computes the same without them.
//!
//! Sums are formed in f32 and rounded once, to the base's stored type unless told otherwise. The result is opened again
//! and compared with base and adapters on a fixed input.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use janus_core::checkpoint::{EMBED_TOKENS, LM_HEAD, WriteOptions, write_checkpoint};
use janus_core::config::Layout;
use janus_core::noise;
use janus_core::output::StagedFolder;
use janus_core::pass::Pass;
use janus_core::processing::Sample;
use janus_core::site::{Correction, LowRank, sites};
use janus_core::{Janus, Parts};
use serde::Serialize;

use crate::adapter::{self, Adapter, LoraCorrection};
use crate::base::Base;
use crate::cache::Image;
use crate::error::{Error, Result};
use crate::status::Status;
use crate::tasks::{CodeBatch, TextBatch};

/// Above this size the check computes in bf16: in f32 it would need more memory than the merge is for.
const MAX_CHECK_PARAMETERS: u64 = 4_000_000_000;

/// Image codes of the check's generation input.
const CHECK_CODES: usize = 64;

/// How to write the merged checkpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct MergeOptions {
    /// Type of every tensor; the base's own where absent.
    pub dtype: Option<DType>,
    /// Layout; the base's own where absent.
    pub layout: Option<Layout>,
}

/// What a merge did.
#[derive(Debug, Clone, Serialize)]
pub struct MergeReport {
    /// Tensors that are no longer the base's.
    pub changed_tensors: usize,
    /// Bytes written.
    pub bytes: u64,
    /// Largest difference between logits of base + adapters and of the merged checkpoint.
    pub largest_logit_difference: f32,
    /// Type the comparison computed in.
    pub compared_in: String,
}

/// Folds adapters, each with a factor on its scale, into `base` and writes the result to `out`. The comparison
/// runs on `device`.
///
/// # Errors
/// An output folder that is not empty, adapters that do not fit, or what reading and writing report.
pub fn merge(
    base: &Base,
    adapters: &[(Adapter, f64)],
    options: MergeOptions,
    device: &Device,
    out: &Path,
    status: &dyn Status,
) -> Result<MergeReport> {
    let staged = StagedFolder::create(out)?;
    let checkpoint = base.checkpoint();
    let corrections = corrections(adapters);
    let all_sites = sites(base.config());
    let by_weight = |name: &str| {
        let path = name.strip_suffix(".weight")?;
        let correction = corrections.get(path)?;
        all_sites.iter().find(|site| site.path.as_ref() == path).map(|site| (site, correction))
    };
    let saved = |name: &str| adapters.iter().find_map(|(adapter, _)| adapter.saved.get(name));
    // A tied head reads the embedding table; once the two differ, both must be stored.
    let differs = |name: &str| by_weight(name).is_some() || saved(name).is_some();
    let untie = checkpoint.is_tied() && (differs(EMBED_TOKENS) || differs(LM_HEAD));
    let mut write = WriteOptions::new(options.layout.unwrap_or_else(|| checkpoint.layout())).with_untied_head(untie);
    if let Some(dtype) = options.dtype {
        write = write.with_dtype(dtype);
    }
    let mut changed = BTreeSet::new();
    let mut transform = |name: &str, tensor: Tensor| -> Result<Tensor> {
        let stored = match saved(name) {
            Some(copy) => {
                changed.insert(name.to_owned());
                copy.clone()
            }
            None => tensor,
        };
        let Some((site, correction)) = by_weight(name) else { return Ok(stored) };
        changed.insert(name.to_owned());
        Ok(correction.fold(site, stored.to_dtype(DType::F32)?)?)
    };
    let bar = status.bytes("writing", 0);
    let report = write_checkpoint::<Error>(checkpoint, &write, &mut transform, staged.path(), &mut |done, total| {
        bar.set(done, total)
    })?;
    bar.finish();
    let changed_tensors = changed.len();

    let parameters: u64 = checkpoint.tensors().map(|t| t.shape.iter().product::<usize>() as u64).sum();
    let dtype = if parameters <= MAX_CHECK_PARAMETERS { DType::F32 } else { DType::BF16 };
    let attached = {
        let model = base.model(dtype, device, CHECK_PARTS, status)?;
        let adapters: Vec<(&Adapter, f64)> = adapters.iter().map(|(adapter, scale)| (adapter, *scale)).collect();
        adapter::attach(&model, &adapters)?;
        check_logits(base, &model)?
    };
    let merged = {
        let merged = Base::open_folder(base.name(), staged.path())?;
        check_logits(&merged, &merged.model(dtype, device, CHECK_PARTS, status)?)?
    };
    let mut largest = 0f32;
    for (a, b) in attached.iter().zip(&merged) {
        largest = largest.max((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?);
    }
    staged.commit()?;
    Ok(MergeReport {
        changed_tensors,
        bytes: report.bytes,
        largest_logit_difference: largest,
        compared_in: dtype.as_str().into(),
    })
}

/// The low-rank terms of all adapters by site.
fn corrections(adapters: &[(Adapter, f64)]) -> BTreeMap<Arc<str>, LoraCorrection> {
    let mut terms: BTreeMap<Arc<str>, Vec<LowRank>> = BTreeMap::new();
    for (adapter, factor) in adapters {
        for (path, pair) in &adapter.pairs {
            terms.entry(path.clone()).or_default().push(pair.low_rank(*factor));
        }
    }
    terms.into_iter().map(|(path, terms)| (path, LoraCorrection::new(terms))).collect()
}

/// Parts that the comparison runs.
const CHECK_PARTS: Parts = Parts { text_head: true, vision: true, generation: true, image_tokenizer: false };

/// Logits of both heads on a fixed picture, question and row of codes.
fn check_logits(base: &Base, model: &Janus) -> Result<Vec<Tensor>> {
    let pass = Pass::inference();
    let special = base.tokenizer().special();
    let side = base.config().vision.image_size;
    let pixels: Vec<f32> = (0..3 * side * side).map(|i| (noise::uniform(1, i as u64) * 2.0 - 1.0) as f32).collect();
    let pixels = Tensor::from_vec(pixels, (3, side, side), model.device())?;
    let ids = base.prompts().understanding_prompt("What does the image show?", 1, true)?;
    let question = Sample { ids, labels: Vec::new() };
    let text = TextBatch::packed(&[question], vec![Image::from_pixels(pixels)], special.image_placeholder);
    let features = text.features(model, &pass)?;
    let hidden = text.hidden(model, &pass, features.as_ref())?;
    let last = hidden.narrow(1, text.len() - 1, 1)?;
    let codes = base.config().vq.num_embeddings as u64;
    let count = model.codes_per_image().min(CHECK_CODES) as u64;
    let drawn = CodeBatch {
        prompts: vec![base.prompts().generation_prompt("a picture")?],
        codes: vec![(0..count).map(|i| (noise::mix(i) % codes) as u32).collect()],
        images: Vec::new(),
        placeholder: special.image_placeholder,
    };
    let logits = [model.decoder().text_logits(&pass, &last)?, drawn.logits(model, &pass)?];
    logits.into_iter().map(|l| Ok(l.to_dtype(DType::F32)?)).collect()
}
