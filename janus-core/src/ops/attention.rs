//! Attention in blocks of queries: forward and backward never hold the whole score matrix of all heads.
//!
//! The backward recomputes each block's probabilities from queries and keys (as in Dao et al., arXiv:2205.14135, without
//! their online softmax: a block holds all keys it may see).

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::composed::is_composed;
use super::matmul::{Matrix, multiply};
use super::values;

/// Queries per block: 64 rows of 4096 keys are 1 MiB of scores.
const BLOCK: usize = 64;

/// Which keys a query may see.
#[derive(Debug, Clone, Default)]
pub struct AttentionMask {
    /// A query sees only keys up to its own place; the last query stands at the last key.
    pub causal: bool,
    /// `[batch, keys]`, row-major: keys that may be seen at all. Absent: all.
    pub keys: Option<Arc<[bool]>>,
}

impl AttentionMask {
    /// Every query sees every key.
    pub fn full() -> Self {
        Self::default()
    }

    /// Each query sees its own place and what stands before.
    pub fn causal() -> Self {
        Self { causal: true, keys: None }
    }

    /// Whether the query at `place` of `row` sees `key`. A query that would see nothing (padding) sees itself, so that
    /// its output is finite.
    fn sees(&self, row: usize, keys: usize, place: usize, key: usize) -> bool {
        let open = |key: usize| self.keys.as_ref().is_none_or(|open| open[row * keys + key]);
        if self.causal && key > place {
            return false;
        }
        let own_place_only = key == place && {
            let end = if self.causal { place + 1 } else { keys };
            !(0..end).any(open)
        };
        open(key) || own_place_only
    }
}

/// `softmax(q·kᵀ / sqrt(head_dim) + mask)·v`.
///
/// `q: [batch, queries, heads, head_dim]`, `k` and `v`: `[batch, keys, kv_heads, head_dim]`, where `heads` is a multiple
/// of `kv_heads`; returns `q`'s shape and type. Softmax in f32.
///
/// # Errors
/// Shapes that do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
    let shape = AttentionShape::of(q.dims(), k.dims(), v.dims(), mask)?;
    if is_composed(q.device()) {
        return composed(q, k, v, mask, &shape);
    }
    let operation = Attention { mask: mask.clone() };
    if q.track_op() || k.track_op() || v.track_op() {
        q.apply_op3(k, v, operation)
    } else {
        q.apply_op3_no_bwd(k, v, &operation)
    }
}

