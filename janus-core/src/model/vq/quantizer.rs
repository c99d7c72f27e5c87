//! The quantiser of the original code: latents and codes are brought to unit length before the nearest is sought.
//!
//! transformers' `encode` compares them raw, which gives other codes wherever stored rows are not of unit length; the
//! published weights were trained with the normalised form.

use std::sync::Arc;

use candle_core::{D, Device, Tensor};
use rayon::prelude::*;

use super::DTYPE;
use crate::config::VqConfig;
use crate::error::{ModelError, Result};
use crate::model::loader::Loader;
use crate::parameter::Parameter;

/// Below this a length counts as this, as in `torch.nn.functional.normalize`.
const SMALLEST_LENGTH: f64 = 1e-12;

#[derive(Debug)]
pub(super) struct Quantizer {
    embedding: Arc<Parameter>,
    codes: usize,
    width: usize,
}

/// Latents that were quantised.
pub(super) struct Quantized {
    /// The latents at unit length.
    pub(super) unit: Tensor,
    /// The unit vectors of their codes, with the gradient of `unit`.
    pub(super) straight: Tensor,
    pub(super) commitment: Tensor,
    pub(super) codebook: Tensor,
    pub(super) codes: Vec<u32>,
    pub(super) latents: Tensor,
}

/// `[images, embed_dim, grid, grid]` as `[images · grid · grid, embed_dim]`.
fn rows(latents: &Tensor) -> Result<Tensor> {
    let (images, width, height, breadth) = latents.dims4()?;
    Ok(latents.permute((0, 2, 3, 1))?.contiguous()?.reshape((images * height * breadth, width))?)
}

/// Rows brought to unit length.
fn unit(rows: &Tensor) -> Result<Tensor> {
    let length = rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(SMALLEST_LENGTH)?;
    Ok(rows.broadcast_div(&length)?)
}

impl Quantizer {
    pub(super) fn load(loader: &mut Loader<'_>, path: &str, config: &VqConfig) -> Result<Self> {
        let embedding = loader.parameter(&format!("{path}.embedding.weight"), DTYPE)?;
        Ok(Self { embedding, codes: config.num_embeddings, width: config.embed_dim })
    }

    /// Where the codebook lies.
    pub(super) fn device(&self) -> &Device {
        self.embedding.frozen().device()
    }

    /// The nearest code of each latent: `[images, embed_dim, grid, grid]` to one row of codes per image, raster order.
    ///
    /// For unit vectors the smallest distance is the largest product; the first of equals wins.
    pub(super) fn nearest(&self, latents: &Tensor) -> Result<Vec<Vec<u32>>> {
        let (_, _, height, breadth) = latents.dims4()?;
        let rows = unit(&rows(latents)?)?;
        Ok(self.nearest_to(&rows)?.chunks((height * breadth).max(1)).map(<[u32]>::to_vec).collect())
    }

    /// The nearest code of each unit row, `[places, embed_dim]`.
    fn nearest_to(&self, rows: &Tensor) -> Result<Vec<u32>> {
        let rows: Vec<Vec<f32>> = rows.detach().to_vec2()?;
        let codes: Vec<Vec<f32>> = unit(&self.embedding.value().detach())?.to_vec2()?;
        let nearest = rows.par_iter().map(|row| {
            let mut best = (0u32, f32::NEG_INFINITY);
            for (index, code) in codes.iter().enumerate() {
                let product: f32 = row.iter().zip(code).map(|(a, b)| a * b).sum();
                if product > best.1 {
                    best = (index as u32, product);
                }
            }
            best.0
        });
        Ok(nearest.collect())
    }

    /// Latents `[images, embed_dim, grid, grid]` as the unit vectors of their codes, through which gradients pass as if they
    /// were the latents themselves, and what draws the two together.
    pub(super) fn straight_through(&self, latents: &Tensor) -> Result<Quantized> {
        let (images, width, height, breadth) = latents.dims4()?;
        let rows = unit(&rows(latents)?)?;
        let codes = self.nearest_to(&rows)?;
        let entries = crate::ops::select_rows(&unit(&self.embedding.value())?, &codes)?;
        let distance = |a: &Tensor, b: &Tensor| -> Result<Tensor> { Ok((a - b)?.sqr()?.mean_all()?) };
        let commitment = distance(&rows, &entries.detach())?;
        let codebook = distance(&entries, &rows.detach())?;
        let straight = (&rows + (&entries - &rows)?.detach())?;
        let on_grid = |rows: &Tensor| rows.reshape((images, height, breadth, width))?.permute((0, 3, 1, 2));
        let (straight, unit) = (on_grid(&straight)?, on_grid(&rows)?);
        Ok(Quantized { unit, straight, commitment, codebook, codes, latents: rows.detach() })
    }

    /// Unit code vectors on their grid: `[images, embed_dim, grid, grid]`.
    pub(super) fn entries(&self, codes: &[Vec<u32>]) -> Result<Tensor> {
        let length = codes.first().map_or(0, Vec::len);
        let grid = length.isqrt();
        for (row, codes) in codes.iter().enumerate() {
            if codes.len() != length || grid * grid != length || length == 0 {
                let expected = "[images, grid · grid] codes".to_string();
                return Err(ModelError::Shape { what: "image codes", expected, got: vec![row, codes.len()] }.into());
            }
            if let Some(position) = codes.iter().position(|code| *code as usize >= self.codes) {
                let id = i64::from(codes[position]);
                return Err(ModelError::TokenOutOfRange { id, row, position, vocabulary: self.codes }.into());
            }
        }
        let indices = codes.concat();
        let rows = crate::ops::select_rows(&unit(&self.embedding.value())?, &indices)?;
        Ok(rows.reshape((codes.len(), grid, grid, self.width))?.permute((0, 3, 1, 2))?)
    }
}
