//! The factors of a slot side by side in memory: a pass of many slots walks all of theirs, and finds pages for each that lie
//! apart slower than it multiplies.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;

use super::held::Pair;
use super::routed::Ready;
use crate::ops::values::Stored;
use crate::pages;

/// Bytes of a line of the processor's caches, at which every factor begins.
const LINE_BYTES: usize = 64;

/// Puts the factors of everything that is ready for a slot on the processor into one region.
///
/// # Errors
/// The tensor engine's.
pub(crate) fn gather<'a>(ready: impl Iterator<Item = &'a mut Ready>) -> Result<()> {
    let mut factors: Vec<&mut Tensor> = Vec::new();
    for Pair { a, b } in ready.filter_map(Ready::pair_mut) {
        factors.extend([a, b].into_iter().filter(|factor| factor.device().is_cpu()));
    }
    match factors.first().map(|factor| factor.dtype()) {
        Some(DType::F32) => put_together::<f32>(factors),
        Some(DType::BF16) => put_together::<bf16>(factors),
        _ => Ok(()),
    }
}

fn put_together<E: Stored>(mut factors: Vec<&mut Tensor>) -> Result<()> {
    factors.retain(|factor| factor.dtype() == E::DTYPE);
    let line = LINE_BYTES / size_of::<E>();
    let room = |factor: &Tensor| factor.elem_count().next_multiple_of(line);
    let mut values = E::zeros(line + factors.iter().map(|factor| room(factor)).sum::<usize>());
    pages::ask_for_large(&values);
    let first = values.as_ptr().align_offset(LINE_BYTES).min(line);
    let mut at = first;
    for factor in &factors {
        let own = factor.flatten_all()?.to_vec1::<E>()?;
        values[at..at + own.len()].copy_from_slice(&own);
        at += room(factor);
    }
    let count = values.len();
    let region = Tensor::from_vec(values, count, &Device::Cpu)?;
    let mut at = first;
    for factor in factors {
        let moved = region.narrow(0, at, factor.elem_count())?.reshape(factor.dims())?;
        at += room(factor);
        *factor = moved;
    }
    Ok(())
}
