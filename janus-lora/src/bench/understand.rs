//! An answer about one image: time to the first token, then tokens per second against what memory allows.

use std::time::Instant;

use candle_core::Tensor;
use janus_core::checkpoint::{EMBED_TOKENS, LM_HEAD, expected_tensors};
use janus_core::pass::Pass;
use janus_core::sample::{TextOptions, generate_text};
use janus_core::{Janus, Parts};
use serde::Serialize;

use super::bandwidth::Memory;
use super::{Figures, Model, gaps, inputs, median};
use crate::error::Result;
use crate::status::Status;

/// Tokens of the last answer from one pass over the memory to the next.
const TOKENS_PER_PASS: usize = 4;

/// What is asked.
#[derive(Debug, Clone)]
pub struct UnderstandOptions {
    /// Tokens drawn after the first.
    pub tokens: usize,
    /// Answers, the first of which is left out where there are several.
    pub rounds: usize,
}

/// What an answer costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnderstandReport {
    /// What every measurement tells; steps are those after the first token.
    #[serde(flatten)]
    pub figures: Figures,
    /// From pixels and ids to the first token: vision tower, prompt, draw. Median of the rounds.
    pub first_token_seconds: f64,
    /// The vision tower and the aligner alone.
    pub vision_seconds: f64,
    /// Tokens of the prompt, the image's included.
    pub prompt_tokens: usize,
    /// Tokens drawn after the first.
    pub tokens: usize,
    /// Answers, the first included.
    pub rounds: usize,
    /// Of reading a large buffer with every thread: median of a pass after every fourth token of a last answer, as neighbours
    /// on the same memory come and go. Of the processor's memory only.
    pub memory_bandwidth_bytes_per_second: Option<f64>,
    /// Bytes of weights that every drawn token has to read.
    pub weight_bytes_per_token: u64,
    /// Share of the bandwidth that reading the weights and the kept keys and values took up: median over the tokens of that
    /// answer, each against the pass before it.
    pub memory_bandwidth_share: Option<f64>,
}

/// Measures answers to one image and 64 tokens of text.
///
/// # Errors
/// The tensor engine's.
pub fn understand(model: &Model, options: &UnderstandOptions, status: &dyn Status) -> Result<UnderstandReport> {
    let parts = Parts { text_head: true, vision: true, ..Parts::default() };
    let (janus, opening_seconds) = model.open(parts, status)?;
    let config = &model.config;
    let (ids, pixels) = (inputs::question(config, "question"), inputs::pixels(config, 1)?);
    let mask = vec![true; ids.len()];
    let text_options = TextOptions {
        max_new_tokens: 1 + options.tokens,
        temperature: 0.0,
        seed: 0,
        stop: Vec::new(),
        pad: 0,
        vocabulary: config.text.vocab_size,
    };
    let pass = Pass::answering();
    let (mut first, mut vision, mut steps, mut drawn) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let bar = status.items("answering", (options.rounds * (1 + options.tokens)) as u64);
    for round in 0..options.rounds {
        let mut moments = Vec::with_capacity(1 + options.tokens);
        let clock = Instant::now();
        let features = janus.vision()?.forward(&pass, &pixels)?;
        janus.device().synchronize()?;
        let seen = clock.elapsed().as_secs_f64();
        let embeds = janus.embed_with_images(&pass, &ids, 1, inputs::placeholder(config), Some(&features))?;
        let answers = generate_text(&janus, &pass, &embeds, &mask, &text_options, &mut |_| {
            moments.push(Instant::now());
            bar.advance(1);
        })?;
        drawn = answers.iter().map(Vec::len).sum();
        if round == 0 && options.rounds > 1 {
            continue;
        }
        first.extend(moments.first().map(|moment| moment.duration_since(clock).as_secs_f64()));
        vision.push(seen);
        steps.extend(gaps(&moments));
    }
    bar.finish();
    // Before the buffer of the bandwidth, which is no part of what is measured.
    let figures = Figures::new(model, 1, &steps, opening_seconds);
    let weight_bytes_per_token = weight_bytes_per_token(model);
    let bandwidth =
        if model.device.is_cpu() { Some(bandwidth(model, &janus, &ids, &pixels, &text_options)?) } else { None };
    let (bandwidth, share) = bandwidth.unzip();
    Ok(UnderstandReport {
        figures,
        first_token_seconds: median(&first),
        vision_seconds: median(&vision),
        prompt_tokens: ids.len(),
        tokens: drawn.saturating_sub(1),
        rounds: options.rounds,
        memory_bandwidth_bytes_per_second: bandwidth,
        weight_bytes_per_token,
        memory_bandwidth_share: share,
    })
}

