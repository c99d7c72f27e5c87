//! Attention in blocks of queries: forward and backward never hold the whole score matrix of all heads.
//!
//! The backward recomputes each block's probabilities from queries and keys (as in Dao et al., arXiv:2205.14135, without
//! their online softmax: a block holds all keys it may see).
//!
//! Work is cut into spans: the rows of a batch, or the segments of one packed row. Keys of other spans are never touched.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::composed::is_composed;
use super::matmul::{Matrix, multiply};
use super::values;

/// Queries per block: 64 rows of 4096 keys are 1 MiB of scores.
const BLOCK: usize = 64;

/// Which keys a query may see: those that each of the three fields allows.
#[derive(Debug, Clone, Default)]
pub struct AttentionMask {
    /// A query sees only keys up to its own place; the last query stands at the last key.
    pub causal: bool,
    /// `[batch, keys]`, row-major: keys that may be seen at all. Absent: all.
    pub keys: Option<Arc<[bool]>>,
    /// Several sequences packed one behind the other in the only row of a batch, each seen by itself alone: where each
    /// starts, and at last where the last one ends, `[segments + 1]`. The first value is 0, none is less than the one
    /// before (a segment may be empty), the last is the number of keys, which is that of the queries. Absent: every row
    /// of the batch is one sequence.
    pub segments: Option<Arc<[usize]>>,
}

impl AttentionMask {
    /// Every query sees every key.
    pub fn full() -> Self {
        Self::default()
    }

    /// Each query sees its own place and what stands before.
    pub fn causal() -> Self {
        Self { causal: true, ..Self::default() }
    }

    /// Whether the query at `place` of `row` sees `key` of the same segment. A query that would see nothing (padding)
    /// sees itself, so that its output is finite.
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
        let segments_fit = mask.segments.as_ref().is_none_or(|bounds| {
            let whole = bounds.first() == Some(&0) && bounds.last() == Some(&keys);
            batch == 1 && queries == keys && whole && bounds.is_sorted()
        });
        let mask_fits = mask.keys.as_ref().is_none_or(|open| open.len() == batch * keys) && segments_fit;
        if !fits || !mask_fits || (mask.causal && queries > keys) {
            bail!("attention over q {q:?}, k {k:?}, v {v:?} does not fit its mask or itself");
        }
        Ok(Self { batch, queries, keys, heads, kv_heads, head_dim })
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Start of `head` of a token in a `[tokens, heads, head_dim]` slice.
    fn start(&self, heads: usize, token: usize, head: usize) -> usize {
        (token * heads + head) * self.head_dim
    }

    /// `head` of `count` tokens from `token` on in such a slice: `[count, head_dim]`.
    fn matrix<'a>(&self, values: &'a [f32], heads: usize, head: usize, token: usize, count: usize) -> Matrix<'a> {
        Matrix::new(&values[self.start(heads, token, head)..], count, self.head_dim, heads * self.head_dim)
    }

    /// Place of query `i` among the keys.
    fn place(&self, i: usize) -> usize {
        self.keys - self.queries.min(self.keys) + i
    }

    /// Segments of the packed row, or rows of the batch.
    fn spans(&self, mask: &AttentionMask) -> Vec<Span> {
        match &mask.segments {
            Some(bounds) => {
                let segments = bounds.windows(2).map(|bounds| bounds[0]..bounds[1]);
                segments.map(|segment| Span { queries: segment.clone(), keys: segment }).collect()
            }
            None => {
                let of = |row: usize, length: usize| row * length..(row + 1) * length;
                (0..self.batch).map(|row| Span { queries: of(row, self.queries), keys: of(row, self.keys) }).collect()
            }
        }
    }
}

/// Queries and the keys they may see, as ranges of the tokens of the whole batch.
#[derive(Debug, Clone)]
struct Span {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Span {
    /// Place of the span's query `i` among its keys.
    fn place(&self, i: usize) -> usize {
        self.keys.len() - self.queries.len().min(self.keys.len()) + i
    }

