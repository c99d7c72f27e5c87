//! What the rows of a run come to: tokens, labels and images, and the arithmetic of a step.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use janus_core::config::JanusConfig;
use janus_core::ops::linear::frozen_linear;

use super::mixture::Mixer;
use super::tables::{RecipeTable, SampleStream};
use crate::base::Base;
use crate::error::Result;
use crate::recipe::{Mixture, Recipe, Task};
use crate::tasks::Draft;

/// Rows of each table that are made ready to learn how long rows are.
const LOOKED_AT: usize = 64;
/// Rows that are mixed to learn the most that a table gives to a micro-batch.
const MIXED_ROWS: usize = 1 << 14;

/// What one table gives to a micro-batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TableLoad {
    /// Whether its rows are pictures to draw.
    pub(super) is_generation: bool,
    /// The most rows of a micro-batch that are of this table.
    pub(super) rows: u64,
    /// Its rows of a step, on average.
    pub(super) rows_per_step: f64,
    /// Tokens of a row; the mean of the longest rows in a row that make a micro-batch.
    pub(super) tokens: u64,
    /// Those in the loss.
    pub(super) labels: u64,
    /// Images of a row.
    pub(super) images: u64,
    /// Rows to evaluate on.
    pub(super) eval_rows: u64,
}

/// The load of every table, learnt from the first rows of the run's own order.
///
/// # Errors
/// Rows that cannot be read.
pub(super) fn loads(
    recipe: &Recipe,
    base: &Base,
    tables: &[RecipeTable],
    rows_per_step: &[f64],
) -> Result<Vec<TableLoad>> {
    let vq = &base.config().vq;
    let grid = base.config().vision.image_size / vq.down_factor();
    let weights: Vec<f64> = tables.iter().map(|table| table.section.weight).collect();
    let most = most_rows(recipe.train.mixture, &weights, recipe.train.batch_size as usize);
    let mut loads = Vec::with_capacity(tables.len());
    for ((table, rows), rows_per_step) in tables.iter().zip(most).zip(rows_per_step) {
        let mut stream = SampleStream::new(table, recipe.train.seed, recipe.train.shuffle)?;
        let (mut lengths, mut images) = (Vec::new(), 0);
        for _ in 0..LOOKED_AT.min(table.train.index.accepted_rows()) {
            let (_, draft) = stream.draft(base)?;
            lengths.push(draft.lengths(grid * grid));
            if let Draft::Text { images: own, .. } = &draft {
                images = images.max(own.len() as u64);
            }
        }
        let tokens: Vec<usize> = lengths.iter().map(|(tokens, _)| *tokens).collect();
        let labels: Vec<usize> = lengths.iter().map(|(_, labels)| *labels).collect();
        loads.push(TableLoad {
            is_generation: table.section.task == Task::Generate,
            rows: rows as u64,
            rows_per_step: *rows_per_step,
            tokens: longest(&tokens, rows),
            labels: longest(&labels, rows),
            images,
            eval_rows: table.eval.as_ref().map_or(0, |source| source.index.accepted_rows() as u64),
        });
    }
    Ok(loads)
}

/// The most rows of each table in a micro-batch of `batch` rows.
fn most_rows(mixture: Mixture, weights: &[f64], batch: usize) -> Vec<usize> {
    let mut mixer = Mixer::new(mixture, weights);
    let mut most = vec![0; weights.len()];
    for _ in 0..(MIXED_ROWS / batch.max(1)).max(1) {
        most.iter_mut().zip(mixer.next(batch)).for_each(|(most, rows)| *most = rows.max(*most));
    }
    most
}

/// Mean length of the longest `rows` neighbours, rounded up.
fn longest(lengths: &[usize], rows: usize) -> u64 {
    let window = rows.clamp(1, lengths.len().max(1));
    let sums = lengths.windows(window).map(|rows| rows.iter().sum::<usize>());
    sums.max().unwrap_or(0).div_ceil(window) as u64
}

