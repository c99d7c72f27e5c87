//! Attention as an operation: who sees whom, and the two ways to compute it.
//!
//! On the processor the blocks of [`crate::kernel::attention`] do it, which know tokens that see each other and no others:
//! the rows of a batch, the segments of one packed row, what padding leaves of a row. Keys of others are never touched.

use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::composed::is_composed;
use super::values::{Stored, with_slices};
use crate::kernel::attention::{self as kernel, Attended, Heads, KeyValues, Segment};
use crate::kernel::{Matrix, Rows, SumOrder};

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
    /// What composed attention adds to its scores, made at its first use.
    pub biases: Biases,
}

/// Biases that lie on a device, each made at its first use: all layers of a pass have the same.
#[derive(Debug, Clone, Default)]
pub struct Biases(Arc<Mutex<Vec<(BiasOf, Tensor)>>>);

/// What a bias depends on.
#[derive(Debug, Clone)]
struct BiasOf {
    causal: bool,
    /// Keys that may be seen, and the first of them that counts.
    open: Option<(Arc<[bool]>, usize)>,
    batch: usize,
    queries: usize,
    keys: usize,
}

impl BiasOf {
    fn is(&self, other: &Self) -> bool {
        let is_same_open = match (&self.open, &other.open) {
            (None, None) => true,
            (Some((one, from)), Some((two, other_from))) => Arc::ptr_eq(one, two) && from == other_from,
            _ => false,
        };
        let sizes = |of: &Self| (of.causal, of.batch, of.queries, of.keys);
        is_same_open && sizes(self) == sizes(other)
    }

    /// Zero where a query sees a key, else minus infinity: `[batch or 1, 1, queries, keys]`; `None` where all see all.
    fn make(&self, device: &Device) -> Result<Option<Tensor>> {
        let Self { causal, batch, queries, keys, .. } = *self;
        let Some((open, first)) = &self.open else {
            if !causal {
                return Ok(None);
            }
            let from = place(queries, keys, 0) as u32;
            let places = Tensor::arange(from, from + queries as u32, device)?.reshape((queries, 1))?;
            let is_hidden = Tensor::arange(0, keys as u32, device)?.reshape((1, keys))?.broadcast_gt(&places)?;
            let value = |value: f32| Tensor::full(value, (queries, keys), device);
            let bias = is_hidden.where_cond(&value(f32::NEG_INFINITY)?, &value(0.0)?)?;
            return Ok(Some(bias.reshape((1, 1, queries, keys))?));
        };
        let open = Some(open[*first..*first + batch * keys].into());
        let mask = AttentionMask { causal, keys: open, ..AttentionMask::default() };
        let mut bias = Vec::with_capacity(batch * queries * keys);
        for row in 0..batch {
            for query in 0..queries {
                let place = place(queries, keys, query);
                let value = |key| if mask.sees(row, keys, place, key) { 0.0 } else { f32::NEG_INFINITY };
                bias.extend((0..keys).map(value));
            }
        }
        Tensor::from_vec(bias, (batch, 1, queries, keys), device).map(Some)
    }
}

