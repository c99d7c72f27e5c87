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
        let (images, width, height, breadth) = latents.dims4()?;
        let rows = latents.permute((0, 2, 3, 1))?.contiguous()?.reshape((images * height * breadth, width))?;
        let rows: Vec<Vec<f32>> = unit(&rows)?.to_vec2()?;
        let codes: Vec<Vec<f32>> = unit(&self.embedding.value())?.to_vec2()?;
        let nearest: Vec<u32> = rows
            .par_iter()
            .map(|row| {
                let mut best = (0u32, f32::NEG_INFINITY);
                for (index, code) in codes.iter().enumerate() {
                    let product: f32 = row.iter().zip(code).map(|(a, b)| a * b).sum();
                    if product > best.1 {
                        best = (index as u32, product);
                    }
                }
                best.0
            })
            .collect();
        Ok(nearest.chunks(height * breadth).map(<[u32]>::to_vec).collect())
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
