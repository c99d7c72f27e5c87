//! Base + adapters and the merged checkpoint on the same input: how far their predictions are apart.
//!
//! A model is never in memory as a whole: its parts and the blocks of its decoder are loaded one after the other, in f32,
//! and what they give is handed on to the next.

use candle_core::{D, DType, Device, Tensor};
use janus_core::model::Slice;
use janus_core::model::decoder::Placement;
use janus_core::model::vision::VisionPoint;
use janus_core::pass::Pass;
use janus_core::{Janus, Parts, noise};
use serde::Serialize;

use super::error::MergeError;
use crate::adapter::{self, Adapter};
use crate::base::Base;
use crate::error::Result;
use crate::status::Bar;

/// Positions that each head is compared at: a row of logits has the size of the vocabulary.
const POSITIONS: usize = 64;

/// How far apart the two are at one head.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// `text` or `image`.
    pub head: &'static str,
    /// Positions compared.
    pub positions: usize,
    /// Largest difference of a logit.
    pub largest_logit_difference: f32,
    /// KL(attached ‖ merged) of the predicted distributions, averaged over the positions.
    pub mean_kl_nats: f64,
    /// The same at the position where it is largest.
    pub max_kl_nats: f64,
}

/// Logits of one head, one row for each position.
#[derive(Debug)]
pub(super) struct Logits {
    pub(super) head: &'static str,
    pub(super) rows: Vec<Vec<f32>>,
}

/// A base with adapters, or a merged checkpoint without, of which some is in memory at a time.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    /// How errors name it.
    pub(super) name: &'static str,
    pub(super) base: &'a Base,
    /// Each with a factor on all that it shifts.
    pub(super) adapters: &'a [(Adapter, f64)],
    pub(super) device: &'a Device,
    /// Hears of bytes that are loaded.
    pub(super) bar: &'a dyn Bar,
}

impl Subject<'_> {
    fn open(&self, parts: Parts, slice: &Slice) -> Result<Janus> {
        let mut progress = |bytes| self.bar.advance(bytes);
        let model = Janus::open_slice(self.base.checkpoint(), DType::F32, self.device, parts, slice, &mut progress)?;
        let adapters: Vec<(&Adapter, f64)> = self.adapters.iter().map(|(adapter, scale)| (adapter, *scale)).collect();
        adapter::attach(&model, &adapters)?;
        Ok(model)
    }

    /// What the vision part makes of a picture: `[1, patches, hidden]`.
    fn features(&self, pass: &Pass, pixels: &Tensor) -> Result<Tensor> {
        let vision = Parts { vision: true, ..Parts::default() };
        let ends = self.open(vision, &Slice { vision_ends: true, ..Slice::default() })?;
        let mut x = ends.vision()?.embed(pass, pixels)?;
        for layer in 0..self.base.config().vision.num_hidden_layers {
            let model = self.open(vision, &Slice { vision_layers: layer..layer + 1, ..Slice::default() })?;
            for layer in model.vision()?.layers() {
                x = layer.forward(pass, &x)?;
            }
        }
        // Of the ends alone, that is what follows the last block.
        Ok(ends.vision()?.forward_from(pass, VisionPoint::Blocks(0), &x)?)
    }

    /// Logits of both heads on a fixed picture, question and row of codes.
    pub(super) fn logits(&self) -> Result<[Logits; 2]> {
        let pass = Pass::inference();
        let (base, config) = (self.base, self.base.config());
        let side = config.vision.image_size;
        let pixels: Vec<f32> = (0..3 * side * side).map(|i| (noise::uniform(1, i as u64) * 2.0 - 1.0) as f32).collect();
        let pixels = Tensor::from_vec(pixels, (1, 3, side, side), self.device)?;
        let question = base.prompts().understanding_prompt("What does the image show?", 1, true)?;
        let prompt = base.prompts().generation_prompt("a picture")?;

        let generation = Parts { generation: true, ..Parts::default() };
        let features = self.features(&pass, &pixels)?;
        let (text, prompt, count) = {
            let model = self.open(Parts::default(), &Slice { embeddings: true, ..Slice::default() })?;
            let placeholder = base.tokenizer().special().image_placeholder;
            let text = model.embed_with_images(&pass, &question, 1, placeholder, Some(&features))?;
            (text, model.decoder().embed(&pass, &prompt, 1)?, model.codes_per_image().min(POSITIONS))
        };
        let classes = config.vq.num_embeddings as u64;
        let codes: Vec<u32> = (0..count as u64).map(|i| (noise::mix(i) % classes) as u32).collect();
        let drawn = match codes.split_last().filter(|(_, before)| !before.is_empty()) {
            Some((_, before)) => {
                let model = self.open(generation, &Slice::default())?;
                Tensor::cat(&[prompt, model.generation()?.embed(&pass, before, 1)?], 1)?
            }
            None => prompt,
        };

        let mut rows = [text, drawn];
        for layer in 0..config.text.num_hidden_layers {
            let model = self.open(Parts::default(), &Slice { layers: layer..layer + 1, ..Slice::default() })?;
            for x in &mut rows {
                *x = model.decoder().forward(&pass, x, &Placement::plain(1, 0, x.dim(1)?), None)?;
            }
        }
        let [text, drawn] = rows;
        let last = |x: &Tensor, count: usize| x.narrow(1, x.dim(1)? - count, count);
        let (text, drawn) = (last(&text, question.len().min(POSITIONS))?, last(&drawn, codes.len())?);

        // One head after the other: either is as large as many blocks.
        let norm = Slice { norm: true, ..Slice::default() };
        let text = {
            let model = self.open(Parts { text_head: true, ..Parts::default() }, &norm)?;
            let logits = model.decoder().text_logits(&pass, &model.decoder().final_norm(&text)?)?;
            rows_of("text", &logits, self.name)?
        };
        let model = self.open(generation, &norm)?;
        let logits = model.generation()?.logits(&pass, &model.decoder().final_norm(&drawn)?)?;
        Ok([text, rows_of("image", &logits, self.name)?])
    }
}

