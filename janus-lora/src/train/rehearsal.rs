//! Steps of a run's own kind over a model of few blocks: how fast this machine is at them now.
//!
//! Products alone tell too little: norms, attention, the tape and the optimiser count the more the smaller a model is. So
//! the rehearsal is the run's own step, on the run's own rows, with random weights and the lowest blocks only; what is
//! measured is a rate, and the whole step's operations make a time of it.

use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use janus_core::checkpoint::RandomWeights;
use janus_core::config::JanusConfig;
use janus_core::{Janus, Parts};

use super::plan::{compute_type, parts, saved_parameters};
use super::run::stepper;
use super::step::TableBatch;
use super::tables::{RecipeTable, SampleStream};
use super::trainable::Trainables;
use super::workload::{TableLoad, step_operations};
use crate::adapter::{Adapter, AdapterSpec, Init};
use crate::base::Base;
use crate::cache::Image;
use crate::error::Result;
use crate::recipe::Recipe;
use crate::tasks::{Batch, Draft, Pictured, Sample};

/// Blocks of the decoder and of the vision tower: enough that those between the first and the last count.
const DEPTH: usize = 2;
/// Steps are repeated for so long after a first one, which touches memory for the first time. One that takes longer counts
/// itself.
const SECONDS: f64 = 1.0;

/// Floating-point operations per second (as [`step_operations`] counts them) of steps of this recipe, one micro-batch each;
/// `None` where nothing of what is trained is in the lowest blocks. `loads` are those of the tables, `spec` is the run's.
///
/// # Errors
/// Rows that cannot be read, or the tensor engine's.
pub(super) fn operations_per_second(
    recipe: &Recipe,
    base: &Base,
    tables: &[RecipeTable],
    loads: &[TableLoad],
    spec: AdapterSpec,
    [recompute, side_by_side]: [bool; 2],
) -> Result<Option<f64>> {
    // The image tokenizer is no stack of blocks.
    if tables.iter().any(|table| table.task.rebuilds()) {
        return Ok(None);
    }
    let mut config = base.config().clone();
    config.text.num_hidden_layers = config.text.num_hidden_layers.min(DEPTH);
    config.vision.num_hidden_layers = config.vision.num_hidden_layers.min(DEPTH);
    let Some(spec) = shallow(spec, &config) else { return Ok(None) };
    let weights = RandomWeights::new(&config, recipe.train.seed);
    let own_parts = Parts { image_tokenizer: false, ..parts(recipe, tables) };
    let model = Janus::open(&weights, compute_type(recipe), &Device::Cpu, own_parts, &mut |_| ())?;
    let read = |name: &str| weights.read(name, DType::F32);
    let adapter = Adapter::new(&config, model.is_tied(), &spec, recipe.train.seed, &read)?;
    let trains_tower = spec.sites.iter().any(|site| site.starts_with("model.vision_model."))
        || spec.dynamic.is_some_and(|paths| paths.vision);
    let mut stepper = stepper(recipe, tables, Trainables::attach(&model, adapter)?, 0)
        .with_recompute(recompute)
        .with_side_by_side(side_by_side);

    let (mut batches, mut rehearsed) = (Vec::new(), Vec::new());
    for (table, (source, load)) in tables.iter().zip(loads).enumerate() {
        let mut stream = SampleStream::new(source, recipe.train.seed, recipe.train.shuffle)?;
        let drafts = (0..load.rows).map(|_| Ok(stream.draft(base)?.1)).collect::<Result<Vec<_>>>()?;
        let samples = drafts.into_iter().map(|draft| blank(draft, &model)).collect::<Result<Vec<_>>>()?;
        if samples.is_empty() {
            continue;
        }
        rehearsed.push(TableLoad::of_samples(load.is_generation, &samples));
        batches.push(TableBatch { table, batch: Batch::collate(base, &samples)?, aligned: None });
    }
    let blocks = if trains_tower { config.vision.num_hidden_layers as u64 } else { 0 };
    let operations = step_operations(&config, &rehearsed, recompute, blocks, 1.0);

    let mut step = |number: u64| -> Result<f64> {
        let clock = Instant::now();
        stepper.step(&model, number, 0.0, &batches)?;
        Ok(clock.elapsed().as_secs_f64())
    };
    let mut seconds = step(0)?;
    let mut count = 1;
    if seconds < SECONDS {
        (seconds, count) = (0.0, 0);
        while seconds < SECONDS {
            seconds += step(count + 1)?;
            count += 1;
        }
    }
    Ok(Some(operations * count as f64 / seconds))
}

