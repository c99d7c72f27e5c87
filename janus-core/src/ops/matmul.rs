//! The f32 matrix product underneath, with strides on both sides and the result.

use gemm::Parallelism;

/// A matrix inside a slice: `rows x columns`, element (i, j) at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows are `row_stride` values apart.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        let matrix = Self { values, rows, columns, row_stride, column_stride: 1 };
        assert!(extent(rows, columns, row_stride, 1) <= values.len(), "matrix reaches beyond its values");
        matrix
    }

    /// The transposed view.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Values from the first element to the last of a strided matrix.
fn extent(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + (columns - 1) * column_stride + 1 }
}

/// `out = factor · left · right` (or added to `out`), `out: [left.rows, right.columns]` with rows `out_stride` apart.
/// With `parallel`, the work is spread over the thread pool.
pub(crate) fn multiply(
    left: Matrix<'_>,
    right: Matrix<'_>,
    factor: f32,
    out: &mut [f32],
    out_stride: usize,
    add: bool,
    parallel: bool,
) {
    assert_eq!(left.columns, right.rows, "inner sizes differ");
    assert!(right.columns <= out_stride || left.rows <= 1, "rows of the result overlap");
    assert!(extent(left.rows, right.columns, out_stride, 1) <= out.len(), "the result reaches beyond its values");
    if left.rows == 0 || right.columns == 0 {
        return;
    }
    let parallelism = if parallel { Parallelism::Rayon(rayon::current_num_threads()) } else { Parallelism::None };
    // SAFETY: the assertions above and in `Matrix::new` keep every access of the three strided matrices inside their
    // slices; `out` is borrowed mutably and its rows do not overlap, so no element is written twice or aliased.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            add,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The product by its definition.
    fn slow(left: Matrix<'_>, right: Matrix<'_>, factor: f32, out: &mut [f32], out_stride: usize, add: bool) {
        for i in 0..left.rows {
            for j in 0..right.columns {
                let mut sum = 0f64;
                for k in 0..left.columns {
                    let a = left.values[i * left.row_stride + k * left.column_stride];
                    let b = right.values[k * right.row_stride + j * right.column_stride];
                    sum += f64::from(a) * f64::from(b);
                }
                let value = factor * sum as f32;
                let cell = &mut out[i * out_stride + j];
                *cell = if add { *cell + value } else { value };
            }
        }
    }

    #[test]
    fn the_product_agrees_with_its_definition_on_strided_shapes() {
        let numbers: Vec<f32> = (0..4000).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
        for (m, k, n) in [(1, 7, 5), (13, 9, 17), (40, 33, 21), (3, 1, 2)] {
            for (left_t, right_t, add) in
                [(false, false, false), (true, false, true), (false, true, true), (true, true, false)]
            {
                let left =
                    if left_t { Matrix::new(&numbers, k, m, m + 3).t() } else { Matrix::new(&numbers, m, k, k + 2) };
                let right = if right_t {
                    Matrix::new(&numbers[11..], n, k, k + 1).t()
                } else {
                    Matrix::new(&numbers[11..], k, n, n + 4)
                };
                let stride = n + 2;
                let mut fast = vec![0.5f32; m * stride];
                let mut truth = fast.clone();
                multiply(left, right, 0.7, &mut fast, stride, add, true);
                slow(left, right, 0.7, &mut truth, stride, add);
                for (a, b) in fast.iter().zip(&truth) {
                    assert!((a - b).abs() < 1e-4, "{a} {b} at {m} {k} {n}");
                }
            }
        }
    }
}