#[derive(Debug, Clone, Copy)]
struct AttentionShape {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl AttentionShape {
    fn of(q: &[usize], k: &[usize], v: &[usize], mask: &AttentionMask) -> Result<Self> {
        let (&[batch, queries, heads, head_dim], &[k_batch, keys, kv_heads, k_dim]) = (q, k) else {
            bail!("attention needs four dimensions, got {q:?} and {k:?}");
        };
        let fits = k == v && batch == k_batch && head_dim == k_dim && kv_heads > 0 && heads % kv_heads == 0;
        let mask_fits = mask.keys.as_ref().is_none_or(|open| open.len() == batch * keys);
        if !fits || !mask_fits || (mask.causal && queries > keys) {
            bail!("attention over q {q:?}, k {k:?}, v {v:?} does not fit its mask or itself");
        }
        Ok(Self { batch, queries, keys, heads, kv_heads, head_dim })
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Place of query `i` among the keys.
    fn place(&self, i: usize) -> usize {
        self.keys - self.queries.min(self.keys) + i
    }

    /// Start of row `position` of `head` in a `[batch, length, heads, head_dim]` slice.
    fn start(&self, row: usize, length: usize, heads: usize, position: usize, head: usize) -> usize {
        ((row * length + position) * heads + head) * self.head_dim
    }

    /// Keys that some query of `block` may see.
    fn reach(&self, mask: &AttentionMask, block: &std::ops::Range<usize>) -> usize {
        if mask.causal { self.place(block.end - 1) + 1 } else { self.keys }
    }
}

/// The same by candle's operations: the slow truth, and the path of other devices.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, mask: &AttentionMask, s: &AttentionShape) -> Result<Tensor> {
    let widen = |t: &Tensor, groups: usize| -> Result<Tensor> {
        let t = t.to_dtype(DType::F32)?.transpose(1, 2)?.contiguous()?;
        if groups == 1 {
            return Ok(t);
        }
        let (batch, heads, length, dim) = t.dims4()?;
        t.unsqueeze(2)?.expand((batch, heads, groups, length, dim))?.reshape((batch, heads * groups, length, dim))
    };
    let groups = s.heads / s.kv_heads;
    let (wide_q, k, v) = (widen(q, 1)?, widen(k, groups)?, widen(v, groups)?);
    let scores = (wide_q.matmul(&k.t()?)? * f64::from(s.scale()))?;
    let mut bias = vec![0f32; s.batch * s.queries * s.keys];
    for row in 0..s.batch {
        for i in 0..s.queries {
            for key in 0..s.keys {
                if !mask.sees(row, s.keys, s.place(i), key) {
                    bias[(row * s.queries + i) * s.keys + key] = f32::NEG_INFINITY;
                }
            }
        }
    }
    let bias = Tensor::from_vec(bias, (s.batch, 1, s.queries, s.keys), q.device())?;
    let probabilities = candle_nn::ops::softmax(&scores.broadcast_add(&bias)?, D::Minus1)?;
    probabilities.matmul(&v)?.transpose(1, 2)?.contiguous()?.to_dtype(q.dtype())
}

struct Attention {
    mask: AttentionMask,
}

/// Gradients of one key head and of the query heads that share it.
struct GroupGradients {
    /// `[queries, head_dim]` for each query head.
    dq: Vec<Vec<f32>>,
    /// `[keys, head_dim]`.
    dk: Vec<f32>,
    /// `[keys, head_dim]`.
    dv: Vec<f32>,
}

impl Attention {
    /// Probabilities of one block of queries of one head: `[block, reach]`.
    fn probabilities(
        &self,
        s: &AttentionShape,
        (row, head): (usize, usize),
        block: &std::ops::Range<usize>,
        q: &[f32],
        k: &[f32],
    ) -> Vec<f32> {
        let reach = s.reach(&self.mask, block);
        let mut scores = vec![0f32; block.len() * reach];
        let kv_head = head / (s.heads / s.kv_heads);
        let q = Matrix::new(
            &q[s.start(row, s.queries, s.heads, block.start, head)..],
            block.len(),
            s.head_dim,
            s.heads * s.head_dim,
        );
        let k =
            Matrix::new(&k[s.start(row, s.keys, s.kv_heads, 0, kv_head)..], reach, s.head_dim, s.kv_heads * s.head_dim);
        multiply(q, k.t(), s.scale(), &mut scores, reach, false, false);
        for (i, scores) in block.clone().zip(scores.chunks_exact_mut(reach)) {
            self.softmax(s, row, s.place(i), scores);
        }
        scores
    }