/// The same adapter on the blocks that there are: a pair of a higher block stands at one of them. `None` where nothing is
/// left of it.
fn shallow(spec: AdapterSpec, config: &JanusConfig) -> Option<AdapterSpec> {
    let mut sites: Vec<Arc<str>> = spec.sites.iter().map(|site| folded(site, config).into()).collect();
    sites.sort_unstable();
    sites.dedup();
    let is_there = |module: &String| saved_parameters(config, std::slice::from_ref(module)).is_ok();
    let modules_to_save: Vec<String> = spec.modules_to_save.iter().filter(|module| is_there(module)).cloned().collect();
    let is_empty = sites.is_empty() && modules_to_save.is_empty() && spec.dynamic.is_none() && spec.heads.is_empty();
    // Random weights need no beginning of their own, which could take longer than all steps.
    let init = if spec.init.is_of_plain_pairs() { Init::Kaiming } else { spec.init };
    (!is_empty).then_some(AdapterSpec { sites, modules_to_save, init, ..spec })
}

/// A site's path with the number of its block counted modulo the blocks that there are.
fn folded(path: &str, config: &JanusConfig) -> String {
    let stacks = [
        ("model.language_model.layers.", config.text.num_hidden_layers),
        ("model.vision_model.encoder.layers.", config.vision.num_hidden_layers),
    ];
    for (stack, blocks) in stacks {
        let Some((number, rest)) = path.strip_prefix(stack).and_then(|rest| rest.split_once('.')) else { continue };
        if let Ok(number) = number.parse::<usize>() {
            return format!("{stack}{}.{rest}", number % blocks.max(1));
        }
    }
    path.to_owned()
}

/// A draft with pictures and codes of zeros, which cost as much as any.
fn blank(draft: Draft, model: &Janus) -> Result<Sample> {
    let vision = &model.config().vision;
    let shape = (vision.num_channels, vision.image_size, vision.image_size);
    let picture = || -> Result<Image> { Ok(Image::from_pixels(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)) };
    match draft {
        Draft::Text { tokens, images } => {
            Ok(Sample::Text { tokens, images: images.iter().map(|_| picture()).collect::<Result<_>>()? })
        }
        Draft::Pixels { quantize_from, .. } => Ok(Sample::Pixels { image: picture()?, quantize_from }),
        Draft::Picture(pictured) => Ok(Sample::Picture(Pictured { image: picture()?, ..pictured })),
        Draft::Codes { prompt, images, .. } => Ok(Sample::Codes {
            prompt,
            images: images.iter().map(|_| picture()).collect::<Result<_>>()?,
            codes: vec![0; model.codes_per_image()].into(),
            image: picture()?,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_higher_blocks_stand_at_lower_ones() {
        let mut config = JanusConfig::shape("janus-small").unwrap();
        (config.text.num_hidden_layers, config.vision.num_hidden_layers) = (2, 1);
        let folded = |path: &str| folded(path, &config);
        assert_eq!(folded("model.language_model.layers.3.mlp.up_proj"), "model.language_model.layers.1.mlp.up_proj");
        assert_eq!(
            folded("model.vision_model.encoder.layers.2.mlp.fc1"),
            "model.vision_model.encoder.layers.0.mlp.fc1"
        );
        assert_eq!(folded("model.aligner.hidden_layers.0"), "model.aligner.hidden_layers.0");
        let spec = |sites: &[&str], modules: &[&str]| AdapterSpec {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            sites: sites.iter().map(|site| (*site).into()).collect(),
            modules_to_save: modules.iter().map(|module| (*module).to_owned()).collect(),
            dynamic: None,
            heads: Vec::new(),
            aligns: false,
            base_name: None,
            ..AdapterSpec::default()
        };
        let (low, high) = ("model.language_model.layers.1.mlp.up_proj", "model.language_model.layers.3.mlp.up_proj");
        let left = shallow(spec(&[high, low], &["lm_head", "layers.3.mlp"]), &config).unwrap();
        assert_eq!((left.sites.len(), left.sites[0].as_ref()), (1, low));
        assert_eq!(left.modules_to_save, ["lm_head"]);
        assert!(shallow(spec(&[], &["layers.3.mlp"]), &config).is_none());
    }
}
