//! The codes of one image with guidance, and the picture they stand for.

use std::time::Instant;

use janus_core::Parts;
use janus_core::pass::Pass;
use janus_core::sample::{CodeOptions, CodePrompts, generate_first_codes};
use serde::Serialize;

use super::inputs::{self, PROMPT_TOKENS};
use super::{Figures, Model, gaps};
use crate::error::{Error, Result};
use crate::status::Status;

/// The usual strength of the prompt.
const GUIDANCE: f64 = 5.0;
/// The picture is decoded so often; the last time counts.
const DECODINGS: usize = 2;

/// What is drawn.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Codes that are drawn, all of an image's where absent; at least 2.
    pub tokens: Option<usize>,
}

/// What a picture costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerateReport {
    /// What every measurement tells; steps are those after the first code.
    #[serde(flatten)]
    pub figures: Figures,
    /// Codes that were drawn.
    pub codes: usize,
    /// Codes of a whole image.
    pub codes_per_image: usize,
    /// The codes drawn, from the prompt to the last of them.
    pub codes_seconds: f64,
    /// The first of them: the prompt's pass, both branches.
    pub first_code_seconds: f64,
    /// The image decoder, on all codes of an image.
    pub vq_decode_seconds: f64,
    /// Codes and decoder together; absent where not all codes of the image were drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_seconds: Option<f64>,
    /// Strength of the prompt.
    pub guidance: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

/// Measures the drawing of one image.
///
/// # Errors
/// More codes than an image has.
pub fn generate(model: &Model, options: &GenerateOptions, status: &dyn Status) -> Result<GenerateReport> {
    let config = &model.config;
    let grid = config.vision.image_size / config.vq.down_factor();
    let codes_per_image = grid * grid;
    let count = options.tokens.unwrap_or(codes_per_image);
    if count > codes_per_image {
        let message = format!("`--tokens {count}`, but an image of this shape has {codes_per_image} codes");
        return Err(Error::Usage { message, hint: format!("give at most {codes_per_image}") });
    }
    let parts = Parts { generation: true, image_tokenizer: true, ..Parts::default() };
    let (janus, opening_seconds) = model.open(parts, status)?;
    let prompts = CodePrompts {
        conditional: inputs::text_ids(config, "prompt", PROMPT_TOKENS),
        unconditional: inputs::text_ids(config, "no prompt", PROMPT_TOKENS),
        mask: vec![true; PROMPT_TOKENS],
        rows: 1,
        images: None,
    };
    let drawing = CodeOptions { guidance: GUIDANCE, temperature: 0.0, seed: 0 };
    let pass = Pass::answering();
    let bar = status.items("drawing", count as u64);
    let mut moments = vec![Instant::now()];
    let drawn = generate_first_codes(&janus, &pass, &prompts, &drawing, count, &mut |_| {
        moments.push(Instant::now());
        bar.advance(1);
    })?;
    bar.finish();
    let seconds = gaps(&moments);
    let codes_seconds = seconds.iter().sum::<f64>();

    let codes = [inputs::codes(config, "image", codes_per_image)];
    let mut vq_decode_seconds = 0.0;
    for _ in 0..DECODINGS {
        let clock = Instant::now();
        janus.image_tokenizer()?.decode(&pass, &codes)?;
        model.device.synchronize()?;
        vq_decode_seconds = clock.elapsed().as_secs_f64();
    }
    Ok(GenerateReport {
        figures: Figures::new(model, 1, seconds.get(1..).unwrap_or_default(), opening_seconds),
        codes: drawn.iter().map(Vec::len).sum(),
        codes_per_image,
        codes_seconds,
        first_code_seconds: seconds.first().copied().unwrap_or_default(),
        vq_decode_seconds,
        image_seconds: (count == codes_per_image).then_some(codes_seconds + vq_decode_seconds),
        guidance: GUIDANCE,
        prompt_tokens: PROMPT_TOKENS,
    })
}
