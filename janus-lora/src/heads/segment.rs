//! A mask of what is looked for: mid features with a skip from low ones, doubled until a quarter of the square's side, of
//! small squares further.

use candle_core::{D, Result, Tensor};
use image::RgbImage;
use janus_core::config::JanusConfig;
use janus_core::ops::activation::sigmoid;
use janus_core::processing::Frame;
use serde_json::json;

use super::layers::{channels, doubled, grid, normalised, softplus, with_neighbours};
use super::{Description, Features, Figures, First, Head, HeadAnswer, HeadSample, NORMALISED, Target, TaskHead, Value};
use crate::metrics::masks::MaskFigures;
use crate::metrics::row_dice;
use crate::overlay::Overlay;

/// Width of the head over large bases.
const MOST_CHANNELS: usize = 32;
/// Pixels of the square that a place of the mask stands for at most, a side.
const PLACE_PIXELS: usize = 4;
/// Places a side of the mask at least, where the square has as many pixels.
const LEAST_SIDE: usize = 32;

/// How often the grid of patches is doubled.
fn doublings(config: &JanusConfig) -> usize {
    let mut side = config.vision.num_patches().isqrt().max(1);
    let mut count = 0;
    let size = config.vision.image_size;
    while side * PLACE_PIXELS < size || side < LEAST_SIDE.min(size) {
        (side, count) = (2 * side, count + 1);
    }
    count
}

/// Places a side of the mask.
pub fn side(config: &JanusConfig) -> usize {
    config.vision.num_patches().isqrt() << doublings(config)
}

/// A mask of what is looked for.
pub(super) struct Segment;

