//! How large a site's shift is, and how many directions it has.

use candle_core::Tensor;
use serde::Serialize;

use super::factors::Product;
use crate::svd::{EXACT_SIDE, svd_of_matrix, svd_of_product};

/// Singular values of a shift and what follows from them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spectrum {
    /// Frobenius norm of the shift.
    pub norm: f64,
    /// exp(−Σ pᵢ·ln pᵢ) with pᵢ = σᵢ² / Σσ²: how many equal singular values would be as spread; 0 of a shift that is zero.
    pub effective_rank: f64,
    /// Singular values, the greatest first: as many as the rank of a low-rank pair, else as the shorter side of the shift.
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
        Ok(Self::of_values(svd_of_product(product.left, product.right).values, rank))
    }

    /// Of `scale · left ⊗ right`, whose singular values are those of one factor times those of the other; of a convolution's
    /// kernel each output is a row. `None` where a factor is too large to be decomposed whole.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn of_kronecker(left: &Tensor, right: &Tensor, scale: f64) -> candle_core::Result<Option<Self>> {
        let (Some(left), Some(right)) = (values_of(left)?, values_of(right)?) else { return Ok(None) };
        let mut values: Vec<f64> =
            left.iter().flat_map(|one| right.iter().map(move |other| scale.abs() * one * other)).collect();
        values.sort_by(|one, other| other.total_cmp(one));
        let count = values.len();
        Ok(Some(Self::of_values(values, count)))
    }

    /// Of a shift as it is, a row for each output; `None` where it is too large to be decomposed whole.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn of_shift(shift: &Tensor) -> candle_core::Result<Option<Self>> {
        Ok(values_of(shift)?.map(|values| {
            let count = values.len();
            Self::of_values(values, count)
        }))
    }

    /// Of singular values, the greatest first; those that are not there, up to `count`, are 0.
    fn of_values(mut values: Vec<f64>, count: usize) -> Self {
        let energy: f64 = values.iter().map(|value| value * value).sum();
        let shares = values.iter().map(|value| value * value / energy).filter(|share| *share > 0.0);
        let effective_rank = if energy > 0.0 { (-shares.map(|p| p * p.ln()).sum::<f64>()).exp() } else { 0.0 };
        values.resize(count, 0.0);
        Self { norm: energy.sqrt(), effective_rank, spectrum: values }
    }
}

/// All singular values of a matrix or of a kernel, the greatest first; `None` where even the shorter side is too long.
fn values_of(matrix: &Tensor) -> candle_core::Result<Option<Vec<f64>>> {
    let matrix = matrix.flatten_from(1)?;
    let (rows, columns) = matrix.dims2()?;
    let side = rows.min(columns);
    if side > EXACT_SIDE {
        return Ok(None);
    }
    let mut values = svd_of_matrix(&matrix, side)?.values;
    values.resize(side, 0.0);
    Ok(Some(values))
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

    /// A Kronecker product by its factors and as the matrix that it is; a factor that is a kernel; one that is nothing.
    #[test]
    fn a_kronecker_product_has_the_products_of_its_factors_values() {
        let value = |seed: u64, index: usize| janus_core::noise::normal(seed, index as u64) as f32;
        let tensor = |seed: u64, shape: &[usize]| {
            let count = shape.iter().product();
            Tensor::from_vec((0..count).map(|index| value(seed, index)).collect(), shape, &Device::Cpu).unwrap()
        };
        for right_shape in [&[3, 4][..], &[3, 2, 5, 1]] {
            let (left, right) = (tensor(1, &[2, 5]), tensor(2, right_shape));
            let told = Spectrum::of_kronecker(&left, &right, -0.5).unwrap().unwrap();
            let flat = right.flatten_from(1).unwrap();
            let (rows, columns) = flat.dims2().unwrap();
            let whole =
                left.reshape((2, 1, 5, 1)).unwrap().broadcast_mul(&flat.reshape((1, rows, 1, columns)).unwrap());
            let whole = (whole.unwrap().reshape((2 * rows, 5 * columns)).unwrap() * -0.5).unwrap();
            let truth = Spectrum::of_shift(&whole).unwrap().unwrap();
            assert_eq!((told.spectrum.len(), truth.spectrum.len()), (6, 6));
            let near = |one: f64, other: f64| (one - other).abs() < 1e-5 * truth.norm;
            assert!(told.spectrum.iter().zip(&truth.spectrum).all(|(a, b)| near(*a, *b)), "{told:?} {truth:?}");
            assert!(near(told.norm, truth.norm) && (told.effective_rank - truth.effective_rank).abs() < 1e-4);
        }
        let zero = Spectrum::of_kronecker(
            &tensor(1, &[2, 5]),
            &Tensor::zeros((3, 4), candle_core::DType::F32, &Device::Cpu).unwrap(),
            1.0,
        );
        let zero = zero.unwrap().unwrap();
        assert_eq!((zero.norm, zero.effective_rank, zero.spectrum), (0.0, 0.0, vec![0.0; 6]));
        let large = Tensor::zeros((EXACT_SIDE + 1, EXACT_SIDE + 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(Spectrum::of_shift(&large).unwrap(), None);
    }
}
