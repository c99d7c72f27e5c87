//! One tensor with the adapters' share in it, some rows at a time.

use candle_core::{DType, Device, Tensor};
use janus_core::site::{Correction, LowRank, Site, SiteKind};

use super::error::MergeError;
use super::receipt::Sums;
use crate::adapter::{AdapterError, LoraCorrection, scaled_copy};
use crate::error::Result;

/// Values summed at once: what is held in f32 beside the stored and the written tensor stays small, whatever their size.
const PIECE_VALUES: usize = 1 << 18;

/// What happens to one tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fold<'a> {
    /// Native name.
    pub(super) name: &'a str,
    /// A copy that stands in for the base's values, in their shape, f32, and the factor on its shift.
    pub(super) copy: Option<(&'a Tensor, f64)>,
    /// The low-rank terms of the site whose weight this is.
    pub(super) shift: Option<(&'a Site, &'a [LowRank])>,
    /// A dynamic encoder's factor for each row, on what the others come to.
    pub(super) factors: Option<&'a [f32]>,
    /// Type to write.
    pub(super) dtype: DType,
}

impl Fold<'_> {
    /// The tensor to write for the base's `stored`, of its shape, and what became of its values.
    ///
    /// # Errors
    /// A copy of another shape, and a value that is not finite.
    pub(super) fn run(&self, stored: &Tensor) -> Result<(Tensor, Sums)> {
        if let Some((copy, _)) = self.copy.filter(|(copy, _)| copy.dims() != stored.dims()) {
            let (expected, got) = (stored.dims().to_vec(), copy.dims().to_vec());
            return Err(AdapterError::Shape { path: self.name.into(), tensor: "copy", expected, got }.into());
        }
        let rows = stored.dims().first().copied().unwrap_or(0);
        if let Some(factors) = self.factors.filter(|factors| factors.len() != rows) {
            let (expected, got) = (vec![rows], vec![factors.len()]);
            return Err(AdapterError::Shape { path: self.name.into(), tensor: "factors", expected, got }.into());
        }
        self.in_pieces(stored, PIECE_VALUES)
    }

    fn in_pieces(&self, stored: &Tensor, piece_values: usize) -> Result<(Tensor, Sums)> {
        let rows = stored.dim(0)?;
        let width = stored.elem_count() / rows.max(1);
        let step = (piece_values / width.max(1)).max(1);
        let merged = Tensor::zeros(stored.dims(), self.dtype, &Device::Cpu)?;
        let mut sums = Sums::default();
        for from in (0..rows).step_by(step) {
            let count = step.min(rows - from);
            let base = stored.narrow(0, from, count)?.to_dtype(DType::F32)?;
            let start = match self.copy {
                Some((copy, factor)) => scaled_copy(&base, &copy.narrow(0, from, count)?, factor)?,
                None => base.clone(),
            };
            let shift = match self.shift {
                Some((site, terms)) => shift_of_rows(site, terms, from, count)?,
                None => start.zeros_like()?,
            };
            let mut sum = (&start + &shift)?;
            if let Some(factors) = self.factors {
                let shape: Vec<usize> = (0..sum.rank()).map(|axis| if axis == 0 { count } else { 1 }).collect();
                sum = sum.broadcast_mul(&Tensor::from_slice(&factors[from..from + count], shape, &Device::Cpu)?)?;
            }
            let rounded = sum.to_dtype(self.dtype)?;
            let without = values(&base.to_dtype(self.dtype)?)?;
            let (base, start, shift, kept) = (values(&base)?, values(&start)?, values(&shift)?, values(&rounded)?);
            for (index, kept) in kept.iter().enumerate() {
                let weight = f64::from(base[index]);
                let factor = self.factors.map_or(1.0, |factors| f64::from(factors[from + index / width.max(1)]));
                let delta = (f64::from(start[index]) + f64::from(shift[index])) * factor - weight;
                if !kept.is_finite() {
                    let (tensor, index, dtype) = (self.name.to_owned(), from * width + index, self.dtype);
                    return Err(MergeError::NotFinite { tensor, index, weight, delta, dtype }.into());
                }
                sums.add(weight, delta, *kept, without[index]);
            }
            merged.slice_set(&rounded, 0, from)?;
        }
        Ok((merged, sums))
    }
}

/// The sum of the terms for some rows of the site's weight, f32.
fn shift_of_rows(site: &Site, terms: &[LowRank], from: usize, count: usize) -> Result<Tensor> {
    let mut piece = site.clone();
    let shape = match site.kind {
        SiteKind::Linear => {
            piece.output = count;
            vec![count, site.input]
        }
        SiteKind::Conv2d { kernel, .. } => {
            piece.output = count;
            vec![count, site.input, kernel, kernel]
        }
        SiteKind::Embedding => {
            piece.input = count;
            vec![count, site.output]
        }
    };
    let narrowed = terms.iter().map(|term| {
        let mut term = term.clone();
        match site.kind {
            SiteKind::Embedding => term.a = term.a.narrow(1, from, count)?.contiguous()?,
            SiteKind::Linear | SiteKind::Conv2d { .. } => term.b = term.b.narrow(0, from, count)?.contiguous()?,
        }
        Ok(term)
    });
    let correction = LoraCorrection::new(narrowed.collect::<Result<Vec<_>>>()?);
    Ok(correction.fold(&piece, Tensor::zeros(shape, DType::F32, &Device::Cpu)?)?)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