impl TaskHead for Segment {
    fn task(&self) -> &'static str {
        "segment"
    }

    /// `mid` and `low` from the features, `up.N` to the next finer grid, `near` over each place's neighbourhood, then `mask`.
    fn values(&self, config: &JanusConfig) -> Vec<Value> {
        let channels = channels(config, MOST_CHANNELS);
        let mut values = Value::affine("mid", config.vision.projection_dim, channels);
        values.extend(Value::affine("low", config.vision.hidden_size, channels));
        let ups = 1..=doublings(config);
        ups.for_each(|level| values.extend(Value::affine(&format!("up.{level}"), channels, 4 * channels)));
        values.extend(Value::affine("near", 9 * channels, channels));
        values.push(Value::new("mask.weight", &[1, channels], First::Normal(0.01)));
        values.push(Value::new("mask.bias", &[1], First::Constant(0.0)));
        values
    }

    /// Normalised low features, and values of the finest grid with their gradients: each place's neighbourhood, as nine parts and
    /// together, what is made of it, and what it was made of.
    fn activation_values(&self, config: &JanusConfig) -> usize {
        let low = NORMALISED * config.vision.num_patches() * config.vision.hidden_size;
        low + side(config) * side(config) * channels(config, MOST_CHANNELS) * (2 * (9 + 9 + 2 + 4) + 9)
    }

    fn reads_low(&self) -> bool {
        true
    }

    /// Logits of the mask's places, `[images, side, side]`.
    fn output(
        &self,
        head: &Head,
        config: &JanusConfig,
        features: &Features,
        _: Option<&Tensor>,
    ) -> Result<Vec<Tensor>> {
        let low = features.low.as_ref().expect("a head that reads low features is given them");
        Ok(vec![logits(head, config, low, &features.mid)?])
    }

    fn loss(
        &self,
        _: &Head,
        _: &JanusConfig,
        output: &[Tensor],
        targets: &[Target],
        _: &[Frame],
    ) -> Result<(Tensor, Option<Tensor>)> {
        let logits = &output[0];
        let tensor = |values: Vec<f32>| Tensor::from_vec(values, logits.dims(), logits.device());
        let masks = || targets.iter().filter_map(Target::mask);
        let truth = tensor(masks().flat_map(|mask| mask.places.iter().copied()).collect())?;
        let places = truth.elem_count() / targets.len().max(1);
        let counted = match masks().any(|mask| mask.counted.is_some()) {
            false => None,
            true => {
                let shares = masks().flat_map(|mask| mask.counted.clone().unwrap_or_else(|| vec![1.0; places]));
                Some(tensor(shares.collect())?)
            }
        };
        Ok((loss(logits, &truth, counted.as_ref())?, None))
    }

    fn answer(&self, config: &JanusConfig, output: &[Tensor], frame: &Frame) -> Result<HeadAnswer> {
        let logits: Vec<f32> = output[0].flatten_all()?.to_vec1()?;
        let inside = mask(&logits, side(config), config.vision.image_size, frame);
        Ok(HeadAnswer::Mask { inside, size: frame.picture })
    }

    /// The runs of its mask at the picture's own size.
    fn truth(&self, target: &Target) -> serde_json::Value {
        json!(target.mask().and_then(|mask| mask.pixels.as_deref()).map(runs))
    }

    fn description(&self, answer: &HeadAnswer, _: &[String]) -> Description {
        let HeadAnswer::Mask { inside, size } = answer else { return Description::default() };
        let ((width, height), pixels) = (*size, inside.iter().filter(|inside| **inside).count());
        let share = pixels as f64 / inside.len().max(1) as f64;
        Description {
            text: format!("{:.2} % of {width} x {height} pixels", 100.0 * share),
            json: vec![
                ("pixels".to_owned(), json!(pixels)),
                ("share".to_owned(), json!(share)),
                ("runs".to_owned(), json!(runs(inside))),
                ("size".to_owned(), json!([width, height])),
            ],
        }
    }

    fn draws(&self) -> bool {
        true
    }

    fn overlay(&self, answer: &HeadAnswer, picture: &RgbImage) -> std::result::Result<Option<RgbImage>, String> {
        let HeadAnswer::Mask { inside, .. } = answer else { return Ok(None) };
        Ok(Some(Overlay::new(picture).mask(inside, 0).into_picture()))
    }

    fn sample(
        &self,
        answer: HeadAnswer,
        target: &Target,
        picture: &RgbImage,
    ) -> std::result::Result<Option<HeadSample>, String> {
        let (Some(truth), HeadAnswer::Mask { inside, .. }) = (target.mask(), &answer) else { return Ok(None) };
        let share = |mask: &[bool]| {
            let pixels = mask.iter().filter(|inside| **inside).count();
            format!("{:.2} % of the picture", 100.0 * pixels as f64 / mask.len().max(1) as f64)
        };
        let true_one = truth.pixels.as_deref();
        Ok(Some(HeadSample {
            expected: true_one.map(share).unwrap_or_default(),
            answer: share(inside),
            overlay: self.overlay(&answer, picture)?,
            truth: true_one.map(|truth| Overlay::new(picture).mask(truth, 0).into_picture()),
            score: true_one.map(|pixels| row_dice(pixels, inside, &truth.ignored)),
        }))
    }

    fn figures(&self) -> Box<dyn Figures + '_> {
        Box::new(MaskFigures::new())
    }
}

impl Figures for MaskFigures {
    fn add(&mut self, target: &Target, _: &[Tensor], answer: &HeadAnswer) -> Result<()> {
        if let (Some(mask), HeadAnswer::Mask { inside, .. }) = (target.mask(), answer)
            && let Some(truth) = &mask.pixels
        {
            MaskFigures::add(self, truth, inside, &mask.ignored);
        }
        Ok(())
    }

    fn metrics(self: Box<Self>, loss_sum: f64) -> Result<serde_json::Value> {
        Ok(json!(MaskFigures::metrics(*self, loss_sum)))
    }
}

/// A mask as lengths of runs in turn outside and inside, row by row, the first outside: COCO's uncompressed form, but by rows.
fn runs(mask: &[bool]) -> Vec<usize> {
    let mut runs: Vec<usize> = if mask.first() == Some(&true) { vec![0] } else { Vec::new() };
    runs.extend(mask.chunk_by(|a, b| a == b).map(<[bool]>::len));
    runs
}

