//! One tensor with the adapters' share in it, some rows at a time.

use candle_core::{DType, Device, Tensor};
use janus_core::site::{Correction, Site};

use super::error::MergeError;
use super::receipt::Sums;
use crate::adapter::AdapterError;
use crate::error::Result;

/// Values summed at once: what is held in f32 beside the stored and the written tensor stays small, whatever their size.
const PIECE_VALUES: usize = 1 << 18;

/// What happens to one tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fold<'a> {
    /// Native name.
    pub(super) name: &'a str,
    /// What stands in for the base's values, in their shape, f32.
    pub(super) copy: Option<&'a Tensor>,
    /// The correction of the site whose weight this is.
    pub(super) correction: Option<(&'a Site, &'a Correction)>,
    /// Type to write.
    pub(super) dtype: DType,
}

impl Fold<'_> {
    /// The tensor to write for the base's `stored`, of its shape, and what became of its values.
    ///
    /// # Errors
    /// A copy of another shape, and a value that is not finite.
    pub(super) fn run(&self, stored: &Tensor) -> Result<(Tensor, Sums)> {
        if let Some(copy) = self.copy.filter(|copy| copy.dims() != stored.dims()) {
            let (expected, got) = (stored.dims().to_vec(), copy.dims().to_vec());
            return Err(AdapterError::Shape { path: self.name.into(), tensor: "copy", expected, got }.into());
        }
        if let Some((site, correction)) = self.correction {
            correction.check(site)?;
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
                Some(copy) => copy.narrow(0, from, count)?.to_dtype(DType::F32)?,
                None => base.clone(),
            };
            let (start, shift) = match self.correction {
                Some((site, correction)) => {
                    (correction.scaled_rows(site, start, from)?, correction.shift_of_rows(site, from, count)?)
                }
                None => (start, None),
            };
            let shift = match shift {
                Some(shift) => shift,
                None => start.zeros_like()?,
            };
            let rounded = (&start + &shift)?.to_dtype(self.dtype)?;
            let without = values(&base.to_dtype(self.dtype)?)?;
            let (base, start, shift, kept) = (values(&base)?, values(&start)?, values(&shift)?, values(&rounded)?);
            for (index, kept) in kept.iter().enumerate() {
                let weight = f64::from(base[index]);
                let delta = f64::from(start[index]) + f64::from(shift[index]) - weight;
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

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