    /// Softmax over the keys a query sees; the others become zero.
    fn softmax(&self, s: &AttentionShape, row: usize, place: usize, scores: &mut [f32]) {
        let end = if self.mask.causal { (place + 1).min(scores.len()) } else { scores.len() };
        if let Some(open) = &self.mask.keys {
            let open = &open[row * s.keys..row * s.keys + end];
            if open.iter().any(|o| *o) {
                scores[..end]
                    .iter_mut()
                    .zip(open)
                    .filter(|(_, open)| !**open)
                    .for_each(|(s, _)| *s = f32::NEG_INFINITY);
            } else {
                scores.iter_mut().enumerate().for_each(|(j, s)| *s = if j == place { 1.0 } else { 0.0 });
                return;
            }
        }
        let largest = scores[..end].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0f32;
        for score in &mut scores[..end] {
            *score = (*score - largest).exp();
            sum += *score;
        }
        scores[..end].iter_mut().for_each(|s| *s /= sum);
        scores[end..].fill(0.0);
    }
}

/// Blocks of at most [`BLOCK`] of `count` queries.
fn blocks(count: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..count).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(count))
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let s = AttentionShape::of(lq.dims(), lk.dims(), lv.dims(), &self.mask)?;
        let dtype = values::dtype_of(q);
        let (q, k, v) = (values::read(q, lq)?, values::read(k, lk)?, values::read(v, lv)?);
        let heads: Vec<Vec<f32>> = (0..s.batch * s.heads)
            .into_par_iter()
            .map(|index| {
                let (row, head) = (index / s.heads, index % s.heads);
                let kv_head = head / (s.heads / s.kv_heads);
                let v = &v[s.start(row, s.keys, s.kv_heads, 0, kv_head)..];
                let mut out = vec![0f32; s.queries * s.head_dim];
                for block in blocks(s.queries) {
                    let p = self.probabilities(&s, (row, head), &block, &q, &k);
                    let reach = s.reach(&self.mask, &block);
                    let p = Matrix::new(&p, block.len(), reach, reach);
                    let v = Matrix::new(v, reach, s.head_dim, s.kv_heads * s.head_dim);
                    multiply(p, v, 1.0, &mut out[block.start * s.head_dim..], s.head_dim, false, false);
                }
                out
            })
            .collect();
        let out = interleave(&heads, s.batch, s.queries, s.heads, s.head_dim);
        Ok((values::store(out, dtype)?, lq.shape().clone()))
    }

    /// With `p` recomputed: `dv = pᵀ·do`, `dp = do·vᵀ`, `ds = p·(dp - Σ do·o)/sqrt(d)`, `dq = ds·k`, `dk = dsᵀ·q`.
    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let s = AttentionShape::of(q.dims(), k.dims(), v.dims(), &self.mask)?;
        let groups = s.heads / s.kv_heads;
        let parts: Vec<GroupGradients> = values::with_values(q, |q| {
            values::with_values(k, |k| {
                values::with_values(v, |v| {
                    values::with_values(out, |out| {
                        values::with_values(gradient, |d_out| {
                            let heads = (0..s.batch * s.kv_heads).into_par_iter();
                            Ok(heads
                                .map(|index| {
                                    let (row, kv_head) = (index / s.kv_heads, index % s.kv_heads);
                                    let mut dk = vec![0f32; s.keys * s.head_dim];
                                    let mut dv = vec![0f32; s.keys * s.head_dim];
                                    let dq = (kv_head * groups..(kv_head + 1) * groups)
                                        .map(|head| {
                                            let at = (row, head, kv_head);
                                            self.head_gradients(&s, at, [q, k, v, out, d_out], &mut dk, &mut dv)
                                        })
                                        .collect();
                                    GroupGradients { dq, dk, dv }
                                })
                                .collect())
                        })
                    })
                })
            })
        })?;
        let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            dq.extend(part.dq);
            dk.push(part.dk);
            dv.push(part.dv);
        }
        let dq = interleave(&dq, s.batch, s.queries, s.heads, s.head_dim);
        let dk = interleave(&dk, s.batch, s.keys, s.kv_heads, s.head_dim);
        let dv = interleave(&dv, s.batch, s.keys, s.kv_heads, s.head_dim);
        Ok((
            Some(values::tensor(dq, q.shape(), q)?),
            Some(values::tensor(dk, k.shape(), k)?),
            Some(values::tensor(dv, v.shape(), v)?),
        ))
    }
}

impl Attention {
    /// Adds one head's share to `dk` and `dv` (`[keys, head_dim]`) and returns its `dq` (`[queries, head_dim]`).
    fn head_gradients(
        &self,
        s: &AttentionShape,
        (row, head, kv_head): (usize, usize, usize),
        [q, k, v, out, d_out]: [&[f32]; 5],
        dk: &mut [f32],
        dv: &mut [f32],
    ) -> Vec<f32> {
        let dim = s.head_dim;
        let mut dq = vec![0f32; s.queries * dim];
        let keys = &k[s.start(row, s.keys, s.kv_heads, 0, kv_head)..];
        let values = &v[s.start(row, s.keys, s.kv_heads, 0, kv_head)..];
        for block in blocks(s.queries) {
            let reach = s.reach(&self.mask, &block);
            let p = self.probabilities(s, (row, head), &block, q, k);
            let start = s.start(row, s.queries, s.heads, block.start, head);
            let d_out_block = Matrix::new(&d_out[start..], block.len(), dim, s.heads * dim);
            let mut ds = vec![0f32; block.len() * reach];
            multiply(
                d_out_block,
                Matrix::new(values, reach, dim, s.kv_heads * dim).t(),
                1.0,
                &mut ds,
                reach,
                false,
                false,
            );
            let p_matrix = Matrix::new(&p, block.len(), reach, reach);
            multiply(p_matrix.t(), d_out_block, 1.0, dv, dim, true, false);
            for (i, (ds, p)) in ds.chunks_exact_mut(reach).zip(p.chunks_exact(reach)).enumerate() {
                let at = start + i * s.heads * dim;
                let dot: f32 = out[at..at + dim].iter().zip(&d_out[at..at + dim]).map(|(o, d)| o * d).sum();
                for (ds, p) in ds.iter_mut().zip(p) {
                    *ds = p * (*ds - dot) * s.scale();
                }
            }
            let ds = Matrix::new(&ds, block.len(), reach, reach);
            let keys = Matrix::new(keys, reach, dim, s.kv_heads * dim);
            multiply(ds, keys, 1.0, &mut dq[block.start * dim..], dim, false, false);
            multiply(ds.t(), Matrix::new(&q[start..], block.len(), dim, s.heads * dim), 1.0, dk, dim, true, false);
        }
        dq
    }
}

