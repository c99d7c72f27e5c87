//! What the rows of a run come to: tokens, labels and images, and the arithmetic of a step.

use janus_core::checkpoint::{ExpectedTensor, expected_tensors};
use janus_core::config::JanusConfig;

use super::mixture::Mixer;
use super::prefetch::rows_ahead;
use super::tables::{RecipeTable, SampleStream};
use crate::base::Base;
use crate::cache::Image;
use crate::data::EpochOrder;
use crate::error::Result;
use crate::heads;
use crate::recipe::{Mixture, Recipe};
use crate::tasks::{Draft, Sample};

/// Rows of each table that are made ready to learn how long rows are.
const LOOKED_AT: usize = 64;
/// Rows that are mixed to learn the most that a table gives to a micro-batch.
const MIXED_ROWS: usize = 1 << 14;

/// What one table gives to a micro-batch.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct TableLoad {
    /// Whether its rows are pictures to draw.
    pub(super) is_generation: bool,
    /// The most rows of a micro-batch that are of this table.
    pub(super) rows: u64,
    /// Its rows of a step, on average.
    pub(super) rows_per_step: f64,
    /// Tokens of a row; the mean of the longest rows in a row that make a micro-batch.
    pub(super) tokens: u64,
    /// The same of all rows.
    pub(super) mean_tokens: u64,
    /// Those in the loss.
    pub(super) labels: u64,
    /// Images of a row.
    pub(super) images: u64,
    /// Values in f32 that a task head makes of a row, with their gradients.
    pub(super) head_values: u64,
    /// Rows to evaluate on.
    pub(super) eval_rows: u64,
    /// Bytes that reading takes beside the rows, and the same of the rows to evaluate on.
    pub(super) unpacking_bytes: u64,
    pub(super) eval_unpacking_bytes: u64,
    /// Whether they go through the image tokenizer and back.
    pub(super) is_rebuilt: bool,
    /// Bytes of the largest picture as it is decoded.
    pub(super) decoded_bytes: u64,
    /// Bytes of the rows that are shuffled among each other.
    pub(super) window_bytes: u64,
    /// Whether steps after the first read rows of another window, or the same again.
    pub(super) reads_on: bool,
    /// The same of the rows to evaluate on, while that happens.
    pub(super) eval_window_bytes: u64,
}

impl TableLoad {
    /// Of a micro-batch that is there, once a step.
    pub(super) fn of_samples(is_generation: bool, samples: &[Sample]) -> Self {
        let rows = samples.len();
        let mean = |of: &dyn Fn(&Sample) -> usize| samples.iter().map(of).sum::<usize>().div_ceil(rows.max(1)) as u64;
        Self {
            is_generation,
            rows: rows as u64,
            rows_per_step: rows as f64,
            tokens: mean(&Sample::len),
            labels: mean(&Sample::supervised),
            images: mean(&Sample::seen_images),
            ..Self::default()
        }
    }
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
    steps: u64,
) -> Result<Vec<TableLoad>> {
    let vq = &base.config().vq;
    let grid = base.config().vision.image_size / vq.down_factor();
    let weights: Vec<f64> = tables.iter().map(|table| table.section.weight).collect();
    let most = most_rows(recipe.train.mixture, &weights, recipe.train.batch_size as usize);
    let mut loads = Vec::with_capacity(tables.len());
    for ((table, rows), rows_per_step) in tables.iter().zip(most).zip(rows_per_step) {
        let mut stream = SampleStream::new(table, recipe.train.seed, recipe.train.shuffle)?;
        let (mut lengths, mut images, mut decoded_bytes) = (Vec::new(), 0, 0);
        for _ in 0..LOOKED_AT.min(table.train.index.accepted_rows()) {
            let (_, draft) = stream.draft(base)?;
            lengths.push(draft.lengths(grid * grid));
            // To align a picture that is drawn, it is seen, too.
            let drawn = recipe.mifs.is_some() && matches!(draft, Draft::Codes { .. });
            images = images.max(draft.seen_images() as u64 + u64::from(drawn));
            let pictures = draft.images().into_iter().map(Image::decoded_bytes);
            decoded_bytes = pictures.fold(decoded_bytes, u64::max);
        }
        let tokens: Vec<usize> = lengths.iter().map(|(tokens, _)| *tokens).collect();
        let labels: Vec<usize> = lengths.iter().map(|(_, labels)| *labels).collect();
        loads.push(TableLoad {
            is_generation: table.task.parts().generation,
            rows: rows as u64,
            rows_per_step: *rows_per_step,
            tokens: longest(&tokens, rows),
            mean_tokens: (tokens.iter().sum::<usize>() / tokens.len().max(1)) as u64,
            labels: longest(&labels, rows),
            images,
            head_values: match table.task.head() {
                Some(kind) => heads::activation_values(base.config(), &kind),
                None if table.task.rebuilds() => tokenizer_values(base.config()),
                None => 0,
            },
            is_rebuilt: table.task.rebuilds(),
            decoded_bytes,
            eval_rows: table.eval.as_ref().map_or(0, |source| source.index.accepted_rows() as u64),
            window_bytes: table.train.index.window_bytes(),
            reads_on: *rows_per_step * steps as f64 + rows_ahead(recipe) as f64
                > first_window_rows(recipe, table) as f64,
            unpacking_bytes: table.train.index.unpacking_bytes(),
            eval_unpacking_bytes: table.eval.as_ref().map_or(0, |source| source.index.unpacking_bytes()),
            eval_window_bytes: table.eval.as_ref().map_or(0, |source| source.index.window_bytes()),
        });
    }
    Ok(loads)
}

