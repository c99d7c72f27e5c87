//! Made-up prompts, pictures and batches of the shapes that are measured.

use candle_core::{Device, Tensor};
use janus_core::config::JanusConfig;
use janus_core::noise;
use janus_core::processing::Sample;

use super::SEED;
use crate::cache::Image;
use crate::error::{Error, Result};
use crate::recipe::Task;
use crate::tasks::{Batch, CodeBatch, TextBatch};

/// Text tokens beside an image, in training and in questions.
pub(super) const TEXT_TOKENS: usize = 64;
/// The last of them, which are supervised.
const SUPERVISED_TOKENS: usize = 32;
/// Tokens of a prompt that an image is drawn for.
pub(super) const PROMPT_TOKENS: usize = 32;

/// Values of `0..below`, drawn anew for each `what`.
fn draw(what: &str, count: usize, below: usize) -> Vec<u32> {
    let key = noise::combine(SEED, noise::key_of(what));
    (0..count as u64).map(|i| (noise::uniform(key, i) * below as f64) as u32).collect()
}

/// The id that image features replace.
pub(super) fn placeholder(config: &JanusConfig) -> u32 {
    config.image_token_id.unwrap_or(0)
}

/// Text without images.
pub(super) fn text_ids(config: &JanusConfig, what: &str, count: usize) -> Vec<u32> {
    let placeholder = placeholder(config);
    let other = if placeholder == 0 { 1 } else { 0 };
    draw(what, count, config.text.vocab_size).into_iter().map(|id| if id == placeholder { other } else { id }).collect()
}

/// One token of text, one image, the rest of the text: `patches + 64` ids.
pub(super) fn question(config: &JanusConfig, what: &str) -> Vec<u32> {
    let mut ids = text_ids(config, what, TEXT_TOKENS);
    ids.splice(1..1, std::iter::repeat_n(placeholder(config), config.vision.num_patches()));
    ids
}

/// Pictures of noise, `[images, 3, side, side]` in [-1, 1).
pub(super) fn pixels(config: &JanusConfig, images: usize) -> Result<Tensor> {
    let (channels, side) = (config.vision.num_channels, config.vision.image_size);
    let key = noise::combine(SEED, noise::key_of("pixels"));
    let count = images * channels * side * side;
    let values: Vec<f32> = (0..count as u64).map(|i| (2.0 * noise::uniform(key, i) - 1.0) as f32).collect();
    Ok(Tensor::from_vec(values, (images, channels, side, side), &Device::Cpu)?)
}

/// Codes of one image of `count` codes.
pub(super) fn codes(config: &JanusConfig, what: &str, count: usize) -> Vec<u32> {
    draw(what, count, config.vq.num_embeddings)
}

/// A batch of `rows` rows, and its tokens.
pub(super) fn batch(config: &JanusConfig, task: Task, rows: usize, codes_per_image: usize) -> Result<(Batch, usize)> {
    let row_name = |row: usize| format!("row {row}");
    let batch = match task {
        Task::Understand | Task::Text => {
            let text = |row| match task {
                Task::Text => text_ids(config, &row_name(row), TEXT_TOKENS),
                _ => question(config, &row_name(row)),
            };
            let sample = |row| {
                let ids: Vec<u32> = text(row);
                let first = ids.len() - SUPERVISED_TOKENS;
                let label = |(place, id): (usize, &u32)| if place >= first { i64::from(*id) } else { -100 };
                Sample { labels: ids.iter().enumerate().map(label).collect(), ids }
            };
            let samples: Vec<Sample> = (0..rows).map(sample).collect();
            let images = if task == Task::Understand { Image::each_of(&pixels(config, rows)?)? } else { Vec::new() };
            Batch::Text(TextBatch::packed(&samples, images, placeholder(config)))
        }
        Task::Generate => Batch::Codes(CodeBatch {
            prompts: (0..rows).map(|row| text_ids(config, &row_name(row), PROMPT_TOKENS)).collect(),
            codes: (0..rows).map(|row| codes(config, &row_name(row), codes_per_image)).collect(),
            images: Vec::new(),
            placeholder: placeholder(config),
        }),
        _ => {
            let message = format!("there is no bench for the task `{task}`");
            return Err(Error::Usage { message, hint: "give understand, generate or text".into() });
        }
    };
    let tokens = match &batch {
        Batch::Text(batch) => batch.ids.len(),
        Batch::Codes(_) => rows * (PROMPT_TOKENS + codes_per_image),
        Batch::Pictures(_) | Batch::Pixels(_) => 0,
    };
    Ok((batch, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_the_tokens_and_labels_it_says() {
        let config = JanusConfig::shape("janus-tiny").unwrap();
        for (task, tokens, supervised) in [
            (Task::Understand, 3 * (16 + 64), 3 * 32),
            (Task::Text, 3 * 64, 3 * 32),
            (Task::Generate, 3 * (32 + 16), 48),
        ] {
            let (batch, counted) = batch(&config, task, 3, 16).unwrap();
            assert_eq!((counted, batch.supervised()), (tokens, supervised), "{task}");
            let Batch::Text(batch) = batch else { continue };
            let images = batch.ids.iter().filter(|id| **id == batch.placeholder).count();
            assert_eq!(images, if task == Task::Understand { 3 * 16 } else { 0 });
            assert_ne!(batch.ids[..tokens / 3], batch.ids[tokens / 3..2 * tokens / 3]);
        }
    }
}
