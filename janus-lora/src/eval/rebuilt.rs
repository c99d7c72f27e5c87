//! Figures of pictures that come back from the image tokenizer's codes.

use candle_core::Tensor;
use image::{Rgb, RgbImage};
use janus_core::pass::Pass;
use janus_core::processing::pixels_to_images;
use serde::Serialize;

use super::Evaluation;
use crate::error::Result;
use crate::metrics::image_similarity::{psnr, ssim};
use crate::tasks::Batch;

/// What equal pictures count as, in decibels: their ratio is infinite, and so would be any mean with it.
pub(super) const MOST_DECIBELS: f64 = 100.0;

/// Figures of one table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct RebuiltMetrics {
    /// Pictures.
    pub(super) rows: usize,
    /// Mean loss.
    pub(super) loss: f64,
    /// Mean peak signal-to-noise ratio in decibels, at most 100.
    pub(super) psnr: f64,
    /// The same of pictures that have the mean colour of their row's everywhere.
    pub(super) mean_colour_psnr: f64,
    /// Mean structural similarity; absent of pictures of less than 11 pixels a side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ssim: Option<f64>,
    /// Share of the codebook that stands for some place of these pictures.
    pub(super) codes_used: f64,
    /// `exp` of the entropy of the codes of all places: as many equally frequent codes would tell as much.
    pub(super) code_perplexity: f64,
}

/// Evaluates a table whose pictures come back.
pub(super) fn evaluate(evaluation: &Evaluation<'_>) -> Result<RebuiltMetrics> {
    let (model, pass) = (evaluation.model, Pass::inference());
    let mut counts = vec![0usize; model.config().vq.num_embeddings];
    let (mut rows, mut loss, mut decibels, mut without_looking) = (0, 0.0, 0.0, 0.0);
    let mut structure = Some(0.0);
    evaluation.each(|_, batch| {
        let Batch::Pixels(batch) = batch else { return Ok(()) };
        let pixels = batch.pixels(model)?;
        let again = batch.reconstruction(model, &pass, &pixels)?;
        for code in &again.codes {
            if let Some(count) = counts.get_mut(*code as usize) {
                *count += 1;
            }
        }
        for (picture, truth) in pictures(&again.pixels)?.iter().zip(pictures(&pixels)?) {
            rows += 1;
            decibels += psnr(picture, &truth).min(MOST_DECIBELS);
            without_looking += psnr(&mean_colour(&truth), &truth).min(MOST_DECIBELS);
            let similarity = ssim(picture, &truth, truth.width() as usize, truth.height() as usize);
            structure = structure.zip(similarity).map(|(sum, similarity)| sum + similarity);
        }
        loss += f64::from(batch.loss_of(&pass, &pixels, again)?.sum.to_scalar::<f32>()?);
        Ok(())
    })?;
    let (all, places) = (rows.max(1) as f64, counts.iter().sum::<usize>().max(1) as f64);
    let used = counts.iter().filter(|count| **count > 0);
    let entropy: f64 = used.clone().map(|count| *count as f64 / places).map(|share| -share * share.ln()).sum();
    Ok(RebuiltMetrics {
        rows,
        loss: loss / all,
        psnr: decibels / all,
        mean_colour_psnr: without_looking / all,
        ssim: structure.map(|sum| sum / all),
        codes_used: used.count() as f64 / counts.len().max(1) as f64,
        code_perplexity: entropy.exp(),
    })
}

fn pictures(pixels: &Tensor) -> Result<Vec<RgbImage>> {
    Ok(pixels_to_images(&pixels.contiguous()?)?)
}

/// A picture of one colour.
fn mean_colour(picture: &RgbImage) -> RgbImage {
    let pixels = f64::from(picture.width()) * f64::from(picture.height());
    let mean: [u8; 3] = std::array::from_fn(|channel| {
        let sum: f64 = picture.pixels().map(|pixel| f64::from(pixel.0[channel])).sum();
        (sum / pixels.max(1.0)).round() as u8
    });
    RgbImage::from_pixel(picture.width(), picture.height(), Rgb(mean))
}
