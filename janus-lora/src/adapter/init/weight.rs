//! Pairs that begin as a part of the weight.
//! Source of what A and B are: PEFT 0.21.2, `pissa_init` and `olora_init` of `tuners/lora/layer.py`. PEFT takes the product away
//! from the weight itself; here the weight stays, and a frozen pair takes it away.

use candle_core::{DType, Tensor};
use janus_core::noise;

use super::Init;
use crate::adapter::error::AdapterError;
use crate::drawn::drawn;
use crate::svd::{Lines, lines_of, lq, svd_of_matrix, tensor_of};

/// Rounds in which directions that a weight does not have are drawn anew: one that lies among the others is unlikely.
const REDRAWS: u64 = 4;

/// Share of the greatest singular value below which another one is rounding.
const NOTHING: f64 = 1e-6;

/// A and B for a weight `[output, input]`, f32, under a scale; `key` names what has to be drawn.
pub(in crate::adapter) fn of_weight(
    init: Init,
    weight: &Tensor,
    rank: usize,
    scale: f64,
    key: &str,
) -> Result<[Tensor; 2], AdapterError> {
    match init {
        Init::Olora => of_columns(weight, rank, key),
        _ => of_singular_values(weight, rank, scale, key),
    }
}

/// A = √(S/s)·Vᵀ and B = U·√(S/s) of the greatest singular values, so that s·B·A is their part of the weight; with a negative
/// scale B has its sign. Where the weight has no more values other than zero, a row of A is drawn and B's column is zero, as in
/// pairs without such a beginning.
fn of_singular_values(weight: &Tensor, rank: usize, scale: f64, key: &str) -> Result<[Tensor; 2], AdapterError> {
    let (rows, columns) = weight.dims2()?;
    let svd = svd_of_matrix(weight, rank)?;
    let least = NOTHING * svd.values.first().copied().unwrap_or(0.0);
    let part = |lines: &Lines, sign: f64| -> Lines {
        let scaled = lines.iter().zip(&svd.values).filter(|(_, value)| **value > least).map(|(line, value)| {
            let factor = sign * (value / scale.abs()).sqrt();
            line.iter().map(|part| part * factor).collect()
        });
        scaled.collect()
    };
    let (mut left, mut right) = (part(&svd.left, scale.signum()), part(&svd.right, 1.0));
    let bound = 1.0 / (columns as f64).sqrt();
    let (seed, found) = (noise::key_of(key), right.len());
    for place in found..rank {
        let value = |index: usize| bound * (2.0 * noise::uniform(seed, index as u64) - 1.0);
        right.push((0..columns).map(|column| value(place * columns + column)).collect());
        left.push(vec![0.0; rows]);
    }
    Ok([tensor_of(&right, columns)?, tensor_of(&left, rows)?.t()?.contiguous()?])
}

/// Q·R = W: B is Q's first columns, which are W's own made orthonormal, and A = BᵀW is R's first rows. A column that lies among
/// those before it gives way to a drawn direction, so that no row and column of the pair are zero together.
fn of_columns(weight: &Tensor, rank: usize, key: &str) -> Result<[Tensor; 2], AdapterError> {
    let (rows, _) = weight.dims2()?;
    let (_, mut directions) = lq(lines_of(&weight.narrow(1, 0, rank)?.t()?.contiguous()?)?);
    for round in 0..REDRAWS {
        if directions.iter().all(|line| line.iter().any(|value| *value != 0.0)) {
            break;
        }
        let fresh = lines_of(&drawn(&[rank, rows], round, key, noise::normal)?)?;
        for (line, fresh) in directions.iter_mut().zip(fresh) {
            if line.iter().all(|value| *value == 0.0) {
                *line = fresh;
            }
        }
        directions = lq(directions).1;
    }
    let directions = tensor_of(&directions, rows)?;
    let a = directions.matmul(&weight.to_dtype(DType::F32)?)?;
    Ok([a, directions.t()?.contiguous()?])
}

#[cfg(test)]
#[path = "weight_tests.rs"]
mod tests;
