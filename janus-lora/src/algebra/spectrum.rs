//! How large a site's shift is, and how many directions it has.

use candle_core::Tensor;
use serde::Serialize;

use super::factors::Product;
use crate::svd::svd_of_product;

/// Singular values of a shift and what follows from them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spectrum {
    /// Frobenius norm of `scale · B·A`.
    pub norm: f64,
    /// exp(−Σ pᵢ·ln pᵢ) with pᵢ = σᵢ² / Σσ²: how many equal singular values would be as spread; 0 of a shift that is zero.
    pub effective_rank: f64,
    /// Singular values, the greatest first, as many as the rank.
    pub spectrum: Vec<f64>,
}

impl Spectrum {
    /// Of `scale · B·A`, with A and B as in the files.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn of(a: &Tensor, b: &Tensor, scale: f64) -> candle_core::Result<Self> {
        let product = Product::of(a, b, scale)?;
        let rank = product.left.len();
        let mut values = svd_of_product(product.left, product.right).values;
        let energy: f64 = values.iter().map(|value| value * value).sum();
        let shares = values.iter().map(|value| value * value / energy).filter(|share| *share > 0.0);
        let effective_rank = if values.is_empty() { 0.0 } else { (-shares.map(|p| p * p.ln()).sum::<f64>()).exp() };
        values.resize(rank, 0.0);
        Ok(Self { norm: energy.sqrt(), effective_rank, spectrum: values })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn of(a: &[[f32; 3]], b: &[[f32; 2]], scale: f64) -> Spectrum {
        let tensor = |values: Vec<f32>, width: usize| {
            Tensor::from_vec(values.clone(), (values.len() / width, width), &Device::Cpu)
        };
        let (a, b) = (tensor(a.concat(), 3).unwrap(), tensor(b.concat(), 2).unwrap());
        Spectrum::of(&a, &b, scale).unwrap()
    }

    #[test]
    fn norms_and_ranks_of_known_shifts() {
        let a = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]];
        let equal = of(&a, &[[2.0, 0.0], [0.0, 2.0]], -1.5);
        assert!((equal.norm - 18f64.sqrt()).abs() < 1e-12 && (equal.effective_rank - 2.0).abs() < 1e-12, "{equal:?}");
        assert!(equal.spectrum.iter().all(|value| (value - 3.0).abs() < 1e-12), "{equal:?}");
        let one = of(&a, &[[3.0, 0.0], [4.0, 0.0]], 1.0);
        assert!((one.norm - 5.0).abs() < 1e-12 && (one.effective_rank - 1.0).abs() < 1e-12, "{one:?}");
        assert_eq!(one.spectrum.len(), 2);
        assert_eq!(one.spectrum[1], 0.0);
        let none = of(&a, &[[0.0; 2]; 2], 1.0);
        assert_eq!((none.norm, none.effective_rank, none.spectrum), (0.0, 0.0, vec![0.0; 2]));
    }
}