/// How fast the processor's memory can be read during an answer, and the share of it that the answer takes.
fn bandwidth(
    model: &Model,
    janus: &Janus,
    ids: &[u32],
    pixels: &Tensor,
    text_options: &TextOptions,
) -> Result<(f64, f64)> {
    let (pass, config, mask) = (Pass::answering(), &model.config, vec![true; ids.len()]);
    let weight_bytes_per_token = weight_bytes_per_token(model);
    let memory = Memory::new();
    let features = janus.vision()?.forward(&pass, pixels)?;
    let embeds = janus.embed_with_images(&pass, ids, 1, inputs::placeholder(config), Some(&features))?;
    let (mut clock, mut bandwidths, mut shares, mut drawn_tokens) = (Instant::now(), Vec::new(), Vec::new(), 0);
    generate_text(janus, &pass, &embeds, &mask, text_options, &mut |_| {
        let token_seconds = clock.elapsed().as_secs_f64();
        match (drawn_tokens % TOKENS_PER_PASS, bandwidths.last()) {
            (0, _) => bandwidths.push(memory.bytes_per_second()),
            // What the pass pushed out of the caches is of no token's cost.
            (1, _) | (_, None) => {}
            (_, Some(bandwidth)) => {
                let kept_bytes = kept_bytes_per_position(model) * (ids.len() + drawn_tokens) as u64;
                shares.push((weight_bytes_per_token + kept_bytes) as f64 / token_seconds / bandwidth);
            }
        }
        drawn_tokens += 1;
        clock = Instant::now();
    })?;
    Ok((median(&bandwidths), median(&shares)))
}

/// Bytes of the decoder's blocks, its last norm and the text head; of the embedding table one row is read, which does not count.
fn weight_bytes_per_token(model: &Model) -> u64 {
    let tied = model.config.tie_word_embeddings;
    let is_read = |name: &str| {
        let decoder = name.starts_with("model.language_model.") && name != EMBED_TOKENS;
        decoder || name == if tied { EMBED_TOKENS } else { LM_HEAD }
    };
    let tensors = expected_tensors(&model.config, !tied);
    let values = tensors.iter().filter(|tensor| is_read(&tensor.name)).map(|t| t.shape.iter().product::<usize>());
    (values.sum::<usize>() * model.dtype.size_in_bytes()) as u64
}

/// Bytes of keys and values that every later token reads of one position.
fn kept_bytes_per_position(model: &Model) -> u64 {
    let text = &model.config.text;
    (2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * model.dtype.size_in_bytes()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use janus_core::config::JanusConfig;

    /// 24 layers of 4 · 2048² + 3 · 2048 · 5632 values and two norms, the last norm, and a head of 102,400 rows.
    #[test]
    fn a_token_of_the_published_shape_reads_three_gigabytes() {
        let config = JanusConfig::shape("janus-pro-1b").unwrap();
        let values = 24 * (4 * 2048 * 2048 + 3 * 2048 * 5632 + 2 * 2048) + 2048 + 102_400 * 2048_u64;
        let model =
            Model { shape: "janus-pro-1b".into(), config: config.clone(), dtype: DType::BF16, device: Device::Cpu };
        assert_eq!(weight_bytes_per_token(&model), 2 * values);
        assert_eq!(kept_bytes_per_position(&model), 2 * 2 * 24 * 2048);
        let tied = Model { config: JanusConfig { tie_word_embeddings: true, ..config }, dtype: DType::F32, ..model };
        assert_eq!(weight_bytes_per_token(&tied), 4 * values);
    }
}
