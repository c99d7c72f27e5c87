//! Rows of a table by index; the backward adds each row's gradient back where it came from.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::composed::is_composed;
use super::values;

/// `table: [rows, width]`, `indices` of any number; returns `[indices, width]`.
///
/// # Errors
/// An index beyond the table.
pub fn select_rows(table: &Tensor, indices: &[u32]) -> Result<Tensor> {
    let (rows, _) = table.dims2()?;
    if let Some(index) = indices.iter().find(|i| **i as usize >= rows) {
        bail!("row {index} is outside a table of {rows} rows");
    }
    if is_composed(table.device()) || !table.track_op() {
        let indices = Tensor::from_slice(indices, indices.len(), table.device())?;
        return table.index_select(&indices, 0);
    }
    table.apply_op1(SelectRows { indices: indices.into() })
}

struct SelectRows {
    indices: Arc<[u32]>,
}

impl CustomOp1 for SelectRows {
    fn name(&self) -> &'static str {
        "select-rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        let table = values::read(storage, layout)?;
        let mut selected = Vec::with_capacity(self.indices.len() * width);
        for index in self.indices.iter() {
            let start = *index as usize * width;
            selected.extend_from_slice(&table[start..start + width]);
        }
        Ok((values::store(selected, values::dtype_of(storage))?, Shape::from((self.indices.len(), width))))
    }

    fn bwd(&self, table: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (rows, width) = table.dims2()?;
        let mut sums = vec![0f32; rows * width];
        values::with_values(gradient, |dy| {
            for (index, dy) in self.indices.iter().zip(dy.chunks_exact(width.max(1))) {
                let start = *index as usize * width;
                for (sum, d) in sums[start..start + width].iter_mut().zip(dy) {
                    *sum += d;
                }
            }
            Ok(())
        })?;
        Ok(Some(values::tensor(sums, table.shape(), table)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    #[test]
    fn repeated_rows_add_their_gradients() {
        check::gradients(&[&[4, 3]], |t| select_rows(&t[0], &[2, 0, 2, 3, 2]));
    }

    #[test]
    fn an_index_beyond_the_table_is_an_error() {
        assert!(select_rows(&check::tensor(&[4, 3], 1), &[4]).is_err());
    }
}
