//! Comparison with a stated bound, and a message that names the tensor, the place and both values.

use candle_core::{DType, Tensor};

fn values(name: &str, tensor: &Tensor) -> Vec<f32> {
    let values = tensor.to_dtype(DType::F32).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1());
    values.unwrap_or_else(|e| panic!("`{name}`: {e}"))
}

/// The indices of the `flat`-th value of a tensor.
fn place(dims: &[usize], flat: usize) -> Vec<usize> {
    let mut rest = flat;
    let mut place: Vec<usize> = dims.iter().rev().map(|dim| (rest % dim, rest /= dim).0).collect();
    place.reverse();
    place
}

/// Fails unless shapes are equal and all values agree to `bound`, absolute. A value that is not a number never agrees.
///
/// # Panics
/// They differ.
#[track_caller]
pub fn close(name: &str, got: &Tensor, expected: &Tensor, bound: f32) {
    assert_eq!(got.dims(), expected.dims(), "shape of `{name}`: got on the left, expected on the right");
    let (got_values, expected_values) = (values(name, got), values(name, expected));
    let differences = got_values.iter().zip(&expected_values).map(|(a, b)| (a - b).abs());
    // `total_cmp` puts what is not a number above all numbers.
    let Some((worst, difference)) = differences.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)) else { return };
    assert!(
        difference <= bound,
        "`{name}` differs by {difference:e} at {:?} (bound {bound:e}): got {}, expected {}",
        place(got.dims(), worst),
        got_values[worst],
        expected_values[worst]
    );
}

/// [`close`] for single numbers.
///
/// # Panics
/// They differ.
#[track_caller]
pub fn close_number(name: &str, got: f64, expected: f64, bound: f64) {
    let difference = (got - expected).abs();
    assert!(
        difference <= bound,
        "`{name}` differs by {difference:e} (bound {bound:e}): got {got}, expected {expected}"
    );
}

/// Fails unless shapes and all bits are equal.
///
/// # Panics
/// They differ.
#[track_caller]
pub fn same_bits(name: &str, got: &Tensor, expected: &Tensor) {
    assert_eq!(got.dims(), expected.dims(), "shape of `{name}`: got on the left, expected on the right");
    assert_eq!((got.dtype(), expected.dtype()), (DType::F32, DType::F32), "type of `{name}`");
    let (got_values, expected_values) = (values(name, got), values(name, expected));
    for (at, (a, b)) in got_values.iter().zip(&expected_values).enumerate() {
        let place = place(got.dims(), at);
        assert!(a.to_bits() == b.to_bits(), "`{name}` differs in its bits at {place:?}: got {a:e}, expected {b:e}");
    }
}

/// Fails unless all bytes agree to `steps`.
///
/// # Panics
/// They differ.
#[track_caller]
pub fn bytes_within(name: &str, got: &[u8], expected: &[u8], steps: u8) {
    assert_eq!(got.len(), expected.len(), "length of `{name}`: got on the left, expected on the right");
    for (at, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!(a.abs_diff(*b) <= steps, "`{name}` differs at byte {at} (bound {steps}): got {a}, expected {b}");
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use candle_core::Device;

    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, (values.len() / 2, 2), &Device::Cpu).unwrap()
    }

    fn message(check: impl FnOnce()) -> String {
        *catch_unwind(AssertUnwindSafe(check)).expect_err("the comparison fails").downcast::<String>().unwrap()
    }

    #[test]
    fn a_difference_is_named_with_its_place() {
        let (a, b) = (tensor(&[1.0, 2.0, 3.0, 4.0]), tensor(&[1.0, 2.5, 3.0, 3.0]));
        close("x", &a, &b, 1.0);
        let said = message(|| close("x", &a, &b, 0.75));
        assert_eq!(said, "`x` differs by 1e0 at [1, 1] (bound 7.5e-1): got 4, expected 3");
    }

    #[test]
    fn what_is_no_number_never_agrees() {
        let (a, b) = (tensor(&[1.0, f32::NAN]), tensor(&[1.0, 2.0]));
        let said = message(|| close("x", &a, &b, 1.0));
        assert!(said.starts_with("`x` differs by NaN at [0, 1]"), "{said}");
        let said = message(|| close_number("y", f64::NAN, 1.0, 1.0));
        assert!(said.starts_with("`y` differs by NaN"), "{said}");
    }

    #[test]
    fn zero_and_minus_zero_have_other_bits() {
        let (a, b) = (tensor(&[0.0, 1.0]), tensor(&[-0.0, 1.0]));
        close("x", &a, &b, 0.0);
        let said = message(|| same_bits("x", &a, &b));
        assert!(said.starts_with("`x` differs in its bits at [0, 0]"), "{said}");
    }

    #[test]
    fn bytes_have_a_bound_in_steps() {
        bytes_within("x", &[1, 2], &[2, 1], 1);
        let said = message(|| bytes_within("x", &[1, 2], &[1, 4], 1));
        assert_eq!(said, "`x` differs at byte 1 (bound 1): got 2, expected 4");
    }
}