    /// Keys from the span's first on that some query of `block` may see.
    fn reach(&self, causal: bool, block: &Range<usize>) -> usize {
        if causal { self.place(block.end - 1) + 1 } else { self.keys.len() }
    }
}

/// The same by candle's operations: the slow truth, and the path of other devices.
///
/// Segments are computed one by one and put together again: no score across them exists.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, mask: &AttentionMask, s: &AttentionShape) -> Result<Tensor> {
    if mask.segments.is_some() {
        let mut parts = Vec::new();
        for Span { keys: segment, .. } in s.spans(mask).into_iter().filter(|span| !span.keys.is_empty()) {
            let cut = |t: &Tensor| t.narrow(1, segment.start, segment.len());
            let keys = mask.keys.as_ref().map(|open| open[segment.clone()].into());
            let own = AttentionMask { causal: mask.causal, keys, segments: None };
            let shape = AttentionShape { queries: segment.len(), keys: segment.len(), ..*s };
            parts.push(composed(&cut(q)?, &cut(k)?, &cut(v)?, &own, &shape)?);
        }
        return if parts.is_empty() { Ok(q.clone()) } else { Tensor::cat(&parts, 1) };
    }
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

/// Gradients of one key head of one span and of the query heads that share it.
struct GroupGradients {
    /// `[queries, head_dim]` for each query head.
    dq: Vec<Vec<f32>>,
    /// `[keys, head_dim]`.
    dk: Vec<f32>,
    /// `[keys, head_dim]`.
    dv: Vec<f32>,
}

impl Attention {
    /// Probabilities of one block of a span's queries of one head: `[block, reach]`.
    fn probabilities(
        &self,
        s: &AttentionShape,
        (span, head): (&Span, usize),
        block: &Range<usize>,
        q: &[f32],
        k: &[f32],
    ) -> Vec<f32> {
        let reach = span.reach(self.mask.causal, block);
        let mut scores = vec![0f32; block.len() * reach];
        let kv_head = head / (s.heads / s.kv_heads);
        let q = s.matrix(q, s.heads, head, span.queries.start + block.start, block.len());
        let k = s.matrix(k, s.kv_heads, kv_head, span.keys.start, reach);
        multiply(q, k.t(), s.scale(), &mut scores, reach, false, false);
        for (i, scores) in block.clone().zip(scores.chunks_exact_mut(reach)) {
            self.softmax(span, span.place(i), scores);
        }
        scores
    }

