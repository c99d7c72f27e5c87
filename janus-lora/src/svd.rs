//! Singular values and vectors of a product of thin factors, without the product, and of a matrix that has none.
//!
//! All in f64, except products with a large matrix, which is kept and multiplied in f32. Nothing is drawn but with a fixed seed:
//! equal input gives equal bits.

use candle_core::{Device, Tensor};
use janus_core::noise;

use crate::jacobi::{dot, orthogonalise};

/// Rows of values.
pub(crate) type Lines = Vec<Vec<f64>>;

/// The shorter side up to which a matrix is decomposed exactly.
pub(crate) const EXACT_SIDE: usize = 256;

/// Directions that are followed beside the wanted ones, at least.
const SPARE_DIRECTIONS: usize = 24;
/// Rounds of subspace iteration, at least and at most.
const ROUNDS: std::ops::RangeInclusive<usize> = 4..=60;
/// Part of the wanted directions' energy by which the last round may still raise it.
const SETTLED: f64 = 1e-9;
/// Share of a line's length below which what is left of it beside others is rounding.
const DEPENDENT: f64 = 1e-13;
/// What random first directions are drawn with.
const SEED: u64 = 0;

/// Triples of singular value, left and right vector, the greatest value first; those of the value 0 are not in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Svd {
    pub(crate) values: Vec<f64>,
    /// `[values, rows of the matrix]`
    pub(crate) left: Lines,
    /// `[values, columns of the matrix]`
    pub(crate) right: Lines,
}

impl Svd {
    /// Sum of the squares of the first `rank` values.
    pub(crate) fn energy(&self, rank: usize) -> f64 {
        self.values.iter().take(rank).map(|value| value * value).sum()
    }

    /// The triples of a core, `[lines, lines]`, between orthonormal lines on its left and right, `[lines, rows]` and
    /// `[lines, columns]`.
    fn between(left: &Lines, mut core: Lines, right: &Lines) -> Self {
        let mut turns = identity(core.len());
        orthogonalise(&mut core, Some(&mut turns));
        let mut found: Vec<(f64, Vec<f64>, Vec<f64>)> = Vec::new();
        for (line, turn) in core.into_iter().zip(turns) {
            found.push((dot(&line, &line).sqrt(), turn, line));
        }
        found.sort_by(|one, other| other.0.total_cmp(&one.0));
        let least = found.first().map_or(0.0, |first| first.0 * DEPENDENT);
        let mut svd = Self::default();
        for (value, turn, line) in found.into_iter().filter(|(value, ..)| *value > least) {
            svd.left.push(blend(&turn, left));
            svd.right.push(blend(&line.iter().map(|part| part / value).collect::<Vec<_>>(), right));
            svd.values.push(value);
        }
        svd
    }

    fn swapped(self) -> Self {
        Self { values: self.values, left: self.right, right: self.left }
    }

    fn cut(mut self, rank: usize) -> Self {
        self.values.truncate(rank);
        self.left.truncate(rank);
        self.right.truncate(rank);
        self
    }
}

/// Σ `weights[i]` · `lines[i]`.
fn blend(weights: &[f64], lines: &Lines) -> Vec<f64> {
    let mut sum = vec![0.0; lines.first().map_or(0, Vec::len)];
    for (weight, line) in weights.iter().zip(lines) {
        add(&mut sum, *weight, line);
    }
    sum
}

fn add(sum: &mut [f64], weight: f64, line: &[f64]) {
    sum.iter_mut().zip(line).for_each(|(sum, value)| *sum += weight * value);
}

/// R and Q with `lines` = R · Q: lines of Q are orthonormal or zero, R is `[lines, lines]` and zero above its diagonal. By
/// Gram and Schmidt, twice.
pub(crate) fn lq(mut lines: Lines) -> (Lines, Lines) {
    let count = lines.len();
    let mut triangle = vec![vec![0.0; count]; count];
    for current in 0..count {
        let (before, after) = lines.split_at_mut(current);
        let (Some(line), Some(row)) = (after.first_mut(), triangle.get_mut(current)) else { continue };
        let whole = dot(line, line).sqrt();
        for _ in 0..2 {
            for (done, part) in before.iter().zip(row.iter_mut()) {
                let share = dot(done, line);
                add(line, -share, done);
                *part += share;
            }
        }
        let length = dot(line, line).sqrt();
        if length > DEPENDENT * whole {
            line.iter_mut().for_each(|value| *value /= length);
            row[current] = length;
        } else {
            line.fill(0.0);
        }
    }
    (triangle, lines)
}

/// leftᵀ · right of lines of equal number.
fn crossed(left: &Lines, right: &Lines) -> Lines {
    let side = |lines: &Lines| lines.first().map_or(0, Vec::len);
    let mut product = vec![vec![0.0; side(right)]; side(left)];
    for (left, right) in left.iter().zip(right) {
        for (row, weight) in product.iter_mut().zip(left) {
            add(row, *weight, right);
        }
    }
    product
}

