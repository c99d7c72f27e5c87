//! Base + adapters and the merged checkpoint on the same input: how far their predictions are apart.

use candle_core::{D, DType, Tensor};
use janus_core::pass::Pass;
use janus_core::processing::Sample;
use janus_core::{Janus, Parts, noise};
use serde::Serialize;

use super::error::MergeError;
use crate::base::Base;
use crate::cache::Image;
use crate::error::Result;
use crate::tasks::{CodeBatch, TextBatch};

/// Positions that each head is compared at: a row of logits has the size of the vocabulary.
const POSITIONS: usize = 64;

/// Parts that the comparison runs.
pub(super) const PARTS: Parts = Parts { text_head: true, vision: true, generation: true, image_tokenizer: false };

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
    head: &'static str,
    rows: Vec<Vec<f32>>,
}

/// Logits of both heads on a fixed picture, question and row of codes.
pub(super) fn logits(base: &Base, model: &Janus, which: &'static str, dtype: DType) -> Result<Vec<Logits>> {
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
    let count = text.len().min(POSITIONS);
    let last = hidden.narrow(1, text.len() - count, count)?;
    let codes = base.config().vq.num_embeddings as u64;
    let count = model.codes_per_image().min(POSITIONS) as u64;
    let drawn = CodeBatch {
        prompts: vec![base.prompts().generation_prompt("a picture")?],
        codes: vec![(0..count).map(|i| (noise::mix(i) % codes) as u32).collect()],
        images: Vec::new(),
        placeholder: special.image_placeholder,
    };
    let found = [("text", model.decoder().text_logits(&pass, &last)?), ("image", drawn.logits(model, &pass)?)];
    found.into_iter().map(|(head, logits)| rows(head, &logits, which, dtype)).collect()
}

/// The logits `[.., classes]` of one head, once they are known to be finite.
fn rows(head: &'static str, logits: &Tensor, which: &'static str, dtype: DType) -> Result<Logits> {
    let classes = logits.dim(D::Minus1)?;
    let rows = logits.to_dtype(DType::F32)?.reshape(((), classes))?.to_vec2::<f32>()?;
    if rows.iter().flatten().any(|logit| !logit.is_finite()) {
        return Err(MergeError::Logits { which, head, dtype }.into());
    }
    Ok(Logits { head, rows })
}

/// Compares logits of base + adapters with those of the merged checkpoint, head by head.
pub(super) fn compare(attached: &[Logits], merged: &[Logits]) -> Vec<Comparison> {
    let heads = attached.iter().zip(merged);
    let compared = heads.map(|(attached, merged)| {
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
    });
    compared.collect()
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

    fn of(rows: &[&[f32]]) -> Vec<Logits> {
        vec![Logits { head: "text", rows: rows.iter().map(|row| row.to_vec()).collect() }]
    }

    #[test]
    fn divergence_of_distributions_worked_out_by_hand() {
        // (1/2, 1/4, 1/4) against (1/4, 1/4, 1/2): 1/2·ln 2 − 1/4·ln 2.
        let (p, q) = ([2f32.ln(), 0.0, 0.0], [0.0, 0.0, 2f32.ln()]);
        let expected = 0.25 * std::f64::consts::LN_2;
        let compared = compare(&of(&[&p, &[5.0, 5.0, 5.0]]), &of(&[&q, &[7.0, 7.0, 7.0]]));
        let [text] = &compared[..] else { panic!("{compared:?}") };
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
            let logits = Tensor::new(&[[[1f32, 2.0, 3.0], [4.0, value, 6.0]]], &candle_core::Device::Cpu).unwrap();
            let error = rows("image", &logits, "base + adapters", DType::BF16).unwrap_err().to_string();
            assert!(error.contains("base + adapters") && error.contains("image"), "{error}");
            let finite = logits.narrow(1, 0, 1).unwrap();
            assert_eq!(rows("image", &finite, "base + adapters", DType::BF16).unwrap().rows, [[1.0, 2.0, 3.0]]);
        }
    }

    #[test]
    fn logits_of_any_size_do_not_overflow() {
        let (p, q) = ([3e4f32, -3e4, 0.0], [3e4, 0.0, -3e4]);
        assert_eq!(divergence(&p, &q), 0.0);
        assert!((divergence(&[0.0, -3e4], &[-3e4, 0.0]) - 3e4).abs() < 1e-6);
    }
}
