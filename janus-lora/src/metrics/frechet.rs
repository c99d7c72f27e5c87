//! Fréchet distance of two sets of vectors, each taken for a Gaussian (Dowson and Landau, J. Multivariate Anal. 12(3), 1982).
//!
//! |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·(Σ₁·Σ₂)^½) with unbiased covariances, as torchmetrics' `FrechetInceptionDistance` has it
//! (`torchmetrics/image/fid.py`) whatever the features.
//!
//! Covariances are never made. Let the lines of X and Y be the n and m vectors less their means: Σ₁·Σ₂ is XᵀX·YᵀY / (n−1)(m−1)
//! and has, but for zeros, the eigenvalues of M·Mᵀ with M = X·Yᵀ / √((n−1)(m−1)). The trace of its root is thus the sum of the
//! singular values of M, which is `[n, m]`: exact also of fewer vectors than dimensions, and cheap of few.

use crate::jacobi::{dot, orthogonalise};

/// `None` of less than two vectors on a side, of vectors of different lengths and of ones that are not finite.
pub(crate) fn frechet(one: &[Vec<f64>], other: &[Vec<f64>]) -> Option<f64> {
    let dimensions = one.first()?.len();
    let all = || one.iter().chain(other);
    if one.len().min(other.len()) < 2
        || all().any(|vector| vector.len() != dimensions)
        || all().flatten().any(|value| !value.is_finite())
    {
        return None;
    }
    let (one_mean, one) = centred(one, dimensions);
    let (other_mean, other) = centred(other, dimensions);
    let means: f64 = one_mean.iter().zip(&other_mean).map(|(one, other)| (one - other).powi(2)).sum();
    let trace = |lines: &[Vec<f64>]| lines.iter().map(|line| dot(line, line)).sum::<f64>();
    // The fewer lines there are, the fewer pairs are to turn.
    let (few, many) = if one.len() <= other.len() { (&one, &other) } else { (&other, &one) };
    let products = few.iter().map(|left| many.iter().map(|right| dot(left, right)).collect()).collect();
    let distance = means + trace(&one) + trace(&other) - 2.0 * singular_sum(products);
    // Rounding may leave less than nothing.
    distance.is_finite().then_some(distance.max(0.0))
}

/// The mean, and the vectors less it, divided so that their products sum to covariances.
fn centred(vectors: &[Vec<f64>], dimensions: usize) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut mean = vec![0.0; dimensions];
    for vector in vectors {
        mean.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value / vectors.len() as f64);
    }
    let scale = 1.0 / (vectors.len() as f64 - 1.0).sqrt();
    let less = |vector: &Vec<f64>| vector.iter().zip(&mean).map(|(value, mean)| (value - mean) * scale).collect();
    let lines = vectors.iter().map(less).collect();
    (mean, lines)
}

/// Sum of a matrix' singular values.
fn singular_sum(mut lines: Vec<Vec<f64>>) -> f64 {
    orthogonalise(&mut lines, None);
    lines.iter().map(|line| dot(line, line).sqrt()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/metrics_golden.py` with torchmetrics.
    #[test]
    fn distances_are_those_of_torchmetrics() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/metrics/frechet.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 5);
        for case in cases {
            let vectors = |name: &str| -> Vec<Vec<f64>> { serde_json::from_value(case[name].clone()).unwrap() };
            let number = |name: &str| case[name].as_f64().unwrap();
            let (one, other, truth) = (vectors("one"), vectors("other"), number("distance"));
            let bound = number("tolerance") * truth.max(1.0);
            for distance in [frechet(&one, &other).unwrap(), frechet(&other, &one).unwrap()] {
                assert!((distance - truth).abs() < bound, "{distance} {truth}");
            }
        }
    }

    /// Of one vector in each direction: the roots of both covariances are known.
    #[test]
    fn shifted_and_stretched_is_known() {
        let one = [vec![1.0, 0.0, 0.0], vec![-1.0, 0.0, 0.0]];
        let other = [vec![3.0, 0.0, 5.0], vec![-3.0, 0.0, 5.0]];
        // Variances are 2 and 18: 25 + 2 + 18 − 2·6.
        assert!((frechet(&one, &other).unwrap() - 33.0).abs() < 1e-12);
        assert!(frechet(&one, &one).unwrap() < 1e-12);
    }

    #[test]
    fn what_has_no_covariance_has_no_distance() {
        let two = vec![vec![1.0, 2.0], vec![3.0, 5.0]];
        assert_eq!(frechet(&two, &two[..1]), None);
        assert_eq!(frechet(&[], &two), None);
        assert_eq!(frechet(&two, &[vec![1.0], vec![2.0, 3.0]]), None);
        assert_eq!(frechet(&two, &[vec![1.0, f64::NAN], vec![2.0, 3.0]]), None);
        assert_eq!(frechet(&two, &[vec![1.0, 1e300], vec![2.0, -1e300]]), None);
        assert_eq!(frechet(&[vec![7.0], vec![7.0]], &[vec![7.0], vec![7.0]]), Some(0.0));
    }
}