/// The logits `[.., classes]` of one head, once they are known to be finite.
fn rows_of(head: &'static str, logits: &Tensor, which: &'static str) -> Result<Logits> {
    let classes = logits.dim(D::Minus1)?;
    let rows = logits.to_dtype(DType::F32)?.reshape(((), classes))?.to_vec2::<f32>()?;
    if rows.iter().flatten().any(|logit| !logit.is_finite()) {
        return Err(MergeError::Logits { which, head }.into());
    }
    Ok(Logits { head, rows })
}

/// Compares logits of base + adapters with those of the merged checkpoint, head by head.
pub(super) fn compare<const HEADS: usize>(attached: &[Logits; HEADS], merged: &[Logits; HEADS]) -> [Comparison; HEADS] {
    std::array::from_fn(|head| {
        let (attached, merged) = (&attached[head], &merged[head]);
        let pairs = || attached.rows.iter().zip(&merged.rows);
        let differences = pairs().flat_map(|(p, q)| p.iter().zip(q)).map(|(p, q)| (p - q).abs());
        let divergences: Vec<f64> = pairs().map(|(p, q)| divergence(p, q)).collect();
        Comparison {
            head: attached.head,
            positions: divergences.len(),
            largest_logit_difference: differences.fold(0.0, f32::max),
            mean_kl_nats: divergences.iter().sum::<f64>() / divergences.len().max(1) as f64,
            max_kl_nats: divergences.iter().copied().fold(0.0, f64::max),
        }
    })
}

/// KL(p ‖ q) = Σ p·(ln p − ln q) of the distributions that two rows of logits stand for; in f64, since of two close ones it
/// is a small difference of large terms.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p_norm, q_norm) = (log_sum_exp(p), log_sum_exp(q));
    let terms = p.iter().zip(q).map(|(p, q)| {
        let log_p = f64::from(*p) - p_norm;
        log_p.exp() * (log_p - (f64::from(*q) - q_norm))
    });
    terms.sum::<f64>().max(0.0)
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[&[f32]]) -> [Logits; 1] {
        [Logits { head: "text", rows: rows.iter().map(|row| row.to_vec()).collect() }]
    }

    #[test]
    fn divergence_of_distributions_worked_out_by_hand() {
        // (1/2, 1/4, 1/4) against (1/4, 1/4, 1/2): 1/2·ln 2 − 1/4·ln 2.
        let (p, q) = ([2f32.ln(), 0.0, 0.0], [0.0, 0.0, 2f32.ln()]);
        let expected = 0.25 * std::f64::consts::LN_2;
        let compared = compare(&of(&[&p, &[5.0, 5.0, 5.0]]), &of(&[&q, &[7.0, 7.0, 7.0]]));
        let [text] = &compared;
        assert!((text.max_kl_nats - expected).abs() < 1e-7, "{text:?}");
        assert!((text.mean_kl_nats - expected / 2.0).abs() < 1e-7, "{text:?}");
        assert_eq!((text.positions, text.largest_logit_difference), (2, 2.0));
        // KL is no distance: the second distribution is what the first is told by.
        let uneven = [0.0, 3.0, 0.0];
        assert!((divergence(&p, &uneven) - divergence(&uneven, &p)).abs() > 0.1);
    }

    #[test]
    fn logits_that_are_not_finite() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let logits = Tensor::new(&[[[1f32, 2.0, 3.0], [4.0, value, 6.0]]], &Device::Cpu).unwrap();
            let error = rows_of("image", &logits, "base + adapters").unwrap_err().to_string();
            assert!(error.contains("base + adapters") && error.contains("image"), "{error}");
            let finite = logits.narrow(1, 0, 1).unwrap();
            assert_eq!(rows_of("image", &finite, "base + adapters").unwrap().rows, [[1.0, 2.0, 3.0]]);
        }
    }

    #[test]
    fn logits_of_any_size_do_not_overflow() {
        let (p, q) = ([3e4f32, -3e4, 0.0], [3e4, 0.0, -3e4]);
        assert_eq!(divergence(&p, &q), 0.0);
        assert!((divergence(&[0.0, -3e4], &[-3e4, 0.0]) - 3e4).abs() < 1e-6);
    }
}