impl Biases {
    fn of(&self, of: BiasOf, device: &Device) -> Result<Option<Tensor>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().find(|(known, bias)| known.is(&of) && bias.device().same_device(device));
        if let Some((_, bias)) = found {
            return Ok(Some(bias.clone()));
        }
        let made = of.make(device)?;
        known.extend(made.clone().map(|bias| (of, bias)));
        Ok(made)
    }
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
    /// sees the key of its own place, so that its output is finite.
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

    /// Tokens that see each other and no others, as rows of `batch · queries` and of `batch · keys`; `None` where the keys
    /// that may be seen of some row are no single run, or the mask does not fit.
    pub(crate) fn spans(&self, batch: usize, queries: usize, keys: usize) -> Option<Vec<Segment>> {
        let segments_fit = self.segments.as_ref().is_none_or(|bounds| {
            let whole = bounds.first() == Some(&0) && bounds.last() == Some(&keys);
            batch == 1 && queries == keys && whole && bounds.is_sorted()
        });
        let mask_fits = self.keys.as_ref().is_none_or(|open| open.len() == batch * keys);
        if !segments_fit || !mask_fits || !visible(self.causal, batch * queries, queries, keys) {
            return None;
        }
        let mut spans = Vec::new();
        if let Some(bounds) = &self.segments {
            let own = |range: Range<usize>| Segment { queries: range.clone(), keys: range };
            spans.extend(bounds.windows(2).map(|bounds| own(bounds[0]..bounds[1])).filter(|s| !s.keys.is_empty()));
            return self.keys.is_none().then_some(spans);
        }
        for row in 0..batch {
            let (first_query, first_key) = (row * queries, row * keys);
            let all = first_query..first_query + queries;
            let Some(open) = self.keys.as_ref().map(|open| &open[first_key..first_key + keys]) else {
                spans.push(Segment { queries: all, keys: first_key..first_key + keys });
                continue;
            };
            let start = open.iter().position(|open| *open).unwrap_or(keys);
            let end = open.iter().rposition(|open| *open).map_or(start, |last| last + 1);
            if open[start..end].contains(&false) {
                return None;
            }
            let run = first_key + start..first_key + end;
            if !self.causal && !run.is_empty() {
                spans.push(Segment { queries: all, keys: run });
                continue;
            }
            if run.is_empty() {
                let alone = |query: usize| {
                    let key = first_key + place(queries, keys, query);
                    Segment { queries: first_query + query..first_query + query + 1, keys: key..key + 1 }
                };
                spans.extend((0..queries).map(alone));
                continue;
            }
            // Places of the queries, which are no more than the keys: the last one stands at the last key.
            let first_place = keys - queries;
            let alone = |place: usize| {
                let query = first_query + place - first_place;
                // Before the run a query sees itself, behind it the whole run.
                let keys = if place < start { first_key + place..first_key + place + 1 } else { run.clone() };
                Segment { queries: query..query + 1, keys }
            };
            let from = start.max(first_place).min(end.max(first_place));
            spans.extend((first_place..from).map(alone));
            if from < end {
                let queries = first_query + from - first_place..first_query + end - first_place;
                spans.push(Segment { queries, keys: run.clone() });
            }
            spans.extend((end.max(first_place)..keys).map(alone));
        }
        Some(spans)
    }
}

/// Place of query `i` among the keys: the last query stands at the last key. Where there are more queries than keys, which
/// only those may be that see each other's future, the first stands at the first key, and those beyond the last at the last.
fn place(queries: usize, keys: usize, i: usize) -> usize {
    (keys.saturating_sub(queries) + i).min(keys.saturating_sub(1))
}

/// Whether every query has a key to see.
fn visible(causal: bool, all_queries: usize, queries: usize, keys: usize) -> bool {
    all_queries == 0 || (keys > 0 && (!causal || queries <= keys))
}

/// `softmax(q·kᵀ / sqrt(head_dim) + mask)·v`.
///
/// `q: [batch, queries, heads, head_dim]`, `k` and `v`: `[batch, keys, kv_heads, head_dim]`, where `heads` is a multiple
/// of `kv_heads`; returns `q`'s shape and type. Softmax in f32.
///
/// # Errors
/// Shapes that do not fit, or queries without any key.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
    attention_in(q, k, v, mask, SumOrder::default())
}

