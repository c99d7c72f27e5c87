//! Cross-entropy of hidden states through a frozen head, without the logits ever being held whole.

use candle_core::{D, DType, Result, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use super::composed::is_composed;
use super::values::{Stored, with_slices};
use super::weight::{Weight, with_weights};
use super::{cross_entropy, linear};
use crate::kernel::vector::{exp, sum, vectorized};
use crate::kernel::{Finish, Rows, Term, Weights, product};

/// Classes whose logits are formed at a time: 1024 rows of 2048 in bf16 are 4 MiB, which the outer caches keep for the way back.
const PANEL_CLASSES: usize = 1024;

/// Rows whose logits are formed at a time: a panel's logits of 256 rows are 1 MiB.
const CHUNK_ROWS: usize = 256;

/// What a head says of some labelled rows.
#[derive(Debug, Clone)]
pub struct HeadLoss {
    /// Summed cross-entropy, a scalar in f32 with its graph.
    pub sum: Tensor,
    /// Rows whose largest logit is the label's, a scalar in u32; of equal logits the first counts. It lies where the sum does, so
    /// that nobody waits for it who does not ask.
    pub correct: Tensor,
}

impl HeadLoss {
    /// The same from logits that are there: `[rows, classes]`. The slow truth, and the path of trainable heads.
    ///
    /// # Errors
    /// Another number of labels than rows, or a label beyond the classes.
    pub fn of_logits(logits: &Tensor, labels: &[u32]) -> Result<Self> {
        let sum = cross_entropy(logits, labels)?;
        if labels.is_empty() {
            return Ok(Self { sum, correct: Tensor::new(0u32, logits.device())? });
        }
        let best = logits.detach().to_dtype(DType::F32)?.argmax(D::Minus1)?;
        let is_correct = best.eq(&Tensor::from_slice(labels, labels.len(), logits.device())?)?;
        Ok(Self { sum, correct: is_correct.to_dtype(DType::U32)?.sum_all()? })
    }
}

/// `Σ_rows log Σ_j exp(logits_j) - logits_label` of `logits = hidden·weightᵀ + bias`, logits in f32.
/// `hidden: [rows, hidden]`, `weight: [classes, hidden]`, `bias: [classes]`.
///
/// The gradient flows to `hidden` only. As it is a factor times a tensor that the forward knows, it is formed there: the
/// head is walked once, panel by panel, with a running maximum and sum as in attention (Milakov and Gimelshein,
/// arXiv:1805.02867), and no more than a panel's logits of a chunk of rows exist at any time.
///
/// # Errors
/// Shapes that do not fit, another number of labels than rows, or a label beyond the classes.
pub fn head_loss(hidden: &Tensor, weight: &Weight, bias: Option<&Tensor>, labels: &[u32]) -> Result<HeadLoss> {
    let (rows, width) = hidden.dims2()?;
    let (classes, input) = weight.dims2()?;
    let bias_dims = bias.map(Tensor::dims);
    if input != width || bias_dims.is_some_and(|dims| dims != [classes]) {
        bail!("hidden states of width {width} and bias {bias_dims:?} do not fit a head of shape [{classes}, {input}]");
    }
    if labels.len() != rows {
        bail!("{} labels for {rows} hidden states", labels.len());
    }
    if let Some(label) = labels.iter().find(|l| **l as usize >= classes) {
        bail!("label {label} is outside {classes} classes");
    }
    let (detached, weight, bias) = (hidden.detach(), weight.prepared()?, bias.map(Tensor::detach));
    let parts = if is_composed(hidden.device()) {
        composed(&detached, &weight, bias.as_ref(), labels, hidden.track_op())?
    } else {
        let weight = weight.meeting(detached.dtype())?;
        let tracked = hidden.track_op();
        match detached.dtype() {
            DType::F32 => panels::<f32>(&detached, &weight, bias.as_ref(), labels, tracked)?,
            DType::BF16 => panels::<bf16>(&detached, &weight, bias.as_ref(), labels, tracked)?,
            other => bail!("a head's loss is computed in f32 or bf16, got {other:?}"),
        }
    };
    let sum = parts.sum;
    let sum = match parts.gradient {
        // Zero with a slope: the value stays as it is, and the gradient is the one already known.
        Some(slope) => {
            (sum + ((hidden.to_dtype(DType::F32)? - detached.to_dtype(DType::F32)?)? * slope)?.sum_all()?)?
        }
        None => sum,
    };
    Ok(HeadLoss { sum, correct: parts.correct })
}

/// The loss of all rows and what the tape needs of it.
struct Parts {
    /// A scalar in f32.
    sum: Tensor,
    /// A scalar in u32.
    correct: Tensor,
    /// `d sum / d hidden`, `[rows, hidden]` in f32, where it was asked for.
    gradient: Option<Tensor>,
}

/// What is known of one row after some of the classes.
#[derive(Clone, Copy)]
struct Running {
    /// Largest logit so far and the first class that has it.
    largest: f32,
    best: usize,
    /// `Σ exp(logit - largest)`.
    sum: f32,
    /// The label's logit, once its panel was met.
    label: f32,
}

/// Panels of classes outside, chunks of rows inside, so that each weight is read once.
fn panels<E: Stored>(
    hidden: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    labels: &[u32],
    tracked: bool,
) -> Result<Parts> {
    let (rows, width) = hidden.dims2()?;
    let (classes, _) = weight.dims2()?;
    let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.to_vec1::<f32>()).transpose()?;
    let start = Running { largest: f32::NEG_INFINITY, best: 0, sum: 0.0, label: 0.0 };
    let mut running = vec![start; rows];
    // `Σ_j exp(logit_j - largest) · weight_j` of each row, rescaled whenever a larger logit is met.
    let mut pulled = vec![0f32; if tracked { rows * width } else { 0 }];
    let mut logits = vec![0f32; CHUNK_ROWS.min(rows) * PANEL_CLASSES.min(classes)];
    let mut shares = E::zeros(logits.len());
    let hidden = hidden.contiguous()?;
    let mut walk = |hidden: &[E], weight: Weights<'_, E>| {
        let hidden = Rows::dense(hidden, rows, width);
        for first in (0..classes).step_by(PANEL_CLASSES) {
            let count = PANEL_CLASSES.min(classes - first);
            let panel = weight.part(first..first + count, 0..width);
            let bias = bias.as_ref().map(|bias| &bias[first..first + count]);
            for from in (0..rows).step_by(CHUNK_ROWS) {
                let chunk = from..(from + CHUNK_ROWS).min(rows);
                let logits = &mut logits[..chunk.len() * count];
                let shares = &mut shares[..chunk.len() * count];
                let term = Term::transposed(hidden.part(chunk.clone(), 0..width), panel);
                product(&[term], Finish::default(), logits, count);
                let rescale: Vec<f32> = logits
                    .par_chunks_mut(count)
                    .zip(shares.par_chunks_mut(count))
                    .zip(&mut running[chunk.clone()])
                    .zip(&labels[chunk.clone()])
                    .map(|(((logits, shares), running), label)| {
                        running.meet(logits, shares, bias, first, *label as usize)
                    })
                    .collect();
                if tracked {
                    let pulled = &mut pulled[chunk.start * width..chunk.end * width];
                    for (row, factor) in pulled.chunks_exact_mut(width.max(1)).zip(rescale) {
                        if factor != 1.0 {
                            row.iter_mut().for_each(|value| *value *= factor);
                        }
                    }
                    let term = Term::plain(Rows::dense(shares, chunk.len(), count), panel);
                    product(&[term], Finish { accumulate: true, ..Finish::default() }, pulled, width);
                }
            }
        }
        if tracked {
            let rows = pulled.par_chunks_mut(width.max(1)).zip(&running).zip(labels);
            rows.for_each(|((row, running), label)| {
                let label = weight.wide_row(*label as usize);
                row.iter_mut().zip(&*label).for_each(|(value, w)| *value = *value / running.sum - w);
            });
        }
    };
    with_slices::<E, _>(&[&hidden], |hidden| {
        with_weights::<E, _>(&[weight], |weight| {
            walk(hidden[0], weight[0]);
            Ok(())
        })
    })?;
    let losses = running.iter().map(|r| f64::from(r.largest) + f64::from(r.sum).ln() - f64::from(r.label));
    let correct = running.iter().zip(labels).filter(|(r, label)| r.best == **label as usize).count();
    let gradient = tracked.then(|| Tensor::from_vec(pulled, (rows, width), hidden.device())).transpose()?;
    let sum = Tensor::new(losses.sum::<f64>() as f32, hidden.device())?;
    Ok(Parts { sum, correct: Tensor::new(correct as u32, hidden.device())?, gradient })
}

