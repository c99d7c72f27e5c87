//! A mask of what is looked for: mid features with a skip from low ones, doubled until a quarter of the square's side, of
//! small squares further.

use candle_core::{D, Result, Tensor};
use janus_core::config::JanusConfig;
use janus_core::ops::activation::sigmoid;
use janus_core::processing::Frame;

use super::layers::{channels, doubled, grid, normalised, softplus, with_neighbours};
use super::{First, Head, Value};

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

/// `mid` and `low` from the features, `up.N` to the next finer grid, `near` over each place's neighbourhood, then `mask`.
pub(super) fn values(config: &JanusConfig) -> Vec<Value> {
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

/// Values of the finest grid with their gradients: each place's neighbourhood, as nine parts and together, what is made of
/// it, and what it was made of.
pub(super) fn activation_values(config: &JanusConfig) -> usize {
    side(config) * side(config) * channels(config, MOST_CHANNELS) * (2 * (9 + 9 + 2 + 4) + 9)
}

/// Low features, `[images, patches, width]`, and mid ones, `[images, patches, hidden]`, to logits, `[images, side, side]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn logits(head: &Head, config: &JanusConfig, low: &Tensor, mid: &Tensor) -> Result<Tensor> {
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
pub fn loss(logits: &Tensor, truth: &Tensor, counted: Option<&Tensor>) -> Result<Tensor> {
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
pub fn mask(logits: &[f32], side: usize, image_size: usize, frame: &Frame) -> Vec<bool> {
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