/// The same product of no more lines than its shorter side is long: what a file claims for a rank makes no matrix of its square.
fn no_thicker_than_long(left: Lines, right: Lines) -> (Lines, Lines) {
    let side = |lines: &Lines| lines.first().map_or(0, Vec::len);
    let (rows, columns) = (side(&left), side(&right));
    if left.len() <= rows.min(columns) {
        (left, right)
    } else if rows <= columns {
        (identity(rows), crossed(&left, &right))
    } else {
        (crossed(&right, &left), identity(columns))
    }
}

fn identity(count: usize) -> Lines {
    (0..count).map(|line| (0..count).map(|place| f64::from(u8::from(line == place))).collect()).collect()
}

/// Of leftᵀ · right, with `left` `[rank, rows]` and `right` `[rank, columns]`: exact, and as cheap as the factors are thin.
pub(crate) fn svd_of_product(left: Lines, right: Lines) -> Svd {
    let (left, right) = no_thicker_than_long(left, right);
    let ((left_part, left), (right_part, right)) = (lq(left), lq(right));
    Svd::between(&left, crossed(&left_part, &right_part), &right)
}

/// |leftᵀ · right|, its Frobenius norm.
pub(crate) fn norm_of_product(left: Lines, right: Lines) -> f64 {
    let (left, right) = no_thicker_than_long(left, right);
    let core = crossed(&lq(left).0, &lq(right).0);
    core.iter().map(|line| dot(line, line)).sum::<f64>().sqrt()
}

/// The first `rank` triples of a matrix, `[rows, columns]`, f32: exact where a side is at most [`EXACT_SIDE`] long, otherwise by
/// subspace iteration (Halko, Martinsson and Tropp, SIAM Review 53(2), 2011) until another round raises what they hold of the
/// matrix' energy by less than a billionth.
pub(crate) fn svd_of_matrix(matrix: &Tensor, rank: usize) -> candle_core::Result<Svd> {
    let (rows, columns) = matrix.dims2()?;
    if rows.min(columns) <= EXACT_SIDE {
        return exact(matrix, rank);
    }
    iterated(matrix, rank, [rows, columns])
}

/// The same by subspace iteration wherever that follows few of all directions: for many matrices of which the first triples
/// alone are asked.
pub(crate) fn leading(matrix: &Tensor, rank: usize) -> candle_core::Result<Svd> {
    let (rows, columns) = matrix.dims2()?;
    if 2 * followed(rank) >= rows.min(columns) {
        return exact(matrix, rank);
    }
    iterated(matrix, rank, [rows, columns])
}

/// Directions that are followed for so many wanted ones.
fn followed(rank: usize) -> usize {
    rank + rank.max(SPARE_DIRECTIONS)
}

fn iterated(matrix: &Tensor, rank: usize, [rows, columns]: [usize; 2]) -> candle_core::Result<Svd> {
    let directions = followed(rank).min(rows.min(columns));
    let key = noise::combine(SEED, noise::key_of("first directions"));
    let draw = |index: usize| noise::normal(key, index as u64);
    let drawn = |line: usize| (0..columns).map(|column| draw(line * columns + column)).collect();
    let mut basis: Lines = (0..directions).map(drawn).collect();
    let mut held = 0.0;
    for round in 1..=*ROUNDS.end() {
        let seen = lines_of(&matrix.matmul(&tensor_of(&basis, columns)?.t()?)?.t()?)?;
        let (_, left) = lq(seen);
        let (part, right) = lq(lines_of(&tensor_of(&left, rows)?.matmul(matrix)?)?);
        if round >= *ROUNDS.start() {
            let svd = Svd::between(&left, part, &right);
            let now = svd.energy(rank);
            if now - held <= SETTLED * now || round == *ROUNDS.end() {
                return Ok(svd.cut(rank));
            }
            held = now;
        }
        basis = right;
    }
    Ok(Svd::default())
}

fn exact(matrix: &Tensor, rank: usize) -> candle_core::Result<Svd> {
    let (rows, columns) = matrix.dims2()?;
    let is_wide = rows <= columns;
    let lines = if is_wide { lines_of(matrix)? } else { lines_of(&matrix.t()?)? };
    let all = identity(lines.len());
    let (part, right) = lq(lines);
    let svd = Svd::between(&all, part, &right).cut(rank);
    Ok(if is_wide { svd } else { svd.swapped() })
}

/// The rows of a matrix.
pub(crate) fn lines_of(matrix: &Tensor) -> candle_core::Result<Lines> {
    let rows: Vec<Vec<f32>> = matrix.to_vec2()?;
    Ok(rows.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect())
}

/// Lines of this length as an f32 matrix.
pub(crate) fn tensor_of(lines: &Lines, length: usize) -> candle_core::Result<Tensor> {
    let values: Vec<f32> = lines.iter().flatten().map(|value| *value as f32).collect();
    Tensor::from_vec(values, (lines.len(), length), &Device::Cpu)
}

#[cfg(test)]
#[path = "svd_tests.rs"]
mod tests;