vectorized! {
    /// Writes `exp(logit - largest)`, rounded, and returns their sum, not rounded.
    fn exponentials<E>(logits: &mut [f32], largest: f32, shares: &mut [E]) -> f32 {
        for (logit, share) in logits.iter_mut().zip(shares) {
            *logit = exp(*logit - largest);
            *share = E::narrow(*logit);
        }
        sum(logits.len(), |i| logits[i])
    }
}

impl Running {
    /// Takes in the logits of the classes from `first` on, writes `exp(logit - largest)`, and returns the factor for what
    /// was summed with the former largest logit.
    fn meet<E: Stored>(
        &mut self,
        logits: &mut [f32],
        shares: &mut [E],
        bias: Option<&[f32]>,
        first: usize,
        label: usize,
    ) -> f32 {
        if let Some(bias) = bias {
            logits.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
        }
        if let Some(logit) = label.checked_sub(first).and_then(|place| logits.get(place)) {
            self.label = *logit;
        }
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut factor = 1.0;
        if largest > self.largest {
            factor = (self.largest - largest).exp();
            self.best = first + logits.iter().position(|logit| *logit == largest).unwrap_or(0);
            self.largest = largest;
        }
        self.sum = self.sum * factor + exponentials(logits, self.largest, shares);
        factor
    }
}