/// Rows of the window that a table is read with first.
fn first_window_rows(recipe: &Recipe, table: &RecipeTable) -> usize {
    let order = EpochOrder::new(&table.train.index, 0, recipe.train.seed, recipe.train.shuffle);
    order.windows().first().map_or(0, |window| window.rows.len())
}

/// Values in f32 that the image tokenizer makes of a picture on the way to codes and back, with their gradients: of its own
/// width a place two for each residual block (what lies between its convolutions, and what it gives) and four for each change
/// of size, and 17 twentieths of it for the gradients that are under way (measured at `janus-nano`'s sizes, batches of 1 to 8).
fn tokenizer_values(config: &JanusConfig) -> u64 {
    let vq = &config.vq;
    let levels = vq.channel_multiplier.len();
    let mut values = 0;
    for (level, multiplier) in vq.channel_multiplier.iter().enumerate() {
        let side = (config.vision.image_size >> level) as u64;
        let width = (vq.base_channels * multiplier) as u64;
        // One block more each way back, two in the middle both ways at the lowest level, attention counted as a block.
        let mut blocks = 2 * vq.num_res_blocks as u64 + 1;
        if level + 1 == levels {
            blocks = 2 * blocks + 6;
        }
        values += side * side * width * (2 * blocks + 4);
    }
    values * 37 / 20
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

/// Floating-point operations of the image tokenizer's encoder over one picture: two for every weight of a convolution and
/// pixel of its result.
pub(super) fn encoder_operations(config: &JanusConfig) -> f64 {
    const ENCODER: &str = "model.vqmodel.encoder.";
    let lowest = config.vq.channel_multiplier.len().saturating_sub(1);
    let of = |tensor: &ExpectedTensor| {
        let Some(place) = tensor.name.strip_prefix(ENCODER).filter(|_| tensor.shape.len() == 4) else { return 0.0 };
        // A level halves the sides behind its blocks.
        let halvings = match place.strip_prefix("down.").and_then(|rest| rest.split_once('.')) {
            Some((level, rest)) => {
                level.parse().unwrap_or(lowest) + if rest.starts_with("downsample.") { 1 } else { 0 }
            }
            None if place.starts_with("conv_in.") => 0,
            None => lowest,
        };
        let side = (config.vision.image_size >> halvings) as f64;
        2.0 * tensor.shape.iter().product::<usize>() as f64 * side * side
    };
    expected_tensors(config, true).iter().map(of).sum()
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
            ..TableLoad::default()
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

    #[test]
    fn the_encoder_has_the_products_of_its_convolutions() {
        // janus-tiny: 32 pixels a side, four levels of 32, 32, 32 and 64 channels, one block each, 16 latent channels.
        let config = JanusConfig::shape("janus-tiny").unwrap();
        let conv = |side: f64, taps: f64, input: f64, output: f64| 2.0 * side * side * taps * input * output;
        let level = |side: f64| 2.0 * conv(side, 9.0, 32.0, 32.0);
        let halved = |side: f64| conv(side, 9.0, 32.0, 32.0);
        let lowest = conv(4.0, 9.0, 32.0, 64.0) + conv(4.0, 9.0, 64.0, 64.0) + conv(4.0, 1.0, 32.0, 64.0);
        let attention = 4.0 * conv(4.0, 1.0, 64.0, 64.0);
        let middle = 4.0 * conv(4.0, 9.0, 64.0, 64.0) + attention;
        let ends = conv(32.0, 9.0, 3.0, 32.0) + conv(4.0, 9.0, 64.0, 16.0);
        let levels = level(32.0) + halved(16.0) + level(16.0) + halved(8.0) + level(8.0) + halved(4.0);
        assert_eq!(encoder_operations(&config), levels + lowest + attention + middle + ends);
    }
}