/// From one `[length, head_dim]` piece per row and head to `[batch, length, heads, head_dim]`.
fn interleave(pieces: &[Vec<f32>], batch: usize, length: usize, heads: usize, head_dim: usize) -> Vec<f32> {
    let mut out = vec![0f32; batch * length * heads * head_dim];
    out.par_chunks_mut((heads * head_dim).max(1)).enumerate().for_each(|(token, out)| {
        let (row, position) = (token / length, token % length);
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            out.copy_from_slice(&pieces[row * heads + head][position * head_dim..(position + 1) * head_dim]);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;
    use candle_core::Var;

    /// Left-padded, right-padded and hollow key masks for a batch of three.
    fn padded(keys: usize, causal: bool) -> AttentionMask {
        let open = (0..3 * keys).map(|i| match i / keys {
            0 => i % keys >= 2,
            1 => i % keys < keys - 1,
            _ => i % keys != 3,
        });
        AttentionMask { causal, keys: Some(open.collect()) }
    }

    #[test]
    fn blocks_agree_with_the_composed_attention_forward_and_backward() -> Result<()> {
        for (queries, keys, heads, kv_heads) in [(70, 70, 4, 2), (3, 90, 2, 2), (1, 9, 6, 3), (130, 130, 1, 1)] {
            for mask in [AttentionMask::full(), AttentionMask::causal(), padded(keys, true), padded(keys, false)] {
                let q = Var::from_tensor(&check::tensor(&[3, queries, heads, 8], 1))?;
                let k = Var::from_tensor(&check::tensor(&[3, keys, kv_heads, 8], 2))?;
                let v = Var::from_tensor(&check::tensor(&[3, keys, kv_heads, 8], 3))?;
                let g = check::tensor(&[3, queries, heads, 8], 4);
                let shape = AttentionShape::of(q.dims(), k.dims(), v.dims(), &mask)?;
                let fast = attention(&q, &k, &v, &mask)?;
                let slow = composed(&q, &k, &v, &mask, &shape)?;
                check::close(&fast, &slow, 2e-6);
                let (fast, slow) = ((fast * &g)?.sum_all()?.backward()?, (slow * &g)?.sum_all()?.backward()?);
                for var in [&q, &k, &v] {
                    check::close(fast.get(var).unwrap(), slow.get(var).unwrap(), 2e-5);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_fully_masked_query_is_finite_and_sees_itself() -> Result<()> {
        let (q, k, v) =
            (check::tensor(&[1, 4, 1, 4], 1), check::tensor(&[1, 4, 1, 4], 2), check::tensor(&[1, 4, 1, 4], 3));
        let mask = AttentionMask { causal: true, keys: Some([false, false, true, true].into()) };
        let out = attention(&q, &k, &v, &mask)?;
        check::close(&out.narrow(1, 0, 2)?, &v.narrow(1, 0, 2)?, 0.0);
        Ok(())
    }

    #[test]
    fn strided_inputs_are_read_as_they_stand() -> Result<()> {
        let q = check::tensor(&[2, 3, 5, 4], 1).transpose(1, 2)?;
        let fast = attention(&q, &q, &q, &AttentionMask::causal())?;
        let q = q.contiguous()?;
        check::close(&fast, &attention(&q, &q, &q, &AttentionMask::causal())?, 1e-7);
        Ok(())
    }
}