/// Low features, `[images, patches, width]`, and mid ones, `[images, patches, hidden]`, to logits, `[images, side, side]`.
///
/// # Errors
/// Shapes that do not fit.
fn logits(head: &Head, config: &JanusConfig, low: &Tensor, mid: &Tensor) -> Result<Tensor> {
    let projected = |features: &Tensor, name: &str| head.affine(&grid(&normalised(features)?)?, name);
    let mut x = (projected(mid, "mid")? + projected(low, "low")?)?.relu()?;
    for level in 1..=doublings(config) {
        x = doubled(&head.affine(&x, &format!("up.{level}"))?)?.relu()?;
    }
    let near = head.affine(&with_neighbours(&x)?, "near")?.relu()?;
    head.affine(&near, "mask")?.squeeze(D::Minus1)
}

/// The summed loss of some pictures: mean cross-entropy of a picture's places, and `1 - (2·Σpt + 1) / (Σp + Σt + 1)` (Milletari
/// et al., arXiv:1606.04797, smoothed). `truth: [images, side, side]`, from 0 to 1; `counted`, of the same shape, is how much of
/// each place is counted in both.
///
/// # Errors
/// Shapes that do not fit.
fn loss(logits: &Tensor, truth: &Tensor, counted: Option<&Tensor>) -> Result<Tensor> {
    let places = logits.flatten_from(1)?;
    let truth = truth.flatten_from(1)?;
    let counted = counted.map(|counted| counted.flatten_from(1)).transpose()?;
    let weighted = |values: Tensor| match &counted {
        Some(counted) => values * counted,
        None => Ok(values),
    };
    let each = weighted((softplus(&places)? - (&places * &truth)?)?)?;
    let cross_entropy = match &counted {
        // A picture of which nothing is counted has no loss.
        Some(counted) => (each.sum(1)? / counted.sum(1)?.maximum(f32::MIN_POSITIVE)?)?,
        None => each.mean(1)?,
    };
    let p = weighted(sigmoid(&places)?)?;
    let common = ((&p * &truth)?.sum(1)? * 2.0)?;
    let dice = ((common + 1.0)? / ((p.sum(1)? + weighted(truth)?.sum(1)?)? + 1.0)?)?;
    (cross_entropy + dice.affine(-1.0, 1.0)?)?.sum_all()
}

/// The mask of a picture at its own size, row by row: where the logits of the square's places, taken linearly between the
/// middles of places, are above zero.
fn mask(logits: &[f32], side: usize, image_size: usize, frame: &Frame) -> Vec<bool> {
    let (width, height) = frame.picture;
    let scale = side as f32 / image_size.max(1) as f32;
    // Of a pixel: the two places beside its middle, and the share of the second.
    let between = |at: f32| {
        let at = (at * scale - 0.5).clamp(0.0, side.saturating_sub(1) as f32);
        let first = at as usize;
        (first, (first + 1).min(side.saturating_sub(1)), at - at.floor())
    };
    let columns: Vec<(usize, usize, f32)> =
        (0..width).map(|x| between(frame.to_square((x as f32 + 0.5, 0.0)).0)).collect();
    let mut mask = Vec::with_capacity(width as usize * height as usize);
    for y in 0..height {
        let (top, bottom, down) = between(frame.to_square((0.0, y as f32 + 0.5)).1);
        let value = |row: usize, column: usize| logits.get(row * side + column).copied().unwrap_or(f32::NEG_INFINITY);
        for (left, right, across) in &columns {
            let upper = value(top, *left) * (1.0 - across) + value(top, *right) * across;
            let lower = value(bottom, *left) * (1.0 - across) + value(bottom, *right) * across;
            mask.push(upper * (1.0 - down) + lower * down > 0.0);
        }
    }
    mask
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
