//! Products of a weight as it is held with a few f32 rows.

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use super::composed::is_composed;
use super::values::{Stored, with_slices};
use super::weight::Weight;
use crate::kernel::low_rank::{down, outer};
use crate::kernel::{Rows, SumOrder};

/// Rows of a weight that are widened at a time: some megabytes. The last piece has up to twice as many, so that none is of the
/// few rows that are summed in another order.
const WIDENED_ROWS: usize = 512;

impl Weight {
    /// `W·aᵀ`, `[rows, rank]` in f32, without graph: this weight `[rows, width]`, `a: [rank, width]` in f32.
    ///
    /// Beside values of a narrow type `a` keeps sixteen bits of mantissa. `values` is the type that the site computes in: a
    /// weight held in a narrower one is widened piece by piece, so that the product does not depend on how it is held.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn products_of_rows(&self, a: &Tensor, values: DType) -> Result<Tensor> {
        let ((rows, width), (rank, _)) = (self.dims2()?, a.dims2()?);
        if a.dims() != [rank, width] {
            bail!("{:?} rows do not fit a weight of shape {:?}", a.dims(), self.dims());
        }
        let a = a.detach().contiguous()?;
        if rows * width * rank == 0 || is_composed(self.device()) {
            return self.to_dtype(DType::F32)?.detach().matmul(&a.t()?);
        }
        let pieces = if self.dtype() == values { 1 } else { (rows / WIDENED_ROWS).max(1) };
        let parts = (0..pieces).map(|piece| {
            let first = piece * WIDENED_ROWS;
            let count = if piece + 1 == pieces { rows - first } else { WIDENED_ROWS };
            let part = self.part(first, count, values)?.detach().contiguous()?;
            match values {
                DType::F32 => by_rows::<f32>(&part, &a),
                DType::BF16 => by_rows::<bf16>(&part, &a),
                _ => part.to_dtype(DType::F32)?.matmul(&a.t()?),
            }
        });
        Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
    }

    /// `Wᵀ·aᵀ`, `[width, rank]` in f32, without graph: this weight `[rows, width]`, `a: [rank, rows]` in f32; otherwise as
    /// [`Weight::products_of_rows`], but widened whole.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn products_of_columns(&self, a: &Tensor, values: DType) -> Result<Tensor> {
        let ((rows, width), (rank, _)) = (self.dims2()?, a.dims2()?);
        if a.dims() != [rank, rows] {
            bail!("{:?} columns do not fit a weight of shape {:?}", a.dims(), self.dims());
        }
        let (weight, a) = (self.to_dtype(values)?.detach().contiguous()?, a.detach().contiguous()?);
        let product = match values {
            _ if rows * width * rank == 0 || is_composed(self.device()) => a.matmul(&weight.to_dtype(DType::F32)?)?,
            DType::F32 => by_columns::<f32>(&weight, &a)?,
            DType::BF16 => by_columns::<bf16>(&weight, &a)?,
            _ => a.matmul(&weight.to_dtype(DType::F32)?)?,
        };
        product.t()?.contiguous()
    }
}

fn by_rows<E: Stored>(weight: &Tensor, a: &Tensor) -> Result<Tensor> {
    let ((rows, width), rank) = (weight.dims2()?, a.dim(0)?);
    let made = with_slices::<E, _>(&[weight], |weight| {
        with_slices::<f32, _>(&[a], |a| {
            Ok(down(&[(Rows::dense(weight[0], rows, width), vec![Rows::dense(a[0], rank, width)])], SumOrder::ByCount)
                .concat())
        })
    })?;
    Tensor::from_vec(made, (rows, rank), weight.device())
}

/// `a·W`, `[rank, width]`.
fn by_columns<E: Stored>(weight: &Tensor, a: &Tensor) -> Result<Tensor> {
    let ((rows, width), rank) = (weight.dims2()?, a.dim(0)?);
    let turned = a.t()?.contiguous()?;
    let made = with_slices::<E, _>(&[weight], |weight| {
        with_slices::<f32, _>(&[&turned], |turned| {
            Ok(outer(&[(vec![Rows::dense(turned[0], rows, rank)], Rows::dense(weight[0], rows, width))]).concat())
        })
    })?;
    Tensor::from_vec(made, (rank, width), weight.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{check, with_composed};

    #[test]
    fn both_ways_give_the_products() -> Result<()> {
        // Rows below and above what is widened at a time.
        for (dtype, rows) in [(DType::F32, 37), (DType::BF16, 37), (DType::BF16, 2 * WIDENED_ROWS + 5)] {
            let values = check::tensor(&[rows, 70], 1).to_dtype(dtype)?;
            let (a, b) = (check::tensor(&[3, 70], 2), check::tensor(&[5, rows], 3));
            let wide = values.to_dtype(DType::F32)?;
            let (of_rows, of_columns) = (wide.matmul(&a.t()?)?, wide.t()?.matmul(&b.t()?)?);
            let weight = Weight::from(values);
            for computing in [dtype, DType::F32] {
                check::close(&weight.products_of_rows(&a, computing)?, &of_rows, 3e-4);
                check::close(&weight.products_of_columns(&b, computing)?, &of_columns, 3e-3);
                check::close(&with_composed(|| weight.products_of_rows(&a, computing))?, &of_rows, 1e-6);
                check::close(&with_composed(|| weight.products_of_columns(&b, computing))?, &of_columns, 1e-6);
            }
            assert!(weight.products_of_rows(&b, dtype).is_err() && weight.products_of_columns(&a, dtype).is_err());
        }
        Ok(())
    }

    #[test]
    fn a_weight_held_in_bf16_gives_f32_values_the_products_of_one_held_in_f32() -> Result<()> {
        let values = check::tensor(&[2 * WIDENED_ROWS + 5, 70], 1).to_dtype(DType::BF16)?;
        let (narrow, wide) = (Weight::from(values.clone()), Weight::from(values.to_dtype(DType::F32)?));
        let bits = |made: Tensor| -> Result<Vec<u32>> {
            Ok(made.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
        };
        let (a, b) = (check::tensor(&[3, 70], 2), check::tensor(&[4, 2 * WIDENED_ROWS + 5], 3));
        let of_rows = |weight: &Weight| bits(weight.products_of_rows(&a, DType::F32)?);
        let of_columns = |weight: &Weight| bits(weight.products_of_columns(&b, DType::F32)?);
        assert!(of_rows(&narrow)? == of_rows(&wide)?);
        assert!(of_columns(&narrow)? == of_columns(&wide)?);
        Ok(())
    }
}
