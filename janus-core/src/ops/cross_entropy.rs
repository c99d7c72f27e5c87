//! Cross-entropy of rows of logits against labels, summed.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::composed::is_composed;
use super::values;

/// `Σ_rows log Σ_j exp(logits_j) - logits_label`, in f32. `logits: [rows, classes]`; returns a scalar.
///
/// # Errors
/// Another number of labels than rows, or a label beyond the classes.
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    if labels.len() != rows {
        bail!("{} labels for {rows} rows of logits", labels.len());
    }
    if let Some(label) = labels.iter().find(|l| **l as usize >= classes) {
        bail!("label {label} is outside {classes} classes");
    }
    if is_composed(logits.device()) {
        return composed(logits, labels);
    }
    logits.apply_op1(CrossEntropy { labels: labels.into() })
}

/// The same by candle's operations: the slow truth, and the path of other devices.
fn composed(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let wide = logits.to_dtype(DType::F32)?;
    let labels = Tensor::from_slice(labels, (labels.len(), 1), logits.device())?;
    let log_sum = wide.log_sum_exp(D::Minus1)?.sum_all()?;
    log_sum - wide.gather(&labels, 1)?.sum_all()?
}

struct CrossEntropy {
    labels: Arc<[u32]>,
}

/// Largest logit and `Σ exp(logit - largest)` of one row.
fn partition(row: &[f32]) -> (f32, f32) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (largest, row.iter().map(|v| (v - largest).exp()).sum())
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, classes) = layout.shape().dims2()?;
        let logits = values::read(storage, layout)?;
        let losses: Vec<f64> = logits
            .par_chunks(classes.max(1))
            .zip(self.labels.par_iter())
            .map(|(row, label)| {
                let (largest, sum) = partition(row);
                f64::from(largest) + f64::from(sum).ln() - f64::from(row[*label as usize])
            })
            .collect();
        Ok((CpuStorage::F32(vec![losses.iter().sum::<f64>() as f32]), Shape::from(())))
    }

    /// `d logits = softmax(logits) - onehot(label)`, times the scalar that comes in.
    fn bwd(&self, logits: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_, classes) = logits.dims2()?;
        let factor: f32 = gradient.to_scalar()?;
        let mut d = vec![0f32; logits.elem_count()];
        values::with_values(logits, |logits| {
            d.par_chunks_mut(classes.max(1))
                .zip(logits.par_chunks(classes.max(1)))
                .zip(self.labels.par_iter())
                .for_each(|((d, row), label)| {
                    let (largest, sum) = partition(row);
                    for (d, v) in d.iter_mut().zip(row) {
                        *d = factor * (v - largest).exp() / sum;
                    }
                    d[*label as usize] -= factor;
                });
            Ok(())
        })?;
        Ok(Some(values::tensor(d, logits.shape(), logits)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    #[test]
    fn the_fused_loss_agrees_with_the_composed_one() -> Result<()> {
        let logits = (check::tensor(&[5, 13], 1) * 30.0)?;
        check::close(&cross_entropy(&logits, &[0, 12, 3, 3, 7])?, &composed(&logits, &[0, 12, 3, 3, 7])?, 1e-4);
        Ok(())
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        check::gradients(&[&[3, 5]], |t| cross_entropy(&t[0], &[4, 0, 2]));
    }

    #[test]
    fn a_label_beyond_the_classes_is_an_error() {
        assert!(cross_entropy(&check::tensor(&[1, 5], 1), &[5]).is_err());
    }
}
