//! Which of some belong together, told by their vectors: the loss that pulls pairs close and pushes others apart.

use candle_core::{D, Result, Tensor};
use janus_core::ops::HeadLoss;

/// The temperature at first.
pub const FIRST_TEMPERATURE: f64 = 0.07;
/// The least that a temperature becomes: CLIP's bound (Radford et al., arXiv:2103.00020).
const LEAST_TEMPERATURE: f64 = 0.01;
/// Added to squared lengths before their root is taken.
const EPS: f64 = 1e-12;
/// What is added to the logit of a pair that is no negative.
const NEVER: f32 = -1e9;

/// Rows of length one.
pub fn unit(vectors: &Tensor) -> Result<Tensor> {
    let squares = vectors.sqr()?.sum_keepdim(D::Minus1)?;
    vectors.broadcast_div(&(squares + EPS)?.sqrt()?)
}

/// The loss of some pairs, summed over them, and how many were told from the left.
#[derive(Debug)]
pub struct Contrast {
    /// A scalar with its graph.
    pub sum: Tensor,
    /// Rows of the left whose nearest on the right is their own, a scalar in u32.
    pub correct: Tensor,
}

/// Symmetric InfoNCE (van den Oord et al., arXiv:1807.03748; both ways as in CLIP): the mean over both ways of the
/// cross-entropy of each vector's own partner among all of the batch. `left` and `right: [pairs, width]`, of length one;
/// `log_temperature: [1]`. Pairs of which `is_same` says that they show the same are not held against each other.
///
/// # Errors
/// Shapes that do not fit.
pub fn info_nce(
    left: &Tensor,
    right: &Tensor,
    log_temperature: &Tensor,
    is_same: impl Fn(usize, usize) -> bool,
) -> Result<Contrast> {
    let pairs = left.dim(0)?;
    let temperature = log_temperature.maximum(LEAST_TEMPERATURE.ln() as f32)?.exp()?;
    let logits = left.matmul(&right.t()?)?.broadcast_div(&temperature)?;
    let places = (0..pairs * pairs).map(|place| (place / pairs, place % pairs));
    let never: Vec<f32> = places.map(|(i, j)| if i != j && is_same(i, j) { NEVER } else { 0.0 }).collect();
    let logits = (logits + Tensor::from_vec(never, (pairs, pairs), left.device())?)?;
    let own: Vec<u32> = (0..pairs as u32).collect();
    let forth = HeadLoss::of_logits(&logits, &own)?;
    let back = HeadLoss::of_logits(&logits.t()?.contiguous()?, &own)?;
    Ok(Contrast { sum: ((forth.sum + back.sum)? * 0.5)?, correct: forth.correct })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn vectors<const N: usize>(values: &[[f32; 2]; N]) -> Tensor {
        unit(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap()
    }

    #[test]
    fn the_loss_is_that_of_the_definition() {
        let (left, right) =
            (vectors(&[[1.0, 0.0], [1.0, 1.0], [0.0, -2.0]]), vectors(&[[3.0, 1.0], [0.0, 1.0], [1.0, -1.0]]));
        let temperature = 0.5f64;
        let log = Tensor::new(&[temperature.ln() as f32], &Device::Cpu).unwrap();
        let (a, b) = (left.to_vec2::<f32>().unwrap(), right.to_vec2::<f32>().unwrap());
        let logit = |i: usize, j: usize| f64::from(a[i][0] * b[j][0] + a[i][1] * b[j][1]) / temperature;
        let loss = |hidden: &dyn Fn(usize, usize) -> bool| -> f64 {
            let of = |i: usize, logit: &dyn Fn(usize) -> f64, hidden: &dyn Fn(usize) -> bool| {
                (0..3).filter(|j| *j == i || !hidden(*j)).map(|j| logit(j).exp()).sum::<f64>().ln() - logit(i)
            };
            let both = |i| of(i, &|j| logit(i, j), &|j| hidden(i, j)) + of(i, &|j| logit(j, i), &|j| hidden(j, i));
            (0..3).map(|i| both(i) / 2.0).sum()
        };
        let got = info_nce(&left, &right, &log, |_, _| false).unwrap();
        assert!((f64::from(got.sum.to_scalar::<f32>().unwrap()) - loss(&|_, _| false)).abs() < 1e-5);
        let correct = (0..3).filter(|i| (0..3).all(|j| logit(*i, *i) >= logit(*i, j))).count();
        assert_eq!(got.correct.to_scalar::<u32>().unwrap() as usize, correct);
        let same = |i: usize, j: usize| (i.min(j), i.max(j)) == (0, 2);
        let got = info_nce(&left, &right, &log, same).unwrap();
        assert!((f64::from(got.sum.to_scalar::<f32>().unwrap()) - loss(&same)).abs() < 1e-5);
        assert!((loss(&same) - loss(&|_, _| false)).abs() > 1e-2);
    }

    #[test]
    fn temperatures_stay_above_their_bound() {
        let pair = vectors(&[[1.0, 0.0], [0.0, 1.0]]);
        let at = |log: f32| {
            let log = Tensor::new(&[log], &Device::Cpu).unwrap();
            info_nce(&pair, &pair, &log, |_, _| false).unwrap().sum.to_scalar::<f32>().unwrap()
        };
        assert_eq!(at(-30.0), at(LEAST_TEMPERATURE.ln() as f32));
        assert!(at(0.0) > at(-1.0));
    }
}