/// Floating-point operations of a step's products: two for every weight and token forward, two more for the gradient of
/// each input, as many as forward again where blocks are recomputed, and `4 · keys · width` of every query and layer for
/// attention (half of it where it is causal, twice and a half backward). A head is met for its labels alone, the tower
/// for every picture of which no features are kept (`pictures_anew`: the share of such pictures).
pub(super) fn step_operations(
    config: &JanusConfig,
    loads: &[TableLoad],
    recompute: bool,
    vision_blocks: u64,
    pictures_anew: f64,
) -> f64 {
    let (text, vision, vq) = (&config.text, &config.vision, &config.vq);
    let (hidden, inner) = (text.hidden_size as f64, text.intermediate_size as f64);
    let queries = (text.num_attention_heads * text.head_dim) as f64;
    let kv = (text.num_key_value_heads * text.head_dim) as f64;
    let block = 2.0 * hidden * queries + 2.0 * hidden * kv + 3.0 * hidden * inner;
    let passes = if recompute { 3.0 } else { 2.0 };
    let attention_passes = passes + 1.5;
    let (width, fc) = (vision.hidden_size as f64, vision.intermediate_size as f64);
    let tower_block = 4.0 * width * width + 2.0 * width * fc;
    let layers = text.num_hidden_layers as f64;
    let of = |load: &TableLoad| {
        let (tokens, labels) = (load.tokens as f64, load.labels as f64);
        let classes = if load.is_generation { vq.num_embeddings } else { text.vocab_size } as f64;
        let decoder = layers * (2.0 * passes * block * tokens + attention_passes * 2.0 * queries * tokens * tokens);
        let head = 2.0 * 2.0 * hidden * classes * labels;
        let patches = load.images as f64 * vision.num_patches() as f64;
        let one_pass =
            |blocks: f64| blocks * (2.0 * tower_block * patches + 4.0 * width * patches * vision.num_patches() as f64);
        let trained = vision_blocks as f64;
        let frozen = vision.num_hidden_layers as f64 - trained;
        let tower = one_pass(trained) * passes + one_pass(frozen) * pictures_anew;
        load.rows_per_step * (decoder + head + tower)
    };
    loads.iter().map(of).sum()
}

/// Floating-point operations per second of products like those of the decoder, on this machine now: one of the MLP's maps
/// over a micro-batch, for about half a second after a first time.
///
/// # Errors
/// The tensor engine's.
pub(super) fn operations_per_second(config: &JanusConfig, dtype: DType, tokens: u64) -> Result<f64> {
    const SECONDS: f64 = 0.5;
    const MOST_TOKENS: u64 = 4096;
    let tokens = tokens.clamp(1, MOST_TOKENS) as usize;
    let (hidden, inner) = (config.text.hidden_size, config.text.intermediate_size);
    let filled =
        |rows: usize, width: usize| Tensor::full(0.01f32, (rows, width), &Device::Cpu)?.to_dtype(dtype)?.contiguous();
    let (x, weight) = (filled(tokens, hidden)?, filled(inner, hidden)?);
    frozen_linear(&x, &weight, None)?;
    let (clock, mut times) = (Instant::now(), 0u32);
    loop {
        frozen_linear(&x, &weight, None)?;
        times += 1;
        let seconds = clock.elapsed().as_secs_f64();
        if seconds >= SECONDS {
            return Ok(2.0 * (tokens * hidden) as f64 * inner as f64 * f64::from(times) / seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_neighbours_count() {
        assert_eq!(longest(&[3, 9, 8, 1, 7], 2), 9);
        assert_eq!(longest(&[3, 9, 9, 1], 2), 9);
        assert_eq!(longest(&[5, 6], 4), 6);
        assert_eq!(longest(&[], 4), 0);
    }

    #[test]
    fn a_mixture_gives_its_most_rows() {
        assert_eq!(most_rows(Mixture::Each, &[1.0, 5.0], 3), [3, 3]);
        assert_eq!(most_rows(Mixture::Sample, &[1.0, 1.0], 8), [4, 4]);
        assert_eq!(most_rows(Mixture::Sample, &[1.0, 3.0], 2), [1, 2]);
    }

    #[test]
    fn a_step_has_the_products_of_its_tokens() {
        let config = JanusConfig::shape("janus-tiny").unwrap();
        let load = TableLoad {
            is_generation: false,
            rows: 1,
            rows_per_step: 1.0,
            tokens: 100,
            labels: 0,
            images: 0,
            eval_rows: 0,
        };
        let operations =
            |load: &TableLoad, recompute| step_operations(&config, std::slice::from_ref(load), recompute, 0, 1.0);
        // Two layers of 48 with an MLP of 80: weights, twice for each of two passes; queries of 48 with 100 keys each.
        let expected = 2.0 * (4.0 * 100.0 * (4.0 * 48.0 * 48.0 + 3.0 * 48.0 * 80.0) + 3.5 * 2.0 * 48.0 * 1e4);
        assert_eq!(operations(&load, false), expected);
        assert!(operations(&load, true) > 1.3 * expected);
        assert_eq!(operations(&TableLoad { labels: 10, ..load.clone() }, false), expected + 4.0 * 48.0 * 400.0 * 10.0);
        assert_eq!(operations(&TableLoad { rows_per_step: 2.5, ..load.clone() }, false), 2.5 * expected);
        assert!(operations(&TableLoad { images: 1, ..load }, false) > expected);
    }
}