/// The same by candle's operations, a chunk of rows at a time: the path of other devices.
fn composed(hidden: &Tensor, weight: &Weight, bias: Option<&Tensor>, labels: &[u32], tracked: bool) -> Result<Parts> {
    let weight = &weight.to_dtype(hidden.dtype())?;
    let (sum, correct) = (Tensor::new(0f32, hidden.device())?, Tensor::new(0u32, hidden.device())?);
    let mut parts = Parts { sum, correct, gradient: None };
    let mut gradients = Vec::new();
    for (chunk, labels) in labels.chunks(CHUNK_ROWS).enumerate() {
        let hidden = hidden.narrow(0, chunk * CHUNK_ROWS, labels.len())?;
        let logits = linear::linear(&hidden, weight, bias)?.to_dtype(DType::F32)?;
        let loss = HeadLoss::of_logits(&logits, labels)?;
        parts.sum = (parts.sum + loss.sum)?;
        parts.correct = (parts.correct + loss.correct)?;
        if tracked {
            let probabilities = candle_nn::ops::softmax(&logits, D::Minus1)?.to_dtype(weight.dtype())?;
            let labels = Tensor::from_slice(labels, labels.len(), hidden.device())?;
            let pulled = probabilities.matmul(weight)?.to_dtype(DType::F32)?;
            gradients.push((pulled - weight.index_select(&labels, 0)?.to_dtype(DType::F32)?)?);
        }
    }
    if !gradients.is_empty() {
        parts.gradient = Some(Tensor::cat(&gradients, 0)?);
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;
    use candle_core::Var;

    /// Rows, width and classes below, at and above a chunk and a panel.
    const SHAPES: [(usize, usize, usize); 5] =
        [(1, 24, 37), (3, 40, 1300), (261, 9, 70), (5, 17, PANEL_CLASSES), (CHUNK_ROWS, 7, 2 * PANEL_CLASSES + 1)];

    fn count(correct: &Tensor) -> Result<u32> {
        correct.to_scalar()
    }

    struct Case {
        hidden: Var,
        weight: Weight,
        bias: Option<Tensor>,
        labels: Vec<u32>,
    }

    fn case((rows, width, classes): (usize, usize, usize), dtype: DType, biased: bool) -> Result<Case> {
        // Large enough that the running maximum moves from panel to panel, and the largest logit is often the label's.
        let hidden = (check::tensor(&[rows, width], 1) * 6.0)?.to_dtype(dtype)?;
        let weight = check::tensor(&[classes, width], 2).to_dtype(dtype)?;
        let bias = if biased { Some(check::tensor(&[classes], 3).to_dtype(dtype)?) } else { None };
        let logits = linear::linear(&hidden.to_dtype(DType::F32)?, &weight.to_dtype(DType::F32)?, None)?;
        let best: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
        let label = |(row, best): (usize, &u32)| if row % 3 == 0 { *best } else { (row * 7919 % classes) as u32 };
        let labels = best.iter().enumerate().map(label).collect();
        Ok(Case { hidden: Var::from_tensor(&hidden)?, weight: weight.into(), bias, labels })
    }

    /// Loss, gradient times 0.3 and count by whole logits in f32.
    fn slow(case: &Case) -> Result<(HeadLoss, Tensor)> {
        let wide = |t: &Tensor| t.detach().to_dtype(DType::F32);
        let hidden = Var::from_tensor(&wide(&case.hidden)?)?;
        let bias = case.bias.as_ref().map(wide).transpose()?;
        let logits = linear::linear(&hidden, &case.weight.to_dtype(DType::F32)?, bias.as_ref())?;
        let loss = HeadLoss::of_logits(&logits, &case.labels)?;
        let gradients = (&loss.sum * 0.3)?.backward()?;
        Ok((loss, gradients.get(&hidden).unwrap().clone()))
    }

    #[test]
    fn panels_agree_with_whole_logits() -> Result<()> {
        for shape in SHAPES {
            for (dtype, biased) in [(DType::F32, false), (DType::F32, true), (DType::BF16, true)] {
                let case = case(shape, dtype, biased)?;
                let (expected, expected_gradient) = slow(&case)?;
                let loss = head_loss(&case.hidden, &case.weight, case.bias.as_ref(), &case.labels)?;
                let per_row = (loss.sum.to_scalar::<f32>()? - expected.sum.to_scalar::<f32>()?) / shape.0 as f32;
                assert!(per_row.abs() < 1e-5, "{shape:?} {dtype:?}: the loss differs by {per_row:e} a row");
                assert_eq!(count(&loss.correct)?, count(&expected.correct)?, "{shape:?}");
                assert!(count(&expected.correct)? > 0, "{shape:?}");
                let gradients = (&loss.sum * 0.3)?.backward()?;
                // A gradient below 2 in bf16 is rounded by at most 2^-8.
                let bound = if dtype == DType::F32 { 1e-5 } else { 4e-3 };
                check::close(gradients.get(&case.hidden).unwrap(), &expected_gradient, bound);
            }
        }
        Ok(())
    }

    #[test]
    fn the_composed_path_agrees_too() -> Result<()> {
        for shape in [(3, 40, 130), (CHUNK_ROWS + 5, 9, 70)] {
            let case = case(shape, DType::F32, true)?;
            let (expected, expected_gradient) = slow(&case)?;
            let parts = composed(&case.hidden.detach(), &case.weight, case.bias.as_ref(), &case.labels, true)?;
            let difference = (parts.sum - expected.sum)?.to_scalar::<f32>()? / shape.0 as f32;
            assert!(difference.abs() < 1e-5, "{difference:e}");
            assert_eq!(count(&parts.correct)?, count(&expected.correct)?);
            check::close(&(parts.gradient.unwrap() * 0.3)?, &expected_gradient, 1e-5);
        }
        Ok(())
    }

    #[test]
    fn untracked_and_tracked_sums_have_the_same_bits() -> Result<()> {
        let case = case((300, 9, 1500), DType::F32, false)?;
        let tracked = head_loss(&case.hidden, &case.weight, None, &case.labels)?.sum;
        let untracked = head_loss(&case.hidden.detach(), &case.weight, None, &case.labels)?.sum;
        assert!(tracked.track_op() && !untracked.track_op());
        assert_eq!(tracked.to_scalar::<f32>()?.to_bits(), untracked.to_scalar::<f32>()?.to_bits());
        Ok(())
    }

    #[test]
    fn of_equal_logits_the_first_is_named() -> Result<()> {
        let (hidden, weight) =
            (check::tensor(&[3, 4], 1), Tensor::zeros((1030, 4), DType::F32, &candle_core::Device::Cpu)?);
        let loss = head_loss(&hidden, &weight.clone().into(), None, &[0, 1, 1029])?;
        let whole = HeadLoss::of_logits(&linear::linear(&hidden, &weight, None)?, &[0, 1, 1029])?;
        assert_eq!((count(&loss.correct)?, count(&whole.correct)?), (1, 1));
        let (got, expected) = (loss.sum.to_scalar::<f32>()?, 3.0 * 1030f32.ln());
        assert!((got - expected).abs() < 1e-4, "{got} {expected}");
        Ok(())
    }

    #[test]
    fn no_rows_have_no_loss() -> Result<()> {
        let hidden = Var::zeros((0, 4), DType::F32, &candle_core::Device::Cpu)?;
        let loss = head_loss(&hidden, &check::tensor(&[5, 4], 1).into(), None, &[])?;
        assert_eq!((loss.sum.to_scalar::<f32>()?, count(&loss.correct)?), (0.0, 0));
        Ok(())
    }

    #[test]
    fn a_misfit_is_an_error() {
        let (hidden, weight) = (check::tensor(&[2, 4], 1), Weight::from(check::tensor(&[5, 4], 2)));
        assert!(head_loss(&hidden, &weight, None, &[4, 0]).is_ok());
        assert!(head_loss(&hidden, &weight, None, &[5, 0]).is_err(), "a label beyond the classes");
        assert!(head_loss(&hidden, &weight, None, &[0]).is_err(), "too few labels");
        assert!(head_loss(&hidden, &check::tensor(&[5, 3], 2).into(), None, &[4, 0]).is_err(), "another width");
        assert!(head_loss(&hidden, &weight, Some(&check::tensor(&[4], 3)), &[4, 0]).is_err(), "another bias");
    }
}
