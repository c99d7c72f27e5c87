//! Products of a matrix as it is stored with a few f32 rows.

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use super::composed::is_composed;
use super::values::{Stored, with_slices};
use crate::kernel::Rows;
use crate::kernel::low_rank::{down, outer};

/// `W·aᵀ`, `[rows, rank]` in f32, without graph: `weight: [rows, width]` in f32 or bf16, `a: [rank, width]` in f32.
///
/// # Errors
/// Shapes that do not fit.
pub fn products_of_rows(weight: &Tensor, a: &Tensor) -> Result<Tensor> {
    let ((rows, width), (rank, _)) = (weight.dims2()?, a.dims2()?);
    if a.dims() != [rank, width] {
        bail!("{:?} rows do not fit a weight of shape {:?}", a.dims(), weight.dims());
    }
    let (weight, a) = (weight.detach().contiguous()?, a.detach().contiguous()?);
    let is_empty = rows * width * rank == 0;
    match weight.dtype() {
        _ if is_empty || is_composed(weight.device()) => weight.to_dtype(DType::F32)?.matmul(&a.t()?),
        DType::F32 => by_rows::<f32>(&weight, &a),
        DType::BF16 => by_rows::<bf16>(&weight, &a),
        _ => weight.to_dtype(DType::F32)?.matmul(&a.t()?),
    }
}

/// `Wᵀ·aᵀ`, `[width, rank]` in f32, without graph: `weight: [rows, width]` in f32 or bf16, `a: [rank, rows]` in f32.
///
/// # Errors
/// Shapes that do not fit.
pub fn products_of_columns(weight: &Tensor, a: &Tensor) -> Result<Tensor> {
    let ((rows, width), (rank, _)) = (weight.dims2()?, a.dims2()?);
    if a.dims() != [rank, rows] {
        bail!("{:?} columns do not fit a weight of shape {:?}", a.dims(), weight.dims());
    }
    let (weight, a) = (weight.detach().contiguous()?, a.detach().contiguous()?);
    let product = match weight.dtype() {
        _ if rows * width * rank == 0 || is_composed(weight.device()) => a.matmul(&weight.to_dtype(DType::F32)?)?,
        DType::F32 => by_columns::<f32>(&weight, &a)?,
        DType::BF16 => by_columns::<bf16>(&weight, &a)?,
        _ => a.matmul(&weight.to_dtype(DType::F32)?)?,
    };
    product.t()?.contiguous()
}

fn by_rows<E: Stored>(weight: &Tensor, a: &Tensor) -> Result<Tensor> {
    let ((rows, width), rank) = (weight.dims2()?, a.dim(0)?);
    let made = with_slices::<E, _>(&[weight], |weight| {
        with_slices::<f32, _>(&[a], |a| {
            Ok(down(&[(Rows::dense(weight[0], rows, width), vec![Rows::dense(a[0], rank, width)])]).concat())
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
        for dtype in [DType::F32, DType::BF16] {
            let weight = check::tensor(&[37, 70], 1).to_dtype(dtype)?;
            let (a, b) = (check::tensor(&[3, 70], 2), check::tensor(&[5, 37], 3));
            let wide = weight.to_dtype(DType::F32)?;
            let (rows, columns) = (wide.matmul(&a.t()?)?, wide.t()?.matmul(&b.t()?)?);
            check::close(&products_of_rows(&weight, &a)?, &rows, 3e-4);
            check::close(&products_of_columns(&weight, &b)?, &columns, 3e-4);
            check::close(&with_composed(|| products_of_rows(&weight, &a))?, &rows, 1e-6);
            check::close(&with_composed(|| products_of_columns(&weight, &b))?, &columns, 1e-6);
            assert!(products_of_rows(&weight, &b).is_err() && products_of_columns(&weight, &a).is_err());
        }
        Ok(())
    }
}
