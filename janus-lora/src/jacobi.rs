//! Singular values of small matrices: lines are turned in pairs until all are orthogonal (Hestenes, J. SIAM 6(1), 1958).
//!
//! A few dozen lines instead of a linear algebra library: `nalgebra` without its default features takes 42 s of a processor's time
//! to build, is as fast or a few times faster at sides from 32 to 256, and loses small singular values beside great ones, which
//! this does not.

/// Turns of all pairs at most; usually less than ten suffice.
const MAX_SWEEPS: usize = 60;
/// Lines this near to orthogonal, as a share of their lengths, are orthogonal.
const ORTHOGONAL: f64 = 1e-14;
/// Sums that are formed beside each other.
const LANES: usize = 8;

/// Sum of the products of two lines' values.
pub(crate) fn dot(one: &[f64], other: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let (one, one_rest) = one.as_chunks::<LANES>();
    let (other, other_rest) = other.as_chunks::<LANES>();
    for (one, other) in one.iter().zip(other) {
        for lane in 0..LANES {
            sums[lane] += one[lane] * other[lane];
        }
    }
    let rest: f64 = one_rest.iter().zip(other_rest).map(|(one, other)| one * other).sum();
    sums.iter().sum::<f64>() + rest
}

/// Turns the lines of a matrix until they are orthogonal: their lengths are its singular values then, in no order. The lines of
/// `beside`, as many, are turned with them: if they were the identity, its `k`-th is the left singular vector of the `k`-th line.
///
/// The eigenvalues of products of lines would do, but the roots of small ones are rough.
pub(crate) fn orthogonalise(lines: &mut [Vec<f64>], mut beside: Option<&mut [Vec<f64>]>) {
    let total: f64 = lines.iter().map(|line| dot(line, line)).sum();
    for _ in 0..MAX_SWEEPS {
        let mut turned = false;
        for second in 1..lines.len() {
            for first in 0..second {
                let Some((cosine, sine)) = angle(&lines[first], &lines[second], total) else { continue };
                turn(lines, first, second, cosine, sine);
                if let Some(beside) = beside.as_deref_mut() {
                    turn(beside, first, second, cosine, sine);
                }
                turned = true;
            }
        }
        if !turned {
            break;
        }
    }
}

/// Cosine and sine of the turn after which two lines are orthogonal; `None` where they are, or are nothing beside the `total`.
fn angle(left: &[f64], right: &[f64], total: f64) -> Option<(f64, f64)> {
    let (left_square, right_square, product) = (dot(left, left), dot(right, right), dot(left, right));
    let least = (ORTHOGONAL * (left_square * right_square).sqrt()).max(ORTHOGONAL * ORTHOGONAL * total);
    if product.abs() <= least {
        return None;
    }
    let cotangent = (right_square - left_square) / (2.0 * product);
    let tangent = cotangent.signum() / (cotangent.abs() + cotangent.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    Some((cosine, cosine * tangent))
}

/// Turns two lines in their plane.
fn turn(lines: &mut [Vec<f64>], first: usize, second: usize, cosine: f64, sine: f64) {
    let (before, after) = lines.split_at_mut(second);
    let (Some(left), Some(right)) = (before.get_mut(first), after.first_mut()) else { return };
    for (left, right) in left.iter_mut().zip(right.iter_mut()) {
        (*left, *right) = (cosine * *left - sine * *right, sine * *left + cosine * *right);
    }
}