/// The same, its products' sums made in an order on the processor.
///
/// # Errors
/// As [`attention()`].
pub fn attention_in(q: &Tensor, k: &Tensor, v: &Tensor, mask: &AttentionMask, order: SumOrder) -> Result<Tensor> {
    let shape = AttentionShape::of(q.dims(), k.dims(), v.dims(), mask)?;
    let one_type = k.dtype() == q.dtype() && v.dtype() == q.dtype();
    let spans = mask.spans(shape.batch, shape.queries, shape.keys);
    let (Some(spans), true, false) = (spans, one_type, is_composed(q.device())) else {
        return composed(q, k, v, mask, 0, &shape);
    };
    let tracked = q.track_op() || k.track_op() || v.track_op();
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let operation = Attention { shape, causal: mask.causal, spans, order, saved: tracked.then(Mutex::default) };
    if tracked { q.apply_op3(&k, &v, operation) } else { q.apply_op3_no_bwd(&k, &v, &operation) }
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
        if !fits || !mask_fits || !visible(mask.causal, batch * queries, queries, keys) {
            bail!("attention over q {q:?}, k {k:?}, v {v:?} does not fit its mask or itself");
        }
        Ok(Self { batch, queries, keys, heads, kv_heads, head_dim })
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// The same by candle's operations: the slow truth, and the path of other devices.
///
/// Segments are computed one by one and put together again: no score across them exists.
fn composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &AttentionMask,
    first_key: usize,
    s: &AttentionShape,
) -> Result<Tensor> {
    if let Some(bounds) = &mask.segments {
        let mut parts = Vec::new();
        let segments = bounds.windows(2).map(|bounds| bounds[0]..bounds[1]);
        for segment in segments.filter(|segment| !segment.is_empty()) {
            let cut = |t: &Tensor| t.narrow(1, segment.start, segment.len());
            let own = AttentionMask { segments: None, ..mask.clone() };
            let shape = AttentionShape { queries: segment.len(), keys: segment.len(), ..*s };
            parts.push(composed(&cut(q)?, &cut(k)?, &cut(v)?, &own, segment.start, &shape)?);
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
    let bias = BiasOf {
        causal: mask.causal,
        open: mask.keys.clone().map(|open| (open, first_key)),
        batch: s.batch,
        queries: s.queries,
        keys: s.keys,
    };
    let scores = match mask.biases.of(bias, q.device())? {
        Some(bias) => scores.broadcast_add(&bias)?,
        None => scores,
    };
    let probabilities = candle_nn::ops::softmax(&scores, D::Minus1)?;
    probabilities.matmul(&v)?.transpose(1, 2)?.contiguous()?.to_dtype(q.dtype())
}

struct Attention {
    shape: AttentionShape,
    causal: bool,
    spans: Vec<Segment>,
    order: SumOrder,
    /// What the forward left, an [`Attended`] of the values' type, where a backward may follow.
    saved: Option<Mutex<Option<Box<dyn Any + Send>>>>,
}

impl Attention {
    fn heads(&self) -> Heads {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        Heads { heads, kv_heads, head_dim, causal: self.causal }
    }

    /// Queries, keys and values as rows of tokens.
    fn rows<'a, E: Stored>(&self, [q, k, v]: [&'a [E]; 3]) -> [Rows<'a, E>; 3] {
        let s = &self.shape;
        let (width, kv_width) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let keys = |values| Rows::dense(values, s.batch * s.keys, kv_width);
        [Rows::dense(q, s.batch * s.queries, width), keys(k), keys(v)]
    }

    fn attend<E: Stored>(&self, values: [&[E]; 3]) -> Attended<E> {
        let [q, k, v] = self.rows(values);
        kernel::forward(q, &[KeyValues::of(k, v)], &self.heads(), &self.spans, self.order)
    }

    fn forward<E: Stored>(&self, storages: [(&CpuStorage, &Layout); 3]) -> Result<(CpuStorage, Shape)> {
        let mut values: [&[E]; 3] = [&[]; 3];
        for (values, (storage, layout)) in values.iter_mut().zip(storages) {
            let (Some(all), Some((start, end))) = (E::values(storage), layout.contiguous_offsets()) else {
                bail!("attention reads queries, keys and values of one type without gaps");
            };
            *values = &all[start..end];
        }
        let attended = self.attend(values);
        let out = attended.out.to_dense();
        if let Some(saved) = &self.saved {
            *saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(attended));
        }
        Ok((E::storage(out), storages[0].1.shape().clone()))
    }

    fn backward<E: Stored>(&self, tensors: [&Tensor; 3], gradient: &Tensor) -> Result<[Tensor; 3]> {
        let gradient = gradient.contiguous()?;
        let left = self.saved.as_ref().and_then(|saved| saved.lock().unwrap_or_else(PoisonError::into_inner).take());
        let [q, k, v] = tensors;
        let gradients: [Matrix<E>; 3] = with_slices::<E, _>(&[q, k, v, &gradient], |slices| {
            let values = [slices[0], slices[1], slices[2]];
            let attended = match left.and_then(|left| left.downcast().ok()) {
                Some(attended) => attended,
                None => Box::new(self.attend(values)),
            };
            let width = self.shape.heads * self.shape.head_dim;
            let d_out = Rows::dense(slices[3], self.shape.batch * self.shape.queries, width);
            Ok(kernel::backward(self.rows(values), &attended, d_out, &self.heads(), &self.spans))
        })?;
        let tensor = |which: usize| {
            Tensor::from_vec(gradients[which].to_dense(), tensors[which].shape(), tensors[which].device())
        };
        Ok([tensor(0)?, tensor(1)?, tensor(2)?])
    }
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
        match q {
            CpuStorage::F32(_) => self.forward::<f32>([(q, lq), (k, lk), (v, lv)]),
            CpuStorage::BF16(_) => self.forward::<bf16>([(q, lq), (k, lk), (v, lv)]),
            _ => bail!("attention is computed in f32 or bf16"),
        }
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = match q.dtype() {
            DType::F32 => self.backward::<f32>([q, k, v], gradient)?,
            _ => self.backward::<bf16>([q, k, v], gradient)?,
        };
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{check, with_composed};
    use candle_core::{Device, Var};

    /// Left-padded, right-padded and hollow key masks for a batch of three.
    fn padded(keys: usize, causal: bool) -> AttentionMask {
        let open = (0..3 * keys).map(|i| match i / keys {
            0 => i % keys >= 2,
            1 => i % keys < keys - 1,
            _ => i % keys != 3,
        });
        AttentionMask { causal, keys: Some(open.collect()), ..AttentionMask::default() }
    }

    /// Blocks and composed attention have one result, and one gradient of `Σ g · result`.
    fn agree([q, k, v]: [&Var; 3], g: &Tensor, mask: &AttentionMask) -> Result<()> {
        let shape = AttentionShape::of(q.dims(), k.dims(), v.dims(), mask)?;
        let (fast, slow) = (attention(q, k, v, mask)?, composed(q, k, v, mask, 0, &shape)?);
        check::close(&fast, &slow, 2e-6);
        // By the biases that were made before, as in the next layer.
        check::close(&slow, &composed(q, k, v, mask, 0, &shape)?, 0.0);
        let (fast, slow) = ((fast * g)?.sum_all()?.backward()?, (slow * g)?.sum_all()?.backward()?);
        for var in [q, k, v] {
            check::close(fast.get(var).unwrap(), slow.get(var).unwrap(), 2e-5);
        }
        Ok(())
    }

    #[test]
    fn blocks_agree_with_the_composed_attention_forward_and_backward() -> Result<()> {
        for (queries, keys, heads, kv_heads) in [(70, 70, 4, 2), (3, 90, 2, 2), (1, 9, 6, 3), (130, 130, 1, 1)] {
            for mask in [AttentionMask::full(), AttentionMask::causal(), padded(keys, true), padded(keys, false)] {
                let q = Var::from_tensor(&check::tensor(&[3, queries, heads, 8], 1))?;
                let k = Var::from_tensor(&check::tensor(&[3, keys, kv_heads, 8], 2))?;
                let v = Var::from_tensor(&check::tensor(&[3, keys, kv_heads, 8], 3))?;
                let g = check::tensor(&[3, queries, heads, 8], 4);
                agree([&q, &k, &v], &g, &mask)?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_fully_masked_query_is_finite_and_sees_itself() -> Result<()> {
        let (q, k, v) =
            (check::tensor(&[1, 4, 1, 4], 1), check::tensor(&[1, 4, 1, 4], 2), check::tensor(&[1, 4, 1, 4], 3));
        let mask = AttentionMask { keys: Some([false, false, true, true].into()), ..AttentionMask::causal() };
        let out = attention(&q, &k, &v, &mask)?;
        check::close(&out.narrow(1, 0, 2)?, &v.narrow(1, 0, 2)?, 0.0);
        Ok(())
    }

    #[test]
    fn more_queries_than_keys_are_all_answered() -> Result<()> {
        for open in [[true; 3], [false; 3], [false, true, true]] {
            let q = Var::from_tensor(&check::tensor(&[2, 5, 4, 8], 1))?;
            let k = Var::from_tensor(&check::tensor(&[2, 3, 2, 8], 2))?;
            let v = Var::from_tensor(&check::tensor(&[2, 3, 2, 8], 3))?;
            let g = check::tensor(&[2, 5, 4, 8], 4);
            let keys = Some([open, [true, true, false]].concat().into());
            let mask = AttentionMask { keys, ..AttentionMask::full() };
            let spans = mask.spans(2, 5, 3).unwrap();
            let answered: Vec<usize> = spans.into_iter().flat_map(|span| span.queries).collect();
            assert_eq!(answered, (0..10).collect::<Vec<_>>());
            agree([&q, &k, &v], &g, &mask)?;
        }
        Ok(())
    }

    #[test]
    fn queries_without_keys_are_refused_and_no_queries_are_not() -> Result<()> {
        let tensor = |tokens: usize, heads: usize| Tensor::zeros((2, tokens, heads, 4), DType::F32, &Device::Cpu);
        let masked = AttentionMask { keys: Some([].into()), ..AttentionMask::full() };
        for mask in [AttentionMask::full(), AttentionMask::causal(), masked.clone()] {
            let (none, some) = (tensor(0, 1)?, tensor(3, 2)?);
            let given = || attention(&some, &none, &none, &mask);
            for error in [given().unwrap_err(), with_composed(given).unwrap_err()] {
                assert!(error.to_string().contains("[2, 0, 1, 4]"), "{error}");
            }
            assert!(mask.spans(2, 3, 0).is_none());
            assert_eq!(attention(&none, &none, &none, &mask)?.dims(), [2, 0, 1, 4]);
        }
        assert!(attention(&tensor(3, 1)?, &tensor(2, 1)?, &tensor(2, 1)?, &AttentionMask::causal()).is_err());
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
                let mask = AttentionMask {
                    causal,
                    keys: keys.clone(),
                    segments: Some(bounds(&LENGTHS)),
                    ..AttentionMask::default()
                };
                let packed = attention(&q, &k, &v, &mask)?;
                let shape = AttentionShape::of(q.dims(), k.dims(), v.dims(), &mask)?;
                check::close(&packed, &composed(&q, &k, &v, &mask, 0, &shape)?, 2e-6);
                let packed_gradients = (&packed * &g)?.sum_all()?.backward()?;
                let mut start = 0;
                for length in LENGTHS.into_iter().filter(|length| *length > 0) {
                    let cut = |t: &Tensor| t.narrow(1, start, length)?.contiguous();
                    let own: Vec<Var> =
                        [&q, &k, &v].iter().map(|t| Var::from_tensor(&cut(t)?)).collect::<Result<_>>()?;
                    let keys: Option<Arc<[bool]>> = keys.as_ref().map(|open| open[start..start + length].into());
                    // Where no key is seen, what is left of `dp - Σ do·o` is the rounding of two sums of other orders.
                    let is_blind = keys.as_ref().is_some_and(|open| open.iter().all(|open| !open));
                    let bound = if is_blind { 1e-6 } else { 0.0 };
                    let mask = AttentionMask { causal, keys, ..AttentionMask::default() };
                    let alone = attention(&own[0], &own[1], &own[2], &mask)?;
                    check::close(&cut(&packed)?, &alone, 0.0);
                    let gradients = (alone * cut(&g)?)?.sum_all()?.backward()?;
                    for (whole, own) in [&q, &k, &v].into_iter().zip(&own) {
                        check::close(&cut(packed_gradients.get(whole).unwrap())?, gradients.get(own).unwrap(), bound);
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
        let slow = (composed(&q, &k, &v, &mask, 0, &shape)? * &g)?.sum_all()?.backward()?;
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