    /// Softmax over the keys a query sees; the others become zero.
    fn softmax(&self, span: &Span, place: usize, scores: &mut [f32]) {
        let end = if self.mask.causal { (place + 1).min(scores.len()) } else { scores.len() };
        if let Some(open) = &self.mask.keys {
            let open = &open[span.keys.start..span.keys.start + end];
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
fn blocks(count: usize) -> impl Iterator<Item = Range<usize>> {
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
        let spans = s.spans(&self.mask);
        let pieces: Vec<Vec<f32>> = (0..spans.len() * s.heads)
            .into_par_iter()
            .map(|index| {
                let (span, head) = (&spans[index / s.heads], index % s.heads);
                let kv_head = head / (s.heads / s.kv_heads);
                let mut out = vec![0f32; span.queries.len() * s.head_dim];
                for block in blocks(span.queries.len()) {
                    let p = self.probabilities(&s, (span, head), &block, &q, &k);
                    let reach = span.reach(self.mask.causal, &block);
                    let p = Matrix::new(&p, block.len(), reach, reach);
                    let v = s.matrix(&v, s.kv_heads, kv_head, span.keys.start, reach);
                    multiply(p, v, 1.0, &mut out[block.start * s.head_dim..], s.head_dim, false, false);
                }
                out
            })
            .collect();
        let out = interleave(&pieces, spans.iter().map(|span| &span.queries), s.heads, s.head_dim);
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
        let spans = s.spans(&self.mask);
        let parts: Vec<GroupGradients> = values::with_values(q, |q| {
            values::with_values(k, |k| {
                values::with_values(v, |v| {
                    values::with_values(out, |out| {
                        values::with_values(gradient, |d_out| {
                            let heads = (0..spans.len() * s.kv_heads).into_par_iter();
                            Ok(heads
                                .map(|index| {
                                    let (span, kv_head) = (&spans[index / s.kv_heads], index % s.kv_heads);
                                    let mut dk = vec![0f32; span.keys.len() * s.head_dim];
                                    let mut dv = vec![0f32; span.keys.len() * s.head_dim];
                                    let dq = (kv_head * groups..(kv_head + 1) * groups)
                                        .map(|head| {
                                            let at = (span, head, kv_head);
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
        let keys = || spans.iter().map(|span| &span.keys);
        let dq = interleave(&dq, spans.iter().map(|span| &span.queries), s.heads, s.head_dim);
        let dk = interleave(&dk, keys(), s.kv_heads, s.head_dim);
        let dv = interleave(&dv, keys(), s.kv_heads, s.head_dim);
        Ok((
            Some(values::tensor(dq, q.shape(), q)?),
            Some(values::tensor(dk, k.shape(), k)?),
            Some(values::tensor(dv, v.shape(), v)?),
        ))
    }
}

impl Attention {
    /// Adds one head's share of a span to `dk` and `dv` (`[keys, head_dim]`) and returns its `dq` (`[queries, head_dim]`).
    fn head_gradients(
        &self,
        s: &AttentionShape,
        (span, head, kv_head): (&Span, usize, usize),
        [q, k, v, out, d_out]: [&[f32]; 5],
        dk: &mut [f32],
        dv: &mut [f32],
    ) -> Vec<f32> {
        let dim = s.head_dim;
        let mut dq = vec![0f32; span.queries.len() * dim];
        for block in blocks(span.queries.len()) {
            let reach = span.reach(self.mask.causal, &block);
            let p = self.probabilities(s, (span, head), &block, q, k);
            let token = span.queries.start + block.start;
            let d_out_block = s.matrix(d_out, s.heads, head, token, block.len());
            let mut ds = vec![0f32; block.len() * reach];
            let values = s.matrix(v, s.kv_heads, kv_head, span.keys.start, reach);
            multiply(d_out_block, values.t(), 1.0, &mut ds, reach, false, false);
            let p_matrix = Matrix::new(&p, block.len(), reach, reach);
            multiply(p_matrix.t(), d_out_block, 1.0, dv, dim, true, false);
            for (i, (ds, p)) in ds.chunks_exact_mut(reach).zip(p.chunks_exact(reach)).enumerate() {
                let at = s.start(s.heads, token + i, head);
                let dot: f32 = out[at..at + dim].iter().zip(&d_out[at..at + dim]).map(|(o, d)| o * d).sum();
                for (ds, p) in ds.iter_mut().zip(p) {
                    *ds = p * (*ds - dot) * s.scale();
                }
            }
            let ds = Matrix::new(&ds, block.len(), reach, reach);
            let keys = s.matrix(k, s.kv_heads, kv_head, span.keys.start, reach);
            multiply(ds, keys, 1.0, &mut dq[block.start * dim..], dim, false, false);
            multiply(ds.t(), s.matrix(q, s.heads, head, token, block.len()), 1.0, dk, dim, true, false);
        }
        dq
    }
}

/// From one `[length, head_dim]` piece per span and head to `[tokens, heads, head_dim]`; the spans' tokens follow each
/// other without gaps.
fn interleave<'a>(
    pieces: &[Vec<f32>],
    spans: impl Iterator<Item = &'a Range<usize>> + Clone,
    heads: usize,
    head_dim: usize,
) -> Vec<f32> {
    let tokens: usize = spans.clone().map(|span| span.len()).sum();
    let width = heads * head_dim;
    let mut all = vec![0f32; tokens * width];
    for (span, pieces) in spans.zip(pieces.chunks_exact(heads.max(1))) {
        let own = &mut all[span.start * width..span.end * width];
        own.par_chunks_mut(width.max(1)).enumerate().for_each(|(position, out)| {
            for (piece, out) in pieces.iter().zip(out.chunks_exact_mut(head_dim)) {
                out.copy_from_slice(&piece[position * head_dim..(position + 1) * head_dim]);
            }
        });
    }
    all
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
        AttentionMask { causal, keys: Some(open.collect()), segments: None }
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
        let mask = AttentionMask { causal: true, keys: Some([false, false, true, true].into()), segments: None };
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

    /// Lengths of packed sequences: one of one token, an empty one, one longer than a block.
    const LENGTHS: [usize; 5] = [7, 1, 0, 131, 12];

    fn bounds(lengths: &[usize]) -> Arc<[usize]> {
        std::iter::once(0).chain(lengths.iter().scan(0, |end, length| Some((*end += length, *end).1))).collect()
    }

    #[test]
    fn segments_are_what_each_gives_alone() -> Result<()> {
        let total: usize = LENGTHS.iter().sum();
        let open: Arc<[bool]> = (0..total).map(|i| i % 5 != 3 && i != 7).collect();
        for (heads, kv_heads) in [(6, 2), (3, 3)] {
            for (causal, keys) in [(true, None), (false, None), (true, Some(open.clone())), (false, Some(open.clone()))]
            {
                let q = Var::from_tensor(&check::tensor(&[1, total, heads, 8], 1))?;
                let k = Var::from_tensor(&check::tensor(&[1, total, kv_heads, 8], 2))?;
                let v = Var::from_tensor(&check::tensor(&[1, total, kv_heads, 8], 3))?;
                let g = check::tensor(&[1, total, heads, 8], 4);
                let mask = AttentionMask { causal, keys: keys.clone(), segments: Some(bounds(&LENGTHS)) };
                let packed = attention(&q, &k, &v, &mask)?;
                let shape = AttentionShape::of(q.dims(), k.dims(), v.dims(), &mask)?;
                check::close(&packed, &composed(&q, &k, &v, &mask, &shape)?, 2e-6);
                let packed_gradients = (&packed * &g)?.sum_all()?.backward()?;
                let mut start = 0;
                for length in LENGTHS.into_iter().filter(|length| *length > 0) {
                    let cut = |t: &Tensor| t.narrow(1, start, length)?.contiguous();
                    let own: Vec<Var> =
                        [&q, &k, &v].iter().map(|t| Var::from_tensor(&cut(t)?)).collect::<Result<_>>()?;
                    let keys = keys.as_ref().map(|open| open[start..start + length].into());
                    let mask = AttentionMask { causal, keys, segments: None };
                    let alone = attention(&own[0], &own[1], &own[2], &mask)?;
                    check::close(&cut(&packed)?, &alone, 0.0);
                    let gradients = (alone * cut(&g)?)?.sum_all()?.backward()?;
                    for (whole, own) in [&q, &k, &v].into_iter().zip(&own) {
                        check::close(&cut(packed_gradients.get(whole).unwrap())?, gradients.get(own).unwrap(), 0.0);
                    }
                    start += length;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_composed_segments_have_the_same_gradients() -> Result<()> {
        let lengths = [3, 0, 1, 5];
        let tensor = |heads, seed| Var::from_tensor(&check::tensor(&[1, 9, heads, 4], seed));
        let (q, k, v, g) = (tensor(6, 1)?, tensor(2, 2)?, tensor(2, 3)?, check::tensor(&[1, 9, 6, 4], 4));
        let mask = AttentionMask { segments: Some(bounds(&lengths)), ..AttentionMask::causal() };
        let shape = AttentionShape::of(q.dims(), k.dims(), v.dims(), &mask)?;
        let fast = (attention(&q, &k, &v, &mask)? * &g)?.sum_all()?.backward()?;
        let slow = (composed(&q, &k, &v, &mask, &shape)? * &g)?.sum_all()?.backward()?;
        for var in [&q, &k, &v] {
            check::close(fast.get(var).unwrap(), slow.get(var).unwrap(), 1e-5);
        }
        Ok(())
    }

    #[test]
    fn segments_that_do_not_fit_are_refused() {
        let q = |batch| check::tensor(&[batch, 6, 2, 4], 1);
        let given = |q: &Tensor, k: &Tensor, bounds: &[usize]| {
            attention(q, k, k, &AttentionMask { segments: Some(bounds.into()), ..AttentionMask::causal() }).is_ok()
        };
        assert!(given(&q(1), &q(1), &[0, 2, 6]));
        for bounds in [&[0, 2][..], &[1, 6], &[0, 4, 2, 6], &[0, 7], &[]] {
            assert!(!given(&q(1), &q(1), bounds), "{bounds:?}");
        }
        assert!(!given(&q(2), &q(2), &[0, 2, 6]), "two rows");
        assert!(!given(&q(1).narrow(1, 0, 2).unwrap(), &q(1), &[0, 2, 6]), "fewer queries than keys");
    }
}
